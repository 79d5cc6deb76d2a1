"""What a silent, slow or endless agent looks like from outside: the held head, heartbeats, and the end of patience."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.support.agents import ASYNC_STREAMS, SYNC_STREAMS, Witness
from tests.support.chat_oracle import check_chat_stream
from tests.support.clock import after, eventually
from tests.support.raw_client import RawClient
from tests.support.serve import open_requests, serve, the_request

FIRST_EVENT = {
    "message": "The agent did not begin to answer in time.",
    "type": "server_error",
    "param": None,
    "code": "agent_timeout",
}
RUN = {**FIRST_EVENT, "message": "The agent did not finish its answer in time."}

streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
silent_agents = pytest.mark.parametrize("kind", ["async generator", "sync generator"])
AGENTS = {**ASYNC_STREAMS, **SYNC_STREAMS}


class Steps:
    """An agent whose every piece the test gives it; it ends at None and raises what is an exception."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.started = asyncio.Event()

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        return self._say()

    async def _say(self) -> AsyncIterator[str]:
        self.started.set()
        while True:
            piece = await self.pieces.get()
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece


def nothing_sent(server: AgentRunServer) -> bool:
    attachment = the_request(server)
    return not attachment.started and attachment._beat is None


async def beats(client: RawClient) -> None:
    assert await client.event() == ": keep-alive"


# --- the head of a stream waits for the first event


async def test_the_head_is_held_until_the_first_event(http: str) -> None:
    agent = Steps()
    server = AgentRunServer(agent)
    async with serve(server, http=http) as served, served.client() as client:
        await client.chat()
        await agent.started.wait()
        after(server, server.config.response_hold - 1)
        assert nothing_sent(server)
        agent.pieces.put_nowait("hello")
        agent.pieces.put_nowait(None)
        answer = await client.response()
        assert answer.status == 200
        parsed = check_chat_stream(answer.body, include_usage=False)
        assert (parsed.text, parsed.comments) == ("hello", [])


@silent_agents
async def test_a_silent_agent_has_its_head_sent_when_the_hold_is_over(kind: str, http: str) -> None:
    witness = Witness()
    server = AgentRunServer(AGENTS[kind](witness, 0))
    async with serve(server, http=http) as served, served.client() as client:
        await client.chat()
        await witness.saw("waiting")
        after(server, server.config.response_hold + 0.1)
        head = await client.head()
        assert head.status == 200
        assert head.header("content-type") == "text/event-stream; charset=utf-8"
        assert head.header("cache-control") == "no-cache, no-transform"
        assert head.header("x-accel-buffering") == "no"
        await beats(client)
        client.fin()
        await witness.saw("ended")


async def test_an_error_after_the_hold_is_an_error_in_the_stream(http: str) -> None:
    agent = Steps()
    server = AgentRunServer(agent)
    async with serve(server, http=http) as served, served.client() as client:
        await client.chat()
        await agent.started.wait()
        after(server, 11)
        await beats(client)
        agent.pieces.put_nowait(ValueError("no"))
        events = await client.rest()
        assert [event if event == "[DONE]" else list(event) for event in events] == [["error"], "[DONE]"]
        assert events[0]["error"]["code"] == "agent_error"


async def test_an_answer_after_the_hold_is_a_whole_answer() -> None:
    agent = Steps()
    server = AgentRunServer(agent)
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await agent.started.wait()
        after(server, 11)
        await eventually(lambda: the_request(server).started)
        agent.pieces.put_nowait("late")
        agent.pieces.put_nowait(None)
        parsed = check_chat_stream((await client.response()).body, include_usage=False)
        assert (parsed.text, parsed.comments) == ("late", ["keep-alive"])
        assert parsed.choices[0].finish_reason == "stop"


async def test_a_whole_answer_is_never_begun_early() -> None:
    agent = Steps()
    server = AgentRunServer(agent)
    async with serve(server) as served, served.client() as client:
        await client.chat(stream=False)
        await agent.started.wait()
        after(server, 100)
        assert nothing_sent(server)
        agent.pieces.put_nowait(ValueError("no"))
        assert (await client.response()).status == 500


async def test_the_hold_may_be_nothing() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 0), config=ServerConfig(response_hold=0))
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await beats(client)
        client.fin()
        await witness.saw("ended")


# --- heartbeats


async def test_a_silent_stream_gets_a_comment_each_interval() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1))
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await client.piece()
        await witness.saw("waiting")
        attachment = the_request(server)
        for silent in (0, 15, 30):
            after(server, silent + 14.5)
            assert attachment._beat is None
            after(server, silent + 15.1)
            await beats(client)
            await eventually(lambda: attachment._beat is None)
        client.fin()
        await witness.saw("ended")


async def test_a_stream_that_speaks_gets_no_comments() -> None:
    agent = Steps()
    server = AgentRunServer(agent)
    async with serve(server) as served, served.client() as client:
        await client.chat()
        for i in range(3):
            agent.pieces.put_nowait(str(i))
            assert await client.piece() == str(i)
            after(server, 14)
        agent.pieces.put_nowait(None)
        events = await client.rest()
        assert events[-1] == "[DONE]"


async def test_heartbeats_can_be_turned_off() -> None:
    witness = Witness()
    config = ServerConfig(heartbeat_interval=None, first_event_timeout=None, run_timeout=None)
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1), config=config)
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await client.piece()
        await witness.saw("waiting")
        after(server, 100_000)
        attachment = the_request(server)
        assert attachment._beat is None
        client.fin()
        await witness.saw("ended")


async def test_the_sweeper_beats_by_itself() -> None:
    """The same on the real clock: nobody calls `tick`."""
    witness = Witness()
    config = ServerConfig(heartbeat_interval=0.02, response_hold=0.02)
    async with (
        serve(AgentRunServer(ASYNC_STREAMS["async generator"](witness, 0), config=config)) as served,
        served.client() as client,
    ):
        await client.chat()
        began = time.monotonic()
        for _ in range(4):
            await beats(client)
        assert time.monotonic() - began >= 0.06
        client.fin()
        await witness.saw("ended")


# --- the first event


@silent_agents
@streamed
async def test_an_agent_that_does_not_begin_is_a_504(kind: str, stream: bool, http: str) -> None:
    witness = Witness()
    config = ServerConfig(first_event_timeout=5)
    server = AgentRunServer(AGENTS[kind](witness, 0), config=config)
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat(stream=stream)
            await witness.saw("waiting")
            after(server, 4.5)
            assert nothing_sent(server)
            after(server, 5.5)
            answer = await client.response()
            assert (answer.status, answer.error()) == (504, FIRST_EVENT)
            assert answer.header("x-should-retry") == "false"
        await witness.saw("ended")
        await served.nothing_left()


async def test_an_agent_that_does_not_begin_after_the_hold_is_an_error_in_the_stream(http: str) -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 0))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            after(server, 11)
            await beats(client)
            after(server, 301)
            assert await client.rest() == [{"error": FIRST_EVENT}, "[DONE]"]
        await witness.saw("ended")
        await served.nothing_left()


async def test_an_agent_that_has_begun_may_be_silent_for_longer() -> None:
    witness = Witness()
    config = ServerConfig(first_event_timeout=5, heartbeat_interval=None)
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1), config=config)
    async with serve(server) as served, served.client() as client:
        await client.chat()
        await client.piece()
        await witness.saw("waiting")
        after(server, 100)
        assert the_request(server).run.stop_reason is None
        client.fin()
        await witness.saw("ended")


# --- the whole run


@silent_agents
async def test_a_run_that_takes_too_long_is_an_error_in_the_stream(kind: str, http: str) -> None:
    witness = Witness()
    server = AgentRunServer(AGENTS[kind](witness, 2), config=ServerConfig(run_timeout=60))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            assert await client.piece() + await client.piece() == "p0p1"
            await witness.saw("waiting")
            after(server, 61)
            assert await client.rest() == [{"error": RUN}, "[DONE]"]
        await witness.saw("ended")
        await served.nothing_left()


async def test_a_run_that_takes_too_long_is_a_504_for_a_whole_answer() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 2), config=ServerConfig(run_timeout=60))
    async with serve(server) as served, served.client() as client:
        await client.chat(stream=False)
        await witness.saw("waiting")
        after(server, 61)
        answer = await client.response()
        assert (answer.status, answer.error()) == (504, RUN)
        await witness.saw("ended")


@streamed
async def test_the_caller_is_told_at_once_even_if_the_agent_does_not_end(stream: bool) -> None:
    witness, go_on = Witness(), asyncio.Event()

    async def agent(request: AgentRequest) -> str:
        try:
            await witness.hang()
        finally:
            witness.note("cleaning up")
            await go_on.wait()
            witness.note("ended")
        return ""

    server = AgentRunServer(agent, config=ServerConfig(run_timeout=60))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream)
            await witness.saw("waiting")
            after(server, 61)
            assert (await client.response()).error() == RUN
            await witness.saw("cleaning up")
            assert served.requests == 1, "the run is still there"
            go_on.set()
            await witness.saw("ended")
        await served.nothing_left()


@pytest.mark.parametrize("reaction", ["goes on", "returns", "raises"])
async def test_what_an_agent_says_after_its_time_is_not_sent(reaction: str) -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "in time"
        try:
            await witness.hang()
        except asyncio.CancelledError:
            if reaction == "goes on":
                yield "too late"
                yield "much too late"
            if reaction == "raises":
                raise ValueError("too late") from None

    server = AgentRunServer(agent, config=ServerConfig(run_timeout=60))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            assert await client.piece() == "in time"
            await witness.saw("waiting")
            after(server, 61)
            assert await client.rest() == [{"error": RUN}, "[DONE]"]
        await served.nothing_left()


async def test_an_agent_knows_its_deadline() -> None:
    seen: list[tuple[float | None, float | None]] = []

    async def agent(request: AgentRequest) -> str:
        seen.append((request.deadline, request.remaining()))
        return ""

    began = time.monotonic()
    async with serve(AgentRunServer(agent, config=ServerConfig(run_timeout=60))) as served:
        await served.chat()
    async with serve(AgentRunServer(agent, config=ServerConfig(run_timeout=None))) as served:
        await served.chat()
    (deadline, remaining), unlimited = seen
    assert deadline is not None
    assert remaining is not None
    assert began + 60 <= deadline <= time.monotonic() + 60
    assert 55 < remaining <= 60
    assert unlimited == (None, None)


async def test_a_sync_agent_that_is_out_of_time_is_told_so() -> None:
    witness = Witness()

    def agent(request: AgentRequest) -> Iterator[str]:
        yield "p"
        witness.hang_on_thread(request)
        witness.note("ended")

    server = AgentRunServer(agent, config=ServerConfig(run_timeout=60))
    async with serve(server) as served, served.client() as client:
        await client.chat()
        assert await client.piece() == "p"
        await witness.saw("waiting")
        after(server, 61)
        assert await client.rest() == [{"error": RUN}, "[DONE]"]
        await witness.saw("ended")


async def test_limits_hold_while_a_client_that_left_is_run_for() -> None:
    """With ``on_disconnect="continue"`` nobody is there to stop a run but the clock."""
    witness = Witness()
    config = ServerConfig(on_disconnect="continue", store_url=None, run_timeout=60)
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1), config=config)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await client.piece()
            await witness.saw("waiting")
        await eventually(lambda: the_request(server).disconnected)
        after(server, 61)
        await witness.saw("ended")
        await served.nothing_left()


# --- the request's body


@pytest.mark.parametrize("sent", [b"", b"{", b'{"model":'], ids=len)
async def test_a_body_that_does_not_come_is_a_408(sent: bytes, http: str) -> None:
    server = AgentRunServer(Steps())
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n" + sent)
            await eventually(lambda: any(attachment.body_started for attachment in open_requests(server)))
            after(server, server.config.body_timeout + 1)
            answer = await client.response()
            assert answer.status == 408
            assert answer.error()["code"] == "request_timeout"
        await eventually(lambda: not server._sweeper.active)
        await served.nothing_left()


async def test_a_slow_body_is_a_408_on_the_real_clock(http: str) -> None:
    server = AgentRunServer(Steps(), config=ServerConfig(body_timeout=0.1))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            answer = await client.response()
            assert answer.status == 408
            assert answer.error()["code"] == "request_timeout"
        await served.nothing_left()


async def test_a_body_that_makes_progress_has_more_time() -> None:
    server = AgentRunServer(Steps())
    async with serve(server) as served, served.client() as client:
        body = b'{"model":"m","messages":"' + b"x" * 200_000
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 200030\r\n\r\n" + body)
        await eventually(lambda: the_request(server).body_received == len(body))
        after(server, server.config.body_timeout + 20)
        await asyncio.sleep(0)
        await client.send(b'"}   ')
        assert (await client.response()).status == 400
