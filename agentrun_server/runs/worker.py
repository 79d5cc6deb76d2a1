"""A process among those that share a store: how the others know that it lives, and what becomes of the dead.

A worker is a record and a lease. Every write of its runs carries the lease, so that a worker that was taken for dead
cannot write any more. Whoever acquires the lease of another has thereby seen that it is dead, and is the only one who
may end its runs. One whose lease was lost goes on as a new worker.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final

from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.turns import WORKER_LEASE
from agentrun_server.storage.contracts import Create, Delete, Lease, Leases, Record, StorageError, Store

__all__ = ["Worker", "worker_topic"]

logger = get_logger("agentrun_server.runs")

_KIND: Final = "worker"


def worker_topic(worker: str) -> str:
    """Return the topic of the bus on which a worker is told which run to look at."""
    return f"worker:{worker}"


def _lease_name(worker: str) -> str:
    return WORKER_LEASE + worker


class Worker:
    """The identity of this process in a store.

    Args:
        store: where the record is.
        leases: where the lease is.
        new_id: makes an id with the prefix it is given.
        seconds: how long the lease holds when nothing is heard.
    """

    def __init__(self, store: Store, leases: Leases, new_id: Callable[[str], str], seconds: float) -> None:
        self._store = store
        self._leases = leases
        self._new_id = new_id
        self._seconds = seconds
        self.id = ""
        self.lease: Lease | None = None

    async def join(self) -> None:
        """Become a worker, with an id that nobody ever had.

        Raises:
            StorageError: that is not possible now.
        """
        identity = self._new_id("wrk_")
        # The lease first: a record without one is that of a dead worker.
        lease = await self._leases.acquire(_lease_name(identity), identity, self._seconds)
        await self._store.commit([Create(Record(kind=_KIND, id=identity, owner="", body={}))])
        self.id, self.lease = identity, lease

    async def renew(self) -> bool:
        """Tell that this process lives; False when it was taken for dead, and `join` makes it a new worker.

        Raises:
            StorageError: that is not possible now.
        """
        return self.lease is not None and await self._leases.renew(self.lease, self._seconds)

    async def leave(self) -> None:
        """Tell that this process is gone, so that others take what it leaves at once."""
        lease, self.lease = self.lease, None
        if lease is None:
            return
        with contextlib.suppress(StorageError):
            await self._leases.release(lease)

    def heir(self) -> Create:
        """Return what makes a worker that nobody is: others find it dead, and what it has is theirs at once."""
        return Create(Record(kind=_KIND, id=self._new_id("wrk_"), owner="", body={}))

    async def dead(self) -> AsyncGenerator[tuple[str, Lease], None]:
        """Yield the workers that are dead, each with its lease, which is given back afterwards.

        Raises:
            StorageError: the store cannot be asked now.
        """
        after: str | None = None
        while True:
            try:
                page = await self._store.list(_KIND, None, after=after, limit=100)
            except KeyError:
                return  # the last one seen was buried by somebody else: the rest is for the next look
            for record in page.records:
                if record.id == self.id:
                    continue
                lease = await self._leases.acquire(_lease_name(record.id), self.id, self._seconds)
                if lease is not None:
                    try:
                        yield record.id, lease
                    finally:
                        await self._leases.release(lease)
            if not page.has_more:
                return
            after = page.records[-1].id

    async def bury(self, worker: str) -> None:
        """Forget a dead worker, which has no run any more."""
        await self._store.commit([Delete(_KIND, worker)])
