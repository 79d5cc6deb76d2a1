"""The bus within one process, and what every bus hands to those who listen."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

__all__ = ["KEPT", "LocalBus", "Subscription"]

KEPT: Final = 64
"""Messages that are kept for a slow reader; older ones are dropped."""


class Subscription:
    """The messages of a topic for one reader, the latest `KEPT` of them."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque(maxlen=KEPT)
        self._arrived = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Add a message; the oldest makes room."""
        self._messages.append(message)
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()


class LocalBus:
    """A bus of one event loop; a `Bus`. It has no tasks."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Subscription]] = {}

    async def publish(self, topic: str, message: bytes = b"") -> None:
        """Tell all who listen to `topic`. Never waits for them."""
        self.deliver(topic, message)

    def deliver(self, topic: str, message: bytes) -> None:
        """Do what `publish` does, at once."""
        for reader in self._readers.get(topic, ()):
            reader.put(message)

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return a context in which messages of `topic` arrive."""
        return self._subscribe(topic)

    @asynccontextmanager
    async def _subscribe(self, topic: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        reader = Subscription()
        self._readers.setdefault(topic, set()).add(reader)
        try:
            yield reader
        finally:
            readers = self._readers[topic]
            readers.discard(reader)
            if not readers:
                del self._readers[topic]

    async def aclose(self) -> None:
        """Do nothing: there is nothing to end."""

    @property
    def topics(self) -> set[str]:
        """The topics that somebody listens to."""
        return set(self._readers)
