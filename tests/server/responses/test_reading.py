"""Responses as they are shown: while they run and afterwards, whole and as streams; and how they are cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.storing import Api, Speaker, storing
from tests.support.clock import after, eventually, within
from tests.support.response_stream import DONE, data_of
from tests.support.responses_oracle import check_response, check_response_stream


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
async def api(speaker: Speaker) -> AsyncIterator[Api]:
    async with storing({"m": speaker}) as running:
        yield running


async def whole(api: Api, speaker: Speaker, *words: str) -> str:
    """Make a response as a stream; return its id."""
    speaker.finish(*words)
    async with api.stream() as reader:
        await reader.rest()
        return str(data_of(reader.blocks[0])["response"]["id"])


async def running(api: Api, speaker: Speaker) -> str:
    """Begin a response in the background, which says a word; return its id."""
    made = await api.made(background=True)
    speaker.say("one")
    await speaker.started()
    return str(made["id"])


# --- bad requests


async def test_a_response_that_is_not_there_is_not_found(api: Api, speaker: Speaker) -> None:
    mine = await whole(api, speaker, "said")
    for name, identity in (("alice", "resp_none"), ("bob", mine), ("alice", "%20")):
        for method, path in (
            ("GET", ""), ("GET", "?stream=true"), ("GET", "?stream=true&starting_after=1"), ("POST", "/cancel"),
        ):  # fmt: skip
            refused = await api.refused(method, f"/responses/{identity}{path}", name=name)
            assert refused == (404, "response_not_found", None)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=yes", "stream"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=1.5", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=%D9%A1", "starting_after"),
        ("stream=true&starting_after=9999999999999999", "starting_after"),
        ("starting_after=1", "starting_after"),
        ("stream=true&include_obfuscation=2", "include_obfuscation"),
        ("stream=%ff", "query"),
    ],
)
async def test_a_malformed_query_is_refused(api: Api, speaker: Speaker, query: str, param: str) -> None:
    identity = await whole(api, speaker, "said")
    refused = await api.refused("GET", f"/responses/{identity}?{query}")
    assert (refused[0], refused[2]) == (400, param)


async def test_a_response_that_was_no_stream_has_none(api: Api, speaker: Speaker) -> None:
    speaker.finish("said")
    made = await api.made()
    assert await api.refused("GET", f"/responses/{made['id']}?stream=true") == (400, "invalid_value", "stream")
    assert (await api.ask("GET", f"/responses/{made['id']}")).json() == made


# --- streams


async def test_a_stream_begins_behind_each_of_its_events(api: Api, speaker: Speaker) -> None:
    speaker.finish("one", " two")
    async with api.stream() as first:
        await first.rest()
    identity = data_of(first.blocks[0])["response"]["id"]
    for number in range(-1, len(first.blocks) - 1):
        query = f"stream=true&starting_after={number}" if number >= 0 else "stream=1"
        answer = await api.ask("GET", f"/responses/{identity}?{query}")
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert answer.body == first.after(number)


async def test_a_stream_that_was_kept_can_hide_how_long_its_pieces_are(api: Api, speaker: Speaker) -> None:
    identity = await whole(api, speaker, "one", " two")
    for query, padded in (("", False), ("&include_obfuscation=false", False), ("&include_obfuscation=true", True)):
        body = (await api.ask("GET", f"/responses/{identity}?stream=true{query}")).body
        parsed = check_response_stream(body, obfuscation=padded)
        assert parsed.text == "one two"
        assert {"obfuscation" in event for event in parsed.events if event["type"].endswith(".delta")} == {padded}


async def test_a_stream_that_starts_beyond_the_end_of_a_response_that_has_ended_is_empty(
    api: Api, speaker: Speaker
) -> None:
    identity = await whole(api, speaker, "said")
    for number in (8, 9, 10, 99, 2**53 - 1):
        body = (await api.ask("GET", f"/responses/{identity}?stream=true&starting_after={number}")).body
        assert body.endswith(f"data: {DONE}\n\n".encode())
        numbers = [data_of(block)["sequence_number"] for block in body.decode().split("\n\n")[:-2]]
        assert all(one > number for one in numbers)
    assert body == f"data: {DONE}\n\n".encode()


async def test_a_stream_that_starts_ahead_of_a_run_waits_for_it(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    async with api.stream(f"/responses/{identity}?stream=true") as first:
        await first.until("response.output_text.delta")
        ahead = len(first.blocks) + 1
        async with api.stream(f"/responses/{identity}?stream=true&starting_after={ahead}") as reader:
            speaker.say(" two", " three")
            for _ in range(2):
                await first.until("response.output_text.delta")
            speaker.finish(" four")
            await first.rest()
            await reader.rest()
    assert reader.blocks == first.blocks[ahead + 1 :]


async def test_many_read_one_run_each_from_where_it_wants(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    paths = [f"/responses/{identity}?stream=true", *(
        f"/responses/{identity}?stream=true&starting_after={number}" for number in range(6)
    )]  # fmt: skip
    reading = [asyncio.create_task(api.ask("GET", path)) for path in paths]
    await eventually(lambda: len(api.server._sweeper.active) == len(paths) + 1)
    speaker.finish(" two")
    bodies = [(await within(task)).body for task in reading]
    assert check_response_stream(bodies[0]).text == "one two"
    blocks = bodies[0].decode().split("\n\n")
    for number, body in enumerate(bodies[1:]):
        assert body.decode() == "\n\n".join(blocks[number + 1 :])


async def test_a_reader_that_leaves_ends_nothing(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    for how in ("fin", "rst"):
        async with api.streaming(f"/responses/{identity}?stream=true") as (client, reader):
            await reader.until("response.output_text.delta")
            client.leave(how)
    await eventually(lambda: len(api.server._sweeper.active) == 1)
    speaker.finish(" two")
    assert (await api.ended(identity))["status"] == "completed"
    assert not speaker.cancelled


async def test_a_reader_of_a_silent_run_gets_a_heartbeat(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    async with api.stream(f"/responses/{identity}?stream=true") as reader:
        await reader.until("response.output_text.delta")
        after(api.server, 16)
        await eventually(lambda: not any(getattr(one, "_beat", None) for one in api.server._sweeper.active))
        speaker.finish(" two")
        await reader.rest()
    assert reader.comments == 1


async def test_reading_has_no_time_limit_but_that_of_the_run() -> None:
    speaker = Speaker()
    async with storing(speaker, first_event_timeout=5, run_timeout=50, heartbeat_interval=None) as api:
        identity = await running(api, speaker)
        async with api.stream(f"/responses/{identity}?stream=true") as reader:
            await reader.until("response.output_text.delta")
            after(api.server, 49)
            speaker.say(" two")
            await reader.until("response.output_text.delta")
            after(api.server, 51)
            parsed = check_response_stream(await reader.rest())
    assert parsed.error is not None
    assert (parsed.text, parsed.error["code"]) == ("one two", "agent_timeout")


# --- objects


async def test_a_response_is_shown_as_it_stands(api: Api, speaker: Speaker) -> None:
    made = await api.made(background=True, metadata={"a": "b"})
    check_response(made)
    assert made["status"] == "queued"
    await speaker.started()
    found = (await api.ask("GET", f"/responses/{made['id']}?include=reasoning.encrypted_content")).json()
    assert found == {**made, "status": "in_progress"}
    speaker.finish("said")
    ended = await api.ended(made["id"])
    check_response(ended)
    assert (ended["status"], ended["metadata"], ended["created_at"]) == ("completed", {"a": "b"}, made["created_at"])
    assert ended["output"][0]["content"][0]["text"] == "said"


async def test_the_official_client_reads_a_stream_of_a_run(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    speaker.finish(" two")
    async with api.client().responses.stream(response_id=identity, starting_after=2) as helper:
        events = [event async for event in helper]
    assert events[-1].type == "response.completed"
    assert events[0].sequence_number == 3
    assert (await api.client().responses.retrieve(identity)).output_text == "one two"


# --- cancelling


async def test_a_background_run_is_cancelled_with_what_it_has_said(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    async with api.stream(f"/responses/{identity}?stream=true") as reader:
        await reader.until("response.output_text.delta")
        cancelled = (await api.ask("POST", f"/responses/{identity}/cancel")).json()
        parsed = check_response_stream(await reader.rest())
    await speaker.ended()
    assert speaker.cancelled == 1
    check_response(cancelled)
    assert cancelled == parsed.response == (await api.ask("GET", f"/responses/{identity}")).json()
    assert (cancelled["status"], cancelled["output"][0]["content"][0]["text"]) == ("cancelled", "one")
    assert (await api.ask("POST", f"/responses/{identity}/cancel")).json() == cancelled


async def test_a_run_that_has_ended_cannot_be_cancelled_any_more(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    speaker.finish()
    ended = await api.ended(identity)
    assert (await api.ask("POST", f"/responses/{identity}/cancel", b"{}")).json() == ended


async def test_a_run_in_the_foreground_is_cancelled_by_leaving(api: Api, speaker: Speaker) -> None:
    async with api.streaming() as (client, reader):
        speaker.say("one")
        identity = (await reader.until("response.created"))["response"]["id"]
        await reader.until("response.output_text.delta")
        assert await api.refused("POST", f"/responses/{identity}/cancel") == (400, "invalid_value", "response_id")
        client.rst()
    await speaker.ended()
    assert (await api.ended(identity))["status"] == "cancelled"


async def test_another_cannot_cancel(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    assert (await api.ask("POST", f"/responses/{identity}/cancel", name="bob")).status == 404
    speaker.finish(" two")
    assert (await api.ended(identity))["status"] == "completed"


async def test_a_run_that_is_deleted_is_stopped_and_its_readers_are_told(api: Api, speaker: Speaker) -> None:
    identity = await running(api, speaker)
    async with api.stream(f"/responses/{identity}?stream=true") as reader:
        await reader.until("response.output_text.delta")
        deleted: Any = (await api.ask("DELETE", f"/responses/{identity}")).json()
        assert deleted == {"id": identity, "object": "response", "deleted": True}
        await reader.rest()
    await speaker.ended()
    assert (await api.ask("GET", f"/responses/{identity}")).status == 404
    assert not await (await api.store()).events(identity)
