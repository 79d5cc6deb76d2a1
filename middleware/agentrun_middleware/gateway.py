"""`GatewayMiddleware`: who is calling, as a gateway in front says that has verified it.

The gateway tells it in ``X-Auth-Subject``, ``X-Auth-Issuer`` and ``X-Auth-Scopes``, which are but text: they are
believed only from the gateway's own address. A request that reached the app past the gateway is refused, whatever it
says. Where the app can verify the caller itself, `agentrun_middleware.authentication` is the better choice, behind a
gateway too: then one wrong line in the gateway's settings opens nothing.
"""

import logging
from collections.abc import Collection

from agentrun_middleware.answers import Refusal, challenge, refuse
from agentrun_middleware.asgi import ASGIApp, Receive, Scope, Send
from agentrun_middleware.authentication import check_realm, public_set
from agentrun_middleware.client_address import TrustedProxies
from agentrun_middleware.credentials import take_identity_headers
from agentrun_middleware.principal import Principal, is_issuer, is_scope, is_subject
from agentrun_middleware.state import PRINCIPAL, set_state

__all__ = ["GatewayMiddleware"]

logger = logging.getLogger("agentrun_middleware.gateway")


class GatewayMiddleware:
    """Lets requests and WebSocket handshakes pass whose caller a trusted gateway has named.

    The app finds a `Principal` without claims; the headers themselves never reach it.

    Args:
        app: the app behind.
        trusted_proxies: addresses and networks (CIDR) of the gateway.
        trust_unix_socket: trust every peer on a unix socket.
        public_paths: paths that need no caller, compared exactly with ``scope["path"]``.
        realm: what is protected, for ``WWW-Authenticate``.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_proxies: Collection[str],
        trust_unix_socket: bool = False,
        public_paths: Collection[str] = (),
        realm: str = "api",
    ) -> None:
        check_realm(realm)
        self._app = app
        self._gateway = TrustedProxies(trusted_proxies, unix_socket=trust_unix_socket)
        self._public = public_set(public_paths)
        self._refusal = Refusal(
            401, "The request is not authenticated.", "missing_api_key", headers=(challenge(realm),)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            raise ValueError(f"unknown kind of connection: {kind!r}")  # default deny
        said = take_identity_headers(scope)
        if scope["path"] not in self._public:
            try:
                principal = self._believe(scope, said)
            except _NobodyError as exc:
                _log_refused(scope, str(exc))
                await refuse(self._refusal, scope, receive, send)
                return
            set_state(scope, PRINCIPAL, principal)
        await self._app(scope, receive, send)

    def _believe(self, scope: Scope, said: Collection[tuple[bytes, bytes]]) -> Principal:
        if not self._gateway.sent(scope):
            raise _NobodyError("not from the gateway")
        subject = _single(said, b"x-auth-subject")
        issuer = _single(said, b"x-auth-issuer")
        scopes = frozenset((_single(said, b"x-auth-scopes") or "").split(" ")) - {""}
        if subject is None or issuer is None:
            raise _NobodyError("the gateway names no caller")
        if not (is_subject(subject) and is_issuer(issuer) and all(map(is_scope, scopes))):
            raise _NobodyError("an identity header is malformed")
        return Principal(subject, issuer, scopes)


class _NobodyError(Exception):
    """Nobody trustworthy says who is calling; the text is for the log."""


def _single(said: Collection[tuple[bytes, bytes]], name: bytes) -> str | None:
    values = [value for key, value in said if key == name]
    if len(values) > 1:
        raise _NobodyError("an identity header comes twice")
    if not values:
        return None
    return values[0].decode("latin-1")


def _log_refused(scope: Scope, reason: str) -> None:
    client = scope.get("client")
    logger.info(
        "authentication refused", extra={"status": 401, "reason": reason, "client": client[0] if client else ""}
    )
