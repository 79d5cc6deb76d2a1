"""What the suite of `test_contract` runs on: one class for each store, and short ways to make changes.

A `Backend` is one place where data is. Stores opened on it share the data, as the processes of a server do.
"""

import asyncio
import fcntl
import itertools
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentrun_server.storage.contracts import AppendEvents, Create, Event, Leases, Record, Store
from agentrun_server.storage.sqlite import SQLiteStore
from tests.support.postgres_server import PostgresServer

if TYPE_CHECKING:
    from agentrun_server.storage.postgres import PostgresStore

__all__ = [
    "Backend",
    "PostgresBackend",
    "SQLiteBackend",
    "StoreAndLeases",
    "append",
    "create",
    "everything",
    "other_process_writes",
    "record",
    "run_process",
]

START = 1_000_000.0


class StoreAndLeases(Store, Leases, Protocol):
    """What every backend is."""


class Backend:
    """A place for data that a test has for itself."""

    address: str
    """How `tests.storage.worker` finds it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def open(self) -> StoreAndLeases:
        """Open one more store on it, which is closed at the end."""
        store = await self._open()
        self._stack.push_async_callback(store.aclose)
        return store

    async def aclose(self) -> None:
        """Close all stores."""
        await self._stack.aclose()

    async def _open(self) -> StoreAndLeases:
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """Let the clock of the store be so much later."""
        raise NotImplementedError


class SQLiteBackend(Backend):
    """A file in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "data" / "store.db"
        self.address = f"sqlite:{self.path}"
        self._now = START

    async def _open(self) -> StoreAndLeases:
        return SQLiteStore(self.path, clock=lambda: self._now)

    async def pass_time(self, seconds: float) -> None:
        self._now += seconds


class PostgresBackend(Backend):
    """A schema of a server."""

    def __init__(self, server: PostgresServer, schema: str) -> None:
        super().__init__()
        self.server = server
        self.schema = schema
        self.address = f"postgres:{server.url}#{schema}"

    async def _open(self) -> "PostgresStore":
        from agentrun_server.storage.postgres import PostgresStore

        return await PostgresStore.open(self.server.url, schema=self.schema, max_connections=4)

    async def pass_time(self, seconds: float) -> None:
        # The clock is that of the database; so all that was noted moves into the past.
        await self.ask(
            f"UPDATE {self.schema}.leases SET until = until - {seconds};"
            f"UPDATE {self.schema}.records SET expires_at = expires_at - {seconds}"
        )

    async def ask(self, statement: str) -> None:
        """Run a statement on a connection of its own."""
        import asyncpg  # type: ignore[import-untyped]

        connection = await asyncpg.connect(self.server.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


_numbers = itertools.count()


def record(identity: str = "", /, kind: str = "response", owner: str = "alice", **values: Any) -> Record:
    """Return a record that can be created."""
    return Record(kind=kind, id=identity or f"{kind}-{next(_numbers)}", owner=owner, **{"body": {}, **values})


def create(identity: str = "", /, **values: Any) -> Create:
    """Return the change that creates `record(...)`."""
    return Create(record(identity, **values))


def append(run: str, first: int, *data: bytes, **values: Any) -> AppendEvents:
    """Return the change that appends `data`."""
    return AppendEvents(run=run, first=first, data=data, **values)


async def everything(store: Store, run: str) -> list[Event]:
    """Return all events of a run, page by page."""
    found: list[Event] = []
    while page := await store.events(run, found[-1].number if found else -1):
        found += page
    return found


@contextmanager
def other_process_writes(path: Path) -> Iterator[None]:
    """Hold the turn to write, as another process would."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def run_process(
    backend: Backend, name: str, *options: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `tests.storage.worker` on `backend` in a process of its own; it is killed at the end if need be."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.storage.worker", backend.address, name, *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
