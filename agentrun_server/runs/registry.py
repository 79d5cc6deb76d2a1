"""The runs of this server that outlive a request: started, found, cancelled, and ended when nobody runs them any more.

Everything that must be looked after is a task of this object: the worker's lease, runs that others asked to cancel,
runs of dead workers, and what need not be kept any more. The storage is opened with the first use.
"""

import asyncio
import contextlib
import contextvars
import itertools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from agentrun_server.config import ServerConfig
from agentrun_server.errors import APIError, NotFoundError, ServiceUnavailableError, TooManyRequestsError
from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.background import Background, Room
from agentrun_server.runs.entry import CANCELLING, OPEN, Entry, Outcome
from agentrun_server.runs.journal import Journal, topic
from agentrun_server.runs.patience import SHORT, Patience, patiently
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.retention import Retention
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.runs.turns import Turns
from agentrun_server.runs.worker import Worker, worker_topic
from agentrun_server.storage.contracts import (
    Change,
    ConflictError,
    Lease,
    Record,
    SchemaVersionError,
    StorageError,
    StorageUnavailableError,
    Update,
)
from agentrun_server.storage.local_bus import LocalBus
from agentrun_server.storage.opening import Storage

__all__ = ["KindOfRun", "Revived", "Runs", "storage_lost", "worker_lost"]

T = TypeVar("T")

logger = get_logger("agentrun_server.runs")

_PAGE: Final = 500
_PAGE_BYTES: Final = 1024 * 1024
"""What one reader holds of a log at once."""
_LOOK_EVERY: Final = 1.0
"""Seconds after which readers and workers look by themselves."""
_LOOK_OFTEN: Final = 0.1
"""The same where no bus tells one process of another."""
_CANCEL_WAIT: Final = 5.0
"""Seconds in which a run that was cancelled is ended and that is written, before the answer is given."""
_MAX_ATTEMPTS: Final = 3
_LOOKS_FOR_OURS: Final = 2
"""How often a run is looked for again that may or may not have become ours."""


def worker_lost() -> APIError:
    """Return why a run failed whose worker died."""
    error = ServiceUnavailableError("The server that ran this was lost before it had finished.", code="worker_lost")
    return error.no_retry()


def storage_lost() -> APIError:
    """Return why a run failed that could not be written down."""
    error = ServiceUnavailableError("What the agent said could not be stored.", code="storage_unavailable")
    return error.no_retry()


class KindOfRun(Protocol):
    """What a protocol knows of the runs it stores."""

    def conclude(
        self, record: Record, events: Sequence[bytes], error: APIError | None
    ) -> tuple[Entry, list[bytes], Outcome]:
        """Return the last events of a run that nobody runs any more, failed or (without `error`) cancelled."""
        ...

    async def revive(self, record: Record, events: Sequence[bytes], *, attempt: int) -> "Revived | None":
        """Return what runs it again; None when that cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class Revived:
    """A run that goes on with another worker."""

    recording: Recording
    entry: Entry
    body: Mapping[str, Any]
    """What its record says from now on, besides its worker."""
    changes: Sequence[Change] = ()
    """What must be so too, or else it cannot go on."""


class Runs:
    """The runs of one server.

    Args:
        config: of the server.
        new_id: makes an id with the prefix it is given.
        sweeper: looks after each run.
        open_storage: opens what runs are kept in.
        is_there: tells whether anything can be in there before it is opened first.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        config: ServerConfig,
        new_id: Callable[[str], str],
        sweeper: Sweeper,
        open_storage: Callable[[], Awaitable[Storage]],
        *,
        is_there: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._new_id = new_id
        self._sweeper = sweeper
        self._open_storage = open_storage
        self._is_there = is_there
        self._clock = clock
        self._longest_wait = config.worker_lease if config.store_patience is None else config.store_patience
        self.kinds: Mapping[str, KindOfRun] = {}
        self.local: dict[str, Recording] = {}
        self.background = _background(config)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hearing: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[Storage] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._leaving = False
        """Runs that wait get no place here any more: others run them."""
        self.failing = False
        """The store could not be opened, or not be reached when the lease was last to be renewed."""
        self._worker: Worker
        self.turns: Turns

    # --- the storage

    async def storage(self) -> Storage:
        """Return the storage, opened when it is not.

        Raises:
            StorageError: it cannot be opened.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # test clients run each request in a loop of its own
            self._loop, self._opening = loop, None
            self._tasks, self.local, self.background = set(), {}, _background(self._config)
        if self._opening is None or (self._opening.done() and _failed(self._opening)):
            # Not in the context of who happens to be the first: what is done for all belongs to no request.
            self._opening = loop.create_task(self._open(), context=contextvars.Context())
        return await asyncio.shield(self._opening)

    def open_soon(self) -> None:
        """Open the storage if there is anything in it: what was left there must be ended, or run again."""
        if self._is_there():
            self._spawn(self._open_at_last())

    async def _open_at_last(self) -> None:
        while True:
            try:
                await self.storage()
            except StorageUnavailableError:
                if not self.failing:
                    logger.warning("the store cannot be opened now")
                self.failing = True
            except SchemaVersionError as exc:
                logger.error("the store cannot be opened", extra={"reason": str(exc)})
                self.failing = True
                return
            except Exception:
                logger.exception("the store cannot be opened")
                self.failing = True
                return
            else:
                return
            await asyncio.sleep(self._config.worker_lease / 6)

    async def delete(self, record: Record) -> None:
        """End the run of a record that is about to be deleted, so that it gives back what it holds."""
        await self.cancel(record)

    @property
    def is_open(self) -> bool:
        """Whether there is a storage now."""
        opening = self._opening
        return opening is not None and opening.done() and not _failed(opening)

    async def _open(self) -> Storage:
        storage = await self._open_storage()
        try:
            self._worker = Worker(storage.store, storage.leases, self._new_id, self._config.worker_lease)
            await self._join(storage)
        except BaseException:
            await storage.aclose()
            raise
        self._closing = self._leaving = False
        lease = self._config.worker_lease
        self._spawn(self._keep(lease / 3, lambda: self._renew(storage), vital=True))
        self._spawn(self._keep(lease / 6, lambda: self._bury_dead(storage)))
        self._spawn(self._keep(self._look_every(storage), lambda: self._look_for_cancelled(storage)))
        retention = Retention(storage.store, storage.leases, self._worker.id, max_bytes=self._config.store_max_bytes)
        self._spawn(retention.run())
        return storage

    async def _join(self, storage: Storage) -> None:
        await self._worker.join()
        self.turns = Turns(lambda: _same(storage), self._worker.id, look_every=self._look_every(storage))
        if self._hearing is not None:
            self._hearing.cancel()
        self._hearing = self._spawn(self._hear(storage, self._worker.id))

    @staticmethod
    def _look_every(storage: Storage) -> float:
        return _LOOK_OFTEN if isinstance(storage.bus, LocalBus) else _LOOK_EVERY

    async def aclose(self) -> None:
        """Let go of everything: others take what is left at once."""
        self._closing = True
        opening, self._opening = self._opening, None
        if opening is None or self._loop is not asyncio.get_running_loop():
            return
        opening.cancel()
        await asyncio.wait([opening])
        for recording in list(self.local.values()):
            recording.stop(StopReason.SHUTDOWN)
        running = [recording.task for recording in self.local.values() if recording.task is not None]
        if running:
            await asyncio.wait(running, timeout=self._config.cancel_grace)
        while tasks := self._tasks:
            self._tasks = set()  # a run that is cut off here writes its end in a task of its own
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not opening.cancelled() and opening.exception() is None:
            storage = opening.result()
            with contextlib.suppress(StorageError):
                await self.turns.retry()
            await self._worker.leave()
            await storage.aclose()

    def _spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- starting

    def journal(self, storage: Storage, entry: Entry, recording: Recording, **options: Any) -> Journal:
        """Return a journal for `recording`, which gets it."""
        worker = self._worker
        identity = worker.id
        recording.journal = Journal(
            storage.store,
            storage.bus,
            entry,
            worker=identity,
            # A new worker is another one, and one that has left is none: what this run writes is refused then.
            lease=lambda: (worker.lease if worker.id == identity else None) or Lease("", identity, -1),
            lost=lambda reason: self._lost(recording, reason),
            patience=lambda: self._patience(recording),
            spawn=self._spawn,
            **options,
        )
        return recording.journal

    def _patience(self, recording: Recording) -> Patience:
        if recording.journal.entry.begun:
            return self.patience()
        return self.patience(time.monotonic() - recording.run_started if recording.run_started else 0.0)

    def patience(self, worked: float = math.inf) -> Patience:
        """Begin to wait for a store that is away: as long as a run may still be ours when the store is back.

        Args:
            worked: seconds that an agent has worked for what is to be stored, when nothing of it is yet. It is not
                waited for longer than that, so that new requests are refused soon while the store is away.
        """
        return Patience(max(min(worked, self._longest_wait), SHORT))

    def start(self, recording: Recording) -> None:
        """Run `recording`, in a task of this object."""
        self.local[recording.id] = recording
        self._sweeper.add(recording)
        recording.task = task = self._spawn(recording.execute())
        task.add_done_callback(lambda _: self._ended(recording))

    def _ended(self, recording: Recording) -> None:
        if self.local.get(recording.id) is recording:
            del self.local[recording.id]
        if recording.room is not None:
            recording.room.give_back()
        self._sweeper.discard(recording)
        if recording.passes_on:
            self._leaving = True
            if not self._closing:  # else all that is left is found at once
                self._spawn(self._pass_on(recording.journal.entry))

    async def _pass_on(self, entry: Entry) -> None:
        """Leave a run that waits to others: while this server drains they would take this worker for alive."""
        storage = await self.storage()
        heir = self._worker.heir()
        with contextlib.suppress(StorageError):  # it has been cancelled; or it is found when this worker has left
            await storage.store.commit([heir, *entry.pass_on(heir.record.id, self._worker.lease)])

    def _lost(self, recording: Recording, reason: StopReason) -> None:
        recording.stop(reason)
        if not self._closing:
            self._spawn(self._look_after(recording.journal.entry.kind, recording.id))

    async def _look_after(self, kind: str, run: str) -> None:
        """Find out why a run of ours cannot be written any more, and end it if that is ours to do."""
        storage = await self.storage()
        for looked, pause in enumerate(itertools.chain((0.0, 1.0, 5.0), itertools.repeat(30.0))):
            await asyncio.sleep(pause)
            local = self.local.get(run)
            if local is not None and not local.journal.closed:
                return  # it goes on here
            with contextlib.suppress(StorageError):
                record = await storage.store.get(kind, run, None)
                if record is None or record.body.get("worker") != self._worker.id:
                    if looked < _LOOKS_FOR_OURS:
                        continue  # what was to make it ours may still be on its way
                    return
                if record.status not in OPEN or await self._end(storage, record, self._worker.lease, storage_lost()):
                    return

    # --- reading and cancelling

    async def follow(self, run: Record | Entry, after: int) -> AsyncGenerator[list[bytes], None]:
        """Yield the events of a run, of any worker's, with numbers greater than `after`, until it has ended.

        Raises:
            StorageError: the store cannot be read, and was waited for; or it cannot be written, so that nobody takes a
                run which was lost here.
        """
        local = self.local.get(run.id)
        if local is not None:
            async for batch in local.journal.follow(after):
                after += len(batch)
                yield batch
            if local.journal.settled:
                return
            # Others go on with it, or end it.
        storage = await self.storage()
        store, patient_until = storage.store, time.monotonic() + self._longest_wait
        async with storage.bus.subscribe(topic(run.id)) as news:
            while True:
                # In this order: what is written before it ends is there when it has.
                current = await self._read(partial(store.get, run.kind, run.id, None))
                is_over = current is None or current.status not in OPEN
                worker = None if current is None else current.body.get("worker")
                del current  # megabytes, perhaps, which no slow reader need hold
                while events := await self._read(partial(store.events, run.id, after, _PAGE, max_bytes=_PAGE_BYTES)):
                    after = events[-1].number
                    yield [event.data for event in events]
                if is_over:
                    return
                is_lost = local is not None and worker == local.journal.worker
                if is_lost and time.monotonic() > patient_until:
                    raise StorageUnavailableError("nobody goes on with the run, or ends it")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every(storage)):
                        await anext(news)

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read from a store that may be away for as long as a run waits for it."""
        return await patiently(read, self.patience())

    async def reload(self, record: Record | Entry) -> Record:
        """Return the record of a run as it is now.

        Raises:
            NotFoundError: it has been deleted.
            StorageError: the store cannot be read now.
        """
        storage = await self.storage()
        current = await storage.store.get(record.kind, record.id, None)
        if current is None:
            raise NotFoundError("It has been deleted.", code="not_found")
        return current

    async def cancel(self, record: Record) -> Record:
        """End a run that is open; return its record as it is then.

        Raises:
            StorageError: the store cannot be read or written now.
        """
        storage = await self.storage()
        local = self.local.get(record.id)
        if local is not None:
            local.stop(StopReason.CANCELLED)
            with contextlib.suppress(TimeoutError):  # its agent stops; that it has ended is written when that can be
                async with asyncio.timeout(_CANCEL_WAIT):
                    await local.journal.wait_closed()
            record = await storage.store.get(record.kind, record.id, None) or record
        if record.status in OPEN:
            await self._cancel_elsewhere(storage, record)
        return await storage.store.get(record.kind, record.id, None) or record

    def stop_here(self, run: str, owner: str) -> None:
        """Cancel a run in the background that runs here and is its owner's, while nothing can be read: if it is one."""
        local = self.local.get(run)
        if local is not None and local.room is not None and local.journal.entry.owner == owner:
            local.stop(StopReason.CANCELLED)

    async def _cancel_elsewhere(self, storage: Storage, record: Record) -> None:
        with contextlib.suppress(ConflictError):  # it has ended, or somebody else was faster
            expect = OPEN - {CANCELLING}
            change = Update(kind=record.kind, id=record.id, status=CANCELLING, expect_status=expect)
            await storage.store.commit([change])
        async with storage.bus.subscribe(topic(record.id)) as news:
            await storage.bus.publish(worker_topic(str(record.body.get("worker"))), record.id.encode())
            deadline = asyncio.get_running_loop().time() + _CANCEL_WAIT
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                current = await storage.store.get(record.kind, record.id, None)
                if current is None or current.status not in OPEN:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, self._look_every(storage))):
                        await anext(news)

    async def _hear(self, storage: Storage, worker: str) -> None:
        """Cancel the runs that others name."""
        async with storage.bus.subscribe(worker_topic(worker)) as messages:
            async for message in messages:
                recording = self.local.get(message.decode("utf-8", "replace"))
                if recording is not None:
                    recording.stop(StopReason.CANCELLED)

    async def _look_for_cancelled(self, storage: Storage) -> None:
        """Cancel the runs that somebody wanted to be cancelled and could not tell us of."""
        if not any(recording.journal.entry.begun for recording in self.local.values()):
            return
        for kind in self.kinds:
            page = await storage.store.list(kind, None, statuses={CANCELLING}, limit=100)
            for record in page.records:
                recording = self.local.get(record.id)
                if recording is not None:
                    recording.stop(StopReason.CANCELLED)

    # --- the worker

    async def _keep(self, seconds: float, work: Callable[[], Awaitable[None]], *, vital: bool = False) -> None:
        """Do `work` again and again; while what is `vital` fails, the server is not ready."""
        failing = False
        while True:
            try:
                await work()
            except Exception as exc:  # the next time may go well, whatever it is
                if not failing:
                    unexpected = not isinstance(exc, StorageError)
                    logger.warning("the store cannot be asked now", exc_info=unexpected)
                failing = True
            else:
                failing = False
            if vital:
                self.failing = failing
            await asyncio.sleep(min(seconds, _LOOK_EVERY) if failing else seconds)

    async def _renew(self, storage: Storage) -> None:
        if not await self._worker.renew():
            logger.error("this worker was taken for dead: its runs are lost", extra={"runs": len(self.local)})
            # First nobody can write in the old name, then the new one begins.
            for recording in list(self.local.values()):
                recording.stop(StopReason.LEASE_LOST)
            await self._join(storage)
        await self.turns.retry()

    async def _bury_dead(self, storage: Storage) -> None:
        if self._leaving:
            return
        async with contextlib.aclosing(self._worker.dead()) as dead:
            async for worker, lease in dead:
                ended, left = await self._end_runs_of(storage, worker, lease)
                if ended or left:
                    logger.warning("a worker was lost", extra={"worker": worker, "runs": ended, "left": left})
                if not left:
                    await self._worker.bury(worker)

    async def _end_runs_of(self, storage: Storage, worker: str, lease: Lease) -> tuple[int, int]:
        """End the runs of a dead worker, or run them again; return how many, and how many are left for the next try."""
        ended = left = 0
        for kind in self.kinds:
            after: str | None = None
            while True:
                page = await storage.store.list(
                    kind, None, statuses=OPEN, fields={"worker": worker}, after=after, limit=100
                )
                for record in page.records:
                    done = await self._inherit(storage, record, lease)
                    ended, left = ended + done, left + (not done)
                if not page.has_more:
                    break
                after = page.records[-1].id
        return ended, left

    async def _inherit(self, storage: Storage, record: Record, lease: Lease) -> bool:
        """Run what a dead worker left again if that is allowed, else end it; tell whether that is written."""
        try:
            if self._may_go_on(record):
                try:
                    room = self.background.take(record.owner, int(record.body.get("size", record.size)))
                except TooManyRequestsError:
                    return False  # it waits where it is, for this process or another
                if await self._adopt(storage, record, lease, room):
                    return True
            return await self._end(storage, record, lease, worker_lost())
        except StorageError:
            raise
        except Exception:  # of this run alone: others must not wait for it
            logger.exception("a run of a lost worker cannot be ended", extra={"run_id": record.id})
            return False

    def _may_go_on(self, record: Record) -> bool:
        """Tell whether what a dead worker left may be run again."""
        idempotent = not {"*", record.body.get("model")}.isdisjoint(self._config.idempotent_models)
        if record.status != RunStatus.QUEUED and not (
            idempotent and record.status != CANCELLING and record.body.get("background")
        ):
            return False
        if _attempt(record) > _MAX_ATTEMPTS:
            logger.warning("a run was lost too often", extra={"run_id": record.id})
            return False
        return True

    async def _adopt(self, storage: Storage, record: Record, lease: Lease, room: Room) -> bool:
        """Run what a dead worker left in `room`, if that can be; tell whether it goes on, here or elsewhere."""
        try:
            return await self._take_up(storage, record, lease, room)
        finally:
            local = self.local.get(record.id)
            if local is None or local.room is not room:
                room.give_back()

    async def _take_up(self, storage: Storage, record: Record, lease: Lease, room: Room) -> bool:
        attempt = _attempt(record)
        events = await self._events(storage, record.id)
        try:
            revived = await self.kinds[record.kind].revive(record, events, attempt=attempt)
        except APIError:
            revived = None  # what it was asked is not allowed any more
        if revived is None:
            return False
        worker = self._worker.id
        change = Update(
            kind=record.kind,
            id=record.id,
            body={**revived.body, "worker": worker},
            status=RunStatus.QUEUED.value,
            expect_version=record.version,
            fence=lease,
        )
        try:
            await storage.store.commit([change, *revived.changes])
        except ConflictError:
            return False
        except StorageUnavailableError:  # it may be ours now, and nobody runs it
            self._spawn(self._look_after(record.kind, record.id))
            raise
        if worker == self._worker.id:
            logger.info("a run of a lost worker goes on here", extra={"run_id": record.id, "attempt": attempt})
            self.journal(storage, revived.entry, revived.recording, written=len(events))
            revived.recording.room = room
            self.start(revived.recording)
        return True

    async def _end(self, storage: Storage, record: Record, lease: Lease | None, error: APIError) -> bool:
        """Write the end of a run that nobody runs; tell whether it is written."""
        events = await self._events(storage, record.id)
        cancelled = record.status == CANCELLING
        entry, written, outcome = self.kinds[record.kind].conclude(record, events, None if cancelled else error)
        journal = Journal(
            storage.store,
            storage.bus,
            entry,
            worker=self._worker.id,
            lease=lambda: lease,
            lost=lambda _: None,
            written=len(events),
            keep_events=bool(events),
            spawn=self._spawn,
        )
        journal.finish(written, outcome)
        await journal.wait_closed()
        if journal.settled:
            facts = {"run_id": record.id, "run": outcome.status}
            logger.info("run ended", extra=facts if cancelled else {**facts, "error": error.code})
        return journal.settled

    async def _events(self, storage: Storage, run: str) -> list[bytes]:
        events: list[bytes] = []
        while page := await storage.store.events(run, len(events) - 1, _PAGE):
            events += [event.data for event in page]
        return events


def _background(config: ServerConfig) -> Background:
    return Background(
        config.max_background_runs,
        max_runs_per_owner=config.max_background_runs_per_owner,
        max_bytes=config.max_background_bytes,
    )


def _attempt(record: Record) -> int:
    """Return which attempt it would be to run it now: one that waits has not been tried yet."""
    return int(record.body.get("attempt", 1)) + (record.status != RunStatus.QUEUED)


async def _same(storage: Storage) -> Storage:
    return storage


def _failed(task: "asyncio.Task[Storage]") -> bool:
    return task.cancelled() or task.exception() is not None
