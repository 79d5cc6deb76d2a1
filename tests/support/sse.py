"""An independent parser of the event-stream format, as WHATWG HTML §9.2 says it. Imports nothing of the
project.

Where a browser would be lenient, this one is strict: bytes that are not UTF-8 and an event without its
closing blank line are errors. What a browser would ignore (unknown fields, an id with NUL, a retry that is no
number) it ignores too, but keeps the lines of every block, so that a caller can object to them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Event", "EventStreamError", "SSEParser", "parse_events"]

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventStreamError(AssertionError):
    """The bytes are not an event stream."""


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event.

    Attributes:
        event: its type; ``message`` when the stream named none.
        data: the data lines, joined by newlines.
        id: the last event id the stream has set so far.
        retry: the reconnection time this block has set, in milliseconds.
        comments: the comments since the event before it, without the colon.
        lines: the lines of its block as they came, comments included.
    """

    event: str
    data: str
    id: str = ""
    retry: int | None = None
    comments: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


class SSEParser:
    """Parses a stream piece by piece, wherever it is cut.

    Attributes:
        comments: every comment so far, also those after the last event.
        retry: the last reconnection time the stream has set.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.retry: int | None = None
        self._buffer = b""
        self._at_start = True
        self._last_id = ""
        self._new_comments: list[str] = []
        self._retry: int | None = None
        self._reset()

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes."""
        self._buffer += data
        return self._events(final=False) if self._past_byte_order_mark() else []

    def close(self) -> list[Event]:
        """Return what the end of the stream completes; raise when it ends in the middle of an event."""
        events = self._events(final=True)
        if self._buffer:
            raise EventStreamError(f"the stream ends in the middle of a line: {self._buffer[-80:]!r}")
        if any(not line.startswith(":") for line in self._lines):
            raise EventStreamError(f"the stream ends without the blank line after: {self._lines!r}")
        return events

    def _events(self, *, final: bool) -> list[Event]:
        events = []
        start = 0
        for end in _LINE_END.finditer(self._buffer):
            if end[0] == b"\r" and end.end() == len(self._buffer) and not final:
                break  # a LF may follow and belong to it
            event = self._take(_decoded(self._buffer[start : end.start()]))
            start = end.end()
            if event is not None:
                events.append(event)
        self._buffer = self._buffer[start:]
        return events

    def _past_byte_order_mark(self) -> bool:
        if not self._at_start:
            return True
        mark = b"\xef\xbb\xbf"
        if len(self._buffer) < 3 and mark.startswith(self._buffer):
            return False  # it may still become one
        self._at_start = False
        self._buffer = self._buffer.removeprefix(mark)
        return True

    def _take(self, line: str) -> Event | None:
        if line == "":
            return self._dispatch()
        self._lines.append(line)
        if line.startswith(":"):
            self.comments.append(line[1:])
            self._new_comments.append(line[1:])
            return None
        name, _, value = line.partition(":")
        self._set(name, value.removeprefix(" "))
        return None

    def _set(self, name: str, value: str) -> None:
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self._retry = self.retry = int(value)
            case _:
                pass

    def _dispatch(self) -> Event | None:
        event = None
        if self._data:
            event = Event(
                event=self._type or "message",
                data="\n".join(self._data),
                id=self._last_id,
                retry=self._retry,
                comments=tuple(self._new_comments),
                lines=tuple(self._lines),
            )
            self._new_comments = []
        self._reset()
        return event

    def _reset(self) -> None:
        self._type = ""
        self._data: list[str] = []
        self._retry = None
        self._lines: list[str] = []


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventStreamError(f"the line is not UTF-8: {line[:80]!r}") from error


def parse_events(body: bytes | Iterable[bytes]) -> list[Event]:
    """Return the events of a whole stream, given as bytes or as the pieces in which it came."""
    parser = SSEParser()
    events = []
    for piece in [body] if isinstance(body, bytes) else body:
        events += parser.feed(piece)
    return events + parser.close()
