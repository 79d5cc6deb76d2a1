"""The WebSocket protocol: a hostile corpus over real sockets, and the protocol alone with a clock turned by hand."""

import asyncio
import gc
import logging
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from uvicorn._types import ASGI3Application
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from agentrun_server.server.asgi import Message, Receive, Scope, Send
from agentrun_server.server.websocket.head import Handshake, WebSocketLimits, WebSockets
from agentrun_server.server.websocket.protocol import CLOSE_SECONDS, MAX_QUEUED, Phase, WebSocketProtocol
from tests.server.websocket.corpus import CASES, LIMITS, Case
from tests.support.clock import eventually, within
from tests.support.serve import Served, serve
from tests.support.websocket import (
    ACCEPT,
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    WebSocket,
    close_frame,
    frame,
    handshake,
    read_frames,
)
from tests.support.wire import ManualLoop, Wire

App = Callable[[Scope, Receive, Send], Awaitable[None]]

SOCKET = "/socket"


class Echo:
    """Accepts, gives each message back, and remembers how it ended."""

    def __init__(self, limits: WebSocketLimits = LIMITS) -> None:
        self.websockets = WebSockets(frozenset({SOCKET}), limits)
        self.scopes: list[Scope] = []
        self.ends: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        assert (await receive()) == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        self.ends.append(message)


# --- over sockets


@asynccontextmanager
async def opened(served: Served, path: str = SOCKET) -> AsyncIterator[WebSocket]:
    async with served.client() as client:
        websocket = WebSocket(client)
        await websocket.open(path)
        yield websocket


def check(case: Case, frames: list[Frame]) -> None:
    """Check what came back for a case."""
    assert [got.data for got in frames if got.opcode in (TEXT, BINARY)] == list(case.echoes)
    assert [got.data for got in frames if got.opcode == PONG] == list(case.pongs)
    codes = [got.code for got in frames if got.opcode == CLOSE]
    assert codes == ([] if case.code is None else [case.code])
    assert not codes or frames[-1].opcode == CLOSE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_hostile_frames_get_their_answer_and_the_connection_its_end(case: Case) -> None:
    async with serve(Echo(), lifespan=False) as served:
        async with opened(served) as websocket:
            await websocket.client.send(case.data)
            wanted = len(case.echoes) + len(case.pongs)
            frames = [await websocket.frame() for _ in range(wanted)]
            if case.code is None:
                await websocket.client.send(close_frame(4999))
            left = bytearray(websocket._unread) + await within(websocket.client.ended())
            frames += [*websocket._frames, *read_frames(left)]
            assert not left
        if case.code is None:
            assert frames.pop().code == 4999
        check(case, frames)
        await served.nothing_left()


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 60


async def test_an_echo_and_a_close_in_good_order() -> None:
    app = Echo()
    async with serve(app, lifespan=False) as served:
        async with opened(served) as websocket:
            await websocket.send("hello")
            assert (await websocket.frame()) == Frame(TEXT, b"hello")
            await websocket.client.send(close_frame(1000, b"bye"))
            assert (await websocket.frame()) == Frame(CLOSE, struct.pack("!H", 1000) + b"bye")
            assert await within(websocket.client.ended()) == b""
        await served.nothing_left()
    assert app.ends == [{"type": "websocket.disconnect", "code": 1000, "reason": "bye"}]


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_without_a_word_is_told_to_the_app(how: str) -> None:
    app = Echo()
    async with serve(app, lifespan=False) as served:
        async with opened(served) as websocket:
            websocket.client.leave(how)
            await eventually(lambda: bool(app.ends))
        await served.nothing_left()
    assert app.ends[0]["code"] == 1006


async def test_a_connection_serves_requests_before_it_becomes_a_websocket() -> None:
    app = Echo()
    async with serve(app, lifespan=False) as served, served.client() as client:
        await client.request("GET", "/other")
        assert (await client.response()).status == 200
        await WebSocket(client).open(SOCKET)
    assert [scope["type"] for scope in app.scopes] == ["http", "websocket"]


async def test_a_handshake_counts_as_a_request_when_these_are_limited() -> None:
    async with (
        serve(Echo(), lifespan=False, limit_concurrency=3) as served,
        opened(served),
        opened(served),
        served.client() as client,
    ):
        refused = await WebSocket(client).ask(SOCKET)
        assert (refused.status, refused.error()["code"]) == (503, "service_unavailable")


async def test_messages_that_come_with_the_handshake_are_read_behind_it() -> None:
    async with serve(Echo(), lifespan=False) as served, served.client() as client:
        websocket = WebSocket(client)
        await client.send(handshake(SOCKET) + frame(b"early") + frame(b"bird"))
        assert (await client.head()).status == 101
        assert [(await websocket.frame()).data for _ in range(2)] == [b"early", b"bird"]


async def test_an_app_that_does_not_take_messages_stops_the_client() -> None:
    """Else its memory would be the client's to fill."""
    go_on = asyncio.Event()

    class Lazy(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            await go_on.wait()
            await super().__call__(scope, _connected(receive), _accepted(send))

    message, count = b"x" * 90_000, 200
    async with serve(Lazy(), lifespan=False) as served, opened(served) as websocket:
        sending = asyncio.create_task(websocket.client.send(frame(message) * count))
        (protocol,) = served._server.server_state.connections
        assert isinstance(protocol, WebSocketProtocol)
        await eventually(lambda: protocol._paused_at is not None)
        assert protocol._queued_bytes < 2 * LIMITS.max_message_bytes
        assert not sending.done()
        go_on.set()
        for _ in range(count):
            assert len((await websocket.frame()).data) == len(message)
        await within(sending)


def _connected(receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "websocket.connect"}

    return again


def _accepted(send: Send) -> Send:
    async def rest(message: Message) -> None:
        if message["type"] != "websocket.accept":
            await send(message)

    return rest


async def test_a_client_that_reads_nothing_holds_up_its_app_and_nobody_else() -> None:
    class Talker(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await send({"type": "websocket.send", "text": "x" * 10_000})

    async with serve(Talker(), lifespan=False) as served:
        async with served.client(receive_buffer=4096) as client:
            await client.send(handshake(SOCKET))
            (protocol,) = await _sockets(served)
            await eventually(lambda: not protocol._writable.is_set())
            await client.send(frame(b"", PING) * 10_000)  # answers to these would lie in memory too
            async with opened(served) as another:
                assert (await another.frame()).data == b"x" * 10_000
            assert protocol.transport.get_write_buffer_size() < 200_000
        await served.nothing_left()


async def _sockets(served: Served) -> list[WebSocketProtocol]:
    def found() -> list[WebSocketProtocol]:
        every = served._server.server_state.connections
        return [one for one in every if isinstance(one, WebSocketProtocol) and one._phase is Phase.OPEN]

    await eventually(lambda: bool(found()))
    return found()


# --- the protocol alone


def make_scope() -> Scope:
    return {"type": "websocket", "path": SOCKET, "headers": [], "client": ("192.0.2.1", 4711)}


class SocketWire(Wire):
    """A wire that can be handed from one protocol to another."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class Peer:
    """One WebSocket: the protocol, its wire, its clock and the app above."""

    def __init__(self, app: App | None = None, limits: WebSocketLimits = LIMITS, early: bytes = b"") -> None:
        self.app: Any = Echo() if app is None else app
        self.loop = ManualLoop()
        self.wire = SocketWire()
        self.state = ServerState()
        self.protocol = WebSocketProtocol(
            cast("asyncio.Transport", self.wire),
            cast("asyncio.AbstractEventLoop", self.loop),
            cast("ASGI3Application", self.app),
            dict(make_scope()),
            Handshake(ACCEPT.encode(), ["a", "b"]),
            limits,
            self.state,
        )
        self.protocol.begin(early)

    async def rest(self) -> None:
        """Let the app go on until it waits for something outside."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def open(self) -> None:
        """Let the app accept, and take the answer away."""
        await self.rest()
        head, _, rest = bytes(self.wire.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        self.wire.written[:] = rest

    def feed(self, data: bytes) -> None:
        if not self.wire.closed:
            self.protocol.data_received(data)

    def frames(self) -> list[Frame]:
        return read_frames(self.wire.written)

    async def lose(self) -> None:
        self.protocol.connection_lost(None)
        await within(asyncio.gather(*self.state.tasks))
        assert self.loop.timers == []
        assert not self.state.connections
        del self.wire.protocol


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_comes_of_frames_does_not_depend_on_how_the_network_cuts_them(case: Case) -> None:
    for size in (1, 3, 1000, 20_000):
        if len(case.data) / size > 3000:
            continue
        peer = Peer()
        await peer.open()
        for start in range(0, len(case.data), size):
            peer.feed(case.data[start : start + size])
            if not peer.wire.reading:
                await peer.rest()
        await peer.rest()
        check(case, peer.frames())
        assert peer.wire.eof is (case.code is not None)
        await peer.lose()


async def test_what_comes_before_the_app_has_accepted_waits() -> None:
    accept = asyncio.Event()

    class Slow(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await accept.wait()
            await super().__call__(scope, receive, send)

    peer = Peer(Slow(), early=frame(b"early"))
    assert not peer.wire.reading
    peer.feed(frame(b"on its way"))  # a read that was under way
    accept.set()
    await peer.open()
    await peer.rest()
    assert [got.data for got in peer.frames()] == [b"early", b"on its way"]
    assert peer.wire.reading
    await peer.lose()


@pytest.mark.parametrize(
    "then", [close_frame(), frame(b"x", 0), frame(b"x", rsv=4)], ids=["close", "continuation", "reserved bits"]
)
async def test_two_reasons_to_close_at_once_are_one_close(then: bytes) -> None:
    peer = Peer()
    await peer.open()
    peer.feed(frame(b"\xff") + then)
    assert len(peer.frames()) == 1
    assert peer.wire.eof
    await peer.lose()


async def test_the_answer_to_a_handshake_is_that_of_the_standard() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"X-Own", b"1"), (b"Connection", b"close"), (b"Content-Length", b"5")]
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": headers})
        await receive()

    peer = Peer(app)
    await peer.rest()
    assert bytes(peer.wire.written).lower().split(b"\r\n") == [
        b"http/1.1 101 switching protocols",
        b"upgrade: websocket",
        b"connection: upgrade",
        b"sec-websocket-accept: " + ACCEPT.encode().lower(),
        b"sec-websocket-protocol: b",
        b"x-own: 1",
        b"",
        b"",
    ]
    await peer.lose()


def denial(status: int = 418, *bodies: bytes) -> App:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-length", b"999"), (b"x-own", b"1")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        for number, body in enumerate(bodies, 1):
            await send({"type": "websocket.http.response.body", "body": body, "more_body": number < len(bodies)})

    return app


async def close_before(_: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})


async def fail(_: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("canary")


async def say_nothing(_: Scope, receive: Receive, send: Send) -> None:
    await receive()


@pytest.mark.parametrize(
    ("app", "status", "body"),
    [
        (denial(401, b"no"), 401, b"no"),
        (denial(429, b"n", b"", b"o"), 429, b"no"),
        (denial(401), 500, b"internal_error"),
        (close_before, 403, b"insufficient_scope"),
        (fail, 500, b"internal_error"),
        (say_nothing, 500, b"internal_error"),
    ],
)
async def test_a_handshake_that_is_not_accepted_gets_an_http_answer(
    app: App, status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(app, early=frame(b"too early"))
    await peer.rest()
    head, _, got = bytes(peer.wire.written).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % status)
    assert body in got
    assert [line for line in lines if line.startswith(b"content-length")] == [b"content-length: %d" % len(got)]
    assert b"connection: close" in lines
    assert peer.wire.eof, "our side ends"
    assert not peer.wire.closed, "but the client may still send"
    peer.feed(frame(b"too late"))
    peer.loop.advance(CLOSE_SECONDS)
    assert peer.wire.closed
    assert not peer.wire.aborted
    assert [record.levelname for record in caplog.records] == (["ERROR"] if app is fail else [])
    await peer.lose()


async def test_the_app_closes_and_the_client_answers() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4001, "reason": "ö" * 100})
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "too late"})
        assert (await receive())["code"] == 4001

    peer = Peer(app)
    await peer.open()
    (close,) = peer.frames()
    assert (close.code, len(close.data)) == (4001, 2 + 122)
    assert not peer.wire.eof, "it waits for the client's"
    peer.feed(frame(b"x") + frame(b"", PING) + close_frame(4001))
    assert peer.wire.eof
    assert peer.frames() == []
    await peer.lose()


async def test_a_client_that_does_not_answer_a_close_is_waited_for_no_longer_than_said() -> None:
    peer = Peer()
    await peer.open()
    peer.protocol.shutdown()
    assert [got.code for got in peer.frames()] == [1001]
    for _ in range(10):
        peer.feed(frame(b"x") * 100 + frame(b"", PING) * 100)
    assert peer.protocol._frames.writes == [], "answers that nobody will get"
    peer.loop.advance(CLOSE_SECONDS - 0.1)
    assert not peer.wire.closed
    peer.loop.advance(0.1)
    assert peer.wire.closed
    await peer.lose()


async def test_one_that_does_not_read_the_close_either_is_dropped() -> None:
    peer = Peer()
    await peer.open()
    peer.protocol.shutdown()
    peer.wire.unsent = 1
    peer.loop.advance(CLOSE_SECONDS)
    assert peer.wire.aborted
    await peer.lose()


@pytest.mark.parametrize("moment", ["opening", "answering", "closing"])
async def test_a_shutdown_ends_a_connection_wherever_it_is(moment: str) -> None:
    wait = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if moment == "answering":
            await send({"type": "websocket.http.response.start", "status": 401})
        elif moment == "closing":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
        await wait.wait()

    peer = Peer(app)
    await peer.rest()
    peer.protocol.shutdown()
    if moment == "closing":
        assert peer.wire.closed
    else:
        assert peer.wire.written.startswith(b"HTTP/1.1 503 ")
        assert peer.wire.eof
    wait.set()
    await peer.lose()


async def test_an_app_that_fails_closes_with_1011_and_one_that_ends_with_1000(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for error, code in ((RuntimeError("canary"), 1011), (None, 1000)):

        async def app(_: Scope, receive: Receive, send: Send, error: Exception | None = error) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            if error is not None:
                raise error

        peer = Peer(app)
        await peer.open()
        assert [(got.code, got.data[2:]) for got in peer.frames()] == [(code, b"")]
        await peer.lose()
    assert [record.getMessage() for record in caplog.records] == ["websocket failed in the app"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "websocket.send", "text": "x"}],
        [{"type": "http.response.start", "status": 200}],
        [{"type": "websocket.accept", "subprotocol": "not offered"}],
        [{"type": "websocket.accept", "headers": [(b"x", b"a\r\nb: c")]}],
        [{"type": "websocket.accept", "headers": [(b"x y", b"")]}],
        [{"type": "websocket.accept"}, {"type": "websocket.accept"}],
        [{"type": "websocket.accept"}, {"type": "websocket.http.response.start", "status": 401}],
        [{"type": "websocket.http.response.start", "status": 401}, {"type": "websocket.accept"}],
    ],
)
async def test_an_app_that_says_what_may_not_be_said_is_told(messages: list[Message]) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages[:-1]:
            await send(message)
        with pytest.raises(RuntimeError):
            await send(messages[-1])

    peer = Peer(app)
    await peer.rest()
    await peer.lose()


async def test_an_app_reads_what_came_before_the_end() -> None:
    heard: list[str] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(0)
        while (message := await receive())["type"] == "websocket.receive":
            heard.append(message["text"])
        assert message["code"] == 1000

    peer = Peer(app, early=frame(b"last") + frame(b"words") + close_frame())
    await peer.rest()
    assert heard == ["last", "words"]
    await peer.lose()


# --- time


async def test_a_silent_client_is_asked_and_one_that_does_not_answer_is_dropped() -> None:
    peer = Peer()
    await peer.open()
    peer.loop.advance(59)
    assert peer.frames() == []
    peer.loop.advance(1)
    assert peer.frames() == [Frame(PING, b"")]
    peer.loop.advance(4.9)
    assert not peer.wire.closed
    peer.loop.advance(0.1)
    assert peer.wire.aborted
    await peer.lose()
    assert peer.app.ends[0]["code"] == 1006


@pytest.mark.parametrize(
    "word", [frame(b"", PONG), frame(b"x"), frame(b"x", fin=False)[:3]], ids=["pong", "message", "part of a frame"]
)
async def test_any_sign_of_life_is_an_answer_to_a_ping(word: bytes) -> None:
    peer = Peer(limits=WebSocketLimits(message_timeout=1000, ping_interval=60, ping_timeout=5))
    await peer.open()
    peer.loop.advance(62)
    peer.feed(word)
    peer.loop.advance(59)
    assert [got.opcode for got in peer.frames() if got.opcode == PING] == [PING]
    peer.loop.advance(1)
    assert [got.opcode for got in peer.frames() if got.opcode == PING] == [PING]
    assert not peer.wire.closed
    await peer.lose()


async def test_a_client_that_reads_is_alive_though_it_says_nothing() -> None:
    peer = Peer()
    await peer.open()
    peer.loop.advance(62)
    peer.protocol.pause_writing()
    peer.loop.advance(2)
    peer.protocol.resume_writing()
    peer.loop.advance(10)
    assert not peer.wire.closed
    await peer.lose()


async def test_what_a_client_asks_that_does_not_read_is_not_answered_into_memory() -> None:
    peer = Peer()
    await peer.open()
    peer.protocol.pause_writing()
    peer.feed(frame(b"", PING) * 100)  # a read that was under way
    assert peer.frames() == []
    peer.protocol.resume_writing()
    assert peer.frames() == [Frame(PONG, b"")] * 100
    assert peer.wire.reading
    await peer.lose()


async def test_a_client_that_stops_reading_is_dropped() -> None:
    peer = Peer()
    await peer.open()
    peer.protocol.pause_writing()
    assert not peer.wire.reading
    peer.loop.advance(64.9)
    assert not peer.wire.closed
    peer.loop.advance(0.1)
    assert peer.wire.aborted
    await peer.lose()


async def test_time_in_which_the_app_takes_nothing_is_not_counted_against_the_client() -> None:
    go_on = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (await receive())["type"] == "websocket.receive":
            pass

    peer = Peer(app)
    await peer.open()
    peer.feed(frame(b"x") * MAX_QUEUED + frame(b"y", fin=False))
    assert not peer.wire.reading
    peer.loop.advance(1002)
    assert not peer.wire.closed
    go_on.set()
    await peer.rest()
    assert peer.wire.reading
    peer.loop.advance(4)
    assert [got.opcode for got in peer.frames()] == [PING]
    peer.loop.advance(1.1)
    assert [got.code for got in peer.frames()] == [1008]
    await peer.lose()


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_pings_go_on_as_long_as_the_client_answers(timeout: float | None) -> None:
    peer = Peer(limits=WebSocketLimits(ping_interval=10, ping_timeout=timeout))
    await peer.open()
    for _ in range(3):
        peer.loop.advance(10)
        assert peer.frames() == [Frame(PING, b"")]
        if timeout is not None:
            peer.feed(frame(b"", PONG))
    assert not peer.wire.closed
    await peer.lose()


async def test_without_an_interval_there_are_no_pings() -> None:
    peer = Peer(limits=WebSocketLimits(ping_interval=None))
    await peer.open()
    assert peer.loop.timers == []
    await peer.lose()


@pytest.mark.parametrize(
    "begun",
    [
        frame(b"hello")[:1],
        frame(b"hello")[:-1],
        frame(b"hello", fin=False),
        frame(b"", fin=False),
        frame(b"x" * 200)[:3],
    ],
    ids=["a byte", "all but a byte", "a fragment", "an empty fragment", "a long head"],
)
async def test_a_message_that_does_not_come_to_its_end_ends_the_connection(begun: bytes) -> None:
    peer = Peer()
    await peer.open()
    peer.feed(begun)
    peer.loop.advance(4.9)
    assert peer.frames() == []
    peer.loop.advance(0.2)
    assert [got.code for got in peer.frames()] == [1008]
    await peer.lose()


async def test_a_trickle_is_no_progress() -> None:
    peer = Peer()
    await peer.open()
    peer.feed(frame(b"", fin=False))
    for _ in range(60):
        peer.feed(frame(b"x", 0, fin=False))
        peer.loop.advance(0.1)
    assert [got.code for got in peer.frames()] == [1008]
    await peer.lose()


async def test_a_long_message_has_the_time_that_it_needs() -> None:
    peer = Peer()
    await peer.open()
    whole = frame(b"x" * 100_000)
    for start in range(0, len(whole), 10_000):
        peer.feed(whole[start : start + 10_000])
        peer.loop.advance(1)
    await peer.rest()
    assert [len(got.data) for got in peer.frames()] == [100_000]
    peer.loop.advance(30)
    assert not peer.wire.closed
    await peer.lose()


async def test_a_message_that_ended_in_time_leaves_no_deadline() -> None:
    peer = Peer()
    await peer.open()
    peer.feed(frame(b"he", fin=False))
    peer.loop.advance(4)
    peer.feed(frame(b"llo", 0))
    peer.loop.advance(20)
    await peer.rest()
    assert [got.data for got in peer.frames()] == [b"hello"]
    await peer.lose()


# --- what is left


async def test_nothing_keeps_a_connection_in_memory_after_its_end() -> None:
    gc.collect()
    gc.disable()
    try:
        peer = Peer()
        await peer.open()
        peer.feed(frame(b"hello") + frame(b"x", fin=False))
        await peer.rest()
        await peer.lose()
        await peer.rest()
        protocol = weakref.ref(peer.protocol)
        del peer
        assert protocol() is None
    finally:
        gc.enable()


async def test_what_is_in_frames_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    peer = Peer()
    await peer.open()
    peer.feed(frame(b"canary") + close_frame(1000, b"canary"))
    await peer.lose()
    assert [record for record in caplog.records if record.name != "asyncio"] == []


async def test_a_refused_connection_is_one_line_without_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    await peer.open()
    peer.feed(frame(b"canary", rsv=4))
    (record,) = caplog.records
    assert record.getMessage() == "websocket refused"
    assert {key: vars(record)[key] for key in ("reason", "code", "client")} == {
        "reason": "ProtocolError",
        "code": 1002,
        "client": ("192.0.2.1", 4711),
    }
    assert "canary" not in caplog.text
    await peer.lose()
