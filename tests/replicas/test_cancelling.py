"""A run of one replica is cancelled at the other: at once when Redis is there, a little later when it is not."""

import asyncio
import time
from typing import Any

import openai
import pytest

from tests.replicas.control import ToldRun
from tests.replicas.reading import REPLICAS, background, ended, new_key, stream
from tests.replicas.replicas import PLACES, Replica, Replicas
from tests.support.clock import eventually
from tests.support.response_stream import DONE
from tests.support.responses_oracle import check_response_stream

pytestmark = REPLICAS

SOON = 1.0
"""Seconds in which a cancelled run ends. A replica without a bus looks once in that time."""


async def running(pair: Replicas, at: Replica) -> tuple[str, ToldRun]:
    """Begin a run in the background, and let it say a word."""
    key = new_key()
    response_id = await background(pair, at, key)
    run = await pair.control.run(key)
    await run.say("said")
    return response_id, run


async def cancel(pair: Replicas, at: Replica, response_id: str, run: ToldRun) -> float:
    """Cancel a run; return how long it took until agent and answer had ended."""
    began = time.monotonic()
    cancelled = await pair.openai(at).responses.cancel(response_id)
    await run.ended()
    took = time.monotonic() - began
    assert cancelled.status == "cancelled"
    return took


async def in_a_row(pair: Replicas) -> list[float]:
    """Cancel several runs of one replica at the other, each when the last has ended.

    Whoever looks once a second would find the second one a second after the first.
    """
    runs = [await running(pair, pair.a) for _ in range(3)]
    return [await cancel(pair, pair.b, *one) for one in runs]


async def test_a_run_is_cancelled_at_the_other_replica_at_once(pair: Replicas) -> None:
    took = await in_a_row(pair)
    assert max(took) < SOON
    assert sum(took) < 1.5 * SOON


async def test_what_was_said_until_then_is_kept_and_all_readers_see_the_same_end(pair: Replicas) -> None:
    response_id, run = await running(pair, pair.a)
    path = f"/responses/{response_id}?stream=true"
    async with stream(pair, pair.a, "GET", path) as at_a, stream(pair, pair.b, "GET", path) as at_b:
        for reader in (at_a, at_b):
            await reader.until("response.output_text.delta")
        await cancel(pair, pair.b, response_id, run)
        whole = await at_a.rest()
        assert await at_b.rest() == whole
    parsed = check_response_stream(whole)
    assert (parsed.text, parsed.response["status"]) == ("said", "cancelled")
    for at in pair.replicas:
        found = await pair.openai(at).responses.retrieve(response_id)
        assert found.to_dict() == parsed.response
        again = await pair.openai(at).responses.cancel(response_id)
        assert again.to_dict() == parsed.response


async def test_a_run_that_has_ended_stays_as_it_is(pair: Replicas) -> None:
    response_id, run = await running(pair, pair.a)
    await run.finish()
    found = await ended(pair, pair.b, response_id)
    cancelled = await pair.openai(pair.b).responses.cancel(response_id)
    assert cancelled.to_dict() == found.to_dict()
    assert cancelled.status == "completed"


async def test_a_run_that_waits_for_its_turn_never_runs(pair: Replicas) -> None:
    full = [await running(pair, pair.a) for _ in range(PLACES)]
    key = new_key()
    waits = [await background(pair, pair.a, key) for _ in range(2)]
    assert (await pair.openai(pair.b).responses.retrieve(waits[0])).status == "queued"
    assert (await pair.openai(pair.b).responses.cancel(waits[0])).status == "cancelled"
    await asyncio.gather(*(run.finish() for _, run in full))
    run = await pair.control.run(key)
    await run.finish("ran")
    assert (await ended(pair, pair.b, waits[1])).output_text == "ran"
    assert (await ended(pair, pair.b, waits[0])).output == []
    assert not pair.control.more(key)


async def test_a_run_that_is_deleted_at_the_other_replica_ends(pair: Replicas) -> None:
    response_id, run = await running(pair, pair.a)
    await pair.openai(pair.b).responses.delete(response_id)
    await run.ended()
    for at in pair.replicas:
        with pytest.raises(openai.NotFoundError):
            await pair.openai(at).responses.retrieve(response_id)


async def test_without_redis_all_of_it_works_a_little_later(pair: Replicas) -> None:
    response_id, run = await running(pair, pair.a)
    async with stream(pair, pair.b, "GET", f"/responses/{response_id}?stream=true") as reader:
        await reader.until("response.output_text.delta")
        pair.redis.kill()
        try:
            await run.say(" more")
            assert (await reader.until("response.output_text.delta"))["delta"] == " more"
            await cancel(pair, pair.b, response_id, run)
            assert (await reader.rest()).endswith(f"data: {DONE}\n\n".encode())
            made: Any = await pair.openai(pair.a).responses.create(model="echo", input="Hi")
            assert (await pair.openai(pair.b).responses.retrieve(made.id)).output_text == "Hi"
        finally:
            pair.redis.start()
    await eventually(lambda: len(pair.listened_to("worker:*")) >= 2)
    took = await in_a_row(pair)
    assert sum(took) < 1.5 * SOON
