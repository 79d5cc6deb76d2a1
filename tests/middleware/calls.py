"""One call of an ASGI app, as values: a scope and messages go in, messages come out."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send
from tests.support.clock import within

__all__ = ["CONNECT", "PEER", "Answer", "Behind", "body_in", "call", "http_scope", "websocket_scope"]

PEER = ("203.0.113.7", 50123)
CONNECT: Message = {"type": "websocket.connect"}

Headers = Iterable[tuple[str, str]]


def http_scope(
    path: str = "/v1/models", *, method: str = "GET", headers: Headers = (), query: bytes = b"", **more: Any
) -> Scope:
    """Return what a server says of a request; names of headers are put in lower case, as servers do."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "query_string": query,
        "root_path": "",
        "headers": _encoded(headers),
        "client": PEER,
        "server": ("198.51.100.1", 80),
        **more,
    }


def websocket_scope(path: str = "/ws", *, denial: bool = False, headers: Headers = (), **more: Any) -> Scope:
    """Return what a server says of a WebSocket handshake; with `denial` it can send an HTTP answer to it."""
    scope = http_scope(path, headers=headers, **{"scheme": "ws", **more})
    del scope["method"]
    return {
        **scope,
        "type": "websocket",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}} if denial else {},
    }


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def body_in(*pieces: bytes) -> list[Message]:
    """Return a request body in `pieces`."""
    last = len(pieces) - 1
    return [{"type": "http.request", "body": piece, "more_body": at < last} for at, piece in enumerate(pieces)]


@dataclass
class Answer:
    """What an app has sent, and how many messages it has read."""

    messages: list[Message] = field(default_factory=list)
    read: int = 0
    error: BaseException | None = None
    """What the app raised; `call` raises it, unless it was asked to keep it."""

    @property
    def _start(self) -> Message:
        (start,) = [message for message in self.messages if message["type"].endswith((".start", ".accept"))]
        return start

    @property
    def status(self) -> int:
        """Status of the answer."""
        status: int = self._start["status"]
        return status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer, or of the accepted handshake."""
        return list(self._start.get("headers", ()))

    @property
    def body(self) -> bytes:
        """Body of the answer."""
        return b"".join(message["body"] for message in self.messages if message["type"].endswith(".body"))

    def header(self, name: str) -> str | None:
        """Return the value of a header, which must not come twice."""
        values = [value.decode() for key, value in self.headers if key.lower() == name.encode()]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None

    def refusal(self) -> tuple[int, str, str]:
        """Return status, type and code of OpenAI's error object; the answer must be one."""
        assert self.header("content-type") == "application/json"
        assert self.header("content-length") == str(len(self.body))
        parsed = json.loads(self.body)
        assert list(parsed) == ["error"]
        assert set(parsed["error"]) == {"message", "type", "param", "code"}
        return self.status, parsed["error"]["type"], parsed["error"]["code"]


async def call(
    app: ASGIApp, scope: Scope, incoming: Sequence[Message] | None = None, *, keep_error: bool = False
) -> Answer:
    """Call `app` and return what it sent. When `incoming` has been read, there is nothing to read for ever."""
    if incoming is None:
        incoming = {"http": body_in(b""), "websocket": [CONNECT]}.get(scope["type"], [])
    waiting = list(incoming)
    answer = Answer()

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        answer.read += 1
        return waiting.pop(0)

    async def send(message: Message) -> None:
        answer.messages.append(message)

    try:
        await within(_finish(app, scope, receive, send))
    except Exception as error:
        if not keep_error:
            raise
        answer.error = error
    return answer


async def _finish(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


class Behind:
    """An app that answers ``ok`` to everything, accepts every WebSocket, and remembers what it was asked."""

    def __init__(self, headers: Headers = (), status: int = 200) -> None:
        self.scopes: list[Scope] = []
        self._start = {"status": status, "headers": _encoded(headers)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", **self._start})
            await send({"type": "http.response.body", "body": b"ok"})
        elif scope["type"] == "websocket":
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept", "headers": self._start["headers"]})

    @property
    def scope(self) -> Scope:
        """The one scope it was called with."""
        (scope,) = self.scopes
        return scope
