"""An HTTP client of single bytes: it reads what was sent as it was sent, and leaves whenever the test wants it to.

It talks through a bare socket, so that a test can be a client that half-closes, resets, reads slowly or not at all,
or sends half a request. It understands just enough of HTTP/1.1 to tell one answer from the next.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.support.clock import within

__all__ = ["CHAT", "RawClient", "Response", "chat_body"]

CHAT = "/v1/chat/completions"

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: names of headers are in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the value of a header that comes at most once."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} comes {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """Return OpenAI's error object; fail when the body is anything else."""
        assert self.header("content-type") == "application/json", self
        body = self.json()
        assert list(body) == ["error"], self
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, self
        return error


def chat_body(*, stream: bool = True, text: str = "hello", **fields: Any) -> bytes:
    """Return the body of a Chat Completions request."""
    body: Mapping[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    return json.dumps({**body, **fields}).encode()


class RawClient:
    """One connection. ``async with`` opens and closes it."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self._address = ("127.0.0.1", port)
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer is not None:  # before the connection is made: it decides the window
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._read = bytearray()
        self._events = bytearray()
        self._chunked = False
        self.answer: Response | None = None
        """The head of the last answer that `event` or `head` has read."""

    async def __aenter__(self) -> Self:
        try:
            await within(asyncio.get_running_loop().sock_connect(self._socket, self._address))
        except BaseException:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._socket.close()

    # --- sending

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await within(asyncio.get_running_loop().sock_sendall(self._socket, data))

    async def request(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> None:
        """Send a whole request."""
        await self.send(request_bytes(method, path, body, headers))

    async def chat(self, *, stream: bool = True, path: str = CHAT, headers: Headers = (), **fields: Any) -> None:
        """Send a Chat Completions request."""
        await self.request("POST", path, chat_body(stream=stream, **fields), headers)

    # --- reading

    async def receive(self, limit: float | None = None) -> bytes:
        """Return what comes next, empty at the end of the connection."""
        receiving = asyncio.get_running_loop().sock_recv(self._socket, 65536)
        return await (within(receiving) if limit is None else within(receiving, limit))

    async def _more(self) -> None:
        data = await self.receive()
        assert data, f"the connection ended; unread: {bytes(self._read)!r}"
        self._read += data

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            await self._more()
        end = self._read.index(mark) + len(mark)
        return self._take(end)

    async def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            await self._more()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    async def head(self) -> Response:
        """Read the head of an answer."""
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 "), lines[0]
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        self._chunked = ("transfer-encoding", "chunked") in headers
        self.answer = Response(int(lines[0].split()[1]), headers)
        return self.answer

    async def response(self, *, head_only: bool = False) -> Response:
        """Read a whole answer; `head_only` after a HEAD request."""
        head = await self.head()
        if head_only or head.status in (204, 304):
            return head
        if self._chunked:
            chunks = [chunk async for chunk in self.chunks()]
            return Response(head.status, head.headers, b"".join(chunks))
        length = head.header("content-length")
        assert length is not None, head
        return Response(head.status, head.headers, await self._exactly(int(length)))

    async def chunk(self) -> bytes:
        """Read one chunk of a body: what the server wrote at a time. Empty at the end of the body."""
        size = int((await self._until(b"\r\n"))[:-2], 16)
        return (await self._exactly(size + 2))[:-2]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Read the rest of a body, chunk by chunk."""
        while chunk := await self.chunk():
            yield chunk

    async def event(self) -> str:
        """Read the next block of an event stream: a comment (begins with a colon) or the data of an event.

        The head of the answer is read first, when it has not been yet.
        """
        if self.answer is None:
            await self.head()
        while b"\n\n" not in self._events:
            chunk = await self.chunk()
            assert chunk, f"the stream ended; unread: {bytes(self._events)!r}"
            self._events += chunk
        end = self._events.index(b"\n\n")
        block = self._events[:end].decode()
        del self._events[: end + 2]
        return block.removeprefix("data: ")

    async def piece(self) -> str:
        """Read on to the next piece of answer text."""
        while True:
            block = await self.event()
            if block.startswith("{"):
                choices = json.loads(block).get("choices") or [{"delta": {}}]
                text: str | None = choices[0]["delta"].get("content")
                if text:
                    return text

    async def rest(self) -> list[Any]:
        """Read the events up to the end of the stream: objects, decoded, and ``[DONE]``; no comments."""
        if self.answer is None:
            await self.head()
        found = bytes(self._events)
        self._events.clear()
        async for chunk in self.chunks():
            found += chunk
        assert found.endswith(b"\n\n") or not found, found[-80:]
        blocks = [block.removeprefix("data: ") for block in found.decode().split("\n\n")[:-1]]
        return [json.loads(block) if block.startswith("{") else block for block in blocks if not block.startswith(":")]

    async def ended(self, limit: float | None = None) -> bytes:
        """Read to the end of the connection; return what was left. A reset is an end too."""
        left = bytes(self._read)
        self._read.clear()
        try:
            while data := await self.receive(limit):
                left += data
        except ConnectionResetError:
            pass
        return left

    # --- leaving

    def fin(self) -> None:
        """Leave in good order: nothing more will come from here."""
        self._socket.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Leave as a killed process does: with a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def leave(self, how: str) -> None:
        """Leave by ``fin`` or ``rst``."""
        {"fin": self.fin, "rst": self.rst}[how]()


def request_bytes(method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    given = {name for name, _ in headers}
    if body is not None:
        if "content-type" not in given:
            lines.append("content-type: application/json")
        if "content-length" not in given and "transfer-encoding" not in given:
            lines.append(f"content-length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
