"""When what outlives a request is made, and where it is kept; what it does is seen in the tests of its parts."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from agentrun_server import AgentRequest, AgentRunServer, ConfigurationError, ServerConfig
from agentrun_server.storage.opening import Storage, open_storage
from tests.support.clock import eventually, within
from tests.support.kept import Told
from tests.support.raw_client import Response
from tests.support.response_stream import ResponseStream
from tests.support.serve import Served, serve

QUESTION = b'{"model":"m","input":"hi","store":false}'


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


def is_made(server: AgentRunServer) -> bool:
    return "_keeper" in vars(server)


async def test_it_is_made_when_the_server_starts() -> None:
    server = AgentRunServer(echo)
    assert not is_made(server)
    async with serve(server):
        assert is_made(server)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/responses", QUESTION),
        ("GET", "/v1/chat/completions", None),
        ("GET", "/v1/conversations/conv_1", None),
        ("POST", "/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hi"}],"store":true}'),
    ],
)
async def test_without_a_start_it_is_made_by_the_first_request_for_it(
    method: str, path: str, body: bytes | None
) -> None:
    server = AgentRunServer(echo)
    async with serve(server, lifespan=False) as served:
        assert (await served.chat()).status == 200
        assert (await served.ask("GET", "/v1/models")).status == 200
        assert not is_made(server)
        assert (await served.ask(method, path, body)).status in (200, 404)
        assert is_made(server)
        if server._runs is not None:
            await server._runs.aclose()


async def test_a_memory_makes_every_chat_ask_for_it() -> None:
    server = AgentRunServer(echo, memory_collection_name="notes")
    async with serve(server, lifespan=False) as served:
        assert (await served.chat()).header("x-conversation-id")
        assert server._runs is not None
        await server._runs.aclose()


@pytest.mark.parametrize("key", [[], [("idempotency-key", "1")]], ids=["without a key", "with a key"])
async def test_a_server_that_keeps_nothing_answers_chats_all_the_same(key: list[tuple[str, str]]) -> None:
    server = AgentRunServer(echo, config=ServerConfig(store_url=None, on_disconnect="continue"))
    async with serve(server, lifespan=False) as served:
        assert (await served.chat(store=True, headers=key)).status == 200
        assert (await served.chat(stream=True, headers=key)).status == 200
        assert not is_made(server)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite:relative.db", "postgresql://host:port/db"])
def test_a_store_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="store_url"):
        AgentRunServer(echo, config=ServerConfig(store_url=url))


def test_a_bus_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="bus_redis_url") as raised:
        AgentRunServer(echo, config=ServerConfig(bus_redis_url="http://:hunter2@redis"))
    assert "hunter2" not in str(raised.value)


def test_a_memory_without_a_store_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="memory_collection_name needs a store"):
        AgentRunServer(echo, config=ServerConfig(store_url=None), memory_collection_name="notes")


# --- a storage that is given


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    """Return storage that the test has opened, and closes."""
    opened = await open_storage(f"sqlite:///{tmp_path}/shared.db", durable=False)
    yield opened
    await opened.aclose()


def store_of_the_settings() -> bool:
    return Path(os.environ["AGENTRUN_HOME"]).exists()


async def ask(served: Served, prefix: str = "", **fields: Any) -> Response:
    """Ask for a response."""
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    return await served.ask("POST", f"{prefix}/v1/responses", body)


async def test_two_servers_with_one_storage_are_replicas_of_each_other(storage: Storage) -> None:
    agent = Told()
    one, other = AgentRunServer(agent, store=storage), AgentRunServer(agent, store=storage)
    async with serve(one) as here, serve(other) as there:
        agent.end("first")
        made = (await ask(here)).json()
        assert (await there.ask("GET", f"/v1/responses/{made['id']}")).json() == made
        queued = (await ask(here, background=True)).json()
        async with there.client() as client:
            await client.request("GET", f"/v1/responses/{queued['id']}?stream=true")
            reader = ResponseStream(client)
            for word in ("one", "two"):
                agent.say(word)
                assert (await reader.until("response.output_text.delta"))["delta"] == word
            cancelled = await there.ask("POST", f"/v1/responses/{queued['id']}/cancel", b"")
            assert cancelled.json()["status"] == "cancelled"
            assert await reader.until("response.incomplete")
        assert agent.requests[-1].is_cancelled
        agent.end("second")
        again = await ask(there, previous_response_id=made["id"])
        assert [message.text for message in agent.requests[-1].messages] == ["hi", "first", "hi"]
        assert again.status == 200
    assert not store_of_the_settings(), "no other store is made"


async def test_who_stops_leaves_the_storage_to_the_others(storage: Storage) -> None:
    agent = Told()
    one, other = AgentRunServer(agent, store=storage), AgentRunServer(agent, store=storage)
    async with serve(one) as here:
        async with serve(other) as there:
            agent.end("there")
            made = (await ask(there)).json()
            queued = (await ask(there, background=True)).json()
            await agent.ran(2)
            agent.end("its last words")
        assert (await here.ask("GET", f"/v1/responses/{made['id']}")).json() == made
        assert (await here.ask("GET", f"/v1/responses/{queued['id']}")).json()["status"] == "completed"
        agent.end("here")
        assert (await ask(here)).status == 200
    assert (await storage.store.get("response", made["id"], None)) is not None


async def test_a_server_that_is_started_again_uses_the_same_storage(storage: Storage) -> None:
    server = AgentRunServer(echo, store=storage)
    async with serve(server) as served:
        made = (await ask(served)).json()
    async with serve(server) as served:
        assert (await served.ask("GET", f"/v1/responses/{made['id']}")).json() == made


async def test_what_is_open_in_a_storage_is_looked_after_when_the_server_starts(storage: Storage) -> None:
    server = AgentRunServer(echo, store=storage)
    async with serve(server):
        await eventually(lambda: server._runs is not None and server._runs.is_open)


async def test_a_mounted_server_uses_the_storage_of_the_app_around_it(tmp_path: Path) -> None:
    opened: list[Storage] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        storage = await open_storage(f"sqlite:///{tmp_path}/app.db", durable=False)
        opened.append(storage)
        servers = [AgentRunServer(echo, store=storage, memory_collection_name="notes") for _ in range(2)]
        for name, server in zip(("one", "two"), servers, strict=True):
            app.mount(f"/{name}", server)
        async with servers[0].lifespan(), servers[1].lifespan():
            yield
        assert await storage.store.size() > 0, "it is open still"
        await storage.aclose()

    async with serve(FastAPI(lifespan=lifespan)) as served:
        made = await ask(served, "/one")
        assert made.status == 200
        assert (await served.ask("GET", f"/two/v1/responses/{made.json()['id']}")).json() == made.json()
    assert len(opened) == 1


async def test_a_storage_turns_on_what_the_settings_have_turned_off(storage: Storage) -> None:
    config = ServerConfig(store_url=None)
    server = AgentRunServer(echo, config=config, memory_collection_name="notes", store=storage)
    async with serve(server) as served:
        answer = await served.chat(store=True)
        assert answer.header("x-conversation-id")
        identity = answer.json()["id"]
        assert (await served.ask("GET", f"/v1/chat/completions/{identity}")).json()["id"] == identity


async def test_a_store_can_be_named_by_its_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/named.db"
    server = AgentRunServer(echo, config=ServerConfig(store_url="sqlite", max_messages=7), store=url)
    assert (server.config.store_url, server.config.max_messages) == (url, 7)
    async with serve(server) as served:
        made = await ask(served)
    assert (tmp_path / "named.db").exists()
    async with serve(AgentRunServer(echo, store=url)) as served:
        assert (await within(served.ask("GET", f"/v1/responses/{made.json()['id']}"))).json() == made.json()


def test_what_is_no_store_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="store_url"):
        AgentRunServer(echo, store="mysql://host/db")
    store: Any = object()
    with pytest.raises(ConfigurationError, match="store is a URL, or a Storage"):
        AgentRunServer(echo, store=store)
