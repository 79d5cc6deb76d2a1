"""Sessions over HTTP: which one a request gets, what is remembered of it, and one turn at a time."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentError, AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.core.messages import Message
from agentrun_server.errors import ConfigurationError
from agentrun_server.invoker.agent import AgentCallable
from agentrun_server.runs.run import StopReason
from agentrun_server.runs.sessions import StoredSession
from agentrun_server.storage.contracts import StorageUnavailableError
from tests.support.clock import after, eventually, within
from tests.support.kept import Told, as_caller, away, keeping, kept, official, store_of, text_of
from tests.support.raw_client import Headers, Response
from tests.support.serve import Served, serve

streamed = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
keyed = pytest.mark.parametrize("key", [(), [("idempotency-key", "k")]], ids=["without a key", "with a key"])
HERE: Headers = [("x-conversation-id", "trip")]
SESSION = "x-conversation-id"


async def hello(request: AgentRequest) -> str:
    return f"hello {request.messages[-1].text}"


async def memory(request: AgentRequest) -> str:
    """Tell what is remembered."""
    assert request.session is not None
    return json.dumps([[message.role, message.text] for message in await request.session.load_async()])


async def remembered(served: Served, headers: Headers = HERE, **fields: Any) -> list[list[str]]:
    """Ask the agent `memory` of the server what it remembers. It remembers that, too."""
    answer = await served.chat(model="memory", text="?", headers=headers, **fields)
    told: list[list[str]] = json.loads(text_of(answer))
    return told


def with_memory(agent: AgentCallable, **settings: Any) -> AgentRunServer:
    """Return a server with sessions, whose second agent is `memory`."""
    return keeping({"agent": agent, "memory": memory}, memory="notes", **settings)


async def said(served: Served, text: str, headers: Headers = HERE, **fields: Any) -> str:
    """Say something to the agent; return what it answers."""
    return text_of(await served.chat(model="agent", text=text, headers=headers, **fields))


# --- which session


@keyed
@streamed
async def test_every_answer_says_which_session_it_was(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served:
        agent.end("Hi")
        named = await served.chat(model="agent", stream=stream, headers=[*HERE, *key])
        assert named.header(SESSION) == "trip"
        for number, failing in enumerate((False, True)):
            agent.say(AgentError("No.") if failing else "Hi", *([] if failing else [None]))
            other: Headers = [(name, f"{value}{number}") for name, value in key]
            answer = await served.chat(model="agent", stream=stream, headers=other)
            assert answer.status == (500 if failing else 200)
            assert (answer.header(SESSION) or "").startswith("session_")
        refused = await served.chat(model="agent", messages=[], headers=HERE)
        assert (refused.status, refused.header(SESSION)) == (400, None)


@streamed
async def test_who_comes_back_with_the_id_goes_on(stream: bool) -> None:
    server = with_memory(hello)
    async with serve(server) as served:
        first = await served.chat(model="agent", text="one", stream=stream)
        identity = first.header(SESSION)
        assert identity is not None
        assert await remembered(served, [(SESSION, identity)]) == [["user", "one"], ["assistant", "hello one"]]
        assert await remembered(served, ()) == []
        assert await remembered(served, [(SESSION, "session_of_nobody")]) == []


async def test_the_official_client_names_a_session_by_metadata_and_reads_its_id() -> None:
    server = with_memory(hello)
    async with serve(server) as served, official(served) as client:
        asked: dict[str, Any] = {"model": "agent", "messages": [{"role": "user", "content": "one"}]}
        raw = await client.chat.completions.with_raw_response.create(metadata={"chat_id": "c1"}, **asked)
        assert raw.headers[SESSION] == "c1"
        again = await client.chat.completions.create(metadata={"session_id": "c1"}, **{**asked, "model": "memory"})
        assert json.loads(again.choices[0].message.content or "") == [["user", "one"], ["assistant", "hello one"]]


@pytest.mark.parametrize("trust", [False, True], ids=["not trusted", "trusted"])
async def test_what_a_front_end_says_counts_only_when_it_is_trusted(trust: bool) -> None:
    server = with_memory(hello, trust_session_headers=trust)

    def chat(user: str, *more: tuple[str, str]) -> Headers:
        return [("x-openwebui-chat-id", "c1"), ("x-openwebui-user-id", user), *more]

    async with serve(server) as served:
        await said(served, "of ann", chat("ann"))
        await said(served, "a title", chat("ann", ("x-openwebui-task", "title_generation")))
        found = [await remembered(served, chat(user)) for user in ("ann", "ben")]
        assert found == [[["user", "of ann"], ["assistant", "hello of ann"]] if trust else [], []]
        if trust:
            for more in (("x-openwebui-task", "tags"), ("x-openwebui-chat-id", "local:a")):
                headers = [one for one in chat("ann") if one[0] != more[0]]
                answer = await served.chat(model="agent", headers=[*headers, more])
                identity = answer.header(SESSION) or ""
                assert identity.startswith("session_")
                user = ("x-openwebui-user-id", "ann")
                assert await remembered(served, [(SESSION, identity), user]) == [], "it is nobody's business"
        answer = await served.chat(model="agent", headers=chat("ann"))
        assert (answer.header(SESSION) == "c1") is trust


async def test_a_name_that_is_none_is_refused() -> None:
    server = with_memory(hello)
    async with serve(server) as served:
        for headers in ([(SESSION, "a b")], [(SESSION, "x" * 129)], [(SESSION, "a"), (SESSION, "b")]):
            for key in ([], [("idempotency-key", "k")]):
                refused = await served.chat(model="agent", headers=[*headers, *key])
                assert refused.status == 400
                assert refused.header(SESSION) is None
        assert await kept(server, "run") == []


async def test_nobody_finds_the_session_of_another() -> None:
    server = with_memory(hello)
    async with serve(server) as served:
        await said(served, "of alice", as_caller("alice", *HERE))
        assert await remembered(served, as_caller("bob", *HERE)) == []
        assert await remembered(served) == []
        assert (await remembered(served, as_caller("alice", *HERE)))[0] == ["user", "of alice"]


async def test_an_agent_has_a_session_only_where_they_are_turned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def agent(request: AgentRequest) -> str:
        seen.append(request.session)
        return "Hi"

    for server in (keeping(agent), keeping(agent, memory="notes"), keeping(agent, memory_collection_name="notes")):
        async with serve(server) as served:
            answer = await served.chat(headers=HERE)
            assert answer.header(SESSION) == (None if seen[-1] is None else "trip")
    assert [one is None for one in seen] == [True, False, False]
    monkeypatch.setenv("AGENTRUN_MEMORY_COLLECTION_NAME", "notes")
    async with serve(keeping(agent)) as served:
        await served.chat(headers=HERE)
    assert getattr(seen[-1], "id", None) == "trip"


async def test_collections_are_apart_and_the_argument_counts_more_than_the_setting() -> None:
    for collection, expected in (("a", 0), ("b", 0), ("a", 2)):
        server = keeping({"agent": hello, "memory": memory}, memory=collection, memory_collection_name="c")
        async with serve(server) as served:
            assert len(await remembered(served)) == expected
    bodies = [record.body["collection"] for record in await kept(server, "session")]
    assert sorted(bodies) == ["a", "b"]


def test_sessions_need_a_store() -> None:
    with pytest.raises(ConfigurationError, match="store_url is none"):
        AgentRunServer(hello, config=ServerConfig(store_url=None), memory_collection_name="notes")
    with pytest.raises(ConfigurationError, match="store_url is none"):
        AgentRunServer(hello, config=ServerConfig(store_url=None, memory_collection_name="notes"))


# --- what is remembered


@keyed
@streamed
async def test_what_was_said_is_remembered(stream: bool, key: Headers) -> None:
    server = with_memory(hello)
    async with serve(server) as served:
        keys: Sequence[Headers] = [[(name, f"{value}{number}") for name, value in key] for number in range(2)]
        await said(served, "one", [*HERE, *keys[0]], stream=stream)
        messages = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "hello one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {"role": "user", "content": "three"},
        ]
        await said(served, "", [*HERE, *keys[1]], stream=stream, messages=messages)
        expected = [["user", "one"], ["assistant", "hello one"], ["user", "two"], ["user", "three"]]
        expected.append(["assistant", "hello three"])
        assert await remembered(served) == expected


@keyed
@streamed
async def test_what_the_agent_does_to_its_request_is_not_what_was_said(stream: bool, key: Headers) -> None:
    async def agent(request: AgentRequest) -> str:
        request.messages[-1]["content"] = "changed"
        request.messages.append(Message(role="assistant", content=None, tool_calls=[]))
        request.messages.append(Message(role="tool", content="found", tool_call_id="c1"))
        return "Hi"

    server = with_memory(agent)
    async with serve(server) as served:
        await said(served, "as sent", [*HERE, *key], stream=stream)
        assert await remembered(served) == [["user", "as sent"], ["assistant", "Hi"]]


@keyed
@streamed
async def test_an_answer_that_failed_is_not_remembered(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served, served.client() as client:
        agent.say("half")
        await client.chat(model="agent", stream=stream, headers=[*HERE, *key])
        await agent.ran()
        if stream:
            await client.piece()
        agent.say(ValueError("failed"))
        await eventually(lambda: served.requests == 0)
        assert await remembered(served) == []


@keyed
@streamed
async def test_an_answer_that_was_cut_off_is_remembered_as_far_as_it_came(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served, served.client() as client:
        agent.say("half")
        await client.chat(model="agent", text="one", stream=stream, headers=[*HERE, *key])
        await agent.ran()
        if stream:
            await client.piece()
        after(server, 3600)
        await eventually(lambda: served.requests == 0)
        assert await remembered(served) == [["user", "one"], ["assistant", "half"]]


@streamed
async def test_what_a_client_that_left_has_heard_is_remembered(stream: bool) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served:
        async with served.client() as client:
            if stream:
                agent.say("half")
            await client.chat(model="agent", text="one", stream=stream, headers=HERE)
            await agent.ran()
            if stream:
                await client.piece()
            client.rst()
        await eventually(lambda: served.requests == 0)
        assert await remembered(served) == ([["user", "one"], ["assistant", "half"]] if stream else [])


@streamed
async def test_with_a_key_the_whole_answer_is_remembered_though_the_client_left(stream: bool) -> None:
    agent = Told()
    server = with_memory(agent)
    key: Headers = [*HERE, ("idempotency-key", "k")]
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(model="agent", text="one", stream=stream, headers=key)
            await agent.ran()
            client.rst()
        await eventually(lambda: served.requests == 0)
        agent.end("whole")
        assert await said(served, "one", key, stream=stream) == "whole"
        assert await remembered(served) == [["user", "one"], ["assistant", "whole"]]


async def test_an_agent_that_keeps_its_own_memory_is_left_to_it() -> None:
    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        assert request.session is not None
        await request.session.append_async({"role": "user", "content": "in short"})
        yield "Hi"
        if request.messages[-1].text == "clear":
            await request.session.clear_async()

    server = with_memory(agent)
    async with serve(server) as served:
        await said(served, "a long story")
        found = await remembered(served)
        assert found == [["user", "in short"]]
        await said(served, "clear")
        assert await remembered(served) == []


@keyed
async def test_a_sync_agent_uses_its_session_on_its_thread(key: Headers) -> None:
    def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        session = request.session
        assert session is not None
        visits = session.get_state().get("visits", 0) + 1
        session.update_state(visits=visits)
        yield f"{visits} of {session.id}: "
        yield str(len(session.load()))

    server = with_memory(agent)
    async with serve(server) as served:
        for number, expected in enumerate(("1 of trip: 0", "2 of trip: 2")):
            again: Headers = [(name, f"{value}{number}") for name, value in key]
            assert await said(served, "Hi", [*HERE, *again], stream=bool(number)) == expected


async def test_an_async_agent_is_told_not_to_wait() -> None:
    async def agent(request: AgentRequest) -> str:
        assert request.session is not None
        with pytest.raises(RuntimeError, match="load_async"):
            request.session.load()
        return "Hi"

    async with serve(with_memory(agent)) as served:
        assert await said(served, "") == "Hi"


async def test_a_replay_names_the_session_of_the_answer_and_adds_nothing_to_it() -> None:
    server = with_memory(hello)
    key: Headers = [("idempotency-key", "k")]
    async with serve(server) as served:
        for stream in (False, True):
            headers: Headers = [("idempotency-key", f"k{stream}")]
            answers = [await served.chat(model="agent", text="one", stream=stream, headers=headers) for _ in range(3)]
            (identity,) = {answer.header(SESSION) for answer in answers}
            assert identity is not None
            assert await remembered(served, [(SESSION, identity)]) == [["user", "one"], ["assistant", "hello one"]]
        failing: Headers = [*key, (SESSION, "other")]
        first = await served.chat(model="agent", headers=failing)
        again = await served.chat(model="agent", headers=key)
        assert (first.header(SESSION), again.header(SESSION)) == ("other", "other")


@streamed
@pytest.mark.parametrize("reason", [StopReason.RUN_TIMEOUT, StopReason.SHUTDOWN, StopReason.CANCELLED])
async def test_an_answer_that_is_stopped_while_it_is_remembered_is_whole_all_the_same(
    reason: StopReason, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client sees, what is stored, and what the session remembers is the same."""
    server = with_memory(hello)
    end_turn = StoredSession.end_turn

    async def stop_first(self: StoredSession, said: Sequence[Message] = ()) -> None:
        assert server._runs is not None
        (run,) = server._runs.local.values()
        run.stop(reason)
        await end_turn(self, said)

    key: Headers = [*HERE, ("idempotency-key", "k")]
    async with serve(server) as served:
        with monkeypatch.context() as patch:
            patch.setattr(StoredSession, "end_turn", stop_first)
            answer = await served.chat(model="agent", headers=key, store=True, stream=stream)
        again = await served.chat(model="agent", headers=key, store=True, stream=stream)
        assert text_of(answer) == text_of(again) == "hello hello"
        (run,) = await kept(server, "run")
        assert run.status == "completed"
        (completion,) = await kept(server, "completion")
        assert completion.body["completion"]["choices"][0]["message"]["content"] == "hello hello"
        assert await said(served, "the turn is free") == "hello the turn is free"
        assert len(await kept(server, "session_message")) == 4


# --- one turn at a time


async def both_begin(
    served: Served, agent: Told, headers: Sequence[Headers], stream: bool
) -> "list[asyncio.Task[Response]]":
    """Ask twice, the second time when the first has the turn."""
    first = asyncio.create_task(served.chat(model="agent", text="one", stream=stream, headers=headers[0]))
    await agent.ran()
    second = asyncio.create_task(served.chat(model="agent", text="two", stream=stream, headers=headers[1]))
    return [first, second]


@keyed
@streamed
async def test_the_second_of_two_turns_waits_for_the_first(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served:
        asking = await both_begin(served, agent, [HERE, [*HERE, *key]], stream)
        await eventually(lambda: served.requests == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(agent.requests) == 1
        agent.end("first")
        assert text_of(await within(asking[0])) == "first"
        await agent.ran(2)
        agent.end("second")
        assert text_of(await within(asking[1])) == "second"
        expected = [["user", "one"], ["assistant", "first"], ["user", "two"], ["assistant", "second"]]
        assert await remembered(served) == expected
        assert server._admission.running == 0


@keyed
@streamed
async def test_the_second_of_two_turns_is_refused_where_the_server_says_so(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent, conversation_busy="refuse")
    async with serve(server) as served:
        first, second = await both_begin(served, agent, [HERE, [*HERE, *key]], stream)
        refused = await within(second)
        assert (refused.status, refused.error()["code"]) == (409, "conversation_locked")
        assert refused.header("retry-after") == "1"
        assert refused.header("x-should-retry") is None
        assert refused.header(SESSION) == "trip"
        assert len(agent.requests) == 1
        other = asyncio.create_task(served.chat(model="agent", headers=[(SESSION, "another")]))
        await agent.ran(2)
        agent.end("Hi")
        agent.end("Hi")
        await within(asyncio.gather(first, other))
        assert await kept(server, "run") == await kept(server, "idempotency") == []
        # It was told to come again, and its key is as good as new.
        agent.end("second")
        again = await served.chat(model="agent", text="two", stream=stream, headers=[*HERE, *key])
        assert text_of(again) == "second"
        assert server._admission.running == 0


@keyed
@streamed
async def test_the_second_of_two_turns_is_refused_when_it_has_waited_long_enough(stream: bool, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent, conversation_wait=0.02)
    async with serve(server) as served:
        first, second = await both_begin(served, agent, [HERE, [*HERE, *key]], stream)
        refused = await within(second)
        assert (refused.status, refused.error()["code"]) == (409, "conversation_locked")
        agent.end("Hi")
        await within(first)


async def test_twins_of_a_turn_that_is_refused_try_it_themselves() -> None:
    agent = Told()
    server = with_memory(agent, conversation_wait=0.05)
    key: Headers = [*HERE, ("idempotency-key", "k")]
    async with serve(server) as served:
        first, second = await both_begin(served, agent, [HERE, key], False)
        third = asyncio.create_task(served.chat(model="agent", text="two", headers=key))
        for refused in await within(asyncio.gather(second, third)):
            assert (refused.status, refused.error()["code"]) == (409, "conversation_locked")
        agent.end("first")
        assert text_of(await within(first)) == "first"
        agent.end("second")
        assert await said(served, "two", key) == "second"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_turn_that_nobody_waits_for_any_more_is_not_taken(how: str) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served:
        first = asyncio.create_task(served.chat(model="agent", headers=HERE))
        await agent.ran()
        async with served.client() as client:
            await client.chat(model="agent", headers=HERE)
            await eventually(lambda: served.requests == 2)
            client.leave(how)
            await eventually(lambda: served.requests == 1)
        agent.end("first")
        await within(first)
        assert len(await remembered(served)) == 2
        assert len(agent.requests) == 1


@keyed
@pytest.mark.parametrize("ending", ["fails", "is stopped", "loses its client"])
async def test_the_turn_is_free_however_the_run_ends(ending: str, key: Headers) -> None:
    agent = Told()
    server = with_memory(agent, conversation_busy="refuse")
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(model="agent", headers=[*HERE, *key])
            await agent.ran()
            if ending == "fails":
                agent.say(ValueError("failed"))
            elif ending == "is stopped":
                after(server, 3600)
            else:
                client.rst()
                if key:
                    agent.end()
            await eventually(lambda: served.requests == 0)
        # A run with a key is not the request's: it remembers what was said, and gives the turn back, a little later.
        runs = server._runs
        assert runs is not None
        await eventually(lambda: not runs.local)
        assert server._admission.running == 0
        agent.end("Hi")
        assert await said(served, "again") == "Hi"


async def test_who_waits_for_a_turn_keeps_no_place_from_the_one_who_has_it() -> None:
    agent = Told()
    server = with_memory(agent, max_concurrent_runs=1)
    async with serve(server) as served:
        first = asyncio.create_task(served.chat(model="agent", headers=HERE))
        await agent.ran()
        second = asyncio.create_task(served.chat(model="agent", headers=HERE))
        await eventually(lambda: served.requests == 2)
        third = asyncio.create_task(served.chat(model="agent", headers=[*HERE, ("idempotency-key", "k")]))
        await eventually(lambda: served.requests == 3)
        for number in range(3):
            await agent.ran(number + 1)
            agent.end("Hi")
        assert [text_of(answer) for answer in await within(asyncio.gather(first, second, third))] == ["Hi"] * 3


async def test_a_place_that_is_not_to_be_had_does_not_use_up_the_key() -> None:
    agent = Told()
    server = with_memory(agent, max_concurrent_runs=1, max_queued_runs=0)
    key: Headers = [*HERE, ("idempotency-key", "k")]
    async with serve(server) as served:
        busy = asyncio.create_task(served.chat(model="agent"))
        await agent.ran()
        refused = await served.chat(model="agent", headers=key)
        assert refused.status == 429
        assert refused.header("retry-after") is not None
        agent.end("busy")
        await within(busy)
        agent.end("Hi")
        assert await said(served, "hello", key) == "Hi"


async def test_turns_of_different_owners_and_of_new_sessions_do_not_wait() -> None:
    agent = Told()
    server = with_memory(agent, conversation_busy="refuse")
    async with serve(server) as served:
        headers: Sequence[Headers] = [HERE, as_caller("alice", *HERE), as_caller("bob", *HERE), (), ()]
        asking = [asyncio.create_task(served.chat(model="agent", headers=one)) for one in headers]
        await agent.ran(len(headers))
        for _ in headers:
            agent.end("Hi")
        assert {text_of(answer) for answer in await within(asyncio.gather(*asking))} == {"Hi"}


# --- a store that is away


@keyed
async def test_a_session_that_cannot_be_reached_is_told(key: Headers) -> None:
    agent = Told()
    server = with_memory(agent)
    async with serve(server) as served:
        store = await store_of(server)
        with away(store):
            refused = await served.chat(model="agent", headers=[*HERE, *key])
            assert (refused.status, refused.error()["code"]) == (503, "storage_unavailable")
            assert refused.header("retry-after") == "1"
        assert agent.requests == []
        agent.end("Hi")
        assert await said(served, "", [*HERE, *key]) == "Hi"


async def test_a_turn_that_cannot_be_taken_does_not_use_up_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Told()
    server = with_memory(agent)
    key: Headers = [*HERE, ("idempotency-key", "k")]
    async with serve(server) as served:
        await store_of(server)
        assert server._runs is not None

        async def take(*_: object, **__: object) -> None:
            raise StorageUnavailableError("away")

        with monkeypatch.context() as patch:
            patch.setattr(server._runs.turns, "take", take)
            refused = await served.chat(model="agent", headers=key)
        assert (refused.status, refused.error()["code"]) == (503, "storage_unavailable")
        assert refused.header("retry-after") == "1"
        assert refused.header("x-should-retry") is None
        agent.end("Hi")
        assert await said(served, "hello", key) == "Hi"


@streamed
async def test_without_a_name_an_answer_is_given_though_it_cannot_be_remembered(
    stream: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGENTRUN_HOME", str(tmp_path / "file" / "home"))
    async with serve(with_memory(hello)) as served:
        assert await said(served, "you", (), stream=stream) == "hello you"
        assert (await served.chat(model="agent", headers=HERE)).status == 503
    assert "a session cannot be written" in caplog.text


# --- the Responses API


@streamed
@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
async def test_an_agent_has_a_session_behind_the_responses_api_too(stream: bool, store: bool) -> None:
    async def agent(request: AgentRequest) -> str:
        assert request.session is not None
        visits = (await request.session.get_state_async()).get("visits", 0) + 1
        await request.session.update_state_async(visits=visits)
        return f"{visits} of {request.session.id}"

    server = keeping(agent, memory="notes")

    async def ask(served: Served, headers: Headers = (), **fields: Any) -> Response:
        body = json.dumps({"model": "m", "input": "Hi", "stream": stream, "store": store, **fields}).encode()
        return await served.ask("POST", "/v1/responses", body, headers)

    async with serve(server) as served:
        for number in (1, 2):
            answer = await ask(served, HERE)
            assert answer.status == 200
            assert answer.header(SESSION) == "trip"
            assert f"{number} of trip".encode() in answer.body
        alone = await ask(served)
        identity = alone.header(SESSION)
        assert identity is not None
        assert f"1 of {identity}".encode() in alone.body
        if store:
            conversation = (await served.ask("POST", "/v1/conversations", b"{}")).json()["id"]
            answer = await ask(served, HERE, conversation=conversation)
            assert answer.header(SESSION) == conversation
            assert f"1 of {conversation}".encode() in answer.body
        assert (await ask(served, [(SESSION, "a b")])).status == 400
        chat = await served.chat(headers=HERE)
        assert text_of(chat) == "3 of trip"


async def test_the_setting_says_how_long_a_session_stays() -> None:
    for settings, stays in (({}, 90 * 24 * 3600), ({"session_ttl": 60}, 60), ({"session_ttl": None}, None)):
        server = with_memory(hello, **settings)
        begun = time.time()
        async with serve(server) as served:
            await said(served, "Hi")
            (session,) = await kept(server, "session")
        expires_at = session.expires_at
        if stays is None:
            assert expires_at in (None, float("inf"))
        else:
            assert expires_at is not None
            assert begun + stays <= expires_at <= time.time() + stays


async def test_the_same_memory_is_found_by_another_server() -> None:
    for expected in (0, 2):
        async with serve(with_memory(hello)) as served:
            assert len(await remembered(served)) == expected
