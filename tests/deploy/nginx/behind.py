"""What stands behind nginx in these tests: the server with tokens, an agent that says what it is told to, and two
stand-ins that show what nginx sends and can answer what no server would.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.server.asgi import Receive, Scope, Send
from tests.support.clock import within
from tests.support.nginx import APP_AUTH_CONF, CONF

__all__ = [
    "ALICE",
    "GOOD",
    "ISSUER",
    "Call",
    "Echo",
    "Headers",
    "Script",
    "Speaker",
    "bearer",
    "both",
    "guarded",
    "scripted",
    "token",
]

Headers = tuple[tuple[str, str], ...]

both = pytest.mark.parametrize("conf", [CONF, APP_AUTH_CONF], ids=["nginx", "app-auth"])
"""A test of what both files do."""

KEY = "for-tests-only-" + "k" * 40
ISSUER = "https://issuer.test"


def token(*scopes: str, **claims: Any) -> str:
    """Return a token that `guarded` accepts."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": "agents", "sub": "alice", "iat": now, "exp": now + 3600, "scope": " ".join(scopes)}
    return jwt.encode({**payload, **claims}, KEY, algorithm="HS256")


def bearer(*scopes: str, **claims: Any) -> Headers:
    """Return the header with a token."""
    return (("authorization", f"Bearer {token(*scopes, **claims)}"),)


def guarded(agent: Any, **settings: Any) -> AgentRunServer:
    """Return a server that lets nobody pass without a token of `bearer`, and takes over nginx's request id."""
    config = ServerConfig(
        auth_jwt_key=KEY,
        auth_jwt_algorithms=["HS256"],
        auth_issuer=ISSUER,
        auth_audience=["agents"],
        trust_request_id=True,
        **settings,
    )
    return AgentRunServer(agent, config=config)


class Speaker:
    """An agent that says each word when it is told to, so that a test can see one through before the next."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str | None] = asyncio.Queue()
        self.requests: list[AgentRequest] = []
        self.started = asyncio.Event()
        self.ended = asyncio.Event()

    def say(self, word: str) -> None:
        """Let the agent say a word."""
        self._words.put_nowait(word)

    def finish(self) -> None:
        """Let the agent come to its end."""
        self._words.put_nowait(None)

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        self.requests.append(request)
        self.started.set()
        try:
            while (word := await self._words.get()) is not None:
                yield word
        finally:
            self.ended.set()


# --- an app that shows what came

ALICE = {"x-auth-subject": "alice", "x-auth-issuer": ISSUER, "x-auth-scopes": "models:a models:b"}
"""What `Echo` tells of whoever comes with `GOOD`."""
GOOD: Headers = (("authorization", "Bearer good"),)

Answer = tuple[int, Mapping[str, str]]


@dataclass(frozen=True)
class Call:
    """A request as the app behind nginx sees it. A header that comes twice has both values, with a comma."""

    method: str
    raw_path: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Echo:
    """Vouches for `GOOD` as ``/auth/verify`` does, and answers other requests with what came.

    ``Bearer answer-429`` is answered 429, and so on, with the headers in `verifier_headers`.
    """

    verifier_headers: Mapping[str, str] = field(default_factory=dict)
    checks: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    clients: set[tuple[str, int]] = field(default_factory=set)
    """The connections over which it was asked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.clients.add(scope["client"])
        call = await _call(scope, receive)
        if call.path == "/auth/verify":
            self.checks.append(call)
            status, headers = self._judge(call.headers.get("authorization", ""))
            await _send(send, status, headers)
            return
        if call.path in ("/livez", "/readyz", "/health"):
            await _send(send, 200, {})
            return
        self.calls.append(call)
        shown = {"path": call.path, "headers": call.headers}
        await _send(send, 200, {"content-type": "application/json"}, json.dumps(shown).encode())

    def _judge(self, credential: str) -> Answer:
        if credential == "Bearer good":
            return 204, ALICE
        if credential.startswith("Bearer answer-"):
            return int(credential.removeprefix("Bearer answer-")), self.verifier_headers
        return 401, {"www-authenticate": 'Bearer realm="api"'}


async def _call(scope: Scope, receive: Receive) -> Call:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode()
        headers[key] = f"{headers[key]}, {value.decode()}" if key in headers else value.decode("latin-1")
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    raw, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return Call(scope["method"], raw, scope["path"], query, headers, body)


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if status != 204:
        pairs.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


# --- a peer that does what it is told

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    """Listen on a free port, which is given: vouch for everybody, and leave each other request to `script`.

    It gets the reader behind the head of the request, and the connection to do with what it likes.
    """
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while head := await _head(reader):
                if head.startswith(b"GET /auth/verify "):
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                else:
                    await script(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await within(asyncio.gather(*tasks, return_exceptions=True))


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
