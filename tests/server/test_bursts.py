"""When bytes are sent: what is ready together goes together, nothing is held back, and nobody starves."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from agentrun_server import AgentRequest, AgentRunServer
from tests.support.agents import Witness
from tests.support.chat_oracle import check_chat_stream
from tests.support.raw_client import RawClient
from tests.support.serve import serve


def text_in(chunk: bytes) -> str:
    """Return the answer text in one write of the server."""
    blocks = [block.removeprefix("data: ") for block in chunk.decode().split("\n\n")]
    deltas = [json.loads(block)["choices"][0]["delta"] for block in blocks if block.startswith("{")]
    return "".join(delta.get("content") or "" for delta in deltas)


async def next_text(client: RawClient) -> str:
    if client.answer is None:
        await client.head()
    while True:
        text = text_in(await client.chunk())
        if text:
            return text


async def test_a_burst_comes_in_few_writes(http: str) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for i in range(200):
            yield f"{i} "

    async with serve(AgentRunServer(agent), http=http) as served, served.client() as client:
        await client.chat()
        await client.head()
        chunks = [chunk async for chunk in client.chunks()]
    assert len(chunks) <= 40, "200 pieces and 4 events more"
    assert all(chunk.endswith(b"\n\n") for chunk in chunks), "no event is cut in two"
    parsed = check_chat_stream(b"".join(chunks), include_usage=False)
    assert parsed.text == "".join(f"{i} " for i in range(200))


async def test_a_burst_from_a_thread_comes_whole(http: str) -> None:
    def agent(request: AgentRequest) -> Iterator[str]:
        for i in range(2000):
            yield f"{i} "

    async with serve(AgentRunServer(agent), http=http) as served, served.client() as client:
        await client.chat()
        parsed = check_chat_stream((await client.response()).body, include_usage=False)
    assert parsed.text == "".join(f"{i} " for i in range(2000))


async def test_a_large_burst_comes_in_writes_of_bounded_size() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for _ in range(5000):
            yield "a piece of some length "

    async with serve(AgentRunServer(agent)) as served, served.client() as client:
        await client.chat()
        await client.head()
        sizes = [len(chunk) async for chunk in client.chunks()]
    assert max(sizes) < 65 * 1024  # 64 KB and the piece that goes over


async def test_a_piece_for_which_the_agent_waited_is_sent_at_once(http: str) -> None:
    """And it comes before the agent goes on."""
    steps: list[asyncio.Event] = [asyncio.Event() for _ in range(3)]

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for i, step in enumerate(steps):
            await step.wait()
            yield f"p{i}"

    async with serve(AgentRunServer(agent), http=http) as served, served.client() as client:
        await client.chat()
        for i, step in enumerate(steps):
            step.set()
            assert await next_text(client) == f"p{i}"


async def test_what_is_ready_is_sent_before_the_agent_waits() -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "one "
        yield "two "
        yield "three"
        await witness.hang()

    async with serve(AgentRunServer(agent)) as served, served.client() as client:
        await client.chat()
        assert await next_text(client) == "one two three"
        client.fin()
        await witness.saw("cancelled")


async def test_a_thread_that_works_between_pieces_holds_none_back() -> None:
    witness = Witness()
    steps = [asyncio.Event() for _ in range(3)]
    loop = asyncio.get_running_loop()

    def agent(request: AgentRequest) -> Iterator[str]:
        for i, step in enumerate(steps):
            yield f"p{i}"
            asyncio.run_coroutine_threadsafe(step.wait(), loop).result(5)
        witness.note("ended")

    async with serve(AgentRunServer(agent)) as served, served.client() as client:
        await client.chat()
        for i, step in enumerate(steps):
            assert await next_text(client) == f"p{i}"
            step.set()
        await witness.saw("ended")


async def test_an_agent_that_blocks_the_loop_holds_a_piece_back_no_longer_than_it_blocks() -> None:
    """It should not; but each of its pieces is on its way before it blocks a second time."""
    blocks, seconds = 5, 0.03
    written: list[float] = []

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for i in range(blocks):
            time.sleep(seconds)  # noqa: ASYNC251 - what this test is about
            written.append(time.monotonic())
            yield f"p{i}"

    server = AgentRunServer(agent)
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await client.head()
        chunks = [chunk async for chunk in client.chunks()]
    assert [text_in(chunk) for chunk in chunks if text_in(chunk)] == [f"p{i}" for i in range(blocks)]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_agent_that_never_waits_does_not_starve_others(stream: bool) -> None:
    stop = False

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        if request.messages[0].text == "short":
            for i in range(3):
                await asyncio.sleep(0)
                yield str(i)
        else:
            while not stop:
                yield "on and on "

    server = AgentRunServer(agent)
    async with serve(server) as served, served.client() as talker, served.client() as other:
        await talker.chat(text="long", stream=stream)
        if stream:
            await next_text(talker)
            reading = asyncio.create_task(talker.ended())
        for _ in range(3):
            began = time.monotonic()
            await other.chat(text="short")
            parsed = check_chat_stream((await other.response()).body, include_usage=False)
            other.answer = None
            assert parsed.text == "012"
            assert time.monotonic() - began < 2
        stop = True
        talker.fin()
        if stream:
            await reading


async def test_an_agent_that_never_waits_can_be_cancelled() -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            while True:
                yield ""  # says nothing, for ever
                yield "x"
        finally:
            witness.note("ended")

    server = AgentRunServer(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=False)
            client.rst()
            await witness.saw("ended")
        await served.nothing_left()
