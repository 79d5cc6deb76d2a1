"""`RedisBuckets`: the buckets of `token_bucket`, shared by many processes through Redis.

Redis holds, for each caller, what `Account` holds, and one script does what `Account` does: a request costs one round
trip, whatever its limits, and two processes can never both take the last one. Time is that of Redis, so the clocks of
the processes need not agree. A caller is sent as a hash, which names nobody, though whoever guesses a name can tell
whether it is there; it is deleted when its buckets are full.

A limit must not make an agent less available than it was without. So every wait has an end (`timeout`), and when Redis
is away or slow, the buckets of this process stand in for the shared ones, or requests are refused, as `on_error` says.
From the first failure on, one request a second tries whether Redis is back; all others do not wait.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from typing import Literal

from agentrun_middleware.token_bucket import (
    LONGEST_DEBT,
    NANOSECONDS,
    BucketsUnavailableError,
    Limits,
    LocalBuckets,
    Standing,
)

__all__ = ["RedisBuckets"]

logger = logging.getLogger("agentrun_middleware.redis_buckets")

_PAUSE = 1 * NANOSECONDS
_MOST_CHARGES = 1000

# A key holds "time-in-microseconds debt-of-requests debt-of-tokens", debts in nanoseconds. Numbers of Lua are floating
# point: microseconds since 1970 and debts are both below 2**53, and exact.
_SCRIPT = f"""
local request, requests_full, token, tokens_full, cost = unpack(ARGV)
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local before, requests, tokens = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+) (%d+)$')
if before then
  local passed = math.max(0, now - before) * 1000
  requests = math.max(0, requests - passed)
  tokens = math.max(0, tokens - passed)
else
  requests, tokens = 0, 0
end
local admitted = (request == '0' or requests + request <= tonumber(requests_full))
  and (token == '0' or tokens + token <= tonumber(tokens_full))
if admitted then
  requests = requests + request
end
tokens = math.min(tokens + cost, {LONGEST_DEBT})
local debt = math.max(requests, tokens)
if debt > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f %.0f %.0f', now, requests, tokens), 'PX', math.ceil(debt / 1000000))
elseif before then
  redis.call('DEL', KEYS[1])
end
return {{admitted and 1 or 0, requests, tokens}}
"""


class RedisBuckets:
    """The buckets of all processes that use the same Redis database and `prefix`; one Redis, not a cluster.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as `redis.asyncio.Redis.from_url` takes it.
        prefix: beginning of every key.
        timeout: seconds that a request waits for Redis at most.
        on_error: what happens when Redis does not answer. ``"local"``: each process counts for itself, so that a caller
            may use its limit in each of them, and what is counted so is never added to what Redis knows. ``"refuse"``:
            `BucketsUnavailableError`, answered 503; tokens of answers that end meanwhile are not counted.
        max_connections: connections of this process.
        clock: nanoseconds, monotonic; it times the tries after a failure, and the buckets of this process.

    Raises:
        ImportError: the package `redis` is missing.
        ValueError: an argument cannot work. The text does not hold the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "agentrun:limit:",
        timeout: float = 0.25,
        on_error: Literal["local", "refuse"] = "local",
        max_connections: int = 16,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError as exc:
            raise ImportError(
                "RedisBuckets needs the redis package: pip install 'agentrun-server[redis]'", name=exc.name
            ) from None
        if on_error not in ("local", "refuse"):
            raise ValueError("on_error is 'local' or 'refuse'")
        if not 0 < timeout <= 60:
            raise ValueError("timeout is more than 0 and at most 60 seconds")
        if max_connections < 1:
            raise ValueError("max_connections is at least 1")
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # A connection that lay idle may have been cut. In the worst case both tries take a request.
                retry=Retry(NoBackoff(), 1),
                protocol=2,  # all that is needed; redis-py 8 would negotiate more, on each connection
            )
            pool.connection_class(**pool.connection_kwargs)  # knows the options; it connects when it is used
        except (TypeError, ValueError):
            # Not the text of the error: it may quote the part of the URL where the password is.
            raise ValueError(
                "the URL of Redis is not redis://…, rediss://… or unix://…, or has an option amiss"
            ) from None
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(_SCRIPT)
        self._errors = (RedisError, OSError, TimeoutError)
        self._prefix = prefix
        self._timeout = timeout
        self._local = LocalBuckets(clock=clock) if on_error == "local" else None
        self._clock = clock
        self._down = False
        self._try_at = 0  # when it is down
        self._charges: set[asyncio.Task[None]] = set()

    async def take(self, caller: str, limits: Limits) -> Standing:
        """Take one request, when there is one and a whole token besides."""
        requests, tokens = limits.requests, limits.tokens
        standing = await self._run(
            caller,
            requests.unit if requests else 0,
            requests.full if requests else 0,
            tokens.unit if tokens else 0,
            tokens.full if tokens else 0,
            0,
        )
        if standing is not None:
            return standing
        if self._local is None:
            raise BucketsUnavailableError("Redis does not answer")
        return await self._local.take(caller, limits)

    def charge(self, caller: str, cost: int) -> None:
        """Take tokens that are spent already, in a task of its own: whoever has spent them may be leaving.

        It ends within `timeout`; with a thousand of them under way, Redis is as good as away.
        """
        if len(self._charges) >= _MOST_CHARGES:
            self._charge_locally(caller, cost)
            return
        task = asyncio.get_running_loop().create_task(self._charge(caller, cost), name="charge tokens")
        self._charges.add(task)
        task.add_done_callback(self._charges.discard)

    async def aclose(self) -> None:
        """Wait for what is being charged, then close the connections. Whoever takes afterwards opens new ones."""
        if self._charges:
            await asyncio.wait(self._charges)  # each within `timeout`
        try:
            async with asyncio.timeout(self._timeout):
                await self._redis.aclose()
        except self._errors:
            pass  # they are gone all the same

    async def _charge(self, caller: str, cost: int) -> None:
        if await self._run(caller, 0, 0, 0, 0, cost) is None:
            self._charge_locally(caller, cost)

    def _charge_locally(self, caller: str, cost: int) -> None:
        if self._local is not None:
            self._local.charge(caller, cost)

    async def _run(self, caller: str, *numbers: int) -> Standing | None:
        """Run the script; return None when Redis does not answer, at once when it did not just before."""
        trying = self._down
        if trying:
            now = self._clock()
            if now < self._try_at:
                return None
            self._try_at = now + _PAUSE  # the others need not wait with this one
        key = self._prefix + hashlib.blake2b(caller.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        try:
            async with asyncio.timeout(self._timeout):
                admitted, requests, tokens = await self._script(keys=[key], args=numbers)
        except self._errors as exc:
            self._failed(exc)
            return None
        # One that was under way when another failed says nothing about now.
        if trying and self._down:
            self._down = False
            logger.info("Redis answers again: limits are shared")
        return Standing(bool(admitted), requests, tokens)

    def _failed(self, exc: Exception) -> None:
        self._try_at = self._clock() + _PAUSE
        if not self._down:
            self._down = True
            # Its kind alone: the texts of Redis errors are not ours to vouch for.
            extra = {"error": type(exc).__name__, "on_error": "refuse" if self._local is None else "local"}
            logger.warning("Redis does not answer: limits are not shared", extra=extra)
