"""Servers that are taken for dead: those that are, with much to do, and one that only stood still."""

import asyncio
import time

from tests.runs.faults.clients import (
    RESPONSES,
    Place,
    Replica,
    Stream,
    ask,
    create,
    get,
    poll,
    resume,
    stream,
    wait_until,
)
from tests.runs.faults.customers import check_log
from tests.runs.faults.server import question

__all__ = ["check_stand_still", "kill_while_running"]

_FOREVER = 100_000


async def kill_while_running(place: Place, count: int, *, lease: float, grace: float) -> str:
    """Kill a server with so many runs, a third of them idempotent, while another lives."""
    async with place.serve(worker_lease=lease, max_concurrent_runs=2 * count, most=20) as living:
        async with place.serve(worker_lease=lease, max_concurrent_runs=2 * count) as dying:
            ids = await asyncio.gather(*(_start(dying, n) for n in range(count)))
            await wait_until(lambda: _all_ran(place, count), 60, "all run")
            died = await dying.kill()
        ends = {}
        for number, identity in enumerate(ids):
            left = died + lease + grace - time.monotonic()
            ended = await poll(living.port, identity, left, 0.2)
            ends[identity] = time.monotonic() - died
            assert ended["status"] == ("completed" if _is_idempotent(number) else "failed"), ended
        for identity in ids:
            wrong = check_log((await resume(living.port, identity)).events, await get(living.port, identity))
            assert not wrong, (identity, wrong)
    runs = place.runs()
    assert runs == {f"k{n}": 2 if _is_idempotent(n) else 1 for n in range(count)}
    return f"{count} runs of a killed server, lease {lease:g} s: all ended {max(ends.values()):.1f} s after its death"


def _is_idempotent(number: int) -> bool:
    return number % 3 == 0


async def _start(replica: Replica, number: int) -> str:
    model = "again" if _is_idempotent(number) else "speaker"
    answer = await create(replica.port, model=model, input=question(f"k{number}", _FOREVER, 0.2), background=True)
    assert answer.status == 200, answer
    return str(answer.json()["id"])


async def _all_ran(place: Place, count: int) -> bool:
    return len(place.runs()) == count


async def check_stand_still(place: Place, *, lease: float) -> str:
    """Let a server stand still for longer than its lease, while another lives: it must not write any more."""
    async with place.serve(worker_lease=lease, most=200) as living, place.serve(worker_lease=lease) as still:
        background = await _start_one(still, "plain", "speaker")
        again = await _start_one(still, "again", "again")
        shown, turn, reader = Stream(), Stream(), Stream()
        conversation = await _conversation(still)
        bodies: dict[str, dict[str, object]] = {
            tag: {"model": "speaker", "input": question(tag, _FOREVER, 0.01)} for tag in ("shown", "turn", "keyed")
        }
        bodies["shown"]["stream"] = bodies["turn"]["stream"] = True
        bodies["turn"]["conversation"] = conversation
        clients = [
            asyncio.create_task(stream(still.port, "POST", RESPONSES, bodies["shown"], seen=shown)),
            asyncio.create_task(stream(still.port, "POST", RESPONSES, bodies["turn"], seen=turn)),
            asyncio.create_task(stream(still.port, "POST", RESPONSES, bodies["keyed"], [("idempotency-key", "k")])),
            asyncio.create_task(resume(still.port, again, seen=reader)),
        ]
        await wait_until(lambda: _ran(place, *bodies, "plain", "again"), 10, "all run")
        await wait_until(lambda: _begun(shown, turn, reader), 10, "all streams have begun")
        async with still.stopped(place):
            stopped = time.monotonic()
            ended = await poll(living.port, background, lease + 15)
            assert ended["status"] == "failed", ended
            for identity in (shown.id, turn.id):
                assert (await poll(living.port, identity, lease + 15))["status"] == "failed"
            took = time.monotonic() - stopped
            await wait_until(lambda: _ran_again(place, "again"), 15, "the idempotent one runs elsewhere")
            logs = {
                identity: (await resume(living.port, identity)).events for identity in (background, shown.id, turn.id)
            }
        await asyncio.gather(*clients)
        for identity, log in logs.items():
            now = (await resume(living.port, identity)).events
            assert now == log, "who was taken for dead has written"
            wrong = check_log(log, await get(living.port, identity))
            assert not wrong, wrong
        for seen in (shown, turn):
            assert seen.is_done
            error = next(at for at, event in enumerate(seen.events) if event.startswith(b"event: error"))
            assert seen.events[:error] == logs[seen.id][:error], "what was shown is in the log"
        keyed = clients[2].result()
        assert keyed.status == 503, keyed
        other = await stream(living.port, "POST", RESPONSES, bodies["keyed"], [("idempotency-key", "k")])
        assert other.error["error"]["code"] == "worker_lost", other
        ended = await poll(living.port, again, 20)
        assert ended["status"] == "completed"
        log = (await resume(living.port, again)).events
        wrong = check_log(log, ended)
        assert not wrong, wrong
        assert reader.events == log, "who reads what others go on with sees it all"
        assert place.runs() == {"plain": 1, "again": 2, "shown": 1, "keyed": 1, "turn": 1}
        fresh = await create(still.port, input=question("fresh", 2, 0), conversation=conversation)
        assert fresh.status == 200, "it goes on as a new worker"
    return (
        f"a server that stood still: its runs were ended {took:.1f} s later (lease {lease:g} s), it wrote nothing more"
    )


async def _start_one(replica: Replica, tag: str, model: str) -> str:
    answer = await create(replica.port, model=model, input=question(tag, _FOREVER, 0.01), background=True)
    assert answer.status == 200, answer
    return str(answer.json()["id"])


async def _conversation(replica: Replica) -> str:
    return str((await ask(replica.port, "POST", "/v1/conversations", {})).json()["id"])


async def _ran(place: Place, *tags: str) -> bool:
    return set(tags) <= place.runs().keys()


async def _ran_again(place: Place, tag: str) -> bool:
    return place.runs()[tag] > 1


async def _begun(*streams: Stream) -> bool:
    return all(len(seen.events) > 8 for seen in streams)
