"""The bus of many machines: Redis pub/sub (``agentrun-server[redis]``).

Readers of this process get a message at once, whether Redis is there or not; those of others get it through Redis,
which keeps nothing. When Redis is away, messages to others are lost, subscriptions are made again when it is back, and
readers see by themselves what they missed, as of every `Bus`.

Two tasks at most: one sends what was published, and one holds the connection on which messages arrive. Bounds: messages
that wait to be sent (`_MAX_WAITING`, the oldest are dropped), how long `subscribe` waits for Redis, and how long a
connection may be silent.
"""

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from agentrun_server.storage.local_bus import LocalBus

__all__ = ["RedisBus"]

logger = logging.getLogger("agentrun_server.storage")

_MAX_WAITING: Final = 1024
_TOGETHER: Final = 128
_PAUSES: Final = (0.05, 0.2, 1.0)
"""Seconds between tries when Redis is away; the last again and again."""
_SILENCE: Final = 10.0
"""Seconds without a message after which a connection is asked for a sign of life, and has as many to give it."""
_ORIGIN_BYTES: Final = 16


class RedisBus:
    """A bus of all processes that use the same Redis and `prefix`; a `Bus`, of one event loop.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as `redis.asyncio.Redis.from_url` takes it.
        prefix: beginning of the channels.
        timeout: seconds that Redis may take to answer, and that `subscribe` waits for it at most.

    Raises:
        ImportError: the package `redis` is missing.
        ValueError: the URL cannot work. The text does not hold it.
    """

    def __init__(self, url: str, *, prefix: str = "agentrun:bus:", timeout: float = 1.0) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError as exc:
            raise ImportError(
                "RedisBus needs the redis package: pip install 'agentrun-server[redis]'", name=exc.name
            ) from None
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except (TypeError, ValueError):
            # Not the text of the error: it may quote the part of the URL where the password is.
            raise ValueError("the URL of Redis is not redis://…, rediss://… or unix://…") from None
        self._errors = (RedisError, OSError, TimeoutError)
        self._prefix = prefix.encode()
        self._timeout = timeout
        self._origin = os.urandom(_ORIGIN_BYTES)
        self._local = LocalBus()
        self._waiting: deque[tuple[bytes, bytes]] = deque(maxlen=_MAX_WAITING)
        self._something_waits = asyncio.Event()
        self._topics_changed = asyncio.Event()
        self._heard: dict[str, asyncio.Event] = {}
        self._away = False
        self._sender: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    async def publish(self, topic: str, message: bytes = b"") -> None:
        """Tell all who listen to `topic`. Never waits for them, nor for Redis."""
        self._local.deliver(topic, message)
        if self._closed:
            return
        self._waiting.append((self._channel(topic), self._origin + message))
        self._something_waits.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name="send to Redis")

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return a context in which messages of `topic` arrive: from its beginning, while Redis is there."""
        return self._subscribe(topic)

    @asynccontextmanager
    async def _subscribe(self, topic: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        try:
            async with self._local.subscribe(topic) as reader:
                heard = self._heard.setdefault(topic, asyncio.Event())
                if self._listener is None and not self._closed:
                    self._listener = asyncio.create_task(self._listen(), name="listen to Redis")
                self._topics_changed.set()
                if not self._away and not self._closed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._timeout):
                            await heard.wait()
                yield reader
        finally:
            self._topics_changed.set()

    async def aclose(self) -> None:
        """End the tasks and close the connections."""
        self._closed = True
        tasks = [task for task in (self._sender, self._listener) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(*self._errors):
            await self._redis.aclose()

    # --- to Redis

    async def _send(self) -> None:
        failures = 0
        while not _is_cancelled():
            await self._something_waits.wait()
            batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            if not self._waiting:
                self._something_waits.clear()
            try:
                async with asyncio.timeout(self._timeout):
                    pipeline = self._redis.pipeline(transaction=False)
                    for channel, message in batch:
                        pipeline.publish(channel, message)
                    await pipeline.execute()
                self._answered()
                failures = 0
            except self._errors as exc:
                self._failed(exc)
                failures += 1
                await asyncio.sleep(_pause(failures))

    # --- from Redis

    async def _listen(self) -> None:
        failures = 0
        while not self._closed:  # a TaskGroup of Python 3.11 leaves its task marked as cancelled
            try:
                async with self._redis.pubsub() as pubsub, asyncio.TaskGroup() as group:
                    async with asyncio.timeout(self._timeout):
                        await pubsub.subscribe(self._prefix)  # a channel nobody uses; a connection needs one
                    if self._closed:
                        return
                    self._answered()
                    failures = 0
                    group.create_task(self._read(pubsub))
                    group.create_task(self._follow_topics(pubsub))
            except* self._errors as group_of:
                self._failed(group_of.exceptions[0])
            for heard in self._heard.values():
                heard.clear()
            failures += 1
            await asyncio.sleep(_pause(failures))

    async def _read(self, pubsub: Any) -> None:
        """Hand on what arrives, until the connection ends."""
        asked = False
        while not _is_cancelled():
            message = await pubsub.get_message(timeout=_SILENCE)
            if message is None:
                if asked:
                    raise TimeoutError
                asked = True
                await pubsub.ping()
                continue
            asked = False
            self._answered()
            topic = message["channel"][len(self._prefix) :].decode(errors="surrogatepass") if message["channel"] else ""
            if message["type"] == "subscribe" and topic in self._heard:
                self._heard[topic].set()
            elif message["type"] == "message" and not message["data"].startswith(self._origin):
                self._local.deliver(topic, message["data"][_ORIGIN_BYTES:])

    async def _follow_topics(self, pubsub: Any) -> None:
        """Subscribe to what is listened to here, and to nothing else, until the connection ends."""
        subscribed: set[str] = set()
        self._topics_changed.set()
        while not _is_cancelled():
            await self._topics_changed.wait()
            self._topics_changed.clear()
            wanted = self._local.topics
            new, old = wanted - subscribed, subscribed - wanted
            subscribed = wanted
            for topic in self._heard.keys() - wanted:
                del self._heard[topic]
            async with asyncio.timeout(self._timeout):
                if new:
                    await pubsub.subscribe(*map(self._channel, new))
                if old:
                    await pubsub.unsubscribe(*map(self._channel, old))

    def _channel(self, topic: str) -> bytes:
        return self._prefix + topic.encode(errors="surrogatepass")

    def _answered(self) -> None:
        if self._away:
            self._away = False
            logger.info("Redis answers again: other processes hear of events at once")

    def _failed(self, exc: BaseException) -> None:
        if not self._away:
            self._away = True
            # Its kind alone: the texts of Redis errors are not ours to vouch for.
            logger.warning(
                "Redis does not answer: other processes hear of events later", extra={"error": type(exc).__name__}
            )


def _is_cancelled() -> bool:
    """Tell what `asyncio.wait_for` of Python 3.11, by which redis-py writes, may have kept to itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _pause(failures: int) -> float:
    return _PAUSES[min(failures, len(_PAUSES)) - 1]
