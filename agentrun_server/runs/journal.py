"""The log of a run: events are numbered, written down together, and shown only then.

While one batch is being written the next gathers, so nothing waits for a timer and a store that is slow gets larger
batches. Readers in this process get what is new from memory, what is older from the store; readers elsewhere are woken
by the bus, and look by themselves now and then.

One task writes, so that nothing is written twice, and the end stands behind everything else. A commit of which nobody
knows whether it was made is looked up before it is tried again: the log has what is ours at the place where it belongs,
or it has not.

A store that is away is waited for, and what is said meanwhile gathers. Whether the run is still ours when it is back,
the fence of the next commit tells.

Bounds: what has been said and not been written down (`_MAX_PENDING`; the agent waits), what is kept in memory for
readers (`_MAX_TAIL`), and how long a store that is away is waited for (`agentrun_server.runs.patience`).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.entry import Entry, Outcome
from agentrun_server.runs.patience import SHORT, Patience, patiently
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.storage.contracts import (
    AppendEvents,
    Bus,
    Change,
    ConflictError,
    Lease,
    StorageUnavailableError,
    Store,
)

__all__ = ["Journal", "topic"]

logger = get_logger("agentrun_server.runs")

_MAX_PENDING: Final = 1024 * 1024
_MAX_TAIL: Final = 256 * 1024
_PAGE: Final = 500
_PAGE_BYTES: Final = 1024 * 1024


def topic(run: str) -> str:
    """Return the topic of the bus on which news of a run is told."""
    return f"run:{run}"


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is written together."""

    events: Sequence[bytes]
    proceeds: bool
    """A run that was queued runs now."""
    outcome: Outcome | None


class Journal:
    """Writes one run down. `lost` is called when that is not possible any more, with the reason to stop.

    Args:
        store: where to.
        bus: tells readers in other processes.
        entry: the run's record.
        worker: whose run it is.
        lease: returns the lease that a write must hold.
        lost: see above.
        written: events that are in the log already, of an attempt before this one.
        keep_events: False: only the record is written, and `follow` shows nothing.
        patience: begins a wait for a store that is away.
        spawn: starts the task that writes.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        entry: Entry,
        *,
        worker: str,
        lease: Callable[[], Lease | None],
        lost: Callable[[StopReason], None],
        written: int = 0,
        keep_events: bool = True,
        patience: Callable[[], Patience] = lambda: Patience(SHORT),
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"] = asyncio.create_task,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._bus = bus
        self._lease = lease
        self._lost = lost
        self._patience = patience
        self._spawn = spawn
        self._clock = clock
        self.worker = worker
        self.entry = entry
        self.keeps_events = keep_events
        self.written = written
        """Events that are in the store."""
        self.closed = False
        """Nothing more will be written."""
        self.settled = False
        """The end is in the store."""
        self.given_up: StopReason | None = None
        """Why nothing more can be written; None: it could be."""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._proceeds = False
        self._outcome: Outcome | None = None
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    # --- writing

    async def begin(self, status: RunStatus, events: Sequence[bytes] = ()) -> None:
        """Write the record now, with its first events.

        Raises:
            ConflictError: something it is written with is not as expected, or there is such a record.
            StorageUnavailableError: it may have been written or not.
        """
        entry, kept = self.entry, events if self.keeps_events else ()
        # The log comes with its fence, even when there is nothing to append: who was taken for dead begins nothing.
        changes = [*entry.begin(self.worker, status, self._clock()), self._appended(kept)]
        try:
            await self._store.commit(changes)
        except ConflictError:
            raise
        except BaseException:  # a store that is away, or a cancellation: it may be there, and nobody runs it
            self.give_up(StopReason.STORAGE)
            raise
        entry.begun = True
        self._show(kept)

    async def proceed(self, events: Sequence[bytes]) -> bool:
        """Write that a run which was queued runs now; False when that is not so any more."""
        self._proceeds = True
        self.append(events)
        self._write_soon()
        while self._proceeds and not self.closed:
            await self._news.wait()
        return not self.closed

    def append(self, events: Sequence[bytes]) -> None:
        """Add events; they are written as soon as possible."""
        if self.closed or self._outcome is not None or not self.keeps_events or not events:
            return
        self._pending += events
        self._pending_bytes += sum(map(len, events))
        self._write_soon()

    def finish(self, events: Sequence[bytes], outcome: Outcome) -> None:
        """Add the last events, and how the run ended. The first end counts."""
        if self.closed or self._outcome is not None:
            return
        self.append(events)
        self._outcome = outcome
        self._write_soon()

    def leave(self) -> None:
        """Write nothing more: the run has no record yet, or is somebody else's."""
        self._pending.clear()
        self._close()

    async def room(self) -> None:
        """Wait until there is room for more."""
        while self._pending_bytes > _MAX_PENDING and not self.closed:
            await self._news.wait()

    async def wait_closed(self) -> None:
        """Wait until nothing more will be written."""
        while not self.closed:
            await self._news.wait()

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = self._spawn(self._write())

    async def _write(self) -> None:
        try:
            while not self.closed and (self._pending or self._proceeds or self._outcome is not None):
                await self._write_batch()
        except Exception:
            logger.exception("a run cannot be written down", extra={"run_id": self.entry.id})
            self.give_up(StopReason.STORAGE)
        except asyncio.CancelledError:
            self._close()  # the server ends
            raise
        finally:
            self._writer = None

    async def _write_batch(self) -> None:
        batch = _Batch(self._pending, self._proceeds, self._outcome)
        self._pending, self._pending_bytes = [], 0
        try:
            if not await self._commit(batch):
                return
        except StorageUnavailableError:
            logger.warning("a run cannot be written down now", extra={"run_id": self.entry.id})
            self.give_up(StopReason.STORAGE)
            return
        except ConflictError:
            self.give_up(StopReason.LEASE_LOST)
            return
        if batch.proceeds:
            self._proceeds = False
        self._show(batch.events)
        if batch.outcome is not None:
            self.settled = True
            self._close()
            for other in self.entry.wakes:
                await self._bus.publish(other)
        await self._bus.publish(topic(self.entry.id))

    async def _commit(self, batch: _Batch) -> bool:
        """Write a batch, once; False when nothing is to be written any more.

        Raises:
            ConflictError: the run is not ours any more, or has ended.
            StorageUnavailableError: the store was away for too long.
        """
        patience, unsure = self._patience(), False
        while True:
            try:
                if not (unsure and await self._is_written(batch)):
                    await self._make(batch, unsure=unsure)
                break
            except StorageUnavailableError:
                unsure = True
                if not await self._wait(patience):
                    raise
                if self.closed:
                    return False
        self.entry.begun = True
        return True

    async def _make(self, batch: _Batch, *, unsure: bool) -> None:
        """Commit a batch; `unsure`: it may be refused because it is there already."""
        while True:
            try:
                await self._store.commit(self._changes(batch))
            except ConflictError:
                if unsure and await self._is_written(batch):
                    return  # it was made since it was looked up
                # What comes with the end may be in its way: a conversation that was deleted meanwhile.
                if batch.outcome is None or not self.entry.give_way():
                    raise
            else:
                return

    async def _wait(self, patience: Patience) -> bool:
        """Wait before the next try, or until nothing is to be written any more; False when there is no next try."""
        pause = patience.pause()
        if pause is None:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self.wait_closed()
        return True

    def _changes(self, batch: _Batch) -> list[Change]:
        now, entry, outcome = self._clock(), self.entry, batch.outcome
        appended = [self._appended(batch.events)] if batch.events else []
        # The record first, where it is made only now: the log belongs to it.
        if outcome is not None:
            return [*entry.end(outcome, self._lease(), now), *appended]
        if not entry.begun:
            return [*entry.begin(self.worker, RunStatus.IN_PROGRESS, now), *appended]
        return [*(entry.proceed(self.worker, self._lease()) if batch.proceeds else []), *appended]

    async def _is_written(self, batch: _Batch) -> bool:
        """Tell whether what stands in the store is this batch: somebody else may have ended the run instead."""
        if batch.outcome is not None or batch.proceeds:
            status = RunStatus.IN_PROGRESS if batch.outcome is None else batch.outcome.status
            record = await self._store.get(self.entry.kind, self.entry.id, None)
            if record is None or record.status != status:
                return False
        events = await self._store.events(self.entry.id, self.written - 1, len(batch.events)) if batch.events else []
        return [event.data for event in events] == list(batch.events)

    def _appended(self, batch: Sequence[bytes]) -> AppendEvents:
        return AppendEvents(run=self.entry.id, first=self.written, data=batch, fence=self._lease())

    def _show(self, batch: Sequence[bytes]) -> None:
        self.written += len(batch)
        self._tail += batch
        self._tail_bytes += sum(map(len, batch))
        while self._tail_bytes > _MAX_TAIL:
            self._tail_bytes -= len(self._tail.popleft())
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _close(self) -> None:
        self.closed = True
        self._tell()

    def give_up(self, reason: StopReason) -> None:
        """Write nothing more, because that is not possible."""
        self.given_up = reason
        self._close()
        self._lost(reason)

    # --- reading

    async def follow(self, after: int = -1) -> AsyncGenerator[list[bytes], None]:
        """Yield events with numbers greater than `after`, several at a time, until nothing more will be written."""
        position = after + 1
        while True:
            first = self.written - len(self._tail)
            if position < first:
                read = partial(
                    self._store.events, self.entry.id, position - 1, min(_PAGE, first - position), max_bytes=_PAGE_BYTES
                )
                events = await patiently(read, self._patience())
                batch = [event.data for event in events]
            else:
                batch = list(islice(self._tail, position - first, None))
            if batch:
                position += len(batch)
                yield batch
            elif self.closed or position < first:
                return  # or it was deleted meanwhile
            else:
                await self._news.wait()
