"""A WebSocket client of single frames: it sends what no library would, and takes nothing on trust that comes back."""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tests.support.clock import within
from tests.support.raw_client import RawClient, Response, request_bytes

__all__ = [
    "ACCEPT",
    "BINARY",
    "CLOSE",
    "KEY",
    "PING",
    "PONG",
    "RESPONSES",
    "TEXT",
    "Frame",
    "WebSocket",
    "close_frame",
    "frame",
    "handshake",
    "read_frames",
]

RESPONSES = "/v1/responses"
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

Headers = Iterable[tuple[str, str]]

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of the server."""

    opcode: int
    data: bytes

    @property
    def code(self) -> int:
        """Of a close frame."""
        assert self.opcode == CLOSE, self
        code: int = struct.unpack("!H", self.data[:2])[0]
        return code


def handshake(path: str = RESPONSES, headers: Headers = (), replaced: Mapping[str, str] = _NOTHING) -> bytes:
    """Return an opening handshake; `replaced` has other values for headers that it has."""
    given = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
        **replaced,
    }
    return request_bytes("GET", path, headers=[*given.items(), *headers])


def frame(
    data: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Return a frame as a client sends it; `length` is what it says of its length."""
    size = len(data) if length is None else length
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not masked:
        return head + data
    mask = os.urandom(4)
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    plain = int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + plain.to_bytes(len(data), "big")


def close_frame(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(b"" if code is None else struct.pack("!H", code) + reason, CLOSE)


def read_frames(data: bytearray) -> list[Frame]:
    """Take all whole frames from the beginning of `data`; they must be what a server may send here."""
    frames = []
    while len(data) >= 2:
        first, second = data[0], data[1]
        assert first & 0xF0 == 0x80, "a fragment, or a reserved bit"
        assert not second & 0x80, "a server masks nothing"
        size, at = second & 0x7F, 2
        if size >= 126:
            at += 2 if size == 126 else 8
            if len(data) < at:
                break
            size = int.from_bytes(data[2:at], "big")
        if len(data) < at + size:
            break
        frames.append(Frame(first & 0x0F, bytes(data[at : at + size])))
        del data[: at + size]
    return frames


class WebSocket:
    """A WebSocket over `client`, which is connected."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self._unread = bytearray()
        self._frames: list[Frame] = []

    async def open(self, path: str = RESPONSES, headers: Headers = ()) -> Response:
        """Shake hands; return the answer, which must be a yes."""
        answer = await self.ask(path, headers)
        assert answer.status == 101, answer
        assert answer.header("sec-websocket-accept") == ACCEPT
        assert answer.header("sec-websocket-extensions") is None
        return answer

    async def ask(
        self, path: str = RESPONSES, headers: Headers = (), replaced: Mapping[str, str] = _NOTHING
    ) -> Response:
        """Ask for a WebSocket; return the answer, whatever it is."""
        await self.client.send(handshake(path, headers, replaced))
        head = await self.client.head()
        length = int(head.header("content-length") or 0)
        return Response(head.status, head.headers, await self.client._exactly(length))

    async def send(self, message: Any) -> None:
        """Send a message: an object as JSON, text or bytes."""
        if isinstance(message, bytes):
            await self.client.send(frame(message, BINARY))
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            await self.client.send(frame(text.encode()))

    async def create(self, text: Any = "hello", **fields: Any) -> None:
        """Ask for a response."""
        await self.send({"type": "response.create", "model": "m", "input": text, **fields})

    async def frame(self) -> Frame:
        """Return the next frame that is no ping."""
        while True:
            while not self._frames:
                data = self.client._take(len(self.client._read)) or await self.client.receive()
                assert data, f"the connection ended; unread: {bytes(self._unread)!r}"
                self._unread += data
                self._frames += read_frames(self._unread)
            found = self._frames.pop(0)
            if found.opcode != PING:
                return found

    async def event(self) -> dict[str, Any]:
        """Return the next message, decoded."""
        found = await self.frame()
        assert found.opcode == TEXT, found
        event: dict[str, Any] = json.loads(found.data)
        return event

    async def until_end(self) -> list[dict[str, Any]]:
        """Return the events up to the end of a response."""
        events = [await self.event()]
        while events[-1]["type"] not in ("response.completed", "response.failed", "response.incomplete", "error"):
            events.append(await self.event())
        return events

    async def turn(self, text: Any = "hello", **fields: Any) -> dict[str, Any]:
        """Ask for a response and wait for it; return its last event."""
        await self.create(text, **fields)
        return (await self.until_end())[-1]

    async def closed(self) -> int:
        """Expect a close frame, answer it, and expect the end of the connection; return the code."""
        found = await self.frame()
        await self.client.send(frame(found.data, CLOSE))
        await within(self.client.ended())
        return found.code
