"""How soon a server answers whose store is large and whose process was killed while it wrote."""

import asyncio
import time

from agentrun_server.storage.sqlite import SQLiteStore
from tests.runs.faults.clients import Place, create, get
from tests.runs.faults.customers import Customers
from tests.runs.faults.server import question
from tests.storage.worker import changes

__all__ = ["restart"]

_WRITING = 1.5
"""Seconds in which a server is used before it is killed."""


async def restart(place: Place, *, megabytes: int, times: int, limit: float) -> str:
    """Kill a server that has so much in its store, and start it again."""
    await _fill(place, megabytes)
    starts: list[float] = []
    answers: list[float] = []
    async with place.serve() as replica:
        known = (await create(replica.port, input=question("known", 100, 0))).json()
    for number in range(times + 1):
        began = time.monotonic()
        async with place.serve() as replica:
            listening = time.monotonic() - began
            assert await get(replica.port, known["id"]) == known
            if number:  # the first was not killed while it was used
                answers.append(time.monotonic() - began)
                starts.append(listening)
            customers = Customers(number, f"{number}-")
            using = asyncio.create_task(customers.use(replica.port))
            await asyncio.sleep(_WRITING)
            await replica.kill()
            await using
    assert max(answers) < limit, answers
    size = sum(path.stat().st_size for path in place.folder.glob("agentrun.db*")) / 1e6
    return f"{size:.0f} MB: listening after {max(starts):.2f} s, first answer from the store after {max(answers):.2f} s"


async def _fill(place: Place, megabytes: int) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    store = SQLiteStore(place.database, durable=False)
    number = 0
    while await store.size() < megabytes * 1_000_000:
        await asyncio.gather(*(store.commit(changes("filler", number + n, 30_000)) for n in range(50)))
        number += 50
    await store.aclose()
