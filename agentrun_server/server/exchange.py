"""One HTTP exchange: what every answer carries, and what the log says of it."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from agentrun_server.errors import APIError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.server.asgi import Message, Scope, Send

__all__ = [
    "EXCHANGE",
    "HANDSHAKE",
    "Exchange",
    "answer",
    "answer_error",
    "client_request_id",
    "principal_of",
    "refuse_websocket",
    "scopes_of",
]

BODY_FOLLOWS = "agentrun_server.body_follows"
"""Key of a ``http.response.start`` message: the body is sent in the same turn of the event loop, so that our HTTP
protocol can write both at once. Other servers ignore it."""
EXCHANGE = "agentrun_server.exchange"
"""Key of the ASGI scope under which the exchange is found."""
HANDSHAKE = "agentrun_server.handshake"
"""Key of the scope of a WebSocket: that scope as the server got it, before anything in front has changed it."""

_SAFE_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_JSON = (b"content-type", b"application/json")
_VERSION = (b"openai-version", b"2020-10-01")
_JSON_LINE, _VERSION_LINE = (f"{name.decode()}: {value.decode()}\r\n" for name, value in (_JSON, _VERSION))
_HEADS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013


class Exchange:
    """Sees every message on its way out: adds ``x-request-id`` and its companions, remembers the status.

    `facts` are fields for the log line, set by whoever knows them.
    """

    __slots__ = (
        "_cycle", "_gone", "_send", "client_gone", "extra_headers", "facts", "quiet", "request_id", "started", "status",
    )  # fmt: skip

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._cycle: Any = getattr(send, "__self__", None)
        """Whose method `send` is: with our HTTP protocol, `agentrun_server.server.http.cycle.Cycle`."""
        self.request_id = request_id
        self.started = time.perf_counter()
        self.status = 0
        self.client_gone = False
        self._gone: asyncio.Event | None = None
        self.facts: dict[str, Any] | None = None
        self.extra_headers: tuple[tuple[bytes, bytes], ...] = ()
        """Of the answer, whatever it is."""
        self.quiet = False
        """No log line: probes."""

    def send(self, message: Message) -> Awaitable[None]:
        """Pass `message` on; the ASGI ``send`` for everything behind this."""
        if message["type"] in _HEADS:
            self.status = message.get("status", 101)
            headers = message["headers"] = list(message.get("headers", ()))
            elapsed = int((time.perf_counter() - self.started) * 1000)
            headers += (
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", b"%d" % elapsed),
                _VERSION,
                *self.extra_headers,
            )
        return self._send(message)

    def answer(self, status: int, body: bytes) -> bool:
        """Write a whole JSON answer at once, if the server can do that without waiting; tell whether it was written.

        For who sends by this object's own `send`, with nothing in between that wants to see the messages.
        """
        write = getattr(self._cycle, "answer", None)
        if write is None or self.extra_headers or not self.request_id.isascii() or not self.request_id.isprintable():
            return False
        elapsed = int((time.perf_counter() - self.started) * 1000)
        lines = (
            f"{_JSON_LINE}content-length: {len(body)}\r\nx-request-id: {self.request_id}\r\n"
            f"openai-processing-ms: {elapsed}\r\n{_VERSION_LINE}"
        )
        if not write(status, lines.encode(), body):
            return False
        self.status = status
        return True

    def find_push(self) -> Callable[[bytes], bool] | None:
        """Return what writes a piece of a stream at once, if the server can; it tells whether it was written."""
        return getattr(self._cycle, "push", None)

    def close(self) -> None:
        """Let go of the connection: the scope holds this object, and the connection holds the scope.

        Without this every request would leave a reference cycle behind, for the garbage collector to find.
        """
        self._send, self._cycle = _nowhere, None

    def elapsed(self) -> float:
        """Return the seconds since the request came."""
        return time.perf_counter() - self.started

    def client_left(self) -> None:
        """Tell whoever waits for it that the client has left."""
        self.client_gone = True
        if self._gone is not None:
            self._gone.set()

    async def wait_client_left(self) -> None:
        """Wait until the client has left. ``receive`` tells it once on some servers, and the run listens there."""
        if not self.client_gone:
            if self._gone is None:
                self._gone = asyncio.Event()
            await self._gone.wait()

    def find_abort(self) -> Any:
        """Return what drops the connection at once, if the server is uvicorn, whose ``send`` is bound to it."""
        return getattr(getattr(self._cycle, "transport", None), "abort", None)

    def note_caller(self, principal: Any) -> None:
        """Add to the log line who called, as a middleware in front has said in a form of its own."""
        subject = getattr(principal, "subject", None)
        if isinstance(subject, str):
            self.note({"subject": subject})

    def note(self, facts: dict[str, Any]) -> None:
        """Add fields to the log line."""
        if self.facts is None:
            self.facts = facts
        else:
            self.facts.update(facts)


def principal_of(scope: Scope) -> Any:
    """Return who is calling, as a middleware in front has said in ``scope["state"]["principal"]``, else None."""
    state = scope.get("state")
    return state.get("principal") if state else None


def scopes_of(principal: Any) -> Collection[str]:
    """Return the scopes of `principal`, which is whatever a middleware in front has made of it, None included."""
    scopes: str | Collection[str] = getattr(principal, "scopes", None) or ()
    return scopes.split() if isinstance(scopes, str) else scopes  # one text, as a token writes them


def client_request_id(scope: Scope) -> str | None:
    """Return the ``X-Request-ID`` of the request, if it has the form of an id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _SAFE_ID.fullmatch(text) else None
    return None


async def _nowhere(message: Message) -> None:
    """Take what is sent after the end of an exchange."""


async def answer(
    send: Send,
    status: int,
    body: bytes,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    content_type: tuple[bytes, bytes] = _JSON,
) -> None:
    """Send a whole answer."""
    head = [content_type, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head, BODY_FOLLOWS: True})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: APIError) -> None:
    """Send `error` as OpenAI's error object with its status."""
    await answer(send, error.status_code, dumps(error.body()).encode(), error.headers)


async def refuse_websocket(scope: Scope, send: Send, error: APIError) -> None:
    """Answer the handshake of a WebSocket with `error`.

    Where the server cannot send an HTTP answer to it, it is closed before it was accepted; then clients see a bare 403.
    """
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        code = _TRY_AGAIN_LATER if error.status_code in (429, 503) else _POLICY_VIOLATION
        await send({"type": "websocket.close", "code": code, "reason": error.code or ""})
        return
    body = dumps(error.body()).encode()
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *error.headers]
    await send({"type": "websocket.http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
