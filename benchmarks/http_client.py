"""A load generator that costs little: HTTP/1.1 on bare asyncio transports, keep-alive, no client library.

`ResponseParser` is pure: bytes in, body pieces out. `Load` drives many connections, each with one request at
a time, and counts tokens by looking for `agents.MARKER` in the body, never parsing JSON. Every response is
checked (status, number of tokens, expected text); a wrong one counts as an error, never as work done.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from benchmarks.agents import MARKER

__all__ = ["Expected", "Load", "LoadError", "ProtocolError", "ResponseParser", "http_request"]

MAX_HEAD = 64 * 1024
MAX_ERRORS = 50
"""A load with more errors than this is given up: its numbers mean nothing."""


class ProtocolError(Exception):
    """The server sent something that is not the HTTP/1.1 spoken here."""


class LoadError(Exception):
    """The load could not be run to its end."""


def http_request(path: str, body: bytes, port: int, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a complete POST request."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        "accept: */*",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class ResponseParser:
    """Parse one response after another from the bytes of a connection.

    `feed` returns True when a response is complete; `reset` then makes the parser ready for the next. Body
    bytes go to `on_body` as they come, a chunk at a time for chunked bodies.
    """

    __slots__ = ("_buffer", "_in_head", "_on_body", "_remaining", "complete", "keep_alive", "status")

    _CHUNKED = -1
    _UNTIL_CLOSE = -2

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self._on_body = on_body
        self.reset()

    def reset(self) -> None:
        """Forget the last response."""
        self._buffer = b""
        self._in_head = True
        self._remaining = 0
        self.status = 0
        self.keep_alive = True
        self.complete = False

    def feed(self, data: bytes) -> bool:
        """Take bytes from the connection; return whether the response is complete.

        Raises:
            ProtocolError: malformed, or bytes beyond the end of a response nobody asked to follow.
        """
        if self.complete:
            raise ProtocolError("bytes after the end of the response")
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if self._in_head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise ProtocolError("the head of the response has no end")
                self._buffer = data
                return False
            self._parse_head(data[:end])
            data = data[end + 4 :]
            if self._in_head:  # an interim response: the real one follows
                return self.feed(data) if data else False
        if self._remaining == self._CHUNKED:
            return self._feed_chunks(data)
        if self._remaining == self._UNTIL_CLOSE:
            if data:
                self._on_body(data)
            return False
        return self._feed_length(data)

    def feed_eof(self) -> bool:
        """The connection ended; return whether that completes the response."""
        self.complete = not self._in_head and self._remaining == self._UNTIL_CLOSE
        return self.complete

    def _parse_head(self, head: bytes) -> None:
        if not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or not head[9:12].isdigit():
            raise ProtocolError(f"not an HTTP response: {head[:60]!r}")
        status = int(head[9:12])
        if 100 <= status < 200:
            return
        self.status = status
        self._in_head = False
        self._remaining = self._UNTIL_CLOSE
        self.keep_alive = head.startswith(b"HTTP/1.1")
        for line in head.lower().split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            value = value.strip()
            if name == b"content-length" and self._remaining != self._CHUNKED:
                if not value.isdigit():
                    raise ProtocolError(f"bad content-length: {value!r}")
                self._remaining = int(value)
            elif name == b"transfer-encoding" and value == b"chunked":
                self._remaining = self._CHUNKED
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
        if status in {204, 304}:
            self._remaining = 0
        elif self._remaining == self._UNTIL_CLOSE:
            self.keep_alive = False

    def _feed_length(self, data: bytes) -> bool:
        size = len(data)
        if size > self._remaining:
            raise ProtocolError("bytes after the end of the response")
        if size:
            self._on_body(data)
            self._remaining -= size
        self.complete = self._remaining == 0
        return self.complete

    def _feed_chunks(self, data: bytes) -> bool:
        position = 0
        total = len(data)
        while True:
            end = data.find(b"\r\n", position)
            if end < 0:
                break
            try:
                size = int(data[position:end].partition(b";")[0], 16)
            except ValueError as exc:
                raise ProtocolError(f"bad chunk size: {data[position:end][:20]!r}") from exc
            start = end + 2
            if size == 0:
                return self._end_chunks(data, position, start)
            stop = start + size
            if stop + 2 > total:
                break
            if data[stop : stop + 2] != b"\r\n":
                raise ProtocolError("a chunk is longer than its size")
            self._on_body(data[start:stop])
            position = stop + 2
        self._buffer = data[position:]
        return False

    def _end_chunks(self, data: bytes, position: int, start: int) -> bool:
        """After the last chunk: trailers, which are ignored, and an empty line."""
        tail = data[start:]
        if tail.startswith(b"\r\n"):
            end = start + 2
        else:
            blank = tail.find(b"\r\n\r\n")
            if blank < 0:
                if len(tail) > MAX_HEAD:
                    raise ProtocolError("the trailers of the response have no end")
                self._buffer = data[position:]
                return False
            end = start + blank + 4
        if end != len(data):
            raise ProtocolError("bytes after the end of the response")
        self.complete = True
        return True


@dataclass(frozen=True)
class Expected:
    """What a right answer holds: this many tokens, or this text."""

    tokens: int = 0
    text: bytes = b""


@dataclass
class Recorded:
    """What was seen since the window was opened; times in seconds."""

    completed: int = 0
    tokens: int = 0
    errors: int = 0
    latency: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)


class Load:
    """Keep `connections` connections busy, each with one request after another, until `stop`.

    `next_request` gives the bytes of each request. With `timing`, the arrival of each token is recorded.
    """

    def __init__(
        self, *, port: int, next_request: Callable[[], bytes], expected: Expected, timing: bool = False
    ) -> None:
        self.port = port
        self.next_request = next_request
        self.expected = expected
        self.timing = timing
        self.seen = Recorded()
        self.error_sample = ""
        self.stopping = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.started = 0
        """Streams of which at least one token has come, since the beginning."""
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    async def open(self, connections: int, *, spread: float = 0.0) -> None:
        """Connect, and send the first requests at once or spread evenly over `spread` seconds."""
        loop = asyncio.get_running_loop()
        opened = [await self._connect() for _ in range(connections)]
        for index, connection in enumerate(opened):
            if spread:
                self._timers.add(loop.call_later(spread * index / connections, connection.send_next))
            else:
                connection.send_next()

    async def _connect(self) -> "_Connection":
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), "127.0.0.1", self.port
        )
        self._connections.add(connection)
        return connection

    def open_window(self) -> None:
        """Forget what was seen so far."""
        self.seen = Recorded(errors=self.seen.errors)

    async def run_for(self, seconds: float) -> None:
        """Let the load run for `seconds`.

        Raises:
            LoadError: more than `MAX_ERRORS` wrong answers.
        """
        done, _ = await asyncio.wait({self.failed}, timeout=seconds)
        if done:
            raise LoadError(f"more than {MAX_ERRORS} errors, the last: {self.error_sample}")

    async def stop(self) -> None:
        """Send no more and close every connection, whatever it is doing."""
        self.stopping = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        self._connections.clear()

    def error(self, sample: str) -> None:
        self.seen.errors += 1
        self.error_sample = sample
        if self.seen.errors > MAX_ERRORS and not self.failed.done():
            self.failed.set_result(None)

    def lost(self, connection: "_Connection") -> None:
        """A connection ended; open another in its place."""
        self._connections.discard(connection)
        if self.stopping or self.failed.done():
            return
        task = asyncio.get_running_loop().create_task(self._replace())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self) -> None:
        while not self.failed.done():  # `error` ends this after MAX_ERRORS tries
            try:
                connection = await self._connect()
            except OSError as exc:
                self.error(f"cannot connect: {exc}")
                await asyncio.sleep(0.05)
            else:
                connection.send_next()
                return


class _Connection(asyncio.Protocol):
    """One keep-alive connection of a load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._parser = ResponseParser(self._on_timed_body if load.timing else self._on_body)
        self._busy = False
        self._tokens = 0
        self._tail = b""
        self._pieces: list[bytes] = []
        self._sent_at = 0.0
        self._last_at = 0.0
        self._now = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not asyncio's by class

    def send_next(self) -> None:
        if self._load.stopping or self._transport is None or self._transport.is_closing():
            return
        self._parser.reset()
        self._busy = True
        self._tokens = 0
        self._tail = b""
        self._pieces.clear()
        self._sent_at = time.perf_counter()
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            complete = self._parser.feed(data)
        except ProtocolError as exc:
            self._wrong(str(exc))
            return
        if complete:
            self._finished()

    def _on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._count(piece)

    def _on_timed_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        count = self._count(piece)
        if not count:
            return
        seen = self._load.seen
        if self._tokens == count:
            seen.ttft.append(self._now - self._sent_at)
            seen.gaps.extend([0.0] * (count - 1))
        else:
            seen.gaps.append(self._now - self._last_at)
            seen.gaps.extend([0.0] * (count - 1))
        self._last_at = self._now

    def _count(self, piece: bytes) -> int:
        # The marker may lie across two pieces; one byte of the last piece cannot hold a whole one.
        count = (self._tail + piece).count(MARKER)
        self._tail = piece[1 - len(MARKER) :]
        if count:
            if self._tokens == 0:
                self._load.started += 1
            self._tokens += count
            self._load.seen.tokens += count
        return count

    def _finished(self) -> None:
        load = self._load
        expected = load.expected
        self._busy = False
        if self._parser.status != 200 or self._tokens != expected.tokens or not self._holds(expected.text):
            body = b"".join(self._pieces)
            self._wrong(f"{self._parser.status}, {self._tokens} tokens, {body[-300:]!r}")
            return
        load.seen.completed += 1
        load.seen.latency.append(self._now - self._sent_at)
        if load.timing:
            load.seen.totals.append(self._last_at - self._sent_at)
        if self._parser.keep_alive:
            self.send_next()
        elif self._transport is not None:
            self._transport.abort()

    def _holds(self, text: bytes) -> bool:
        return not text or text in (self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))

    def _wrong(self, sample: str) -> None:
        self._busy = False
        if not self._load.stopping:
            self._load.error(sample)
        self.abort()

    def abort(self) -> None:
        self._busy = False
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = time.perf_counter()
        if self._busy:
            if self._parser.feed_eof():
                self._finished()
            elif not self._load.stopping:
                self._load.error(f"connection lost in the middle of a response: {exc}")
        self._load.lost(self)
