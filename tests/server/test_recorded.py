"""Reading along with a run: its own request, and whoever asks for the same while it runs or behind it."""

import asyncio
import json
from typing import Any

import pytest

from agentrun_server import AgentError, AgentRequest, AgentRunServer, Usage
from agentrun_server.runs.patience import Patience
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.recorded import error_of
from agentrun_server.storage.contracts import Record
from tests.support.clock import after, eventually, within
from tests.support.kept import Meter, Told, away, keeping, kept, store_of, text_of
from tests.support.raw_client import CHAT, Headers, RawClient, Response, chat_body
from tests.support.response_stream import ResponseStream
from tests.support.responses_oracle import check_response_stream
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
    monkeypatch.setattr(Patience, "pause", lambda _: None)
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


# --- when another worker has it


async def take_over(losing: AgentRunServer, taking: AgentRunServer) -> None:
    """Have one server taken for dead by the other, which takes its runs; then it hears of that."""
    lost, taken = losing._runs, taking._runs
    assert lost is not None
    assert taken is not None
    storage = await lost.storage()
    assert lost._worker.lease is not None
    await storage.leases.release(lost._worker.lease)
    await taken._bury_dead(await taken.storage())
    await lost._renew(storage)


@pytest.mark.parametrize("fields", [{"background": True}, {"background": True, "idempotent": True}, {}])
async def test_a_stream_goes_on_with_what_another_worker_writes(fields: dict[str, bool]) -> None:
    """Of the request that has made the response, and of those who read it at either server."""
    agent = Told()
    idempotent = fields.pop("idempotent", False)
    losing, taking = (keeping(agent, idempotent_models=["m"] if idempotent else []) for _ in range(2))
    async with serve(losing) as here, serve(taking) as there, here.client() as client:
        await ask(client, "responses", (), **fields)
        maker = ResponseStream(client)
        agent.say("one")
        created = await maker.until("response.created")
        await maker.until("response.output_text.delta")
        path = f"/v1/responses/{created['response']['id']}?stream=true"
        async with here.client() as second, there.client() as third:
            for reader in (second, third):
                await reader.request("GET", path)
            await read_along(losing, 2)
            await read_along(taking, 1)
            await take_over(losing, taking)
            if idempotent:
                await agent.ran(2)
                agent.end("two")
            streams = [await one.rest() for one in (maker, ResponseStream(second), ResponseStream(third))]
        assert streams[0] == streams[1] == streams[2] == (await there.ask("GET", path)).body
    parsed = check_response_stream(streams[0])
    if idempotent:
        assert (parsed.response["status"], parsed.text) == ("completed", "onetwo")
    else:
        assert parsed.error is not None
        assert (parsed.response["status"], parsed.text, parsed.error["code"]) == ("failed", "one", "worker_lost")
    assert len(agent.requests) == 1 + idempotent


@both
@streamed
@pytest.mark.parametrize("heard", [True, False], ids=["a piece", "nothing"])
async def test_who_waits_for_a_run_that_another_worker_ends_is_told_what_is_kept(
    api: str, stream: bool, heard: bool
) -> None:
    agent = Told()
    losing, taking = keeping(agent), keeping(agent)
    async with serve(losing) as here, serve(taking) as there, here.client() as client:
        await ask(client, api, stream=stream)
        await agent.ran()
        if heard:
            agent.say("one")
            if stream:
                assert await said(client, api) == "one"
        await take_over(losing, taking)
        if stream and heard:
            rest = b"".join([chunk async for chunk in client.chunks()])
            again = await whole(there, api)
            assert errors_in(rest)[-1] == "worker_lost"
            assert again.body.endswith(rest), "what is sent is what is kept"
            return
        answers = [await client.response(), await whole(there, api, stream=stream)]
        for answer in answers:
            assert (answer.status, answer.error()["code"]) == (503, "worker_lost")
            assert answer.header("x-should-retry") == "false"
        assert len(agent.requests) == 1


async def test_one_that_nobody_has_written_down_is_lost_with_its_worker() -> None:
    agent = Told()
    losing, taking = keeping(agent), keeping(agent)
    async with serve(losing) as here, serve(taking), here.client() as client:
        await ask(client, "responses", (), stream=True)
        await agent.ran()
        await take_over(losing, taking)
        answer = await client.response()
        assert (answer.status, answer.error()["code"]) == (503, "storage_unavailable")
        assert await kept(taking, "response") == []


async def test_a_reader_leaves_while_others_go_on_with_the_run() -> None:
    agent = Told()
    losing, taking = (keeping(agent, idempotent_models=["m"], on_disconnect="continue") for _ in range(2))
    async with serve(losing) as here, serve(taking) as there:
        async with here.client() as client:
            await ask(client, "responses", (), background=True)
            agent.say("one")
            assert await said(client, "responses") == "one"
            await take_over(losing, taking)
            await agent.ran(2)
            client.rst()
        agent.say("two")
        await eventually(lambda: here.requests == 0)
        agent.end()
        await eventually(lambda: taking._runs is not None and not taking._runs.local)
        (record,) = await kept(taking, "response")
        found = (await there.ask("GET", f"/v1/responses/{record.id}")).json()
        assert found["status"] == "completed"


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


async def ask_for_response(served: Served, headers: Headers = (), **fields: Any) -> Response:
    """Ask for a response, and read the answer."""
    body = json.dumps({"model": "m", "input": "hello", **fields}).encode()
    return await served.ask("POST", "/v1/responses", body, headers)


def ends(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what the log says of runs that ended when no request waited for them."""
    fields = ("request_id", "run_id", "run", "model", "stopped", "error")
    lines = [vars(record) for record in caplog.records if record.msg == "run ended"]
    return [{key: line[key] for key in fields if key in line} for line in lines]


async def test_a_run_in_the_background_has_a_line_when_it_ends_and_the_request_says_that_it_has_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Told()
    server, facts = keeping(agent), _Facts()
    server._access_log = facts  # type: ignore[assignment]
    with caplog.at_level("INFO", "agentrun_server.run"):
        async with serve(server) as served:
            answers = [await ask_for_response(served, KEY, background=True) for _ in range(2)]
            identity, request_id = answers[0].json()["id"], answers[0].header("x-request-id")
            await agent.ran()
            agent.end(ValueError("no luck"))
            await eventually(lambda: ends(caplog))
            await eventually(lambda: not server._runs.local)  # type: ignore[union-attr]
            answers.append(await ask_for_response(served, KEY, background=True))
    assert ends(caplog) == [
        {"request_id": request_id, "run_id": identity, "run": "failed", "model": "m", "error": "agent_error"}
    ]
    [traceback] = [vars(record) for record in caplog.records if record.msg.startswith("agent failed")]
    assert (traceback["request_id"], traceback["run_id"]) == (request_id, identity)
    assert [fact["run_id"] for fact in facts] == [identity] * 3
    assert [fact.get("replayed") for fact in facts] == [None, True, True]
    assert facts[0]["run"] == "queued"
    assert facts[1]["run"] in ("queued", "in_progress")
    assert facts[2]["run"] == "failed"


async def test_a_stream_of_a_run_in_the_background_that_its_client_leaves_is_not_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = Told()
    server, facts = keeping(agent), _Facts()
    server._access_log = facts  # type: ignore[assignment]
    with caplog.at_level("INFO", "agentrun_server.run"):
        async with serve(server) as served:
            async with served.client() as client:
                agent.say("one")
                await ask(client, "responses", [], background=True)
                assert await said(client, "responses") == "one"
                client.rst()
            await eventually(lambda: served.requests == 0)
            assert ends(caplog) == []
            agent.end()
            await eventually(lambda: ends(caplog))
    [fact], [end] = facts, ends(caplog)
    assert (fact["run"], fact["client_left"], "stopped" in fact) == ("in_progress", True, False)
    assert (end["run"], end["run_id"]) == ("completed", fact["run_id"])


@streamed
async def test_the_line_of_a_request_that_waits_for_its_run_says_how_it_ended(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Told()
    server, facts = keeping(agent, run_timeout=0.2), _Facts()
    server._access_log = facts  # type: ignore[assignment]
    with caplog.at_level("INFO", "agentrun_server.run"):
        async with serve(server) as served:
            agent.say("some", AgentError("no", code="no_luck"))
            await ask_for_response(served, stream=stream)
            agent.say("some")
            await ask_for_response(served, stream=stream)
    assert [(fact["run"], fact["error"], fact.get("stopped")) for fact in facts] == [
        ("failed", "no_luck", None),
        ("failed", "agent_timeout", "run_timeout"),
    ]
    assert ends(caplog) == []


async def test_a_stream_that_is_asked_for_again_has_the_status_of_its_run() -> None:
    agent = Told()
    server, facts = keeping(agent), _Facts()
    server._access_log = facts  # type: ignore[assignment]
    async with serve(server) as served:
        agent.say("some", AgentError("no", code="no_luck"))
        for _ in range(2):
            await whole(served, "chat")
    assert [(fact["run"], fact["error"], fact.get("replayed")) for fact in facts] == [
        ("failed", "no_luck", None),
        ("failed", "no_luck", True),
    ]


# --- what it costs

KEYLESS: Headers = []


async def counted(server: AgentRunServer, meter: Meter, requests: int) -> float:
    """Wait until so many requests are over and no run is left; return what all has cost."""
    assert server._runs is not None
    runs = server._runs
    await eventually(lambda: len(meter.requests) == requests and not runs.local)
    return sum(meter.requests) + sum(meter.charged)


@both
@streamed
async def test_an_answer_that_is_told_again_costs_nothing(api: str, stream: bool) -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter)
    async with serve(server) as served:
        first = asyncio.create_task(whole(served, api, stream=stream))
        await agent.ran()
        twin = asyncio.create_task(whole(served, api, stream=stream))
        await read_along(server, 2)
        agent.end("Hi", Usage(30, 12))
        for answer in await within(asyncio.gather(first, twin)):
            assert answer.status == 200
        assert await counted(server, meter, 2) == 42
        for again in (stream, not stream):
            await whole(served, api, stream=again)
        assert await counted(server, meter, 4) == 42


@both
@streamed
@pytest.mark.parametrize("headers", [KEYLESS, KEY], ids=["without a key", "with a key"])
@pytest.mark.parametrize("fields", [{"store": False}, {"store": True}], ids=["kept nowhere", "stored"])
async def test_who_gets_no_place_pays_nothing(
    api: str, stream: bool, headers: Headers, fields: dict[str, bool]
) -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter, max_concurrent_runs=1, max_queued_runs=0)
    async with serve(server) as served:
        first = asyncio.create_task(whole(served, api, KEYLESS, stream=stream, **fields))
        await agent.ran()
        assert (await whole(served, api, headers, stream=stream, **fields)).status == 429
        assert await eventually_over(meter, 1) == [0]
        agent.end("Hi", Usage(30, 12))
        await within(first)
        assert await counted(server, meter, 2) == 42


async def eventually_over(meter: Meter, requests: int) -> list[float]:
    """Wait until so many requests are over; return what each has cost."""
    await eventually(lambda: len(meter.requests) == requests)
    return meter.requests


async def test_a_run_in_the_background_is_charged_when_it_has_ended() -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter)
    async with serve(server) as served:
        made = (await whole(served, "responses", KEYLESS, stream=False, background=True)).json()
        await agent.ran()
        assert await eventually_over(meter, 1) == [0]
        agent.end("Hi", Usage(30, 12))
        assert await counted(server, meter, 1) == 42
        await served.ask("GET", f"/v1/responses/{made['id']}")
        await served.ask("GET", f"/v1/responses/{made['id']}?stream=true")
        assert await counted(server, meter, 3) == 42


async def test_one_that_never_got_its_turn_costs_nothing_and_one_that_was_cut_off_what_it_has_said() -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter, max_concurrent_runs=1)
    async with serve(server) as served:
        runs, waits = [
            (await whole(served, "responses", KEYLESS, stream=False, background=True)).json()["id"] for _ in range(2)
        ]
        await agent.ran()
        await served.ask("POST", f"/v1/responses/{waits}/cancel")
        await eventually_over(meter, 3)
        assert sum(meter.requests) + sum(meter.charged) == 0
        agent.say("x" * 40, Usage(30, 12))
        await eventually(lambda: agent._said.empty())
        await served.ask("POST", f"/v1/responses/{runs}/cancel")
        assert await counted(server, meter, 4) == 42
    assert len(agent.requests) == 1


async def test_a_compaction_costs_what_it_says_and_a_count_nothing() -> None:
    meter = Meter()
    async with serve(keeping(Told(), meter=meter)) as served:
        body = json.dumps({"model": "m", "input": "x" * 400}).encode()
        assert (await served.ask("POST", "/v1/responses/input_tokens", body)).json()["input_tokens"] == 100
        compacted = (await served.ask("POST", "/v1/responses/compact", body)).json()
        assert (await served.ask("POST", "/v1/responses/compact", b"{")).status == 400
        assert await eventually_over(meter, 3) == [0, compacted["usage"]["total_tokens"], 0]
        assert compacted["usage"]["total_tokens"] == 100
    assert meter.charged == []
