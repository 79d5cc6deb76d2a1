"""One turn at a time: which run has a conversation or a session now.

The turn is the ``status`` of the record: empty while it is free, else its holder, ``<worker>/<run>``. It is taken by a
compare-and-set (`taken`), and given back the same way (`released`), alone or in one commit with what the run has to
write. A run that lost its turn writes nothing: the condition does not hold any more.

Who finds the turn taken waits, woken by the bus, and looks again every `look_every` seconds. In one process those who
wait for the same turn get it in the order in which they came.

A worker that died gives nothing back. Its turn passes on to the next who wants it and can acquire the worker's lease
for a moment, which nobody can while the worker lives. What cannot be given back because the store is away is given back
later, by `Turns.retry`. Bounds: who waits for one turn in one process (`_MAX_WAITING`), and for how long (`wait`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from agentrun_server.errors import APIError
from agentrun_server.observability.logs import get_logger
from agentrun_server.storage.contracts import ConflictError, Create, Record, StorageError, Update
from agentrun_server.storage.opening import Storage

__all__ = ["WORKER_LEASE", "ConversationLockedError", "OpenStorage", "Turns", "released", "taken", "topic"]

logger = get_logger("agentrun_server.run")

OpenStorage: TypeAlias = Callable[[], Awaitable[Storage]]
"""Opens the storage when it is called first; returns the same each time."""

WORKER_LEASE: Final = "worker:"
"""A worker holds the lease of this name and its id while it lives."""

_LOOK_EVERY: Final = 1.0
_MAX_WAITING: Final = 16
_PROBE_EVERY: Final = 1.0
"""Seconds between two looks whether the holder's worker lives: each is a write."""
_PROBE_SECONDS: Final = 5.0
"""How long the lease of a dead worker would be held, did its release fail."""


class ConversationLockedError(APIError):
    """Another run has the turn of this conversation or session."""

    status_code = 409
    type = "invalid_request_error"
    default_code = "conversation_locked"

    def __init__(self) -> None:
        super().__init__("Another turn of this conversation is still running. Please try again when it has ended.")
        self.retry_after(1.0)


def taken(kind: str, id: str, holder: str) -> Update:  # noqa: A002 - the field's name
    """Return the change by which `holder` takes the turn of a record, if it is free."""
    return Update(kind=kind, id=id, status=holder, expect_status={""})


def released(kind: str, id: str, holder: str) -> Update:  # noqa: A002
    """Return the change by which `holder` gives the turn of a record back, if it has it still.

    When the commit is made, call `Turns.wake`; when it is not known whether it was, `Turns.release_later`.
    """
    return Update(kind=kind, id=id, status="", expect_status={holder})


def topic(id: str) -> str:  # noqa: A002
    """Return what those listen to who wait for the turn of a record."""
    return f"turn:{id}"


class Turns:
    """Takes and releases turns for the runs of one worker.

    Args:
        storage: where the records are.
        worker: id of this process, without a slash; it holds the lease ``worker:<id>`` while it lives.
        look_every: seconds after which who waits looks by itself.
    """

    def __init__(self, storage: OpenStorage, worker: str, *, look_every: float = _LOOK_EVERY) -> None:
        if not worker or "/" in worker:
            raise ValueError("the id of a worker is not empty and has no slash")
        self._storage = storage
        self._worker = worker
        self._look_every = look_every
        self._queues: dict[tuple[str, str], _Queue] = {}
        self._unreleased: set[tuple[str, str, str]] = set()
        """Kind, id and holder of turns that may be held still, and by nobody who knows it."""

    def holder(self, run: str) -> str:
        """Return the status of a record whose turn `run` has."""
        return f"{self._worker}/{run}"

    async def take(
        self,
        kind: str,
        id: str,  # noqa: A002 - the field's name
        run: str,
        *,
        wait: float,
        absent: Record | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Take the turn of a record for `run`, as soon as it is free.

        Args:
            kind: of the record.
            id: of the record.
            run: id of the run.
            wait: seconds to wait for it; 0 to be refused at once.
            absent: the record as it is made when there is none.
            expires_at: when the record may be deleted from now on; None: as before.

        Raises:
            ConversationLockedError: it did not become free in time, or too many wait for it.
            KeyError: there is no such record, and `absent` was not given.
            StorageError: the store cannot be read or written.
        """
        key = (kind, id)
        queue = self._queues.setdefault(key, _Queue())
        if queue.waiting >= _MAX_WAITING:
            raise ConversationLockedError
        attempt = _Attempt(kind, id, self.holder(run), absent, expires_at)
        deadline = asyncio.get_running_loop().time() + wait
        queue.waiting += 1
        try:
            try:
                async with asyncio.timeout(wait):
                    await queue.head.acquire()
            except TimeoutError:
                raise ConversationLockedError from None
            try:
                await self._take(attempt, deadline)
            finally:
                queue.head.release()
        finally:
            queue.waiting -= 1
            if not queue.waiting:
                del self._queues[key]

    async def _take(self, attempt: "_Attempt", deadline: float) -> None:
        storage = await self._storage()
        if await self._try(storage, attempt):
            return
        clock = asyncio.get_running_loop().time
        if clock() >= deadline:
            raise ConversationLockedError
        async with storage.bus.subscribe(topic(attempt.id)) as messages:
            # It may have become free before this was listening.
            while not await self._try(storage, attempt):
                left = deadline - clock()
                if left <= 0:
                    raise ConversationLockedError
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, self._look_every)):
                        await anext(messages)

    async def _try(self, storage: Storage, attempt: "_Attempt") -> bool:
        """Take the turn if it is free; return whether it is the holder's now."""
        kind, record_id, holder = attempt.kind, attempt.id, attempt.holder
        record = await storage.store.get(kind, record_id, None)
        change: Create | Update
        if record is None:
            if attempt.absent is None:
                raise KeyError(record_id)
            change = Create(replace(attempt.absent, status=holder))
        elif record.status == holder or await self._is_free(storage, record, attempt):
            change = Update(
                kind=kind, id=record_id, status=holder, expires_at=attempt.expires_at, expect_status={record.status}
            )
        else:
            return False
        try:
            await storage.store.commit([change])
        except ConflictError:
            return False  # somebody was faster
        except BaseException:  # a cancellation, or a store that is away: it may have been written
            self._unreleased.add((kind, record_id, holder))
            raise
        # Of these nobody has to be rid any more.
        self._unreleased -= {(kind, record_id, holder), (kind, record_id, record.status if record else "")}
        return True

    async def _is_free(self, storage: Storage, record: Record, attempt: "_Attempt") -> bool:
        if not record.status or (record.kind, record.id, record.status) in self._unreleased:
            return True
        worker = record.status.partition("/")[0]
        now = asyncio.get_running_loop().time()
        if worker == self._worker or now < attempt.probe_at:
            return False
        attempt.probe_at = now + _PROBE_EVERY
        # Not in the name of this worker: who cleans up behind a dead one may hold its lease in that.
        lease = await storage.leases.acquire(WORKER_LEASE + worker, f"turn:{self._worker}", _PROBE_SECONDS)
        if lease is None:
            return False
        await storage.leases.release(lease)
        logger.warning("turn of a dead worker passes on", extra={"record": record.id, "holder": record.status})
        return True

    async def release(self, kind: str, id: str, run: str) -> None:  # noqa: A002
        """Give the turn of a record back, if `run` has it still; when the store is away, later."""
        holder = self.holder(run)
        try:
            await (await self._storage()).store.commit([released(kind, id, holder)])
        except ConflictError:
            return  # it was passed on, or the record is gone
        except StorageError:
            self.release_later(kind, id, run)
            logger.warning("a turn cannot be given back now", extra={"record": id, "holder": holder})
            return
        except BaseException:  # a cancellation: it may have been written
            self.release_later(kind, id, run)
            raise
        await self.wake(id)

    def release_later(self, kind: str, id: str, run: str) -> None:  # noqa: A002
        """Have `retry` give back the turn that `run` may have still. In this process it counts as free."""
        self._unreleased.add((kind, id, self.holder(run)))

    async def wake(self, id: str) -> None:  # noqa: A002
        """Tell those who wait for the turn of a record that it is free."""
        await (await self._storage()).bus.publish(topic(id))

    async def retry(self) -> None:
        """Give back what could not be given back before. For the worker's heartbeat, and for its end."""
        for kind, record_id, holder in list(self._unreleased):
            self._unreleased.discard((kind, record_id, holder))
            await self.release(kind, record_id, holder.partition("/")[2])

    async def release_all_of(self, worker: str, kind: str, runs: Collection[str]) -> int:
        """Release the turns of records of `kind` that `runs` of a dead `worker` have; return how many there were.

        For whoever ends those runs, so that nobody has to wait for them. A turn that is not released so passes on when
        somebody wants it.
        """
        storage = await self._storage()
        holders = {f"{worker}/{run}" for run in runs}
        if not holders:
            return 0
        count = 0
        page = await storage.store.list(kind, None, statuses=holders, limit=len(holders))
        for record in page.records:
            with suppress(ConflictError):
                await storage.store.commit([released(kind, record.id, record.status)])
                await storage.bus.publish(topic(record.id))
                count += 1
        return count


class _Queue:
    """Those of this process who want the turn of one record. The first looks, the others wait behind it."""

    __slots__ = ("head", "waiting")

    def __init__(self) -> None:
        self.head = asyncio.Lock()
        self.waiting = 0


@dataclass(slots=True)
class _Attempt:
    """What somebody wants: see `Turns.take`."""

    kind: str
    id: str
    holder: str
    absent: Record | None
    expires_at: float | None
    probe_at: float = 0.0
    """When the holder's worker is looked at again."""
