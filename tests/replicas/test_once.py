"""What must happen once happens once, though two replicas are asked for it at the same time."""

import asyncio
import itertools
import json
from typing import Any

import openai
import pytest

from tests.replicas.reading import REPLICAS, new_key, question, stream
from tests.replicas.replicas import Replicas
from tests.support.raw_client import Response, chat_body
from tests.support.responses_oracle import check_response_stream

pytestmark = REPLICAS

MANY = 24


async def all_at_once(pair: Replicas, path: str, body: bytes, key: str) -> "list[asyncio.Task[Response]]":
    """Ask both replicas and nginx many times for the same, with the same key."""
    places = [pair.a, pair.b, None]
    return [
        asyncio.create_task(pair.ask(places[n % 3], "POST", path, body, ("idempotency-key", key))) for n in range(MANY)
    ]


@pytest.mark.parametrize("kind", ["response", "streamed response", "background response", "chat", "streamed chat"])
async def test_of_requests_with_one_key_one_runs(pair: Replicas, kind: str) -> None:
    key = new_key()
    streams = kind.startswith("streamed")
    if kind.endswith("chat"):
        path, body = "/chat/completions", chat_body(model="told", text=key, stream=streams)
    else:
        path, body = "/responses", question(key, stream=streams, background=kind.startswith("background"))
    asking = await all_at_once(pair, path, body, key)
    run = await pair.control.run(key)
    await run.say("once")
    await run.finish(" and for all")
    answers = await asyncio.gather(*asking)
    later = [await pair.ask(at, "POST", path, body, ("idempotency-key", key)) for at in pair.replicas]
    assert {answer.status for answer in (*answers, *later)} == {200}
    if kind.startswith("background"):
        assert len({answer.json()["id"] for answer in (*answers, *later)}) == 1
    else:
        assert len({answer.body for answer in (*answers, *later)}) == 1
    assert sum(answer.header("idempotent-replayed") is None for answer in answers) == (MANY if streams else 1)
    assert not pair.control.more(key)
    if kind == "streamed response":
        assert check_response_stream(answers[0].body).text == "once and for all"


async def test_another_request_with_the_key_is_a_mistake_at_either(pair: Replicas) -> None:
    key = new_key()
    at_a, at_b = pair.openai(pair.a).responses, pair.openai(pair.b).responses
    header = {"Idempotency-Key": key}
    made = await at_a.create(model="echo", input="one", extra_headers=header)
    assert (await at_b.create(model="echo", input="one", extra_headers=header)).id == made.id
    with pytest.raises(openai.BadRequestError) as refused:
        await at_b.create(model="echo", input="two", extra_headers=header)
    assert refused.value.code == "idempotency_key_reused"
    bobs = await pair.openai(pair.b, name="bob").responses.create(model="echo", input="two", extra_headers=header)
    assert bobs.output_text == "two"


async def test_turns_of_a_conversation_come_one_after_the_other_and_at_once(pair: Replicas) -> None:
    """The bus tells of each: a replica that only looks would begin one a second."""
    conversation = await pair.openai(pair.a).conversations.create()
    keys = [new_key() for _ in range(5)]

    def turn(number: int) -> "asyncio.Task[Any]":
        client = pair.openai(pair.replicas[number % 2])
        return asyncio.create_task(
            client.responses.create(model="told", input=keys[number], conversation=conversation.id)
        )

    turns = [turn(0)]
    history: list[list[str]] = []
    async with asyncio.timeout(2.5):
        for number, key in enumerate(keys):
            run = await pair.control.run(key)
            assert run.replica == pair.replicas[number % 2].name
            assert run.history == [*history, ["user", key]]
            if number + 1 < len(keys):
                turns.append(turn(number + 1))
                await pair.redis_hears(f"turn:{conversation.id}")
                assert not pair.control.more(keys[number + 1])
            await run.finish(f"answer {number}")
            history += [["user", key], ["assistant", f"answer {number}"]]
            assert (await turns[number]).output_text == f"answer {number}"


async def test_many_turns_at_both_make_one_conversation(pair: Replicas) -> None:
    conversation = await pair.openai(pair.a).conversations.create()
    texts = [str(number) for number in range(10)]
    made = await asyncio.gather(
        *(
            pair.openai(pair.replicas[n % 2]).responses.create(
                model="history", input=text, conversation=conversation.id
            )
            for n, text in enumerate(texts)
        )
    )
    turns = sorted((json.loads(response.output_text) for response in made), key=len)
    assert [len(told) for told in turns] == [2 * n + 1 for n in range(10)]
    for before, after in itertools.pairwise(turns):
        assert after[: len(before)] == before
    assert sorted(told[-1][1] for told in turns) == texts


async def test_a_turn_of_a_stream_that_is_left_is_free_again(pair: Replicas) -> None:
    conversation = await pair.openai(pair.a).conversations.create()
    key = new_key()
    body = question(key, stream=True, conversation=conversation.id)
    async with stream(pair, pair.a, "POST", "/responses", body) as left:
        run = await pair.control.run(key)
        await run.say("half")
        await left.until("response.output_text.delta")
    await run.ended()
    made = await pair.openai(pair.b).responses.create(model="history", input="again", conversation=conversation.id)
    assert json.loads(made.output_text) == [["user", "again"]]
