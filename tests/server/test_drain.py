"""Going down: nothing new, what is open may finish, and then the process ends, with every answer told to its caller."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.server.drain import TRANSITIONS, Drain, DrainState
from tests.support.agents import ASYNC_STREAMS, Witness
from tests.support.clock import eventually, within
from tests.support.raw_client import RawClient
from tests.support.remote_agent import CONTROL, Control
from tests.support.serve import REPOSITORY, ServerProcess, serve, serve_process

SHUTTING_DOWN = {
    "message": "The server is shutting down.",
    "type": "server_error",
    "param": None,
    "code": "server_shutting_down",
}
APP = "tests.support.remote_agent:server"
RUN = "from agentrun_server.server.serve import run; run({}, port=0)"
WAYS: Mapping[str, tuple[str, ...]] = {
    "uvicorn": ("-m", "uvicorn", APP, "--port", "0"),
    "uvicorn workers": ("-m", "uvicorn", APP, "--port", "0", "--workers", "2"),
    "run": ("-c", "from tests.support.remote_agent import server; " + RUN.format("server")),
    "run workers": ("-c", RUN.format(f"{APP!r}, workers=2")),
}
IMPATIENT = (
    "-c",
    "from tests.support.remote_agent import server; " + RUN.format("server, timeout_graceful_shutdown=1"),
)
EXIT_CODES = {
    # uvicorn raises the signal that ended it once more when it has shut down; its supervisor of workers does not, ours
    # says the same by its status.
    ("uvicorn", signal.SIGTERM): -15,
    ("uvicorn", signal.SIGINT): 0,
    ("uvicorn workers", signal.SIGTERM): 0,
    ("run", signal.SIGTERM): -15,
    ("run", signal.SIGINT): 0,
    ("run workers", signal.SIGTERM): 143,
}


@asynccontextmanager
async def process(way: str | tuple[str, ...], **settings: object) -> AsyncIterator[tuple[ServerProcess, Control]]:
    """Run the app of `remote_agent` in a process of its own."""
    arguments = WAYS[way] if isinstance(way, str) else way
    async with Control.listen() as control:
        env = {
            CONTROL: str(control.port),
            **{f"AGENTRUN_{name.upper()}": str(value) for name, value in settings.items()},
        }
        async with serve_process(*arguments, cwd=REPOSITORY, env=env) as running:
            yield running, control


async def is_draining(running: ServerProcess) -> None:
    """Wait until `running` turns new work away, and say so to whoever asks."""

    async def ready() -> int:
        try:
            answer = await running.ask("GET", "/readyz")
        except (AssertionError, OSError):  # a worker without open requests has gone already
            return 0
        if answer.status == 503:
            assert answer.error()["code"] == "not_ready"
            assert answer.header("retry-after") == "1"
        return answer.status

    async with asyncio.timeout(10):
        while await ready() != 503:  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.01)


# --- in processes of their own


@pytest.mark.parametrize(("way", "number"), EXIT_CODES, ids=lambda value: getattr(value, "name", value))
async def test_an_open_stream_finishes_whole_and_then_the_process_ends(way: str, number: signal.Signals) -> None:
    async with process(way) as (running, control), running.client() as client:
        if "workers" in way:  # a worker that is still starting dies of the signal without a word
            await running.logged(r"(?s)startup complete.*startup complete")
        await client.chat()
        run = await control.run()
        await run.say("one ")
        assert await client.piece() == "one "
        running.signal(number)
        if "workers" in way:
            await running.logged("Finished server process")  # the other one, which had nothing to do
        await is_draining(running)
        assert (await running.ask("GET", "/health")).status == 200
        async with running.client() as late:
            await late.chat()
            answer = await late.response()
            assert answer.status == 503
            assert answer.error()["code"] == "server_shutting_down"
            assert answer.header("retry-after") == "1"
            assert answer.header("x-should-retry") is None
        await run.say("two")
        assert await client.piece() == "two"
        run.finish()
        *_, last, done = await client.rest()
        assert last["choices"][0]["finish_reason"] == "stop"
        assert done == "[DONE]"
        assert await running.exit_code() == EXIT_CODES[way, number]
        assert "Traceback" not in running.log


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_takes_too_long_ends_with_an_error_and_the_process_ends(way: str) -> None:
    async with process(way, drain_timeout=0.3) as (running, control), running.client() as client:
        await client.chat()
        run = await control.run()
        await run.say("one ")
        assert await client.piece() == "one "
        running.signal(signal.SIGTERM)
        assert await client.rest() == [{"error": SHUTTING_DOWN}, "[DONE]"]
        await run.ended()
        assert await running.exit_code() == EXIT_CODES[way, signal.SIGTERM]
        assert "drain timeout" in running.log


async def test_a_whole_answer_that_takes_too_long_is_a_503() -> None:
    async with process("uvicorn", drain_timeout=0.3) as (running, control), running.client() as client:
        await client.chat(stream=False)
        run = await control.run()
        running.signal(signal.SIGTERM)
        answer = await client.response()
        assert (answer.status, answer.error()) == (503, SHUTTING_DOWN)
        assert answer.header("x-should-retry") == "false", "agent code has run"
        await run.ended()
        await running.exit_code()


@pytest.mark.parametrize("way", ["uvicorn", "run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_open_streams_now(way: str, number: signal.Signals) -> None:
    async with process(way, drain_timeout=600) as (running, control), running.client() as client:
        await client.chat()
        run = await control.run()
        await run.say("one ")
        assert await client.piece() == "one "
        running.signal(number)
        await is_draining(running)
        running.signal(number)
        assert await client.rest() == [{"error": SHUTTING_DOWN}, "[DONE]"]
        await run.ended()
        assert await running.exit_code() == EXIT_CODES[way, number]


@pytest.mark.parametrize("way", ["uvicorn", "run"])
async def test_an_idle_server_ends_at_once(way: str) -> None:
    async with process(way) as (running, _), running.client() as idle:
        await idle.request("GET", "/health")
        await idle.response()
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert await idle.ended() == b""
        assert await running.exit_code() == EXIT_CODES[way, signal.SIGTERM]
        assert time.monotonic() - began < 5


async def test_an_agent_on_a_blocked_thread_does_not_keep_the_process() -> None:
    async with process("run", drain_timeout=0.1, cancel_grace=0.1) as (running, _), running.client() as client:
        await client.chat(model="blocked", stream=False)
        await eventually_open(running)
        running.signal(signal.SIGTERM)
        assert (await client.response()).error() == SHUTTING_DOWN
        assert await running.exit_code() == -15


async def test_an_agent_that_will_not_be_cancelled_does_not_keep_the_process() -> None:
    """Only a limit on uvicorn's own patience ends that; `run` sets one."""
    async with process(IMPATIENT, drain_timeout=0.1, cancel_grace=0.1) as (running, _), running.client() as client:
        await client.chat(model="stubborn")
        assert await client.piece() == "begun"
        running.signal(signal.SIGTERM)
        assert await client.rest() == [{"error": SHUTTING_DOWN}, "[DONE]"]
        assert await running.exit_code() == -15


@pytest.mark.parametrize("ends", ["by itself", "by the limit"])
async def test_a_protocol_of_the_users_own_is_drained_too(ends: str) -> None:
    """Its streams are sse-starlette's, which would be cut off at once, or never, by its own means."""
    way = ("-m", "uvicorn", "tests.support.remote_agent:with_sse", "--factory", "--port", "0")
    timeout = 0.3 if ends == "by the limit" else 60
    async with process(way, drain_timeout=timeout) as (running, control), running.client() as client:
        await client.request("POST", "/events", b"")
        run = await control.run()
        await run.say("one")
        assert await client.event() == "one"
        running.signal(signal.SIGTERM)
        if ends == "by itself":
            await is_draining(running)
            await run.say("two")
            assert await client.event() == "two"
            run.finish()
            assert await client.rest() == []
        else:
            await run.ended()
            assert await client.ended() == b"", "cut off, and to be seen as such: no end of the body"
        assert await running.exit_code() == -15


async def eventually_open(running: ServerProcess) -> None:
    """Wait until a request sent before has certainly reached its agent: later ones have been answered."""
    for _ in range(3):
        assert (await running.ask("GET", "/health")).status == 200


# --- in this one: without signals, by the end of the lifespan


async def finish_reading(client: RawClient) -> object:
    return (await client.rest())[-1]


async def test_open_streams_may_finish_when_the_lifespan_ends() -> None:
    """A server that shuts down without a signal waits for them too."""
    witness, go_on = Witness(), asyncio.Event()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "one"
        witness.note("waiting")
        await go_on.wait()
        yield "two"

    server = AgentRunServer(agent)
    async with server.lifespan(), serve(server, lifespan=False) as served, served.client() as client:
        await client.chat()
        await witness.saw("waiting")
        ending = asyncio.create_task(server._end_runs())
        await eventually(lambda: not server.drain.serving)
        assert (await served.chat()).status == 503
        go_on.set()
        assert await finish_reading(client) == "[DONE]"
        await within(ending)
        assert server.drain.state is DrainState.DRAINED


async def test_who_waits_for_a_place_is_told_that_the_server_shuts_down() -> None:
    witness, go_on = Witness(), asyncio.Event()

    async def agent(request: AgentRequest) -> str:
        witness.note("waiting")
        await go_on.wait()
        return "done"

    server = AgentRunServer(agent, config=ServerConfig(max_concurrent_runs=1))
    async with serve(server, lifespan=False) as served, served.client() as first, served.client() as second:
        await first.chat(stream=False)
        await witness.saw("waiting")
        await second.chat(stream=False)
        await eventually(lambda: server._admission.queued == 1)
        server.drain.begin()
        answer = await second.response()
        assert (answer.status, answer.error()["code"]) == (503, "server_shutting_down")
        assert answer.header("retry-after") == "1"
        go_on.set()
        assert (await first.response()).status == 200
        assert server.drain.state is DrainState.DRAINED


async def test_a_run_that_does_not_end_does_not_hold_up_the_drain() -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        try:
            await witness.hang()
        except asyncio.CancelledError:
            await witness.hang()

    server = AgentRunServer(agent, config=ServerConfig(drain_timeout=0.01, cancel_grace=0.05))
    async with serve(server, lifespan=False) as served:
        async with served.client() as client:
            await client.chat(stream=False)
            await witness.saw("waiting")
            drained = asyncio.Event()
            server.drain.begin(drained.set)
            assert (await client.response()).error() == SHUTTING_DOWN
            await within(drained.wait())
            again = asyncio.Event()
            server.drain.begin(again.set)
            await within(again.wait())
        await eventually(lambda: not server._sweeper.active)


async def test_a_server_can_be_started_again() -> None:
    """A test client does that with every ``with``."""
    server = AgentRunServer(ASYNC_STREAMS["async generator"](Witness(), 3))
    for _ in range(2):
        async with serve(server) as served:
            assert (await served.ask("GET", "/readyz")).status == 200
            async with served.client() as client:
                await client.chat()
                await client.piece()
        assert server.drain.state is DrainState.DRAINED


def test_the_states_of_a_drain_form_one_way_round() -> None:
    assert TRANSITIONS.keys() == set(DrainState)
    reached, frontier = {DrainState.SERVING}, {DrainState.SERVING}
    while frontier:
        frontier = {following for state in frontier for following in TRANSITIONS[state]} - reached
        reached |= frontier
    assert reached == set(DrainState), "every state is reached"
    assert all(TRANSITIONS.values()), "no state is a dead end"


async def test_beginning_to_drain_twice_drains_once() -> None:
    server = AgentRunServer(ASYNC_STREAMS["async generator"](Witness(), 0))
    drain: Drain = server.drain
    told: list[int] = []
    drain.begin(lambda: told.append(1))
    drain.begin(lambda: told.append(2))
    assert told == [1, 2]
    assert drain.state is DrainState.DRAINED
    assert server.not_ready() == "The server is shutting down."
