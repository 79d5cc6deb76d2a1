"""Reading along with a run: its own request, and whoever asks for the same while it runs or behind it."""

import asyncio
import json
from typing import Any

import pytest

from agentrun_server import AgentError, AgentRequest, AgentRunServer
from agentrun_server.runs import journal
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.recorded import error_of
from agentrun_server.storage.contracts import Record
from tests.support.clock import after, eventually, within
from tests.support.kept import Told, away, keeping, kept, store_of, text_of
from tests.support.raw_client import CHAT, Headers, RawClient, Response, chat_body
from tests.support.serve import Served, serve

streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
leaving = pytest.mark.parametrize("how", ["fin", "rst"])
both = pytest.mark.parametrize("api", ["chat", "responses"])

KEY: Headers = [("idempotency-key", "k")]


async def ask(client: RawClient, api: str, headers: Headers = KEY, *, stream: bool = True, **fields: Any) -> None:
    """Send a request of either API."""
    if api == "chat":
        await client.request("POST", CHAT, chat_body(stream=stream, **fields), headers)
    else:
        body = {"model": "m", "input": "hello", "stream": stream, **fields}
        await client.request("POST", "/v1/responses", json.dumps(body).encode(), headers)


async def said(client: RawClient, api: str) -> str:
    """Read on to the next piece of text."""
    if api == "chat":
        return await client.piece()
    while True:
        block = await client.event()
        _, _, data = block.rpartition("data: ")
        if data.startswith('{"type":"response.output_text.delta"'):
            text: str = json.loads(data)["delta"]
            return text


async def whole(served: Served, api: str, headers: Headers = KEY, **fields: Any) -> Response:
    """Ask once more, and read the whole answer."""
    async with served.client() as client:
        await ask(client, api, headers, **fields)
        return await client.response()


async def read_along(server: AgentRunServer, count: int) -> None:
    """Wait until so many requests read what runs say."""
    active = server._sweeper.active
    await eventually(lambda: sum(isinstance(one, Attachment) and one.reads_log for one in active) == count)


def errors_in(body: bytes) -> list[str]:
    """Return the codes of the errors that a stream ends with."""
    found: list[str] = []
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            error = event.get("error") or (event if event.get("type") == "error" else None)
            found += [error["code"]] if error and error.get("code") else []
    return found


# --- together


@both
async def test_who_asks_for_the_same_sees_each_piece_when_it_is_said(api: str) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as first, served.client() as second, served.client() as third:
        agent.say("one")
        await ask(first, api)
        assert await said(first, api) == "one"
        await ask(second, api)
        assert await said(second, api) == "one"
        agent.say("two")
        assert [await said(client, api) for client in (first, second)] == ["two", "two"]
        await ask(third, api)
        assert [await said(third, api) for _ in range(2)] == ["one", "two"]
        agent.end("three")
        assert [await said(client, api) for client in (first, second, third)] == ["three"] * 3
        ends = [await client.rest() for client in (first, second, third)]
        assert ends[0] == ends[1] == ends[2]
        assert ends[0][-1] == "[DONE]"
    assert len(agent.requests) == 1


@both
@leaving
async def test_one_that_leaves_does_not_disturb_the_others(api: str, how: str) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as last:
        async with served.client() as first, served.client() as second:
            agent.say("one")
            for client in (first, second, last):
                await ask(client, api)
                assert await said(client, api) == "one"
            first.leave(how)
            await eventually(lambda: served.requests == 2)
            agent.say("two")
            assert [await said(client, api) for client in (second, last)] == ["two", "two"]
            second.leave(how)
            await eventually(lambda: served.requests == 1)
        agent.end("three")
        assert await said(last, api) == "three"
        assert (await last.rest())[-1] == "[DONE]"
    assert len(agent.requests) == 1


@both
async def test_a_run_that_outlives_its_request_is_not_told_that_it_is_over(api: str) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        async with served.client() as client:
            agent.say("one ")
            await ask(client, api)
            await said(client, api)
            client.rst()
        await eventually(lambda: served.requests == 0)
        (request,) = agent.requests
        assert not request.is_cancelled
        agent.say("two")
        answer = asyncio.create_task(whole(served, api))
        await eventually(lambda: served.requests == 1)
        assert not request.is_cancelled
        agent.end()
        assert b"two" in (await within(answer)).body


async def test_a_run_in_the_background_is_not_told_that_it_is_over() -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        queued = await whole(served, "responses", (), stream=False, background=True)
        await agent.ran()
        assert not agent.requests[0].is_cancelled
        await served.ask("POST", f"/v1/responses/{queued.json()['id']}/cancel", b"")
        assert agent.requests[0].is_cancelled


@leaving
@streamed
@pytest.mark.parametrize("goes_on", ["cancel", "continue"])
async def test_a_response_ends_with_its_client_unless_it_is_meant_to_go_on(
    goes_on: str, stream: bool, how: str
) -> None:
    agent = Told()
    server = keeping(agent, on_disconnect=goes_on)
    async with serve(server) as served:
        async with served.client() as client:
            agent.say("one ")
            await ask(client, "responses", (), stream=stream)
            await agent.ran()
            if stream:
                await said(client, "responses")
            client.leave(how)
        if goes_on == "cancel":
            await eventually(lambda: served.requests == 0)
            await eventually(lambda: agent.requests[0].is_cancelled)
        else:
            agent.end("two")
        await eventually(lambda: server._admission.running == 0)
        await eventually(lambda: server._runs is None or not server._runs.local)
        found = await kept(server, "response")
        if stream or goes_on == "continue":  # one of which nobody has heard is not kept
            (record,) = found
            assert record.status == ("cancelled" if goes_on == "cancel" else "completed")


# --- when it goes wrong


@both
@pytest.mark.parametrize("heard", ["nothing", "a comment", "a piece"])
async def test_a_failure_reaches_everybody_who_waits(api: str, heard: str) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as first, served.client() as second:
        await ask(first, api)
        await agent.ran()
        await ask(second, api)
        await read_along(server, 2)
        if heard == "a piece":
            agent.say("one")
            assert [await said(client, api) for client in (first, second)] == ["one", "one"]
        elif heard == "a comment":
            after(server, server.config.response_hold + 1)
            for client in (first, second):
                assert (await client.head()).status == 200
                await client.event()
        agent.say(AgentError("No.", status_code=422, code="no"))
        for client in (first, second):
            if heard == "nothing":
                answer = await client.response()
                assert (answer.status, answer.error()["code"]) == (422, "no")
                assert answer.header("x-should-retry") == "false"
            else:
                chunks = b"".join([chunk async for chunk in client.chunks()])
                assert errors_in(chunks)[-1] == "no", chunks
                assert chunks.endswith(b"data: [DONE]\n\n")
        again = await whole(served, api)
        if heard == "nothing":
            assert (again.status, again.error()["code"]) == (422, "no")
        elif again.status == 200:
            assert errors_in(again.body)[-1] == "no"
    assert len(agent.requests) == 1


@streamed
async def test_an_answer_that_cannot_be_written_down_is_told_as_lost(
    stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets what was not kept: neither who reads along, nor who comes later."""
    monkeypatch.setattr(journal, "_PAUSES", ())
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as first, served.client() as second:
        await ask(first, "chat", stream=stream, store=True)
        await agent.ran()
        await ask(second, "chat", stream=stream, store=True)
        await read_along(server, 2)
        agent.say("one")
        if stream:
            assert [await client.piece() for client in (first, second)] == ["one", "one"]

        async def is_told(client: RawClient) -> None:
            if stream:
                *_, failed, done = await client.rest()
                assert (failed["error"]["code"], done) == ("storage_unavailable", "[DONE]")
            else:
                answer = await client.response()
                assert (answer.status, answer.error()["code"]) == (503, "storage_unavailable")
                assert answer.header("x-should-retry") == "false"

        with away(await store_of(server)):
            agent.end("two")
            await is_told(first)
        await eventually(lambda: server._admission.running == 0)
        await is_told(second)  # a second later, when the server has written that it is lost
        again = await whole(served, "chat", stream=stream, store=True)
        if stream:
            assert errors_in(again.body) == ["storage_unavailable"]
        else:
            assert (again.status, again.error()["code"]) == (503, "storage_unavailable")
        assert await kept(server, "completion") == []
    assert len(agent.requests) == 1
    assert "cannot be written down" in caplog.text


def test_an_error_is_told_again_as_it_was() -> None:
    failure = {"status": 418, "error": {"message": "Tea.", "type": "server_error", "param": "pot", "code": "teapot"}}
    error = error_of(Record(kind="run", id="run_1", owner="", body={"failure": failure}))
    assert error is not None
    assert (error.status_code, error.body()) == (418, {"error": failure["error"]})
    assert error.headers == ((b"x-should-retry", b"false"),)
    assert error_of(Record(kind="run", id="run_1", owner="", body={"answer": "{}"})) is None


# --- places


@streamed
async def test_twins_that_came_too_late_give_their_places_back(stream: bool) -> None:
    agent = Told()
    server = keeping(agent, max_concurrent_runs=3, max_queued_runs=100)
    async with serve(server) as served:
        asking = [asyncio.create_task(whole(served, "chat", stream=stream)) for _ in range(20)]
        await agent.ran()
        await read_along(server, 20)
        assert (server._admission.running, server._admission.queued) == (1, 0)
        agent.end("Hi")
        answers = await within(asyncio.gather(*asking))
        assert {text_of(answer) for answer in answers} == {"Hi"}
        await eventually(lambda: server._admission.running == 0)
    assert len(agent.requests) == 1


@leaving
async def test_one_that_leaves_while_it_waits_for_a_place_has_asked_for_nothing(how: str) -> None:
    agent = Told()
    server = keeping(agent, max_concurrent_runs=1)
    async with serve(server) as served:
        busy = asyncio.create_task(served.chat())
        await agent.ran()
        async with served.client() as client:
            await ask(client, "chat")
            await eventually(lambda: server._admission.queued == 1)
            client.leave(how)
            await eventually(lambda: server._admission.queued == 0)
        agent.end("busy")
        await within(busy)
        assert await kept(server, "run") == await kept(server, "idempotency") == []
        agent.end("Hi")
        assert text_of(await whole(served, "chat")) == "Hi"


# --- what is logged


class _Facts(list[dict[str, Any]]):
    """Stands in for an access log."""

    def write(self, _: object, status: int, __: float, ___: str, facts: dict[str, Any]) -> None:
        self.append({"status": status, **facts})

    def flush(self) -> None:
        pass


async def test_the_log_tells_which_run_was_read() -> None:
    async def agent(request: AgentRequest) -> str:
        return "Hi"

    server, facts = keeping(agent), _Facts()
    server._access_log = facts  # type: ignore[assignment]
    async with serve(server) as served:
        for _ in range(2):
            await whole(served, "chat")
        (run,) = await kept(server, "run")
    assert [fact["run_id"] for fact in facts] == [run.id, run.id]
    assert [fact.get("replayed") for fact in facts] == [None, True]
    assert [fact["run"] for fact in facts] == ["completed", "completed"]
    assert [("first_event_ms" in fact, fact["model"]) for fact in facts] == [(True, "m"), (False, "m")]
