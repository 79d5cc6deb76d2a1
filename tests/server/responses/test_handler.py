"""Asking for a response: what its caller is told, whatever becomes of the run, and what is kept of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrun_server import AgentRequest
from agentrun_server.server.drain import DrainState
from agentrun_server.storage.contracts import StorageUnavailableError
from tests.server.storing import ALICE, Api, Speaker, storing
from tests.support.clock import after, eventually, within
from tests.support.raw_client import Response
from tests.support.response_stream import data_of
from tests.support.responses_oracle import check_response, check_response_stream

stored = pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
FAILED = {"message": "The agent failed to answer.", "type": "server_error", "param": None, "code": "agent_error"}


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
async def api(speaker: Speaker) -> AsyncIterator[Api]:
    async with storing(speaker) as running:
        yield running
        await running.quiet()


def asking(api: Api, *headers: tuple[str, str], **fields: Any) -> "asyncio.Task[Response]":
    return asyncio.create_task(api.create(*headers, **fields))


# --- what is answered


@stored
async def test_a_stream_and_an_object_are_the_same_response(api: Api, speaker: Speaker, store: bool) -> None:
    speaker.finish("one", " two")
    whole = await api.made(store=store, metadata={"a": "b"})
    speaker.finish("one", " two")
    async with api.stream(store=store, metadata={"a": "b"}) as reader:
        parsed = check_response_stream(await reader.rest())
    check_response(whole)
    assert parsed.text == "one two"
    for made in (whole, parsed.response):
        assert made["store"] is store
        for key in ("id", "created_at", "completed_at", "output"):
            made.pop(key)
    assert whole == parsed.response


async def test_what_is_stored_can_be_read_as_soon_as_it_is_answered(api: Api, speaker: Speaker) -> None:
    speaker.finish("said")
    made = await api.made()
    assert (await api.ask("GET", f"/responses/{made['id']}")).json() == made
    speaker.say("one")
    async with api.stream() as reader:
        begun = (await reader.until("response.created"))["response"]
        found = (await api.ask("GET", f"/responses/{begun['id']}")).json()
        assert found == {**begun, "status": "in_progress"}
        speaker.finish()
        await reader.rest()


async def test_each_event_of_a_stored_stream_is_durable_before_it_is_sent(api: Api, speaker: Speaker) -> None:
    async with api.stream() as reader:
        for word in ("one", "two", "three"):
            speaker.say(word)
            await reader.until("response.output_text.delta")
            identity = data_of(reader.blocks[0])["response"]["id"]
            kept = await (await api.store()).events(identity)
            assert b"".join(event.data for event in kept)[: len(reader.after(-1))] == reader.after(-1)
        speaker.finish()
        await reader.rest()


async def test_a_background_response_is_answered_before_its_agent_runs(api: Api, speaker: Speaker) -> None:
    made = await api.made(background=True)
    assert (made["status"], made["output"], made["background"]) == ("queued", [], True)
    await speaker.started()
    speaker.finish("said")
    ended = await api.ended(made["id"])
    check_response(ended)
    assert (ended["status"], ended["background"]) == ("completed", True)


async def test_a_background_stream_goes_on_without_its_client(api: Api, speaker: Speaker) -> None:
    async with api.streaming(background=True) as (client, reader):
        identity = (await reader.until("response.queued"))["response"]["id"]
        speaker.say("one")
        await reader.until("response.output_text.delta")
        client.rst()
    await eventually(lambda: len(api.server._sweeper.active) == 1)
    speaker.finish(" two")
    ended = await api.ended(identity)
    assert ended["output"][0]["content"][0]["text"] == "one two"
    assert not speaker.cancelled


async def test_what_is_not_stored_leaves_nothing(api: Api, speaker: Speaker) -> None:
    speaker.finish("said")
    made = await api.made(store=False)
    assert (await api.ask("GET", f"/responses/{made['id']}")).status == 404
    assert await api.refused(
        "POST", "/responses", {"model": "m", "input": "x", "store": False, "background": True}
    ) == (
        400,
        "invalid_value",
        "background",
    )
    assert not await api.stored()
    assert not await api.stored("item")


# --- failures


@stored
@streamed
async def test_an_error_before_the_first_event_has_a_status(
    api: Api, speaker: Speaker, store: bool, stream: bool
) -> None:
    speaker.say(RuntimeError("secret"))
    answer = await api.create(store=store, stream=stream)
    assert (answer.status, answer.error(), answer.header("x-should-retry")) == (500, FAILED, "false")
    assert not await api.stored()


@stored
async def test_an_error_behind_the_first_event_ends_the_stream(api: Api, speaker: Speaker, store: bool) -> None:
    async with api.stream(store=store) as reader:
        speaker.say("one", RuntimeError("secret"))
        parsed = check_response_stream(await reader.rest())
    assert parsed.error is not None
    assert (parsed.text, parsed.response["status"], parsed.error["code"]) == ("one", "failed", "agent_error")
    if store:
        found = (await api.ask("GET", f"/responses/{parsed.response['id']}")).json()
        check_response(found)
        assert found == parsed.response


@stored
async def test_an_error_behind_the_first_word_of_an_object_is_its_answer(
    api: Api, speaker: Speaker, store: bool
) -> None:
    speaker.say("one", RuntimeError("secret"))
    answer = await api.create(store=store)
    assert (answer.status, answer.error(), answer.header("x-should-retry")) == (500, FAILED, "false")


@stored
async def test_a_silent_stream_is_opened_and_a_failure_is_then_told_in_it(
    api: Api, speaker: Speaker, store: bool
) -> None:
    async with api.stream(store=store) as reader:
        await speaker.started()
        after(api.server, 11)
        if store:
            assert (await reader.until("response.created"))["response"]["status"] == "in_progress"
        after(api.server, 27)
        speaker.say(RuntimeError("secret"))
        parsed = check_response_stream(await reader.rest())
    assert parsed.error is not None
    assert (parsed.response["status"], parsed.response["output"], parsed.error["code"]) == ("failed", [], "agent_error")
    assert reader.comments >= 1


async def test_a_failure_in_the_background_is_kept(api: Api, speaker: Speaker) -> None:
    speaker.say("one", RuntimeError("secret"))
    made = await api.made(background=True)
    ended = await api.ended(made["id"])
    check_response(ended)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
    assert ended["output"][0]["content"][0]["text"] == "one"
    assert "secret" not in str(ended)


@stored
@streamed
async def test_an_agent_that_cancels_itself_has_failed(api: Api, speaker: Speaker, store: bool, stream: bool) -> None:
    speaker.say(asyncio.CancelledError())
    answer = await api.create(store=store, stream=stream)
    assert (answer.status, answer.error()) == (500, FAILED)


# --- time


@stored
@streamed
@pytest.mark.parametrize(("limit", "seconds"), [("first_event_timeout", 301), ("run_timeout", 1801)])
async def test_an_agent_that_takes_too_long_is_stopped(
    api: Api, speaker: Speaker, store: bool, stream: bool, limit: str, seconds: float
) -> None:
    if stream and store:  # its head would be shown before
        return
    answering = asking(api, store=store, stream=stream)
    await speaker.started()
    if limit == "run_timeout":
        speaker.say("one")
        await asyncio.sleep(0.01)
        if stream:
            await eventually(lambda: all(one.first_event for one in api.server._sweeper.active))
    after(api.server, seconds)
    answer = await within(answering)
    if stream and limit == "run_timeout":
        assert check_response_stream(answer.body).response["status"] == "failed"
    else:
        assert (answer.status, answer.error()["code"]) == (504, "agent_timeout")
        assert answer.header("x-should-retry") == "false"
    await speaker.ended()
    assert speaker.cancelled == 1


async def test_a_stored_stream_that_takes_too_long_is_ended_and_kept(api: Api, speaker: Speaker) -> None:
    async with api.stream() as reader:
        speaker.say("one")
        await reader.until("response.output_text.delta")
        after(api.server, 1801)
        parsed = check_response_stream(await reader.rest())
    await speaker.ended()
    assert parsed.error is not None
    assert (parsed.text, parsed.error["code"]) == ("one", "agent_timeout")
    found = (await api.ask("GET", f"/responses/{parsed.response['id']}")).json()
    assert found == parsed.response


async def test_a_background_run_that_takes_too_long_is_ended_and_kept(api: Api, speaker: Speaker) -> None:
    made = await api.made(background=True)
    speaker.say("one")
    await speaker.started()
    await eventually(lambda: all(one.first_event for one in api.server._sweeper.active))
    after(api.server, 1801)
    ended = await api.ended(made["id"])
    assert (ended["status"], ended["output"][0]["content"][0]["text"]) == ("failed", "one")
    await speaker.ended()


# --- clients that leave


@stored
@streamed
async def test_a_client_that_leaves_ends_its_run(api: Api, speaker: Speaker, store: bool, stream: bool) -> None:
    async with api.streaming(store=store, stream=stream) as (client, reader):
        await speaker.started()
        speaker.say("one")
        if stream:
            await reader.until("response.output_text.delta")
        client.rst()
    await speaker.ended()
    assert speaker.cancelled == 1
    kept = await api.stored()
    if store and stream:
        (record,) = kept
        found = await api.ended(record.id)
        assert (found["status"], found["output"][0]["content"][0]["text"]) == ("cancelled", "one")
    else:
        assert not kept


@stored
@streamed
async def test_a_client_that_leaves_need_not_end_its_run(speaker: Speaker, store: bool, stream: bool) -> None:
    async with storing(speaker, on_disconnect="continue") as api:
        async with api.streaming(store=store, stream=stream) as (client, reader):
            await speaker.started()
            speaker.say("one")
            if stream:
                await reader.until("response.output_text.delta")
            (request, *_) = api.server._sweeper.active
            client.rst()
            await eventually(lambda: any(getattr(one, "disconnected", True) for one in api.server._sweeper.active))
        speaker.finish(" two")
        await speaker.ended()
        await api.quiet()
        assert not speaker.cancelled
        kept = await api.stored()
        assert len(kept) == store
        for record in kept:
            found = (await api.ask("GET", f"/responses/{record.id}")).json()
            check_response(found)
            assert (found["status"], found["output"][0]["content"][0]["text"]) == ("completed", "one two")
        assert request not in api.server._sweeper.active


async def test_a_client_that_reads_nothing_is_dropped_and_all_of_the_answer_is_kept() -> None:
    size, words = 64_000, 90

    async def talker(request: AgentRequest) -> AsyncIterator[str]:
        for _ in range(words):
            await asyncio.sleep(0)
            yield "x" * size

    async with storing(talker, max_output_bytes=2**24) as api:
        async with api.streaming(receive_buffer=4096) as (client, reader):
            identity = (await reader.until("response.created"))["response"]["id"]
            runs = api.server._runs
            assert runs is not None
            await eventually(lambda: not runs.local)  # the log takes what the client does not
            await eventually(lambda: [one for one in api.server._sweeper.active if getattr(one, "blocked_since", 0)])
            after(api.server, 61)
            assert not (await client.ended()).endswith(b"0\r\n\r\n")
        ended = await api.ended(identity)
        assert ended["status"] == "completed"
        assert len(ended["output"][0]["content"][0]["text"]) == size * words
        await api.quiet()


# --- places


async def test_there_is_a_limit_of_runs_in_the_background(speaker: Speaker) -> None:
    async with storing(speaker, max_background_runs=2) as api:
        made = [await api.made(background=True) for _ in range(2)]
        for stream in (False, True):
            answer = await api.create(background=True, stream=stream)
            assert (answer.status, answer.error()["code"], answer.error()["type"]) == (
                429,
                "rate_limit_exceeded",
                "rate_limit_error",
            )
            assert answer.header("retry-after") == "10"
        speaker.finish("here")
        speaker.finish("and there")
        for one in made:
            assert (await api.ended(one["id"]))["status"] == "completed"
        assert len(await api.stored()) == 2
        await api.quiet()
        speaker.finish("again")
        assert (await api.ended((await api.made(background=True))["id"]))["status"] == "completed"


async def test_a_caller_leaves_room_in_the_background_for_others(speaker: Speaker) -> None:
    async with storing(speaker, max_background_runs=3, max_background_runs_per_owner=1) as api:
        first = await api.made(background=True)
        answer = await api.create(background=True)
        assert (answer.status, answer.error()["code"], answer.header("retry-after")) == (
            429,
            "rate_limit_exceeded",
            "10",
        )
        await api.made(name="bob", background=True)
        await api.ask("POST", f"/responses/{first['id']}/cancel")
        second = await api.made(background=True)
        await api.ask("DELETE", f"/responses/{second['id']}")
        third = await api.made(background=True)
        speaker.say(LookupError("it breaks"), LookupError("it breaks"))
        assert (await api.ended(third["id"]))["status"] == "failed"
        await api.quiet()


async def test_what_waits_in_the_background_has_a_bound_in_bytes(speaker: Speaker) -> None:
    """Of the body, and of all that was said before: a short one may go on from a long one."""
    async with storing(speaker, max_background_bytes=10_000, max_background_runs_per_owner=None) as api:
        speaker.finish("long")
        long = await api.made(input="x" * 6000)
        too_long = await api.made(background=True, input="x" * 12_000)  # nothing else is there
        assert 24_000 < (await api.record(too_long["id"])).body["size"] < 25_000  # for who takes it up
        assert (await api.create(background=True)).status == 429
        speaker.finish("it is over")
        await api.quiet()
        assert "size" not in (await api.record(too_long["id"])).body
        for _ in range(2):
            await api.made(background=True, input="x" * 1000)
        assert (await api.create(background=True, previous_response_id=long["id"])).status == 429
        await api.made(background=True, input="x" * 1000)
        speaker.finish("one")
        speaker.finish("two")
        speaker.finish("three")
        await api.quiet()


async def test_a_twin_needs_no_room_in_the_background(speaker: Speaker) -> None:
    async with storing(speaker, max_background_runs=1) as api:
        first = await api.create(("idempotency-key", "k"), background=True)
        again = await api.create(("idempotency-key", "k"), background=True)
        assert again.json()["id"] == first.json()["id"]
        speaker.finish("done")
        await api.ended(first.json()["id"])
        await api.quiet()


async def test_a_run_that_cannot_be_written_down_leaves_its_room(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storing(speaker) as api:
        store = await api.store()

        async def away(changes: Any) -> None:
            raise StorageUnavailableError("away")

        with monkeypatch.context() as patch:
            patch.setattr(store, "commit", away)
            assert (await api.create(background=True)).status == 503
        await api.quiet()


async def test_who_gets_no_place_is_told_and_nothing_is_left_of_it(speaker: Speaker) -> None:
    async with storing(speaker, max_concurrent_runs=1, max_queued_runs=0) as api:
        conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
        first = asking(api, input="first")
        await speaker.started()
        for more in ({}, {"stream": True}, {"store": False}, {"conversation": conversation}):
            answer = await api.create(("idempotency-key", f"{more}"), **more)
            assert (answer.status, answer.error()["code"]) == (429, "rate_limit_exceeded")
        waits = await api.made(background=True)
        speaker.finish("first")
        assert (await within(first)).status == 200
        speaker.finish("waited")
        assert (await api.ended(waits["id"]))["output"][0]["content"][0]["text"] == "waited"
        await api.quiet()
        # Neither its turn of the conversation nor its key is taken.
        speaker.finish("now")
        again = await api.create(
            ("idempotency-key", "{'conversation': '" + conversation + "'}"), conversation=conversation
        )
        assert again.status == 200
        assert again.header("idempotent-replayed") is None
        await api.quiet()


async def test_a_server_that_drains_takes_nothing_new_and_lets_the_rest_end(speaker: Speaker) -> None:
    other = Speaker()
    async with storing({"m": speaker, "other": other}) as api:
        made = await api.made(model="other", background=True)
        await other.started()
        async with api.stream() as reader:
            speaker.say("one")
            await reader.until("response.output_text.delta")
            api.server.drain.begin()
            kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"store": False}]
            for fields in kinds:
                answer = await api.create(**fields)
                assert (answer.status, answer.error()["code"]) == (503, "server_shutting_down")
                assert answer.header("retry-after") == "1"
            assert (await api.ask("GET", f"/responses/{made['id']}")).json()["status"] == "in_progress"
            speaker.finish()
            assert check_response_stream(await reader.rest()).response["status"] == "completed"
        assert api.server.drain.state is DrainState.DRAINING
        other.finish("said")
        assert (await api.ended(made["id"]))["status"] == "completed"
        await eventually(lambda: api.server.drain.state is DrainState.DRAINED)


async def test_runs_that_outlast_the_drain_are_told_and_kept(speaker: Speaker) -> None:
    other = Speaker()
    async with storing({"m": speaker, "other": other}) as api:
        made = await api.made(model="other", background=True)
        path = f"/responses/{made['id']}?stream=true"
        async with api.stream() as reader, api.stream(path) as follower:
            for one, spoken in ((reader, speaker), (follower, other)):
                spoken.say("one")
                await one.until("response.output_text.delta")
            api.server.drain.begin()
            api.server.drain._hurry()
            for one in (reader, follower):
                parsed = check_response_stream(await one.rest())
                assert parsed.error is not None
                assert (parsed.text, parsed.error["code"]) == ("one", "server_shutting_down")
                found = (await api.ask("GET", f"/responses/{parsed.response['id']}")).json()
                assert found == parsed.response
        for spoken in (speaker, other):
            await spoken.ended()


# --- the same request again


async def test_a_twin_gets_the_answer_of_the_first_while_that_runs_and_afterwards(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    first, twin = asking(api, key), asking(api, key)
    await speaker.started()
    speaker.finish("once")
    answers = [await within(first), await within(twin), await api.create(key)]
    assert {answer.body for answer in answers} == {answers[0].body}
    assert sorted(answer.header("idempotent-replayed") or "" for answer in answers) == ["", "true", "true"]
    assert len(speaker.requests) == 1
    refused = await api.create(key, input="another")
    assert (refused.status, refused.error()["code"]) == (400, "idempotency_key_reused")


@streamed
async def test_of_many_twins_at_once_one_runs(api: Api, speaker: Speaker, stream: bool) -> None:
    key = ("idempotency-key", "k")
    twins = [asking(api, key, stream=stream) for _ in range(20)]
    await speaker.started()
    speaker.finish("once")
    answers = [await within(twin) for twin in twins]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(speaker.requests) == 1


async def test_a_twin_of_a_stream_gets_the_same_bytes(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    async with api.stream("/responses", key) as first:
        speaker.say("one")
        await first.until("response.output_text.delta")
        async with api.stream("/responses", key) as twin:
            await twin.until("response.output_text.delta")
            speaker.finish(" two")
            assert await twin.rest() == await first.rest()
    assert (await api.create(key, stream=True)).body == first.after(-1)
    assert len(speaker.requests) == 1


@streamed
async def test_an_error_is_repeated_with_its_status(api: Api, speaker: Speaker, stream: bool) -> None:
    key = ("idempotency-key", "k")
    speaker.say(RuntimeError("secret"))
    for replayed in (None, "true", "true"):
        answer = await api.create(key, stream=stream)
        assert (answer.status, answer.error(), answer.header("x-should-retry")) == (500, FAILED, "false")
        assert answer.header("idempotent-replayed") == replayed
    assert len(speaker.requests) == 1


async def test_who_sends_a_key_may_leave_and_come_again(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    async with api.streaming("/responses", key) as (client, reader):
        speaker.say("one")
        await reader.until("response.output_text.delta")
        client.rst()
    await eventually(lambda: len(api.server._sweeper.active) == 1)
    again = asking(api, key, stream=True)
    speaker.finish(" two")
    assert check_response_stream((await within(again)).body).text == "one two"
    assert (len(speaker.requests), speaker.cancelled) == (1, 0)


async def test_a_background_twin_sees_the_response_as_it_is(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    first = (await api.create(key, background=True)).json()
    await speaker.started()
    twin = await api.create(key, background=True)
    assert twin.json() == {**first, "status": "in_progress"}
    speaker.finish("said")
    ended = await api.ended(first["id"])
    assert (await api.create(key, background=True)).json() == ended


async def test_a_key_whose_answer_was_deleted_is_used(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    speaker.finish("said")
    made = (await api.create(key)).json()
    await api.ask("DELETE", f"/responses/{made['id']}")
    refused = await api.create(key)
    assert (refused.status, refused.error()["code"]) == (400, "idempotency_key_reused")
    assert len(speaker.requests) == 1


async def test_the_key_of_another_is_another(api: Api, speaker: Speaker) -> None:
    key = ("idempotency-key", "k")
    speaker.finish("to alice")
    speaker.finish("to bob")
    made = [(await api.create(key, name=name)).json()["id"] for name in ("alice", "bob")]
    assert made[0] != made[1]


# --- turns of a conversation


async def test_a_turn_waits_for_the_one_before_it_and_knows_what_was_said(api: Api, speaker: Speaker) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    first = asking(api, input="one", conversation=conversation)
    await speaker.started()
    second = asking(api, input="two", conversation=conversation, stream=True)
    speaker.finish("first")
    assert (await within(first)).json()["conversation"] == {"id": conversation}
    request = await speaker.started()
    assert [message.text for message in request.messages] == ["one", "first", "two"]
    speaker.finish("second")
    assert check_response_stream((await within(second)).body).response["conversation"] == {"id": conversation}


@pytest.mark.parametrize("settings", [{"conversation_busy": "refuse"}, {"conversation_wait": 0.02}])
async def test_a_turn_that_does_not_come_is_refused(speaker: Speaker, settings: dict[str, Any]) -> None:
    async with storing(speaker, **settings) as api:
        conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
        first = asking(api, conversation=conversation)
        await speaker.started()
        kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"background": True}]
        for fields in kinds:
            answer = await api.create(conversation=conversation, **fields)
            assert (answer.status, answer.error()["code"]) == (409, "conversation_locked")
            assert answer.header("retry-after") == "1"
        speaker.finish("first")
        assert (await within(first)).status == 200
        await api.quiet()
        assert len(await api.stored()) == 1


@pytest.mark.parametrize("how", ["fails", "fails later", "is left", "takes too long"])
async def test_a_turn_that_comes_to_nothing_is_free_again(api: Api, speaker: Speaker, how: str) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    async with api.streaming(conversation=conversation) as (client, reader):
        await speaker.started()
        if how == "fails":
            speaker.say(RuntimeError("secret"))
            await client.response()
        else:
            speaker.say("one")
            await reader.until("response.output_text.delta")
            match how:
                case "fails later":
                    speaker.say(RuntimeError("secret"))
                    await reader.rest()
                case "is left":
                    client.rst()
                case _:
                    after(api.server, 1801)
                    await reader.rest()
    await speaker.ended()
    speaker.finish("next")
    next_turn = await within(api.create(input="again", conversation=conversation))
    assert next_turn.status == 200
    request = await speaker.started()
    assert [message.text for message in request.messages] == ["again"]


async def test_a_conversation_that_is_deleted_meanwhile_does_not_lose_the_answer(api: Api, speaker: Speaker) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    turn = asking(api, conversation=conversation)
    await speaker.started()
    await api.ask("DELETE", f"/conversations/{conversation}")
    speaker.finish("said")
    made = await within(turn)
    assert made.status == 200
    assert (await api.ask("GET", f"/responses/{made.json()['id']}")).json() == made.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_is_kept_by_its_conversation_though_its_response_is_not(
    api: Api, speaker: Speaker, stream: bool
) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    asked = asking(api, input="one", conversation=conversation, store=False, stream=stream)
    await speaker.started()
    speaker.finish("first")
    answer = await within(asked)
    assert answer.status == 200
    response = answer.json() if not stream else check_response_stream(answer.body).response
    assert (response["store"], response["status"]) == (False, "completed")

    async def not_to_be_found() -> None:
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("GET", "/input_items")):
            gone = await api.ask(method, f"/responses/{response['id']}{path}")
            assert (gone.status, gone.error()["code"]) == (404, "response_not_found")
        next_one = await api.create(previous_response_id=response["id"])
        assert (next_one.status, next_one.error()["code"]) == (400, "previous_response_not_found")

    await not_to_be_found()
    store = await api.store()
    assert await store.sweep() == 1
    assert await store.get("response", response["id"], ALICE) is None
    assert await store.events(response["id"]) == []
    await not_to_be_found()

    speaker.finish("second")
    second = await api.create(input="two", conversation=conversation)
    assert second.status == 200
    assert [message.text for message in speaker.requests[-1].messages] == ["one", "first", "two"]
    items = (await api.ask("GET", f"/conversations/{conversation}/items?order=asc")).json()["data"]
    assert [item["content"][0]["text"] for item in items] == ["one", "first", "two", "second"]
