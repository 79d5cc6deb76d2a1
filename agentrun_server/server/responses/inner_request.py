"""A request that the server puts to itself, for a client that asks over a WebSocket.

It goes through all that stands in front, the user's middleware included, with the headers of the handshake: the
credential is checked each time, limits count it, the log has its line, and whatever holds for ``POST`` holds here
without a second thought.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentrun_server.errors import AgentFailedError, APIError
from agentrun_server.server.asgi import ASGIApp, Message, Scope
from agentrun_server.server.exchange import EXCHANGE

__all__ = ["InnerRequest"]

_KEPT = ("asgi", "http_version", "path", "root_path", "query_string", "client", "server")
_OF_THE_HANDSHAKE = frozenset(
    {b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"expect", b"idempotency-key",
     b"keep-alive", b"origin", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id"}
)  # fmt: skip
"""Headers that say something of the handshake as a request, or of one request alone."""
_TOLD = frozenset({"retry-after", "retry-after-ms", "www-authenticate", "x-request-id", "x-should-retry"})
_MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that is not a stream."""

OnEvent = Callable[[str, bytes], Awaitable[None]]


class InnerRequest:
    """One request and its answer.

    Args:
        handshake: the scope of the WebSocket, as the server got it.
        below: the rest of the path, behind that of the handshake.
        body: JSON.
        facts: for the line in the log.
        on_event: called with name and data of each event, when the answer is a stream.
    """

    def __init__(
        self, handshake: Scope, below: str, body: bytes, *, facts: Mapping[str, Any], on_event: OnEvent
    ) -> None:
        self._scope = _scope(handshake, below, len(body))
        self._body = body
        self._facts = facts
        self._on_event = on_event
        self._is_asked = False
        self._left = asyncio.Event()
        self._streams = False
        self._pieces: list[bytes] = []
        self._length = 0
        self.status = 0
        self._headers: dict[str, str] = {}

    def leave(self) -> None:
        """Tell the app that the client has left."""
        self._left.set()

    async def ask(self, app: ASGIApp) -> bytes:
        """Have `app` answer; return what is not a stream of events.

        Raises:
            APIError: the answer is an error.
        """
        await app(self._scope, self._receive, self._send)
        body = b"".join(self._pieces)
        if self.status and not 200 <= self.status < 300:
            raise self._error(body)
        return body

    async def _receive(self) -> Message:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message.get("headers", ())
            }
            self._streams = self._headers.get("content-type", "").startswith("text/event-stream")
            exchange = self._scope.get(EXCHANGE)
            if exchange is not None:
                exchange.note(dict(self._facts))
        elif message["type"] == "http.response.body":
            await self._take(message.get("body", b""))

    async def _take(self, body: bytes) -> None:
        if not self._streams:
            self._length += len(body)
            if self._length <= _MAX_ANSWER:
                self._pieces.append(body)
            return
        if self._pieces:
            body = self._pieces.pop() + body
        *events, rest = body.split(b"\n\n")
        if rest:
            self._pieces.append(rest)
        for event in events:
            name, found, data = event.partition(b"\ndata: ")
            if found and name.startswith(b"event: "):  # else a comment, or the end mark
                await self._on_event(name[len(b"event: ") :].decode(), data)

    def _error(self, body: bytes) -> APIError:
        """Return the error that the answer tells."""
        try:
            told = json.loads(body)["error"]
            error = APIError(
                str(told["message"]),
                code=told["code"],
                param=told["param"],
                type=str(told["type"]),
                status_code=self.status,
            )
        except (ValueError, LookupError, TypeError):  # of a middleware that has another form
            error = AgentFailedError("The request was refused.", code="refused", status_code=self.status)
        error.headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self._headers.items()
            if name in _TOLD or name.startswith("x-ratelimit-")
        )
        return error


def _scope(handshake: Scope, below: str, length: int) -> Scope:
    headers = [
        header
        for header in handshake["headers"]
        if header[0] not in _OF_THE_HANDSHAKE and not header[0].startswith(b"sec-websocket-")
    ]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    # The id of the handshake is not that of what comes over the WebSocket.
    state = {key: value for key, value in (handshake.get("state") or {}).items() if key != "request_id"}
    path = handshake["path"].rstrip("/") + below
    scope = {key: handshake[key] for key in _KEPT if key in handshake}
    return {
        **scope,
        "type": "http",
        "method": "POST",
        "scheme": "https" if handshake.get("scheme") == "wss" else "http",
        "path": path,
        "raw_path": path.encode(),
        "headers": headers,
        "state": state,
    }
