"""The layer in front, from settings: whose requests pass, and how many. The middleware itself is `agentrun_middleware`.

Before all else it is seen whether a request is meant for this server. Callers are authenticated before any middleware
of a user's own runs, and counted after it: it may be that which authenticates them.

A server without these settings has no such layer and pays nothing for it. Settings that would check nothing stop the
server at its start: someone thinks they do.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrun_server.config import ENV_PREFIX, ServerConfig
from agentrun_server.errors import AuthenticationError, ConfigurationError
from agentrun_server.server.asgi import Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, answer_error, principal_of, scopes_of

if TYPE_CHECKING:
    from agentrun_middleware.authentication import Verifier

__all__ = ["VERIFY_PATH", "Entry", "authentication", "rate_limit", "trusted_hosts", "verify"]

VERIFY_PATH = "/auth/verify"
"""Where a gateway asks whether a request may pass (nginx: ``auth_request``)."""

_VISIBLE = re.compile(r"(?:[\x21-\x7e][\x20-\x7e]{0,4095})?", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A middleware and its arguments, as Starlette's ``Middleware``, which takes longer to import than this server."""

    cls: Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()


def trusted_hosts(config: ServerConfig, probes: Collection[str]) -> list[Entry]:
    """Return the middleware that says under which names the server answers; `probes` are paths that any may ask for.

    Raises:
        ConfigurationError: the setting contradicts itself.
    """
    hosts = config.trusted_hosts
    if "*" in hosts and len(hosts) > 1:
        raise ConfigurationError('trusted_hosts: "*" is every host already; name hosts or use "*" alone')
    if not hosts or "*" in hosts:
        return []
    from agentrun_middleware.trusted_hosts import TrustedHostsMiddleware

    return [Entry(TrustedHostsMiddleware, {"hosts": hosts, "exempt_paths": probes})]


def authentication(config: ServerConfig) -> list[Entry]:
    """Return the middleware that says who is calling, outermost first.

    Raises:
        ConfigurationError: settings that cannot work, or that check nothing.
    """
    try:
        return [*_client_address(config), *_authentication(config)]
    except (ValueError, ImportError, OSError) as exc:
        raise ConfigurationError(str(exc)) from exc


def rate_limit(config: ServerConfig) -> list[Entry]:
    """Return the middleware that says how much they may ask for.

    Raises:
        ConfigurationError: settings that cannot work, or that limit nothing.
    """
    try:
        return _rate_limit(config)
    except (ValueError, ImportError) as exc:
        raise ConfigurationError(str(exc)) from exc


def _client_address(config: ServerConfig) -> list[Entry]:
    if not config.trusted_proxies:
        return []
    from agentrun_middleware.client_address import ClientAddressMiddleware

    return [Entry(ClientAddressMiddleware, {"trusted_proxies": tuple(config.trusted_proxies)})]


def _authentication(config: ServerConfig) -> list[Entry]:
    verifiers: list[Verifier] = []
    if config.auth_jwks_url is not None or config.auth_jwt_key is not None:
        from agentrun_middleware.jwt import Issuer, JWTVerifier

        _require(config, "auth_issuer", "auth_audience")
        issuer = Issuer(
            issuer=config.auth_issuer or "",
            audience=tuple(config.auth_audience),
            algorithms=tuple(config.auth_jwt_algorithms),
            key=config.auth_jwt_key,
            jwks_url=config.auth_jwks_url,
            leeway=config.auth_leeway,
            max_lifetime=config.auth_max_lifetime,
            allow_private=config.auth_jwks_private,
            ca_file=config.auth_jwks_ca_file,
        )
        verifiers.append(JWTVerifier([issuer]))
    if config.auth_keys_file is not None:
        from agentrun_middleware.api_key import APIKeyVerifier

        verifiers.append(APIKeyVerifier(config.auth_keys_file, pepper=config.auth_keys_pepper))
    if not verifiers:
        _refuse_useless(config)
        return []
    from agentrun_middleware.authentication import AuthenticationMiddleware

    arguments = {
        "verifiers": verifiers,
        "required_scopes": tuple(config.auth_required_scopes),
        "public_paths": tuple(config.auth_public_paths),
    }
    return [Entry(AuthenticationMiddleware, arguments)]


def _require(config: ServerConfig, *names: str) -> None:
    for name in names:
        if not getattr(config, name):
            raise ConfigurationError(f"{_shown(name)} is needed to check JSON web tokens")


def _refuse_useless(config: ServerConfig) -> None:
    for name in ("auth_issuer", "auth_audience", "auth_required_scopes", "auth_public_paths", "auth_keys_pepper"):
        if getattr(config, name):
            raise ConfigurationError(
                f"{_shown(name)} is set, but nothing is checked: set {_shown('auth_jwks_url')}, "
                f"{_shown('auth_jwt_key')} or {_shown('auth_keys_file')} too"
            )


def _shown(name: str) -> str:
    return f"{name} ({ENV_PREFIX}{name.upper()})"


def _rate_limit(config: ServerConfig) -> list[Entry]:
    if config.rate_limit_requests is None and config.rate_limit_tokens is None:
        if config.rate_limit_redis_url is not None:
            raise ConfigurationError(
                f"{_shown('rate_limit_redis_url')} is set, but nothing is limited: set {_shown('rate_limit_requests')} "
                f"or {_shown('rate_limit_tokens')} too"
            )
        return []
    from agentrun_middleware.rate_limit import RateLimitMiddleware

    arguments: dict[str, Any] = {
        "requests_per_minute": config.rate_limit_requests,
        "tokens_per_minute": config.rate_limit_tokens,
        "exempt_paths": (VERIFY_PATH,),  # a gateway asks there for each request that then comes
    }
    if config.rate_limit_redis_url is not None:
        from agentrun_middleware.redis_buckets import RedisBuckets

        arguments["buckets"] = RedisBuckets(config.rate_limit_redis_url)
    return [Entry(RateLimitMiddleware, arguments)]


async def verify(scope: Scope, _: Receive, send: Send) -> None:
    """Tell a gateway whose credential a request has: 204 with the caller's name in headers.

    A request that gets here has passed the middleware in front, which answers 401 and 403 itself. Without any such
    middleware nobody is known, and the answer is 401: a gateway that asks must never hear yes by mistake.
    """
    principal = principal_of(scope)
    if principal is None:
        challenge = (b"www-authenticate", b'Bearer realm="api"')
        await answer_error(send, AuthenticationError("You didn't provide an API key.", headers=(challenge,)))
        return
    scope[EXCHANGE].quiet = True  # the request itself gets a line
    said = {
        "subject": getattr(principal, "subject", None),
        "issuer": getattr(principal, "issuer", None),
        "scopes": " ".join(sorted(scopes_of(principal))),
    }
    headers = tuple(
        (b"x-auth-" + name.encode(), value.encode())
        for name, value in said.items()
        if isinstance(value, str) and _VISIBLE.fullmatch(value)
    )
    head = [(b"cache-control", b"no-store"), *headers]
    await send({"type": "http.response.start", "status": 204, "headers": head})
    await send({"type": "http.response.body", "body": b""})
