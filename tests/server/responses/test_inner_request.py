"""A request that the server puts to itself."""

import asyncio
from typing import Any

import pytest

from agentrun_server.errors import APIError
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, Exchange
from agentrun_server.server.responses.inner_request import InnerRequest
from tests.support.clock import within

HANDSHAKE: Scope = {
    "type": "websocket",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "scheme": "wss",
    "path": "/api/v1/responses/",
    "raw_path": b"/api/v1/responses/",
    "root_path": "/api",
    "query_string": b"a=b",
    "client": ("192.0.2.1", 1),
    "server": ("192.0.2.2", 443),
    "state": {"principal": "alice", "request_id": "req_of_the_handshake"},
    "subprotocols": ["x"],
    "extensions": {"websocket.http.response": {}},
    "app": object(),
    "headers": [
        (b"host", b"agents.example"),
        (b"authorization", b"Bearer key"),
        (b"x-own", b"1"),
        (b"x-own", b"2"),
        (b"connection", b"upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-key", b"x"),
        (b"sec-websocket-version", b"13"),
        (b"origin", b"https://agents.example"),
        (b"accept-encoding", b"gzip"),
        (b"content-type", b"text/plain"),
        (b"idempotency-key", b"once"),
        (b"x-request-id", b"req_of_the_handshake"),
    ],
}

Events = list[tuple[str, bytes]]


def inner(events: Events | None = None, below: str = "") -> InnerRequest:
    async def on_event(name: str, data: bytes) -> None:
        assert events is not None
        events.append((name, data))

    return InnerRequest(HANDSHAKE, below, b"{}", facts={"websocket": "w"}, on_event=on_event)


def answering(status: int, content_type: bytes, *pieces: bytes, headers: Any = ()) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        head = [(b"Content-Type", content_type), *headers]
        await send({"type": "http.response.start", "status": status, "headers": head})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return app


STREAM = b"text/event-stream; charset=utf-8"


async def test_it_is_the_handshake_as_a_post_without_what_was_of_the_handshake_alone() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope))
        assert await receive() == {"type": "http.request", "body": b"{}", "more_body": False}

    await inner(below="/input_tokens").ask(app)
    assert seen == [
        {
            "type": "http",
            "method": "POST",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "https",
            "path": "/api/v1/responses/input_tokens",
            "raw_path": b"/api/v1/responses/input_tokens",
            "root_path": "/api",
            "query_string": b"a=b",
            "client": ("192.0.2.1", 1),
            "server": ("192.0.2.2", 443),
            "state": {"principal": "alice"},
            "headers": [
                (b"host", b"agents.example"),
                (b"authorization", b"Bearer key"),
                (b"x-own", b"1"),
                (b"x-own", b"2"),
                (b"content-type", b"application/json"),
                (b"content-length", b"2"),
            ],
        }
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
async def test_events_are_told_one_by_one_however_they_are_cut(size: int) -> None:
    stream = b': keep-alive\n\nevent: a\ndata: {"x":1}\n\nevent: b\ndata: {"y":"\xc3\xa4"}\n\n: \n\ndata: [DONE]\n\n'
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    events: Events = []
    rest = await inner(events).ask(answering(200, STREAM, *pieces))
    assert events == [("a", b'{"x":1}'), ("b", b'{"y":"\xc3\xa4"}')]
    assert rest == b""


async def test_an_answer_that_is_no_stream_is_returned() -> None:
    assert await inner().ask(answering(200, b"application/json", b'{"a"', b":1}")) == b'{"a":1}'


async def test_an_error_is_raised_as_it_was_told() -> None:
    headers = [
        (b"Retry-After", b"3"),
        (b"x-ratelimit-limit-requests", b"9"),
        (b"X-Request-ID", b"req_1"),
        (b"set-cookie", b"secret"),
    ]
    body = b'{"error":{"message":"Slow down.","type":"rate_limit_error","param":"p","code":"c"}}'
    with pytest.raises(APIError) as refused:
        await inner().ask(answering(429, b"application/json", body, headers=headers))
    error = refused.value
    assert (error.status_code, error.message, error.type, error.param, error.code) == (
        429, "Slow down.", "rate_limit_error", "p", "c",
    )  # fmt: skip
    assert error.headers == (
        (b"retry-after", b"3"),
        (b"x-ratelimit-limit-requests", b"9"),
        (b"x-request-id", b"req_1"),
    )


@pytest.mark.parametrize("body", [b"", b"Forbidden", b"[]", b'"x"', b'{"detail":"no"}', b'{"error":"no"}', b"\xff"])
async def test_an_error_in_another_form_is_one_too(body: bytes) -> None:
    with pytest.raises(APIError) as refused:
        await inner().ask(answering(403, b"text/plain", body))
    assert (refused.value.status_code, refused.value.code) == (403, "refused")


async def test_an_answer_without_end_is_not_kept() -> None:
    request = inner()
    with pytest.raises(APIError):
        await request.ask(answering(500, b"text/plain", *[b"x" * 100_000] * 50))
    assert sum(map(len, request._pieces)) <= 1024 * 1024


async def test_the_client_leaves_when_it_is_said() -> None:
    request = inner()
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while "http.disconnect" not in heard:
            heard.append((await receive())["type"])

    task = asyncio.create_task(request.ask(app))
    for _ in range(5):
        await asyncio.sleep(0)
    assert heard == ["http.request"]
    request.leave()
    await within(task)
    assert heard == ["http.request", "http.disconnect"]


async def test_the_log_line_names_the_websocket() -> None:
    exchanges: list[Exchange] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[EXCHANGE] = exchange = Exchange(send, "req_1")
        exchanges.append(exchange)
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})

    await inner().ask(app)
    assert exchanges[0].facts == {"websocket": "w"}
