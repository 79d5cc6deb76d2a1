"""A replica is killed in the midst of its work: all it had to do ends or goes on at the other, and nothing runs twice.

It is killed once; each test looks at one thing that came of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest_asyncio

from tests.replicas.reading import BURIED, REPLICAS, background, begun, ended, new_key, nothing_open, question, stream
from tests.replicas.replicas import PLACES, Replicas
from tests.support.clock import within
from tests.support.response_stream import ResponseStream, data_of
from tests.support.responses_oracle import check_response, check_response_stream

pytestmark = REPLICAS


@dataclass(frozen=True)
class Killed:
    """What `a` had to do when it was killed. Each run had said a word, but those that wait."""

    pair: Replicas
    lost: str
    lost_seen: ResponseStream
    """At `b`, of `lost`."""
    streamed: str
    streamed_seen: ResponseStream
    """At `a`, whose request it was."""
    again: str
    again_key: str
    again_seen: ResponseStream
    """At `b`, of `again`."""
    waiting: str
    waiting_key: str
    next_turn: "asyncio.Task[Any]"
    next_turn_key: str
    keyed: str
    keys: list[str]
    """Of all that ran."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def killed(pair: Replicas) -> AsyncIterator[Killed]:
    """Kill `a` in the midst of all it can have to do; it is up again afterwards."""
    lost, _, lost_key = await begun(pair)
    again, _, again_key = await begun(pair, "again")
    conversation = await pair.openai(pair.a).conversations.create()
    streamed_key, turn_key, keyed_key, next_turn_key, waiting_key = (new_key() for _ in range(5))
    streamed = question(streamed_key, stream=True, metadata={"kept": "yes"})
    turn = question(turn_key, stream=True, conversation=conversation.id)
    async with AsyncExitStack() as readers:
        seen = [
            await readers.enter_async_context(one)
            for one in (
                stream(pair, pair.b, "GET", f"/responses/{lost}?stream=true"),
                stream(pair, pair.b, "GET", f"/responses/{again}?stream=true"),
                stream(pair, pair.a, "POST", "/responses", streamed),
                stream(pair, pair.a, "POST", "/responses", turn),
                stream(pair, pair.a, "POST", "/responses", question(keyed_key), ("idempotency-key", keyed_key)),
            )
        ]
        for key in (streamed_key, turn_key, keyed_key):
            await (await pair.control.run(key)).say("half")
        for reader in seen[:4]:
            await reader.until("response.output_text.delta")
        fillers = [await begun(pair) for _ in range(PLACES - 5)]
        waiting = await background(pair, pair.a, waiting_key)
        next_turn = asyncio.create_task(
            pair.openai(pair.b).responses.create(model="told", input=next_turn_key, conversation=conversation.id)
        )
        await pair.redis_hears(f"turn:{conversation.id}")
        await pair.a.kill()
        yield Killed(
            pair,
            lost=lost,
            lost_seen=seen[0],
            streamed=data_of(seen[2].blocks[0])["response"]["id"],
            streamed_seen=seen[2],
            again=again,
            again_key=again_key,
            again_seen=seen[1],
            waiting=waiting,
            waiting_key=waiting_key,
            next_turn=next_turn,
            next_turn_key=next_turn_key,
            keyed=keyed_key,
            keys=[lost_key, again_key, streamed_key, turn_key, keyed_key, *(key for *_, key in fillers)],
        )
    await pair.a.revive()


async def test_the_runs_of_a_replica_that_is_killed_end_at_the_other(killed: Killed) -> None:
    pair = killed.pair
    for response_id, text in ((killed.lost, "said"), (killed.streamed, "half")):
        lost = await ended(pair, pair.b, response_id, BURIED)
        assert (lost.status, lost.error.code, lost.output_text) == ("failed", "server_error", text)
        check_response((await pair.ask(pair.b, "GET", f"/responses/{response_id}")).json())


async def test_who_reads_at_the_other_replica_sees_the_end(killed: Killed) -> None:
    parsed = check_response_stream(await within(killed.lost_seen.rest(), BURIED))
    assert parsed.error is not None
    assert (parsed.text, parsed.error["code"]) == ("said", "worker_lost")


async def test_what_was_sent_of_a_stream_that_was_cut_is_the_beginning_of_what_is_kept(killed: Killed) -> None:
    pair, sent = killed.pair, killed.streamed_seen.blocks
    await ended(pair, pair.b, killed.streamed, BURIED)
    kept = (await pair.ask(pair.b, "GET", f"/responses/{killed.streamed}?stream=true")).body
    assert kept.startswith(killed.streamed_seen.after(-1))
    assert check_response_stream(kept).response["metadata"] == {"kept": "yes"}
    rest = await pair.ask(pair.b, "GET", f"/responses/{killed.streamed}?stream=true&starting_after={len(sent) - 1}")
    assert kept == killed.streamed_seen.after(-1) + rest.body


async def test_a_run_of_an_idempotent_model_goes_on_at_the_other(killed: Killed) -> None:
    pair = killed.pair
    run = await pair.control.run(killed.again_key)
    assert (run.replica, run.subject) == (pair.b.name, "alice")
    await run.finish("anew")
    parsed = check_response_stream(await killed.again_seen.rest())
    assert (parsed.response["status"], parsed.text) == ("completed", "saidanew")
    found = await pair.ask(pair.b, "GET", f"/responses/{killed.again}")
    assert found.json() == parsed.response


async def test_a_run_that_had_not_begun_begins_at_the_other_whatever_its_model(killed: Killed) -> None:
    pair = killed.pair
    run = await pair.control.run(killed.waiting_key)
    assert (run.replica, run.subject) == (pair.b.name, "alice")
    await run.finish("ran")
    assert (await ended(pair, pair.b, killed.waiting)).output_text == "ran"


async def test_the_turn_of_a_conversation_is_free(killed: Killed) -> None:
    run = await killed.pair.control.run(killed.next_turn_key)
    assert run.history == [["user", killed.next_turn_key]]
    await run.finish("here")
    assert (await killed.next_turn).output_text == "here"


async def test_a_request_that_comes_again_with_its_key_is_told_and_runs_nothing(killed: Killed) -> None:
    pair, key = killed.pair, killed.keyed
    again = await within(pair.ask(pair.b, "POST", "/responses", question(key), ("idempotency-key", key)), BURIED)
    assert (again.status, again.error()["code"], again.header("x-should-retry")) == (503, "worker_lost", "false")


async def test_nothing_is_left_open_and_nothing_ran_twice(killed: Killed) -> None:
    await nothing_open(killed.pair)
    assert not sum(map(killed.pair.control.more, killed.keys))
