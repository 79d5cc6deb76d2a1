"""Doubles for tests of the engine: a store that fails as planned, and a run that does as it is told."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from agentrun_server.core.usage import Usage
from agentrun_server.errors import APIError
from agentrun_server.runs.entry import Outcome
from agentrun_server.runs.pump import Outlet
from agentrun_server.runs.run import RunStatus
from agentrun_server.storage.contracts import Change, Event, Record, StorageUnavailableError, Store

__all__ = ["Counter", "PlannedStore", "Said"]

Step = Literal["written", "away", "unsure"]


class Counter:
    """Makes ids that tell in which order they were made."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, prefix: str = "") -> str:
        self._count += 1
        return f"{prefix}{self._count}"


class PlannedStore:
    """A store whose commits go as planned; those behind the plan are written.

    ``away``: nothing is written, and it fails. ``unsure``: it is written, and fails. While `gate` is closed, a commit
    waits before it is made.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.plan: deque[Step] = deque()
        self.commits: list[Sequence[Change]] = []
        """All that were tried."""
        self.away = False
        """Nothing can be written or read."""
        self.refused = 0
        """How often that was tried."""
        self.reads_fail = 0
        """How many reads fail from now on."""
        self.before: Callable[[], Awaitable[None]] | None = None
        """What somebody else does before a commit fails."""
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, changes: Sequence[Change]) -> None:
        self.commits.append(list(changes))
        step = self.plan.popleft() if self.plan else "written"
        await self.gate.wait()
        if self.away:
            self.refused += 1
            step = "away"
        if step != "away":
            await self._store.commit(changes)
        if step != "written":
            if self.before is not None:
                await self.before()
            raise StorageUnavailableError("as planned")

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002 - the field's name
        self._read()
        return await self._store.get(kind, id, owner)

    async def events(
        self, run: str, after: int = -1, limit: int = 1000, *, max_bytes: int | None = None
    ) -> Sequence[Event]:
        self._read()
        return await self._store.events(run, after, limit, max_bytes=max_bytes)

    def _read(self) -> None:
        if self.away:
            self.refused += 1
            raise StorageUnavailableError("away")
        if self.reads_fail:
            self.reads_fail -= 1
            raise StorageUnavailableError("as planned")


class Said:
    """A `Script` whose events are words. `agent` writes them to the outlet; None: it says ``hello``."""

    def __init__(self, agent: Callable[[Outlet], Awaitable[None]] | None = None, *, is_open: bool = False) -> None:
        self._agent = agent
        self._outcome: Outcome | None = None
        self.is_open = is_open
        self.cost = Usage()

    async def perform(self, outlet: Outlet) -> list[bytes]:
        if self._agent is not None:
            await self._agent(outlet)
        else:
            await outlet.write("hello")
        return self._end(RunStatus.COMPLETED, "done")

    def open(self) -> list[bytes]:
        return [] if self.is_open else self.split("open")

    def proceed(self) -> list[bytes]:
        return self.split("proceeds")

    def fail(self, error: APIError) -> list[bytes]:
        return self._end(RunStatus.FAILED, f"failed:{error.code}")

    def cancel(self) -> list[bytes]:
        return self._end(RunStatus.CANCELLED, "cancelled")

    def outcome(self) -> Outcome:
        assert self._outcome is not None, "it has ended"
        return self._outcome

    def split(self, text: str) -> list[bytes]:
        self.is_open = self.is_open or bool(text)
        return [word.encode() for word in text.split()]

    def usage(self) -> Usage:
        return self.cost

    def _end(self, status: RunStatus, text: str) -> list[bytes]:
        if self._outcome is not None:
            return []
        self._outcome = Outcome(status, {"said": text})
        return self.split(text)
