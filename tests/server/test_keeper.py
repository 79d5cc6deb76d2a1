"""When what outlives a request is made; what it does is seen in the tests of its parts."""

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ConfigurationError, ServerConfig
from tests.support.serve import serve

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


def test_a_memory_without_a_store_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="memory_collection_name needs a store"):
        AgentRunServer(echo, config=ServerConfig(store_url=None), memory_collection_name="notes")
