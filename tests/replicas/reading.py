"""What the tests of replicas send and read: events as they come, byte for byte."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentrun_server import events
from agentrun_server.runs.entry import OPEN
from agentrun_server.storage.contracts import Record
from agentrun_server.storage.postgres import PostgresStore
from tests.replicas.control import ToldRun
from tests.replicas.replicas import LEASE, Replica, Replicas
from tests.support.nginx import needs_nginx
from tests.support.postgres_server import needs_postgres
from tests.support.redis_server import needs_redis
from tests.support.response_stream import ResponseStream

__all__ = [
    "BURIED",
    "ENDED",
    "REPLICAS",
    "background",
    "begun",
    "ended",
    "new_key",
    "nothing_open",
    "question",
    "rich_answer",
    "stream",
]

REPLICAS = [needs_postgres, needs_redis, needs_nginx, pytest.mark.asyncio(loop_scope="session")]
"""Marks of every test of replicas: they share an event loop, as they share the replicas."""

ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})

BURIED = LEASE + LEASE / 3 + 5
"""Seconds after which the runs of a dead replica have ended, or go on at the other; with time for a busy machine."""

_keys = itertools.count(1)


def new_key() -> str:
    """Return a question that no test has asked: its run can be told from all others."""
    return f"question {next(_keys)}"


def question(key: str, model: str = "told", **fields: Any) -> bytes:
    """Return the body of a request for a response."""
    return json.dumps({"model": model, "input": key, **fields}).encode()


@asynccontextmanager
async def stream(
    pair: Replicas, at: Replica | None, method: str, path: str, body: bytes | None = None, *more: tuple[str, str]
) -> AsyncIterator[ResponseStream]:
    """Ask one replica, or nginx, for a stream."""
    async with (pair.front if at is None else at).client() as client:
        await client.request(method, f"/v1{path}", body, pair.headers(*more))
        yield ResponseStream(client)


async def background(pair: Replicas, at: Replica, key: str, model: str = "told") -> str:
    """Begin a response in the background; return its id."""
    made = await pair.openai(at).responses.create(model=model, input=key, background=True)
    assert made.status == "queued"
    return made.id


async def ended(pair: Replicas, at: Replica | None, response_id: str, limit: float = 20) -> Any:
    """Poll a response until it has ended, and return it."""
    async with asyncio.timeout(limit):
        while (found := await pair.openai(at).responses.retrieve(response_id)).status not in ENDED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def rich_answer(run: ToldRun, *, half: int) -> None:
    """Say the first half of an answer that has something of everything; or the second, and come to the end."""
    if half == 1:
        await run.say(
            events.ReasoningDelta("Let me "),
            events.ReasoningDelta("think."),
            events.FunctionCall("look", '{"at": "it"}', id="call_1"),
            events.FunctionCallOutput("call_1", "seen ✓"),
            "Héllo",
        )
    else:
        await run.finish(" wörld", "\u2028", " 🌍", "!")


async def begun(pair: Replicas, model: str = "told") -> tuple[str, ToldRun, str]:
    """Begin a run in the background at `a`; return its id, the run after its first word, and its key."""
    key = new_key()
    response_id = await background(pair, pair.a, key, model)
    run = await pair.control.run(key)
    await run.say("said")
    return response_id, run, key


async def nothing_open(pair: Replicas) -> None:
    """Wait until all responses have ended."""
    store = await PostgresStore.open(pair.postgres.url)
    left: Sequence[Record] = ()
    try:
        async with asyncio.timeout(BURIED):
            while left := (await store.list("response", None, statuses=OPEN)).records:  # noqa: ASYNC110 - others end them
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"still open: {[(one.id, one.status, one.body) for one in left]}") from None
    finally:
        await store.aclose()
