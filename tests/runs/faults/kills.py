"""Kills of a server that is in use, again and again, and what its customers find afterwards."""

import asyncio
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.runs.faults.clients import Place, ask, wait_until
from tests.runs.faults.customers import Customers, Told, check_conversation, check_key, check_told
from tests.runs.faults.server import Moment
from tests.storage.faults import damage

__all__ = ["GRACE", "Kills"]

GRACE = 15.0
"""Seconds after the lease of a dead worker in which its runs must have ended."""
_LONGEST_LIFE = 1.2
"""Seconds for which a server is used at most before it is killed at random."""
_HIT = 20.0
"""Seconds within which a fail point is reached."""
_FIRST = {Moment.PROCEED: "left running", Moment.APPEND: "streamed", Moment.TURN: "turn"}
"""What customers do first, so that a fail point is reached."""
_INHERITING = (Moment.ADOPT, Moment.BURY)
"""What is only done where another has died."""


@dataclass
class Kills:
    """Kills servers of one place, and checks what was told before."""

    place: Place
    seed: int = 0
    lease: float = 1.0
    kills: int = 0
    acknowledged: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list[str])
    starts: list[float] = field(default_factory=list[float])
    """Seconds from the start of each process after a kill to its first answer from the store."""
    ends: list[float] = field(default_factory=list[float])
    """Seconds from each kill until the last run of that life was seen to have ended."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lives: list[Customers] = []

    async def at_random(self) -> None:
        """Kill a server some time after its customers have come, and look."""
        await self._live("")
        await self._look()

    async def at(self, point: str) -> None:
        """Kill a server at a fail point, and look."""
        if point.split(":")[1] in _INHERITING:
            await self._live("", bequeath=True)
        await self._live(point)
        await self._look()

    async def _live(self, point: str, *, bequeath: bool = False) -> None:
        customers = Customers(self._random.getrandbits(32), f"{self.kills}-")
        self._lives.append(customers)
        moment = point.split(":")[1] if point else ""
        settings: dict[str, Any] = {"failpoint": f"{point}:kill"} if point else {}
        async with self.place.serve(worker_lease=self.lease, **settings) as replica:
            first = "left to others" if bequeath else _FIRST.get(Moment(moment), "") if moment else "left running"
            using = asyncio.create_task(customers.use(replica.port, first=first))
            if point:
                died = await replica.died(_HIT)
                assert died, f"{point} was not reached"
            elif bequeath:
                await wait_until(customers.have_left_enough, _HIT, "something is left to others")
            else:
                await asyncio.sleep(self._random.uniform(0.02, _LONGEST_LIFE))
            self._died = await replica.kill()
            await using
        self.kills += 1
        self.acknowledged += customers.acknowledged
        self.runs += len(customers.told)

    async def _look(self) -> None:
        """Start a server once more, and check what was told."""
        if not self.place.url:
            self._check_file()
        lives, self._lives = self._lives, []
        began = time.monotonic()
        # What was queued runs now, and must come to its end.
        async with self.place.serve(worker_lease=self.lease, most=30) as replica:
            await ask(replica.port, "GET", "/v1/responses/resp_unknown")
            self.starts.append(time.monotonic() - began)
            for life in lives:
                checks = [self._check(replica.port, told) for told in life.told]
                ends = await asyncio.gather(*checks)
                self.ends.append(max([ended - self._died for ended in ends if ended], default=0.0))
                for conversation, turns in life.turns.items():
                    self._note(f"{conversation}", await check_conversation(replica.port, conversation, turns))

    async def _check(self, port: int, told: Told) -> float:
        wrong, ended = await check_told(port, told, self.place.runs(), self.lease + GRACE)
        if told.key and not wrong:
            wrong = await check_key(port, told, self.place)
        self._note(f"{told.tag} {told.id} {told.body}", wrong)
        return ended

    def _note(self, what: str, wrong: list[str]) -> None:
        self.wrong += [f"kill {self.kills}: {what}: {text}" for text in wrong]

    def _check_file(self) -> None:
        """Check a copy of the file: who opens the file itself would mend it before the server does."""
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            for path in self.place.folder.glob("agentrun.db*"):
                if path.suffix != ".db-shm":
                    shutil.copy(path, folder)
            found = damage(Path(folder, "agentrun.db"))
            if found != "ok":
                self.wrong.append(f"kill {self.kills}: the file is damaged: {found}")

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.runs} runs, {self.acknowledged} answers and events acknowledged,"
            f" {len(self.wrong)} wrong; first answer after a kill: {_times(self.starts)};"
            f" last run ended after it: {_times(self.ends)}"
        )


def _times(values: list[float]) -> str:
    ordered = sorted(values) or [0.0]
    return f"median {ordered[len(ordered) // 2]:.2f} s, at most {ordered[-1]:.2f} s"
