"""An agent in another process that does what a test tells it to, over a socket: `told`.

The test's side is `Control`. Each run of the agent calls it and names itself by the last message of its request, so
that a test finds its own runs among those of all replicas, and nobody else's.
"""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from agentrun_server import AgentRequest, TypedEvent, events
from tests.support.clock import within

__all__ = ["CONTROL", "NAME", "Control", "ToldRun", "told"]

CONTROL = "TEST_CONTROL_PORT"
NAME = "TEST_REPLICA"

_LIMIT = 15.0
"""Seconds in which a run begins or ends: longer than it takes to see that a worker is dead."""


async def told(request: AgentRequest) -> AsyncIterator[str | TypedEvent]:
    """Say what the test says: a text, or an event by its name and fields."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ[CONTROL]))
    hello = {
        "key": request.messages[-1].text,
        "replica": os.environ[NAME],
        "subject": getattr(request.principal, "subject", None),
        "history": [[message.role, message.text] for message in request.messages],
    }
    try:
        writer.write(json.dumps(hello).encode() + b"\n")
        while line := await reader.readline():
            said = json.loads(line)
            yield said if isinstance(said, str) else getattr(events, said[0])(**said[1])
    finally:
        writer.write(b"ended\n")
        await writer.drain()
        writer.close()


class ToldRun:
    """One run of the agent, as the test sees it."""

    def __init__(self, hello: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.replica: str = hello["replica"]
        """Where it runs."""
        self.subject: str | None = hello["subject"]
        """Who asked, as the agent knows it."""
        self.history: list[list[str]] = hello["history"]
        """Role and text of each message."""
        self._reader = reader
        self._writer = writer

    async def say(self, *items: str | TypedEvent) -> None:
        """Let the agent say something."""
        for item in items:
            told = item if isinstance(item, str) else [type(item).__name__, asdict(item)]
            self._writer.write(json.dumps(told).encode() + b"\n")
        await within(self._writer.drain())

    async def finish(self, *items: str | TypedEvent) -> None:
        """Let the agent say something, and come to its end."""
        await self.say(*items)
        self._writer.write_eof()

    async def ended(self) -> None:
        """Wait until the agent has cleaned up."""
        assert await within(self._reader.readline(), _LIMIT) == b"ended\n"

    async def lost(self) -> None:
        """Wait until the agent is gone, without having cleaned up."""
        try:
            said = await within(self._reader.readline(), _LIMIT)
        except ConnectionResetError:
            return
        assert said == b""


class Control:
    """Takes the calls of the agent's runs."""

    def __init__(self) -> None:
        self._runs: defaultdict[str, asyncio.Queue[ToldRun]] = defaultdict(asyncio.Queue)
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def run(self, key: str) -> ToldRun:
        """Wait for the next run that is asked `key`."""
        return await within(self._runs[key].get(), _LIMIT)

    def more(self, key: str) -> int:
        """Return how many runs that were asked `key` nobody has taken yet."""
        return self._runs[key].qsize()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        line = await reader.readline()
        if line:
            hello = json.loads(line)
            self._runs[hello["key"]].put_nowait(ToldRun(hello, reader, writer))

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
