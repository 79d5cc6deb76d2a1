"""Agents and clients that want too much: refused or cut off in good order, and the next request is answered."""

import asyncio
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.support.chat_oracle import check_chat_stream, check_completion
from tests.support.clock import within
from tests.support.raw_client import CHAT, RawClient, chat_body
from tests.support.remote_agent import CONTROL, Control
from tests.support.serve import REPOSITORY, ServerProcess, serve, serve_process

streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


# --- what an agent says


class Endless:
    """Agents that never end by themselves; `closed` when one was closed all the same."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def async_generator(self, request: AgentRequest) -> AsyncIterator[str]:
        try:
            while True:
                yield "and so on "
        finally:
            await asyncio.sleep(0)
            self.closed.set()

    def sync_generator(self, request: AgentRequest) -> Iterator[str]:
        try:
            while True:
                yield "and so on "
        finally:
            self._loop.call_soon_threadsafe(self.closed.set)


@streamed
@pytest.mark.parametrize("kind", ["async_generator", "sync_generator"])
async def test_an_endless_answer_ends_at_the_limit(kind: str, stream: bool) -> None:
    endless = Endless()
    server = AgentRunServer(getattr(endless, kind), config=ServerConfig(max_output_bytes=100_000))
    async with serve(server) as served:
        answer = await served.chat(stream=stream)
        await within(endless.closed.wait())
        await served.nothing_left()
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.choices[0].finish_reason == "length"
    assert len(parsed.text) == 100_000


async def test_a_huge_piece_comes_in_chunks_a_client_can_hold() -> None:
    async def agent(request: AgentRequest) -> str:
        return "ä" * 2_000_000

    async with serve(AgentRunServer(agent)) as served:
        answer = await served.chat(stream=True)
    assert check_chat_stream(answer.body, include_usage=False).text == "ä" * 2_000_000
    assert max(len(block) for block in answer.body.split(b"\n\n")) < 256 * 1024


@streamed
async def test_a_piece_of_any_character_is_one_event(stream: bool) -> None:
    """Control characters, every line end there is, halves of surrogate pairs, what looks like an event."""
    hard = [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)]
    hard += [
        "\ud800",
        "-",
        "\udfff",
        "\U0001f600",
        "data: [DONE]\n\n",
        "\n\nevent: x\nid: 1\n\n",
        ": comment\n",
        '"}],\\',
    ]

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for piece in hard:
            yield piece
            await asyncio.sleep(0)

    async with serve(AgentRunServer(agent)) as served:
        answer = await served.chat(stream=stream)
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == "".join(hard)


# --- what a client asks for


def messages(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x"}] * count


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


TOO_MUCH: dict[str, Callable[[], bytes]] = {
    "choices": lambda: chat_body(n=10**9),
    "no choices": lambda: chat_body(n=0),
    "logprobs": lambda: chat_body(logprobs=True, top_logprobs=10**9),
    "messages": lambda: chat_body(messages=messages(10_000)),
    "no messages": lambda: chat_body(messages=[]),
    "stops": lambda: chat_body(stop=["x"] * 10_000),
    "metadata": lambda: chat_body(metadata={str(i): "x" for i in range(1000)}),
    "tools": lambda: chat_body(tools=[{"type": "function", "function": {"name": "f" * 10_000}}]),
    "depth": lambda: b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "depth of an unknown field": lambda: chat_body(own=nested(400)),
    "digits": lambda: b'{"model":"m","seed":' + b"9" * 100_000 + b"}",
    "exponent": lambda: chat_body()[:-1] + b',"temperature":1e999999}',
    "strings": lambda: chat_body(model="m" * 1_000_000),
}


@pytest.mark.parametrize("what", TOO_MUCH)
async def test_a_request_for_too_much_is_refused_quickly(what: str) -> None:
    body = TOO_MUCH[what]()
    async with serve(AgentRunServer(echo)) as served:
        await served.chat()
        began = time.monotonic()
        answer = await served.ask("POST", CHAT, body)
        seconds = time.monotonic() - began
        assert 400 <= answer.status < 500, answer
        assert answer.error()["type"] == "invalid_request_error"
        assert len(answer.body) < 2000, "what was sent is not repeated"
        assert seconds < 1, "50 ms are promised; a busy machine may need more"
        assert (await served.chat()).status == 200


async def test_many_fields_cost_little() -> None:
    body = chat_body(stream=False, text="hi", **{f"field{i}": i for i in range(100_000)})
    async with serve(AgentRunServer(echo)) as served:
        began = time.monotonic()
        assert (await served.ask("POST", CHAT, body)).status == 200
        assert time.monotonic() - began < 2


async def test_colliding_keys_cost_little() -> None:
    """Small integers in strings, long common beginnings: nothing that a dict is slow with."""
    keys = ["".join(bits) for bits in itertools.product("ab", repeat=12)]
    body = chat_body(stream=False, text="hi", metadata=None, **{f"{'x' * 500}{key}": 1 for key in keys})
    async with serve(AgentRunServer(echo)) as served:
        began = time.monotonic()
        assert (await served.ask("POST", CHAT, body)).status == 200
        assert time.monotonic() - began < 2


async def test_a_long_history_is_read() -> None:
    history = [{"role": role, "content": "x" * 400} for role in ("user", "assistant") * 1000]
    body = json.dumps({"model": "m", "messages": [*history, {"role": "user", "content": "last"}]}).encode()
    async with serve(AgentRunServer(echo)) as served:
        assert check_completion((await served.ask("POST", CHAT, body)).json()).text == "last"


# --- what a process has


RUN = "from agentrun_server.server.serve import run; from tests.support.remote_agent import server; run({}, port=0)"


async def is_answered(running: ServerProcess, limit: float = 10.0) -> None:
    """Wait until a probe is answered."""

    async def answered() -> bool:
        try:
            return (await running.ask("GET", "/health")).status == 200
        except (AssertionError, OSError, TimeoutError):
            return False

    async with asyncio.timeout(limit):
        while not await answered():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.02)


async def test_a_process_out_of_files_recovers() -> None:
    """More clients than it may have files: some are not served, and it serves on when they have gone."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)); {RUN.format('server')}"
    async with serve_process("-c", limited, cwd=REPOSITORY, env={CONTROL: "0"}) as running:
        await is_answered(running)
        clients: list[RawClient] = [running.client() for _ in range(150)]
        for client in clients:
            await client.__aenter__()
            await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        for client in clients:
            client.rst()
        await is_answered(running)
        answer = await running.ask("POST", CHAT, chat_body(model="none"))
        assert answer.error()["code"] == "model_not_found"


async def test_a_worker_that_is_killed_is_replaced() -> None:
    workers = RUN.replace("from tests.support.remote_agent import server; ", "").format(
        "'tests.support.remote_agent:server', workers=2"
    )
    async with (
        Control.listen() as control,
        serve_process("-c", workers, cwd=REPOSITORY, env={CONTROL: str(control.port)}) as running,
    ):
        await running.logged(r"(?s)startup complete.*startup complete")
        async with running.client() as client:
            await client.chat()
            run = await control.run()
            await run.say("one")
            assert await client.piece() == "one"
            running.kill_worker()
            await running.logged(r"(?s)(startup complete.*){3}")
            await is_answered(running)
        running.signal(signal.SIGTERM)
        assert await running.exit_code() == 143
