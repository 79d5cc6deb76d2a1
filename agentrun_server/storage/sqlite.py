"""The embedded store: one SQLite file, for one machine.

One thread writes and one reads, so that nobody who lists much holds up who commits. Commits that wait together are one
transaction with one sync to the disk, each behind a savepoint of its own: a conflict undoes that commit alone.

SQLite before 3.51.3 can corrupt a file when one process checkpoints while another commits. So nothing checkpoints by
itself here; this thread does it between its commits, and on such a version it keeps other processes out meanwhile, by a
lock on a file beside the store.
"""

import asyncio
import fcntl
import json
import logging
import os
import queue
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

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
from agentrun_server.storage.sqlite_schema import migrate

__all__ = ["SQLiteStore"]

logger = logging.getLogger("agentrun_server.storage")

T = TypeVar("T")

_COLUMNS: Final = "position, kind, id, owner, parent, status, body, created_at, expires_at, version"
_MAX_WAITING: Final = 4096
_MAX_TOGETHER: Final = 256
_CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
_BUSY_SECONDS: Final = 5.0
_SAFE_VERSION: Final = (3, 51, 3)
_LENGTH: Final = struct.Struct(">I")


class _Job:
    """Something that a thread does for a task."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def done(self) -> None:
        """Tell the task, which may be gone."""
        try:
            self.future.get_loop().call_soon_threadsafe(self._settle)
        except RuntimeError:
            pass  # its event loop has been closed

    def _settle(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SQLiteStore:
    """Records, events and leases in one file; `Store` and `Leases` at once.

    Args:
        path: the file, made with its folder when it is not there, for its owner alone.
        durable: sync to the disk before a commit returns, so that not even a power cut loses it.
        clock: seconds since the epoch.

    Raises:
        SchemaVersionError: the file is from a newer release.
        StorageUnavailableError: it cannot be opened.
    """

    def __init__(self, path: str | Path, *, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._durable = durable
        self._clock = clock
        self._locked = sqlite3.sqlite_version_info < _SAFE_VERSION
        self._writes: queue.Queue[_Job | None] = queue.Queue()
        self._reads: queue.Queue[_Job | None] = queue.Queue()
        self._closed = False
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._lock_file = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            writing = self._connect()
            with self._shared():
                writing.execute("BEGIN IMMEDIATE")
                try:
                    migrate(writing)
                except BaseException:
                    writing.execute("ROLLBACK")
                    writing.close()
                    raise
                writing.execute("COMMIT")
            reading = self._connect()
            reading.execute("PRAGMA query_only = ON")
        except (OSError, sqlite3.Error) as exc:
            raise StorageUnavailableError(f"{self._path}: {exc}") from exc
        self._threads = [
            threading.Thread(target=self._write, args=(writing,), name="sqlite-writer", daemon=True),
            threading.Thread(target=self._read, args=(reading,), name="sqlite-reader", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {'FULL' if self._durable else 'NORMAL'}",
            "wal_autocheckpoint = 0",
            "secure_delete = ON",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    # --- the threads

    def _write(self, connection: sqlite3.Connection) -> None:
        closing = False
        while not closing:
            jobs = [self._writes.get()]
            try:
                while len(jobs) < _MAX_TOGETHER:
                    jobs.append(self._writes.get_nowait())
            except queue.Empty:
                pass
            closing = None in jobs
            together = [job for job in jobs if job is not None]
            if together:
                self._commit_together(connection, together)
                for job in together:
                    job.done()
            if not closing:
                self._checkpoint(connection, _CHECKPOINT_BYTES)
        self._checkpoint(connection, 0)
        connection.close()

    def _commit_together(self, connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
        """Do `jobs` in one transaction; each that fails is undone by itself."""
        try:
            with self._shared():
                connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    connection.execute("SAVEPOINT job")
                    try:
                        job.result = job.work(connection)
                    except ConflictError as exc:
                        job.error = exc
                        connection.execute("ROLLBACK TO job")
                    connection.execute("RELEASE job")
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as exc:
            self._undo(connection)
            logger.error("the store cannot be written", extra={"reason": str(exc)})
            for job in jobs:
                job.error = StorageUnavailableError("the store cannot be written now")
        except Exception as exc:  # a fault of ours in one job: none of them was written
            self._undo(connection)
            logger.exception("a write to the store failed")
            for job in jobs:
                job.error = exc

    @staticmethod
    def _undo(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite has rolled back by itself, as it does when the disk is full

    def _read(self, connection: sqlite3.Connection) -> None:
        while (job := self._reads.get()) is not None:
            try:
                job.result = job.work(connection)
            except sqlite3.Error as exc:
                logger.error("the store cannot be read", extra={"reason": str(exc)})
                job.error = StorageUnavailableError("the store cannot be read now")
            except Exception as exc:
                job.error = exc
            job.done()
        connection.close()

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Keep checkpoints of other processes out while this one commits, where SQLite needs it."""
        if not self._locked:
            yield
            return
        fcntl.flock(self._lock_file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _checkpoint(self, connection: sqlite3.Connection, at_least: int) -> None:
        """Move what was committed from the log into the file, when there is much of it and nobody else commits."""
        try:
            if os.stat(f"{self._path}-wal").st_size < at_least:
                return
        except OSError:
            return
        if self._locked:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody is committing: with the next commit, then
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as exc:
            logger.warning("the log of the store could not be emptied", extra={"reason": str(exc)})
        finally:
            if self._locked:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    async def _ask(self, where: "queue.Queue[_Job | None]", work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StorageUnavailableError("the store is closed")
        if where.qsize() >= _MAX_WAITING:
            raise StorageUnavailableError("too much is waiting for the store")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        where.put(_Job(work, future))
        return await future

    # --- Store

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all `changes`, in order, or none; durable when it returns."""
        changes = list(changes)

        def work(connection: sqlite3.Connection) -> None:
            now = self._clock()
            for change in changes:
                _CHANGES[type(change)](connection, change, now)

        await self._ask(self._writes, work)

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002
        """Return a record, None when there is none that `owner` may see."""
        return (await self.get_many(kind, [id], owner)).get(id)

    async def get_many(self, kind: str, ids: Sequence[str], owner: str | None) -> Mapping[str, Record]:
        """Return those of the records that are there, by id."""
        wanted = json.dumps(list(ids))

        def work(connection: sqlite3.Connection) -> Mapping[str, Record]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM records WHERE kind = ? AND id IN (SELECT value FROM json_each(?))"  # noqa: S608
                " AND (? IS NULL OR owner = ?)",
                (kind, wanted, owner, owner),
            )
            return {record.id: record for record in map(_record, rows)}

        return await self._ask(self._reads, work)

    async def list(
        self,
        kind: str,
        owner: str | None,
        *,
        parent: str | None = None,
        statuses: Collection[str] | None = None,
        fields: Mapping[str, str] = {},  # noqa: B006 - never changed
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "asc",
    ) -> Page:
        """Return records by position, those behind the id `after`."""
        where, values = ["kind = ?"], [kind]
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if parent is not None:
            # What the planner takes the index for; an empty parent is in none.
            where.append("parent = ? AND parent <> ''" if parent else "parent = ?")
            values.append(parent)
        if statuses is not None:
            where.append("status IN (SELECT value FROM json_each(?)) AND status <> ''")
            values.append(json.dumps(sorted(statuses)))
        for name, value in fields.items():
            where.append("json_extract(body, ?) = ?")
            values += [_json_path(name), value]
        condition = " AND ".join(where)

        def work(connection: sqlite3.Connection) -> Page:
            bound, position = "", []
            if after is not None:
                row = connection.execute(
                    f"SELECT position FROM records WHERE {condition} AND id = ?",  # noqa: S608 - conditions are ours
                    (*values, after),
                ).fetchone()
                if row is None:
                    raise KeyError(after)
                bound, position = f" AND position {'>' if order == 'asc' else '<'} ?", [row[0]]
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM records WHERE {condition}{bound}"  # noqa: S608
                f" ORDER BY position {'ASC' if order == 'asc' else 'DESC'} LIMIT ?",
                (*values, *position, limit + 1),
            ).fetchall()
            return Page([_record(row) for row in rows[:limit]], len(rows) > limit)

        return await self._ask(self._reads, work)

    async def events(self, run: str, after: int = -1, limit: int = 1000) -> Sequence[Event]:
        """Return the events of a run with numbers greater than `after`."""

        def work(connection: sqlite3.Connection) -> Sequence[Event]:
            found: list[Event] = []
            rows = connection.execute(
                "SELECT first, data FROM events WHERE run = ? AND first + count > ? ORDER BY first", (run, after + 1)
            )
            for first, data in rows:
                for number, piece in enumerate(_unpack(data), first):
                    if number > after:
                        found.append(Event(number, piece))
                        if len(found) == limit:
                            return found
            return found

        return await self._ask(self._reads, work)

    async def sweep(self, limit: int = 500) -> int:
        """Delete records that have expired, with what belongs to them; return how many."""

        def work(connection: sqlite3.Connection) -> int:
            now = self._clock()
            rows = connection.execute(
                "SELECT kind, id FROM records WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
            ).fetchall()
            for kind, identity in rows:
                _delete(connection, Delete(kind, identity), now)
            connection.execute("DELETE FROM leases WHERE until < ?", (now - 3600,))
            return len(rows)

        return await self._ask(self._writes, work)

    async def size(self) -> int:
        """Return the bytes that the store takes."""
        total = 0
        for suffix in ("", "-wal"):
            try:
                total += os.stat(f"{self._path}{suffix}").st_size
            except FileNotFoundError:
                pass
        return total

    async def aclose(self) -> None:
        """Write what was accepted, and let go of the file."""
        if self._closed:
            return
        self._closed = True
        self._writes.put(None)
        self._reads.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        os.close(self._lock_file)

    # --- Leases

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease `name` for `seconds`, None while somebody else holds it."""

        def work(connection: sqlite3.Connection) -> Lease | None:
            now = self._clock()
            row = connection.execute("SELECT holder, until FROM leases WHERE name = ?", (name,)).fetchone()
            if row is not None and row[1] > now and row[0] != holder:
                return None
            fence = connection.execute("INSERT INTO fences DEFAULT VALUES RETURNING fence").fetchone()[0]
            connection.execute("DELETE FROM fences WHERE fence < ?", (fence,))
            connection.execute("REPLACE INTO leases VALUES (?, ?, ?, ?)", (name, holder, fence, now + seconds))
            return Lease(name, holder, fence)

        return await self._ask(self._writes, work)

    async def renew(self, lease: Lease, seconds: float) -> bool:
        """Hold `lease` for `seconds` from now; False when it was lost."""

        def work(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            changed = connection.execute(
                "UPDATE leases SET until = ? WHERE name = ? AND fence = ? AND until > ?",
                (now + seconds, lease.name, lease.fence, now),
            )
            return changed.rowcount == 1

        return await self._ask(self._writes, work)

    async def release(self, lease: Lease) -> None:
        """Give `lease` back, if it is held still."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM leases WHERE name = ? AND fence = ?", (lease.name, lease.fence))

        await self._ask(self._writes, work)


# --- one function for each change


def _create(connection: sqlite3.Connection, change: Create, now: float) -> None:
    record = change.record
    try:
        connection.execute(
            "INSERT INTO records (kind, id, owner, parent, status, body, created_at, expires_at, version)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (record.kind, record.id, record.owner, record.parent, record.status, _dump(record.body), now,
             record.expires_at),
        )  # fmt: skip
    except sqlite3.IntegrityError as exc:
        raise ConflictError(f"there is such a {record.kind} already") from exc


def _update(connection: sqlite3.Connection, change: Update, now: float) -> None:
    _check_fence(connection, change.fence, now)
    values: dict[str, Any] = {
        "body": None if change.body is None else _dump(change.body),
        "status": change.status,
        "expires_at": change.expires_at,
    }
    given = {name: value for name, value in values.items() if value is not None}
    where, expected = "", []
    if change.expect_status is not None:
        where += " AND status IN (SELECT value FROM json_each(?))"
        expected.append(json.dumps(sorted(change.expect_status)))
    if change.expect_version is not None:
        where += " AND version = ?"
        expected.append(str(change.expect_version))
    assignments = "".join(f", {name} = ?" for name in given)
    changed = connection.execute(
        f"UPDATE records SET version = version + 1{assignments} WHERE kind = ? AND id = ?{where}",  # noqa: S608
        (*given.values(), change.kind, change.id, *expected),
    )
    if changed.rowcount != 1:
        raise ConflictError(f"the {change.kind} is not as expected")


def _delete(connection: sqlite3.Connection, change: Delete, now: float) -> None:
    connection.execute("DELETE FROM records WHERE kind = ? AND id = ?", (change.kind, change.id))
    connection.execute("DELETE FROM events WHERE run = ?", (change.id,))
    children = connection.execute(
        "SELECT kind, id FROM records WHERE parent = ? AND parent <> ''", (change.id,)
    ).fetchall()
    for kind, identity in children:
        _delete(connection, Delete(kind, identity), now)


def _append(connection: sqlite3.Connection, change: AppendEvents, now: float) -> None:
    _check_fence(connection, change.fence, now)
    row = connection.execute(
        "SELECT first + count FROM events WHERE run = ? ORDER BY first DESC LIMIT 1", (change.run,)
    ).fetchone()
    if (row[0] if row else 0) != change.first:
        raise ConflictError("the log of the run is not as long as expected")
    if change.data:
        connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?)",
            (change.run, change.first, len(change.data), _pack(change.data)),
        )


_CHANGES: Final[Mapping[type, Callable[[sqlite3.Connection, Any, float], None]]] = {
    Create: _create,
    Update: _update,
    Delete: _delete,
    AppendEvents: _append,
}


def _check_fence(connection: sqlite3.Connection, lease: Lease | None, now: float) -> None:
    if lease is None:
        return
    held = connection.execute(
        "SELECT 1 FROM leases WHERE name = ? AND fence = ? AND until > ?", (lease.name, lease.fence, now)
    ).fetchone()
    if held is None:
        raise ConflictError("the lease was lost")


def _record(row: tuple[Any, ...]) -> Record:
    position, kind, identity, owner, parent, status, body, created_at, expires_at, version = row
    return Record(
        kind=kind, id=identity, owner=owner, parent=parent, status=status, body=json.loads(body),
        created_at=created_at, expires_at=expires_at, version=version, position=position,
    )  # fmt: skip


def _dump(body: Mapping[str, Any]) -> str:
    # ASCII: a lone surrogate, which a model may say, is no UTF-8.
    return json.dumps(body, separators=(",", ":"))


def _json_path(name: str) -> str:
    """Return the path of a member, or of a member's member, for ``json_extract``."""
    return "$" + "".join(f'."{part}"' for part in name.split(".", 1) if '"' not in part and "\\" not in part)


def _pack(data: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(piece)) + piece for piece in data)


def _unpack(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        yield data[position : position + length]
        position += length
