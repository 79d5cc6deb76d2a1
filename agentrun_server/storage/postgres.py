"""The store for many machines: PostgreSQL, by asyncpg (``agentrun-server[postgres]``).

A commit is one transaction, durable as the database's own `synchronous_commit` says: ``on`` unless its administrator
changed that. What a commit writes to is locked in one order (``FOR UPDATE``), so that two do not wait for each other;
what gets children or events is locked too, so that it is not deleted under them; and so is a lease that fences a write
(``FOR SHARE``), so that nobody takes it over before the write is committed.

Time is that of the database, so the clocks of the machines need not agree. Records get their position when they are
made and are seen when they are committed: only among the children of one parent, which are made one commit after the
other, does nothing ever appear before what was read.

Bounds: connections, calls that wait for one (`_MAX_WAITING`) and how long, and how long a statement takes.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from agentrun_server.storage.codec import PAGE_BYTES, check_text, encode, fill_page, first_events, is_text, load_body
from agentrun_server.storage.contracts import (
    AppendEvents,
    Change,
    ConflictError,
    Create,
    Delete,
    Event,
    Lease,
    Page,
    Record,
    StorageUnavailableError,
    Update,
)
from agentrun_server.storage.postgres_schema import migrate

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as exc:
    raise ImportError(
        "PostgresStore needs the asyncpg package: pip install 'agentrun-server[postgres]'", name=exc.name
    ) from None

__all__ = ["PostgresStore"]

logger = logging.getLogger("agentrun_server.storage")

T = TypeVar("T")

Connection: TypeAlias = Any
"""A connection of asyncpg, which does not say its types."""

_COLUMNS: Final = "position, kind, id, owner, parent, status, body, created_at, expires_at, version"
_NOW: Final = "extract(epoch FROM clock_timestamp())::double precision"
_TRIES: Final = 3
_MAX_WAITING: Final = 4096
_LONGEST_PAUSE: Final = 10.0
"""Seconds that a process may stand still in the middle of a commit; then what it has locked is free for others."""
_EXPIRED_LEASES_KEPT: Final = 3600.0

_SAMPLE_BYTES: Final = 64 * 1024 * 1024
"""How much of a table is read to know the size of its rows. What is stored beside a table is not read."""
_ROW_BYTES: Final[Mapping[str, str]] = {
    # As stored: compressed, with the head of the row and its entries in the indexes.
    "records": "pg_column_size(body) + 2 * octet_length(id) + 300",
    "events": "pg_column_size(data) + 2 * octet_length(run) + 100",
}

_AGAIN: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""Nothing was written, and it may go well the next time."""

_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection has been closed
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OperatorInterventionError,  # shutting down, terminated, a statement that took too long
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    *_AGAIN,
)


class PostgresStore:
    """Records, events and leases in a schema of a database; `Store` and `Leases` at once. Made by `open`.

    A connection keeps prepared statements: behind PgBouncer, use its session mode.
    """

    def __init__(self, pool: Any, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._using = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._closing: asyncio.Task[None] | None = None
        self._failing = False

    @classmethod
    async def open(
        cls, url: str, *, schema: str = "agentrun", max_connections: int = 10, timeout: float = 10.0
    ) -> Self:
        """Connect, and bring the tables up to date.

        Args:
            url: ``postgresql://…``, as `asyncpg.connect` takes it.
            schema: where the tables are; made when it is not there.
            max_connections: connections of this process.
            timeout: seconds that a statement takes at most, and that a call waits for a connection. Less than the lease
                of a worker: a server that has vanished without closing its connections must not cost all of it.

        Raises:
            SchemaVersionError: the tables are from a newer release.
            StorageUnavailableError: the server cannot be reached.
            ValueError: an argument cannot work. The text does not hold the URL.
        """
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise ValueError("schema is made of lower case letters, digits and _")
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=max_connections,
            timeout=timeout,
            command_timeout=timeout,
            server_settings={
                "search_path": schema,
                "application_name": "agentrun-server",
                "idle_in_transaction_session_timeout": f"{_LONGEST_PAUSE * 1000:.0f}",
            },
        )
        await pool  # connects nowhere yet
        store = cls(pool, timeout)
        try:
            async with store._connection() as connection:
                await migrate(connection, schema)
        except BaseException as exc:
            pool.terminate()
            if isinstance(exc, ValueError) or isinstance(exc.__cause__, ValueError):
                # Not the text of the error: it may quote the part of the URL where the password is.
                raise ValueError("the URL of PostgreSQL is not postgresql://…, or has an option amiss") from None
            raise
        return store

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        if self._closing is not None:
            raise StorageUnavailableError("the store is closed")
        if self._using >= _MAX_WAITING:
            raise StorageUnavailableError("too much is waiting for the store")
        self._using += 1
        self._unused.clear()
        try:
            async with self._pool.acquire(timeout=self._timeout) as connection:
                yield connection
        except _UNAVAILABLE as exc:
            if not self._failing:
                self._failing = True
                # Its kind alone: the texts of errors may quote what was written.
                logger.error("the store cannot be used", extra={"error": type(exc).__name__})
            raise StorageUnavailableError(f"PostgreSQL cannot be used now ({type(exc).__name__})") from exc
        else:
            if self._failing:
                self._failing = False
                logger.info("the store can be used again")
        finally:
            self._using -= 1
            if not self._using:
                self._unused.set()

    async def _transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do `work` in a transaction; again when it got in the way of another."""
        async with self._connection() as connection:
            for _ in range(_TRIES - 1):
                with contextlib.suppress(*_AGAIN):
                    async with connection.transaction():
                        return await work(connection)
            async with connection.transaction():
                return await work(connection)

    # --- Store

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all `changes`, in order, or none; durable when it returns."""
        changes = list(changes)
        encoded = [(change, encode(change)) for change in changes]

        targets = sorted({identity for change in changes for identity in _targets(change)})

        async def work(connection: Connection) -> None:
            if len(targets) > 1:
                await connection.execute("SELECT FROM records WHERE id = ANY($1) ORDER BY id, kind FOR UPDATE", targets)
            for change, value in encoded:
                match change:
                    case Create(record):
                        await _create(connection, record, value)
                    case Update():
                        await _update(connection, change, value)
                    case Delete():
                        await _delete(connection, change)
                    case AppendEvents():
                        await _append(connection, change, value)

        await self._transact(work)

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002 - the field's name
        """Return a record, None when there is none that `owner` may see."""
        return (await self.get_many(kind, [id], owner)).get(id)

    async def get_many(self, kind: str, ids: Sequence[str], owner: str | None) -> Mapping[str, Record]:
        """Return those of the records that are there, by id."""
        wanted = [identity for identity in ids if is_text(identity)]
        if not wanted or not is_text(kind, owner):
            return {}
        statement = (
            f"SELECT {_COLUMNS} FROM records WHERE kind = $1 AND id = ANY($2)"  # noqa: S608 - the words are ours
            " AND ($3::text IS NULL OR owner = $3)"
        )
        async with self._connection() as connection:
            rows = await connection.fetch(statement, kind, wanted, owner)
        return {record.id: record for record in map(_record, rows)}

    async def list(
        self,
        kind: str,
        owner: str | None,
        *,
        parent: str | None = None,
        statuses: Collection[str] | None = None,
        fields: Mapping[str, str] = MappingProxyType({}),
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "asc",
    ) -> Page:
        """Return records by position, those behind the id `after`."""
        if not is_text(kind, owner, parent, after):
            if after is not None:
                raise KeyError(after)
            return Page([], False)
        where, values = "kind = $1", list[Any]([kind])

        def demand(condition: str, value: object) -> None:
            nonlocal where
            values.append(value)
            where += f" AND {condition.format(f'${len(values)}')}"

        if owner is not None:
            demand("owner = {}", owner)
        if parent is not None:
            # The planner takes the index when it is told that the parent is not empty, which none of its rows is.
            demand("parent = {} AND parent <> ''" if parent else "parent = {}", parent)
        beginning = 0 if order == "asc" else 2**63 - 1
        if after is not None:
            statement = f"SELECT position FROM records WHERE {where} AND id = ${len(values) + 1}"  # noqa: S608
            async with self._connection() as connection:
                position = await connection.fetchval(statement, *values, after)
            if position is None:
                raise KeyError(after)
            beginning = position
        if statuses is not None:
            known = [status for status in statuses if is_text(status)]
            demand("status = ANY({}) AND status <> ''" if all(known) else "status = ANY({})", known)
        last = len(values) + 1
        behind = (
            f"position > ${last} ORDER BY position" if order == "asc" else f"position < ${last} ORDER BY position DESC"
        )
        page = f"SELECT {_COLUMNS} FROM records WHERE {where} AND {behind} LIMIT ${last + 1}"  # noqa: S608
        # Up to the one with which the bodies reach the bound: what they have in bytes is known without reading them.
        sized = f"SELECT *, sum(octet_length(body)) OVER (ORDER BY position {order}) AS reached FROM ({page}) AS page"  # noqa: S608
        query = (
            f"SELECT {_COLUMNS} FROM ({sized}) AS sized"  # noqa: S608 - the words are ours
            f" WHERE reached - octet_length(body) < {PAGE_BYTES} ORDER BY position {order}"
        )

        async def read(position: int, count: int) -> Sequence[Record]:
            async with self._connection() as connection:
                return [_record(row) for row in await connection.fetch(query, *values, position, count)]

        return await fill_page(read, beginning, limit, fields)

    async def events(
        self, run: str, after: int = -1, limit: int = 1000, *, max_bytes: int | None = None
    ) -> Sequence[Event]:
        """Return the events of a run with numbers greater than `after`."""
        if not is_text(run):
            return []
        async with self._connection() as connection:
            # From the piece in which the next event stands to that of the last one.
            rows = await connection.fetch(
                "SELECT first, data FROM (SELECT first, data, sum(octet_length(data)) OVER (ORDER BY first) AS reached"
                " FROM events WHERE run = $1 AND first <= $3 AND first >= coalesce("
                "(SELECT max(first) FROM events WHERE run = $1 AND first <= $2), 0)) AS pieces"
                " WHERE $4::bigint IS NULL OR reached - octet_length(data) < $4 ORDER BY first",
                run,
                after + 1,
                after + limit,
                max_bytes,
            )
        return first_events(rows, after, limit, max_bytes)

    async def sweep(self, limit: int = 500) -> int:
        """Delete records that have expired, with what belongs to them; return how many."""

        async def work(connection: Connection) -> int:
            # Another process may be sweeping: what it has taken is skipped.
            expired = await connection.fetch(
                f"SELECT kind, id FROM records WHERE expires_at <= {_NOW}"  # noqa: S608 - the words are ours
                " ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED",
                limit,
            )
            # One may have gone with its parent.
            swept = [await _delete(connection, Delete(kind, identity)) for kind, identity in expired]
            await connection.execute(f"DELETE FROM leases WHERE until < {_NOW} - $1", _EXPIRED_LEASES_KEPT)  # noqa: S608
            return sum(swept)

        return await self._transact(work)

    async def shrink(self, kinds: Collection[str], *, keep_statuses: Collection[str] = (), limit: int = 100) -> int:
        """Delete the oldest records of `kinds` that belong to no other, with what belongs to them; return how many."""
        wanted = [kind for kind in set(kinds) if is_text(kind)]
        kept = [status for status in keep_statuses if is_text(status)]

        async def work(connection: Connection) -> int:
            # Kind by kind: the index gives the oldest of each, but not of all. What was locked meanwhile is skipped,
            # and what was changed is looked at again.
            oldest = await connection.fetch(
                "SELECT kind, id FROM records WHERE status <> ALL($2) AND position = ANY(ARRAY("
                "SELECT position FROM unnest($1::text[]) AS wanted (kind) CROSS JOIN LATERAL ("
                "SELECT created_at, position FROM records WHERE kind = wanted.kind AND parent = ''"
                " AND status <> ALL($2) ORDER BY created_at, position LIMIT $3"
                ") AS old ORDER BY created_at, position LIMIT $3"
                ")) ORDER BY position FOR UPDATE SKIP LOCKED",
                wanted,
                kept,
                limit,
            )
            return sum([await _delete(connection, Delete(kind, identity)) for kind, identity in oldest])

        return await self._transact(work)

    async def size(self) -> int:
        """Return about how many bytes the rows take that are there.

        Tables do not get smaller by deletion, and later only by chance. So the rows are measured, as they are stored;
        of a large table only those of some blocks, the same each time.
        """
        async with self._connection() as connection:
            return sum([await _measure(connection, table, row) for table, row in _ROW_BYTES.items()])

    async def aclose(self) -> None:
        """Wait for what was accepted, and close the connections."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close the store")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._unused.wait()
                await self._pool.close()
        except (TimeoutError, *_UNAVAILABLE):
            self._pool.terminate()

    # --- Leases

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease `name` for `seconds`, None while somebody else holds it."""
        check_text(name, holder)
        async with self._connection() as connection:
            fence: int | None = await connection.fetchval(
                f"INSERT INTO leases VALUES ($1, $2, nextval('fences'), {_NOW} + $3)"  # noqa: S608 - the words are ours
                " ON CONFLICT (name) DO UPDATE SET holder = $2, fence = nextval('fences'), until = excluded.until"
                f" WHERE leases.holder = $2 OR leases.until <= {_NOW} RETURNING fence",
                name,
                holder,
                seconds,
            )
        return None if fence is None else Lease(name, holder, fence)

    async def renew(self, lease: Lease, seconds: float) -> bool:
        """Hold `lease` for `seconds` from now; False when it was lost."""
        async with self._connection() as connection:
            held = await connection.fetchval(
                f"UPDATE leases SET until = {_NOW} + $3 WHERE name = $1 AND fence = $2"  # noqa: S608 - as above
                f" AND until > {_NOW} RETURNING true",
                lease.name,
                lease.fence,
                seconds,
            )
        return held is not None

    async def release(self, lease: Lease) -> None:
        """Give `lease` back, if it is held still."""
        async with self._connection() as connection:
            await connection.execute("DELETE FROM leases WHERE name = $1 AND fence = $2", lease.name, lease.fence)


# --- one function for each change


def _targets(change: Change) -> Sequence[str]:
    """Return the ids of what `change` locks."""
    match change:
        case Create(record):
            return [record.parent] if record.parent else []
        case AppendEvents(run=run):
            return [run]
        case _:
            return [change.id]


async def _create(connection: Connection, record: Record, body: str) -> None:
    if record.parent:
        await _lock(connection, record.parent)
    made = await connection.fetchval(
        "INSERT INTO records (kind, id, owner, parent, status, body, created_at, expires_at, version)"  # noqa: S608
        f" VALUES ($1, $2, $3, $4, $5, $6, {_NOW}, $7, 1) ON CONFLICT DO NOTHING RETURNING true",
        *(record.kind, record.id, record.owner, record.parent, record.status, body, record.expires_at),
    )
    if made is None:
        raise ConflictError(f"there is such a {record.kind} already")


async def _update(connection: Connection, change: Update, body: str | None) -> None:
    await _check_fence(connection, change.fence)
    changed = await connection.fetchval(
        "UPDATE records SET version = version + 1, body = coalesce($3, body), status = coalesce($4, status),"
        " expires_at = coalesce($5, expires_at) WHERE kind = $1 AND id = $2"
        " AND ($6::integer IS NULL OR version = $6) AND ($7::text[] IS NULL OR status = ANY($7)) RETURNING true",
        *(change.kind, change.id, body, change.status, change.expires_at, change.expect_version),
        None if change.expect_status is None else list(change.expect_status),
    )
    if changed is None:
        raise ConflictError(f"the {change.kind} is not as expected")


async def _delete(connection: Connection, change: Delete) -> bool:
    """Delete a record with what belongs to it; tell whether it was there."""
    here = await connection.fetchval(
        "SELECT true FROM records WHERE kind = $1 AND id = $2 FOR UPDATE", change.kind, change.id
    )
    if here is None:
        return False
    # Level by level, each locked before its children are looked for: none can be added meanwhile.
    doomed = parents = [change.id]
    while parents:
        rows = await connection.fetch(
            "SELECT id FROM records WHERE parent <> '' AND parent = ANY($1) ORDER BY position FOR UPDATE", parents
        )
        parents = [identity for (identity,) in rows]
        doomed = doomed + parents
    await connection.execute("DELETE FROM events WHERE run = ANY($1)", doomed)
    await connection.execute("DELETE FROM records WHERE parent <> '' AND parent = ANY($1)", doomed)
    await connection.execute("DELETE FROM records WHERE kind = $1 AND id = $2", change.kind, change.id)
    return True


async def _append(connection: Connection, change: AppendEvents, piece: bytes) -> None:
    await _check_fence(connection, change.fence)
    await _lock(connection, change.run)
    length = await connection.fetchval(
        "SELECT first + count FROM events WHERE run = $1 ORDER BY first DESC LIMIT 1", change.run
    )
    if (length or 0) != change.first:
        raise ConflictError("the log of the run is not as long as expected")
    if change.data:
        await connection.execute(
            "INSERT INTO events VALUES ($1, $2, $3, $4)", change.run, change.first, len(change.data), piece
        )


async def _lock(connection: Connection, identity: str) -> None:
    """Keep a record from being deleted until this transaction ends."""
    if await connection.fetchval("SELECT true FROM records WHERE id = $1 LIMIT 1 FOR UPDATE", identity) is None:
        raise ConflictError("what it belongs to is not there")


async def _check_fence(connection: Connection, lease: Lease | None) -> None:
    if lease is None:
        return
    held = await connection.fetchval(
        f"SELECT true FROM leases WHERE name = $1 AND fence = $2 AND until > {_NOW} FOR SHARE",  # noqa: S608 - as above
        lease.name,
        lease.fence,
    )
    if held is None:
        raise ConflictError("the lease was lost")


async def _measure(connection: Connection, table: str, row: str) -> int:
    """Return about how many bytes the rows of `table` take, each of which takes `row`."""
    size: int = await connection.fetchval("SELECT pg_relation_size($1::text::regclass)", table)
    share = min(1.0, _SAMPLE_BYTES / max(size, 1))
    sampled: int = await connection.fetchval(
        f"SELECT coalesce(sum({row}), 0)::bigint FROM {table} TABLESAMPLE SYSTEM ($1) REPEATABLE (0)",  # noqa: S608 - ours
        100 * share,
    )
    return round(sampled / share)


def _record(row: Mapping[str, Any]) -> Record:
    values = dict(row)
    return Record(**{**values, "body": load_body(values["body"]), "size": len(values["body"])})
