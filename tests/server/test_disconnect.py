"""A client that leaves: its run is cancelled at once, cleans up, and leaves nothing behind."""

import asyncio
import time
from contextlib import suppress

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.support.agents import ASYNC_STREAMS, FUNCTIONS, SYNC_STREAMS, HangingAgent, Witness
from tests.support.clock import after, eventually
from tests.support.raw_client import RawClient
from tests.support.serve import Served, serve, the_request

STREAMS = {**ASYNC_STREAMS, **SYNC_STREAMS}
PROMISED = 0.1
"""Within how many seconds a run is cancelled; `python -m tests.soak` measures it."""
GENEROUS = 1.0
"""What is asserted here, so that a busy machine fails no test."""

kinds = pytest.mark.parametrize("kind", STREAMS)
leaving = pytest.mark.parametrize("how", ["fin", "rst"])
streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


async def leaves(client: RawClient, how: str, witness: Witness) -> None:
    """Let the client leave; check that the agent hears of it soon, and cleans up."""
    left = time.monotonic()
    client.leave(how)
    assert await witness.saw("cancelled") - left < GENEROUS
    await witness.saw("ended")


async def nothing_left(server: AgentRunServer, served: Served) -> None:
    await served.nothing_left()
    assert server._sweeper.active == set()
    assert server._admission.running == 0
    await eventually(lambda: server._threads.running == server._threads.zombies == 0)


@kinds
@leaving
@pytest.mark.parametrize("index", [1, 2, 3])
async def test_a_client_that_leaves_after_a_piece_cancels_the_run(kind: str, how: str, index: int, http: str) -> None:
    witness = Witness()
    server = AgentRunServer(STREAMS[kind](witness, index))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            assert "".join([await client.piece() for _ in range(index)]) == "p0p1p2"[: 2 * index]
            await witness.saw("waiting")
            await leaves(client, how, witness)
        await nothing_left(server, served)


@pytest.mark.parametrize("kind", [*STREAMS, *FUNCTIONS])
@leaving
@streamed
async def test_a_client_that_leaves_before_the_first_byte_cancels_the_run(
    kind: str, how: str, stream: bool, http: str
) -> None:
    witness = Witness()
    agent = {**STREAMS, **FUNCTIONS}[kind](witness, 0)
    server = AgentRunServer(agent)
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat(stream=stream)
            await witness.saw("waiting")
            await leaves(client, how, witness)
        await nothing_left(server, served)


@kinds
@leaving
async def test_a_client_that_leaves_a_silent_stream_cancels_the_run(kind: str, how: str, http: str) -> None:
    witness = Witness()
    server = AgentRunServer(STREAMS[kind](witness, 0))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            after(server, server.config.response_hold + 1)
            assert (await client.head()).status == 200
            assert await client.event() == ": keep-alive"
            await leaves(client, how, witness)
        await nothing_left(server, served)


@pytest.mark.parametrize("kind", [*STREAMS, *FUNCTIONS])
@leaving
async def test_a_client_that_leaves_at_once_leaves_nothing_behind(kind: str, how: str, http: str) -> None:
    """Whether the agent was ever begun is a race; that nothing remains of it is not."""
    witness = Witness()
    server = AgentRunServer({**STREAMS, **FUNCTIONS}[kind](witness, 0))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            client.leave(how)
            await eventually(lambda: served.requests == 0)
        await nothing_left(server, served)
        if "started" in witness.notes:
            await witness.saw("ended")


@leaving
async def test_a_client_that_leaves_in_the_middle_of_its_body_ends_the_request(how: str, http: str) -> None:
    server = AgentRunServer(ASYNC_STREAMS["async generator"](Witness(), 0))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            await eventually(lambda: len(server._sweeper.active) == 1)
            client.leave(how)
            await eventually(lambda: served.requests == 0)
        await nothing_left(server, served)


async def test_a_sync_agent_is_begun_closed_and_ended_on_one_thread() -> None:
    witness = Witness()
    server = AgentRunServer(SYNC_STREAMS["sync generator"](witness, 1))
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await client.piece()
        await leaves(client, "fin", witness)
    assert len(witness.threads) == 1


async def test_clean_up_of_an_agent_is_not_cancelled_a_second_time() -> None:
    """Each wait in its ``finally`` blocks runs to the end, whatever else the server looks at meanwhile."""
    witness, go_on = Witness(), asyncio.Event()

    async def agent(request: AgentRequest) -> str:
        try:
            await witness.hang()
        finally:
            for i in range(3):
                await asyncio.sleep(0)
                witness.note(f"clean-up {i}")
            await go_on.wait()
            witness.note("ended")
        return ""

    server = AgentRunServer(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            client.fin()
            await witness.saw("clean-up 2")
            for _ in range(3):
                server._sweeper.tick()
            assert served.requests == 1
            assert server._admission.running == 1
            go_on.set()
            await witness.saw("ended")
        await nothing_left(server, served)
    assert witness.notes.count("cancelled") == 1


async def test_an_agent_sees_that_it_is_cancelled_on_its_request() -> None:
    witness = Witness()
    requests: list[AgentRequest] = []

    async def agent(request: AgentRequest) -> str:
        requests.append(request)
        assert not request.is_cancelled
        await witness.hang()

    async with serve(AgentRunServer(agent)) as served, served.client() as client:
        await client.chat()
        await witness.saw("waiting")
        client.rst()
        await witness.saw("cancelled")
        assert requests[0].is_cancelled


# --- agents that do not want to end


@streamed
async def test_an_agent_that_returns_when_it_is_cancelled_was_cancelled(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not look as if it had finished, and no further choice is begun."""
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        witness.note("started")
        try:
            await witness.hang()
        except asyncio.CancelledError:
            return "so be it"

    server = AgentRunServer(agent)
    facts: list[dict[str, object]] = []
    server._access_log = _Facts(facts)  # type: ignore[assignment]
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, n=3)
            await witness.saw("waiting")
            client.fin()
            await witness.saw("cancelled")
        await nothing_left(server, served)
    assert witness.notes.count("started") == 1
    assert facts[0]["run"] == "cancelled"
    assert facts[0]["stopped"] == "disconnected"
    assert not caplog.records


@streamed
async def test_an_agent_that_goes_on_talking_after_it_is_cancelled_is_closed(stream: bool) -> None:
    witness = Witness()

    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        witness.note("started")
        try:
            with suppress(asyncio.CancelledError):
                await witness.hang()
            while True:
                witness.note("talks")
                yield "blah"
        finally:
            await asyncio.sleep(0)
            witness.note("ended")

    server = AgentRunServer(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream, n=2)
            await leaves(client, "rst", witness)
        await nothing_left(server, served)
    assert witness.notes.count("started") == 1
    assert witness.notes.count("talks") == 1


async def test_an_agent_that_does_not_end_is_given_up_after_the_grace(caplog: pytest.LogCaptureFixture) -> None:
    """Its place is free again; it is cancelled once more, and its request is open until it ends."""
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        for _ in range(2):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                witness.note("cancelled")
        await witness.hang()

    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1, max_queued_runs=0))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await eventually(lambda: server._admission.running == 1)
            client.rst()
            await witness.saw("cancelled")
        assert (await served.chat()).status == 429
        after(server, server.config.cancel_grace + 1)
        await witness.saw("waiting")
        assert server._admission.running == 0
        assert "does not end after it was cancelled" in caplog.text
        assert witness.notes == ["cancelled", "cancelled", "waiting"]
        left = the_request(server)
        assert left.task is not None
        left.task.cancel()
        await nothing_left(server, served)


async def test_a_thread_that_does_not_end_is_counted_until_it_does() -> None:
    witness = Witness()
    let_go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def agent(request: AgentRequest) -> str:
        witness.note("waiting")
        asyncio.run_coroutine_threadsafe(let_go.wait(), loop).result(10)
        return "late"

    server = AgentRunServer(agent, config=ServerConfig(cancel_grace=0.02, max_sync_threads=2))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=False)
            await witness.saw("waiting")
            client.rst()
            await eventually(lambda: server._threads.zombies == 1)
        assert server._threads.running == 1, "the thread still runs: its place is taken"
        assert server._admission.running == 0
        assert (await served.ask("GET", "/readyz")).status == 503
        let_go.set()
        await nothing_left(server, served)
        assert (await served.ask("GET", "/readyz")).status == 200


async def test_clean_up_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        try:
            await witness.hang()
        finally:
            raise ValueError("could not clean up")

    server = AgentRunServer(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            client.fin()
            await witness.saw("cancelled")
        await nothing_left(server, served)
    assert "could not clean up" in caplog.text


async def test_clean_up_on_a_thread_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    witness = Witness()

    def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        try:
            witness.hang_on_thread(request)
            yield "x"
        finally:
            raise ValueError("could not clean up")

    server = AgentRunServer(agent)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            client.fin()
            await witness.saw("cancelled")
        await nothing_left(server, served)
    assert "could not clean up" in caplog.text


# --- on_disconnect="continue"


class _Facts:
    """Stands in for an `AccessLog`; keeps the facts of each line."""

    def __init__(self, facts: list[dict[str, object]]) -> None:
        self._facts = facts

    def write(self, scope: object, status: int, seconds: float, request_id: str, facts: dict[str, object]) -> None:
        self._facts.append({"status": status, **facts})

    def flush(self) -> None:
        pass


@leaving
@streamed
async def test_a_run_may_outlive_its_client(how: str, stream: bool, http: str) -> None:
    witness, go_on = Witness(), asyncio.Event()

    async def agent(request: AgentRequest):  # type: ignore[no-untyped-def]
        for i in range(3):
            yield f"p{i}"
            witness.note(f"said {i}")
            await go_on.wait()
        witness.note("cancelled" if request.is_cancelled else "finished")

    server = AgentRunServer(agent, config=ServerConfig(on_disconnect="continue", store_url=None))
    facts: list[dict[str, object]] = []
    server._access_log = _Facts(facts)  # type: ignore[assignment]
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat(stream=stream)
            await witness.saw("said 0")
            client.leave(how)
        await eventually(lambda: the_request(server).disconnected)
        assert server._admission.running == 1
        go_on.set()
        await witness.saw("finished")
        await nothing_left(server, served)
    assert facts[0]["run"] == "completed"
    assert facts[0]["client_left"] is True
    assert "stopped" not in facts[0]


# --- many


@pytest.mark.parametrize("kind", ["async generator", "sync generator"])
async def test_many_clients_that_leave_leave_nothing_behind(kind: str) -> None:
    """500 short cycles, ten at a time; `python -m tests.soak` runs as many as one likes."""
    make: HangingAgent = STREAMS[kind]
    witnesses: dict[str, Witness] = {}

    def agent(request: AgentRequest) -> object:
        return make(witnesses[request.messages[0].text], int(request.messages[0].text.partition(":")[2]))(request)

    server = AgentRunServer(agent)

    async def cycle(number: int, served: Served) -> None:
        index = number % 4
        name = f"{number}:{index}"
        witness = witnesses[name] = Witness()
        async with served.client() as client:
            await client.chat(text=name)
            for _ in range(index):
                await client.piece()
            await witness.saw("waiting")
            await leaves(client, "fin" if number % 3 else "rst", witness)
        del witnesses[name]

    async with serve(server) as served:
        for first in range(0, 500, 10):
            await asyncio.gather(*(cycle(number, served) for number in range(first, first + 10)))
        await nothing_left(server, served)
