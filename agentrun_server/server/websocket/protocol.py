"""One WebSocket for uvicorn, with the limits uvicorn does not have (RFC 6455).

`GuardedHttpToolsProtocol` has read the head of the opening handshake, held it to its limits, and hands the connection
over. From here on frames are read by the sans-I/O half of ``websockets``; this module owns the transport, the time, and
the messages between frames and the ASGI app. It knows no route and reads no JSON.

Where a connection is, is its `Phase`::

    OPENING ──accept──▶ OPEN ──close frame sent, or received──▶ CLOSING ──▶ closed
       │                 └────a frame that may not be─────────────┘ ▲
       └──an HTTP answer in place of the handshake──────────────────┘

Every wait ends: a message that has begun after `message_timeout` without progress (8 KiB a second, as for a body); a
peer that is silent gets a ping every `ping_interval`, and is gone when nothing at all is heard of it for `ping_timeout`
after one; the answer to a close frame, and the client's leaving, after `CLOSE_SECONDS`. One timer serves them all. Time
in which we do not read is not counted against the client.

Nothing grows without a bound: a message longer than `max_message_bytes` ends the connection before it is read; messages
the app has not taken stop the reading, and so does a client that does not take what is written. No extension is agreed
to, so that a frame is as long as it says.

A connection is closed in steps, as in `agentrun_server.server.http.protocol`: an answer, or a close frame, would be
lost if the connection was closed while the client still sends.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from agentrun_server.config import MIN_BODY_RATE
from agentrun_server.errors import APIError, PermissionDeniedError
from agentrun_server.observability.logs import get_logger
from agentrun_server.server.admission import shutting_down
from agentrun_server.server.asgi import Message
from agentrun_server.server.http.refusal import answer_bytes, internal_error, new_request_id
from agentrun_server.server.websocket.head import Handshake, WebSocketLimits

__all__ = ["WebSocketProtocol"]

logger = get_logger("agentrun_server.websocket")

# In no tree, so that no configuration turns it on: the parser would log what is in frames.
_silence = logging.Logger("agentrun_server.websocket.frames", logging.CRITICAL + 1)  # noqa: LOG001

CLOSE_SECONDS = 2.0
"""How long a client may take to answer a close frame, and then to leave."""
SLICE_BYTES = 16 * 1024
"""How much is parsed before looking whether the app keeps up: one read of the socket can hold many small frames."""
MAX_QUEUED = 16
"""Messages that wait for the app, or fewer when they are as long as one may be; while they do, nothing is read."""
_MAX_REASON = 123  # RFC 6455, section 5.5: a control frame has at most 125 bytes

# RFC 6455, section 7.4.1
_NORMAL, _GOING_AWAY, _ABNORMAL, _BAD_DATA, _POLICY, _INTERNAL = 1000, 1001, 1006, 1007, 1008, 1011
_OURS_ALONE = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})
_HANDSHAKE = frozenset({b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-protocol"})

_Headers = Iterable[tuple[bytes, bytes]]


class Phase(Enum):
    """Where a connection is; the module docstring draws the transitions."""

    OPENING = "the app has not said whether it accepts"
    ANSWERING = "the app answers the handshake as a request, and has not come to the end"
    OPEN = "messages go both ways"
    CLOSING = "all is said; the client is heard out"
    CLOSED = "the connection is gone"


class WebSocketProtocol(asyncio.Protocol):
    """One WebSocket, from its handshake to its end.

    Args:
        transport: the connection, which this object takes over.
        loop: the event loop.
        app: the ASGI app.
        scope: of the handshake, complete.
        handshake: what to answer when the app accepts.
        limits: what it may cost.
        server_state: uvicorn's.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        app: ASGI3Application,
        scope: dict[str, Any],
        handshake: Handshake,
        limits: WebSocketLimits,
        server_state: ServerState,
    ) -> None:
        self.transport = transport
        self._loop = loop
        self._app = app
        self._scope = scope
        self._handshake = handshake
        self._limits = limits
        self._state = server_state
        self._frames = Protocol(SERVER, state=OPEN, max_size=limits.max_message_bytes, logger=_silence)
        self._phase = Phase.OPENING

        self._unread = bytearray()  # has come and is not parsed: the app does not keep up, or has not accepted
        self._partial: bytearray | None = None  # of the message that comes in fragments
        self._partial_is_text = False
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self._queued_bytes = 0
        self._end: Message | None = None  # what the app reads behind the last message
        self._connect_told = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._denial: list[bytes] = []

        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._heard_at = loop.time()
        self._pinged_at: float | None = None  # a ping is out; nothing was heard since
        self._begun_at: float | None = None  # a message that is not whole began to come
        self._begun_bytes = 0
        self._paused_at: float | None = None  # not reading, by our own will

    # --- the connection

    def begin(self, early: bytes | memoryview) -> None:
        """Take the connection over; `early` came with the head, before the client can know that it may send."""
        self._state.connections.add(self)  # type: ignore[arg-type] # uvicorn calls nothing of it but `shutdown`
        self._state.total_requests += 1
        self.transport.set_protocol(self)
        self._unread += early
        self._pause_reading()
        task = self._loop.create_task(self._run())
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost is all the same
        """Tell the app, and stop all timers."""
        self._state.connections.discard(self)
        self._phase = Phase.CLOSED
        self._stop_timer()
        self._finish_reading(_ABNORMAL)
        self._writable.set()

    def eof_received(self) -> bool | None:
        """Close: a client that will send no more cannot close in good order either."""
        return None

    def pause_writing(self) -> None:
        """Write no more: the client does not read."""
        self._writable.clear()
        self._pause_reading()  # else pings would be answered into memory

    def resume_writing(self) -> None:
        """Write on: the client has read, and so it lives."""
        self._heard()
        self._writable.set()
        self._take_up()

    def shutdown(self) -> None:
        """Close, because the server does: whoever wants to end in better order has done so already."""
        if self._phase in (Phase.OPENING, Phase.ANSWERING):
            self._deny(shutting_down())
        elif self._phase is Phase.CLOSING:
            self._leave()
        else:
            self._close(_GOING_AWAY, "")

    # --- bytes in

    def data_received(self, data: bytes) -> None:
        """Parse what comes, as far as the app keeps up."""
        self._heard()
        if self._phase is Phase.CLOSING:
            self._hear_out(data)
            return
        self._unread += data
        self._parse()

    def _heard(self) -> None:
        self._heard_at = self._loop.time()
        self._pinged_at = None

    def _hear_out(self, data: bytes) -> None:
        """Look for the close frame that answers ours; all else is of no use any more."""
        if self._peer_is_done():
            return
        self._frames.receive_data(data)
        self._frames.events_received()
        self._frames.data_to_send()  # nobody waits for pongs now
        if self._peer_is_done():
            self._half_close()

    def _peer_is_done(self) -> bool:
        """Tell whether the last frame has come, or one that may not be: nothing is parsed any more."""
        return self._frames.eof_sent or self._frames.parser_exc is not None

    def _parse(self) -> None:
        unread, at = self._unread, 0
        while at < len(unread) and self._phase is Phase.OPEN and not self._is_full():
            self._frames.receive_data(unread[at : at + SLICE_BYTES])
            at += SLICE_BYTES
            for event in self._frames.events_received():
                if self._phase is Phase.OPEN and isinstance(event, Frame):
                    self._on_frame(event)
            if self._frames.parser_exc is not None:
                self._fail_as_parsed()
        del unread[:at]
        if self._phase is not Phase.OPEN:
            return
        self._write_frames()  # pongs
        self._watch_message()
        if unread or self._is_full():
            self._pause_reading()

    def _is_full(self) -> bool:
        return (
            len(self._messages) >= MAX_QUEUED
            or self._queued_bytes >= self._limits.max_message_bytes
            or not self._writable.is_set()
        )

    def _on_frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._partial_is_text = frame.opcode is Opcode.TEXT
                if frame.fin:
                    self._on_message(bytes(frame.data))
                else:
                    self._partial = bytearray(frame.data)
            case Opcode.CONT:
                assert self._partial is not None, "the parser refuses others"
                self._partial += frame.data  # no list of pieces: fragments may be empty, and without number
                if frame.fin:
                    whole, self._partial = bytes(self._partial), None
                    self._on_message(whole)
            case Opcode.CLOSE:
                self._on_close()
            case _:  # a ping has been answered by the parser, and a pong was heard
                pass

    def _on_message(self, data: bytes) -> None:
        self._begun_at = None
        message: str | bytes = data
        if self._partial_is_text:
            try:
                message = data.decode()
            except UnicodeDecodeError:
                self._fail(_BAD_DATA, "invalid UTF-8")
                return
        self._messages.append((message, len(data)))
        self._queued_bytes += len(data)
        self._news.set()

    def _on_close(self) -> None:
        close = self._frames.close_rcvd
        assert close is not None, "the parser has read it"
        self._write_frames()  # the same code back
        self._finish_reading(close.code, close.reason)
        self._begin_closing()

    def _fail_as_parsed(self) -> None:
        """End the connection for a frame that may not be; the parser has written why."""
        close = self._frames.close_sent
        self._refuse(type(self._frames.parser_exc).__name__, _ABNORMAL if close is None else int(close.code))

    def _fail(self, code: int, reason: str) -> None:
        """End the connection for what the parser lets pass."""
        self._frames.fail(code, reason)
        self._refuse(reason, code)

    def _refuse(self, reason: str, code: int) -> None:
        """End the connection without waiting for the client's word (RFC 6455, section 7.1.7)."""
        if self._phase is not Phase.OPEN:
            return
        logger.warning("websocket refused", extra={"reason": reason, "code": code, "client": self._scope["client"]})
        self._write_frames()
        self._drop_messages()
        self._finish_reading(code)
        self._begin_closing()
        self._half_close()

    # --- reading and not reading

    def _pause_reading(self) -> None:
        if self._paused_at is None and self._phase in (Phase.OPENING, Phase.OPEN) and not self.transport.is_closing():
            self._paused_at = self._loop.time()
            self.transport.pause_reading()

    def _take_up(self) -> None:
        """Read on, when nothing stands against it any more."""
        if self._paused_at is not None and self._phase is Phase.OPEN and not self._is_full():
            self._go_on_reading()
            self._parse()

    def _go_on_reading(self) -> None:
        if self._paused_at is None:
            return
        stood_still = self._loop.time() - self._paused_at
        self._paused_at = None
        if self._begun_at is not None:
            self._begun_at += stood_still
        if self._pinged_at is not None:
            self._pinged_at += stood_still
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _watch_message(self) -> None:
        """Note whether a message has begun that is not whole, and how much of it has come."""
        waiting = len(self._frames.reader.buffer)
        if self._partial is None and not waiting:
            self._begun_at = None
            return
        self._begun_bytes = waiting + len(self._partial or b"")
        if self._begun_at is None:
            self._begun_at = self._loop.time()
            self._arm(self._limits.message_timeout)

    # --- the app

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)  # type: ignore[arg-type]
        except ClientDisconnected:
            pass
        except Exception:
            logger.exception("websocket failed in the app", extra={"client": self._scope["client"]})
            if self._phase is Phase.OPEN:
                self._close(_INTERNAL, "")
        finally:
            if self._phase is Phase.OPENING:
                self._deny(internal_error())
            elif self._phase is Phase.ANSWERING:
                self._deny(internal_error())  # the app did not come to the end of its answer
            elif self._phase is Phase.OPEN:
                self._close(_NORMAL, "")

    async def _receive(self) -> Message:
        if not self._connect_told:
            self._connect_told = True
            return {"type": "websocket.connect"}
        while not self._messages:
            if self._end is not None:
                return self._end
            self._news.clear()
            await self._news.wait()
        data, size = self._messages.popleft()
        self._queued_bytes -= size
        self._take_up()
        return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}

    async def _send(self, message: Message) -> None:
        if not self._writable.is_set():
            await self._writable.wait()
        kind = message["type"]
        if self._phase in (Phase.CLOSING, Phase.CLOSED):
            raise ClientDisconnected
        if self._phase is Phase.OPEN:
            self._send_when_open(kind, message)
        elif self._phase is Phase.ANSWERING:
            if kind != "websocket.http.response.body":
                raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body', but got '{kind}'.")
            self._denial.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._send_denial()
        elif kind == "websocket.accept":
            self._accept(message.get("subprotocol"), message.get("headers") or ())
        elif kind == "websocket.http.response.start":
            self._denial = [*_lines(message["status"], message.get("headers") or (), self._state.default_headers)]
            self._phase = Phase.ANSWERING
        elif kind == "websocket.close":
            self._deny(PermissionDeniedError("The WebSocket was refused."))
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' before the handshake was answered.")

    def _send_when_open(self, kind: str, message: Message) -> None:
        if kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            if text is not None:
                self._frames.send_text(text.encode())
            else:
                self._frames.send_binary(data or b"")
            self._write_frames()
        elif kind == "websocket.close":
            self._close(message.get("code") or _NORMAL, message.get("reason") or "")
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' on an open WebSocket.")

    def _accept(self, subprotocol: str | None, given: _Headers) -> None:
        head = [
            STATUS_LINE[101],
            b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ",
            self._handshake.accept,
            b"\r\n",
        ]
        if subprotocol is not None:
            if subprotocol not in self._handshake.subprotocols:
                raise RuntimeError("The client has not offered this subprotocol.")
            head.append(_line(b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        for name, value in (*self._state.default_headers, *given):
            if name.lower() not in _OURS_ALONE | _HANDSHAKE:
                head.append(_line(name.lower(), value))
        self.transport.write(b"".join([*head, b"\r\n"]))
        self._phase = Phase.OPEN
        self._heard()
        self._arm_ping()
        self._take_up()

    def _send_denial(self) -> None:
        *head, body = self._denial[0], b"".join(self._denial[1:])
        self._denial = []
        self._answer(b"".join([*head, b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body]))

    def _deny(self, error: APIError) -> None:
        """Answer for an app that has no answer of its own."""
        self._answer(answer_bytes(error, new_request_id(), self._state.default_headers, head_only=False))

    def _answer(self, answer: bytes) -> None:
        """Write an HTTP answer in place of the handshake, which ends the connection."""
        self.transport.write(answer)
        self._finish_reading(_ABNORMAL)
        self._begin_closing()
        self._half_close()

    # --- the end

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame, and wait for the client's."""
        if self._phase is not Phase.OPEN:
            return
        self._frames.send_close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))
        self._write_frames()
        self._drop_messages()
        self._finish_reading(code, reason)
        self._begin_closing()

    def _drop_messages(self) -> None:
        self._messages.clear()
        self._queued_bytes = 0

    def _finish_reading(self, code: int, reason: str = "") -> None:
        """Have the app read, behind the messages that wait, how the connection ended; the first reason counts."""
        if self._end is None:
            self._end = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._news.set()

    def _begin_closing(self) -> None:
        self._phase = Phase.CLOSING
        self._partial = None
        self._unread.clear()
        self._writable.set()
        self._go_on_reading()
        self._stop_timer()
        self._arm(CLOSE_SECONDS)
        if self._peer_is_done():
            self._half_close()

    def _half_close(self) -> None:
        """End our side; the other one is closed when the client has seen that, or does not care to."""
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _leave(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read what it is told; close() would wait for it
        else:
            self.transport.close()

    def _write_frames(self) -> None:
        written = self._frames.data_to_send()
        if written and not self.transport.is_closing():
            self.transport.write(b"".join(written))  # an empty piece stands for the end, see `_half_close`

    # --- the timer

    def _arm_ping(self) -> None:
        if self._limits.ping_interval is not None:
            self._arm(self._limits.ping_interval)

    def _arm(self, delay: float) -> None:
        """Have `_on_timer` called in `delay` seconds, or earlier when that was asked for before."""
        due = self._loop.time() + delay
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._phase is Phase.CLOSING:
            self._leave()
        elif self._phase is Phase.OPEN:
            delays = [delay for delay in (self._check_message(now), self._check_peer(now)) if delay is not None]
            if delays and self._phase is Phase.OPEN:
                self._arm(min(delays))

    def _check_message(self, now: float) -> float | None:
        """End the connection if a message comes too slowly; return the seconds to the next look."""
        if self._begun_at is None:
            return None
        late = self._begun_at + self._limits.message_timeout + self._begun_bytes / MIN_BODY_RATE
        if self._paused_at is not None:
            late += now - self._paused_at
        if now < late:
            return late - now
        self._fail(_POLICY, "the message did not arrive in time")
        return None

    def _check_peer(self, now: float) -> float | None:
        """Ping a silent client, and drop one that is gone; return the seconds to the next look."""
        interval, timeout = self._limits.ping_interval, self._limits.ping_timeout
        if interval is None or self._phase is not Phase.OPEN:
            return None
        if timeout is None or self._pinged_at is None:
            silent = now - self._heard_at
            if silent < interval and self._pinged_at is None:
                return interval - silent
            self._pinged_at = now
            self._frames.send_ping(b"")
            self._write_frames()
            return interval if timeout is None else timeout
        waited = now - self._pinged_at
        if self._paused_at is not None and self._writable.is_set():
            waited -= now - max(self._paused_at, self._pinged_at)  # it may have answered, and was not read
        if waited < timeout:
            return timeout - waited
        logger.info("websocket peer is gone", extra={"client": self._scope["client"]})
        self._finish_reading(_ABNORMAL)
        self.transport.abort()
        return None


def _line(name: bytes, value: bytes) -> bytes:
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError("Invalid HTTP header.")
    return name + b": " + value + b"\r\n"


def _lines(status: int, given: _Headers, default: _Headers) -> list[bytes]:
    """Return the beginning of an HTTP answer, as one piece, without what tells its length."""
    headers = [(name.lower(), value) for name, value in (*default, *given)]
    lines = [_line(name, value) for name, value in headers if name not in _OURS_ALONE]
    return [b"".join([STATUS_LINE[status], *lines])]
