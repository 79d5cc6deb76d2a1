"""Storage for tests of turns and sessions: SQLite in a folder of the test, and stores that misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentrun_server.storage.contracts import Change, Record, StorageUnavailableError
from agentrun_server.storage.local_bus import LocalBus
from agentrun_server.storage.opening import Storage
from agentrun_server.storage.sqlite import SQLiteStore

__all__ = ["Clock", "Misbehaving", "opened", "sqlite"]


class Clock:
    """Seconds since the epoch, as a test says."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def sqlite(folder: Path, clock: Clock) -> AsyncIterator[Storage]:
    """Open the file of the test once more, as another process would: with a bus that hears nobody else's."""
    store = SQLiteStore(folder / "store.db", durable=False, clock=clock)
    try:
        yield Storage(store, store, LocalBus())
    finally:
        await store.aclose()


def opened(storage: Storage) -> Callable[[], Awaitable[Storage]]:
    """Return what opens storage that is open already."""

    async def open_storage() -> Storage:
        return storage

    return open_storage


class Misbehaving:
    """A store that may be away, or acknowledge nothing, whether it wrote or not."""

    def __init__(self, storage: Storage) -> None:
        self._store = storage.store
        store: Any = self  # the rest of a store by `__getattr__`
        self.storage = Storage(store, storage.leases, storage.bus)
        self.away = False
        self.silent = False
        self.wrote = asyncio.Event()
        """Set when something was written that is not acknowledged."""
        self.overtake: Callable[[], Awaitable[object]] | None = None
        """What somebody else does before the next commit is made."""
        self.overtake_reading: dict[str, Callable[[], Awaitable[object]]] = {}
        """What somebody else does before the next record of a kind is read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, kind: str, identity: str, owner: str | None) -> Record | None:
        overtake = self.overtake_reading.pop(kind, None)
        if overtake is not None:
            await overtake()
        return await self._store.get(kind, identity, owner)

    async def commit(self, changes: Sequence[Change]) -> None:
        if self.away:
            raise StorageUnavailableError("away")
        overtake, self.overtake = self.overtake, None
        if overtake is not None:
            await overtake()
        await self._store.commit(changes)
        if self.silent:
            self.wrote.set()
            await asyncio.Event().wait()
