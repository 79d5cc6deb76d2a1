"""A real server for a test: uvicorn's HTTP on a real socket of the loopback, in the test's own event loop.

uvicorn's own main loop looks ten times a second whether it should stop; here it is told, so that a test costs a few
milliseconds. Signals, workers and exit codes need a process: `serve_process`.
"""

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agentrun_server import AgentRunServer
from agentrun_server.server.asgi import ASGIApp
from agentrun_server.server.attachment import Attachment
from agentrun_server.server.http.protocol import GuardedHttpToolsProtocol
from tests.support.clock import eventually, within
from tests.support.raw_client import Headers, RawClient, Response, chat_body

__all__ = ["REPOSITORY", "Served", "ServerProcess", "owned", "serve", "serve_process", "the_request"]

REPOSITORY = Path(__file__).resolve().parents[2]

_PROTOCOLS: Mapping[str, type[asyncio.Protocol]] = {"plain": HttpToolsProtocol, "guarded": GuardedHttpToolsProtocol}


class Served:
    """An app that is being served on `port`."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self._before = owned()

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> int:
        """How many requests are being answered."""
        return len(self._server.server_state.tasks)

    def drop_connections(self) -> None:
        """Reset every connection, as a network does that goes away."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def client(self, *, receive_buffer: int | None = None) -> RawClient:
        """Return a client; ``async with`` connects it."""
        return RawClient(self.port, receive_buffer=receive_buffer)

    async def ask(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> Response:
        """Make one request on a connection of its own; return the answer."""
        async with self.client() as client:
            await client.request(method, path, body, headers)
            return await client.response(head_only=method == "HEAD")

    async def chat(self, *, stream: bool = False, headers: Headers = (), **fields: Any) -> Response:
        """Make one Chat Completions request; return the answer."""
        return await self.ask("POST", "/v1/chat/completions", chat_body(stream=stream, **fields), headers)

    async def nothing_left(self) -> None:
        """Wait until no task, no thread, no connection and no file is there that was not there at the start."""

        def check() -> None:
            left = [thing for kind, things in owned().items() for thing in things - self._before[kind]]
            assert not left, f"left behind: {left}"
            assert not self._server.server_state.connections
            assert not self._server.server_state.tasks

        await eventually(check)


def owned() -> dict[str, set[Any]]:
    """Return what this process has open: tasks, threads, files by number."""
    files = {int(path.name) for path in Path("/proc/self/fd").iterdir()}  # with the one that lists them
    return {"tasks": set(asyncio.all_tasks()), "threads": set(threading.enumerate()), "files": files}


@asynccontextmanager
async def serve(
    app: ASGIApp, *, http: str = "guarded", lifespan: bool = True, root_path: str = "", **options: Any
) -> AsyncIterator[Served]:
    """Serve `app` in this event loop over ``plain`` or ``guarded`` HTTP; at the end wait for open requests."""
    options = {"http": _PROTOCOLS[http], "lifespan": "on" if lifespan else "off", "root_path": root_path, **options}
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await within(server.startup([listener]))
        try:
            await server.on_tick(0)  # sets the headers that every answer has
            yield Served(server)
        finally:
            await _stop(server)


async def _stop(server: uvicorn.Server) -> None:
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    try:
        await eventually(lambda: not server.server_state.tasks)
    finally:
        for task in server.server_state.tasks:
            task.cancel()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await within(server.lifespan.shutdown())


def open_requests(server: AgentRunServer) -> list[Attachment]:
    """Return the requests that are open."""
    return [one for one in server._sweeper.active if isinstance(one, Attachment)]


def the_request(server: AgentRunServer) -> Attachment:
    """Return the one request that is open; an `AssertionError` otherwise, so that it can be waited for."""
    assert len(server._sweeper.active) == 1, f"{len(server._sweeper.active)} requests are open"
    (request,) = server._sweeper.active
    assert isinstance(request, Attachment)
    return request


class ServerProcess:
    """A server in a process of its own. `log` is what it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reader = asyncio.create_task(self._read())
        self.log = ""
        self.port = 0

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log += line.decode()

    async def logged(self, pattern: str, limit: float = 20.0) -> "re.Match[str]":
        """Wait until `pattern` is in the log."""

        def check() -> None:
            assert re.search(pattern, self.log), f"no {pattern!r} in:\n{self.log}"

        await eventually(check, limit)
        found = re.search(pattern, self.log)
        assert found is not None
        return found

    async def listening(self, limit: float = 20.0) -> None:
        """Wait until it takes connections. With workers, its log says so before one of them does."""
        async with asyncio.timeout(limit):
            while True:
                try:
                    async with self.client():
                        return
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill_worker(self) -> None:
        """Kill one of the processes that it has started: the first that serves."""
        found = re.search(r"Started server process \[(\d+)\]", self.log)
        assert found is not None, self.log
        os.kill(int(found[1]), signal.SIGKILL)

    async def exit_code(self, limit: float = 20.0) -> int:
        """Wait until it has ended; return its exit code, negative for a signal."""
        try:
            code = await within(self._process.wait(), limit)
        except TimeoutError:
            raise AssertionError(f"it has not ended within {limit} s:\n{self.log}") from None
        await within(self._reader)
        return code

    def client(self) -> RawClient:
        """Return a client; ``async with`` connects it."""
        return RawClient(self.port)

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Make one request on a connection of its own; return the answer."""
        async with self.client() as client:
            await client.request(method, path, body)
            return await client.response(head_only=method == "HEAD")


@asynccontextmanager
async def serve_process(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[ServerProcess]:
    """Run ``python`` with `arguments`; wait until uvicorn says where it listens. It is killed at the end."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "middleware")])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # a group of its own: workers must not outlive the one that started them
    )
    running = ServerProcess(process)
    try:
        running.port = int((await running.logged(r"running on http://127\.0\.0\.1:(\d+)"))[1])
        await running.listening()
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await within(process.wait())
        await within(running._reader)
