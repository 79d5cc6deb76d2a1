"""The log of a run: events are numbered, written down together, and shown only then.

While one batch is being written the next gathers, so nothing waits for a timer and a store that is slow gets larger
batches. Readers in this process get what is new from memory, what is older from the store; readers elsewhere are woken
by the bus, and look by themselves now and then.

One task writes, so that nothing is written twice, and the end stands behind everything else. A commit of which nobody
knows whether it was made is looked up before it is tried again.

Bounds: what has been said and not been written down (`_MAX_PENDING`; the agent waits), what is kept in memory for
readers (`_MAX_TAIL`), and how often and how long a store that fails is tried again (`_PAUSES`, `_PATIENCE`).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.entry import Entry, Outcome
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
_PAUSES: Final = (0.05, 0.2, 1.0)
_PATIENCE: Final = 3.0
"""Seconds after which a store that fails is not tried again."""


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._bus = bus
        self._worker = worker
        self._lease = lease
        self._lost = lost
        self._clock = clock
        self.entry = entry
        self.keeps_events = keep_events
        self.written = written
        """Events that are in the store."""
        self.closed = False
        """Nothing more will be written."""
        self.settled = False
        """The end is in the store."""
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
        changes = [*entry.begin(self._worker, status, self._clock()), self._appended(kept)]
        try:
            await self._store.commit(changes)
        except ConflictError:
            raise
        except BaseException:  # a store that is away, or a cancellation: it may be there, and nobody runs it
            self._give_up(StopReason.STORAGE)
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
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while not self.closed and (self._pending or self._proceeds or self._outcome is not None):
                await self._write_batch()
        except Exception:
            logger.exception("a run cannot be written down", extra={"run": self.entry.id})
            self._give_up(StopReason.STORAGE)
        finally:
            self._writer = None

    async def _write_batch(self) -> None:
        batch = _Batch(self._pending, self._proceeds, self._outcome)
        self._pending, self._pending_bytes = [], 0
        try:
            await self._commit(batch)
        except StorageUnavailableError:
            logger.warning("a run cannot be written down now", extra={"run": self.entry.id})
            self._give_up(StopReason.STORAGE)
            return
        except ConflictError:
            self._give_up(StopReason.LEASE_LOST)
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

    async def _commit(self, batch: _Batch) -> None:
        """Write a batch, once: whether a commit that failed was made after all is looked up before the next try."""
        pauses, unsure = iter(_PAUSES), False
        patient_until = time.monotonic() + _PATIENCE
        while True:
            try:
                if not (unsure and await self._is_written(batch)):
                    await self._store.commit(self._changes(batch))
                break
            except StorageUnavailableError:
                pause = next(pauses, None)
                if pause is None or time.monotonic() > patient_until:
                    raise
                unsure = True
                await asyncio.sleep(pause)
            except ConflictError:
                if unsure and await self._is_written(batch):
                    break  # it was made after it had been looked up
                # What comes with the end may be in its way: a conversation that was deleted meanwhile.
                if batch.outcome is None or not self.entry.give_way():
                    raise
        self.entry.begun = True

    def _changes(self, batch: _Batch) -> list[Change]:
        now, entry, outcome = self._clock(), self.entry, batch.outcome
        appended = [self._appended(batch.events)] if batch.events else []
        # The record first, where it is made only now: the log belongs to it.
        if outcome is not None:
            return [*entry.end(outcome, self._lease(), now), *appended]
        if not entry.begun:
            return [*entry.begin(self._worker, RunStatus.IN_PROGRESS, now), *appended]
        return [*(entry.proceed(self._worker, self._lease()) if batch.proceeds else []), *appended]

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

    def _give_up(self, reason: StopReason) -> None:
        self._close()
        self._lost(reason)

    # --- reading

    async def follow(self, after: int = -1) -> AsyncGenerator[list[bytes], None]:
        """Yield events with numbers greater than `after`, several at a time, until nothing more will be written."""
        position = after + 1
        while True:
            first = self.written - len(self._tail)
            if position < first:
                events = await self._store.events(
                    self.entry.id, position - 1, min(_PAGE, first - position), max_bytes=_PAGE_BYTES
                )
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
