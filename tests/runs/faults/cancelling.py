"""Cancels that race with completions: one of the two happens, and what was told of it stays so."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.runs.faults.clients import RESPONSES, Place, Replica, ask, create, get, poll, resume, text_of
from tests.runs.faults.customers import check_log
from tests.runs.faults.server import question

__all__ = ["Races", "race"]

_AT_ONCE = 8
_PIECES = 3


@dataclass(slots=True)
class Races:
    """What became of runs that were cancelled about when they ended. `told` is what the cancel was answered with."""

    told: Counter[str] = field(default_factory=Counter[str])
    partial: int = 0
    """Cancelled runs that had said something."""
    distance: float = 0.02
    """Seconds from the start to the cancel, about: so many that half of them come too late."""

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {status}" for status, count in sorted(self.told.items()))
        return f"{self.told.total()} races: {outcomes} ({self.partial} of the cancelled with partial output), none both"


async def race(place: Place, *, here: int, elsewhere: int, seed: int) -> Races:
    """Cancel so many runs on the server that has them, and on another."""
    races, chance = Races(), random.Random(seed)
    async with place.serve(worker_lease=5) as one, place.serve(worker_lease=5) as other:
        await _all(one, one, here, races, chance)
        await _all(one, other, elsewhere, races, chance)
    return races


async def _all(one: Replica, other: Replica, count: int, races: Races, chance: random.Random) -> None:
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await _race(one, other, races, chance)

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))


async def _race(one: Replica, other: Replica, races: Races, chance: random.Random) -> None:
    pause = chance.choice([0, 0.001, 0.003])
    answer = await create(one.port, input=question("c", _PIECES, pause), background=True)
    identity = answer.json()["id"]
    await asyncio.sleep(races.distance * chance.uniform(0, 2))
    places = [one, other] if chance.random() < 0.1 else [other]
    cancels = await asyncio.gather(*(ask(at.port, "POST", f"{RESPONSES}/{identity}/cancel") for at in places))
    assert all(cancel.status == 200 for cancel in cancels), cancels
    told = {cancel.json()["status"] for cancel in cancels}
    assert len(told) == 1, f"{identity} was told to be {told}"
    (status,) = told
    races.told[status] += 1
    races.distance *= 1.05 if status == "cancelled" else 0.95
    assert status in ("cancelled", "completed"), status
    for replica in (one, other):
        now = await get(replica.port, identity)
        assert now["status"] == status, f"{identity} was told to be {status} and is {now['status']}"
    ended = await poll(one.port, identity, 10)
    assert ended["status"] == status
    log = await resume(other.port, identity)
    wrong = check_log(log.events, ended)
    assert not wrong, (wrong, ended)
    races.partial += status == "cancelled" and bool(text_of(ended))
