"""Chat answers with an ``Idempotency-Key``, as runs: they outlive their request, which may come again.

Their record (kind ``run``) is nobody's to read: whoever comes again with the key gets what it holds. It has the chunks
of a stream in its log, or the whole answer.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import AgentRequest
from agentrun_server.core.usage import Usage
from agentrun_server.errors import APIError, ServiceUnavailableError
from agentrun_server.protocols.openai_chat.both import KeptChunks
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from agentrun_server.runs.entry import Entry, Outcome, RecordEntry
from agentrun_server.runs.idempotency import Claim
from agentrun_server.runs.pump import Outlet, pump
from agentrun_server.runs.registry import Revived
from agentrun_server.runs.run import RunStatus
from agentrun_server.server.handler import prompt_tokens
from agentrun_server.storage.contracts import Change, Delete, Lease, Record

__all__ = ["KIND", "ChatEntry", "ChatRuns", "ChatScript"]

KIND: Final = "run"


def _cancelled() -> APIError:
    error = ServiceUnavailableError("The run was cancelled.", code="cancelled")
    return error.no_retry()


class ChatScript:
    """A chat answer, streamed or whole; a `Script`.

    Args:
        request: of the client.
        options: of the answer.
        settings: of the server.
        new_id: makes an id with the prefix it is given.
        source: runs the agent, once for each choice.
    """

    def __init__(
        self,
        request: AgentRequest,
        options: ChatOptions,
        settings: ChatSettings,
        new_id: IdSource,
        source: Callable[[], AsyncGenerator[Any, None]],
    ) -> None:
        self._n = options.n
        self._source = source
        self._tokens = partial(prompt_tokens, request)
        self._id, self._created, self._model = new_id("chatcmpl-"), int(time.time()), request.model
        self._encoder: KeptChunks | CompletionEncoder
        if request.stream:
            self._encoder = KeptChunks(
                options, settings, new_id,
                id=self._id, created=self._created, model=self._model, prompt_tokens=self._tokens,
            )  # fmt: skip
        else:
            self._encoder = CompletionEncoder(options, settings, new_id)
        self._error: APIError | None = None
        self.answer: str | None = None
        """The completion as JSON text, once it is whole."""
        self.is_open = False
        self.ran = False
        """The agent has begun."""

    @property
    def text(self) -> str:
        """What has been said so far, of several choices in the last."""
        return self._encoder.text

    async def perform(self, outlet: Outlet) -> list[bytes]:
        """Run the agent to its end, and return the last events."""
        self.ran = True
        encoder, rest = self._encoder, ""
        for left in range(self._n - 1, -1, -1):
            rest = await pump(outlet, self._source(), encoder, rest)
            rest += encoder.finish_choice(more=left > 0)
        if isinstance(encoder, KeptChunks):
            self.answer = encoder.completion()
            return self.split(rest + encoder.finish())
        self.answer = encoder.completion(id=self._id, created=self._created, model=self._model, usage=self.usage())
        return []

    def whole(self) -> str:
        """Return the completion as JSON text, when it has ended.

        Raises:
            APIError: it has failed.
        """
        if self._error is not None:
            raise self._error
        assert self.answer is not None, "it is whole"
        return self.answer

    def open(self) -> list[bytes]:
        """Write nothing: a chat answer has no beginning of its own."""
        return []

    def proceed(self) -> list[bytes]:
        """Write nothing: a chat answer does not wait for its turn."""
        return []

    def fail(self, error: APIError) -> list[bytes]:
        """End with an error; one that is whole has ended."""
        if self.answer is not None or self._error is not None:
            return []
        self._error = error
        return self.split(ChunkEncoder.fail(error)) if isinstance(self._encoder, KeptChunks) else []

    def cancel(self) -> list[bytes]:
        """End with an error, unless it is whole: a chat answer cannot say that it was cancelled."""
        return self.fail(_cancelled())

    def outcome(self) -> Outcome:
        """Return how it ended."""
        if self._error is not None:
            failure = {"status": self._error.status_code, **self._error.body()}
            return Outcome(RunStatus.FAILED, {"failure": failure})
        return Outcome(RunStatus.COMPLETED, {"answer": self.answer})

    def split(self, text: str) -> list[bytes]:
        """Return what was written, as one entry of the log: its events have no numbers that anybody sees."""
        if not text:
            return []
        self.is_open = True
        return [text.encode()]

    def usage(self) -> Usage:
        """Return what it has cost so far."""
        return self._encoder.usage(self._tokens)


@dataclass(slots=True, kw_only=True)
class ChatEntry(RecordEntry):
    """The record of a chat answer, and the completion it is stored as, if it is; an `Entry`."""

    script: ChatScript
    claim: Claim
    session: str
    """Id of the session that every answer names; empty without one."""
    completion: Callable[[str], Sequence[Change]]
    """Returns what stores the answer of a run, when it is whole."""

    def end(self, outcome: Outcome, fence: Lease | None, now: float) -> list[Change]:
        """Return what ends the record; one whose agent never began leaves nothing behind, and its key is free."""
        # `super()` does not work in a dataclass with slots.
        outcome = replace(outcome, body={**outcome.body, "session": self.session})
        ending = RecordEntry.end(self, outcome, fence, now)
        if not self.script.ran:
            return [*ending, Delete(self.kind, self.id), self.claim.withdraw()]
        return [*ending, *self.completion(self.id)]


class ChatRuns:
    """Ends chat answers that nobody runs; a `KindOfRun`."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl

    def conclude(
        self, record: Record, events: Sequence[bytes], error: APIError | None
    ) -> tuple[Entry, list[bytes], Outcome]:
        """Return the last events of an answer that nobody writes any more."""
        error = error or _cancelled()
        entry = RecordEntry(kind=record.kind, id=record.id, owner=record.owner, ttl=self._ttl, begun=True)
        last = [ChunkEncoder.fail(error).encode()] if events else []
        failure = {"status": error.status_code, **error.body()}
        return entry, last, Outcome(RunStatus.FAILED, {"failure": failure, "session": record.body.get("session", "")})

    async def revive(self, record: Record, events: Sequence[bytes], *, attempt: int) -> Revived | None:  # noqa: ARG002
        """Return None: somebody waits for the answer, and can ask again with another key."""
        return None
