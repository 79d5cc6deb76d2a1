"""One request and its response on a connection, with fewer and cheaper writes than uvicorn's.

uvicorn writes the head of an answer and its body separately: two system calls, which for a short answer cost as much as
everything else. Here the head waits for the first piece of the body, or for the next turn of the event loop when none
comes at once. Header lines that are always the same are checked and put together once.

The ASGI side is uvicorn's to the letter: the same order of messages, the same errors.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from agentrun_server.server.exchange import BODY_FOLLOWS

__all__ = ["Cycle"]

_REPEATED = frozenset(
    {
        b"cache-control",
        b"content-type",
        b"date",
        b"openai-processing-ms",
        b"openai-version",
        b"server",
        b"vary",
        b"x-accel-buffering",
    }
)
"""Headers whose values come again and again; their lines are kept. None of them frames the answer."""
_MAX_LINES = 256
_lines: dict[tuple[bytes, bytes], bytes] = {}


def _header_line(header: tuple[bytes, bytes]) -> bytes:
    """Return the line of a header on the wire.

    Raises:
        RuntimeError: name or value has characters that would end the line, as uvicorn raises it.
    """
    name, value = header
    if HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    if HEADER_VALUE_RE.search(value):
        raise RuntimeError("Invalid HTTP header value.")
    name = name.lower()
    line = name + b": " + value + b"\r\n"
    if name in _REPEATED:
        if len(_lines) >= _MAX_LINES:
            _lines.clear()
        _lines[header] = line
    return line


class Cycle(RequestResponseCycle):
    """uvicorn's cycle with a `send` of its own."""

    _head: bytes | None = None
    """The head of the answer, until it is written."""
    _streams = False
    """Head and first piece of an answer of many pieces are written, and the last is not."""

    async def send(self, message: ASGISendEvent) -> None:
        """Take an ASGI message; see the ASGI specification, HTTP, for their order.

        Raises:
            RuntimeError: the app sends what may not be sent now.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        event: Any = message
        kind = event["type"]
        if (
            self._streams
            and kind == "http.response.body"
            and event.get("more_body")
            and self.push(event.get("body", b""))
        ):
            return
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self._start(event["status"], event.get("headers", ()), body_follows=BODY_FOLLOWS in event)
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._body(event.get("body", b""), event.get("more_body", False))

    def push(self, body: bytes) -> bool:
        """Write a piece of a stream, as `send` would, if that needs no waiting; tell whether it was written."""
        if not self._streams or self.flow.write_paused or self.disconnected or not body:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write a whole answer, as two messages to `send` would, if that needs no waiting; tell whether it was written.

        Args:
            status: has a body.
            lines: header lines as they go on the wire, ``content-length`` among them; none is about the connection.
            body: as long as the lines say.
        """
        if self.response_started or self.flow.write_paused or self.disconnected or self.scope["method"] == "HEAD":
            return False
        self.waiting_for_100_continue = False
        head = STATUS_LINE[status]
        for header in self.default_headers:
            head += _lines.get(header) or _header_line(header)
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        self.response_started = True
        if self.access_log:
            self._log(status)
        self.transport.write(b"%b%b\r\n%b" % (head, lines, body))
        self._complete()
        return True

    def _start(self, status: int, given: Iterable[tuple[bytes, bytes]], *, body_follows: bool) -> None:
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        has_close = False
        for header in (*self.default_headers, *given):
            line = _lines.get(header)
            if line is None:
                line = _header_line(header)
                if line.startswith((b"content-length:", b"transfer-encoding:", b"connection:")):
                    has_close = self._frame(header[0].lower(), header[1]) or has_close
            lines.append(line)
        if not self.keep_alive and not has_close:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self.response_started = True
        if self.access_log:
            self._log(status)
        self._head = b"".join(lines)
        if not body_follows:
            asyncio.get_running_loop().call_soon(self._write_head)

    def _frame(self, name: bytes, value: bytes) -> bool:
        """Take note of a header that frames the answer; return whether it says that the connection closes."""
        if name == b"content-length":
            if self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
        elif name == b"transfer-encoding":
            if value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
        elif b"close" in [token.strip() for token in value.lower().split(b",")]:
            self.keep_alive = False
            return True
        return False

    def _write_head(self) -> None:
        """Write the head by itself: no body came in the same turn of the event loop."""
        head, self._head = self._head, None
        if head is not None and not self.disconnected:
            self.transport.write(head)

    def _body(self, body: bytes, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            data = b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more_body:
                data += b"0\r\n\r\n"
        else:
            if len(body) > self.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            self.expected_content_length -= len(body)
            data = body
        head, self._head = self._head, None
        if head is not None:
            data = head + data
        if data:
            self.transport.write(data)
        if more_body:
            self._streams = bool(self.chunked_encoding) and self.scope["method"] != "HEAD"
        else:
            if self.expected_content_length != 0:
                raise RuntimeError("Response content shorter than Content-Length")
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._streams = False
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _log(self, status: int) -> None:
        self.access_logger.info(
            '%s - "%s %s HTTP/%s" %d',
            get_client_addr(self.scope),
            self.scope["method"],
            get_path_with_query_string(self.scope),
            self.scope["http_version"],
            status,
        )
