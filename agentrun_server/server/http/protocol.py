"""HTTP/1.1 for uvicorn, with the limits uvicorn does not have.

uvicorn's `HttpToolsProtocol` reads a head or a body of any size for as long as the client likes, and answers
errors as plain text. `GuardedHttpToolsProtocol` bounds both in bytes and in time, closes what llhttp leaves
open (below), and answers every refusal as OpenAI's error object. It is handed to uvicorn, and nothing above
it knows of it::

    uvicorn.run(app, http=GuardedHttpToolsProtocol, ws="none")
    uvicorn app:server --http agentrun_server.server.http.protocol:GuardedHttpToolsProtocol --ws none

Above it stands the ASGI app, which may lower the same limits further; a request is answered by one of the
two, never by both. Below it is httptools. It reads no JSON and knows no route.

What the next bytes of a connection belong to is its `Phase`::

    IDLE ──first byte──▶ HEAD ──blank line──▶ BODY ──last byte──▶ IDLE
                          │                    │
                          ├──── refused ───────┴──▶ REFUSED ──earlier answers sent──▶ CLOSING ──▶ closed
                          ├── Upgrade with body ──▶ UPGRADING ──▶ BODY
                          └─── to a WebSocket ────▶ HANDED_OVER, see `agentrun_server.server.websocket.protocol`

Every wait ends: a head after `header_timeout`, a body after `body_timeout` without progress, an idle
connection after uvicorn's keep-alive time, a refused one after `LINGER_SECONDS`. One timer serves them all,
and an ordinary request that comes in one piece arms none. Time in which we do not read (flow control,
pipelining) is not counted against the client.

An answer is lost when its connection is closed while the client still sends: the kernel answers the unread
bytes with a reset, which overtakes the answer. So a refused connection is closed in steps (RFC 9112 §9.6):
write the answer, end our side, swallow what still comes for a short while, close.

What llhttp (as httptools sets it up) accepts and this module does not: HTTP/0.9 and 2.0, a missing,
repeated or malformed Host, codings before ``chunked``, Transfer-Encoding in HTTP/1.0, fragments and malformed
escapes in the target. What uvicorn does with its callbacks and this module does not: trailers become headers
of the running request, the body of an Upgrade request is lost or read as the next request, the end of a
connection is not told to a request that has another one waiting behind it. One thing is left as it is:
``RTSP/1.0`` and ``ICE/1.0`` in the request line are read as ``HTTP/1.0``, because the parser does not tell
them apart.
"""

import asyncio
import functools
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from agentrun_server.config import MIN_BODY_RATE, ServerConfig
from agentrun_server.errors import (
    ConfigurationError,
    MethodNotAllowedError,
    RequestTimeoutError,
    ServiceUnavailableError,
    TooManyRequestsError,
)
from agentrun_server.observability.logs import get_logger
from agentrun_server.server.http.cycle import Cycle
from agentrun_server.server.http.head import (
    CHUNKED,
    FRAMING_HEADERS,
    check_host,
    head_bytes,
    read_framing,
    split_target,
)
from agentrun_server.server.http.refusal import (
    MAX_TARGET_BYTES,
    Headers,
    RefusedError,
    answer_bytes,
    answer_parts,
    body_too_large,
    head_too_large,
    internal_error,
    new_request_id,
    refusal_of,
    target_too_long,
    version_not_supported,
)
from agentrun_server.server.websocket.head import Handshake, WebSockets, asks_for_websocket, read_handshake

__all__ = ["GuardedHttpToolsProtocol", "HttpLimits", "http_limits_of"]

logger = get_logger("agentrun_server.http")

MAX_PIPELINED = 64
"""Requests of a connection that wait for an earlier answer. Each costs KiBs, and one read holds thousands."""
PAUSED_CHECK_SECONDS = 1.0
"""How often a connection that is not being read is looked at; its deadline stands still meanwhile."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request may cost before an app sees it. Sizes are bytes, times are seconds.

    `max_header_bytes` counts the request line and all header lines. `body_timeout` is the time a body may go
    without progress; bytes that come more slowly than 8 KiB a second are no progress.
    """

    max_header_bytes: int = 64 * 1024
    max_header_count: int = 200
    header_timeout: float = 10.0
    max_body_bytes: int = 10 * 1024 * 1024
    body_timeout: float = 15.0

    def __post_init__(self) -> None:
        """Refuse limits under which no request would pass."""
        for name in ("max_header_bytes", "max_header_count", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1")
        for name in ("header_timeout", "body_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be more than 0 seconds")

    @classmethod
    def from_config(cls, config: ServerConfig) -> "HttpLimits":
        """Take the limits out of a server's settings."""
        return cls(
            max_header_bytes=config.max_header_bytes,
            max_header_count=config.max_header_count,
            header_timeout=config.header_timeout,
            max_body_bytes=config.max_body_bytes,
            body_timeout=config.body_timeout,
        )


_T = TypeVar("_T")


def http_limits_of(app: object) -> HttpLimits:
    """Return the `http_limits` of the nearest app that has them, looking through middleware (``.app``).

    An app without limits gets those of the environment (``AGENTRUN_MAX_BODY_BYTES`` and so on), read once.
    """
    return _said_by(app, "http_limits", HttpLimits) or _default_limits()


def _said_by(app: object, name: str, kind: type[_T]) -> _T | None:
    for _ in range(32):  # wrappers could form a ring
        if app is None:
            break
        said = getattr(app, name, None)
        if isinstance(said, kind):
            return said
        app = getattr(app, "app", None)
    return None


@functools.cache
def _default_limits() -> HttpLimits:
    return HttpLimits.from_config(ServerConfig())


class Phase(Enum):
    """What the next bytes of a connection belong to; the module docstring draws the transitions."""

    IDLE = "between requests"
    HEAD = "request line and headers"
    BODY = "a body, or its trailers"
    UPGRADING = "a body that llhttp takes for the protocol upgraded to"
    HANDED_OVER = "another protocol object"
    REFUSED = "nothing: refused, but earlier requests are still being answered"
    CLOSING = "nothing: all is said, the client is heard out"


# A global is looked up faster than an attribute of an Enum, and the hot path compares phases.
_IDLE, _HEAD, _BODY = Phase.IDLE, Phase.HEAD, Phase.BODY
_REFUSED, _CLOSING = Phase.REFUSED, Phase.CLOSING


class _Cycle(Cycle):
    """A request and its response, with an error of the app answered in OpenAI's shape."""

    async def send_500_response(self) -> None:
        """Answer for an app that raised, or returned, without an answer."""
        if self.disconnected:
            return
        request_id = new_request_id()
        logger.warning(
            "request failed in the app",
            extra={"reason": "app", "status": 500, "client": self.scope["client"], "request_id": request_id},
        )
        headers, body = answer_parts(internal_error(), request_id)
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _drop(cycle: RequestResponseCycle) -> None:
    """Let the app find its client gone: nothing it sends from now on reaches the connection."""
    cycle.disconnected = True
    cycle.waiting_for_100_continue = False
    cycle.message_event.set()


class _Flow(FlowControl):
    """Flow control with a clock that stands still while the connection is not read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._time = loop.time
        self._paused_at = 0.0
        self._paused_for = 0.0

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._paused_at = self._time()
            super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self._paused_for += self._time() - self._paused_at
            super().resume_reading()

    def clock(self) -> float:
        return (self._paused_at if self.read_paused else self._time()) - self._paused_for


class _LingeringTransport:
    """The transport for a cycle whose client may still be sending: closing it waits until that is heard out."""

    def __init__(self, protocol: "GuardedHttpToolsProtocol", transport: asyncio.Transport) -> None:
        self._protocol: GuardedHttpToolsProtocol | None = protocol
        self._transport = transport
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.close_after_answer()

    def detach(self) -> None:
        self._protocol = None


class _ParserCallbacks(Protocol):
    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class _BodyOfUpgrade:
    """Callbacks of a parser that reads the body of an Upgrade request, and then what follows it.

    llhttp takes everything behind the head of an Upgrade request for another protocol. A server that ignores
    the Upgrade (RFC 9110 §7.8) must read the body all the same: the JDK's HTTP client sends ``Upgrade: h2c``
    with every POST. So a new parser is given a head of our own making with the same framing, whose callbacks
    end here, and goes on from there.
    """

    def __init__(self, protocol: _ParserCallbacks) -> None:
        self._protocol = protocol
        self._in_our_head = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._in_our_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._in_our_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_our_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._in_our_head:
            self._in_our_head = False
        else:
            self._protocol.on_headers_complete()


# --- the protocol


class GuardedHttpToolsProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with `HttpLimits`, strict framing, and errors in OpenAI's shape."""

    # Slots, because uvicorn's attributes nearly fill what CPython stores in the fast way (30 names an instance).
    __slots__ = (
        "_answer",
        "_asgi_app",
        "_chunked_bytes",
        "_credited",
        "_deadline",
        "_framing",
        "_handshake",
        "_head_bytes",
        "_head_slack",
        "_host",
        "_length",
        "_lingering",
        "_phase",
        "_reading",
        "_received",
        "_running",
        "_slice",
        "_swallowed",
        "_timer",
        "_timer_due",
        "_websockets",
        "limits",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        app: Any = config.loaded_app  # pyright: ignore[reportUnknownMemberType]
        self.limits = http_limits_of(app)
        self._websockets = _said_by(app, "websockets", WebSockets) or _NO_WEBSOCKETS
        self._handshake: Handshake | None = None
        self._asgi_app = cast("ASGI3Application", app)
        self._reading: _Flow = None  # type: ignore[assignment] # as uvicorn's `flow`, which is the same object
        self._lingering: _LingeringTransport | None = None
        # The request being answered; `cycle` is the one being read.
        self._running: RequestResponseCycle | None = None
        self._phase = _IDLE
        self._timer: asyncio.TimerHandle | None = None
        # Of what is being read, on the clock of `_reading`. None between requests, and until a slice has ended.
        self._deadline: float | None = None
        self._timer_due = 0.0  # on the same clock, or earlier

        self._framing: Headers = []  # those of `headers` that `read_framing` reads
        self._host: bytes | None = None  # the last one that was checked
        self._slice = 0  # bytes in the slice being parsed
        self._head_bytes = 0  # in earlier slices of this head, at most
        self._head_slack = 0  # how much of that may belong to the request before
        self._length = 0  # of the body, or CHUNKED
        self._received = 0  # bytes of the body
        self._credited = 0  # how many of them have moved the deadline
        self._chunked_bytes = 0  # bytes of a chunked body with its chunk headers and trailers
        self._answer = b""  # to the refused request, while earlier ones are being answered
        self._swallowed = 0

    # --- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start the clock: a connection which never sends a byte is closed without a word."""
        super().connection_made(transport)
        self.flow = self._reading = _Flow(transport, self.loop)
        now = self._reading.clock()
        self._watch_until(now + self.limits.header_timeout, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app, stop all timers, and untie what would keep the connection in memory."""
        self._phase = _CLOSING
        self._stop_timer()
        self._unset_keepalive_if_required()
        # uvicorn tells the last request only; the one being answered may be an earlier one.
        if self._running is not None and not self._running.response_complete:
            _drop(self._running)
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing
        self.pipeline.clear()
        if self._lingering is not None:
            self._lingering.detach()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let the running answer finish; a connection on which all is said needs no more patience."""
        if self._phase is _CLOSING:
            self._finish()
        else:
            super().shutdown()

    def close_after_answer(self) -> None:
        """Close the connection for a cycle, without losing its answer when the client is still sending."""
        if self._phase is not _CLOSING:
            if self._running is not None and not self._running.response_complete:
                _drop(self._running)  # its app failed in the middle of the answer
            self._begin_closing(b"")

    def _linger_after(self, cycle: RequestResponseCycle) -> None:
        """Have the connection closed gently when this request's answer ends it: more bytes are on their way."""
        if self._lingering is None:
            self._lingering = _LingeringTransport(self, self.transport)
        cycle.transport = cast("asyncio.Transport", self._lingering)

    # --- bytes in

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse in slices no longer than a head may be, so that it is judged before much of it is stored."""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._slice = size = len(data)
        if size > self.limits.max_header_bytes:
            self._receive_slices(memoryview(data))
            return
        phase, cycle = self._phase, self.cycle
        if phase is _CLOSING or phase is _REFUSED:
            self._swallow(size)
            return
        try:
            self.parser.feed_data(data)  # pyright: ignore[reportOptionalMemberAccess]
        except httptools.HttpParserUpgrade as exc:
            rest = memoryview(data)[exc.args[0] :]
        except httptools.HttpParserError as exc:
            self._refuse(refusal_of(exc))
            return
        else:
            # At the end of a request nothing is left to watch.
            if self._phase is not _IDLE or (phase is _IDLE and self.cycle is cycle):
                self._after_slice(phase, cycle, size)
            return
        # Not in the except block: errors behind the upgrade would carry the wrong context (see refusal_of).
        self._on_upgrade(phase, cycle, rest)

    def _receive_slices(self, data: memoryview) -> None:
        size = self.limits.max_header_bytes
        for start in range(0, len(data), size):
            if self._phase is Phase.HANDED_OVER:
                break  # no WebSocket client sends before it has its answer
            self.data_received(data[start : start + size])

    def _after_slice(self, before: Phase, cycle_before: RequestResponseCycle | None, size: int) -> None:
        """Check what is unfinished at the end of a slice, and see to it that its time is limited."""
        phase = self._phase
        try:
            if phase is _BODY:
                self._check_open_body(size)
            elif phase is _HEAD:
                self._check_open_head(size, starts_slice=before is _IDLE and self.cycle is cycle_before)
            elif phase is _IDLE and before is _IDLE and self.cycle is cycle_before:
                self._check_noise(size)
        except RefusedError as refusal:
            self._refuse(refusal)

    def _check_open_head(self, size: int, *, starts_slice: bool) -> None:
        limits = self.limits
        if self._deadline is None:
            now = self._reading.clock()
            self._watch_until(now + limits.header_timeout, now)
            self._head_bytes = size
            self._head_slack = 0 if starts_slice else size
        else:
            self._head_bytes += size
        if len(self.url) > MAX_TARGET_BYTES:
            raise target_too_long()
        if self._head_bytes - self._head_slack > limits.max_header_bytes:
            raise self._too_many_header_bytes()
        if len(self.headers) > limits.max_header_count:
            raise self._too_many_headers()

    def _check_open_body(self, size: int) -> None:
        limits, deadline, now = self.limits, self._deadline, self._reading.clock()
        latest = now + limits.body_timeout
        if deadline is None:
            self._linger_after(self.cycle)
            self._watch_until(latest, now)
        else:
            gained = (self._received - self._credited) / MIN_BODY_RATE
            self._watch_until(min(deadline + gained, latest), now)
            self._chunked_bytes += size
        self._credited = self._received
        # Chunk extensions and trailers are not stored, but a client could send them for ever.
        if self._length == CHUNKED and self._chunked_bytes > limits.max_body_bytes + limits.max_header_bytes:
            raise body_too_large(limits.max_body_bytes)

    def _check_noise(self, size: int) -> None:
        """Bound, in number and time, the empty lines that may stand before a request line (RFC 9112 §2.2)."""
        self._head_bytes += size
        if self._head_bytes > self.limits.max_header_bytes:
            raise self._too_many_header_bytes()
        if self._deadline is None and not self._is_answering():
            now = self._reading.clock()
            self._watch_until(now + self.limits.header_timeout, now)

    def _swallow(self, size: int) -> None:
        self._swallowed += size
        if self._swallowed > LINGER_BYTES:
            if self._phase is _CLOSING:
                self._finish()
            else:
                self.flow.pause_reading()

    def _on_upgrade(self, before: Phase, cycle_before: RequestResponseCycle | None, rest: memoryview) -> None:
        """Go on behind the head of an Upgrade request, where llhttp stops."""
        if self._phase is Phase.HANDED_OVER:
            self._stop_timer()
            if self._handshake is not None:
                self._hand_over(self._handshake, rest)
            else:
                self.handle_websocket_upgrade()
            self.parser = None  # type: ignore[assignment] # as uvicorn does at the end of a connection
            return
        if self._phase is Phase.UPGRADING:
            self._read_body_of_upgrade()
        if rest:
            self.data_received(rest)  # each level is one more request in the pipeline, which has a bound
        else:
            self._after_slice(before, cycle_before, 0)

    def _hand_over(self, handshake: Handshake, rest: memoryview) -> None:
        """Let a WebSocket take the place of this object."""
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        scope: dict[str, Any] = {
            **self.scope,
            "type": "websocket",
            "scheme": "wss" if self.scheme == "https" else "ws",
            "subprotocols": handshake.subprotocols,
            "extensions": {"websocket.http.response": {}},
        }
        del scope["method"]
        from agentrun_server.server.websocket.protocol import WebSocketProtocol  # not before there is a WebSocket

        websocket = WebSocketProtocol(
            self.transport, self.loop, self._asgi_app, scope, handshake, self._websockets.limits, self.server_state
        )
        websocket.begin(rest)

    def _read_body_of_upgrade(self) -> None:
        framing = b"transfer-encoding: chunked" if self._length == CHUNKED else b"content-length: %d" % self._length
        connection = b"keep-alive" if self.cycle.keep_alive else b"close"
        self.parser = httptools.HttpRequestParser(_BodyOfUpgrade(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\nconnection: " + connection + b"\r\n\r\n")
        self._phase = _BODY

    # --- parser callbacks

    def on_message_begin(self) -> None:
        """Begin a head."""
        HttpToolsProtocol.on_message_begin(self)  # super() is slower, and this is the hot path
        self._phase = _HEAD
        self._framing = []
        self._head_bytes = 0
        self._deadline = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header (or, after a chunked body, a trailer), as uvicorn does."""
        name = name.lower()
        header = (name, value)
        if name in FRAMING_HEADERS:
            self._framing.append(header)
            if name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append(header)

    def on_headers_complete(self) -> None:
        """Check the head, then hand the request to the app as uvicorn does."""
        parser: httptools.HttpRequestParser = self.parser  # pyright: ignore[reportAssignmentType]
        scope, headers, limits = self.scope, self.headers, self.limits
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        scope["method"] = method
        if version != "1.1":
            if version != "1.0":
                raise version_not_supported()
            scope["http_version"] = version
        if len(self.url) > MAX_TARGET_BYTES:
            raise target_too_long()
        if len(headers) > limits.max_header_count:
            raise self._too_many_headers()
        if (
            self._head_bytes + self._slice > limits.max_header_bytes
            and head_bytes(method, self.url, headers) > limits.max_header_bytes
        ):
            raise self._too_many_header_bytes()
        host, length = read_framing(version, self._framing)
        if host != self._host and host is not None:
            check_host(host)
            self._host = host
        if length > limits.max_body_bytes:
            raise body_too_large(limits.max_body_bytes)

        phase = _BODY
        if parser.should_upgrade():
            phase = self._phase_after_upgrade(method, version, length)
            if phase is Phase.HANDED_OVER:
                self._phase = phase
                return

        path, raw_path, query = split_target(method, self.url, headers)
        if self.root_path:
            path, raw_path = self.root_path + path, self.root_path.encode("ascii") + raw_path
        scope["path"] = path
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        running = self._running
        must_wait = running is not None and not running.response_complete
        if must_wait or self.limit_concurrency is not None:
            self._check_room(must_wait=must_wait)

        self._phase = phase
        self._length = length
        self._received = self._credited = self._chunked_bytes = 0
        self._deadline = None
        # Trailers are reported like headers; without a new list they would reach the running app as headers.
        self.headers = []
        self.cycle = cycle = _Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            # An HTTP/1.0 client does not know the interim answer (RFC 9110 §10.1.1).
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if must_wait:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self._asgi_app))
        else:
            self._running = cycle
            self._start_asgi_task(cycle, self._asgi_app)

    def _check_room(self, *, must_wait: bool) -> None:
        limit = self.limit_concurrency
        if limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit):
            error = ServiceUnavailableError("The server is handling as many requests as it may.")
            raise RefusedError("concurrency", error.retry_after(1))
        if must_wait and len(self.pipeline) >= MAX_PIPELINED:
            message = f"More than {MAX_PIPELINED} requests of this connection are waiting to be answered."
            raise RefusedError("pipeline", TooManyRequestsError(message))

    def on_body(self, body: bytes) -> None:
        """Buffer a piece of the body, or drop it when the request has been answered already."""
        self._received += len(body)
        if self._length == CHUNKED and self._received > self.limits.max_body_bytes:
            raise body_too_large(self.limits.max_body_bytes)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End a request, unless llhttp only thinks so because of an Upgrade."""
        if self._phase is not _BODY:
            return
        self._phase = _IDLE
        cycle = self.cycle
        if self._deadline is not None:
            self._deadline = None
            cycle.transport = self.transport
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def _phase_after_upgrade(self, method: str, version: str, length: int) -> Phase:
        if method == "CONNECT":
            # Its target is no path, so there is nothing an app could route on. No method is allowed on it.
            error = MethodNotAllowedError("This server is not a proxy.")
            error.headers = (*error.headers, (b"allow", b""))
            raise RefusedError("method", error)
        if not self._is_answering() and (self._opens_websocket(method, version, length) or self._should_upgrade()):
            return Phase.HANDED_OVER
        return Phase.UPGRADING if length else _BODY

    def _opens_websocket(self, method: str, version: str, length: int) -> bool:
        """Tell whether this is the handshake of a WebSocket that the app has, and complete its scope."""
        if not self._websockets.paths or not asks_for_websocket(method, version, self.headers):
            return False
        path, raw_path, query = split_target(method, self.url, self.headers)
        if path not in self._websockets.paths:
            return False
        self._check_room(must_wait=False)
        self._handshake = read_handshake(self.headers, length)
        scope: Any = self.scope
        scope["path"] = self.root_path + path
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = query
        return True

    def _too_many_header_bytes(self) -> RefusedError:
        message = f"The request line and headers are longer than {self.limits.max_header_bytes} bytes."
        return head_too_large("header_bytes", message)

    def _too_many_headers(self) -> RefusedError:
        message = f"The request has more than {self.limits.max_header_count} headers."
        return head_too_large("header_count", message)

    # --- the end of an answer

    def on_response_complete(self) -> None:
        """Start the next request of the pipeline, or answer the one that was refused behind it."""
        if self._phase is _CLOSING:
            self.server_state.total_requests += 1
            return
        if self.pipeline:
            self._running = self.pipeline[-1][0]  # the one that uvicorn starts now
        super().on_response_complete()
        if self._phase is not _IDLE:
            # A request is under way: its own deadline counts, not the keep-alive time uvicorn has just set.
            self._unset_keepalive_if_required()
            if self._phase is _REFUSED and not self._is_answering():
                self._begin_closing(self._answer)

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _refuse(self, refusal: RefusedError) -> None:
        """Read no more from this connection; answer as soon as all earlier requests are answered."""
        error, request_id = refusal.error, new_request_id()
        logger.warning(
            "request refused: %s",
            refusal.reason,
            extra={
                "reason": refusal.reason,
                "detail": error.message,
                "status": error.status_code,
                "client": self.client,
                "request_id": request_id,
            },
        )
        is_started = self._phase is _BODY
        head_only = self._is_reading_head_request()
        self._phase = _REFUSED
        self._stop_timer()
        if not is_started or self._take_back(self.cycle):
            default_headers = self.server_state.default_headers
            self._answer = answer_bytes(error, request_id, default_headers, head_only=head_only)
        if self._running is None or self._running.response_complete:
            self._begin_closing(self._answer)
        else:
            self._linger_after(self._running)

    def _is_reading_head_request(self) -> bool:
        if self._phase is _HEAD:
            # The method is known as soon as there is a target.
            return bool(self.url) and self.parser.get_method() == b"HEAD"  # pyright: ignore[reportOptionalMemberAccess]
        return self._phase is _BODY and self.scope["method"] == "HEAD"

    def _take_back(self, cycle: RequestResponseCycle) -> bool:
        """Take a request away from the app; return whether it is still without an answer."""
        _drop(cycle)
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            cycle.on_response = _nothing
            return True
        self._running = None
        # The head of an answer may wait for its body: nothing of it has been written yet.
        return not cycle.response_started or cast("Cycle", cycle)._head is not None

    def _begin_closing(self, answer: bytes) -> None:
        self._phase = _CLOSING
        self._stop_timer()
        transport = self.transport
        if transport.is_closing():
            return
        if answer:
            transport.write(answer)
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_SECONDS, self._finish)

    def _finish(self) -> None:
        self._stop_timer()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read what it is told; close() would wait for it
        else:
            self.transport.close()

    # --- the timer

    def _watch_until(self, deadline: float, now: float) -> None:
        """Move the deadline. The timer is touched only when it would come too late; it may come too early."""
        self._deadline = deadline
        if self._timer is None or deadline < self._timer_due:
            self._arm(deadline, deadline - now)

    def _arm(self, due: float, delay: float) -> None:
        self._stop_timer()
        self._timer_due = due
        self._timer = self.loop.call_later(delay, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        now = self._reading.clock()
        if self._phase is _BODY and not self._received and self.cycle.waiting_for_100_continue:
            # The client waits for the app to want its body.
            self._watch_until(now + self.limits.body_timeout, now)
        elif self.flow.read_paused:
            self._arm(deadline, max(deadline - now, PAUSED_CHECK_SECONDS))
        elif deadline > now:
            self._arm(deadline, deadline - now)
        elif self._phase is _HEAD:
            self._refuse(_too_late("header_timeout", "The head of the request did not arrive in time."))
        elif self._phase is _BODY:
            self._refuse(_too_late("body_timeout", "The body of the request did not arrive in time."))
        else:
            self.transport.close()


_NO_WEBSOCKETS = WebSockets(paths=frozenset())


def _too_late(reason: str, message: str) -> RefusedError:
    return RefusedError(reason, RequestTimeoutError(message))


def _nothing() -> None:
    """Stand in for a callback that is no longer wanted."""
