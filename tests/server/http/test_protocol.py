"""The guarded protocol: a hostile corpus over real sockets, and the protocol alone with a clock turned by hand."""

import asyncio
import contextlib
import gc
import json
import logging
import pickle
import random
import re
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError
from agentrun_server.server.http import protocol as http_protocol
from agentrun_server.server.http.head import CHUNKED, read_framing
from agentrun_server.server.http.protocol import (
    GuardedHttpToolsProtocol,
    HttpLimits,
    http_limits_of,
)
from agentrun_server.server.http.refusal import RefusedError
from agentrun_server.server.websocket.head import WebSockets
from tests.server.http.corpus import CASES, LIMITS, WEBSOCKETS, Case
from tests.support.wire import ManualLoop, Wire

PATIENCE = 10.0
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
HOST = b"Host: localhost:9000\r\n"
FOLLOW_UP = b"GET /follow-up HTTP/1.1\r\n" + HOST + b"\r\n"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def request(line: bytes = b"GET / HTTP/1.1", headers: bytes = b"", body: bytes = b"") -> bytes:
    return line + b"\r\n" + HOST + headers + b"\r\n" + body


def post(body: bytes, headers: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return request(b"POST / HTTP/1.1", b"Content-Length: %d\r\n" % size + headers, body)


def chunked(body: bytes) -> bytes:
    return request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked\r\n", body)


# --- what stands above the protocol


@dataclass
class Call:
    """One request as an app saw it."""

    scope: Scope
    body: bytes = b""
    complete: bool = False


@dataclass
class EchoApp:
    """Reads the whole body, then gives it back. Remembers every call."""

    http_limits: HttpLimits = LIMITS
    websockets: WebSockets = WEBSOCKETS
    calls: list[Call] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope)
        self.calls.append(call)
        while not call.complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            call.body += message["body"]
            call.complete = not message["more_body"]
        status = 200 if scope["method"] in METHODS else 405
        await answer(send, call.body if len(call.body) < 1000 else b"%d bytes" % len(call.body), status=status)


async def answer(send: Send, body: bytes = b"ok", *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, (b"x-app", b"1"), *headers]})
    await send({"type": "http.response.body", "body": body})


def config_for(app: Any, **options: Any) -> uvicorn.Config:
    options = {"ws": "none", "lifespan": "off", "log_config": None, "access_log": False, **options}
    return uvicorn.Config(app, http=GuardedHttpToolsProtocol, timeout_graceful_shutdown=5, **options)


# --- a client that takes nothing on trust


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def by_app(self) -> bool:
        return "x-app" in self.headers

    def error(self) -> dict[str, Any]:
        """Check that this is an error as OpenAI's clients want it, and return the error object."""
        assert not self.by_app
        assert self.headers["content-type"] == "application/json"
        assert self.headers["connection"] == "close"
        assert self.headers["x-request-id"].startswith("req_")
        assert len(self.headers["x-request-id"]) == 36
        body = json.loads(self.body)
        assert list(body) == ["error"]
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)
        assert isinstance(body["error"]["code"], str)
        assert body["error"]["type"] in {"invalid_request_error", "server_error", "rate_limit_error"}
        return cast("dict[str, Any]", body["error"])


def parse_head(head: bytes) -> Answer:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    version, status, _ = lines[0].split(b" ", 2)
    assert version == b"HTTP/1.1"
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(b":")
        assert separator, line
        assert name.decode() not in headers, "repeated header"
        headers[name.decode()] = value.decode().strip()
    return Answer(int(status), headers)


def parse_answers(data: bytes, *, to_head: bool = False) -> list[Answer]:
    """Split what a server wrote into answers; every byte must belong to one."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        got = parse_head(head)
        if got.status >= 200:
            size = 0 if to_head else int(got.headers["content-length"])
            answers.append(Answer(got.status, got.headers, data[:size]))
            assert len(data) >= size
            data = data[size:]
    return answers


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes, *, end: bool = False) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()
            if end:
                self.writer.write_eof()

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Read one answer, also an interim one."""
        got = parse_head(await self.reader.readuntil(b"\r\n\r\n"))
        size = 0 if to_head or got.status < 200 else int(got.headers["content-length"])
        return Answer(got.status, got.headers, await self.reader.readexactly(size))

    async def ends(self) -> None:
        """Expect that the server sends nothing more and closes."""
        with contextlib.suppress(ConnectionError):
            assert await self.reader.read() == b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    async with asyncio.timeout(PATIENCE):
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        try:
            yield client
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def serve(app: Any, **options: Any) -> AsyncIterator[int]:
    """Run uvicorn in the loop of the test; give its port."""
    config = config_for(app, **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    await server.startup(sockets=[listener])
    await server.on_tick(0)
    try:
        yield port
    finally:
        await server.shutdown(sockets=[listener])


class ThreadedServer(uvicorn.Server):
    """uvicorn as users run it: with its own loop, here in a thread of its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self.on_tick(0)
        self.ready.set()

    @contextlib.contextmanager
    def running(self) -> Iterator["ThreadedServer"]:
        thread = threading.Thread(target=self.run, kwargs={"sockets": [self.listener]})
        thread.start()
        try:
            assert self.ready.wait(PATIENCE)
            yield self
        finally:
            self.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


# --- the corpus over sockets


@dataclass
class Target:
    app: EchoApp
    port: int


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    app = EchoApp()
    with ThreadedServer(config_for(app, loop=request.param)).running() as server:
        yield Target(app, server.port)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_hostile_request_gets_its_answer_and_the_next_client_is_served(case: Case, target: Target) -> None:
    target.app.calls.clear()
    async with connect(target.port) as client:
        # The answer may come while we are still sending.
        sending = asyncio.create_task(client.send(case.data, end=case.half_close))
        answers = [await client.answer(to_head=case.is_head) for _ in case.answers]
        check_answers(case, answers)
        if case.closes or (answers and not answers[-1].by_app):
            await client.ends()
        else:
            await client.send(FOLLOW_UP)
            assert (await client.answer()).by_app
        await sending
    check_calls(case, answers, target.app.calls)
    async with connect(target.port) as client:
        await client.send(FOLLOW_UP)
        assert (await client.answer()).status == 200


def check_answers(case: Case, answers: list[Answer]) -> None:
    for got, statuses in zip(answers, case.answers, strict=True):
        assert got.status in statuses
        if not got.by_app and not case.is_head:
            got.error()


def check_calls(case: Case, answers: list[Answer], calls: list[Call]) -> None:
    """What reached the app is what was answered by it: one request more would be a smuggled one."""
    reached = [call for call in calls if call.complete and call.scope["path"] != "/follow-up"]
    assert len(reached) == sum(got.by_app for got in answers)
    if case.body is not None:
        assert reached[-1].body == case.body


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 300


# --- the protocol alone


class Peer:
    """One connection: the protocol, its wire, its clock and the app above."""

    def __init__(
        self,
        app: Any = None,
        limits: HttpLimits = LIMITS,
        protocol: type[HttpToolsProtocol] = GuardedHttpToolsProtocol,
        **options: Any,
    ) -> None:
        self.app: Any = EchoApp() if app is None else app
        self.loop = ManualLoop()
        self.wire = Wire()
        self.state = ServerState()
        config = config_for(WithLimits(self.app, limits), **options)
        config.load()
        self.protocol = protocol(config, self.state, {}, cast("asyncio.AbstractEventLoop", self.loop))
        self.protocol.connection_made(cast("asyncio.Transport", self.wire))

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.wire.closed:
                self.protocol.data_received(piece)

    async def rest(self) -> None:
        """Let the app go on until it waits for something outside."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Wait until all requests are answered."""
        async with asyncio.timeout(PATIENCE):
            while self.state.tasks:
                await asyncio.wait(self.state.tasks)

    def lose(self) -> None:
        self.protocol.connection_lost(None)

    def answers(self, *, to_head: bool = False) -> list[Answer]:
        return parse_answers(bytes(self.wire.written), to_head=to_head)

    def statuses(self) -> list[int]:
        return [got.status for got in self.answers()]


class WithLimits:
    """Middleware that knows the limits of what it wraps."""

    def __init__(self, app: Any, limits: HttpLimits) -> None:
        self.app = app
        self.http_limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def pieces_of(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    position = 0
    for size in sizes:
        if position >= len(data):
            return
        yield data[position : position + size]
        position += size
    yield data[position:]


@pytest.mark.parametrize("case", [case for case in CASES if not case.needs_one_piece], ids=lambda case: case.name)
async def test_an_answer_does_not_depend_on_how_the_network_cuts_the_bytes(case: Case) -> None:
    for size in (1, 3, 7, 1000, 70_000):
        if len(case.data) / size < 2000:
            await check_cut(case, size, in_turns=True)
            await check_cut(case, size, in_turns=False)


async def check_cut(case: Case, size: int, *, in_turns: bool) -> None:
    peer = Peer()
    for start in range(0, len(case.data), size):
        peer.feed(case.data[start : start + size])
        if in_turns:
            await asyncio.sleep(0)
    if not case.half_close:
        await peer.finish()
    peer.lose()
    await peer.finish()
    answers = peer.answers(to_head=case.is_head)
    check_answers(case, answers)
    check_calls(case, answers, peer.app.calls)
    assert peer.loop.timers == []


async def test_an_app_sees_the_scope_it_would_see_without_the_guard() -> None:
    for case in CASES:
        if not case.name.startswith(("ordinary", "pipeline")) or set.union(*map(set, case.answers)) - {200, 405}:
            continue
        plain, guarded = (Peer(protocol=protocol) for protocol in (HttpToolsProtocol, GuardedHttpToolsProtocol))
        for peer in (plain, guarded):
            peer.feed(case.data)
            await peer.finish()
            peer.lose()
        seen = [call for call in guarded.app.calls if not case.rewrites_headers]
        expected = plain.app.calls[: len(seen)]
        assert [call.scope for call in seen] == [call.scope for call in expected], case.name
        assert [call.body for call in seen] == [call.body for call in expected], case.name


async def test_root_path_is_put_before_the_path() -> None:
    peer = Peer(root_path="/api")
    peer.feed(request(b"GET /v1/%C3%A4?x=1 HTTP/1.1"))
    await peer.finish()
    scope = peer.app.calls[0].scope
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/api/v1/ä", b"/api/v1/%C3%A4", b"x=1")


async def test_the_authority_of_an_absolute_target_replaces_host() -> None:
    peer = Peer()
    peer.feed(b"GET http://example.org:81/x?y HTTP/1.1\r\nHost: other\r\nA: b\r\n\r\n")
    await peer.finish()
    scope = peer.app.calls[0].scope
    assert scope["headers"] == [(b"host", b"example.org:81"), (b"a", b"b")]
    assert (scope["path"], scope["query_string"]) == ("/x", b"y")


async def test_trailers_do_not_become_headers() -> None:
    peer = Peer()
    peer.feed(chunked(b"5\r\nhello\r\n"))
    peer.feed(b"0\r\nAuthorization: Bearer admin\r\n\r\n")
    await peer.finish()
    assert [name for name, _ in peer.app.calls[0].scope["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    ("version", "headers", "framing"),
    [
        ("1.1", [(b"host", b"a")], (b"a", 0)),
        ("1.0", [], (None, 0)),
        ("1.1", [(b"host", b"a"), (b"content-length", b"007 ")], (b"a", 7)),
        ("1.1", [(b"transfer-encoding", b" Chunked"), (b"host", b"a")], (b"a", CHUNKED)),
    ],
)
def test_the_framing_headers_tell_host_and_length(
    version: str, headers: list[tuple[bytes, bytes]], framing: tuple[bytes | None, int]
) -> None:
    assert read_framing(version, headers) == framing


@pytest.mark.parametrize(
    ("headers", "reason", "status"),
    [
        ([], "host", 400),
        ([(b"host", b"a"), (b"host", b"a")], "host", 400),
        ([(b"host", b"a"), (b"content-length", b"1"), (b"content-length", b"1")], "content_length", 400),
        ([(b"host", b"a"), (b"content-length", b"+1")], "content_length", 400),
        ([(b"host", b"a"), (b"content-length", b"")], "content_length", 400),
        ([(b"host", b"a"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "transfer_encoding", 400),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"x")], "transfer_encoding", 501),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked, chunked")], "transfer_encoding", 400),
    ],
)
def test_framing_headers_with_two_readings_are_refused_whatever_the_parser_let_through(
    headers: list[tuple[bytes, bytes]], reason: str, status: int
) -> None:
    with pytest.raises(RefusedError) as caught:
        read_framing("1.1", headers)
    assert (caught.value.reason, caught.value.error.status_code) == (reason, status)


# --- time


def timed(**limits: Any) -> Peer:
    return Peer(limits=HttpLimits(header_timeout=10, body_timeout=15, **limits))


async def test_a_connection_that_never_sends_is_closed_without_a_word() -> None:
    peer = timed()
    peer.loop.advance(9.9)
    assert not peer.wire.closed
    peer.loop.advance(0.2)
    assert peer.wire.closed
    assert not peer.wire.written


async def test_a_connection_that_sends_only_empty_lines_is_closed_without_a_word() -> None:
    peer = timed()
    for _ in range(12):
        peer.feed(b"\r\n")
        peer.loop.advance(1)
    assert peer.wire.closed
    assert not peer.wire.written


async def test_empty_lines_after_a_request_do_not_keep_the_connection_open() -> None:
    peer = timed()
    peer.feed(request())
    await peer.finish()
    for _ in range(12):
        peer.feed(b"\r\n")
        peer.loop.advance(1)
    assert peer.wire.closed
    assert peer.statuses() == [200]


async def test_a_slow_head_gets_408_ten_seconds_after_its_first_byte() -> None:
    peer = timed()
    peer.loop.advance(8)
    peer.feed(b"GET / HT")
    for _ in range(9):
        peer.loop.advance(1)
        peer.feed(b"T")  # of the version, which is never reached again: bytes do not buy time
        if peer.wire.written:
            break
    assert peer.statuses() == [400]
    peer = timed()
    peer.loop.advance(8)
    peer.feed(b"GET / HTTP/1.1\r\n")
    for _ in range(9):
        peer.loop.advance(1)
        peer.feed(b"X: y\r\n")
    assert not peer.wire.written
    peer.loop.advance(1.1)
    (got,) = peer.answers()
    assert got.status == 408
    assert got.error()["code"] == "request_timeout"


async def test_a_slow_head_on_a_kept_connection_gets_408_and_not_the_keep_alive_limit() -> None:
    peer = timed()
    peer.feed(request())
    await peer.finish()
    peer.feed(b"GET / HTTP/1.1\r\n")
    peer.loop.advance(9.9)
    assert peer.statuses() == [200]
    peer.loop.advance(0.2)
    assert peer.statuses() == [200, 408]


async def test_a_head_begun_before_an_answer_ended_has_its_own_time_after_it() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send)

    peer = Peer(app, HttpLimits(header_timeout=10))
    peer.feed(request() + b"GET / HT")
    go.set()
    await peer.finish()
    peer.loop.advance(9.9)  # uvicorn's keep-alive limit is 5 seconds
    assert not peer.wire.closed
    peer.loop.advance(0.2)
    assert peer.statuses() == [200, 408]


async def test_an_idle_kept_connection_ends_after_the_keep_alive_time() -> None:
    peer = timed()
    peer.feed(request())
    await peer.finish()
    peer.loop.advance(4.9)
    assert not peer.wire.closed
    peer.loop.advance(0.2)
    assert peer.wire.closed
    assert peer.statuses() == [200]


async def test_a_stalled_body_gets_408() -> None:
    peer = timed()
    peer.feed(post(b"hello", length=100))
    await peer.rest()
    peer.loop.advance(14.9)
    assert not peer.wire.written
    peer.loop.advance(0.2)
    assert peer.statuses() == [408]
    await peer.finish()
    assert not peer.app.calls[0].complete
    assert peer.statuses() == [408]


@pytest.mark.parametrize(("rate", "statuses"), [(1, [408]), (7 * 1024, [408]), (9 * 1024, [200]), (20 * 1024, [200])])
async def test_a_body_must_come_with_eight_kibibytes_a_second(rate: int, statuses: list[int]) -> None:
    peer = timed()
    peer.feed(post(b"", length=rate * 150))
    for _ in range(150):
        peer.loop.advance(1)
        peer.feed(b"x" * rate)
        await peer.rest()
    await peer.finish()
    assert peer.statuses() == statuses


async def test_a_fast_start_does_not_buy_a_long_stall() -> None:
    peer = timed()
    peer.feed(post(b"x" * 500_000, length=600_000))
    await peer.rest()
    peer.loop.advance(15.1)
    assert peer.statuses() == [408]


async def test_chunk_headers_are_no_progress() -> None:
    peer = timed()
    peer.feed(chunked(b""))
    for _ in range(16):
        peer.loop.advance(1)
        peer.feed(b"1;" + b"e" * 9000 + b"\r\nx\r\n")
        await peer.rest()
    assert peer.statuses() == [408]


async def test_time_in_which_the_app_does_not_read_is_not_counted() -> None:
    go = asyncio.Event()
    app = EchoApp()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await app(scope, receive, send)

    peer = Peer(slow, HttpLimits(body_timeout=15))
    peer.feed(post(b"x" * 100_000, length=200_000))
    assert not peer.wire.reading
    peer.loop.advance(3600)
    assert not peer.wire.written
    go.set()
    await peer.rest()
    assert peer.wire.reading
    peer.loop.advance(14)
    assert not peer.wire.written
    peer.feed(b"x" * 100_000)
    await peer.finish()
    assert peer.statuses() == [200]


async def test_a_body_that_stalls_after_a_pause_still_gets_408() -> None:
    go = asyncio.Event()
    app = EchoApp()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await app(scope, receive, send)

    peer = Peer(slow, HttpLimits(body_timeout=15))
    peer.feed(post(b"x" * 100_000, length=200_000))
    peer.loop.advance(3600)
    go.set()
    await peer.rest()
    peer.loop.advance(17)
    assert peer.statuses() == [408]


async def test_time_in_the_pipeline_is_not_counted() -> None:
    go = asyncio.Event()
    app = EchoApp()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await app(scope, receive, send)

    peer = Peer(slow, HttpLimits(header_timeout=10, body_timeout=15))
    peer.feed(request() + post(b"hello", length=10))
    peer.loop.advance(3600)
    assert not peer.wire.written
    go.set()
    await peer.rest()
    assert peer.statuses() == [200]
    peer.feed(b"world")
    await peer.finish()
    assert peer.statuses() == [200, 200]


async def test_a_client_that_waits_for_100_continue_is_not_too_slow() -> None:
    go = asyncio.Event()
    app = EchoApp()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await app(scope, receive, send)

    peer = Peer(slow, HttpLimits(body_timeout=15))
    peer.feed(post(b"", b"Expect: 100-continue\r\n", length=5))
    await peer.rest()
    peer.loop.advance(3600)
    assert not peer.wire.written
    go.set()
    await peer.rest()
    assert bytes(peer.wire.written) == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.loop.advance(30.1)
    assert peer.statuses() == [408]


async def test_an_http_1_0_client_is_never_sent_100_continue() -> None:
    peer = Peer()
    peer.feed(request(b"POST / HTTP/1.0", b"Content-Length: 5\r\nExpect: 100-continue\r\n"))
    await peer.rest()
    assert not peer.wire.written
    peer.feed(b"hello")
    await peer.finish()
    assert peer.statuses() == [200]


async def test_a_body_that_stalls_behind_a_started_answer_only_ends_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"never"})

    peer = Peer(app, HttpLimits(body_timeout=15))
    peer.feed(post(b"hello", length=100))
    await peer.rest()
    written = bytes(peer.wire.written)
    peer.loop.advance(15.1)
    await peer.finish()
    assert peer.wire.eof
    assert bytes(peer.wire.written) == written
    assert written.endswith(b"half")


async def test_an_ordinary_request_sets_no_timer_but_keep_alive() -> None:
    peer = timed()
    before = list(peer.loop.timers)
    for _ in range(5):
        peer.feed(post(b"hello"))
        assert peer.loop.timers == before
        await peer.finish()
        assert len(peer.loop.timers) == len(before) + 1


async def test_many_requests_in_two_pieces_share_one_timer() -> None:
    peer = timed()
    for _ in range(50):
        head, body = post(b"hello")[:-5], b"hello"
        peer.feed(head)
        assert len(peer.loop.timers) == 1
        peer.feed(body)
        await peer.finish()
        peer.loop.advance(1)
    assert peer.statuses() == [200] * 50
    peer.lose()
    assert peer.loop.timers == []


async def test_a_shorter_limit_is_not_missed_because_of_a_longer_one() -> None:
    peer = timed()
    peer.feed(post(b"hel", length=5), b"lo")
    await peer.finish()
    peer.feed(b"GET / HT")
    peer.loop.advance(10.1)
    assert peer.statuses() == [200, 408]


# --- refusing


@pytest.mark.parametrize("message", ["Content-Length", "chunked"])
async def test_an_oversized_body_is_refused_before_100_continue(message: str) -> None:
    peer = Peer()
    if message == "chunked":
        peer.feed(chunked(b"200000\r\n" + b"x" * 1048577))
    else:
        peer.feed(post(b"", b"Expect: 100-continue\r\n", length=LIMITS.max_body_bytes + 1))
        assert peer.app.calls == []
    (got,) = peer.answers()
    assert got.status == 413
    assert got.error()["code"] == "request_too_large"
    await peer.finish()
    assert len(peer.answers()) == 1


async def test_app_and_guard_do_not_both_answer_a_large_body() -> None:
    app_answers = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message["type"] == "http.request" and message["more_body"]:
            message = await receive()
        app_answers.set()
        await answer(send, b"too large, says the app", status=413)

    peer = Peer(app)
    peer.feed(chunked(b"200000\r\n" + b"x" * 900_000))
    await peer.rest()
    peer.feed(b"x" * 200_000)
    await peer.finish()
    assert app_answers.is_set()
    assert [got.by_app for got in peer.answers()] == [False]


async def test_a_body_beyond_the_limit_after_an_early_answer_is_not_answered_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", status=401)

    peer = Peer(app)
    peer.feed(chunked(b"200000\r\n"))
    await peer.finish()
    peer.feed(b"x" * 1_100_000)
    assert peer.statuses() == [401]
    assert peer.wire.eof


async def test_an_error_waits_for_the_answers_before_it() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8"), (b"x-app", b"1")]}
        )
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"half"})

    peer = Peer(app)
    peer.feed(request() + request() + b"GARBAGE\r\n\r\n")
    await peer.rest()
    assert bytes(peer.wire.written).endswith(b"half")
    peer.feed(b"more garbage")
    go.set()
    await peer.finish()
    assert peer.statuses() == [200, 200, 400]
    assert [got.body for got in peer.answers()][:2] == [b"halfhalf"] * 2
    assert peer.wire.eof


async def test_a_bad_body_is_answered_while_the_head_of_the_answer_is_still_unwritten() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        peer.feed(b"5\r\nhelloX")  # in the same turn of the loop
        await send({"type": "http.response.body"})

    peer = Peer(app)
    peer.feed(chunked(b""))
    await peer.finish()
    await peer.rest()
    assert peer.statuses() == [400]


async def test_a_queued_request_that_turns_out_bad_never_reaches_the_app() -> None:
    go = asyncio.Event()
    calls = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await go.wait()
        await answer(send)

    peer = Peer(app)
    peer.feed(request(b"GET /first HTTP/1.1") + chunked(b"5\r\nhelloX"))
    await peer.rest()
    assert not peer.wire.written
    go.set()
    await peer.finish()
    assert calls == ["/first"]
    assert peer.statuses() == [200, 400]


async def test_an_error_behind_a_closing_answer_is_not_sent() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send, b"ok", (b"connection", b"close"))

    peer = Peer(app)
    peer.feed(request() + b"GARBAGE\r\n\r\n")
    go.set()
    await peer.finish()
    assert peer.statuses() == [200]
    assert peer.wire.eof
    assert not peer.wire.closed
    peer.loop.advance(http_protocol.LINGER_SECONDS)
    assert peer.wire.closed


async def test_an_answer_to_head_has_no_body() -> None:
    peer = Peer()
    peer.feed(b"HEAD / HTTP/1.1\r\n\r\n")
    (got,) = peer.answers(to_head=True)
    assert got.status == 400
    assert int(got.headers["content-length"]) > 0


async def test_a_refused_client_is_heard_out_for_two_seconds() -> None:
    peer = Peer()
    peer.feed(b"GARBAGE\r\n\r\n")
    assert peer.wire.eof
    for _ in range(19):
        peer.feed(b"x" * 65536)
        peer.loop.advance(0.1)
    assert not peer.wire.closed
    peer.loop.advance(0.2)
    assert peer.wire.closed
    assert not peer.wire.aborted
    assert peer.statuses() == [400]


async def test_a_refused_client_is_heard_out_over_tls_too() -> None:
    peer = Peer()
    peer.wire.tls = True  # there one side cannot be ended alone
    peer.feed(b"GARBAGE\r\n\r\n")
    assert not peer.wire.eof
    peer.loop.advance(http_protocol.LINGER_SECONDS - 0.1)
    assert not peer.wire.closed
    peer.loop.advance(0.1)
    assert peer.wire.closed


async def test_nothing_is_written_to_a_connection_that_is_closing() -> None:
    peer = Peer()
    peer.wire.close()
    peer.protocol.data_received(b"GARBAGE\r\n\r\n")
    assert not peer.wire.written
    assert len(peer.loop.timers) == 0


async def test_a_connection_is_kept_when_the_body_ends_after_its_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", status=401)

    peer = Peer(app)
    peer.feed(post(b"hel", length=5))
    await peer.finish()
    peer.feed(b"lo" + request())
    await peer.finish()
    assert peer.statuses() == [401, 401]
    assert not peer.wire.closed


async def test_a_refused_client_that_floods_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_BYTES", 1000)
    peer = Peer()
    peer.feed(b"GARBAGE\r\n\r\n")
    peer.feed(b"x" * 1000)
    assert not peer.wire.closed
    peer.feed(b"x")
    assert peer.wire.closed


async def test_a_flood_behind_a_running_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_BYTES", 1000)
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send)

    peer = Peer(app)
    peer.feed(request() + b"GARBAGE\r\n\r\n")
    peer.feed(b"x" * 1001)
    assert not peer.wire.reading
    go.set()
    await peer.finish()
    assert peer.statuses() == [200, 400]


async def test_a_client_that_does_not_read_its_answer_is_aborted() -> None:
    peer = Peer()
    peer.wire.unsent = 300
    peer.feed(b"GARBAGE\r\n\r\n")
    peer.loop.advance(http_protocol.LINGER_SECONDS)
    assert peer.wire.aborted


async def test_shutdown_does_not_wait_for_a_refused_client() -> None:
    peer = Peer()
    peer.feed(b"GARBAGE\r\n\r\n")
    peer.protocol.shutdown()
    assert peer.wire.closed
    peer.lose()
    assert peer.loop.timers == []


async def test_shutdown_lets_a_running_answer_finish() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send)

    peer = Peer(app)
    peer.feed(request())
    peer.protocol.shutdown()
    go.set()
    await peer.finish()
    assert peer.statuses() == [200]
    assert peer.wire.closed


async def test_the_log_names_the_reason_and_no_value(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    with caplog.at_level(logging.WARNING, "agentrun_server.http"):
        peer.feed(b"GET /secret HTTP/1.1\r\nHost: a b\r\nAuthorization: secret\r\n\r\n")
    (record,) = caplog.records
    fields = vars(record)
    assert record.name == "agentrun_server.http"
    assert (record.levelname, record.getMessage()) == ("WARNING", "request refused: host")
    assert (fields["reason"], fields["status"], fields["client"]) == ("host", 400, ("192.0.2.1", 4711))
    (got,) = peer.answers()
    assert fields["request_id"] == got.headers["x-request-id"]
    assert "secret" not in str(fields)


async def test_an_error_in_a_callback_is_logged_and_answered_with_500(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(http_protocol, "split_target", broken)
    peer = Peer()
    peer.feed(request())
    (got,) = peer.answers()
    assert got.status == 500
    assert got.error()["code"] == "internal_error"
    assert b"broken" not in got.body
    assert any(record.exc_info and "broken on purpose" in str(record.exc_info[1]) for record in caplog.records)


async def test_too_many_connections_get_503_in_json() -> None:
    peer = Peer(limit_concurrency=1)
    peer.feed(request())
    (got,) = peer.answers()
    assert got.status == 503
    assert got.error()["code"] == "service_unavailable"
    assert got.headers["retry-after"] == "1"
    assert peer.app.calls == []


# --- failures of the app


async def test_an_app_that_raises_is_answered_with_500_in_json() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    peer = Peer(app)
    peer.feed(request())
    await peer.finish()
    (got,) = peer.answers()
    assert got.status == 500
    assert got.error() == {
        "message": "The server had an error while processing your request.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert got.headers["x-should-retry"] == "false"
    assert peer.wire.closed


async def test_an_app_that_returns_without_an_answer_is_answered_with_500_in_json() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    peer = Peer(app)
    peer.feed(request())
    await peer.finish()
    (got,) = peer.answers()
    assert got.status == 500
    got.error()


@pytest.mark.parametrize("rest", [b"", b"hello"], ids=["body unread", "body read"])
async def test_an_app_that_raises_in_the_middle_ends_the_connection(rest: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("secret")

    peer = Peer(app)
    peer.feed(post(rest, length=5))
    await peer.finish()
    assert bytes(peer.wire.written).endswith(b"half")
    assert peer.wire.eof or peer.wire.closed
    peer.loop.advance(http_protocol.LINGER_SECONDS)
    assert peer.wire.closed


@pytest.mark.parametrize("started", [False, True])
async def test_an_app_that_raises_after_the_client_left_writes_nothing(started: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await receive()
        raise RuntimeError("gone")

    peer = Peer(app)
    peer.feed(post(b"", length=5))
    await peer.rest()
    written = bytes(peer.wire.written)
    peer.wire.closed = True
    peer.lose()
    await peer.finish()
    assert bytes(peer.wire.written) == written
    assert bool(written) is started


# --- the end of a connection


@pytest.mark.parametrize("behind", [b"", request(), request() + post(b"x", length=9), b"GARBAGE\r\n\r\n", b"GET"],
                         ids=["alone", "queued", "half queued", "refused", "half head"])  # fmt: skip
async def test_the_running_request_hears_that_its_client_left(behind: bytes) -> None:
    heard = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        heard.append((await receive())["type"])

    peer = Peer(app)
    peer.feed(request() + behind)
    await peer.rest()
    peer.lose()
    await peer.finish()
    assert heard == ["http.disconnect"]
    assert peer.loop.timers == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HT",
        request(),
        post(b"hello", length=100),
        chunked(b"5\r\nhello"),
        request() * 3,
        request() + post(b"hello", length=100),
        b"GARBAGE\r\n\r\n",
        request() + b"GARBAGE\r\n\r\n",
        post(b"", length=99999999),
        request(b"POST / HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", b"hel"),
        chunked(b"200000\r\n" + b"x" * 1_100_000),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
async def test_nothing_keeps_a_connection_in_memory_after_its_end(data: bytes, answered: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        peer = Peer()
        peer.feed(data) if data else None
        if answered:
            await peer.rest()
        peer.lose()
        await peer.finish()
        await peer.rest()  # the loop lets go of the tasks
        assert peer.loop.timers == []
        protocol = weakref.ref(peer.protocol)
        del peer
        assert protocol() is None
    finally:
        gc.enable()


# --- protocols to upgrade to


class FakeWebSocket(asyncio.Protocol):
    made: ClassVar["list[FakeWebSocket]"] = []

    def __init__(self, config: Any, server_state: Any, app_state: Any) -> None:
        self.received = b""
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.received += data


WEBSOCKET = request(headers=b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")


@pytest.mark.parametrize(
    "pieces",
    [[WEBSOCKET], [WEBSOCKET[:30], WEBSOCKET[30:]], [WEBSOCKET + b"x" * 200_000]],
    ids=["whole", "cut", "with frames too early"],
)
async def test_a_websocket_is_handed_over_without_a_timer(pieces: list[bytes]) -> None:
    FakeWebSocket.made = []
    peer = Peer(ws=FakeWebSocket)
    switched: list[asyncio.Protocol] = []
    peer.wire.set_protocol = switched.append  # type: ignore[attr-defined] # only here is it asked for
    peer.feed(*pieces)
    (websocket,) = FakeWebSocket.made
    assert switched == [websocket]
    assert websocket.received.startswith(b"GET / HTTP/1.1\r\n")
    assert b"upgrade: websocket" in websocket.received
    assert peer.loop.timers == []
    assert not peer.wire.written


async def test_a_websocket_behind_a_running_request_is_treated_as_a_request() -> None:
    FakeWebSocket.made = []
    peer = Peer(ws=FakeWebSocket)
    peer.feed(request() + WEBSOCKET)
    await peer.finish()
    assert FakeWebSocket.made == []
    assert peer.statuses() == [200, 200]


async def test_an_ignored_upgrade_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    peer.feed(WEBSOCKET)
    await peer.finish()
    assert peer.statuses() == [200]
    assert caplog.records == []


# --- over sockets: what only a network shows

FIVE_MEGABYTES = b"x" * 5_000_000


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post(b"", length=50_000_000), 413),
        (chunked(b"FFFFFFF\r\n"), 413),
        (b"GET / HTTP/1.1\r\nX: ", 431),
        (b"GET /", 414),
        (b"GARBAGE\r\n\r\n", 400),
    ],
)
async def test_a_client_that_goes_on_sending_still_reads_its_answer(head: bytes, status: int) -> None:
    async with serve(EchoApp()) as port, connect(port) as client:
        await client.send(head)
        await client.send(FIVE_MEGABYTES)
        got = await client.answer()
        assert got.status == status
        got.error()
        await client.ends()


@pytest.mark.parametrize("close", [(), ((b"connection", b"close"),)], ids=["client closes", "app closes"])
async def test_an_early_answer_of_the_app_is_not_lost_either(close: tuple[tuple[bytes, bytes], ...]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", *close, status=401)

    headers = b"" if close else b"Connection: close\r\n"
    async with serve(WithLimits(app, HttpLimits())) as port, connect(port) as client:
        await client.send(post(b"", headers, length=6_000_000))
        await client.send(FIVE_MEGABYTES)
        assert (await client.answer()).status == 401
        await client.ends()


async def test_a_slow_header_gets_408() -> None:
    app = EchoApp(HttpLimits(header_timeout=0.2))
    async with serve(app) as port, connect(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        got = await client.answer()
        assert got.status == 408
        got.error()
        await client.ends()


async def test_a_slow_body_gets_408() -> None:
    app = EchoApp(HttpLimits(body_timeout=0.2))
    async with serve(app) as port, connect(port) as client:
        await client.send(post(b"hello", length=10))
        got = await client.answer()
        assert got.status == 408
        got.error()
        await client.ends()
    assert not app.calls[0].complete


async def test_a_silent_connection_is_closed() -> None:
    async with serve(EchoApp(HttpLimits(header_timeout=0.1))) as port, connect(port) as client:
        await client.ends()


async def test_a_connection_is_used_again_and_again() -> None:
    async with serve(EchoApp()) as port, connect(port) as client:
        for size in (0, 5, 999, 200_000, 1_000_000):
            await client.send(post(b"x" * size))
            got = await client.answer()
            assert got.status == 200
            assert got.body == (b"x" * size if size < 1000 else b"%d bytes" % size)


async def test_100_continue_is_sent_when_the_app_reads() -> None:
    async with serve(EchoApp()) as port, connect(port) as client:
        for _ in range(2):
            await client.send(post(b"", b"Expect: 100-continue\r\n", length=5))
            assert (await client.answer()).status == 100
            await client.send(b"hello")
            assert (await client.answer()).body == b"hello"


async def test_slow_clients_do_not_hold_up_the_others() -> None:
    async with serve(EchoApp(HttpLimits(header_timeout=5))) as port, contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            slow = await stack.enter_async_context(connect(port))
            await slow.send(b"GET / HTTP/1.1\r\nX: ")
        async with connect(port) as client:
            await client.send(request())
            assert (await client.answer()).status == 200


# --- limits


class Wrapper:
    def __init__(self, app: Any) -> None:
        self.app = app


def test_limits_are_found_through_middleware() -> None:
    limits = HttpLimits(max_body_bytes=7)
    assert http_limits_of(EchoApp(limits)) is limits
    assert http_limits_of(Wrapper(Wrapper(EchoApp(limits)))) is limits


async def test_limits_are_found_through_the_middleware_of_uvicorn() -> None:
    config = config_for(EchoApp(HttpLimits(max_body_bytes=7)), proxy_headers=True)
    config.load()
    assert type(config.loaded_app).__name__ == "ProxyHeadersMiddleware"
    protocol = GuardedHttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    assert protocol.limits == HttpLimits(max_body_bytes=7)


def test_an_app_without_limits_gets_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    http_protocol._default_limits.cache_clear()
    monkeypatch.setenv("AGENTRUN_MAX_BODY_BYTES", "12345")
    ring = Wrapper(None)
    ring.app = ring
    try:
        for app in (object(), None, Wrapper(object()), ring):
            assert http_limits_of(app) == HttpLimits(max_body_bytes=12345)
    finally:
        http_protocol._default_limits.cache_clear()


def test_limits_agree_with_the_settings_of_a_server() -> None:
    assert HttpLimits() == HttpLimits.from_config(ServerConfig())
    assert HttpLimits.from_config(ServerConfig(header_timeout=3, max_header_count=9)) == HttpLimits(
        header_timeout=3, max_header_count=9
    )


@pytest.mark.parametrize(
    "name", ["max_header_bytes", "max_header_count", "max_body_bytes", "header_timeout", "body_timeout"]
)
def test_a_limit_of_zero_is_a_configuration_error(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigurationError, match=name):
        HttpLimits(**limits)


def test_the_protocol_can_be_named_or_pickled_for_worker_processes() -> None:
    assert pickle.loads(pickle.dumps(GuardedHttpToolsProtocol)) is GuardedHttpToolsProtocol
    config = uvicorn.Config(
        EchoApp(), http="agentrun_server.server.http.protocol:GuardedHttpToolsProtocol", ws="none", log_config=None
    )
    config.load()
    assert config.http_protocol_class is GuardedHttpToolsProtocol


# --- anything at all

FRAGMENTS = [
    b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"HEAD * HTTP/1.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"X: y\r\n", b"\r\n", b"\r\n\r\n", b"hello", b"5\r\nhello\r\n", b"0\r\n",
    b"0\r\n\r\n", b"\x00", b"\xff", b" ", b"\n", b"\r", b"A" * 300, request(), post(b"hello"),
]  # fmt: skip


@given(
    fragments=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=8)), max_size=30),
    sizes=st.lists(st.integers(1, 60), max_size=30),
    steps=st.lists(st.sampled_from([0, 0, 0, 1, 20]), max_size=30),
)
@settings(max_examples=400, deadline=None)
def test_no_bytes_break_the_protocol(fragments: list[bytes], sizes: list[int], steps: list[int]) -> None:
    asyncio.run(play(b"".join(fragments), sizes, steps))


async def play(data: bytes, sizes: list[int], steps: list[int]) -> None:
    """Feed the bytes in pieces with time passing; whatever happens must be a sequence of answers, and end."""
    peer = Peer(limits=HttpLimits(max_header_bytes=250, max_header_count=5, max_body_bytes=20))
    waits = iter(steps)
    for piece in pieces_of(data, sizes):
        peer.feed(piece)
        if wait := next(waits, 0):
            await peer.rest()
            peer.loop.advance(wait)
    for _ in range(len(data)):  # no more requests than bytes
        await peer.rest()
        peer.loop.advance(100)
        if peer.wire.closed:
            break
    assert peer.wire.closed or not data
    peer.lose()
    await peer.finish()
    assert peer.loop.timers == []
    answered = split_loosely(bytes(peer.wire.written))
    assert all(status in {100, 200, 400, 405, 408, 413, 426, 431, 501, 505} for status in answered)
    assert all(status < 400 or status == 405 for status in answered[:-1])


def split_loosely(data: bytes) -> list[int]:
    """Return the statuses in what was written; answers to HEAD have no body, so the lengths do not tell."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_mutated_case_is_answered_or_closed(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in CASES if len(case.data) < 3000]))
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    mutated = bytearray(case.data or b"x")
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(mutated))
        mutated[position : position + rng.randint(0, 2)] = rng.choice(
            [b"", b"\r\n", b"\x00", b" ", b"\xff", b"5", b":", b"\r", b"\n"]
        )
        mutated = mutated or bytearray(b"x")
    asyncio.run(play(bytes(mutated), [rng.randint(1, 50) for _ in range(20)], []))
