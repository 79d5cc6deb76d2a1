"""Servers that keep what they answer, with agents that say what a test wants when it wants it.

Who calls is the text of the bearer token, so that a test can be two callers.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from starlette.middleware import Middleware

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.invoker.agent import AgentCallable
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.storage.contracts import Change, Record, StorageUnavailableError, Store
from tests.support.clock import eventually
from tests.support.raw_client import Headers, Response
from tests.support.serve import Served
from tests.support.sse import parse_events

__all__ = ["Meter", "Told", "as_caller", "away", "keeping", "kept", "official", "store_of", "text_of"]


class Told:
    """An agent that says what it is told to, in every run of it the next thing; `requests` are those it was run for."""

    def __init__(self) -> None:
        self.requests: list[AgentRequest] = []
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    def say(self, *said: Any) -> None:
        """Let it say something; an exception is raised."""
        for one in said:
            self._said.put_nowait(one)

    def end(self, *said: Any) -> None:
        """Let it say something and end."""
        self.say(*said, None)

    async def ran(self, times: int = 1) -> None:
        """Wait until it has been run so many times."""
        await eventually(lambda: len(self.requests) == times)

    async def __call__(self, request: AgentRequest) -> AsyncIterator[Any]:
        """Run."""
        self.requests.append(request)
        while (one := await self._said.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one


class Meter:
    """What a rate limit in front would count: the tokens of each request, and what was charged behind it."""

    def __init__(self) -> None:
        self.requests: list[float] = []
        """Of each request that is over, in the order in which they ended; 0 for one that said nothing."""
        self.charged: list[float] = []


class _Front:
    """Says who calls, and counts."""

    def __init__(self, app: ASGIApp, meter: Meter | None = None) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ").decode()
        usage: dict[str, Any] = {}
        if name:
            scope["state"]["principal"] = SimpleNamespace(issuer="test", subject=name)
        if self._meter is not None:
            scope["state"]["usage"] = usage
            usage["charge"] = self._meter.charged.append
        try:
            await self._app(scope, receive, send)
        finally:
            if self._meter is not None:
                self._meter.requests.append(usage.get("total_tokens", 0))


def keeping(
    agent: AgentCallable | Mapping[str, AgentCallable],
    *,
    memory: str | None = None,
    meter: Meter | None = None,
    **settings: Any,
) -> AgentRunServer:
    """Return a server whose store is that of the test; `memory` turns sessions on."""
    config = ServerConfig(**{"store_durable": False, **settings})
    front = Middleware(_Front, meter=meter)
    return AgentRunServer(agent, config=config, memory_collection_name=memory, middleware=[front])


def as_caller(name: str, *more: tuple[str, str]) -> Headers:
    """Return the headers of a request of the caller `name`."""
    return [("authorization", f"Bearer {name}"), *more]


@asynccontextmanager
async def official(served: Served, name: str = "alice") -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the official client, as the caller `name`."""
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=name, max_retries=0, timeout=5)
    async with client:
        yield client


async def store_of(server: AgentRunServer) -> Store:
    """Return the store, opened when it is not."""
    assert server._runs is not None
    return (await server._runs.storage()).store


async def kept(server: AgentRunServer, kind: str) -> list[Record]:
    """Return what is stored of `kind`, whoever owns it; of a server that has gone, its store is opened for a moment."""
    assert server._runs is not None
    serves = server._runs.is_open
    try:
        page = await (await store_of(server)).list(kind, None, limit=1000)
    finally:
        if not serves:
            await server._runs.aclose()
    return list(page.records)


@contextmanager
def away(store: Store, *, unheard: bool = False) -> Iterator[None]:
    """Have `store` refuse to write; or, `unheard`, write and say that it may have not."""
    write = store.commit

    async def refuse(changes: Sequence[Change]) -> None:
        if unheard:
            await write(changes)
        raise StorageUnavailableError("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "commit", refuse)
        yield


def text_of(response: Response) -> str:
    """Return what a chat answer says in its first choice, streamed or not."""
    assert response.status == 200, response
    if response.header("content-type") == "application/json":
        text: str = response.json()["choices"][0]["message"]["content"]
        return text
    *events, done = parse_events(response.body)
    assert done.data == "[DONE]", response
    chunks = [json.loads(event.data) for event in events]
    assert not any("error" in chunk for chunk in chunks), response
    pieces = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(piece["delta"].get("content") or "" for piece in pieces)
