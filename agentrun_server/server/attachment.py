"""A run that answers an HTTP request: its connection, its time limits, and how it is stopped.

The agent runs in the request's own task. A second task, `_watch`, waits for the client to leave; it is started when
the agent first has to wait, so that an agent that answers at once costs nothing more. `Sweeper` looks at every
attachment now and then (`check`): heartbeats, time limits, slow readers need no timers of their own.

How a run is stopped, and when it is given up, is in `agentrun_server.runs.execution`.
"""

import asyncio
import time
from collections.abc import Callable

from agentrun_server.config import MIN_BODY_RATE, ServerConfig
from agentrun_server.errors import APIError, PayloadTooLargeError, RequestTimeoutError
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.json_text import dumps
from agentrun_server.runs.execution import Execution, last_words
from agentrun_server.runs.run import StopReason
from agentrun_server.server.asgi import Message, Receive, Scope, Send
from agentrun_server.server.exchange import BODY_FOLLOWS, EXCHANGE, Exchange, answer

__all__ = ["Attachment", "ClientLeftError"]

logger = get_logger("agentrun_server.run")

HEARTBEAT = b": keep-alive\n\n"
"""A comment. Named or empty events break clients; see docs/architecture.md."""

_STREAM_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_SLICE = 64 * 1024
_LAST_WORDS_TIMEOUT = 1.0


class ClientLeftError(Exception):
    """The client closed its connection before its request was complete."""


class Attachment(Execution):
    """Binds one request, its run and its connection together. `encode_error` writes an error into a started stream."""

    __slots__ = (
        "_beat", "_is_direct", "_push_direct", "_receive", "_send", "_watcher", "blocked_since", "body_received",
        "body_started", "disconnected", "encode_error", "exchange", "finished", "is_watched", "started",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, config: ServerConfig) -> None:
        self.exchange: Exchange = scope[EXCHANGE]
        super().__init__(config, self.exchange.request_id)
        self._send = send
        self._receive = receive
        self._is_direct = send == self.exchange.send
        """Nothing stands in between that wants to see the messages."""
        self._push_direct: Callable[[bytes], bool] | None = None
        self.encode_error: Callable[[APIError], str] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.is_watched = False
        self._beat: asyncio.Task[None] | None = None
        self.body_started = 0.0
        """When reading the body began; 0 while it is not read."""
        self.body_received = 0
        self.blocked_since = 0.0
        """Since when a write has been waiting for the client to read; 0 while none is."""
        self.started = False
        """The head of the answer has been sent: its status cannot change any more."""
        self.finished = False
        """The last byte has been sent, or nothing more will be."""
        self.disconnected = False

    # --- the request

    async def read_body(self) -> bytes:
        """Read the request's body.

        Raises:
            APIError: it is too long or too slow (413, 408).
            ClientLeftError: there is nobody to answer.
        """
        limit = self._config.max_body_bytes
        self.body_started = time.monotonic()
        chunks: list[bytes] = []
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self.disconnected = True
                    raise ClientLeftError
                chunk: bytes = message.get("body", b"")
                self.body_received += len(chunk)
                if self.body_received > limit:
                    raise PayloadTooLargeError(f"The request body is longer than {limit} bytes.")
                if not message.get("more_body", False):
                    return chunk if not chunks else b"".join([*chunks, chunk])
                chunks.append(chunk)
        finally:
            self.body_started = 0.0

    # --- the answer

    def push(self, text: str, now: float) -> bool:
        """Send whole events if that needs no waiting; tell whether they were sent. What a token costs is here."""
        push = self._push_direct
        if push is None or self._beat is not None or self.finished or not push(text.encode()):
            return False
        self.last_write = now
        return True

    async def write(self, text: str) -> None:
        """Send whole events. Waits while the client does not read; does nothing when it has left."""
        await self.send(text.encode())

    async def _send_part(self, body: bytes, now: float, *, more: bool = True) -> None:
        """Send a part of the stream, and before the first the head."""
        self.blocked_since = now
        try:
            if not self.started:
                self.started = True
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": _STREAM_HEAD, BODY_FOLLOWS: True}
                )
                if self._is_direct:
                    self._push_direct = self.exchange.find_push()
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:
            self.disconnected = True  # how servers other than uvicorn tell it
        finally:
            self.blocked_since = 0.0

    async def send(self, body: bytes) -> None:
        """Send whole events, as `write` does."""
        if self._beat is not None:
            await asyncio.wait([self._beat])
        if not self.finished and not self.disconnected:
            self.last_write = time.monotonic()
            await self._send_part(body, self.last_write)

    async def finish(self, text: str) -> None:
        """Send the last events of a stream, and its end."""
        if self._beat is not None:
            await asyncio.wait([self._beat])
        await self._end(text.encode())

    async def fail(self, error: APIError) -> None:
        """Tell the caller that there is no (whole) answer: by status while that is possible, else in the stream."""
        if self._beat is not None and self._beat is not asyncio.current_task():
            await asyncio.wait([self._beat])
        if self.finished:
            return
        self.exchange.note({"error": error.code})
        if self.started:
            assert self.encode_error is not None, "a stream was started without an encoder"
            await self._end(self.encode_error(error).encode())
        else:
            await self.answer(error.status_code, dumps(error.body()).encode(), error.headers)

    async def answer(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Send a whole answer that is no stream."""
        if self._beat is not None and self._beat is not asyncio.current_task():
            await asyncio.wait([self._beat])
        if self.finished or self.disconnected:
            return
        self.started = self.finished = True
        if self._is_direct and not headers and len(body) <= _SLICE and self.exchange.answer(status, body):
            return
        self.blocked_since = time.monotonic()
        try:
            await answer(self._send if len(body) <= _SLICE else self._send_in_slices, status, body, headers)
        except OSError:
            self.disconnected = True
        finally:
            self.blocked_since = 0.0

    async def _send_in_slices(self, message: Message) -> None:
        """Send a large answer bit by bit: handed over at once it would lie in memory until the client cared to read."""
        body: bytes = message.get("body", b"")
        for start in range(0, len(body), _SLICE):
            piece = body[start : start + _SLICE]
            self.blocked_since = time.monotonic()
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.blocked_since = time.monotonic()
        await self._send({**message, "body": b""} if body else message)

    async def _end(self, body: bytes) -> None:
        if not self.finished:
            self.finished = True
            if not self.disconnected:
                await self._send_part(body, time.monotonic(), more=False)

    # --- the client

    def watch(self) -> None:
        """Watch for the client to leave, from now on."""
        if not self.is_watched:
            self.is_watched = True
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def before_wait(self) -> None:
        """Watch the client while the agent waits; see `agentrun_server.runs.drive`."""
        if not self.is_watched:
            self.watch()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.finished:
            return
        self.disconnected = True
        self.exchange.client_left()
        if self._config.on_disconnect == "cancel":
            self.stop(StopReason.DISCONNECTED)

    # --- the end

    def cancel_request(self) -> None:
        """Tell the agent that its answer is not wanted any more, if it is this request's."""
        if not self.reads_log:
            super().cancel_request()

    def _is_over(self, reason: StopReason) -> bool:
        return self.finished and reason is not StopReason.DISCONNECTED

    def _stopped(self, reason: StopReason) -> None:
        words = last_words(reason)
        if words is not None and self._beat is None:
            self._beat = asyncio.get_running_loop().create_task(self.fail(words))

    def check(self, now: float) -> None:
        """Look after the run: called by the sweeper every so often with the time."""
        config = self._config
        if self.stopped_at:
            super().check(now)
        elif self.body_started:
            if now - self.body_started > config.body_timeout + self.body_received / MIN_BODY_RATE:
                self._refuse_body()
        elif (
            self.blocked_since and config.write_timeout is not None and now - self.blocked_since > config.write_timeout
        ):
            self._drop_slow_reader(config)
        elif self.run_started and not self.finished and self._check_limits(now):
            self._check_silence(now, config)

    def _check_limits(self, now: float) -> bool:
        return self.reads_log or super()._check_limits(now)

    def _check_silence(self, now: float, config: ServerConfig) -> None:
        if self.encode_error is None or self.disconnected or self.blocked_since:
            return  # not a stream, or nobody listens
        if self.started:
            interval = config.heartbeat_interval
            if interval is not None and now - self.last_write >= interval:
                self._send_heartbeat(now)
        elif now - self.run_started > config.response_hold:
            self._send_heartbeat(now)

    def _send_heartbeat(self, now: float) -> None:
        if self._beat is None:
            self.last_write = now
            self._beat = asyncio.get_running_loop().create_task(self._heartbeat())

    async def _heartbeat(self) -> None:
        try:
            await self._send_part(HEARTBEAT, time.monotonic())
        finally:
            self._beat = None

    def _drop_slow_reader(self, config: ServerConfig) -> None:
        logger.warning("client reads nothing", extra={"request_id": self.exchange.request_id})
        aborted = self._abort_connection()
        if aborted and config.on_disconnect == "continue":
            self.disconnected = True
            return
        self.finished = True
        self.stop(StopReason.DISCONNECTED)
        self.run.stop_reason = StopReason.SLOW_READER

    def _refuse_body(self) -> None:
        self.body_started = 0.0
        self.run.stop_reason = StopReason.DISCONNECTED
        self.stopped_at = time.monotonic()
        self._beat = asyncio.get_running_loop().create_task(
            self.fail(RequestTimeoutError("The request body did not arrive in time."))
        )
        if self.task is not None:
            self.task.cancel()

    def _abandoned(self) -> None:
        if not self.finished:
            self.finished = True
            self._abort_connection()

    def _abort_connection(self) -> bool:
        """Drop the connection at once; closing it in good order would wait for the client to read.

        Return whether that was possible: a send that was wrapped hides the connection.
        """
        abort = self.exchange.find_abort()
        if not callable(abort):
            return False
        abort()
        return True

    async def detach(self) -> None:
        """End everything this attachment started: called last, whatever happened."""
        self.task = None  # nothing to look after any more
        self.run_started = self.stopped_at = 0.0
        self.release()
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not watcher.done():
            watcher.cancel()
        beat = self._beat
        if beat is not None and not beat.done():
            # What the caller is told may still be on its way; for long only to a client that reads nothing.
            await asyncio.wait([beat], timeout=_LAST_WORDS_TIMEOUT)
            if not beat.done():
                beat.cancel()
                self._abort_connection()
        self.finished = True
