"""A client that reads slowly, or not at all, holds its agent back, costs little memory, and is dropped in the end."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.invoker.agent import AgentCallable
from agentrun_server.invoker.threads import Threads
from tests.support.agents import Witness
from tests.support.chat_oracle import check_completion
from tests.support.clock import after, eventually, within
from tests.support.raw_client import RawClient
from tests.support.serve import Served, open_requests, serve, the_request

PIECE = "x" * 16_000
TOO_MUCH = 12 * 1024 * 1024
"""More than the socket buffers of the kernel hold, on both sides."""


class Talker:
    """An agent that talks without end, or `pieces` pieces; `said` counts their bytes."""

    def __init__(self, *, pieces: int = TOO_MUCH // len(PIECE)) -> None:
        self.witness = Witness()
        self.pieces = pieces
        self.said = 0

    async def bursting(self, request: AgentRequest) -> AsyncIterator[str]:
        """Every piece is ready at once."""
        try:
            for _ in range(self.pieces):
                self.said += len(PIECE)
                yield PIECE
        finally:
            self.witness.note("ended")

    async def pacing(self, request: AgentRequest) -> AsyncIterator[str]:
        """It waits before each piece."""
        try:
            for _ in range(self.pieces):
                await asyncio.sleep(0)
                self.said += len(PIECE)
                yield PIECE
        finally:
            self.witness.note("ended")

    def on_thread(self, request: AgentRequest) -> Iterator[str]:
        """It is a sync generator."""
        try:
            for _ in range(self.pieces):
                self.said += len(PIECE)
                yield PIECE
        finally:
            self.witness.note("ended")

    def agent(self, kind: str) -> AgentCallable:
        agent: AgentCallable = getattr(self, kind)
        return agent


talkers = pytest.mark.parametrize("kind", ["bursting", "pacing", "on_thread"])


async def held_back(server: AgentRunServer) -> None:
    """Wait until the agent waits for the client to read."""
    await eventually(lambda: the_request(server).blocked_since > 0)


async def is_dropped(server: AgentRunServer, client: RawClient) -> None:
    """Let `write_timeout` pass; see that the connection ends, and not in good order."""
    after(server, server.config.write_timeout + 1)  # type: ignore[operator]
    assert not (await client.ended()).endswith(b"0\r\n\r\n")


async def nothing_left(server: AgentRunServer, served: Served) -> None:
    await served.nothing_left()
    assert server._sweeper.active == set()
    assert server._admission.running == 0


@talkers
async def test_an_agent_waits_for_its_reader(kind: str, http: str) -> None:
    talker = Talker()
    server = AgentRunServer(talker.agent(kind))
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await held_back(server)
            said = talker.said
            for _ in range(100):
                await asyncio.sleep(0)
            assert talker.said <= said + 64 * len(PIECE), "it does not go on meanwhile"
            assert talker.said < TOO_MUCH
            client.rst()
            await talker.witness.saw("ended")
        await nothing_left(server, served)


async def test_readers_that_read_nothing_cost_little_memory() -> None:
    readers = 50
    talker = Talker()
    server = AgentRunServer(talker.pacing)
    async with serve(server) as served:
        before = resident()
        clients = [served.client(receive_buffer=4096) for _ in range(readers)]
        try:
            for client in clients:
                await client.__aenter__()
                await client.chat()
            await eventually(lambda: len(server._sweeper.active) == readers)
            await eventually(lambda: all(attachment.blocked_since for attachment in open_requests(server)))
            grown = resident() - before
        finally:
            for client in clients:
                client.rst()
        await nothing_left(server, served)
    assert grown < readers * 2 * 1024 * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@talkers
async def test_a_reader_that_reads_nothing_is_dropped(kind: str, http: str, caplog: pytest.LogCaptureFixture) -> None:
    talker = Talker()
    server = AgentRunServer(talker.agent(kind))
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await held_back(server)
            after(server, 30)
            assert the_request(server).run.stop_reason is None
            await is_dropped(server, client)
            await talker.witness.saw("ended")
        await nothing_left(server, served)
    assert "client reads nothing" in caplog.text


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_reader_that_does_not_read_the_end_is_dropped(stream: bool, http: str) -> None:
    """The agent has ended; only its last words wait."""

    async def agent(request: AgentRequest) -> str:
        return "x" * TOO_MUCH

    server = AgentRunServer(agent)
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat(stream=stream)
            await held_back(server)
            await is_dropped(server, client)
        await nothing_left(server, served)


async def test_a_large_answer_that_is_read_comes_whole(http: str) -> None:
    async def agent(request: AgentRequest) -> str:
        return "x" * 1_000_000

    async with serve(AgentRunServer(agent), http=http) as served, served.client() as client:
        for _ in range(2):
            await client.chat(stream=False)
            answer = await client.response()
            assert check_completion(answer.json()).text == "x" * 1_000_000


async def test_a_reader_that_does_not_read_before_a_silence_is_dropped(http: str) -> None:
    """Nothing is written but a heartbeat, and that waits too."""
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            yield "x" * TOO_MUCH
            await witness.hang()
        finally:
            witness.note("ended")

    server = AgentRunServer(agent)
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await witness.saw("waiting")
            after(server, 16)
            await held_back(server)
            await is_dropped(server, client)
            await witness.saw("ended")
        await nothing_left(server, served)


async def test_a_reader_that_does_not_read_an_error_is_dropped(http: str) -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            yield "x" * TOO_MUCH
            await asyncio.sleep(0)
            raise ValueError
        finally:
            witness.note("ended")

    server = AgentRunServer(agent)
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await witness.saw("ended")
            await held_back(server)
            await is_dropped(server, client)
        await nothing_left(server, served)


@talkers
async def test_a_run_ends_in_time_however_slowly_it_is_read(
    kind: str, http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write comes through before `write_timeout`; the run as a whole has its limit all the same."""
    monkeypatch.setattr("agentrun_server.server.attachment._LAST_WORDS_TIMEOUT", 0.05)
    talker = Talker()
    server = AgentRunServer(talker.agent(kind), config=ServerConfig(write_timeout=None, run_timeout=60))
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await held_back(server)
            after(server, 61)
            await talker.witness.saw("ended")
            await eventually(lambda: not server._sweeper.active)
            assert not (await client.ended()).endswith(b"0\r\n\r\n")
        await nothing_left(server, served)


@talkers
async def test_a_reader_that_comes_back_in_time_misses_nothing(kind: str, http: str) -> None:
    talker = Talker(pieces=450)
    server = AgentRunServer(talker.agent(kind))
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await held_back(server)
            after(server, 50)
            events = await client.rest()
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert len(text) == 450 * len(PIECE)
        assert events[-1] == "[DONE]"
        await nothing_left(server, served)


@talkers
async def test_a_run_that_may_outlive_its_client_is_not_held_back_by_it(kind: str, http: str) -> None:
    """With ``on_disconnect="continue"`` the connection is dropped, and the run goes on."""
    talker = Talker(pieces=TOO_MUCH // len(PIECE))
    server = AgentRunServer(talker.agent(kind), config=ServerConfig(on_disconnect="continue", store_url=None))
    async with serve(server, http=http) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await held_back(server)
            await is_dropped(server, client)
            await talker.witness.saw("ended")
        assert talker.said >= TOO_MUCH - len(PIECE)
        await nothing_left(server, served)


async def test_an_agent_that_runs_out_of_time_of_its_own_while_it_is_not_read_loses_nothing(
    http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timeout fires while the server waits for the client to read what the agent said before."""
    monkeypatch.setattr("agentrun_server.runs.pump._MAX_DELAY", 60)  # so that the small piece waits with it
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "x" * TOO_MUCH
        yield " small"
        try:
            async with asyncio.timeout(0.05):
                await witness.hang()
        except TimeoutError:
            yield " late"

    server = AgentRunServer(agent)
    async with serve(server, http=http) as served, served.client(receive_buffer=4096) as client:
        await client.chat()
        await witness.saw("cancelled")
        events = await client.rest()
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert text.lstrip("x") == " small late"
        assert len(text) == TOO_MUCH + len(" small late")


async def test_an_agent_whose_own_timeout_cuts_off_a_piece_has_failed(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A generator that yields inside a timeout is cancelled where its piece waits: outside of it. No fake success."""
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(0.1):
                while True:
                    yield PIECE
        finally:
            witness.note("ended")

    server = AgentRunServer(agent)
    async with serve(server, http=http) as served, served.client(receive_buffer=4096) as client:
        await client.chat()
        await witness.saw("ended")
        *_, last, done = await client.rest()
        assert last["error"]["code"] == "agent_error"
        assert done == "[DONE]"
    assert "agent failed" in caplog.text or "cancelled itself" in caplog.text


@pytest.mark.parametrize(("piece", "most"), [("y", 64), ("y" * 100_000, 11)], ids=["small", "large"])
async def test_a_thread_is_never_far_ahead(piece: str, most: int) -> None:
    """By number or by size: it waits before the loop has to hold more."""
    said: list[int] = []

    def agent(request: AgentRequest) -> Iterator[str]:
        for i in range(200):
            said.append(i)
            yield piece

    threads = Threads(1, max_waiting=0, timeout=1, grace=1)
    batches = threads.run(lambda: agent(AgentRequest()), "agent")
    first = await within(anext(batches))
    await eventually(lambda: len(said) >= most)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(said) <= len(first) + most + 1
    await batches.aclose()
    assert threads.running == threads.zombies == 0
