"""Asking a server in this process, as a client would."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from agentrun_server import AgentRunServer, ServerConfig
from agentrun_server.testing import async_client
from tests.support.chat_oracle import ParsedStream, check_chat_stream, check_completion
from tests.support.clock import after, within

__all__ = ["CHAT", "Asking", "asking", "body_of", "messages_of"]

CHAT = "/v1/chat/completions"


def body_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body: a model, one message, and `fields`."""
    return {"model": "agent", "messages": [{"role": "user", "content": "Hi"}], **fields}


class Asking:
    """A server, and a client of it."""

    def __init__(self, server: AgentRunServer, client: httpx2.AsyncClient) -> None:
        self.server = server
        self.client = client
        self._passed = 0.0

    async def post(self, content: bytes | None = None, /, **fields: Any) -> httpx2.Response:
        """Ask for an answer; `headers` go with the request, other keywords into its body, unless `content` is given."""
        headers = {"content-type": "application/json", **fields.pop("headers", {})}
        body = content if content is not None else json.dumps(body_of(fields)).encode()
        return await within(self.client.post(CHAT, content=body, headers=headers))

    async def streamed(self, **fields: Any) -> ParsedStream:
        """Ask for a stream that must be whole and right; return what it says."""
        response = await self.post(stream=True, **fields)
        assert response.status_code == 200, response.text
        options = fields.get("stream_options") or {}
        return check_chat_stream(
            response.content,
            include_usage=bool(options.get("include_usage")),
            n=fields.get("n", 1),
            logprobs=bool(fields.get("logprobs")),
            obfuscation=bool(options.get("include_obfuscation")),
        )

    async def whole(self, **fields: Any) -> ParsedStream:
        """Ask for a body that must be right; return what it says."""
        response = await self.post(**fields)
        assert response.status_code == 200, response.text
        return check_completion(response.json(), n=fields.get("n", 1), logprobs=bool(fields.get("logprobs")))

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Fetch `path`."""
        return await within(self.client.get(path, headers=headers))

    def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass, as whatever has a time limit sees it."""
        self._passed += seconds
        after(self.server, self._passed)


@asynccontextmanager
async def asking(agent: Any, **settings: Any) -> AsyncIterator[Asking]:
    """Serve `agent` with these settings."""
    server = AgentRunServer(agent, config=ServerConfig(access_log=False, **settings))
    async with async_client(server) as client:
        yield Asking(server, client)


async def messages_of(
    server: AgentRunServer,
    fields: Mapping[str, Any],
    *,
    send: Callable[[Any], Awaitable[None]] | None = None,
) -> list[dict[str, Any]]:
    """Call `server` as plain ASGI, without a client in between; return the messages it sends, if not given `send`."""
    sent: list[dict[str, Any]] = []
    body = json.dumps(body_of(fields)).encode()
    left = asyncio.Event()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def keep(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await within(server(scope, receive, send or keep))
    left.set()
    return sent
