"""What is deleted without being asked: records that have expired, and the oldest ones of a store that is too large.

One process does it for all that share a store: who holds the lease `retention`. It keeps it from one round to the next;
when it dies, another takes over two intervals later. Should two ever work at once, they delete no more than one would.

Everything is deleted in steps of `_STEP` records, so that what others write waits for one step at most.

A store that is too large loses answers alone (`KINDS`): conversations and sessions are of those who made them. Answers
that are still being made (`OPEN`) stay.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.entry import OPEN
from agentrun_server.storage.contracts import Lease, Leases, StorageError, Store

__all__ = ["KINDS", "Retention"]

logger = get_logger("agentrun_server.run")

KINDS: Final = ("response", "completion", "run")
_LEASE: Final = "retention"
_STEP: Final = 100


class Retention:
    """Deletes what need not be kept.

    Args:
        store: where it is.
        leases: who tells which process does it.
        holder: id of this process.
        max_bytes: size of the store, as `Store.size` tells it, above which the oldest answers go; None: no limit.
        interval: seconds from one round to the next.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        store: Store,
        leases: Leases,
        holder: str,
        *,
        max_bytes: int | None,
        interval: float = 60.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._leases = leases
        self._holder = holder
        self._max_bytes = max_bytes
        self._interval = interval
        self._sleep = sleep
        self._failing = False
        self._stuck = False

    async def run(self) -> None:
        """Do a round now and after each interval, until the task is cancelled."""
        while True:
            try:
                await self.delete()
            except Exception as exc:  # the next round may go well, whatever it is
                if not self._failing:
                    self._failing = True
                    unexpected = not isinstance(exc, StorageError)
                    error = type(exc).__name__
                    logger.warning("old records cannot be deleted", extra={"error": error}, exc_info=unexpected)
            else:
                self._failing = False
            await self._sleep(self._interval)

    async def delete(self) -> None:
        """Do one round, unless it is another process's to do."""
        lease = await self._leases.acquire(_LEASE, self._holder, 2 * self._interval)
        if lease is None:
            return
        expired = await self._repeat(lease, lambda: self._store.sweep(_STEP))
        oldest = await self._repeat(lease, self._shrink)
        if expired or oldest:
            logger.info("old records were deleted", extra={"expired": expired, "oldest": oldest})

    async def _repeat(self, lease: Lease, step: Callable[[], Awaitable[int]]) -> int:
        """Do `step` until there is nothing left to delete or `lease` is lost; return how many records were deleted."""
        total = 0
        while deleted := await step():
            total += deleted
            if not await self._leases.renew(lease, 2 * self._interval):
                break
        return total

    async def _shrink(self) -> int:
        if self._max_bytes is None or await self._store.size() <= self._max_bytes:
            self._stuck = False
            return 0
        deleted = await self._store.shrink(KINDS, keep_statuses=OPEN, limit=_STEP)
        if not deleted and not self._stuck:
            logger.warning(
                "the store is too large, and holds no answers that may be deleted", extra={"max_bytes": self._max_bytes}
            )
        self._stuck = not deleted
        return deleted
