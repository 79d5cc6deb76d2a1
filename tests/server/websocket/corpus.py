"""What comes behind the handshake, as bytes: hostile, broken, unusual and ordinary frames, and what must come of them.

Every case is played against a real server over a socket, and against the protocol alone in pieces of every size. The
limits are `LIMITS`; the app gives each message back.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from agentrun_server.server.websocket.head import WebSocketLimits
from tests.support.websocket import BINARY, CLOSE, PING, PONG, close_frame, frame

__all__ = ["CASES", "LIMITS", "Case"]

LIMITS = WebSocketLimits(max_message_bytes=100_000, message_timeout=5, ping_interval=60, ping_timeout=5)
CONTINUATION = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One connection."""

    name: str
    data: bytes
    echoes: tuple[bytes, ...] = ()
    """Messages that come back, in this order."""
    pongs: tuple[bytes, ...] = ()
    code: int | None = None
    """Of the close frame that ends the connection; None: it goes on."""


def _fails(code: int, **cases: bytes) -> Iterator[Case]:
    for name, data in cases.items():
        yield Case(name=name.replace("_", " "), data=data, code=code)


def _ordinary() -> Iterator[Case]:
    long = b"x" * 70_000
    yield Case(name="text", data=frame(b"hello"), echoes=(b"hello",))
    yield Case(name="binary", data=frame(b"\x00\xff", BINARY), echoes=(b"\x00\xff",))
    yield Case(name="empty", data=frame(b""), echoes=(b"",))
    yield Case(name="126 bytes", data=frame(b"x" * 126), echoes=(b"x" * 126,))
    yield Case(name="long", data=frame(long), echoes=(long,))
    yield Case(name="as long as may be", data=frame(b"x" * 100_000), echoes=(b"x" * 100_000,))
    yield Case(name="many", data=frame(b"x") * 100, echoes=(b"x",) * 100)
    yield Case(
        name="fragments",
        data=frame(b"he", fin=False) + frame(b"ll", CONTINUATION, fin=False) + frame(b"o", CONTINUATION),
        echoes=(b"hello",),
    )
    yield Case(
        name="fragments within a character",
        data=frame(b"\xc3", fin=False) + frame(b"\xa4", CONTINUATION),
        echoes=(b"\xc3\xa4",),
    )
    yield Case(
        name="empty fragments",
        data=frame(b"", fin=False) + frame(b"", CONTINUATION, fin=False) * 3000 + frame(b"x", CONTINUATION),
        echoes=(b"x",),
    )
    yield Case(name="ping", data=frame(b"hi", PING), pongs=(b"hi",))
    yield Case(name="longest ping", data=frame(b"x" * 125, PING), pongs=(b"x" * 125,))
    yield Case(name="many pings", data=frame(b"", PING) * 1000, pongs=(b"",) * 1000)
    yield Case(name="pong that nobody asked for", data=frame(b"hi", PONG))
    yield Case(
        name="ping within a message",
        data=frame(b"a", fin=False) + frame(b"hi", PING) + frame(b"b", CONTINUATION),
        echoes=(b"ab",),
        pongs=(b"hi",),
    )
    # RFC 6455 wants the shortest form; what is longer is read all the same.
    yield Case(name="a length longer than need be", data=b"\x81\xfe\x00\x05\x00\x00\x00\x00hello", echoes=(b"hello",))


def _closes() -> Iterator[Case]:
    yield Case(name="close", data=close_frame(1000), code=1000)
    yield Case(name="close with a reason", data=close_frame(1001, b"bye"), code=1001)
    yield Case(name="close with a code of one's own", data=close_frame(4000), code=4000)
    yield Case(name="frames behind a close", data=close_frame() + frame(b"x") * 10, code=1000)
    yield Case(name="garbage behind a close", data=close_frame() + b"\xff" * 1000, code=1000)
    yield from _fails(
        1002,
        close_of_one_byte=frame(b"\x03", CLOSE),
        close_with_a_code_that_is_never_sent=close_frame(1005),
        close_with_a_code_that_is_none=close_frame(999),
        close_with_code_0=close_frame(0),
        close_within_a_message=frame(b"a", fin=False) + close_frame(),
        close_too_long=frame(b"\x03\xe8" + b"x" * 124, CLOSE),
    )
    yield from _fails(1007, close_with_a_reason_that_is_no_text=close_frame(1000, b"\xff\xfe"))


def _broken() -> Iterator[Case]:
    yield from _fails(
        1002,
        not_masked=frame(b"hello", masked=False),
        not_masked_ping=frame(b"", PING, masked=False),
        not_masked_and_huge=frame(b"", masked=False, length=2**62),
        first_reserved_bit=frame(b"x", rsv=4),
        second_reserved_bit=frame(b"x", rsv=2),
        all_reserved_bits=frame(b"x", rsv=7),
        compressed_ping=frame(b"x", PING, rsv=4),
        opcode_3=frame(b"x", 3),
        opcode_7=frame(b"x", 7),
        opcode_11=frame(b"x", 11),
        opcode_15=frame(b"x", 15),
        ping_too_long=frame(b"x" * 126, PING),
        pong_too_long=frame(b"x" * 126, PONG),
        ping_in_fragments=frame(b"x", PING, fin=False),
        continuation_of_nothing=frame(b"x", CONTINUATION),
        continuation_behind_a_whole_message=frame(b"", CONTINUATION, fin=False),
        text_within_a_message=frame(b"a", fin=False) + frame(b"b"),
        bytes_within_a_text=frame(b"a", fin=False) + frame(b"b", BINARY),
        an_http_request=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        zeros=b"\x00" * 1000,
    )
    yield from _fails(
        1007,
        text_that_is_no_utf_8=frame(b"\xff\xfe\xfd"),
        text_that_ends_within_a_character=frame(b"abc\xc3"),
        text_with_half_a_surrogate=frame(b"\xed\xa0\x80"),
        text_with_an_overlong_form=frame(b"\xc0\xaf"),
        text_beyond_unicode=frame(b"\xf4\x90\x80\x80"),
        fragments_that_are_no_utf_8=frame(b"a", fin=False) + frame(b"\xff", CONTINUATION),
    )


def _too_large() -> Iterator[Case]:
    part = frame(b"x" * 40_000, CONTINUATION, fin=False)
    yield from _fails(
        1009,
        one_byte_too_long=frame(b"x" * 100_001),
        huge=frame(b"", length=2**40),
        longest_that_can_be_told=frame(b"", length=2**63 - 1),
        length_with_the_highest_bit=frame(b"", length=2**64 - 1),
        huge_ping=frame(b"", PING, length=2**40),
        fragments_without_end=frame(b"x" * 40_000, fin=False) + part * 10,
        fragments_that_are_one_byte_too_long=frame(b"x" * 99_999, fin=False) + frame(b"xx", CONTINUATION),
    )


CASES: tuple[Case, ...] = (*_ordinary(), *_closes(), *_broken(), *_too_large())
