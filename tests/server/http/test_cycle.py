"""Answers that are written at once: the same bytes as by ASGI messages, and only when nothing has to be waited for."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.middleware import Middleware

from agentrun_server import AgentError, AgentRequest, AgentRunServer
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.http.cycle import Cycle
from tests.support.clock import eventually, within
from tests.support.raw_client import chat_body
from tests.support.serve import Served, serve

_CHANGING = re.compile(
    rb"(req_|chatcmpl-)[0-9a-f]+|(?<=\ndate: )[^\r]+|(?<=\nopenai-processing-ms: )\d+|(?<=\"created\":)\d+"
)
LENGTH = b"content-length: 2\r\n"
START: Any = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
MEASURED: Any = {**START, "headers": [(b"content-length", b"2")]}


def between(app: ASGIApp) -> ASGIApp:
    """Stand between the server's own code and its connection, as a middleware does that looks at messages."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: Any) -> None:
            await send(message)

        await app(scope, receive, pass_on)

    return wrapped


async def agent(request: AgentRequest) -> AsyncIterator[str]:
    match request.messages[-1].text:
        case "refuse":
            raise AgentError("no", status_code=418)
        case "fail":
            yield "so far"
            await asyncio.sleep(0)
            raise RuntimeError
        case text:
            for word in text.split():
                await asyncio.sleep(0)
                yield word


async def whole(request: AgentRequest) -> str:
    return request.messages[-1].text


async def bytes_of(served: Served, *requests: bytes) -> bytes:
    """Return all that a connection is sent until its end, without what is different each time."""
    async with served.client() as client:
        received = b""
        for request in requests:
            await client.send(request)
        while data := await client.receive():
            received += data
    return _CHANGING.sub(b"#", received)


def post(body: bytes, *, close: bool = True, version: bytes = b"1.1") -> bytes:
    ends = b"connection: close\r\n" if close else b""
    head = b"POST /v1/chat/completions HTTP/%b\r\nhost: x\r\ncontent-type: application/json\r\n%b" % (version, ends)
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


CONVERSATIONS = {
    "a whole answer": [post(chat_body(stream=False, model="whole"))],
    "several on one connection": [
        post(chat_body(stream=False, model="whole", text=str(n)), close=n == 2) for n in range(3)
    ],
    "http/1.0": [post(chat_body(stream=False, model="whole"), version=b"1.0")],
    "a long answer": [post(chat_body(stream=False, model="whole", text="long " * 50_000))],
    "a stream": [post(chat_body(text="one two three"))],
    "an agent that refuses": [post(chat_body(text="refuse"))],
    "an agent that fails": [post(chat_body(text="fail"))],
    "a request that is refused": [post(b"{}")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_what_is_written_at_once_is_what_messages_would_write(name: str) -> None:
    agents = {"m": agent, "whole": whole}
    async with serve(AgentRunServer(agents)) as served:
        direct = await bytes_of(served, *CONVERSATIONS[name])
    async with serve(AgentRunServer(agents, middleware=[Middleware(between)])) as served:
        assert direct == await bytes_of(served, *CONVERSATIONS[name])
    assert direct.startswith(b"HTTP/1.1 ")


# --- the cycle alone, behind an app that is nothing but `use`


async def ask(use: Callable[[Cycle], Awaitable[None]], request: bytes) -> bytes:
    """Return what the connection was sent until its end."""
    failed: list[BaseException] = []

    async def app(_scope: Scope, _: Receive, send: Send) -> None:
        try:
            await use(send.__self__)  # type: ignore[attr-defined]
        except BaseException as exc:
            failed.append(exc)
            raise

    async with serve(app, lifespan=False) as served:
        received = await bytes_of(served, request)
    assert not failed, failed
    return received


GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def test_an_answer_that_has_begun_is_not_answered_again() -> None:
    async def use(cycle: Cycle) -> None:
        assert cycle.answer(200, LENGTH, b"ok")
        assert not cycle.answer(200, LENGTH, b"no")
        assert not cycle.push(b"no")
        with pytest.raises(RuntimeError, match="already completed"):
            await cycle.send({"type": "http.response.body", "body": b"no"})

    received = await ask(use, GET)
    assert received.endswith(b"\r\n\r\nok")
    assert received.count(b"connection: close") == 1


async def test_the_answer_to_a_head_request_is_left_to_messages() -> None:
    async def use(cycle: Cycle) -> None:
        assert not cycle.answer(200, LENGTH, b"ok")
        await cycle.send(MEASURED)
        await cycle.send({"type": "http.response.body", "body": b"ok"})

    assert (await ask(use, GET.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")


async def test_pieces_are_taken_between_the_first_and_the_last() -> None:
    async def use(cycle: Cycle) -> None:
        assert not cycle.push(b"too soon")
        await cycle.send(START)
        assert not cycle.push(b"too soon")
        await cycle.send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert cycle.push(b"two")
        assert not cycle.push(b"")  # would be the end
        await cycle.send({"type": "http.response.body", "body": b"three", "more_body": True})
        await cycle.send({"type": "http.response.body", "body": b"four"})
        assert not cycle.push(b"too late")

    assert (await ask(use, GET)).endswith(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n4\r\nfour\r\n0\r\n\r\n")


async def test_pieces_of_an_answer_of_known_length_are_left_to_messages() -> None:
    async def use(cycle: Cycle) -> None:
        await cycle.send(MEASURED)
        await cycle.send({"type": "http.response.body", "body": b"o", "more_body": True})
        assert not cycle.push(b"k")
        await cycle.send({"type": "http.response.body", "body": b"k"})

    assert (await ask(use, GET)).endswith(b"\r\n\r\nok")


async def test_nothing_is_taken_while_the_client_does_not_read_and_nothing_is_lost() -> None:
    piece = b"x" * 65536
    taken = 0
    full = asyncio.Event()

    async def app(_scope: Scope, _: Receive, send: Send) -> None:
        nonlocal taken
        cycle: Cycle = send.__self__  # type: ignore[attr-defined]
        await send(START)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        taken = 1
        while cycle.push(piece):
            taken += 1
        assert not cycle.answer(200, LENGTH, b"ok")
        full.set()
        await send({"type": "http.response.body", "body": b"end"})

    async with serve(app, lifespan=False) as served, served.client(receive_buffer=4096) as client:
        await client.send(GET)
        await within(full.wait())
        received = b""
        while data := await client.receive():
            received += data
        body = received.partition(b"\r\n\r\n")[2]
        assert body == b"10000\r\n%b\r\n" % piece * taken + b"3\r\nend\r\n0\r\n\r\n"


async def test_nothing_is_taken_for_a_client_that_has_left() -> None:
    left = asyncio.Event()
    refused: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        cycle: Cycle = send.__self__  # type: ignore[attr-defined]
        await send(START)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await receive()
        await receive()
        refused.extend([cycle.push(b"two"), cycle.answer(200, LENGTH, b"ok")])
        left.set()

    async with serve(app, lifespan=False) as served:
        async with served.client() as client:
            await client.send(GET.replace(b"connection: close\r\n", b""))
            await client.head()
        await within(left.wait())
        await eventually(lambda: not served.requests)
    assert refused == [False, False]
