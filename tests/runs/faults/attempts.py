"""How often an agent is run when its worker dies: never twice, unless it is declared idempotent; and who goes on."""

import asyncio
import signal
import time
from collections.abc import Mapping

from tests.runs.faults.clients import Place, Replica, create, get, poll, resume, text_of, wait_until
from tests.runs.faults.customers import check_log
from tests.runs.faults.server import question

__all__ = ["check_attempts", "check_handover"]

_FOREVER = 100_000
_LIMIT = 20.0


async def check_attempts(place: Place) -> str:
    """Kill the worker of an idempotent run, of another and of one that waits, again and again."""
    ids: dict[str, str] = {}
    async with place.serve(max_concurrent_runs=2) as replica:
        ids["again"] = await _start(replica, "again", "again", _FOREVER)
        ids["plain"] = await _start(replica, "plain", "speaker", _FOREVER)
        ids["waits"] = await _start(replica, "waits", "speaker", 3)
        await _said_something(replica, ids["again"], ids["plain"])
        await replica.kill()
    for attempt in (2, 3):
        async with place.serve(max_concurrent_runs=1) as replica:
            assert (await poll(replica.port, ids["plain"], _LIMIT))["status"] == "failed"
            await wait_until(_ran(place, "again", attempt), _LIMIT, f"attempt {attempt}")
            assert (await get(replica.port, ids["waits"]))["status"] == "queued"
            await replica.kill()
    async with place.serve(max_concurrent_runs=1) as replica:
        ended = {name: await poll(replica.port, identity, _LIMIT) for name, identity in ids.items()}
        assert {name: response["status"] for name, response in ended.items()} == {
            "again": "failed",
            "plain": "failed",
            "waits": "completed",
        }
        assert text_of(ended["waits"]) == "waits:0 waits:1 waits:2 "
        for response in ended.values():
            wrong = check_log((await resume(replica.port, response["id"])).events, response)
            assert not wrong, (response, wrong)
    assert place.runs() == {"again": 3, "plain": 1, "waits": 1}
    return "3 kills: an idempotent agent ran 3 times, another once, one that waited once"


async def check_handover(place: Place, *, lease: float, drain: float) -> str:
    """End a server in good order that runs one thing while others wait: another server takes those at once."""
    async with place.serve(worker_lease=lease, max_concurrent_runs=1, drain_timeout=drain) as leaving:
        busy = await _start(leaving, "busy", "again", _FOREVER)
        await _said_something(leaving, busy)
        waiting = [await _start(leaving, f"w{n}", "speaker", 3) for n in range(5)]
        async with place.serve(worker_lease=lease, most=50) as staying:
            began = time.monotonic()
            ending = asyncio.create_task(leaving.terminate())
            for identity in waiting:
                assert (await poll(staying.port, identity, 120))["status"] == "completed"
            taken = time.monotonic() - began
            response = await poll(staying.port, busy, 120)
            assert response["status"] == "completed", response
            code = await ending
            assert code == -signal.SIGTERM, leaving.process.log
            runs = place.runs()
    assert runs == {"busy": 2, **{f"w{n}": 1 for n in range(5)}}
    assert taken < drain, f"those that waited were taken {taken:.1f} s after SIGTERM, with a drain of {drain} s"
    return (
        f"what waited was run elsewhere {taken:.1f} s after SIGTERM, with a lease of {lease} s and a drain of {drain} s"
    )


async def _start(replica: Replica, tag: str, model: str, pieces: int) -> str:
    answer = await create(replica.port, model=model, input=question(tag, pieces, 0.01), background=True)
    assert answer.status == 200, answer
    return str(answer.json()["id"])


async def _said_something(replica: Replica, *ids: str) -> None:
    for identity in ids:
        await resume(replica.port, identity, most=8)


def _ran(place: Place, tag: str, times: int) -> object:
    async def ran() -> bool:
        runs: Mapping[str, int] = place.runs()
        return runs.get(tag, 0) >= times

    return ran
