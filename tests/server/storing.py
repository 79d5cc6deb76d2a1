"""A server that stores, on a real socket, for tests of what it does with responses.

Who calls is the text of the bearer token, so that a test can be two callers.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import openai

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.front import Entry
from agentrun_server.storage.contracts import Record, Store
from tests.support.clock import eventually, within
from tests.support.raw_client import RawClient, Response
from tests.support.response_stream import ResponseStream
from tests.support.serve import Served, serve

__all__ = ["ALICE", "BOB", "Api", "Speaker", "storing"]

ALICE, BOB = "test|alice", "test|bob"
"""Owners of what the callers ``alice`` and ``bob`` make."""


class Callers:
    """Says who is calling: whoever the bearer token says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            token = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
            scope["state"]["principal"] = SimpleNamespace(issuer="test", subject=token, scopes="use", claims={"t": 1})
        await self._app(scope, receive, send)


class Speaker:
    """An agent that says each word when it is told to. Tells what became of each of its runs."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self._started = asyncio.Semaphore(0)
        self._ended = asyncio.Semaphore(0)
        self.requests: list[AgentRequest] = []
        self.cancelled = 0

    def say(self, *words: str | BaseException) -> None:
        """Let the run say words, or raise an error."""
        for word in words:
            self._words.put_nowait(word)

    def finish(self, *words: str) -> None:
        """Let the run say words and come to its end."""
        self.say(*words)
        self._words.put_nowait(None)

    async def started(self) -> AgentRequest:
        """Wait until one more run has begun; return the request of the newest."""
        await within(self._started.acquire())
        return self.requests[-1]

    async def ended(self) -> None:
        """Wait until one more run has cleaned up."""
        await within(self._ended.acquire())

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        self._started.release()
        try:
            while (word := await self._words.get()) is not None:
                if isinstance(word, BaseException):
                    raise word
                yield word
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._ended.release()


class Api:
    """What is served."""

    def __init__(self, server: AgentRunServer, served: Served) -> None:
        self.server = server
        self.served = served
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    def client(self, name: str = "alice") -> openai.AsyncOpenAI:
        """Return the official client, as the caller `name`."""
        if name not in self._clients:
            self._clients[name] = openai.AsyncOpenAI(
                base_url=f"{self.served.url}/v1", api_key=name, max_retries=0, timeout=5
            )
        return self._clients[name]

    async def ask(
        self, method: str, path: str, body: Any = None, *headers: tuple[str, str], name: str = "alice"
    ) -> Response:
        """Make one request; `body` is sent as JSON, bytes as they are."""
        return await self.served.ask(method, f"/v1{path}", _data(body), _headers(name, headers))

    async def create(self, *headers: tuple[str, str], name: str = "alice", **fields: Any) -> Response:
        """Ask for a response."""
        return await self.ask("POST", "/responses", {"model": "m", "input": "Hi", **fields}, *headers, name=name)

    async def made(self, name: str = "alice", **fields: Any) -> dict[str, Any]:
        """Ask for a response; return it."""
        answer = await self.create(name=name, **fields)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json()
        return found

    async def refused(self, method: str, path: str, body: Any = None, *, name: str = "alice") -> tuple[Any, ...]:
        """Make one request that is refused; return status, code and param."""
        answer = await self.ask(method, path, body, name=name)
        error = answer.error()
        return answer.status, error["code"], error["param"]

    @asynccontextmanager
    async def stream(
        self, path: str = "/responses", *headers: tuple[str, str], name: str = "alice", **fields: Any
    ) -> AsyncIterator[ResponseStream]:
        """Ask for a stream: of a new response, or of one that is there."""
        async with self.streaming(path, *headers, name=name, **fields) as (_, reader):
            yield reader

    @asynccontextmanager
    async def streaming(
        self,
        path: str = "/responses",
        *headers: tuple[str, str],
        name: str = "alice",
        receive_buffer: int | None = None,
        **fields: Any,
    ) -> AsyncIterator[tuple[RawClient, ResponseStream]]:
        """Do what `stream` does, and return the connection too."""
        new = path == "/responses"
        body = {"model": "m", "input": "Hi", "stream": True, **fields} if new else None
        async with self.served.client(receive_buffer=receive_buffer) as client:
            await client.request("POST" if new else "GET", f"/v1{path}", _data(body), _headers(name, headers))
            yield client, ResponseStream(client)

    async def store(self) -> Store:
        """Return where it stores."""
        assert self.server._runs is not None
        return (await self.server._runs.storage()).store

    async def record(self, identity: str, kind: str = "response") -> Record:
        """Return a record, whoever owns it."""
        found = await (await self.store()).get(kind, identity, None)
        assert found is not None, identity
        return found

    async def ended(self, identity: str) -> dict[str, Any]:
        """Wait until a response has ended; return it."""
        async with asyncio.timeout(5):
            while True:
                found: dict[str, Any] = (await self.ask("GET", f"/responses/{identity}")).json()
                if found["status"] not in ("queued", "in_progress"):
                    return found
                await asyncio.sleep(0.005)

    async def stored(self, kind: str = "response") -> list[Record]:
        """Return all records of a kind."""
        return list((await (await self.store()).list(kind, None, limit=100)).records)

    async def quiet(self) -> None:
        """Wait until nothing is open any more: no request, no run, no place that is taken."""
        server, runs = self.server, self.server._runs

        def check() -> None:
            assert not server._sweeper.active
            assert not server._admission.running
            assert not self.served.requests
            assert runs is None or (not runs.local and runs.background.is_empty)

        await eventually(check)

    async def aclose(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            await client.close()


def _data(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def _headers(name: str, more: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {name}"), *more]


@asynccontextmanager
async def storing(agent: Any, *, http: str = "guarded", **settings: Any) -> AsyncIterator[Api]:
    """Serve `agent`, or agents by model."""
    config: Mapping[str, Any] = {"store_durable": False, "access_log": False, **settings}
    server = AgentRunServer(agent, config=ServerConfig(**config), middleware=[Entry(Callers)])
    async with serve(server, http=http) as served:
        api = Api(server, served)
        try:
            yield api
        finally:
            await api.aclose()
