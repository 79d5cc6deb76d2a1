"""Which web pages may open a WebSocket.

Browsers ask no server before they open one, as they do before a request of another site (CORS), and send along what
they have: cookies, a place inside the network. All they do is to say whose page it is. So a handshake with ``Origin``
must come from the server's own host or from an origin that may make requests too (`ServerConfig.cors_origins`). Other
clients send no ``Origin``; what they say does not matter, since they could say anything.
"""

import re
from collections.abc import Collection

from agentrun_server.errors import PermissionDeniedError
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.exchange import refuse_websocket

__all__ = ["OriginGuard"]

_ORIGIN = re.compile(rb"(https?)://([^/?#@]++)", re.IGNORECASE)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


class OriginGuard:
    """Refuses WebSockets of pages that may not open one; see the module.

    Args:
        app: the app behind.
        origins: from which pages may. ``*`` is any, unless it comes with a cookie, as for requests.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.encode("latin-1", "replace").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on, or refuse it."""
        if scope["type"] == "websocket" and not self._may(scope["headers"]):
            error = PermissionDeniedError(
                "Pages of this origin may not open a WebSocket here.", code="origin_not_allowed", param="origin"
            )
            await refuse_websocket(scope, send, error)
        else:
            await self._app(scope, receive, send)

    def _may(self, headers: Collection[tuple[bytes, bytes]]) -> bool:
        origins = [value for name, value in headers if name == b"origin"]
        if not origins:
            return True
        if len(origins) > 1:
            return False
        origin = origins[0].strip(b" \t").lower()
        if origin in self._origins or _is_own(origin, headers):
            return True
        return self._any and not any(name == b"cookie" for name, _ in headers)


def _is_own(origin: bytes, headers: Collection[tuple[bytes, bytes]]) -> bool:
    """Tell whether `origin` is the host that was asked; behind a proxy its scheme may be another than ours."""
    match = _ORIGIN.fullmatch(origin)
    hosts = [value.strip(b" \t").lower() for name, value in headers if name == b"host"]
    if match is None or len(hosts) != 1:
        return False
    scheme, authority = match.groups()
    port = _DEFAULT_PORTS[scheme.lower()]
    return authority.removesuffix(port) == hosts[0].removesuffix(port)
