"""What an agent is given: one request, whichever protocol it came by."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from agentrun_server.core.messages import Message, Tool

if TYPE_CHECKING:
    from starlette.requests import Request

    from agentrun_server.core.session import Session

__all__ = ["AgentRequest", "Headers"]

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Headers(Mapping[str, str]):
    """Request headers: names in any case, the first value wins. `getlist` returns every value of a repeated header."""

    __slots__ = ("first", "raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.raw = raw
        """As ASGI has them: names in lower case, repeated ones included."""
        self.first: Mapping[bytes, bytes] = dict(reversed(raw))
        """The first value of each, as it came."""

    def __getitem__(self, name: str) -> str:
        return self.first[_wire_name(name)].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (key.decode("latin-1") for key in dict.fromkeys(key for key, _ in self.raw))

    def __len__(self) -> int:
        return len(self.first)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of the header `name`, or `default`."""
        value = self.first.get(_wire_name(name))
        return default if value is None else value.decode("latin-1")

    def getlist(self, name: str) -> list[str]:
        """Return every value of the header `name`, in the order they came."""
        wanted = _wire_name(name)
        return [value.decode("latin-1") for key, value in self.raw if key == wanted]


def _wire_name(name: str) -> bytes:
    return name.lower().encode("latin-1", "replace")  # with "?", which is in no header's name


class AgentRequest:
    """One request to the agent.

    Parameters of the protocol that the client sent (``temperature``, ``max_completion_tokens``, ``seed`` …) are
    attributes; those it did not send, or sent as null, are not there at all: ``getattr(request, "temperature", 0.2)``.
    They are also in `params`. Fields the protocol does not know are in `extra`.

    Attributes:
        protocol: ``openai`` for Chat Completions.
        model: the model id the client asked for.
        messages: the conversation, oldest first; never empty when a client sent it.
        stream: whether the client reads a stream. An agent may yield pieces either way.
        tools: tools the client offers and will run itself, or None. A call of one of them ends the turn.
        tool_choice: as sent; None when the client left it out.
        response_format: as sent; None when the client left it out.
        metadata: the client's own key-value pairs.
        user: the client's id of its end user, unverified.
        headers: the HTTP request's headers.
        principal: who is calling, set by an authentication middleware; None without one.
        session: what the agent can keep between the requests of one conversation; None unless sessions are turned on.
        request_id: also the ``x-request-id`` of the answer.
        deadline: when the run will be stopped, on the clock of `time.monotonic`; None without a limit.
    """

    __slots__ = (
        "__weakref__",
        "_cancelled",
        "_raw_request",
        "_wakeup",
        "deadline",
        "extra",
        "headers",
        "messages",
        "metadata",
        "model",
        "params",
        "principal",
        "protocol",
        "request_id",
        "response_format",
        "session",
        "stream",
        "tool_choice",
        "tools",
        "user",
    )

    def __init__(
        self,
        messages: Sequence[Message | Mapping[str, Any]] = (),
        *,
        protocol: str = "openai",
        model: str = "",
        stream: bool = False,
        tools: list[Tool] | None = None,
        tool_choice: Any = None,
        response_format: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        user: str | None = None,
        params: Mapping[str, Any] = _EMPTY,
        extra: Mapping[str, Any] = _EMPTY,
        headers: Headers | None = None,
        principal: Any = None,
        session: "Session | None" = None,
        request_id: str = "",
        deadline: float | None = None,
        raw_request: "Callable[[], Request] | None" = None,
    ) -> None:
        self.protocol = protocol
        self.model = model
        self.messages = [m if isinstance(m, Message) else Message(m) for m in messages]
        self.stream = stream
        self.tools = tools
        self.tool_choice = tool_choice
        self.response_format = response_format
        self.metadata = metadata
        self.user = user
        self.params = params
        self.extra = extra
        self.headers = headers if headers is not None else Headers()
        self.principal = principal
        self.session = session
        self.request_id = request_id
        self.deadline = deadline
        self._raw_request = raw_request
        self._cancelled = False
        self._wakeup: threading.Event | None = None

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no slot: the protocol's own parameters.
        if not name.startswith("_"):
            try:
                return self.params[name]
            except KeyError:
                pass
        raise AttributeError(f"the request has no {name!r}; parameters are there only when the client sent them")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.params]

    def __repr__(self) -> str:
        # Neither messages nor headers: a request is logged more often than anyone thinks.
        return f"<AgentRequest {self.request_id or '-'} model={self.model!r} messages={len(self.messages)}>"

    @property
    def raw_request(self) -> "Request":
        """The Starlette request; its body can be read again (``await request.raw_request.json()``).

        Raises:
            RuntimeError: the request did not come over HTTP.
        """
        if self._raw_request is None:
            raise RuntimeError("this request did not come over HTTP")
        return self._raw_request()

    @property
    def is_cancelled(self) -> bool:
        """Whether the run has been given up: the client left, a limit was reached, the server stops.

        An async agent is cancelled by itself. A long sync agent should look here between pieces of work.
        """
        return self._cancelled

    def wait_cancelled(self, timeout: float) -> bool:
        """Block a sync agent's thread for `timeout` seconds, or until the run is given up; return `is_cancelled`."""
        if self._wakeup is None:
            self._wakeup = threading.Event()
        if not self._cancelled:  # looked up after the event is in place, so that `_cancel` cannot be missed
            self._wakeup.wait(timeout)
        return self._cancelled

    def remaining(self) -> float | None:
        """Return the seconds left until `deadline`, at least 0; None without a limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def _cancel(self) -> None:
        """Mark the run as given up; called by the server, from any thread, any number of times."""
        self._cancelled = True
        if self._wakeup is not None:
            self._wakeup.set()
