"""`RateLimitMiddleware`: how many requests and how many tokens a minute a caller may use.

It decides who is counted as one caller, what the limits of that caller are, and what is answered; `token_bucket` says
what is left. A request is taken before the app runs. What it cost in tokens is known only afterwards, so it is taken
then, however the request ended, and may leave the caller with less than nothing: the next request is answered 429 until
a token has come back. Requests that run at the same time are all let in by the same tokens; the limit of requests is
what bounds them.

Answers are those of OpenAI, whose clients wait as long as they are told: 429 with ``retry-after`` and
``retry-after-ms``, and on every answer ``x-ratelimit-limit-…``, ``-remaining-…`` and ``-reset-…`` of requests and
tokens, where the limit is the size of the bucket and the reset the time until it is full.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any

from agentrun_middleware.answers import Refusal, duration, refuse, retry_headers
from agentrun_middleware.asgi import ASGIApp, Headers, Message, Receive, Scope, Send
from agentrun_middleware.lifespan import run_lifespan
from agentrun_middleware.state import CHARGE, USAGE, principal_of, set_state
from agentrun_middleware.token_bucket import (
    NANOSECONDS,
    BucketStore,
    BucketsUnavailableError,
    Limits,
    LocalBuckets,
    Rate,
    Standing,
)

__all__ = ["RateLimitMiddleware", "caller_of"]

logger = logging.getLogger("agentrun_middleware.rate_limit")

_HEADS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
_MOST_TOKENS = 10**9  # no single answer costs more

_UNAVAILABLE = Refusal(
    503,
    "The rate limit cannot be checked at the moment.",
    "rate_limit_unavailable",
    "server_error",
    retry_headers(1),
)


class _Usage(dict[str, Any]):
    """What the app writes into. A type of its own, so that one limit behind another knows the dict of the first."""


class RateLimitMiddleware:
    """Lets a caller's requests pass as long as its buckets have something in them.

    A WebSocket handshake counts as one request.

    Args:
        app: the app behind.
        requests_per_minute: requests that a caller may make.
        tokens_per_minute: tokens that the answers to a caller may cost; the app says what they do, see `state`.
        requests_burst: requests that may come at once; by default those of a minute.
        tokens_burst: tokens that may be used at once; by default those of a minute.
        limits: the limits of the caller of a request, for example by a claim of its token; None for those above.
        key: who is calling; requests with the same text share their buckets.
        exempt_paths: paths that are neither counted nor limited, compared exactly with ``scope["path"]``.
        buckets: where the buckets are kept; by default in this process. Closed when the server shuts down.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        requests_burst: int | None = None,
        tokens_burst: int | None = None,
        limits: Callable[[Scope], Limits | None] | None = None,
        key: Callable[[Scope], str] | None = None,
        exempt_paths: Collection[str] = (),
        buckets: BucketStore | None = None,
    ) -> None:
        if isinstance(exempt_paths, str):
            raise ValueError("exempt_paths is a list, not one string")
        if not all(path.startswith("/") for path in exempt_paths):
            raise ValueError("an exempt path begins with '/'")
        if requests_per_minute is None and tokens_per_minute is None and limits is None:
            raise ValueError("nothing is limited: requests_per_minute, tokens_per_minute or limits is needed")
        self._app = app
        self._default = Limits(
            _rate("requests", requests_per_minute, requests_burst), _rate("tokens", tokens_per_minute, tokens_burst)
        )
        self._limits = limits
        self._key = caller_of if key is None else key
        self._exempt = frozenset(exempt_paths)
        self._buckets: BucketStore = LocalBuckets() if buckets is None else buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        kind = scope["type"]
        if kind == "lifespan":
            await run_lifespan(self._app, scope, receive, send, self._buckets.aclose)
            return
        if kind not in ("http", "websocket"):
            raise ValueError(f"unknown kind of connection: {kind!r}")  # what is not known cannot be counted
        limits = self._limits_of(scope)
        if limits is None:
            await self._app(scope, receive, send)
            return
        caller = self._key(scope)
        try:
            standing = await self._buckets.take(caller, limits)
        except BucketsUnavailableError:
            await refuse(_UNAVAILABLE, scope, receive, send)
            return
        headers = tuple(_headers(limits, standing))
        if not standing.admitted:
            await refuse(_refusal(limits, standing, headers), scope, receive, send)
            return
        send = _with_headers(send, headers)
        if limits.tokens is None:
            await self._app(scope, receive, send)
            return
        usage = _usage_of(scope)
        usage[CHARGE] = self._charging(caller, limits.tokens, usage.get(CHARGE))
        try:
            await self._app(scope, receive, send)
        finally:
            cost = limits.tokens.cost(_total_tokens(usage))
            if cost:
                self._buckets.charge(caller, cost)

    def _charging(self, caller: str, rate: Rate, outer: Callable[[float], None] | None) -> Callable[[float], None]:
        """Return what takes tokens whose number is known when the request is over, here and in front of here."""

        def charge(tokens: float) -> None:
            self._buckets.charge(caller, rate.cost(_number(tokens)))
            if outer is not None:
                outer(tokens)

        return charge

    def _limits_of(self, scope: Scope) -> Limits | None:
        """Return the limits of this request, None when it has none."""
        if scope["path"] in self._exempt:
            return None
        limits = self._default
        if self._limits is not None:
            limits = self._limits(scope) or limits
        return None if limits.requests is None and limits.tokens is None else limits


def _rate(name: str, per_minute: float | None, burst: int | None) -> Rate | None:
    if per_minute is not None:
        return Rate(per_minute, burst)
    if burst is not None:
        raise ValueError(f"{name}_burst is of use only together with {name}_per_minute")
    return None


def caller_of(scope: Scope) -> str:
    """Return who is calling: the principal, else the address, of IPv6 the /64 that one network is given.

    Whoever comes without an address, through a unix socket, is one caller.
    """
    principal = principal_of(scope)
    if principal is not None:
        return f"principal:{principal.id}"
    client = scope.get("client")
    return f"address:{_network(client[0])}" if client else "address:"


@lru_cache(maxsize=1024)  # 0.1 µs in place of 6 for an address of IPv6
def _network(host: str) -> str:
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or f"{int(address) >> 64:x}::/64")


def _usage_of(scope: Scope) -> _Usage:
    """Return the dict into which the app writes, which is put into the state of the request unless it is there."""
    state = scope.get("state")
    usage = state.get(USAGE) if state else None
    if not isinstance(usage, _Usage):
        usage = _Usage()
        set_state(scope, USAGE, usage)
    return usage


def _total_tokens(usage: _Usage) -> float:
    """Return what the app has written, 0 when it has written nothing or what cannot be meant."""
    return _number(usage.get("total_tokens"))


def _number(total: Any) -> float:
    if total is None:
        return 0
    if isinstance(total, int | float) and not isinstance(total, bool) and 0 <= total <= _MOST_TOKENS:
        return total
    logger.warning("usage ignored: not a number of tokens", extra={"total_tokens_type": type(total).__name__})
    return 0


def _headers(limits: Limits, standing: Standing) -> Iterator[tuple[bytes, bytes]]:
    if limits.requests is not None:
        yield b"x-ratelimit-limit-requests", b"%d" % limits.requests.capacity
        yield b"x-ratelimit-remaining-requests", b"%d" % limits.requests.remaining(standing.requests)
        yield b"x-ratelimit-reset-requests", duration(standing.requests / NANOSECONDS)
    if limits.tokens is not None:
        yield b"x-ratelimit-limit-tokens", b"%d" % limits.tokens.capacity
        yield b"x-ratelimit-remaining-tokens", b"%d" % limits.tokens.remaining(standing.tokens)
        yield b"x-ratelimit-reset-tokens", duration(standing.tokens / NANOSECONDS)


def _refusal(limits: Limits, standing: Standing, headers: Headers) -> Refusal:
    """Return the answer to a caller with an empty bucket; the one that takes longest when both are."""
    empty = [
        (rate.wait(debt) / NANOSECONDS, name, rate.per_minute)
        for rate, debt, name in (
            (limits.requests, standing.requests, "requests per min (RPM)"),
            (limits.tokens, standing.tokens, "tokens per min (TPM)"),
        )
        if rate is not None
    ]
    seconds, name, per_minute = max(empty)
    return Refusal(
        429,
        f"Rate limit reached on {name}: Limit {per_minute:.12g}. Please try again in {duration(seconds).decode()}.",
        "rate_limit_exceeded",
        "rate_limit_error",
        (*retry_headers(seconds), *headers),
    )


def _with_headers(send: Send, headers: Headers) -> Send:
    """Return a `send` that adds `headers` to the head of the answer, but for those that the app has set itself."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] in _HEADS:
            own = list(message.get("headers", ()))
            names = {name.lower() for name, _ in own}
            message = {**message, "headers": own + [header for header in headers if header[0] not in names]}
        await send(message)

    return send_with_headers
