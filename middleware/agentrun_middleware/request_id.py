"""`RequestIDMiddleware`: one id for each request, the same for the app, the client and the log.

Whoever stands outermost gives the id; it is found in ``scope["state"]["request_id"]``. Where one is there already,
somebody in front has given it and sends it: this middleware then adds nothing, so that no answer has two.

While the app runs, the context variable `request_id` holds the id too, for a `logging.Filter` or a formatter.
"""

import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send
from agentrun_middleware.state import set_state

__all__ = ["REQUEST_ID", "RequestIDMiddleware", "new_request_id", "request_id"]

REQUEST_ID: Final = "request_id"
"""Key of ``scope["state"]``."""

request_id: ContextVar[str] = ContextVar("agentrun_middleware_request_id", default="")
"""Id of the request that is being answered; empty outside of one."""

_SAFE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_ANSWERS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))


def new_request_id() -> str:
    """Return ``req_`` and 128 random bits in hexadecimal."""
    return "req_" + os.urandom(16).hex()


class RequestIDMiddleware:
    """Gives requests and WebSocket handshakes an id, and sends it with every answer.

    The app reads the id in the request's header, as if the client had sent it. An app that sends an id of its own is
    overruled: the id on the answer is the one in the log lines of everything in front.

    Args:
        app: the app behind.
        trust: take over the client's id if there is exactly one, of at most 64 letters, digits, ``-`` and ``_``. Only
            behind a gateway that sets it: a client could choose the id of somebody else's request.
        header: the name of the header, in the request and on the answer.
        new_id: makes an id.

    Raises:
        ValueError: `header` is no name of a header.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        trust: bool = False,
        header: str = "x-request-id",
        new_id: Callable[[], str] = new_request_id,
    ) -> None:
        if not _HEADER_NAME.fullmatch(header):
            raise ValueError(f"no name of a header: {header!r}")
        self._app = app
        self._trust = trust
        self._header = header.lower().encode("ascii")
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with an id."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        current: str | None = (scope.get("state") or {}).get(REQUEST_ID)
        if current is None:
            current = self._identify(scope)
            send = self._sending(current, send)
        token = request_id.set(current)
        try:
            await self._app(scope, receive, send)
        finally:
            request_id.reset(token)

    def _identify(self, scope: Scope) -> str:
        """Return the request's id, and put it where the app looks for it."""
        name = self._header
        sent: list[bytes] = [value for key, value in scope["headers"] if key == name]
        if self._trust and len(sent) == 1 and _SAFE_ID.fullmatch(sent[0]):
            current = sent[0].decode("ascii")
        else:
            current = self._new_id()
            others = [header for header in scope["headers"] if header[0] != name]
            scope["headers"] = [*others, (name, current.encode("ascii"))]
        set_state(scope, REQUEST_ID, current)
        return current

    def _sending(self, current: str, send: Send) -> Send:
        name, value = self._header, current.encode("ascii")

        async def send_with_id(message: Message) -> None:
            if message["type"] in _ANSWERS:
                others = [header for header in message.get("headers", ()) if header[0].lower() != name]
                message = {**message, "headers": [*others, (name, value)]}
            await send(message)

        return send_with_id
