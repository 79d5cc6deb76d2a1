"""The same request many times at once: its agent runs once, and all get the same."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jwt

from tests.runs.faults.clients import RESPONSES, Place, Replica, Stream, ask, create, poll, stream, wait_until
from tests.runs.faults.server import question

__all__ = ["check_owners", "duplicate", "kill_between"]

_SHAPES: dict[str, dict[str, Any]] = {
    "whole": {},
    "stream": {"stream": True},
    "background": {"background": True},
    "background stream": {"background": True, "stream": True},
}
_SECRET = "a secret of the test that is long enough"


async def duplicate(place: Place, replicas: Sequence[Replica], count: int) -> str:
    """Ask so many times at once for a response of each shape, at all of `replicas`; and once more for another."""
    for shape, fields in _SHAPES.items():
        tag = f"{shape.replace(' ', '-')}-{len(replicas)}"
        body = {"model": "speaker", "input": question(tag, 10, 0.01), **fields}
        headers = [("idempotency-key", f"key {tag}")]
        asked = [stream(replicas[n % len(replicas)].port, "POST", RESPONSES, body, headers) for n in range(count)]
        answers = await asyncio.gather(*asked)
        late = await stream(replicas[-1].port, "POST", RESPONSES, body, headers)
        assert {answer.status for answer in answers} == {200}, (shape, {answer.status for answer in answers})
        if shape == "background":
            (identity,) = {answer.error["id"] for answer in answers}
            assert (await poll(replicas[0].port, identity, 10))["status"] == "completed"
        else:
            assert all(answer.events == late.events and answer.error == late.error for answer in answers), shape
            assert late.is_done or late.error["status"] == "completed"
        assert place.runs()[tag] == 1, f"{shape}: the agent ran {place.runs()[tag]} times"
        other = await create(replicas[0].port, headers, **{**body, "input": question(f"{tag}-other", 1, 0)})
        assert (other.status, other.error()["code"]) == (400, "idempotency_key_reused"), other
        assert not place.runs()[f"{tag}-other"]
    return (
        f"{count} duplicates of {len(_SHAPES)} shapes, {len(replicas)} servers: each agent ran once, all answers equal"
    )


async def kill_between(place: Place, count: int) -> str:
    """Kill the server that has the run while others ask for the same, there and elsewhere."""
    lost = 0
    for shape in ("whole", "stream"):
        body = {"model": "speaker", "input": question(shape, 100_000, 0.01), **_SHAPES[shape]}
        headers = [("idempotency-key", f"key {shape}")]
        async with place.serve() as staying:
            async with place.serve() as dying:
                first = asyncio.create_task(_until_gone(dying, body, headers))
                await wait_until(partial(_has_run, place, shape), 10, "the agent runs")
                twins = [asyncio.create_task(_until_gone(dying, body, headers)) for _ in range(count)]
                others = [
                    asyncio.create_task(stream(staying.port, "POST", RESPONSES, body, headers)) for _ in range(count)
                ]
                await asyncio.sleep(0.3)
                await dying.kill()
            seen = [await task for task in (first, *twins)]
            late = await stream(staying.port, "POST", RESPONSES, body, headers)
            for answer in [*await asyncio.gather(*others), late]:
                if shape == "whole":
                    assert answer.status == 503, answer
                    assert answer.error["error"]["code"] == "worker_lost", answer
                else:
                    assert answer.is_done, answer
                    assert answer.events == late.events
                    assert b'"code":"worker_lost"' in answer.events[-3], answer.events[-3:]
                    assert all(one.events == late.events[: len(one.events)] for one in seen)
                lost += 1
            assert place.runs()[shape] == 1, f"{shape}: the agent ran {place.runs()[shape]} times"
    return f"a kill in between: each agent ran once, {lost} duplicates were told worker_lost"


async def _has_run(place: Place, tag: str) -> bool:
    return place.runs()[tag] > 0


async def _until_gone(replica: Replica, body: Any, headers: Sequence[tuple[str, str]]) -> Stream:
    seen = Stream()
    try:
        await stream(replica.port, "POST", RESPONSES, body, headers, seen=seen)
    except (OSError, EOFError):
        return seen
    raise AssertionError(f"its server was killed, and it has ended: {seen}")


async def check_owners(place: Place) -> str:
    """Let two callers use the same key for different requests, and look for each other's answers."""
    settings: dict[str, Any] = {
        "auth_jwt_key": _SECRET,
        "auth_issuer": "test",
        "auth_audience": "test",
        "auth_jwt_algorithms": "HS256",
    }
    async with place.serve(**settings) as replica:
        ids: dict[str, str] = {}
        for name in ("alice", "bob"):
            token = _token(name)
            headers = [("authorization", f"Bearer {token}"), ("idempotency-key", "same")]
            body = {"model": "speaker", "input": question(name, 1, 0)}
            answers = [await ask(replica.port, "POST", RESPONSES, body, headers) for _ in range(2)]
            assert answers[0].status == 200, answers[0]
            assert answers[0].json() == answers[1].json()
            ids[name] = answers[0].json()["id"]
        assert ids["alice"] != ids["bob"]
        stolen = await ask(
            replica.port, "GET", f"{RESPONSES}/{ids['bob']}", headers=[("authorization", f"Bearer {_token('alice')}")]
        )
        assert stolen.status == 404, stolen
    assert place.runs() == {"alice": 1, "bob": 1}
    return "two owners with one key: independent"


def _token(name: str) -> str:
    now = int(time.time())
    claims = {"sub": name, "iss": "test", "aud": "test", "iat": now, "exp": now + 600}
    return jwt.encode(claims, _SECRET, "HS256")
