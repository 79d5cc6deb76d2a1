"""How a protocol writes a run down, from its opening to each way it can end."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentrun_server.core.usage import Usage
from agentrun_server.errors import APIError
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, split_events
from agentrun_server.runs.entry import Outcome
from agentrun_server.runs.pump import Encoder, Outlet, Silent, pump
from agentrun_server.runs.run import RunStatus

__all__ = ["ResponseScript", "Script"]


class Script(Protocol):
    """One answer. After its end, whichever came first, nothing more is written."""

    @property
    def is_open(self) -> bool:
        """Something has been written."""
        ...

    async def perform(self, outlet: Outlet) -> list[bytes]:
        """Run the agent to its end, and return the last events."""
        ...

    def open(self) -> list[bytes]:
        """Begin, though the agent has said nothing yet."""
        ...

    def proceed(self) -> list[bytes]:
        """Tell that an answer which was queued has its turn."""
        ...

    def fail(self, error: APIError) -> list[bytes]:
        """End with an error."""
        ...

    def cancel(self) -> list[bytes]:
        """End with what there is."""
        ...

    def outcome(self) -> Outcome:
        """Return how it ended."""
        ...

    def split(self, text: str) -> list[bytes]:
        """Return the events of what was written."""
        ...

    def usage(self) -> Usage:
        """Return what it has cost so far."""
        ...


class ResponseScript:
    """A response; a `Script`.

    Args:
        encoder: writes it.
        source: runs the agent.
        prompt_tokens: counts those of the question.
        clock: seconds since the epoch.
        body: makes what the record says at the end of the finished response.
        queued: it waits for its turn.
        is_open: there is something in the log already.
        silent: nobody reads its events.
    """

    def __init__(
        self,
        encoder: ResponseEncoder,
        source: Callable[[], Any],
        *,
        prompt_tokens: Callable[[], int],
        clock: Callable[[], float],
        body: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        queued: bool = False,
        is_open: bool = False,
        silent: bool = False,
    ) -> None:
        self.encoder = encoder
        self._reader: Encoder = Silent(encoder) if silent else encoder
        self._source = source
        self._prompt_tokens = prompt_tokens
        self._clock = clock
        self._body = body
        self._queued = queued
        self._error: APIError | None = None
        self.is_open = is_open

    async def perform(self, outlet: Outlet) -> list[bytes]:
        """Run the agent to its end, and return the last events."""
        # A response that was taken up may have been whole already.
        rest = "" if self.encoder.ended else await pump(outlet, self._source(), self._reader)
        return self.split(rest + self.encoder.finish(int(self._clock())))

    def open(self) -> list[bytes]:
        """Begin, though the agent has said nothing yet."""
        if self.is_open:
            return []
        return self.split(self.encoder.open(queued=self._queued))

    def proceed(self) -> list[bytes]:
        """Tell that a response which was queued has its turn."""
        if not self._queued:
            return []
        self._queued = False
        return self.split(self.encoder.proceed())

    def fail(self, error: APIError) -> list[bytes]:
        """End with an error."""
        if self.encoder.response is None:
            self._error = error
        return self.split(self.encoder.fail(error))

    def cancel(self) -> list[bytes]:
        """End with what there is."""
        return self.split(self.encoder.cancel())

    def outcome(self) -> Outcome:
        """Return how it ended."""
        response = self.encoder.response
        assert response is not None, "it has ended"
        body = self._body(response)
        if self._error is not None:
            body = {**body, "failure": {"status": self._error.status_code, **self._error.body()}}
        return Outcome(RunStatus(response["status"]), body)

    def split(self, text: str) -> list[bytes]:
        """Return the events of what was written."""
        if text:
            self.is_open = True
        return split_events(text)

    def usage(self) -> Usage:
        """Return what it has cost so far."""
        return self.encoder.usage(self._prompt_tokens)
