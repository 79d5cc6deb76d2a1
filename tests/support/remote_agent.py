"""An agent in another process that says what a test tells it to, over a socket; and the app that serves it.

The test's side is `Control`: every run of the agent calls it, and waits for what to say.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agentrun_server import AgentInvoker, AgentRequest, AgentRunServer, BaseProtocolHandler
from tests.support.clock import within

__all__ = ["CONTROL", "Control", "RemoteRun", "server", "with_sse"]

CONTROL = "TEST_CONTROL_PORT"


async def remote(request: AgentRequest) -> AsyncIterator[str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ[CONTROL]))
    try:
        while line := await reader.readline():
            yield line.decode().rstrip("\n")
    finally:
        writer.write(b"ended\n")
        await writer.drain()
        writer.close()


async def stubborn(request: AgentRequest) -> AsyncIterator[str]:
    """Does not let itself be cancelled."""
    yield "begun"
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


def blocked(request: AgentRequest) -> str:
    """Blocks its thread for ever."""
    threading.Event().wait()
    return ""


server = AgentRunServer({"m": remote, "stubborn": stubborn, "blocked": blocked})


def with_sse() -> AgentRunServer:
    """Make an app with a protocol that streams by sse-starlette."""
    from fastapi import APIRouter, Response

    class Events(BaseProtocolHandler):
        name = "events"

        def as_fastapi_router(self, agent_invoker: AgentInvoker) -> APIRouter:
            router = APIRouter()

            @router.post("/events")
            async def events() -> Response:
                asked = AgentRequest([{"role": "user", "content": "x"}], stream=True)
                return self.stream_events(agent_invoker.invoke_stream(asked))

            return router

    return AgentRunServer({"m": remote}, [Events()])


class RemoteRun:
    """One run of the agent, as the test sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, text: str) -> None:
        """Let the agent say a piece."""
        self._writer.write(f"{text}\n".encode())
        await within(self._writer.drain())

    def finish(self) -> None:
        """Let the agent come to its end."""
        self._writer.write_eof()

    async def ended(self) -> None:
        """Wait until the agent has cleaned up."""
        assert await within(self._reader.readline()) == b"ended\n"


class Control:
    """Takes the calls of the agent's runs, in the order they come."""

    def __init__(self) -> None:
        self._runs: asyncio.Queue[RemoteRun] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def run(self) -> RemoteRun:
        """Wait for the next run to begin."""
        return await within(self._runs.get(), 10)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._runs.put_nowait(RemoteRun(reader, writer))

    @classmethod
    @asynccontextmanager
    async def listen(cls) -> "AsyncIterator[Control]":
        """Listen on a free port."""
        control = cls()
        listener = await asyncio.start_server(control._take, "127.0.0.1", 0)
        control.port = listener.sockets[0].getsockname()[1]
        try:
            yield control
        finally:
            listener.close()
            for writer in control._writers:
                writer.close()
            await listener.wait_closed()
