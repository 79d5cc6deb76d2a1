"""The embedded store: one SQLite file, for one machine.

One thread writes and one reads, so that nobody who lists much holds up who commits. Commits that wait together are one
transaction with one sync to the disk, each behind a savepoint of its own: one that fails is undone alone.

Processes that share the file take turns by a lock on a file beside it. SQLite before 3.51.3 can corrupt a file when one
connection moves its log into the file ("checkpoint") while another commits, so nothing does that by itself here: the
writing thread does, and holds the lock for it as for a commit. The system drops SQLite's own locks when *any*
descriptor of the file is closed in this process, so nothing here opens the file but SQLite.

What is deleted is overwritten in the file, and the log, where older states of it stand, is emptied before the deletion
is acknowledged; while somebody reads an older state, soon after. SQLite overwrites a row where it stands last, but not
where it stood before its page was merged with others, about once in 400 deletions. So after deletions a sweep rewrites
the file, once an hour at most and up to `_REWRITE_BYTES`; larger ones need ``VACUUM`` at a quiet time.

Bounds: commits and reads that wait (`_MAX_WAITING`), how long (`_LONGEST_WAIT`), and the log (`_CHECKPOINT_BYTES`,
unless somebody reads an older state for long).
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

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
from agentrun_server.storage.sqlite_schema import migrate

__all__ = ["SQLiteStore"]

logger = logging.getLogger("agentrun_server.storage")

T = TypeVar("T")

_COLUMNS: Final = "position, kind, id, owner, parent, status, body, created_at, expires_at, version"
_MAX_WAITING: Final = 4096
_LONGEST_WAIT: Final = 30.0
_MAX_TOGETHER: Final = 256
_CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
_CHECKPOINT_PAUSE: Final = 1.0
"""Seconds until the next try when somebody reads an older state."""
_CHECKPOINT_WAIT: Final = 0.1
"""Seconds that a checkpoint waits for readers."""
_REWRITE_BYTES: Final = 64 * 1024 * 1024
"""Size up to which a file is rewritten after deletions: in half a second or so, and in as much memory."""
_REWRITE_PAUSE: Final = 3600.0
_TURN_WAIT: Final = 4.0
"""Seconds that a commit waits for other processes, from when it was asked for."""
_SHORT_TURN_WAIT: Final = 0.1
"""The same for one that has waited so long for commits of its own process."""
_TURN_LOOK: Final = 0.0005
_TURN_GAP: Final = 0.001
"""Seconds in which other processes get their turn when there is always more to write; they look more often."""
_EXPIRED_LEASES_KEPT: Final = 3600.0
_VALUE_ERRORS: Final = (sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class SQLiteStore:
    """Records, events and leases in one file; `Store` and `Leases` at once.

    Opening reads and may write the file; it blocks for a moment. A process that forks opens its store afterwards.

    Args:
        path: the file, on a local disk. When it is not there it is made, with its folder, for its owner alone.
        durable: sync to the disk before a commit returns, so that not even a power cut loses it.
        clock: seconds since the epoch.

    Raises:
        SchemaVersionError: the file is from a newer release, or from another program.
        StorageUnavailableError: it cannot be opened.
    """

    def __init__(self, path: str | Path, *, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        # SQLite follows links, and puts its log beside the file itself. So must the lock be, or who comes by another
        # name takes another turn.
        self._path = Path(os.path.realpath(path))
        self._log = Path(f"{self._path}-wal")
        self._durable = durable
        self._clock = clock
        self._writes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        # Of the writing thread:
        self._erase = True  # a process that was killed may have left what it had deleted in the log
        self._checkpoint_at = 0.0
        self._deleted = False  # since the file was rewritten
        self._swept = False
        self._rewrite_at = 0.0
        self._failing = False
        try:
            with contextlib.ExitStack() as opened:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, self._lock)
                with self._turn():
                    # Its mode is that of the files that SQLite puts beside it. An existing file is not opened.
                    with contextlib.suppress(FileExistsError):
                        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                    writing = self._connect()
                    opened.callback(writing.close)
                    writing.execute("BEGIN IMMEDIATE")
                    migrate(writing)
                    writing.execute("COMMIT")
                    (mode,) = writing.execute("PRAGMA journal_mode = WAL").fetchone()
                    if mode != "wal":
                        raise sqlite3.OperationalError("the file system is not fit for SQLite's write-ahead log")
                    if self._path.stat().st_mode & 0o077:  # a copy that was put in its place, perhaps
                        logger.warning("the file of the store is open to others", extra={"path": str(self._path)})
                    reading = self._connect()
                    opened.callback(reading.close)
                    reading.execute("PRAGMA query_only = ON")
                opened.pop_all()
        except (OSError, sqlite3.Error) as exc:
            raise StorageUnavailableError(f"{self._path}: {exc}") from exc
        self._reader = threading.Thread(target=self._read, args=(reading,), name="sqlite-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, args=(writing,), name="sqlite-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_TURN_WAIT, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            for pragma in (
                f"synchronous = {'FULL' if self._durable else 'NORMAL'}",
                f"fullfsync = {'ON' if self._durable else 'OFF'}",  # without it macOS syncs to the cache of the disk
                "wal_autocheckpoint = 0",
                "secure_delete = ON",
                "temp_store = MEMORY",  # where savepoints keep older states
                "mmap_size = 0",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    # --- the threads

    def _write(self, connection: sqlite3.Connection) -> None:
        self._checkpoint(connection)
        closing = False
        while not closing:
            jobs = self._next_writes()
            closing = None in jobs
            together = [job for job in jobs if job is not None and not job.future.cancelled()]
            if together:
                self._commit_together(connection, together)
            if self._swept:
                self._rewrite(connection)
            if self._erase:
                self._checkpoint(connection)
            _tell(together)
            if _bytes(self._log) >= _CHECKPOINT_BYTES:
                self._checkpoint(connection)
            if together and not self._writes.empty():
                time.sleep(_TURN_GAP)
        self._reader.join()  # who closes last removes the log; of two at once, neither may
        self._checkpoint_at = 0.0
        self._checkpoint(connection)
        connection.close()
        os.close(self._lock)

    def _next_writes(self) -> "list[_Job | None]":
        """Wait for something to write; return what waits, or nothing when the log should be emptied."""
        jobs: list[_Job | None] = []
        with contextlib.suppress(queue.Empty):
            jobs.append(self._writes.get(timeout=_CHECKPOINT_PAUSE if self._erase else None))
            while len(jobs) < _MAX_TOGETHER and jobs[-1] is not None:
                jobs.append(self._writes.get_nowait())
        return jobs

    def _commit_together(self, connection: sqlite3.Connection, jobs: "Sequence[_Job]") -> None:
        """Do `jobs` in one transaction; each that fails is undone by itself."""
        oldest = min(job.since for job in jobs)
        try:
            with self._turn(max(oldest + _TURN_WAIT, time.monotonic() + _SHORT_TURN_WAIT)):
                connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    self._do(connection, job)
                connection.execute("COMMIT")
            self._check_files()
        except Exception as exc:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                connection.execute("ROLLBACK")
            for job in jobs:
                job.error = StorageUnavailableError("the store cannot be written now")
            if not self._failing:
                self._failing = True
                logger.error("the store cannot be written", extra={"path": str(self._path), "reason": str(exc)})
            if not isinstance(exc, TimeoutError):  # another process has its turn all the time
                self._checkpoint(connection)  # when the disk is full: what fits into the file frees room
        else:
            if self._failing:
                self._failing = False
                logger.info("the store can be written again", extra={"path": str(self._path)})

    def _check_files(self) -> None:
        """See that what was written can be found again: SQLite goes on with files that have no name any more.

        Raises:
            FileNotFoundError: somebody has moved or deleted them.
        """
        for path in (self._path, self._log):
            path.stat()

    @staticmethod
    def _do(connection: sqlite3.Connection, job: "_Job") -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except Exception as exc:
            if isinstance(exc, sqlite3.Error) and not isinstance(exc, _VALUE_ERRORS):
                raise  # of the disk or the file: all that was in the transaction may be gone
            job.error = exc
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _read(self, connection: sqlite3.Connection) -> None:
        while (job := self._reads.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                job.result = job.work(connection)
            except sqlite3.Error as exc:
                logger.error("the store cannot be read", extra={"path": str(self._path), "reason": str(exc)})
                job.error = StorageUnavailableError("the store cannot be read now")
            except Exception as exc:
                job.error = exc
            _tell([job])
        connection.close()

    @contextlib.contextmanager
    def _turn(self, deadline: float | None = None) -> Iterator[None]:
        """Keep other processes from writing meanwhile.

        Raises:
            TimeoutError: the turn did not come until `deadline`.
        """
        deadline = time.monotonic() + _TURN_WAIT if deadline is None else deadline
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process is writing all the time") from None
                time.sleep(_TURN_LOOK)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the log into the file and empty it, unless somebody reads an older state."""
        now = time.monotonic()
        if now < self._checkpoint_at:
            return
        try:
            with self._turn():
                connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT * 1000:.0f}")
                try:
                    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {_TURN_WAIT * 1000:.0f}")
        except (sqlite3.Error, OSError) as exc:
            logger.warning("the log of the store cannot be emptied now", extra={"reason": str(exc)})
            busy = True
        if busy:
            self._checkpoint_at = now + _CHECKPOINT_PAUSE
        else:
            self._erase = False

    def _rewrite(self, connection: sqlite3.Connection) -> None:
        """Rewrite the file without what lies between the rows, when it is time."""
        self._swept = False
        now = time.monotonic()
        if not self._deleted or now < self._rewrite_at or _bytes(self._path) > _REWRITE_BYTES:
            return
        self._rewrite_at = now + _REWRITE_PAUSE
        try:
            with self._turn():
                connection.execute("VACUUM")
        except (sqlite3.Error, OSError) as exc:
            logger.warning("the file of the store cannot be rewritten now", extra={"reason": str(exc)})
        else:
            self._deleted, self._erase = False, True

    async def _ask(self, jobs: "queue.SimpleQueue[_Job | None]", work: Callable[[sqlite3.Connection], T]) -> T:
        """Have `work` done by the thread that takes from `jobs`."""
        if self._closed:
            raise StorageUnavailableError("the store is closed")
        if jobs.qsize() >= _MAX_WAITING:
            raise StorageUnavailableError("too much is waiting for the store")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        jobs.put(_Job(work, future))
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                return await future
        except TimeoutError:
            raise StorageUnavailableError("the store does not answer") from None

    # --- Store

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all `changes`, in order, or none; durable when it returns."""
        encoded = [(change, encode(change)) for change in changes]

        def work(connection: sqlite3.Connection) -> None:
            now = self._clock()
            for change, value in encoded:
                match change:
                    case Create(record):
                        _create(connection, record, value, now)
                    case Update():
                        _update(connection, change, value, now)
                    case Delete():
                        self._note_deletion(_delete(connection, change))
                    case AppendEvents():
                        _append(connection, change, value, now)

        await self._ask(self._writes, work)

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002 - the field's name
        """Return a record, None when there is none that `owner` may see."""
        return (await self.get_many(kind, [id], owner)).get(id)

    async def get_many(self, kind: str, ids: Sequence[str], owner: str | None) -> Mapping[str, Record]:
        """Return those of the records that are there, by id."""
        wanted = [identity for identity in ids if is_text(identity)]
        if not wanted or not is_text(kind, owner):
            return {}

        def work(connection: sqlite3.Connection) -> Mapping[str, Record]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM records WHERE kind = ? AND id IN (SELECT value FROM json_each(?))"  # noqa: S608
                " AND (? IS NULL OR owner = ?)",
                (kind, json.dumps(wanted), owner, owner),
            ).fetchall()
            return {record.id: record for record in map(_record, rows)}

        return await self._ask(self._reads, work)

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
        where, values = "kind = ?", [kind]
        if owner is not None:
            where += " AND owner = ?"
            values.append(owner)
        if parent is not None:
            # The planner takes the index when it is told that the parent is not empty, which none of its rows is.
            where += " AND parent = ? AND parent <> ''" if parent else " AND parent = ?"
            values.append(parent)
        beginning = 0 if order == "asc" else 2**63 - 1
        if after is not None:
            beginning = await self._position(where, [*values, after])
        if statuses is not None:
            where += " AND status <> ''" if all(statuses) else ""  # as above
            where += " AND status IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(sorted(statuses)))
        behind = "position > ? ORDER BY position ASC" if order == "asc" else "position < ? ORDER BY position DESC"
        statement = f"SELECT {_COLUMNS} FROM records WHERE {where} AND {behind} LIMIT ?"  # noqa: S608 - the words are ours

        async def read(position: int, count: int) -> Sequence[Record]:
            def work(connection: sqlite3.Connection) -> Sequence[Record]:
                records: list[Record] = []
                size = 0
                rows = connection.execute(statement, (*values, position, count))
                for row in rows:
                    records.append(_record(row))
                    size += records[-1].size
                    if size >= PAGE_BYTES:
                        break
                rows.close()
                return records

            return await self._ask(self._reads, work)

        return await fill_page(read, beginning, limit, fields)

    async def _position(self, where: str, values: Sequence[str]) -> int:
        statement = f"SELECT position FROM records WHERE {where} AND id = ?"  # noqa: S608 - the words are ours

        def work(connection: sqlite3.Connection) -> int:
            rows = connection.execute(statement, values).fetchall()
            if not rows:
                raise KeyError(values[-1])
            position: int = rows[0][0]
            return position

        return await self._ask(self._reads, work)

    async def events(
        self, run: str, after: int = -1, limit: int = 1000, *, max_bytes: int | None = None
    ) -> Sequence[Event]:
        """Return the events of a run with numbers greater than `after`."""
        if not is_text(run):
            return []

        def work(connection: sqlite3.Connection) -> Sequence[Event]:
            # From the piece in which the next event stands. A piece holds one event at least.
            rows = connection.execute(
                "SELECT first, data FROM events WHERE run = ?1 AND first >= coalesce("
                "(SELECT max(first) FROM events WHERE run = ?1 AND first <= ?2), 0) ORDER BY first LIMIT ?3",
                (run, after + 1, limit + 1),
            )
            found = first_events(rows, after, limit, max_bytes)
            rows.close()
            return found

        return await self._ask(self._reads, work)

    def _note_deletion(self, happened: bool) -> None:
        if happened:
            self._erase = self._deleted = True

    async def sweep(self, limit: int = 500) -> int:
        """Delete records that have expired, with what belongs to them; return how many."""

        def work(connection: sqlite3.Connection) -> int:
            now = self._clock()
            expired = connection.execute(
                "SELECT kind, id FROM records WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
            ).fetchall()
            # One may have gone with its parent.
            swept = sum(_delete(connection, Delete(kind, identity)) for kind, identity in expired)
            self._note_deletion(swept > 0)
            self._swept = True
            connection.execute("DELETE FROM leases WHERE until < ?", (now - _EXPIRED_LEASES_KEPT,))
            return swept

        return await self._ask(self._writes, work)

    async def shrink(self, kinds: Collection[str], *, keep_statuses: Collection[str] = (), limit: int = 100) -> int:
        """Delete the oldest records of `kinds` that belong to no other, with what belongs to them; return how many."""
        wanted = sorted(kind for kind in set(kinds) if is_text(kind))
        kept = json.dumps(sorted(keep_statuses))

        def work(connection: sqlite3.Connection) -> int:
            # Kind by kind: the index gives the oldest of each, but not of all.
            found: list[tuple[float, int, str, str]] = []
            for kind in wanted:
                found += connection.execute(
                    "SELECT created_at, position, kind, id FROM records WHERE kind = ? AND parent = ''"
                    " AND status NOT IN (SELECT value FROM json_each(?)) ORDER BY created_at, position LIMIT ?",
                    (kind, kept, limit),
                )
            oldest = sorted(found)[:limit]
            for _, _, kind, identity in oldest:
                _delete(connection, Delete(kind, identity))
            self._note_deletion(bool(oldest))
            return len(oldest)

        return await self._ask(self._writes, work)

    async def size(self) -> int:
        """Return the bytes of the pages that are in use.

        Not the file's, which keeps pages that are free. Nor those of the log, whose pages are counted already: who
        deletes makes it longer at first, and as long as somebody reads an older state.
        """

        def work(connection: sqlite3.Connection) -> int:
            size: int
            (size,) = connection.execute(
                "SELECT (page_count - freelist_count) * page_size"
                " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
            ).fetchone()
            return size

        return await self._ask(self._reads, work)

    async def aclose(self) -> None:
        """Write what was accepted, and let go of the file."""
        if not self._closed:
            self._closed = True
            self._reads.put(None)
            self._writes.put(None)
        await asyncio.to_thread(self._writer.join)  # which waits for the reader

    # --- Leases

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease `name` for `seconds`, None while somebody else holds it."""
        check_text(name, holder)

        def work(connection: sqlite3.Connection) -> Lease | None:
            now = self._clock()
            rows = connection.execute("SELECT holder FROM leases WHERE name = ? AND until > ?", (name, now)).fetchall()
            if rows and rows[0][0] != holder:
                return None
            ((fence,),) = connection.execute("UPDATE fences SET last = last + 1 RETURNING last").fetchall()
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


class _Job:
    """Something that a thread does for a task, which may be gone when it is done."""

    __slots__ = ("error", "future", "result", "since", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future
        self.since = time.monotonic()
        self.result: Any = None
        self.error: Exception | None = None

    def settle(self) -> None:
        """Give the task its result; called on its event loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _tell(jobs: Sequence[_Job]) -> None:
    """Wake the tasks that wait for `jobs`, once for each event loop."""
    loops = {job.future.get_loop() for job in jobs}
    for loop in loops:
        mine = [job for job in jobs if job.future.get_loop() is loop]
        with contextlib.suppress(RuntimeError):  # it has been closed, and nobody waits
            loop.call_soon_threadsafe(_settle, mine)


def _settle(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.settle()


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# --- one function for each change


def _create(connection: sqlite3.Connection, record: Record, body: str, now: float) -> None:
    if record.parent:
        _check_record(connection, record.parent)
    try:
        connection.execute(
            "INSERT INTO records (kind, id, owner, parent, status, body, created_at, expires_at, version)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (record.kind, record.id, record.owner, record.parent, record.status, body, now, record.expires_at),
        )
    except sqlite3.IntegrityError as exc:
        raise ConflictError(f"there is such a {record.kind} already") from exc


def _update(connection: sqlite3.Connection, change: Update, body: str | None, now: float) -> None:
    _check_fence(connection, change.fence, now)
    states = None if change.expect_status is None else json.dumps(sorted(change.expect_status))
    version = change.expect_version
    changed = connection.execute(
        "UPDATE records SET version = version + 1, body = coalesce(?, body), status = coalesce(?, status),"
        " expires_at = coalesce(?, expires_at) WHERE kind = ? AND id = ?"
        " AND (? IS NULL OR version = ?) AND (? IS NULL OR status IN (SELECT value FROM json_each(?)))",
        (body, change.status, change.expires_at, change.kind, change.id, version, version, states, states),
    )
    if changed.rowcount != 1:
        raise ConflictError(f"the {change.kind} is not as expected")


def _delete(connection: sqlite3.Connection, change: Delete) -> bool:
    """Delete a record with what belongs to it; tell whether it was there."""
    rows = connection.execute(
        "WITH RECURSIVE doomed (id) AS (SELECT id FROM records WHERE kind = ? AND id = ? UNION"
        " SELECT records.id FROM doomed JOIN records ON records.parent = doomed.id AND records.parent <> '')"
        " SELECT id FROM doomed",
        (change.kind, change.id),
    ).fetchall()
    doomed = json.dumps([identity for (identity,) in rows])
    connection.execute("DELETE FROM events WHERE run IN (SELECT value FROM json_each(?))", (doomed,))
    connection.execute(
        "DELETE FROM records WHERE parent <> '' AND parent IN (SELECT value FROM json_each(?))", (doomed,)
    )
    connection.execute("DELETE FROM records WHERE kind = ? AND id = ?", (change.kind, change.id))
    return bool(rows)


def _append(connection: sqlite3.Connection, change: AppendEvents, piece: bytes, now: float) -> None:
    _check_fence(connection, change.fence, now)
    _check_record(connection, change.run)
    ((length,),) = connection.execute(
        "SELECT coalesce((SELECT first + count FROM events WHERE run = ? ORDER BY first DESC LIMIT 1), 0)",
        (change.run,),
    ).fetchall()
    if length != change.first:
        raise ConflictError("the log of the run is not as long as expected")
    if change.data:
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (change.run, length, len(change.data), piece))


def _check_record(connection: sqlite3.Connection, identity: str) -> None:
    if not connection.execute("SELECT 1 FROM records WHERE id = ? LIMIT 1", (identity,)).fetchall():
        raise ConflictError("what it belongs to is not there")


def _check_fence(connection: sqlite3.Connection, lease: Lease | None, now: float) -> None:
    if lease is None:
        return
    held = connection.execute(
        "SELECT 1 FROM leases WHERE name = ? AND fence = ? AND until > ?", (lease.name, lease.fence, now)
    ).fetchall()
    if not held:
        raise ConflictError("the lease was lost")


def _record(row: tuple[Any, ...]) -> Record:
    position, kind, identity, owner, parent, status, body, created_at, expires_at, version = row
    return Record(
        kind=kind, id=identity, owner=owner, parent=parent, status=status, body=load_body(body),
        created_at=created_at, expires_at=expires_at, version=version, position=position, size=len(body),
    )  # fmt: skip
