"""How many run at once, who waits, and who is sent away."""

import asyncio
import threading
import time

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.errors import ServiceUnavailableError, TooManyRequestsError
from agentrun_server.server.admission import Admission
from tests.support.agents import Witness
from tests.support.clock import eventually, within
from tests.support.raw_client import RawClient, Response
from tests.support.serve import Served, serve

BUSY = {
    "message": "The server is busy. Please try again shortly.",
    "type": "rate_limit_error",
    "param": None,
    "code": "rate_limit_exceeded",
}

# --- the places, without a server


def admission(limit: int = 1, *, max_queued: int = 2, timeout: float = 5.0) -> Admission:
    return Admission(limit, max_queued=max_queued, timeout=timeout)


def test_places_are_given_up_to_the_limit() -> None:
    places = admission(3)
    assert [places.try_enter() for _ in range(4)] == [True, True, True, False]
    assert places.running == 3
    places.leave()
    assert places.try_enter()


async def test_the_queue_is_first_come_first_served() -> None:
    places = admission(max_queued=3)
    assert places.try_enter()
    entered: list[int] = []

    async def enter(number: int) -> None:
        await places.enter()
        entered.append(number)

    async with asyncio.TaskGroup() as waiting:
        for number in range(3):
            waiting.create_task(enter(number))
            await asyncio.sleep(0)
        assert places.queued == 3
        for number in range(3):
            places.leave()
            await eventually(lambda number=number: len(entered) == number + 1)  # type: ignore[misc]
            assert not places.try_enter(), "who comes now does not overtake"
    assert entered == [0, 1, 2]
    places.leave()
    assert (places.running, places.queued) == (0, 0)


async def test_a_full_queue_sends_away_at_once() -> None:
    places = admission(max_queued=1)
    places.try_enter()
    waiting = asyncio.create_task(places.enter())
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequestsError):
        await places.enter()
    places.leave()
    await within(waiting)


async def test_there_may_be_no_queue() -> None:
    places = admission(max_queued=0)
    places.try_enter()
    with pytest.raises(TooManyRequestsError):
        await places.enter()


async def test_who_waits_too_long_is_sent_away_and_forgotten() -> None:
    places = admission(timeout=0.01)
    places.try_enter()
    with pytest.raises(TooManyRequestsError):
        await within(places.enter())
    assert places.queued == 0
    places.leave()
    assert places.running == 0
    assert places.try_enter()


async def test_who_leaves_the_queue_is_forgotten() -> None:
    places = admission()
    places.try_enter()
    waiting = asyncio.create_task(places.enter())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    places.leave()
    assert (places.running, places.queued) == (0, 0)


async def test_a_place_given_to_someone_who_leaves_in_the_same_moment_is_not_lost() -> None:
    places = admission()
    places.try_enter()
    waiting = asyncio.create_task(places.enter())
    await asyncio.sleep(0)
    places.leave()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert places.running == 0
    assert places.try_enter()


async def test_closing_sends_everyone_who_waits_away() -> None:
    places = admission()
    places.try_enter()
    waiting = asyncio.create_task(places.enter())
    await asyncio.sleep(0)
    places.close()
    with pytest.raises(ServiceUnavailableError):
        await within(waiting)
    with pytest.raises(ServiceUnavailableError):
        places.try_enter()
    places.leave()
    assert places.running == 0


async def test_closing_while_someone_leaves_the_queue_is_quiet() -> None:
    places = admission()
    places.try_enter()
    waiting = asyncio.create_task(places.enter())
    await asyncio.sleep(0)
    places.close()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- in a server


class Held:
    """An agent that holds every run until the test lets it go, by the text of its request."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def __call__(self, request: AgentRequest) -> str:
        name = request.messages[0].text
        self.begun.append(name)
        await self.gate(name).wait()
        return f"done {name}"

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def has_begun(self, *names: str) -> None:
        await eventually(lambda: self.begun == list(names))

    def let_all_go(self) -> None:
        for gate in self.gates.values():
            gate.set()


def assert_busy(answer: Response) -> None:
    assert (answer.status, answer.error()) == (429, BUSY)
    assert answer.header("retry-after") == "1"
    assert answer.header("retry-after-ms") == "1000"
    assert answer.header("x-should-retry") is None, "the agent has not run: the client may try again"


async def text_of(client: RawClient) -> str:
    text: str = (await client.response()).json()["choices"][0]["message"]["content"]
    return text


async def test_a_run_waits_for_its_place_in_order() -> None:
    agent = Held()
    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1))
    async with serve(server) as served, served.client() as a, served.client() as b, served.client() as c:
        await a.chat(text="a", stream=False)
        await agent.has_begun("a")
        for number, (client, name) in enumerate([(b, "b"), (c, "c")]):
            await client.chat(text=name, stream=False)
            await eventually(lambda number=number: server._admission.queued == number + 1)  # type: ignore[misc]
        agent.gate("a").set()
        await agent.has_begun("a", "b")
        agent.gate("b").set()
        await agent.has_begun("a", "b", "c")
        agent.gate("c").set()
        assert [await text_of(client) for client in (a, b, c)] == ["done a", "done b", "done c"]
        assert server._admission.running == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_full_queue_is_a_429(stream: bool) -> None:
    agent = Held()
    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1, max_queued_runs=1))
    async with serve(server) as served, served.client() as a, served.client() as b:
        await a.chat(text="a", stream=stream)
        await agent.has_begun("a")
        await b.chat(text="b", stream=stream)
        await eventually(lambda: server._admission.queued == 1)
        assert_busy(await served.chat(stream=stream))
        agent.gate("b").set()
        agent.let_all_go()
        assert (await a.response()).status == (await b.response()).status == 200


async def test_a_queue_that_takes_too_long_is_a_429() -> None:
    agent = Held()
    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1, queue_timeout=0.02))
    async with serve(server) as served, served.client() as a:
        await a.chat(text="a", stream=False)
        await agent.has_begun("a")
        assert_busy(await served.chat())
        assert server._admission.queued == 0
        agent.let_all_go()
        assert await text_of(a) == "done a"
    assert agent.begun == ["a"]


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_the_queue_frees_its_place_in_it(how: str, http: str) -> None:
    agent = Held()
    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1, max_queued_runs=1))
    async with serve(server, http=http) as served, served.client() as a:
        await a.chat(text="a", stream=False)
        await agent.has_begun("a")
        async with served.client() as b:
            await b.chat(text="b")
            await eventually(lambda: server._admission.queued == 1)
            b.leave(how)
            await eventually(lambda: server._admission.queued == 0)
        await eventually(lambda: len(server._sweeper.active) == 1)
        agent.let_all_go()
        assert await text_of(a) == "done a"
        assert server._admission.running == 0
    assert agent.begun == ["a"], "the agent was never begun for the client that left"


async def test_a_refused_request_takes_no_place() -> None:
    server = AgentRunServer(Held(), config=ServerConfig(max_concurrent_runs=1))
    async with serve(server) as served:
        assert (await served.ask("POST", "/v1/chat/completions", b"{")).status == 400
        assert (await served.ask("POST", "/v1/chat/completions", b'{"model":"m"}')).status == 400
        assert server._admission.running == 0


async def test_a_place_is_free_again_after_each_way_a_run_can_end() -> None:
    async def agent(request: AgentRequest) -> str:
        if request.messages[0].text == "fail":
            raise ValueError
        return "fine"

    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1, max_queued_runs=0))
    async with serve(server) as served:
        for text, status in [("fail", 500), ("go", 200), ("fail", 500), ("go", 200)]:
            assert (await served.chat(text=text)).status == status


# --- threads


class Blocked:
    """A sync agent that blocks its thread until the test lets it go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = 0

    def __call__(self, request: AgentRequest) -> str:
        self.begun += 1
        assert self.let_go.wait(20)
        return "done"

    async def has_begun(self, count: int) -> None:
        await eventually(lambda: self.begun == count)


async def chat_all(served: Served, count: int) -> list[RawClient]:
    clients = [served.client() for _ in range(count)]
    for client in clients:
        await client.__aenter__()
        await client.chat(stream=False)
    return clients


async def test_sync_agents_wait_for_a_thread() -> None:
    agent = Blocked()
    server = AgentRunServer(agent, config=ServerConfig(max_sync_threads=2))
    async with serve(server) as served:
        clients = await chat_all(served, 3)
        await agent.has_begun(2)
        await eventually(lambda: len(server._threads._waiting) == 1)
        agent.let_go.set()
        for client in clients:
            assert (await client.response()).status == 200
            await client.__aexit__(None, None, None)
        await served.nothing_left()
        assert server._threads.running == 0


async def test_too_many_sync_agents_are_a_429() -> None:
    agent = Blocked()
    server = AgentRunServer(agent, config=ServerConfig(max_sync_threads=1, max_queued_runs=0))
    async with serve(server) as served:
        (client,) = await chat_all(served, 1)
        await agent.has_begun(1)
        assert_busy(await served.chat())
        agent.let_go.set()
        assert (await client.response()).status == 200
        await client.__aexit__(None, None, None)


async def test_waiting_too_long_for_a_thread_is_a_429() -> None:
    agent = Blocked()
    server = AgentRunServer(agent, config=ServerConfig(max_sync_threads=1, queue_timeout=0.02))
    async with serve(server) as served:
        (client,) = await chat_all(served, 1)
        await agent.has_begun(1)
        assert_busy(await served.chat())
        agent.let_go.set()
        assert (await client.response()).status == 200
        await client.__aexit__(None, None, None)
        await served.nothing_left()
        assert server._threads.running == 0


async def test_a_client_that_leaves_while_it_waits_for_a_thread_takes_none() -> None:
    agent = Blocked()
    server = AgentRunServer(agent, config=ServerConfig(max_sync_threads=1))
    async with serve(server) as served:
        (client,) = await chat_all(served, 1)
        await agent.has_begun(1)
        async with served.client() as second:
            await second.chat()
            await eventually(lambda: len(server._threads._waiting) == 1)
            second.fin()
            await eventually(lambda: len(server._threads._waiting) == 0)
        agent.let_go.set()
        assert (await client.response()).status == 200
        await client.__aexit__(None, None, None)
        await served.nothing_left()
        assert (agent.begun, server._threads.running) == (1, 0)


async def test_the_server_answers_while_200_sync_agents_block() -> None:
    agent = Blocked()
    server = AgentRunServer(agent)
    async with serve(server) as served:
        clients = await chat_all(served, 200)
        await agent.has_begun(200)
        times = []
        for path in ("/health", "/readyz", "/v1/models") * 3:
            began = time.monotonic()
            assert (await served.ask("GET", path)).status == 200
            times.append(time.monotonic() - began)
        assert max(times) < 1, "50 ms are promised; a busy machine may need more"
        agent.let_go.set()
        for client in clients:
            assert (await client.response()).status == 200
            await client.__aexit__(None, None, None)
        await served.nothing_left()


async def test_sync_agents_do_not_use_the_event_loops_executor() -> None:
    """So that ``getaddrinfo`` and the like, which do, never wait behind them."""
    agent = Blocked()
    server = AgentRunServer(agent)
    async with serve(server) as served:
        clients = await chat_all(served, 40)
        await agent.has_begun(40)
        witness = Witness()
        await within(asyncio.get_running_loop().run_in_executor(None, witness.note, "executed"))
        agent.let_go.set()
        for client in clients:
            await client.response()
            await client.__aexit__(None, None, None)
