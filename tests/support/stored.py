"""Routes of stored objects on a real socket, with a store of their own and no server around them.

Who calls is the text of the bearer token, so that a test can be two callers.
"""

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import AgentRequest
from agentrun_server.invoker.threads import Threads
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.admission import Admission
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, Exchange
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Create, Record
from agentrun_server.storage.local_bus import LocalBus
from agentrun_server.storage.opening import Storage
from agentrun_server.storage.sqlite import SQLiteStore
from tests.support.raw_client import Response
from tests.support.serve import Served, serve

__all__ = ["ALICE", "BOB", "Bench", "answer_of", "bench", "check_schema", "response_record"]

ALICE, BOB = "test|alice", "test|bob"
"""Owners of what the callers ``alice`` and ``bob`` make."""

AddRoutes = Callable[[Services, "OpenStore", Routes], None]


async def _agent(_: AgentRequest) -> str:
    raise NotImplementedError


class OpenStore:
    """Opens the storage when it is called first, as a server does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.opened: Storage | None = None

    async def __call__(self) -> Storage:
        if self.opened is None:
            store = SQLiteStore(self._path / "test.db", durable=False)
            self.opened = Storage(store, store, LocalBus())
        return self.opened


@dataclass(slots=True)
class Bench:
    """What is served, and the store behind it."""

    served: Served
    storage: OpenStore
    clients: dict[str, openai.AsyncOpenAI] = field(default_factory=dict[str, openai.AsyncOpenAI])

    def client(self, name: str = "alice") -> openai.AsyncOpenAI:
        """Return the official client, as the caller `name`."""
        if name not in self.clients:
            self.clients[name] = openai.AsyncOpenAI(
                base_url=f"{self.served.url}/v1", api_key=name, max_retries=0, timeout=5
            )
        return self.clients[name]

    async def ask(self, method: str, path: str, body: Any = None, *, name: str = "alice") -> Response:
        """Make one request; `body` is sent as JSON, bytes as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return await self.served.ask(method, f"/v1{path}", data, [("authorization", f"Bearer {name}")])

    async def refused(self, method: str, path: str, body: Any = None, *, name: str = "alice") -> dict[str, Any]:
        """Make one request that is refused; return its status with the error."""
        response = await self.ask(method, path, body, name=name)
        error = response.error()
        assert error["type"] == "invalid_request_error"
        return {"status": response.status, **error}

    async def put(self, *records: Record) -> None:
        """Put records into the store."""
        await (await self.storage()).store.commit([Create(record) for record in records])

    async def get(self, kind: str, identity: str) -> Record | None:
        """Return a record, whoever owns it."""
        return await (await self.storage()).store.get(kind, identity, None)


@asynccontextmanager
async def bench(path: Path, add_routes: AddRoutes, **settings: Any) -> AsyncIterator[Bench]:
    """Serve the routes that `add_routes` adds."""
    config = ServerConfig(**settings)
    services = Services(
        config=config,
        agents=Agents(_agent, None, strict=False),
        admission=Admission(1, max_queued=0, timeout=1),
        threads=Threads(1, max_waiting=0, timeout=1, grace=1),
        sweeper=Sweeper(config),
        new_id=IdSource(),
    )
    storage = OpenStore(path)
    routes = Routes(("/v1",))
    add_routes(services, storage, routes)
    async with serve(_app(routes), http="plain", lifespan=False) as served:
        running = Bench(served, storage)
        try:
            yield running
        finally:
            for client in running.clients.values():
                await client.close()
            if storage.opened is not None:
                await storage.opened.aclose()


def _app(routes: Routes) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(send, "req_1")
        name = dict(scope["headers"])[b"authorization"].removeprefix(b"Bearer ").decode()
        scope[EXCHANGE] = exchange
        scope["state"] = {"principal": SimpleNamespace(issuer="test", subject=name)}
        match = routes.find(scope["path"])
        assert match is not None, scope["path"]
        answers = match.app(scope["method"])
        assert answers is not None, (scope["method"], scope["path"])
        await answers(scope, receive, exchange.send)

    return app


def answer_of(response: Response, schema: str) -> Any:
    """Return the body of an answer, which is a `schema` of OpenAI's specification."""
    assert response.status == 200, response
    check_schema(schema, response.json())
    return response.json()


def check_schema(name: str, value: Any) -> None:
    """Check `value` against a schema of OpenAI's specification, where ``OPENAI_SCHEMAS`` names the file with them."""
    path = os.environ.get("OPENAI_SCHEMAS")
    if path:
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in _validator(path, name)(value)]
        assert not errors, f"{name}: {errors}"


@cache
def _validator(path: str, name: str) -> Callable[[Any], Any]:
    jsonschema = pytest.importorskip("jsonschema")

    schemas = json.loads(Path(path).read_text(encoding="utf-8"))["components"]["schemas"]
    assert name in schemas, name
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    validator: Any = jsonschema.Draft202012Validator(schema)
    checked: Callable[[Any], Any] = validator.iter_errors
    return checked


def response_record(
    response_id: str,
    *,
    question: list[dict[str, Any]],
    output: list[dict[str, Any]],
    owner: str = ALICE,
    status: str = "completed",
    history: list[str] | None = None,
    conversation: str = "",
    response: Mapping[str, Any] | None = None,
) -> Record:
    """Return the record of a response that answers `question`."""
    return Record(
        kind="response",
        id=response_id,
        owner=owner,
        status=status,
        body={
            "response": {**(response or {}), "id": response_id, "output": output},
            "input": question,
            "history": history or [],
            "conversation": conversation,
            "background": False,
        },
    )
