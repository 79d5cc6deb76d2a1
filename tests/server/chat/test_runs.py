"""Chat answers that are kept: with ``store``, with an ``Idempotency-Key``, and streams that outlive their client."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentError, AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.core.events import FunctionCall, ReasoningDelta, TextDelta
from agentrun_server.core.messages import Message
from agentrun_server.core.usage import Usage
from agentrun_server.errors import ServiceUnavailableError
from agentrun_server.runs import patience
from agentrun_server.runs.patience import Patience
from agentrun_server.runs.run import RunStatus
from agentrun_server.server.chat.runs import KIND, ChatRuns
from agentrun_server.storage.contracts import Change, Delete, Record, StorageUnavailableError, Update
from tests.support.clock import after, eventually, within
from tests.support.kept import Meter, Told, as_caller, away, keeping, kept, official, store_of, text_of
from tests.support.raw_client import CHAT, Headers, Response, chat_body
from tests.support.serve import serve, the_request

streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
leaving = pytest.mark.parametrize("how", ["fin", "rst"])

KEY: Headers = [("idempotency-key", "one and only")]
TOOL = {"type": "function", "function": {"name": "alpha", "parameters": {"type": "object"}}}


def store_is_there() -> bool:
    return Path(os.environ["AGENTRUN_HOME"]).exists()


async def hello(request: AgentRequest) -> str:
    return f"hello {request.messages[-1].text}"


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the store in a folder that cannot be made."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGENTRUN_HOME", str(tmp_path / "file" / "home"))


# --- nothing is kept unless something asks for it


@pytest.mark.parametrize("goes_on", ["cancel", "continue"])
async def test_a_chat_that_stores_nothing_touches_no_store(
    goes_on: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        yield "Hi"
        if request.messages[-1].text == "fail":
            raise ValueError("failed")
        yield FunctionCall("alpha", "{}")

    def opens(*_: object) -> None:
        raise AssertionError("it opens the store, or asks it")

    server = keeping(agent, on_disconnect=goes_on)
    assert server._runs is not None
    monkeypatch.setattr(server._runs, "storage", opens)
    monkeypatch.setattr(server._runs, "start", opens)
    monkeypatch.setattr(server._runs, "journal", opens)
    async with serve(server) as served:
        asked: list[dict[str, Any]] = [{}, {"n": 2, "tools": [TOOL]}, {"store": False}, {"store": None}]
        if goes_on == "cancel":
            asked += [{**fields, "stream": True} for fields in asked]
        else:
            asked.append({"store": False, "stream": True})
        for fields in asked:
            assert text_of(await served.chat(**fields)) == "Hi"
        assert (await served.chat(text="fail")).status == 500
        assert (await served.chat(store="yes")).status == 400
        async with served.client() as client:
            await client.chat(store=False)
            client.rst()
        await eventually(lambda: served.requests == 0)
    assert not store_is_there()
    assert "storage" not in caplog.text


async def test_a_server_without_a_store_answers_whatever_is_asked() -> None:
    server = keeping(hello, store_url=None, on_disconnect="continue")
    async with serve(server) as served:
        for stream in (False, True):
            for _ in range(2):
                answer = await served.chat(stream=stream, store=True, headers=KEY)
                assert text_of(answer) == "hello hello"
                assert answer.header("idempotent-replayed") is None


# --- store: true


@streamed
async def test_an_answer_that_was_stored_can_be_read_as_it_was_given(stream: bool) -> None:
    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        yield ReasoningDelta("Hm.")
        yield "Let me "
        yield "look."
        yield FunctionCall("alpha", '{"a":1}')
        yield Usage(11, 22)

    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    server = keeping(agent)
    async with serve(server) as served, official(served) as client, official(served, "bob") as bob:
        asked: dict[str, Any] = {"model": "m", "messages": messages, "tools": [TOOL], "store": True, "n": 2}
        asked["metadata"] = {"topic": "weather"}
        if stream:
            asked["stream_options"] = {"include_usage": True}
            chunks = [chunk async for chunk in await client.chat.completions.create(stream=True, **asked)]
            identity, usage = chunks[0].id, chunks[-1].usage
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices and chunk.choices[0].index == 1]
            said = "".join(delta.content or "" for delta in deltas)
            call_ids = [call.id for delta in deltas for call in delta.tool_calls or () if call.id]
        else:
            made = await client.chat.completions.create(**asked)
            identity, usage, message = made.id, made.usage, made.choices[1].message
            stored = await client.chat.completions.retrieve(identity)
            assert made.model_dump(exclude={"metadata"}) == stored.model_dump(exclude={"metadata"})
            said, call_ids = message.content or "", [call.id for call in message.tool_calls or ()]
        stored = await client.chat.completions.retrieve(identity)
        assert [choice.finish_reason for choice in stored.choices] == ["tool_calls", "tool_calls"]
        assert stored.choices[1].message.content == said == "Let me look."
        assert [call.id for call in stored.choices[1].message.tool_calls or ()] == call_ids
        assert stored.usage == usage
        assert getattr(stored, "metadata", None) == {"topic": "weather"}
        listed = await client.chat.completions.list(metadata={"topic": "weather"})
        assert [one.id for one in listed.data] == [identity]
        kept_messages = await client.chat.completions.messages.list(identity)
        assert [(one.role, one.content) for one in kept_messages.data] == [("system", "Be brief."), ("user", "Hi")]
        assert (await bob.chat.completions.list()).data == []
        assert (await served.ask("GET", f"{CHAT}/{identity}", headers=as_caller("bob"))).status == 404
        assert (await client.chat.completions.delete(identity)).deleted
        assert (await client.chat.completions.list()).data == []


@streamed
async def test_what_is_stored_is_the_question_of_the_client_whatever_the_agent_makes_of_it(stream: bool) -> None:
    async def agent(request: AgentRequest) -> str:
        request.messages[0]["content"][0]["text"] = "changed"
        request.messages.insert(0, Message(role="system", content="SECRET"))
        request.messages.append(Message(role="assistant", content="thought"))
        assert request.metadata is not None
        request.metadata["secret"] = "SECRET"
        return "Hi"

    server = keeping(agent)
    content = [{"type": "text", "text": "as sent"}]
    async with serve(server) as served:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "metadata": {"topic": "t"}}
        answer = await served.chat(stream=stream, store=True, **asked)
        assert answer.status == 200
    (record,) = await kept(server, "completion")
    assert record.body["messages"] == [{"role": "user", "content": content}]
    assert record.body["metadata"] == {"topic": "t"}


@streamed
@pytest.mark.parametrize("after", [0, 2])
async def test_an_answer_that_failed_is_not_stored(stream: bool, after: int) -> None:
    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        for _ in range(after):
            yield "said"
            await asyncio.sleep(0)
        raise AgentError("no", status_code=422)

    server = keeping(agent)
    async with serve(server) as served:
        answer = await served.chat(stream=stream, store=True)
        assert answer.status == (200 if stream and after else 422)
        assert b'"message":"no"' in answer.body
        assert await kept(server, "completion") == []


@streamed
async def test_an_answer_that_was_stopped_is_not_stored(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        for leaves in (True, False):
            agent.say("said")
            async with served.client() as client:
                await client.chat(stream=stream, store=True)
                await agent.ran(1 if leaves else 2)
                if stream:
                    await client.piece()
                if leaves:
                    client.rst()
                else:
                    after(server, 3600)
                    told = await client.rest() if stream else (await client.response()).json()
                    assert "did not finish its answer in time" in str(told)
            await eventually(lambda: served.requests == 0)
        assert await kept(server, "completion") == []


async def test_an_answer_that_is_too_long_is_stored_as_it_was_cut() -> None:
    server = keeping(hello, max_output_bytes=4)
    async with serve(server) as served:
        answer = await served.chat(store=True)
    (record,) = await kept(server, "completion")
    assert record.body["completion"] == answer.json()
    assert answer.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.usefixtures("no_folder")
@streamed
async def test_while_the_store_is_away_nothing_is_promised_and_the_rest_goes_on(stream: bool) -> None:
    agent = Told()
    server = keeping(agent, on_disconnect="continue")
    async with serve(server) as served:
        for headers, store in ((), True), (KEY, None), (KEY, True):
            refused = await served.chat(stream=stream, headers=headers, store=store)
            assert (refused.status, refused.error()["code"]) == (503, "storage_unavailable")
            assert refused.header("retry-after") == "1"
        assert agent.requests == []
        for store in (None, False):
            agent.end("Hi")
            assert text_of(await served.chat(stream=stream, store=store)) == "Hi"


@streamed
async def test_an_answer_that_cannot_be_stored_in_the_end_is_no_answer(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "pause", lambda _: None)
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as client:
        with away(await store_of(server)):
            agent.say("Hi")
            await client.chat(stream=stream, store=True)
            if stream:
                assert await client.piece() == "Hi"
                agent.end()
                *_, failed, done = await client.rest()
                assert (failed["error"]["code"], done) == ("storage_unavailable", "[DONE]")
            else:
                agent.end()
                answer = await client.response()
                assert (answer.status, answer.error()["code"]) == (503, "storage_unavailable")
                assert answer.header("x-should-retry") == "false"
        assert await kept(server, "completion") == []


@streamed
@pytest.mark.parametrize("unheard", [True, False], ids=["written", "not written"])
async def test_an_answer_waits_for_a_store_that_is_away_for_a_moment(
    stream: bool, unheard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.01,))
    server, tries = keeping(hello), 0
    async with serve(server) as served:
        store = await store_of(server)
        commit = store.commit

        async def fail_twice(changes: Sequence[Change]) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                if unheard and tries == 1:
                    await commit(changes)
                raise StorageUnavailableError("away")
            await commit(changes)

        monkeypatch.setattr(store, "commit", fail_twice)
        assert text_of(await served.chat(stream=stream, store=True)) == "hello hello"
        assert tries == 3
        assert len(await kept(server, "completion")) == 1


# --- streams that outlive their client


@leaving
async def test_a_client_that_leaves_after_any_event_finds_the_whole_answer_later(how: str) -> None:
    agent = Told()
    server = keeping(agent, on_disconnect="continue")
    said = ["one ", "two ", FunctionCall("alpha", "{}"), "three"]
    async with serve(server) as served:
        for seen in range(4):  # the role, and two pieces
            agent.say(*said[:2])
            async with served.client() as client:
                await client.chat(tools=[TOOL])
                ids = [json.loads(await client.event())["id"] for _ in range(seen)]
                await agent.ran(seen + 1)
                client.leave(how)
            await eventually(lambda: the_request(server).disconnected)
            assert not agent.requests[-1].is_cancelled
            agent.end(*said[2:])
            await eventually(lambda: served.requests == 0)
            for identity in ids[:1]:
                found = (await served.ask("GET", f"{CHAT}/{identity}")).json()
                message = found["choices"][0]["message"]
                assert message["content"] == "one two three"
                assert [call["function"]["name"] for call in message["tool_calls"]] == ["alpha"]
                assert found["choices"][0]["finish_reason"] == "tool_calls"
        listed = (await served.ask("GET", CHAT)).json()
        assert len(listed["data"]) == 4


async def test_a_client_that_stays_finds_what_it_has_read() -> None:
    server = keeping(hello, on_disconnect="continue")
    async with serve(server) as served:
        answer = await served.chat(stream=True)
        assert text_of(answer) == "hello hello"
        identity = json.loads(answer.body[6 : answer.body.index(b"\n")])["id"]
        found = (await served.ask("GET", f"{CHAT}/{identity}")).json()
        assert found["choices"][0]["message"]["content"] == "hello hello"
        assert found["id"] == identity


async def test_a_stream_that_fails_behind_its_client_is_not_found_later() -> None:
    agent = Told()
    server = keeping(agent, on_disconnect="continue")
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            agent.say("half")
            identity = json.loads(await client.event())["id"]
            client.rst()
        await eventually(lambda: the_request(server).disconnected)
        agent.say(ValueError("failed"))
        await eventually(lambda: served.requests == 0)
        missing = await served.ask("GET", f"{CHAT}/{identity}")
        assert (missing.status, missing.error()["code"]) == (404, "completion_not_found")


async def test_a_stream_whose_client_wants_nothing_stored_is_not() -> None:
    server = keeping(hello, on_disconnect="continue")
    async with serve(server) as served:
        assert text_of(await served.chat(stream=True, store=False)) == "hello hello"
        assert await kept(server, "completion") == []


async def test_a_stream_that_cannot_be_stored_in_the_end_is_whole_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = keeping(hello, on_disconnect="continue")
    async with serve(server) as served:
        with away(await store_of(server)):
            assert text_of(await served.chat(stream=True)) == "hello hello"
    assert "an answer cannot be stored" in caplog.text


# --- Idempotency-Key: the same request again


ANSWERS: dict[str, tuple[Sequence[Any], dict[str, Any]]] = {
    "text": (["Hel", "lo"], {}),
    "nothing": ([], {}),
    "two choices": (["Hi"], {"n": 2}),
    "tools": (["Wait.", FunctionCall("alpha", "{}"), FunctionCall("alpha", "{}")], {"tools": [TOOL]}),
    "functions": ([FunctionCall("alpha", "{}")], {"functions": [TOOL["function"]]}),
    "logprobs": ([TextDelta("Hi", {"content": [{"token": "Hi"}], "refusal": None})], {"logprobs": True}),
    "stop": (["one EN", "D two"], {"stop": ["END"]}),
    "usage": (["Hi", Usage(3, 4)], {"stream_options": {"include_usage": True}}),
    "half a character": (["\ud83d"], {}),
    "a long text": (["x" * 300_000], {}),
    "stored": (["Hi"], {"store": True, "metadata": {"a": "b"}}),
}


@streamed
async def test_the_same_request_again_gets_the_same_bytes_and_runs_nothing(stream: bool) -> None:
    runs: Counter[str] = Counter()

    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        name = request.messages[-1].text
        runs[name] += 1
        for one in ANSWERS[name][0]:
            yield one
            await asyncio.sleep(0)

    server = keeping(agent)
    async with serve(server) as served:
        for name, (_, fields) in ANSWERS.items():
            asked = {"stream": stream, "text": name, "headers": [("idempotency-key", name)], **fields}
            if not stream:
                asked.pop("stream_options", None)
            first, *again = [await served.chat(**asked) for _ in range(3)]
            assert first.status == 200, first
            assert {one.body for one in again} == {first.body}, name
            assert {one.header("content-type") for one in again} == {first.header("content-type")}
            assert first.header("idempotent-replayed") is None
            assert {one.header("idempotent-replayed") for one in again} == {None if stream else "true"}
            assert len({first.header("x-request-id"), *(one.header("x-request-id") for one in again)}) == 3
            assert runs[name] == fields.get("n", 1)
        assert [one.body["metadata"] for one in await kept(server, "completion")] == [{"a": "b"}]
    for run in await kept(server, KIND):
        assert (run.status, run.owner) == ("completed", "")
        assert run.expires_at is not None


@streamed
async def test_the_official_client_that_comes_again_gets_the_same_answer(stream: bool) -> None:
    server = keeping(hello)
    async with serve(server) as served, official(served) as client:
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "you"}]}
        asked["extra_headers"] = {"Idempotency-Key": "k"}
        found = []
        for _ in range(2):
            if stream:
                chunks = await client.chat.completions.create(stream=True, **asked)
                found.append([chunk.model_dump() async for chunk in chunks])
            else:
                found.append([(await client.chat.completions.create(**asked)).model_dump()])
        assert found[0] == found[1]


async def test_who_comes_while_it_is_being_made_waits_for_the_same_answer() -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        first = asyncio.create_task(served.chat(headers=KEY))
        await agent.ran()
        second = asyncio.create_task(served.chat(headers=KEY))
        await eventually(lambda: served.requests == 2)
        agent.end("Hi")
        assert (await within(first)).body == (await within(second)).body
        assert [one.result().header("idempotent-replayed") for one in (first, second)] == [None, "true"]
    assert len(agent.requests) == 1


@streamed
async def test_of_a_hundred_at_once_one_runs(stream: bool) -> None:
    runs = 0

    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        nonlocal runs
        runs += 1
        yield "one"
        await asyncio.sleep(0.02)
        yield "two"

    server = keeping(agent)
    async with serve(server) as served:
        asking = (served.chat(stream=stream, headers=KEY, store=True) for _ in range(100))
        answers = await within(asyncio.gather(*asking), 10)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert text_of(answers[0]) == "onetwo"
        assert sum(answer.header("idempotent-replayed") is None for answer in answers) == (100 if stream else 1)
        assert runs == 1
        assert len(await kept(server, "completion")) == len(await kept(server, KIND)) == 1
        await eventually(lambda: server._admission.running == 0)


async def test_a_key_is_for_one_request_one_owner_and_one_route() -> None:
    agent = Told()
    server = keeping(agent)
    body, stream = chat_body(stream=False), chat_body(stream=True)
    async with serve(server) as served:

        async def ask(path: str, body: bytes, *headers: tuple[str, str]) -> Response:
            return await served.ask("POST", path, body, [*KEY, *headers])

        agent.end("first")
        first = await ask(CHAT, body)
        for other in (stream, body + b" ", chat_body(stream=False, text="other"), chat_body(stream=False, n=1)):
            refused = await ask(CHAT, other)
            assert (refused.status, refused.error()["code"]) == (400, "idempotency_key_reused")
            assert refused.error()["param"] == "Idempotency-Key"
        for path in ("/openai/v1/chat/completions", "/chat/completions", f"{CHAT}/"):
            assert (await ask(path, body)).body == first.body
        agent.end("of alice")
        assert text_of(await ask(CHAT, body, *as_caller("alice"))) == "of alice"
        agent.end("of bob")
        assert text_of(await ask(CHAT, stream, *as_caller("bob"))) == "of bob"
        agent.end("a response")
        response = await ask("/v1/responses", json.dumps({"model": "m", "input": "hello"}).encode())
        assert response.json()["output"][0]["content"][0]["text"] == "a response"
        agent.end("another key")
        assert text_of(await served.ask("POST", CHAT, body, [("idempotency-key", "another")])) == "another key"
        assert text_of(await ask(CHAT, body)) == "first"
    assert len(agent.requests) == 5


async def test_a_key_that_is_none_is_refused() -> None:
    server = keeping(hello)
    async with serve(server) as served:
        for key in ("", "x" * 256, "caf\xe9", "tab\there"):
            for stream in (False, True):
                refused = await served.chat(stream=stream, headers=[("idempotency-key", key)])
                assert (refused.status, refused.error()["param"]) == (400, "Idempotency-Key")
        assert not store_is_there()


async def test_a_key_may_have_any_printable_ascii() -> None:
    server = keeping(hello)
    async with serve(server) as served:
        found = set()
        for key in ("x" * 255, "~!@#$%^&*()[]{}", "a b", "0", "x" * 254):
            first, again = [await served.chat(headers=[("idempotency-key", key)]) for _ in range(2)]
            assert first.body == again.body
            found.add(first.body)
        assert len(found) == 5


FAILURES: Sequence[tuple[BaseException, int, str]] = (
    (AgentError("Not you.", status_code=403, code="not_you", param="user"), 403, "not_you"),
    (AgentError("Slowly.", status_code=429), 429, "agent_error"),
    (ValueError("secret"), 500, "agent_error"),
    (SystemExit(1), 500, "agent_error"),
    (GeneratorExit(), 500, "agent_error"),
)


@streamed
async def test_a_failure_is_told_again_and_nothing_is_run_again(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        for number, (error, status, code) in enumerate(FAILURES, 1):
            agent.say(error)
            headers = [("idempotency-key", str(number))]
            first, *again = [await served.chat(stream=stream, headers=headers, store=True) for _ in range(3)]
            for one in (first, *again):
                assert (one.status, one.error()["code"]) == (status, code)
                assert one.header("x-should-retry") == "false"
                assert one.body == first.body
            assert b"secret" not in first.body
            assert len(agent.requests) == number
        assert await kept(server, "completion") == []
    assert {run.status for run in await kept(server, KIND)} == {"failed"}


async def test_a_stream_that_broke_off_is_told_again_as_it_broke_off() -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        agent.say("half", AgentError("Enough.", code="enough"))
        first = await served.chat(stream=True, headers=KEY)
        again = await served.chat(stream=True, headers=KEY)
        assert first.body == again.body
        assert (first.status, again.status) == (200, 200)
        assert b'"content":"half"' in first.body
        assert b'"code":"enough"' in first.body
        assert first.body.endswith(b"data: [DONE]\n\n")
    assert len(agent.requests) == 1


@leaving
@streamed
async def test_a_client_that_leaves_gets_the_answer_when_it_comes_again(how: str, stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, headers=KEY)
            await agent.ran()
            agent.say("one ")
            if stream:
                assert await client.piece() == "one "
            client.leave(how)
        await eventually(lambda: served.requests == 0)
        assert server._admission.running == 1
        assert not agent.requests[0].is_cancelled
        agent.say("two ")
        again = asyncio.create_task(served.chat(stream=stream, headers=KEY))
        await eventually(lambda: served.requests == 1)
        agent.end("three")
        assert text_of(await within(again)) == "one two three"
        assert text_of(await served.chat(stream=stream, headers=KEY)) == "one two three"
    assert len(agent.requests) == 1
    assert server._admission.running == 0


@streamed
async def test_a_run_that_outlives_its_client_is_stopped_by_its_time_limit(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, headers=KEY, store=True)
            await agent.ran()
            client.rst()
        await eventually(lambda: served.requests == 0)
        after(server, 3600)
        again = await served.chat(stream=stream, headers=KEY, store=True)
        assert (again.status, again.error()["code"]) == (504, "agent_timeout")
        assert again.header("x-should-retry") == "false"
        assert agent.requests[0].is_cancelled
        assert await kept(server, "completion") == []
    assert len(agent.requests) == 1


async def test_what_was_refused_before_it_ran_does_not_use_up_its_key() -> None:
    agent = Told()
    server = AgentRunServer(
        {"known": agent}, config=ServerConfig(store_durable=False, max_concurrent_runs=1, max_queued_runs=0)
    )
    async with serve(server) as served:
        wrong = await served.chat(headers=KEY, model="known", messages=[])
        assert wrong.status == 400
        unknown = await served.chat(headers=KEY, model="unknown")
        assert unknown.status == 404
        busy = asyncio.create_task(served.chat(model="known"))
        await agent.ran()
        too_many = await served.chat(headers=KEY, model="known")
        assert too_many.status == 429
        assert too_many.header("retry-after") is not None
        assert await kept(server, KIND) == await kept(server, "idempotency") == []
        agent.end("busy")
        await within(busy)
        agent.end("Hi")
        assert text_of(await served.chat(headers=KEY, model="known")) == "Hi"


@streamed
async def test_a_request_that_may_have_been_written_down_is_answered_when_it_comes_again(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        store = await store_of(server)
        with away(store, unheard=True):
            refused = await served.chat(stream=stream, headers=KEY)
            assert (refused.status, refused.error()["code"]) == (503, "storage_unavailable")
        again = await served.chat(stream=stream, headers=KEY)
        assert (again.status, again.error()["code"]) == (503, "storage_unavailable")
        assert server._admission.running == 0
    assert agent.requests == []


async def test_an_answer_that_was_deleted_cannot_be_told_again() -> None:
    server = keeping(hello)
    async with serve(server) as served:
        await served.chat(headers=KEY)
        (run,) = await kept(server, KIND)
        await (await store_of(server)).commit([Delete(KIND, run.id)])
        for stream in (False, True):
            again = await served.chat(headers=KEY, stream=stream)
            assert (again.status, again.error()["code"]) == (400, "idempotency_key_reused")


async def test_a_key_is_forgotten_with_its_time() -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        agent.end("first")
        first = await served.chat(headers=KEY)
        (claim,) = await kept(server, "idempotency")
        await (await store_of(server)).commit([Update(kind="idempotency", id=claim.id, expires_at=1.0)])
        agent.end("second")
        second = await served.chat(headers=KEY)
        assert (text_of(first), text_of(second)) == ("first", "second")
        assert (await served.chat(headers=KEY)).body == second.body


async def test_another_server_with_the_same_store_tells_the_same_answer() -> None:
    answers = []
    for _ in range(2):
        async with serve(keeping(hello)) as served:
            answers.append(await served.chat(headers=KEY))
    assert answers[0].body == answers[1].body
    assert answers[1].header("idempotent-replayed") == "true"


@streamed
async def test_a_run_that_the_server_cut_off_when_it_stopped_is_not_run_again(stream: bool) -> None:
    agent = Told()
    server = keeping(agent, drain_timeout=0.0)
    async with serve(server) as served, served.client() as client:
        await client.chat(stream=stream, headers=KEY, store=True)
        await agent.ran()
        server.drain.begin()
        first = await client.response()
    async with serve(keeping(agent)) as served:
        again = await served.chat(stream=stream, headers=KEY, store=True)
    for answer in (first, again):
        assert (answer.status, answer.error()["code"]) == (503, "server_shutting_down")
        assert answer.header("x-should-retry") == "false"
    assert len(agent.requests) == 1


@streamed
async def test_a_run_that_the_server_gives_up_is_told_as_cancelled(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served, served.client() as client:
        await client.chat(stream=stream, headers=KEY, store=True)
        await agent.ran()
        (run,) = await kept(server, KIND)
        assert server._runs is not None
        await server._runs.cancel(run)
        first = await client.response()
        again = await served.chat(stream=stream, headers=KEY, store=True)
        assert first.body == again.body
        assert first.status == again.status == (200 if stream else 503)
        assert b'"code":"cancelled"' in first.body
        assert await kept(server, "completion") == []


# --- what it costs


@streamed
async def test_a_run_is_counted_once_whoever_reads_it(stream: bool) -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter)
    async with serve(server) as served:
        first = asyncio.create_task(served.chat(stream=stream, headers=KEY))
        await agent.ran()
        second = asyncio.create_task(served.chat(stream=stream, headers=KEY))
        await eventually(lambda: served.requests == 2)
        agent.end("Hi", Usage(30, 12))
        await within(asyncio.gather(first, second))
        await served.chat(stream=stream, headers=KEY)
        await eventually(lambda: len(meter.requests) == 3)
    assert sum(meter.requests) + sum(meter.charged) == 42


@streamed
async def test_what_a_run_costs_behind_its_client_is_charged(stream: bool) -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, headers=KEY)
            await agent.ran()
            agent.say(Usage(10, 5))
            await asyncio.sleep(0)
            client.rst()
        await eventually(lambda: served.requests == 0)
        agent.end("Hi", Usage(20, 7))
        await served.chat(stream=stream, headers=KEY)
    assert sum(meter.requests) + sum(meter.charged) == 42
    assert min(meter.charged) >= 0


@streamed
@pytest.mark.parametrize("fields", [{"store": True}, {}], ids=["stored", "kept"])
async def test_a_stored_answer_is_counted_as_any_other(stream: bool, fields: dict[str, Any]) -> None:
    meter, agent = Meter(), Told()
    server = keeping(agent, meter=meter, on_disconnect="continue")
    async with serve(server) as served:
        agent.end("Hi", Usage(30, 12))
        await served.chat(stream=stream, **fields)
        await eventually(lambda: len(meter.requests) == 1)
    assert meter.requests == [42]
    assert meter.charged == []


# --- runs that nobody runs any more


RECORD = Record(kind=KIND, id="run_1", owner="test|alice", status="in_progress", body={"model": "m", "session": "s1"})


@pytest.mark.parametrize("begun", [True, False], ids=["a stream", "whole"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "cancelled"])
async def test_what_a_dead_worker_left_is_ended_with_an_error(begun: bool, lost: bool) -> None:
    error = ServiceUnavailableError("Lost.", code="worker_lost") if lost else None
    entry, written, outcome = ChatRuns(60.0).conclude(RECORD, [b"data: {}\n\n"] if begun else [], error)
    code = "worker_lost" if lost else "cancelled"
    failure = outcome.body["failure"]
    assert (outcome.status, failure["status"], failure["error"]["code"]) == (RunStatus.FAILED, 503, code)
    assert outcome.body["session"] == "s1"
    assert (entry.kind, entry.id, entry.owner, entry.begun) == (KIND, "run_1", "test|alice", True)
    if begun:
        (last,) = written
        assert json.loads(last.decode().split("\n")[0][6:]) == {"error": failure["error"]}
        assert last.endswith(b"data: [DONE]\n\n")
    else:
        assert written == []
    (end,) = entry.end(outcome, None, 1000.0)
    assert isinstance(end, Update)
    assert end.expires_at == 1060.0


async def test_a_chat_answer_is_never_run_again_by_itself() -> None:
    assert await ChatRuns(60.0).revive(RECORD, [], attempt=2) is None


@streamed
async def test_who_waits_for_a_run_whose_worker_died_is_told(stream: bool) -> None:
    agent = Told()
    server = keeping(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, headers=KEY)
            await agent.ran()
            (run,) = await kept(server, KIND)
            store = await store_of(server)
            assert server._runs is not None
            entry, written, outcome = ChatRuns(60.0).conclude(run, [], ServiceUnavailableError("x", code="worker_lost"))
            assert not written
            await store.commit(entry.end(outcome, None, 0.0))  # as another worker does that took this one for dead
            agent.end("too late")
            answer = await client.response()
            assert answer.status == 503
        again = await served.chat(stream=stream, headers=KEY)
        assert (again.status, again.error()["code"]) == (503, "worker_lost")
    assert len(agent.requests) == 1
