"""What one replica has made, the other one shows: while it is being made, and afterwards."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.replicas.reading import REPLICAS, background, ended, new_key, question, rich_answer, stream
from tests.replicas.replicas import Replica, Replicas
from tests.support.clock import within
from tests.support.raw_client import chat_body
from tests.support.response_stream import DONE, ResponseStream, data_of
from tests.support.responses_oracle import check_response_stream

pytestmark = REPLICAS


async def test_requests_behind_nginx_go_to_the_replicas_in_turns(pair: Replicas) -> None:
    """So that what the other tests do there is done by both."""
    made = [await pair.openai().responses.create(model="echo", input="Hi") for _ in range(4)]
    assert {response.output_text for response in made} == {"Hi"}
    for response in made:
        assert (await pair.openai().responses.retrieve(response.id)).to_dict() == response.to_dict()
    lines = [await pair.front.logged(path=f"/v1/responses/{response.id}") for response in made]
    assert [line["upstream"] for line in lines] in ([f"127.0.0.1:{port}" for port in ports] for ports in orders(pair))


def orders(pair: Replicas) -> list[list[int]]:
    """Return in which orders four requests are taken in turns."""
    return [[pair.a.port, pair.b.port] * 2, [pair.b.port, pair.a.port] * 2]


async def test_a_response_of_one_is_read_and_deleted_at_the_other(pair: Replicas) -> None:
    at_a, at_b = pair.openai(pair.a).responses, pair.openai(pair.b).responses
    made = await at_a.create(model="echo", input="Hi", metadata={"for": "b"})
    assert (await at_b.retrieve(made.id)).to_dict() == made.to_dict()
    assert [item.to_dict()["content"] async for item in at_b.input_items.list(made.id)] == [
        [{"type": "input_text", "text": "Hi"}]
    ]
    await at_b.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await at_a.retrieve(made.id)


async def resumed(pair: Replicas, at: Replica | None, response_id: str, after: int) -> bytes:
    answer = await pair.ask(at, "GET", f"/responses/{response_id}?stream=true&starting_after={after}")
    assert answer.status == 200
    return answer.body


async def test_a_stream_goes_on_at_the_other_behind_each_of_its_events(pair: Replicas) -> None:
    """Both while the run goes on and when it has ended, and the bytes are those of the first stream."""
    key = new_key()
    async with stream(pair, pair.a, "POST", "/responses", question(key, stream=True)) as first:
        run = await pair.control.run(key)
        await rich_answer(run, half=1)
        response_id = (await first.until("response.created"))["response"]["id"]
        await first.until("response.output_text.delta")
        seen = len(first.blocks)
        meanwhile = [asyncio.create_task(resumed(pair, pair.b, response_id, after)) for after in range(seen)]
        # The events that are there are shown before the run goes on.
        async with stream(pair, pair.b, "GET", f"/responses/{response_id}?stream=true") as second:
            assert [await second.event() for _ in range(seen)] == first.blocks
            await rich_answer(run, half=2)
            whole = await first.rest()
            assert await second.rest() == whole
    for after, task in enumerate(meanwhile):
        assert await within(task, 20) == first.after(after), after
    for after in range(len(first.blocks) - 1):
        assert await resumed(pair, pair.b, response_id, after) == first.after(after), after
        assert await resumed(pair, None, response_id, after) == first.after(after), after
    assert check_response_stream(whole).text == "Héllo wörld\u2028 🌍!"


async def test_a_background_run_of_one_is_polled_and_streamed_at_the_other(pair: Replicas) -> None:
    key = new_key()
    response_id = await background(pair, pair.a, key)
    run = await pair.control.run(key)
    assert run.replica == pair.a.name
    found = await pair.openai(pair.b).responses.retrieve(response_id)
    assert (found.status, found.output, found.usage) == ("in_progress", [], None)
    async with (
        stream(pair, pair.b, "GET", f"/responses/{response_id}?stream=true") as at_b,
        stream(pair, pair.a, "GET", f"/responses/{response_id}?stream=true&starting_after=1") as at_a,
    ):
        for word in ("one", " two", " three"):
            await run.say(word)
            for reader in (at_b, at_a):
                assert (await reader.until("response.output_text.delta"))["delta"] == word
        await run.finish()
        assert (await at_b.rest()).endswith(await at_a.rest())
    assert (await ended(pair, pair.b, response_id)).output_text == "one two three"
    assert check_response_stream(at_b.after(-1)).types[:3] == ["created", "queued", "in_progress"]


async def test_the_official_client_takes_a_stream_up_at_the_other_replica(pair: Replicas) -> None:
    key = new_key()
    streaming = asyncio.create_task(
        pair.openai(pair.a).responses.create(model="told", input=key, stream=True, background=True)
    )
    run = await pair.control.run(key)
    await run.say("one")
    response_id, last = "", -1
    async for event in await within(streaming):
        if event.type == "response.created":
            response_id = event.response.id
        last = event.sequence_number
        if event.type == "response.output_text.delta":
            break
    await (await streaming).close()
    await run.finish(" two")
    rest = [
        event
        async for event in await pair.openai(pair.b).responses.retrieve(response_id, stream=True, starting_after=last)
    ]
    assert [event.sequence_number for event in rest] == list(range(last + 1, last + 1 + len(rest)))
    assert [event.delta for event in rest if event.type == "response.output_text.delta"] == [" two"]
    final = rest[-1]
    assert final.type == "response.completed"
    assert final.response.output_text == "one two"
    async with pair.openai(pair.b).responses.stream(response_id=response_id, starting_after=last) as helper:
        assert (await helper.get_final_response()).output_text == "one two"


async def said(pair: Replicas, at: Replica, **fields: Any) -> Any:
    """Ask the agent that tells what has been said; return the response, and what it told."""
    response = await pair.openai(at).responses.create(model="history", **fields)
    return response, json.loads(response.output_text)


async def test_what_was_said_at_one_is_known_at_the_other(pair: Replicas) -> None:
    first, told = await said(pair, pair.a, input="one", instructions="be brief")
    assert told == [["system", "be brief"], ["user", "one"]]
    second, told = await said(pair, pair.b, input="two", previous_response_id=first.id)
    assert told == [["user", "one"], ["assistant", first.output_text], ["user", "two"]]
    _, third = await said(pair, pair.a, input="three", previous_response_id=second.id)
    assert third == [*told, ["assistant", second.output_text], ["user", "three"]]


async def test_an_item_of_one_is_referred_to_at_the_other(pair: Replicas) -> None:
    first, _ = await said(pair, pair.a, input="one")
    question_of = [item async for item in pair.openai(pair.b).responses.input_items.list(first.id)]
    referred: Any = [
        {"type": "item_reference", "id": question_of[0].id},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    _, told = await said(pair, pair.b, input=referred)
    assert told == [["user", "one"], ["assistant", first.output_text], ["user", "two"]]
    await pair.openai(pair.a).responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await said(pair, pair.b, input=referred)
    assert refused.value.code == "item_not_found"


async def test_a_conversation_goes_on_at_either(pair: Replicas) -> None:
    at_a, at_b = pair.openai(pair.a).conversations, pair.openai(pair.b).conversations
    begun: Any = [{"role": "user", "content": "zero"}]
    conversation = await at_a.create(items=begun, metadata={"topic": "bread"})
    said_first, told = await said(pair, pair.b, input="one", conversation=conversation.id)
    assert told == [["user", "zero"], ["user", "one"]]
    assert said_first.conversation.id == conversation.id
    said_second, told = await said(pair, pair.a, input="two", conversation={"id": conversation.id})
    assert told == [["user", "zero"], ["user", "one"], ["assistant", said_first.output_text], ["user", "two"]]
    items: list[Any] = [item.to_dict() async for item in at_b.items.list(conversation.id, order="asc", limit=2)]
    assert [item["role"] for item in items] == ["user", "user", "assistant", "user", "assistant"]
    assert items[-1] == said_second.output[0].to_dict()
    await at_b.items.delete(items[0]["id"], conversation_id=conversation.id)
    assert (await at_b.delete(conversation.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await at_a.items.list(conversation.id)


@pytest.mark.parametrize("kind", ["stored", "background", "not stored", "chat"])
async def test_each_event_passes_through_nginx_before_the_next_is_made(pair: Replicas, kind: str) -> None:
    key = new_key()
    fields: dict[str, Any] = {"background": {"background": True}, "not stored": {"store": False}}.get(kind, {})
    body = chat_body(model="told", text=key) if kind == "chat" else question(key, stream=True, **fields)
    path = "/chat/completions" if kind == "chat" else "/responses"
    async with stream(pair, None, "POST", path, body) as reader:
        run = await pair.control.run(key)
        for word in ("one", "two", "three", "four", "five"):
            await run.say(word)
            await next_word(reader, word)
        await run.finish()
        assert (await reader.rest()).endswith(f"data: {DONE}\n\n".encode())


async def next_word(reader: ResponseStream, word: str) -> None:
    """Read on to the event that says `word`; none that says anything else may come before it."""
    while True:
        block = await reader.event()
        if block.startswith("{"):
            delta = json.loads(block)["choices"][0]["delta"].get("content")
        else:
            delta = data_of(block).get("delta")
        if delta:
            assert delta == word
            return


async def test_each_event_passes_from_replica_to_replica_before_the_next_is_made(pair: Replicas) -> None:
    """The bus tells of each: a replica that only looks would see one event a second."""
    key = new_key()
    response_id = await background(pair, pair.a, key)
    run = await pair.control.run(key)
    async with stream(pair, pair.b, "GET", f"/responses/{response_id}?stream=true") as reader:
        await reader.until("response.in_progress")
        async with asyncio.timeout(4):
            for word in ("one", "two", "three", "four", "five", "six"):
                await run.say(word)
                await next_word(reader, word)
        await run.finish()
        await reader.rest()


async def test_what_belongs_to_another_is_nowhere(pair: Replicas) -> None:
    key = new_key()
    conversation = await pair.openai(pair.a).conversations.create()
    made = await pair.openai(pair.a).responses.create(model="echo", input="mine")
    running = await background(pair, pair.a, key)
    run = await pair.control.run(key)
    assert run.subject == "alice"
    for at in pair.replicas:
        for method, path in (
            *(("GET", f"/responses/{one}{more}") for one in (made.id, running) for more in ("", "?stream=true")),
            ("GET", f"/responses/{made.id}/input_items"),
            ("POST", f"/responses/{running}/cancel"),
            ("DELETE", f"/responses/{running}"),
            ("GET", f"/conversations/{conversation.id}"),
            ("GET", f"/conversations/{conversation.id}/items"),
            ("DELETE", f"/conversations/{conversation.id}"),
        ):
            answer = await pair.ask(at, method, path, name="bob")
            assert (answer.status, answer.error()["type"]) == (404, "invalid_request_error"), (method, path)
        for fields, status in (
            ({"previous_response_id": made.id}, 400),
            ({"input": [{"type": "item_reference", "id": made.output[0].id}]}, 400),
            ({"conversation": conversation.id}, 404),
        ):
            body = json.dumps({"model": "echo", "input": "x", **fields}).encode()
            assert (await pair.ask(at, "POST", "/responses", body, name="bob")).status == status
    await run.finish("still here")
    assert (await ended(pair, pair.b, running)).output_text == "still here"
