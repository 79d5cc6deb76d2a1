"""Every example runs: it is imported, asked in both ways, and does what its text says."""

import asyncio
import importlib.util
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest

from agentrun_server import AgentRequest, AgentRunServer, OpenAIProtocolHandler
from agentrun_server.errors import ConfigurationError
from agentrun_server.server.asgi import Receive, Scope, Send
from agentrun_server.testing import FakeOpenAI, ToolCallSpec, Turn, UpstreamError, Usage, openai_client
from scripts.client_envs import python_environment
from tests.docs.markdown import ROOT
from tests.support.clock import within
from tests.support.serve import Served, serve

EXAMPLES = ROOT / "examples"
WITH_ENVIRONMENT = {"langgraph_agent"}
"""Examples that need packages which the tests do not have; these run in an environment of their own."""

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@contextmanager
def example(name: str) -> Iterator[ModuleType]:
    """Import an example, as uvicorn would."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


async def ask(client: openai.AsyncOpenAI, text: str, **options: Any) -> str:
    """Ask in both ways; return the answer, which must be the same."""
    messages: Any = [{"role": "user", "content": text}]
    whole = await client.chat.completions.create(messages=messages, **{"model": "m", **options})
    stream = await client.chat.completions.create(messages=messages, stream=True, **{"model": "m", **options})
    pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    return "".join(pieces)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_how_it_is_started(name: str) -> None:
    assert f"uvicorn {name}:server" in (EXAMPLES / f"{name}.py").read_text("utf-8")


def test_every_example_has_a_test_here() -> None:
    tested = set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text("utf-8"))) | WITH_ENVIRONMENT
    assert set(NAMES) <= tested


async def test_hello_says_hello() -> None:
    with example("hello") as module:
        async with openai_client(module.server) as client:
            assert await ask(client, "world") == "Hello, world"


async def test_streaming_sends_reasoning_text_sources_and_usage() -> None:
    with example("streaming") as module:
        async with openai_client(module.server) as client:
            answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "A poem!"}])
    message = answer.choices[0].message
    assert message.content == module.POEM + " "
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"].startswith("A poem is wanted.")
    assert message.annotations is not None
    assert message.annotations[0].url_citation.url == module.SOURCE
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 21)


async def test_sync_agent_uses_its_database_on_one_thread() -> None:
    with example("sync_agent") as module:
        async with openai_client(module.server) as client:
            assert await ask(client, "Cities?") == "Paris: 2,102,650\nLyon: 522,250\nNice: 348,085\n"


async def test_server_tool_is_seen_only_by_those_who_ask() -> None:
    with example("server_tool") as module:
        async with openai_client(module.server) as client:
            assert await ask(client, "2026-01-31") == "2026-01-31 is a Saturday."
            assert await ask(client, "tomorrow") == "Please give me a date, as in 2026-01-31."
            answer = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "2026-01-31"}],
                extra_headers={"X-Agent-Events": "tools,progress"},
            )
    assert answer.model_extra is not None
    seen = [event["type"] for event in answer.model_extra["x_agent"]["events"]]
    assert seen == ["progress", "tool_call.started", "tool_call.completed"]


async def test_client_tool_is_handed_to_the_client_and_its_result_is_used() -> None:
    tools: Any = [{"type": "function", "function": {"name": "get_position"}}]
    messages: list[Any] = [{"role": "user", "content": "Where am I?"}]
    with example("client_tool") as module:
        async with openai_client(module.server) as client:
            assert (await ask(client, "Where am I?")).startswith("I cannot know")
            first = await client.chat.completions.create(model="m", messages=messages, tools=tools)
            assert first.choices[0].finish_reason == "tool_calls"
            assert first.choices[0].message.tool_calls
            call = first.choices[0].message.tool_calls[0]
            messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "48.85, 2.35"}]
            second = await client.chat.completions.create(model="m", messages=messages, tools=tools)
    assert second.choices[0].message.content == "Your position is 48.85, 2.35."


async def test_several_agents_are_models() -> None:
    with example("several_agents") as module:
        async with openai_client(module.server) as client:
            listed = [model.id async for model in client.models.list()]
            assert listed == ["shout", "reverse", "greeter-en", "greeter-fr"]
            said = [await ask(client, "hi", model=model, user="Ada") for model in listed]
            assert said == ["HI ", "ih", "Hello, Ada!", "Bonjour, Ada!"]
            with pytest.raises(openai.NotFoundError):
                await ask(client, "hi", model="whisper")


@asynccontextmanager
async def upstream(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[openai.AsyncOpenAI]:
    """Serve the upstream example in front of `fake`; give a client."""
    async with fake.serve() as base_url:
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test")
        with example("openai_upstream") as module:
            async with serve(module.server) as served, _client(served) as client:
                yield client


@asynccontextmanager
async def _client(served: Served, api_key: str = "unused") -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=api_key, max_retries=0)
    async with client:
        yield client


async def test_openai_upstream_passes_text_parameters_and_usage_through(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOpenAI([Turn("It is sunny.", usage=Usage(30, 4))] * 2)
    async with upstream(fake, monkeypatch) as client:
        assert await ask(client, "Weather?", temperature=0.5) == "It is sunny."
    sent = fake.requests[0].json
    assert sent["temperature"] == 0.5
    assert "top_p" not in sent
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]


async def test_openai_upstream_hands_the_calls_of_client_tools_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOpenAI(Turn(tool_calls=[ToolCallSpec("get_weather", {"city": "Paris"}, id="call_7")]))
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    async with upstream(fake, monkeypatch) as client:
        answer = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Weather?"}], tools=tools
        )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls
    call: Any = answer.choices[0].message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == (
        "call_7",
        "get_weather",
        {"city": "Paris"},
    )


async def test_openai_upstream_tells_that_the_model_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = UpstreamError(429, "slow down", headers={"x-should-retry": "false"})
    async with upstream(FakeOpenAI(Turn(error=busy)), monkeypatch) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "model_busy"


async def test_openai_upstream_stops_the_model_when_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()
    fake = FakeOpenAI(Turn("one two three", gate=held, gate_at=1))
    async with upstream(fake, monkeypatch) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Count"}], stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        assert await within(fake.requests[0].ended()) == "disconnected"


async def test_own_protocol_stands_beside_chat_completions() -> None:
    with example("own_protocol") as module:
        async with serve(module.server) as served:
            answer = await served.ask("POST", "/plain/ask", b"How are you?")
            assert (answer.status, answer.body) == (200, b"You said: How are you?")
            async with _client(served) as client:
                assert await ask(client, "Hi") == "You said: Hi"


async def test_own_protocol_stops_the_agent_when_the_client_leaves() -> None:
    ended = asyncio.Event()

    async def invoke_agent(_: AgentRequest) -> AsyncIterator[str]:
        try:
            yield "one"
            await asyncio.Event().wait()
        finally:
            ended.set()

    with example("own_protocol") as module:
        server = AgentRunServer(invoke_agent, protocols=[OpenAIProtocolHandler(), module.PlainTextProtocol()])
        async with serve(server) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"POST /plain/ask HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nHi")
            await within(reader.readuntil(b"one"))
            writer.close()
            await within(ended.wait())
            await within(writer.wait_closed())


async def test_background_goes_on_without_its_client_which_comes_back_and_misses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, bytes]] = []
    works = asyncio.Event()

    with example("background") as module:

        async def sleep(seconds: float) -> None:
            if seconds == module.WORK:
                await works.wait()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                asked.append((scope["method"], scope["query_string"]))
            await module.server(scope, receive, send)

        monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
        said = "# Tea\n" + "".join(f"{number}. {name}\n" for number, name in enumerate(module.CHAPTERS, 1))
        async with serve(app) as served, _client(served) as client:
            response_id = await module.ask(client, "Tea")
            pieces: list[str] = []
            async for piece in module.follow(client, response_id):
                if not pieces:
                    served.drop_connections()
                    works.set()
                pieces.append(piece)
            assert "".join(pieces) == said
            assert [method for method, _ in asked] == ["POST", "GET", "GET"]
            assert b"starting_after" not in asked[1][1]
            assert re.search(rb"starting_after=\d+", asked[2][1])
            assert "".join([piece async for piece in module.follow(client, response_id)]) == said


async def test_background_has_a_client_that_comes_back_by_the_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with example("background") as module:
        monkeypatch.setattr(module, "WORK", 0.0)
        async with serve(module.server) as served:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
            await module.main("Tea")
            first = _without_logs(capsys)
            response_id = first[0].strip("()")
            assert response_id.startswith("resp_")
            assert first[1:3] == ["# Tea", "1. Origins"]
            await module.main(response_id)
            assert _without_logs(capsys) == first


def _without_logs(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]


async def test_sessions_keeps_a_list_for_each_conversation() -> None:
    async def say(client: openai.AsyncOpenAI, text: str, conversation: str = "market") -> str:
        answer = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": text}],
            extra_headers={"X-Conversation-Id": conversation},
        )
        return answer.choices[0].message.content or ""

    with example("sessions") as module:
        async with openai_client(module.server) as client:
            assert await say(client, "two lemons") == "On the list: two lemons."
            assert await say(client, "salt") == "On the list: two lemons, salt."
            assert await say(client, "soap", "chemist") == "On the list: soap."
    with example("sessions") as module:  # started again
        async with openai_client(module.server) as client:
            assert (await say(client, "what did I say")).splitlines() == [
                "user: two lemons",
                "assistant: On the list: two lemons.",
                "user: salt",
                "assistant: On the list: two lemons, salt.",
            ]
            assert await say(client, "done") == "Everything is forgotten."
            assert await say(client, "what did I say") == ""
            assert await say(client, "tea", "chemist") == "On the list: soap, tea."


async def _printed_by_principal(*arguments: str) -> str:
    """Return what ``python principal.py …`` prints: a token."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "principal.py"),
        *arguments,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "middleware")))},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await within(process.communicate(), 20)
    return printed.decode().strip()


async def test_principal_tells_each_caller_what_they_may_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_AUTH_JWT_KEY", "0123456789abcdef" * 4)
    tokens = await asyncio.gather(_printed_by_principal("ada", "admin"), _printed_by_principal("grace"))
    answers = []
    with example("principal") as module:
        async with serve(module.server) as served:
            for token in tokens:
                async with _client(served, token) as client:
                    answers.append(await ask(client, "Hi"))
            async with _client(served, tokens[0][:-4]) as client:
                with pytest.raises(openai.AuthenticationError):
                    await ask(client, "Hi")
    assert answers == [
        "Hello, ada. The shop is open until six. It has sold 42 books today.",
        "Hello, grace. The shop is open until six.",
    ]


def test_principal_does_not_start_without_a_key() -> None:
    with pytest.raises(ConfigurationError, match="nothing is checked"), example("principal"):
        raise AssertionError("it started")


@pytest.mark.clients
async def test_langgraph_agent_streams_what_the_graph_says() -> None:
    """In an environment that has LangGraph: served by its uvicorn, asked from here."""
    interpreter = await asyncio.to_thread(python_environment, "langgraph")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "middleware", EXAMPLES)))
    process = await asyncio.create_subprocess_exec(
        interpreter,
        *("-m", "uvicorn", "langgraph_agent:server", "--host", "127.0.0.1", "--port", "0"),
        env={**os.environ, "PYTHONPATH": paths, "LANGSMITH_TRACING": "false"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        said = (await within(process.stderr.readuntil(b"(Press CTRL+C to quit)"), 60)).decode()
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address, said
        async with openai.AsyncOpenAI(base_url=f"{address[0]}/v1", api_key="unused", max_retries=0) as client:
            assert await ask(client, "Hi") == "I was asked by a graph."
    finally:
        if process.returncode is None:
            process.kill()
        await within(process.communicate())
