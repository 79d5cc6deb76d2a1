"""The official client is the judge: what it makes of our answers. `openai` 3 speaks in this process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from agentrun_server import AgentError, AgentEvent, AgentRequest, AgentRunServer, EventType, ServerConfig, events
from agentrun_server.testing import openai_client
from tests.conformance.requirements import requirement
from tests.support.clock import within

QUESTION: Any = {"model": "agent", "messages": [{"role": "user", "content": "Hi"}]}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g")]


def server(agent: Any, **settings: Any) -> AgentRunServer:
    return AgentRunServer(agent, config=ServerConfig(access_log=False, **settings))


async def talkative(request: AgentRequest) -> AsyncIterator[Any]:
    yield events.ReasoningDelta("hm")
    yield "Hel"
    await asyncio.sleep(0)
    yield "lo"
    yield events.Annotation.url_citation("https://e.com", "E")
    yield events.Annotation.url_citation("https://f.com", "F")
    yield events.Usage(3, 4)


async def calling(request: AgentRequest) -> AsyncIterator[Any]:
    yield events.FunctionCallDelta('{"a"', "f", "call_1")
    yield events.FunctionCallDelta(":1}", id="call_1")
    yield events.FunctionCall("g", "{}", "call_2")


class TestStreams:
    @requirement("chat.stream.role-once", "chat.stream.mergeable", "chat.stream.envelope", "activity.sources")
    async def test_the_stream_helper_puts_the_answer_together(self) -> None:
        async with openai_client(server(talkative)) as client:
            options: Any = {"include_usage": True}
            async with client.chat.completions.stream(**QUESTION, stream_options=options) as stream:
                seen = [event.type async for event in stream]
                answer = await within(stream.get_final_completion())
        (choice,) = answer.choices
        assert choice.message.role == "assistant"
        assert choice.message.content == "Hello"
        assert (choice.message.model_extra or {})["reasoning_content"] == "hm"
        assert [note["url_citation"]["title"] for note in (choice.message.model_dump()["annotations"])] == ["E", "F"]
        assert choice.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 7
        assert "content.done" in seen

    @requirement("chat.stream.tool-calls", "chat.stream.tool-call-order")
    async def test_the_stream_helper_puts_calls_together(self) -> None:
        async with (
            openai_client(server(calling)) as client,
            client.chat.completions.stream(**QUESTION, tools=TOOLS) as stream,
        ):
            done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
            answer = await within(stream.get_final_completion())
        assert [(event.index, event.name, event.arguments) for event in done] == [(0, "f", '{"a":1}'), (1, "g", "{}")]
        (choice,) = answer.choices
        assert [call.id for call in choice.message.tool_calls or ()] == ["call_1", "call_2"]
        assert choice.finish_reason == "tool_calls"

    @requirement("chat.stream.usage-unasked")
    @pytest.mark.parametrize("agent", [talkative, calling])
    async def test_a_loop_that_reads_the_first_choice_of_every_chunk_works(self, agent: Any) -> None:
        async with openai_client(server(agent)) as client:
            stream = await client.chat.completions.create(**QUESTION, tools=TOOLS, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == ("Hello" if agent is talkative else "")

    @requirement("chat.stream.heartbeat")
    async def test_comments_are_not_seen(self) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            yield "Hel"
            await asyncio.sleep(0.05)
            yield "lo"

        async with openai_client(server(agent, heartbeat_interval=0.01, response_hold=0.01)) as client:
            stream = await client.chat.completions.create(**QUESTION, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "Hello"

    @requirement("activity.chunks")
    async def test_activity_does_not_disturb_the_helper(self) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[Any]:
            for i in range(3):
                yield events.Custom("list", [{"no": i}])
                yield events.FunctionCall("own", {"a": [1]}, f"own_{i}")  # type: ignore[arg-type]
                yield events.FunctionCallOutput(f"own_{i}", [{"hit": i}])
                yield "a"

        async with (
            openai_client(server(agent, agent_events=("tools", "steps", "io"))) as client,
            client.chat.completions.stream(**QUESTION) as stream,
        ):
            answer = await within(stream.get_final_completion())
        assert answer.choices[0].message.content == "aaa"
        assert not answer.choices[0].message.tool_calls


class TestBodies:
    @requirement("chat.completion.shape")
    async def test_the_clients_types_hold(self) -> None:
        async with openai_client(server(talkative)) as client:
            answer = await within(client.chat.completions.create(**QUESTION))
        strict = type(answer).model_validate(answer.model_dump(), strict=True)
        assert strict.choices[0].message.content == "Hello"
        assert strict.usage is not None
        assert strict.usage.prompt_tokens == 3

    @requirement("chat.http.request-id")
    async def test_the_client_finds_the_request_id(self) -> None:
        async with openai_client(server(talkative)) as client:
            answer = await within(client.chat.completions.create(**QUESTION))
        assert (answer._request_id or "").startswith("req_")

    @requirement("chat.models")
    async def test_models_are_found(self) -> None:
        agents = {"a/b": talkative, "c": calling}
        async with openai_client(server(agents)) as client:
            assert [model.id async for model in client.models.list()] == ["a/b", "c"]
            assert (await within(client.models.retrieve("a/b"))).object == "model"
            with pytest.raises(openai.NotFoundError):
                await within(client.models.retrieve("d"))


class TestErrors:
    @requirement("chat.error.client-raises", "chat.error.agent-failed")
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("late", [True, False])
    async def test_a_failed_agent_is_an_error_and_runs_once(self, stream: bool, late: bool) -> None:
        runs: list[int] = []

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            runs.append(1)
            if late:
                yield "Hel"
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            raise ValueError("no")

        async with openai_client(server(agent), max_retries=2) as client:
            with pytest.raises(openai.APIError) as raised:  # noqa: PT012 - the call or the stream
                answer: Any = await within(client.chat.completions.create(**QUESTION, stream=stream))
                if stream:
                    _ = [chunk async for chunk in answer]
        assert raised.value.code == "agent_error"
        assert len(runs) == 1
        assert isinstance(raised.value, openai.InternalServerError) is not (stream and late)

    @requirement("chat.error.client-raises")
    @pytest.mark.parametrize(
        ("fields", "kind"),
        [
            ({"temperature": 5}, openai.BadRequestError),
            ({"model": "unknown"}, openai.NotFoundError),
        ],
    )
    async def test_each_status_has_its_class(self, fields: dict[str, Any], kind: type[openai.APIStatusError]) -> None:
        async with openai_client(server({"agent": talkative}), max_retries=2) as client:
            with pytest.raises(kind) as raised:
                await within(client.chat.completions.create(**{**QUESTION, **fields}))
        assert raised.value.request_id is not None
        assert raised.value.request_id.startswith("req_")

    @requirement("chat.error.client-raises", "chat.error.agent-error")
    async def test_an_agents_own_error_reaches_the_caller(self) -> None:
        async def agent(request: AgentRequest) -> str:
            raise AgentError("Out of credit.", status_code=429, code="no_credit")

        async with openai_client(server(agent), max_retries=2) as client:
            with pytest.raises(openai.RateLimitError, match=r"Out of credit\.") as raised:
                await within(client.chat.completions.create(**QUESTION))
        assert raised.value.code == "no_credit"

    @requirement("chat.error.mid-stream", "chat.error.client-raises")
    async def test_an_error_event_in_the_stream_is_raised_with_its_words(self) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[Any]:
            yield "Hel"
            yield AgentEvent(EventType.ERROR, {"message": "Broken.", "code": "broken"})

        async with openai_client(server(agent)) as client:
            with pytest.raises(openai.APIError, match=r"Broken\.") as raised:
                async for _ in await client.chat.completions.create(**QUESTION, stream=True):
                    pass
        assert raised.value.code == "broken"

    @requirement("chat.error.busy", "chat.error.client-raises")
    async def test_a_busy_server_is_asked_again(self) -> None:
        held, started, runs = asyncio.Event(), asyncio.Event(), []

        async def agent(request: AgentRequest) -> str:
            runs.append(1)
            started.set()
            await held.wait()
            return "Hello"

        busy = server(agent, max_concurrent_runs=1, max_queued_runs=0)
        async with openai_client(busy, max_retries=5) as client:
            first = asyncio.create_task(client.chat.completions.create(**QUESTION))
            await within(started.wait())
            second = asyncio.create_task(client.chat.completions.create(**QUESTION))
            asyncio.get_running_loop().call_later(0.05, held.set)
            answers = await within(asyncio.gather(first, second))
        assert [answer.choices[0].message.content for answer in answers] == ["Hello", "Hello"]
        assert len(runs) == 2
