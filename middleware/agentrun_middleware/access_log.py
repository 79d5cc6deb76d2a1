"""`AccessLogMiddleware`: one line for each request, written when it has ended.

It says what happened in the end, which for a stream nobody knows when it begins: how many bytes went out, how long the
caller waited for the first of them, and whether the answer came to its end. Never a query, a header or a body.

What the client chose itself, method and path, is percent-encoded: it cannot end a line, look like another field, or
move a terminal's cursor. What looks like a credential is hidden; clients put keys in the oddest places.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import quote

from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send
from agentrun_middleware.request_id import REQUEST_ID
from agentrun_middleware.state import principal_of

__all__ = ["AccessLogMiddleware", "clean"]

_CLIENT_LEFT = 499  # nginx's status for it; HTTP has none
_ABNORMAL_CLOSURE = 1006  # RFC 6455, section 7.1.5: the connection ended without a close frame

_MAX_TEXT = 512
_MAX_SEARCHED = 4096
_SAFE = "/:@|+~=,*"
_CREDENTIAL = re.compile(
    # Each alternative looks at every character once: whoever writes the path must not choose what a line costs.
    r"(?<![A-Za-z0-9])(?i:(?:sk|pk|rk|glpat|xox[abps])[-_]|(?:ar|hf|gh[opsu]|github_pat)_)[\w-]{12,}"  # API keys
    r"|eyJ[\w.-]{12,}"  # JSON web tokens, whole or not
    r"|(\b(?i:bearer|basic)\s+)\S+"
    r"|((?<![A-Za-z0-9])(?i:api[-_]?key|(?:(?:access|refresh|id|auth|api)[-_]?)?token|authorization|jwt|password|secret)=)[^/&;]+",
    re.ASCII,
)


def clean(text: str) -> str:
    """Return `text` as the log may show it: printable ASCII without spaces or quotes, no credential, not too long."""
    return _clean(text[:_MAX_SEARCHED])


@lru_cache(maxsize=512)  # most requests are for the same few paths: a third of what a line costs
def _clean(text: str) -> str:
    return quote(_CREDENTIAL.sub(_hide, text)[:_MAX_TEXT], safe=_SAFE, errors="backslashreplace")


def _hide(match: re.Match[str]) -> str:
    return (match[1] or match[2] or "") + "***"


class AccessLogMiddleware:
    """Logs requests and WebSocket connections at level INFO, as ``request`` with these fields.

    * ``method``: ``WEBSOCKET`` for a WebSocket; ``path``.
    * ``status``: 499 when the client left before an answer began, 500 when the app failed before one; for a WebSocket
      101, or how its handshake was refused.
    * ``bytes_sent``: of the body, or in messages of the WebSocket.
    * ``duration_ms``; ``ttft_ms``: time to the first byte of the body that is no comment of an event stream, since
      those only keep the connection open. Not there when no such byte was sent.
    * ``complete``: the body was sent to its end, the WebSocket closed with a close frame. What a client did not read
      from its socket nobody here can know.
    * ``client``: its address; ``request_id``, ``subject`` and ``issuer``, where a middleware behind has found them out.

    It belongs outermost, so that it sees what the other middlewares refuse.

    Args:
        app: the app behind.
        logger: where lines go: ``agentrun_middleware.access`` if left out. While its level is above INFO, requests
            pass as if this middleware was not there.
        clock: seconds.
        exclude_paths: paths that get no line, compared exactly with ``scope["path"]``.

    Raises:
        ValueError: `exclude_paths` is one string.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        logger: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
        exclude_paths: Collection[str] = ("/health", "/livez", "/readyz"),
    ) -> None:
        if isinstance(exclude_paths, str):
            raise ValueError("exclude_paths is a list, not one string")
        self._app = app
        self._logger = logger or logging.getLogger("agentrun_middleware.access")
        self._clock = clock
        self._excluded = frozenset(exclude_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch what becomes of it."""
        if not self._is_logged(scope):
            await self._app(scope, receive, send)
            return
        clock = self._clock
        started = clock()
        record: _Record = _HTTPRecord(scope, clock) if scope["type"] == "http" else _WebSocketRecord(clock)

        async def watched_receive() -> Message:
            message = await receive()
            record.received(message)
            return message

        async def watched_send(message: Message) -> None:
            record.sending(message)
            try:
                await send(message)
            except OSError:  # how servers may tell that the client has left
                record.left = True
                raise

        try:
            await self._app(scope, watched_receive, watched_send)
        except asyncio.CancelledError:
            record.left = not record.ended
            raise
        finally:
            self._write(scope, record, started)

    def _is_logged(self, scope: Scope) -> bool:
        return (
            scope["type"] in ("http", "websocket")
            and scope["path"] not in self._excluded
            and self._logger.isEnabledFor(logging.INFO)
        )

    def _write(self, scope: Scope, record: "_Record", started: float) -> None:
        fields: dict[str, Any] = {
            "method": clean(scope.get("method", "WEBSOCKET")),
            "path": clean(scope["path"]),
            "status": record.status or (_CLIENT_LEFT if record.left else 500),
            "bytes_sent": record.bytes_sent,
            "duration_ms": round((self._clock() - started) * 1000, 1),
        }
        if record.first_byte_at is not None:
            fields["ttft_ms"] = round((record.first_byte_at - started) * 1000, 1)
        fields["complete"] = record.ended and not record.left
        client = scope.get("client")
        fields["client"] = clean(str(client[0])) if client else ""
        current = (scope.get("state") or {}).get(REQUEST_ID)
        if isinstance(current, str):
            fields["request_id"] = clean(current)
        principal = principal_of(scope)
        if principal is not None:
            fields |= {"subject": clean(principal.subject), "issuer": clean(principal.issuer)}
        self._logger.info("request", extra=fields)


class _Record(Protocol):
    """What has become of a request so far, as its messages tell."""

    status: int
    """0 while there is none."""
    bytes_sent: int
    first_byte_at: float | None
    ended: bool
    """The app has sent all, or the WebSocket was closed in good order."""
    left: bool
    """The client went away before that."""

    def received(self, message: Message) -> None: ...

    def sending(self, message: Message) -> None: ...


class _HTTPRecord:
    __slots__ = ("_clock", "_comments", "_has_body", "bytes_sent", "ended", "first_byte_at", "left", "status")

    def __init__(self, scope: Scope, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._comments: _Comments | None = None
        self._has_body = scope["method"] != "HEAD"  # servers drop the body of its answer
        self.status = 0
        self.bytes_sent = 0
        self.first_byte_at: float | None = None
        self.ended = False
        self.left = False

    def received(self, message: Message) -> None:
        if message["type"] == "http.disconnect" and not self.ended:
            self.left = True

    def sending(self, message: Message) -> None:
        if self.left:
            return  # to nobody
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if body and self._has_body:
                self.bytes_sent += len(body)
                if self.first_byte_at is None and (self._comments is None or not self._comments.take(body)):
                    self.first_byte_at = self._clock()
            self.ended = not message.get("more_body", False)
        elif kind == "http.response.start":
            self.status = message["status"]
            if _is_event_stream(message.get("headers", ())):
                self._comments = _Comments()
        elif kind == "http.response.pathsend":  # an extension: the server sends a file
            self.ended = True


def _is_event_stream(headers: Collection[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers
    )


class _Comments:
    """Skips the comments and empty lines that an event stream begins with, however it is cut into pieces."""

    __slots__ = ("_is_open",)

    _LINES = re.compile(rb"(?:(?::[^\r\n]*+)?[\r\n])*+")

    def __init__(self) -> None:
        self._is_open = False
        """The last piece ended in the middle of a comment."""

    def take(self, piece: bytes) -> bool:
        """Return whether `piece` holds nothing else."""
        if self._is_open:
            piece = b":" + piece
        match = self._LINES.match(piece)
        rest = piece[match.end() :] if match else piece
        self._is_open = rest.startswith(b":")
        return self._is_open or not rest


class _WebSocketRecord:
    __slots__ = ("_clock", "bytes_sent", "ended", "first_byte_at", "left", "status")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.status = 0
        self.bytes_sent = 0
        self.first_byte_at: float | None = None
        self.ended = False
        self.left = False

    def received(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect" and not self.ended:
            if self.status and message.get("code") != _ABNORMAL_CLOSURE:
                self.ended = True
            else:
                self.left = True

    def sending(self, message: Message) -> None:
        if self.left:
            return
        match message["type"]:
            case "websocket.accept":
                self.status = 101
            case "websocket.send":
                self._count(_size(message))
            case "websocket.close":
                self.status = self.status or 403  # what servers answer to a handshake that is refused like this
                self.ended = True
            case "websocket.http.response.start":
                self.status = message["status"]
            case "websocket.http.response.body":
                self._count(len(message.get("body", b"")))
                self.ended = not message.get("more_body", False)

    def _count(self, size: int) -> None:
        if size and self.first_byte_at is None:
            self.first_byte_at = self._clock()
        self.bytes_sent += size


def _size(message: Message) -> int:
    text = message.get("text")
    if text is None:
        return len(message.get("bytes") or b"")
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
