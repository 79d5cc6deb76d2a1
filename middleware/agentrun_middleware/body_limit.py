"""`BodyLimitMiddleware`: no longer request body than agreed reaches the app.

``Content-Length`` tells it before the app runs. A body that does not tell its length, or lies about it, is counted
while the app reads it. Nothing is read ahead and nothing is kept, so the limit costs no memory of its own.
"""

from agentrun_middleware.answers import Refusal, refuse
from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimitMiddleware"]

_MAX_DIGITS = 20  # of a Content-Length: as much as 64 bits can say, and far from what int() refuses to read


class BodyLimitMiddleware:
    """Answers 413 to a request whose body is longer than `max_bytes`.

    Once the limit is passed the app reads ``http.disconnect``, never the piece that was too much: every framework knows
    that a body may end like this, and none takes it for a whole one. If the app had not begun to answer, the client
    gets the 413 and what the app still says is dropped; else the client gets what the app makes of it.

    Messages of a WebSocket are no body: their size is a setting of the server.

    Args:
        app: the app behind.
        max_bytes: length of the longest body that passes.

    Raises:
        ValueError: `max_bytes` is less than 1.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._app = app
        self._max_bytes = max_bytes
        self._too_long = Refusal(413, f"The request body is longer than {max_bytes} bytes.", "request_too_large")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a `receive` that counts, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._judge_length([value for name, value in scope["headers"] if name == b"content-length"])
        if refusal is not None:
            await refuse(refusal, scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_bytes, self._too_long)
        await self._app(scope, exchange.receive, exchange.send)

    def _judge_length(self, lengths: list[bytes]) -> Refusal | None:
        """Return the refusal that the Content-Length headers ask for (RFC 9110, section 8.6), None when they do not."""
        if not lengths:
            return None
        if len(lengths) > 1:
            return _malformed("The request has more than one Content-Length header.")
        digits = lengths[0].strip(b" \t")
        if not digits.isdigit():  # no sign, no underscore, no list
            return _malformed("The Content-Length header is not a number.")
        digits = digits.lstrip(b"0")
        if len(digits) > _MAX_DIGITS or int(digits or b"0") > self._max_bytes:
            return self._too_long
        return None


def _malformed(message: str) -> Refusal:
    return Refusal(400, message, "invalid_http_request")


class _Exchange:
    """One request: how much of its body may still come, and whether its answer has begun."""

    __slots__ = ("_answering", "_left", "_over", "_receive", "_refused", "_scope", "_send", "_too_long")

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int, too_long: Refusal) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._left = max_bytes
        self._too_long = too_long
        self._over = False
        self._answering = False
        self._refused = False

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self._over = True
                if not self._answering:
                    self._refused = True
                    await refuse(self._too_long, self._scope, self._receive, self._send)
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if not self._refused:
            self._answering = True
            await self._send(message)
