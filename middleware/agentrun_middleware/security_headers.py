"""`SecurityHeadersMiddleware`: what browsers are told about answers that were never meant for a page.

The values are those of OWASP's REST Security Cheat Sheet and Secure Headers Project. An API needs little of a browser,
so it may do nothing with an answer: not guess its type, not frame it, not load it into another site's page, not keep
it. What the app says itself always stands.

An HTML page needs scripts, styles and fonts of its own that nobody here knows, so it gets no Content-Security-Policy
unless one is given for it. What is HTML is told by ``Content-Type`` alone: with ``nosniff`` nothing else is.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from agentrun_middleware.asgi import ASGIApp, Headers, Message, Receive, Scope, Send

__all__ = ["DEFAULTS", "SecurityHeadersMiddleware"]

_POLICY = "content-security-policy"
_HSTS = "strict-transport-security"

DEFAULTS: Final[Mapping[str, str]] = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    _POLICY: "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",  # not asked for CORS requests: those of allowed origins still pass
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""What answers get. The policy of `content-security-policy` is not for HTML."""

_HTML = (b"text/html", b"application/xhtml+xml")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110, section 5.6.2
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class SecurityHeadersMiddleware:
    """Adds security headers to every answer, WebSocket handshakes that are refused with one included.

    Args:
        app: the app behind.
        hsts: for so many seconds browsers must use HTTPS for this host (RFC 6797). Sent over HTTPS alone; behind a
            proxy that ends TLS, ``scope["scheme"]`` must say so, see `agentrun_middleware.client_address`.
        html_policy: the Content-Security-Policy of HTML pages.
        headers: other values by name, in place of those in `DEFAULTS` or beside them; None leaves a header out.

    Raises:
        ValueError: a header cannot be sent, or `hsts` is negative.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hsts: int | None = None,
        html_policy: str | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> None:
        if hsts is not None and hsts < 0:
            raise ValueError("hsts must not be negative")
        chosen: dict[str, str | None] = {**DEFAULTS, _HSTS: None if hsts is None else f"max-age={hsts}"}
        chosen |= {name.lower(): value for name, value in (headers or {}).items()}
        html = {**chosen, _POLICY: html_policy}
        self._app = app
        self._headers: Mapping[tuple[bool, bool], Headers] = {
            (is_html, is_secure): _encode({**values, **({} if is_secure else {_HSTS: None})})
            for is_html, values in ((False, chosen), (True, html))
            for is_secure in (False, True)
        }
        """By: is it HTML, is it sent over HTTPS."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a `send` that adds the headers."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        is_secure = scope.get("scheme") in ("https", "wss")

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message = {**message, "headers": self._complete(message.get("headers", ()), is_secure=is_secure)}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _complete(self, given: Iterable[tuple[bytes, bytes]], *, is_secure: bool) -> list[tuple[bytes, bytes]]:
        headers = list(given)
        names = {name.lower(): value for name, value in headers}
        is_html = names.get(b"content-type", b"").lower().startswith(_HTML)
        headers += [header for header in self._headers[is_html, is_secure] if header[0] not in names]
        return headers


def _encode(values: Mapping[str, str | None]) -> Headers:
    for name, value in values.items():
        if not _HEADER_NAME.fullmatch(name) or not (value is None or _HEADER_VALUE.fullmatch(value)):
            raise ValueError(f"no header that can be sent: {name!r}: {value!r}")
    return tuple((name.encode(), value.encode()) for name, value in values.items() if value is not None)
