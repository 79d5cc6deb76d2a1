"""Runs that something else than their client ends, and servers that are not uvicorn."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.server.asgi import ASGIApp, Message, Receive, Scope, Send
from tests.support.agents import ASYNC_STREAMS, Witness
from tests.support.clock import after, eventually, within
from tests.support.raw_client import CHAT, chat_body
from tests.support.serve import serve, the_request

SHUTTING_DOWN = {
    "message": "The server is shutting down.",
    "type": "server_error",
    "param": None,
    "code": "server_shutting_down",
}

# --- cancelled from outside: as uvicorn does with `timeout_graceful_shutdown`


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_request_that_its_server_cancels_is_told_so_and_forgotten(stream: bool) -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["slow clean-up"](witness, 1))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat(stream=stream)
            await witness.saw("waiting")
            task = the_request(server).task
            assert task is not None
            task.cancel()
            if stream:
                assert await client.piece() == "p0"
                assert await client.rest() == [{"error": SHUTTING_DOWN}, "[DONE]"]
            else:
                answer = await client.response()
                assert (answer.status, answer.error()) == (503, SHUTTING_DOWN)
            await witness.saw("ended")
        await served.nothing_left()
        assert server._sweeper.active == set()
        assert server._admission.running == 0
    assert witness.notes.count("cancelled") == 1


async def test_a_request_that_is_cancelled_while_it_waits_for_a_place_is_forgotten() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 0), config=ServerConfig(max_concurrent_runs=1))
    async with serve(server) as served:
        async with served.client() as first, served.client() as second:
            await first.chat()
            await witness.saw("waiting")
            running = the_request(server)
            await second.chat()
            await eventually(lambda: server._admission.queued == 1)
            (waiting,) = server._sweeper.active - {running}
            assert waiting.task is not None
            waiting.task.cancel()
            assert (await second.response()).status == 503
            assert server._admission.queued == 0
            first.fin()
            await witness.saw("ended")
        await served.nothing_left()
        assert server._admission.running == 0


async def test_an_agent_that_cancels_its_own_task_leaves_nothing_behind() -> None:
    async def agent(request: AgentRequest) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    server = AgentRunServer(agent)
    async with serve(server) as served:
        answer = await served.chat()
        assert answer.status in (500, 503)
        assert answer.error()
        await served.nothing_left()
        assert server._sweeper.active == set()
        assert server._admission.running == 0


# --- other servers: what ASGI allows and uvicorn does not do


class Connection:
    """The server's side of one request, by hand."""

    def __init__(self, *, stream: bool = True) -> None:
        self.sent: list[Message] = []
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": chat_body(stream=stream)})
        self.fails_after: int | None = None

    async def send(self, message: Message) -> None:
        if self.fails_after is not None and len(self.sent) >= self.fails_after:
            raise BrokenPipeError("the client has gone")
        self.sent.append(message)

    async def serve(self, app: ASGIApp) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [],
            "root_path": "",
            "client": None,
        }
        await within(app(scope, self.incoming.get, self.send))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fails_after", [0, 1, 2, 3])
@pytest.mark.parametrize("raises", [False, True])
async def test_a_send_that_fails_is_a_client_that_left(
    stream: bool, fails_after: int, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """ASGI servers may raise `OSError` from ``send``; it is nobody's error."""

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for i in range(5):
            yield str(i)
            await asyncio.sleep(0)
        if raises:
            raise ValueError

    server = AgentRunServer(agent)
    connection = Connection(stream=stream)
    connection.fails_after = fails_after
    await connection.serve(server)
    assert len(connection.sent) <= fails_after
    assert server._sweeper.active == set()
    assert server._admission.running == 0
    assert all(record.name == "agentrun_server.agent" for record in caplog.records)


async def test_a_heartbeat_that_fails_is_a_client_that_left() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 0))
    connection = Connection()
    connection.fails_after = 0
    serving = asyncio.create_task(connection.serve(server))
    await witness.saw("waiting")
    attachment = the_request(server)
    after(server, 11)
    await eventually(lambda: attachment.disconnected)
    connection.incoming.put_nowait({"type": "http.disconnect"})
    await witness.saw("ended")
    await within(serving)
    assert server._sweeper.active == set()


async def test_a_client_that_leaves_is_heard_of_once() -> None:
    """Some servers say ``http.disconnect`` a single time; the run's watcher must be the one to hear it."""
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        raw = request.raw_request
        await raw.body()
        listening = asyncio.ensure_future(raw.receive())
        witness.note("waiting")
        try:
            await witness.hang()
        finally:
            assert await within(listening) == {"type": "http.disconnect"}
            witness.note("ended")
        return ""

    server = AgentRunServer(agent)
    connection = Connection()
    serving = asyncio.create_task(connection.serve(server))
    await witness.saw("waiting")
    connection.incoming.put_nowait({"type": "http.disconnect"})
    await witness.saw("ended")
    await within(serving)


# --- a connection that cannot be reached


async def test_a_slow_reader_behind_middleware_that_hides_the_connection_costs_no_place() -> None:
    """Its run ends and its place is free; the connection is the outer app's to close."""
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 100_000
        finally:
            witness.note("ended")

    server = AgentRunServer(agent)
    outer = FastAPI()

    class Wrapping:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def wrapped(message: Message) -> None:
                await send(message)

            await self._app(scope, receive, wrapped)

    outer.add_middleware(Wrapping)
    outer.mount("/", server)
    async with serve(outer) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.chat()
            await eventually(lambda: the_request(server).blocked_since > 0)
            after(server, server.config.write_timeout + 1)  # type: ignore[operator]
            await witness.saw("ended")
            await eventually(lambda: not server._sweeper.active)
            assert server._admission.running == 0
            client.rst()
        await served.nothing_left()
