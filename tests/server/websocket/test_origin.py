"""Which pages may open a WebSocket."""

from typing import Any

import pytest

from agentrun_server.server.asgi import Message, Receive, Scope, Send
from agentrun_server.server.websocket.origin import OriginGuard

OWN = ("host", "agents.example:8000")


async def status(origins: list[str], *headers: tuple[str, str], kind: str = "websocket", denial: bool = True) -> int:
    """Return the status with which a handshake is answered."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing has to be read")

    scope: dict[str, Any] = {
        "type": kind,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "extensions": {"websocket.http.response": {}} if denial else None,
    }
    await OriginGuard(app, origins)(scope, receive, send)
    return 101 if sent[0]["type"] == "websocket.accept" else int(sent[0].get("status", sent[0].get("code")))


async def test_who_is_no_page_may() -> None:
    assert await status([], OWN) == 101


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://agents.example:8000", "agents.example:8000"),
        ("HTTP://Agents.Example:8000", "agents.example:8000"),
        ("http://agents.example", "agents.example"),
        ("http://agents.example", "agents.example:80"),
        ("http://agents.example:80", "agents.example"),
        ("https://agents.example", "agents.example"),
        ("https://agents.example", "agents.example:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
async def test_pages_of_the_servers_own_host_may(origin: str, host: str) -> None:
    assert await status([], ("host", host), ("origin", origin)) == 101


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://agents.example",
        "http://agents.example",
        "http://agents.example:8001",
        "https://agents.example:80",
        "http://agents.example:8000.evil.example",
        "http://evil.example/agents.example:8000",
        "http://evil.example#agents.example:8000",
        "http://user@agents.example:8000",
        "http://agents.example:8000/",
        "ftp://agents.example:8000",
        "agents.example:8000",
        "null",
        "",
        "*",
        "\xff",
    ],
)
async def test_others_may_not(origin: str) -> None:
    assert await status([], OWN, ("origin", origin)) == 403
    assert await status(["https://app.example"], OWN, ("origin", origin)) == 403


async def test_origins_that_may_make_requests_may() -> None:
    origins = ["https://app.example", "http://localhost:3000"]
    assert await status(origins, OWN, ("origin", "https://app.example")) == 101
    assert await status(origins, OWN, ("origin", "HTTP://LOCALHOST:3000")) == 101
    assert await status(origins, OWN, ("origin", "http://localhost:3001")) == 403
    assert await status(origins, OWN, ("origin", "https://app.example.evil.example")) == 403


async def test_any_is_any_without_a_cookie() -> None:
    evil = ("origin", "https://evil.example")
    assert await status(["*"], OWN, evil) == 101
    assert await status(["*"], OWN, ("origin", "null")) == 101
    assert await status(["*"], OWN, evil, ("cookie", "session=1")) == 403
    assert await status(["*"], OWN, ("origin", "http://agents.example:8000"), ("cookie", "session=1")) == 101


@pytest.mark.parametrize(
    "headers",
    [
        [OWN, ("origin", "http://agents.example:8000"), ("origin", "http://agents.example:8000")],
        [OWN, OWN, ("origin", "http://agents.example:8000")],
        [("origin", "http://agents.example:8000")],
    ],
)
async def test_what_comes_twice_or_not_at_all_is_nothing_to_go_by(headers: list[tuple[str, str]]) -> None:
    assert await status([], *headers) == 403


async def test_where_no_answer_can_be_sent_the_handshake_is_closed() -> None:
    assert await status([], OWN, ("origin", "null"), denial=False) == 1008


@pytest.mark.parametrize("kind", ["http", "lifespan"])
async def test_requests_are_left_to_cors(kind: str) -> None:
    assert await status([], OWN, ("origin", "https://evil.example"), kind=kind) == 101
