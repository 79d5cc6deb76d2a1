"""Requests as bytes: hostile, broken, unusual and, for control, ordinary ones, each with the answers it must get.

Every case is played against a real server over a socket, and against the protocol alone in pieces of every size. The
limits are `LIMITS`. A case that ends with an error of the server must be closed by it; one that ends with an answer of
the app must leave the connection usable unless `closes` says otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from agentrun_server.server.http.protocol import HttpLimits
from agentrun_server.server.websocket.head import WebSockets

__all__ = ["CASES", "LIMITS", "WEBSOCKETS", "Case"]

LIMITS = HttpLimits(
    max_header_bytes=64 * 1024, max_header_count=200, header_timeout=5, max_body_bytes=1024 * 1024, body_timeout=5
)

WEBSOCKETS = WebSockets(frozenset({"/socket", "/socket/"}))

OK = frozenset({200})
BAD = frozenset({400})
TOO_LARGE = frozenset({413})
TARGET_TOO_LONG = frozenset({414})
HEAD_TOO_LARGE = frozenset({431})
NO_METHOD = frozenset({405})
NO_CODING = frozenset({501})
NO_VERSION = frozenset({505})
NO_WEBSOCKET_VERSION = frozenset({426})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One connection: what is sent, and the statuses which must come back in this order."""

    name: str
    data: bytes
    answers: tuple[frozenset[int], ...]
    closes: bool = False
    """The server must close after the last answer although it is the app's."""
    half_close: bool = False
    """The client ends its side after `data`."""
    body: bytes | None = None
    """What the app must have read as the body of the last request it answered."""

    @property
    def is_head(self) -> bool:
        return self.data.startswith(b"HEAD ")

    @property
    def needs_one_piece(self) -> bool:
        """The case is about how much comes in at once."""
        return "too deep" in self.name or "too many" in self.name

    @property
    def rewrites_headers(self) -> bool:
        """The app must see other headers than uvicorn would show it."""
        return "absolute" in self.name or "trailer" in self.name


HOST = b"Host: localhost:9000\r\n"
NEXT = b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n"


def _request(line: bytes = b"GET / HTTP/1.1", headers: bytes = b"", body: bytes = b"", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + headers + b"\r\n" + body


def _post(headers: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return _request(line, headers, body)


def _chunked(body: bytes, headers: bytes = b"") -> bytes:
    return _post(b"Transfer-Encoding: chunked\r\n" + headers, body)


def _many(group: str, answer: frozenset[int], *variants: tuple[str, bytes]) -> Iterator[Case]:
    for name, data in variants:
        yield Case(name=f"{group}: {name}", data=data, answers=(answer,))


def _ordinary() -> Iterator[Case]:
    yield Case(name="ordinary: get", data=_request(), answers=(OK,), body=b"")
    yield Case(name="ordinary: post", data=_post(b"Content-Length: 5\r\n", b"hello"), answers=(OK,), body=b"hello")
    yield Case(name="ordinary: head", data=_request(b"HEAD / HTTP/1.1"), answers=(OK,))
    yield Case(name="ordinary: empty post", data=_post(b"Content-Length: 0\r\n"), answers=(OK,), body=b"")
    yield Case(name="ordinary: post without length", data=_post(b""), answers=(OK,), body=b"")
    yield Case(
        name="ordinary: get with a body",
        data=_request(headers=b"Content-Length: 2\r\n", body=b"{}"),
        answers=(OK,),
        body=b"{}",
    )
    yield Case(name="ordinary: chunked", data=_chunked(b"5\r\nhello\r\n0\r\n\r\n"), answers=(OK,), body=b"hello")
    yield Case(
        name="ordinary: chunked, upper case",
        data=_post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"A\r\n0123456789\r\n0\r\n\r\n"),
        answers=(OK,),
        body=b"0123456789",
    )
    yield Case(
        name="ordinary: chunk extension",
        data=_chunked(b'5;a=b;c="d"\r\nhello\r\n0\r\n\r\n'),
        answers=(OK,),
        body=b"hello",
    )
    yield Case(
        name="ordinary: leading zeros", data=_chunked(b"0005\r\nhello\r\n000\r\n\r\n"), answers=(OK,), body=b"hello"
    )
    yield Case(
        name="ordinary: trailers",
        data=_chunked(b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\n\r\n"),
        answers=(OK,),
        body=b"hello",
    )
    yield Case(
        name="ordinary: space around values",
        data=_post(b"Content-Length: \t 5 \t\r\nX:y\r\n", b"hello"),
        answers=(OK,),
        body=b"hello",
    )
    yield Case(name="ordinary: empty value", data=_request(headers=b"X:\r\nY: \r\n"), answers=(OK,))
    yield Case(name="ordinary: latin-1 value", data=_request(headers=b"X: caf\xe9 \xff\r\n"), answers=(OK,))
    yield Case(name="ordinary: empty lines first", data=b"\r\n\r\n" + _request(), answers=(OK,))
    yield Case(
        name="ordinary: query with odd characters",
        data=_request(b'GET /?a=[1]|{2}&b=%zz&c="x" HTTP/1.1'),
        answers=(OK,),
    )
    yield Case(name="ordinary: escaped path", data=_request(b"GET /caf%C3%A9%2Fx HTTP/1.1"), answers=(OK,))
    yield Case(name="ordinary: empty query", data=_request(b"GET /? HTTP/1.1"), answers=(OK,))
    yield Case(name="ordinary: double slash", data=_request(b"GET //x HTTP/1.1"), answers=(OK,))
    yield Case(name="ordinary: absolute form", data=_request(b"GET http://localhost:9000/x?y HTTP/1.1"), answers=(OK,))
    yield Case(
        name="ordinary: absolute form without path", data=_request(b"GET HTTP://localhost HTTP/1.1"), answers=(OK,)
    )
    yield Case(name="ordinary: asterisk form", data=_request(b"OPTIONS * HTTP/1.1"), answers=(OK,))
    yield Case(
        name="ordinary: unusual method goes to the app",
        data=_request(b"TRACE / HTTP/1.1"),
        answers=(NO_METHOD,),
        closes=False,
    )
    yield Case(
        name="ordinary: webdav method goes to the app", data=_request(b"PROPFIND / HTTP/1.1"), answers=(NO_METHOD,)
    )
    yield Case(name="ordinary: HTTP/1.0", data=_request(b"GET / HTTP/1.0"), answers=(OK,), closes=True)
    yield Case(name="ordinary: HTTP/1.0 without Host", data=b"GET / HTTP/1.0\r\n\r\n", answers=(OK,), closes=True)
    yield Case(
        name="ordinary: connection close", data=_request(headers=b"Connection: close\r\n"), answers=(OK,), closes=True
    )
    yield Case(
        name="ordinary: close in a list",
        data=_request(headers=b"Connection: keep-alive, close\r\n"),
        answers=(OK,),
        closes=True,
    )
    yield Case(
        name="ordinary: garbage after close",
        data=_request(headers=b"Connection: close\r\n") + b"\x00garbage",
        answers=(OK,),
        closes=True,
    )
    yield Case(name="ordinary: two hundred headers", data=_request(headers=b"X: y\r\n" * 199), answers=(OK,))
    yield Case(name="ordinary: long header", data=_request(headers=b"X: " + b"y" * 60_000 + b"\r\n"), answers=(OK,))
    yield Case(name="ordinary: long target", data=_request(b"GET /" + b"a" * 16_000 + b" HTTP/1.1"), answers=(OK,))
    yield Case(name="ordinary: largest body", data=_post(b"Content-Length: 1048576\r\n", b"x" * 1048576), answers=(OK,))
    yield Case(
        name="ordinary: largest chunked body",
        data=_chunked(b"100000\r\n" + b"x" * 1048576 + b"\r\n0\r\n\r\n"),
        answers=(OK,),
    )
    for host in (
        b"localhost", b"LOCALHOST:80", b"127.0.0.1:9000", b"[::1]:9000", b"[::ffff:1.2.3.4]", b"a_b.c-d.example.",
        b"%C3%A4.example", b"xn--4ca.example:", b"a!$&'()*+,;=b",
    ):  # fmt: skip
        yield Case(name=f"ordinary: host {host!r}", data=_request(host=b"Host: " + host + b"\r\n"), answers=(OK,))


def _pipelined() -> Iterator[Case]:
    post = _post(b"Content-Length: 5\r\n", b"hello")
    garbage = b"GARBAGE\r\n\r\n"
    yield Case(name="pipeline: two", data=_request() + NEXT, answers=(OK, OK))
    yield Case(
        name="pipeline: three with bodies",
        data=post + _chunked(b"3\r\nabc\r\n0\r\n\r\n") + post,
        answers=(OK, OK, OK),
        body=b"hello",
    )
    yield Case(name="pipeline: twenty", data=NEXT * 20, answers=(OK,) * 20)
    yield Case(name="pipeline: empty line after a body", data=post + b"\r\n" + NEXT, answers=(OK, OK))
    yield Case(name="pipeline: garbage second", data=_request() + garbage, answers=(OK, BAD))
    yield Case(name="pipeline: garbage third", data=post + NEXT + garbage, answers=(OK, OK, BAD))
    yield Case(name="pipeline: no host second", data=_request() + b"GET / HTTP/1.1\r\n\r\n", answers=(OK, BAD))
    yield Case(
        name="pipeline: too large second", data=post + _post(b"Content-Length: 9999999999\r\n"), answers=(OK, TOO_LARGE)
    )
    yield Case(name="pipeline: bad chunk second", data=post + _chunked(b"5\r\nhelloX\r\n"), answers=(OK, BAD))
    yield Case(
        name="pipeline: large head second",
        data=post + _request(headers=b"X: " + b"y" * 70_000 + b"\r\n"),
        answers=(OK, HEAD_TOO_LARGE),
    )
    yield Case(name="pipeline: nothing after a refusal", data=_request(host=b"") + NEXT, answers=(BAD,))
    yield Case(
        name="pipeline: nothing after close",
        data=_request(headers=b"Connection: close\r\n") + NEXT,
        answers=(OK,),
        closes=True,
    )
    yield Case(
        name="pipeline: nothing after HTTP/1.0", data=_request(b"GET / HTTP/1.0") + NEXT, answers=(OK,), closes=True
    )
    yield Case(name="pipeline: too deep", data=NEXT * 100, answers=(OK,) * 65 + (frozenset({429}),))
    yield Case(
        name="pipeline: body shorter than what follows",
        data=_post(b"Content-Length: 2\r\n", b"hello") + NEXT,
        answers=(OK, BAD),
    )


def _syntax() -> Iterator[Case]:
    yield from _many(
        "syntax", BAD,
        ("garbage", b"GARBAGE\r\n\r\n"),
        ("TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32),
        ("zeros", b"\x00" * 64),
        ("socks", b"\x05\x01\x00\r\n\r\n"),
        ("json", b'{"model": "x"}\r\n\r\n'),
        ("binary", bytes(range(256)) * 4),
        ("unknown method", _request(b"FOO / HTTP/1.1")),
        ("lower case method", _request(b"get / HTTP/1.1")),
        ("method with a suffix", _request(b"GETX / HTTP/1.1")),
        ("no method", _request(b" / HTTP/1.1")),
        ("no target", _request(b"GET HTTP/1.1")),
        ("tab for space", _request(b"GET\t/\tHTTP/1.1")),
        ("three parts after the method", _request(b"GET / x HTTP/1.1")),
        ("space after the version", _request(b"GET / HTTP/1.1 ")),
        ("lower case protocol", _request(b"GET / http/1.1")),
        ("other protocol", _request(b"GET / FTP/1.1")),
        ("bare LF in the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
        ("only LF", b"GET / HTTP/1.1\nHost: a\n\n"),
        ("only CR", b"GET / HTTP/1.1\rHost: a\r\r"),
        ("bare LF after a header", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("LF for the last line", b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
        ("CR for the last line", b"GET / HTTP/1.1\r\nHost: a\r\n\rX"),
        ("bare CR in a value", _request(headers=b"X: a\rb\r\n")),
        ("CR before CR LF", _request(headers=b"X: a\r\r\n")),
        ("NUL in a value", _request(headers=b"X: a\x00b\r\n")),
        ("NUL in a name", _request(headers=b"X\x00: b\r\n")),
        ("control character in a value", _request(headers=b"X: a\x01b\r\n")),
        ("DEL in a value", _request(headers=b"X: a\x7fb\r\n")),
        ("vertical tab before a value", _request(headers=b"X: \x0bb\r\n")),
        ("space before the colon", _request(headers=b"X : b\r\n")),
        ("tab before the colon", _request(headers=b"X\t: b\r\n")),
        ("space before a name", _request(headers=b" X: b\r\n")),
        ("space before the first name", _request(host=b" Host: a\r\n")),
        ("space in a name", _request(headers=b"X Y: b\r\n")),
        ("folded value", _request(headers=b"X: a\r\n b\r\n")),
        ("folded with a tab", _request(headers=b"X: a\r\n\tb\r\n")),
        ("empty name", _request(headers=b": b\r\n")),
        ("no colon", _request(headers=b"NoColon\r\n")),
        ("quoted name", _request(headers=b'"X": b\r\n')),
        ("non-ASCII name", _request(headers=b"X\xe9: b\r\n")),
        ("parentheses in a name", _request(headers=b"X(): b\r\n")),
        ("at sign in a name", _request(headers=b"X@: b\r\n")),
        ("version without minor", _request(b"GET / HTTP/1")),
        ("version with two digits", _request(b"GET / HTTP/1.10")),
        ("version with leading zero", _request(b"GET / HTTP/01.1")),
        ("version with a comma", _request(b"GET / HTTP/1,1")),
        ("version in words", _request(b"GET / HTTP/one.one")),
    )  # fmt: skip
    yield from _many(
        "version", NO_VERSION,
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        ("HTTP/2.0", _request(b"GET / HTTP/2.0")),
        ("HTTP/3.0", _request(b"GET / HTTP/3.0")),
        ("HTTP/1.2", _request(b"GET / HTTP/1.2")),
        ("HTTP/0.9", _request(b"GET / HTTP/0.9")),
        ("HTTP/9.9", _request(b"GET / HTTP/9.9")),
        ("simple request", b"GET /\r\n\r\n"),
    )  # fmt: skip


def _targets() -> Iterator[Case]:
    for target in (
        b"/a#b", b"/%zz", b"/%", b"/%4", b"/a%2", b"/%00", b"/a%00b", b"/%ff", b"/%c3%28", b"/%ed%a0%80",
        b"/\xc3\xa9", b"/a?b=\xc3\xa9", b"/a\x00", b"/a\x01", b"/a\x7f", b"/a\tb", b"foo", b"?x", b"*", b"a:80",
        b"//\xff", b"ftp://a/x", b"https://", b"http:///x", b"http://user:pass@a/x", b"http://a b/x",
        b"http://a:99999999/", b"http://[::1/x", b"http://[zz]/x", b"http://a/x#y", b"javascript:alert(1)",
        b"file:///etc/passwd", b"\\\\a\\b", b"../x",
    ):  # fmt: skip
        yield Case(name=f"target: {target!r}", data=_request(b"GET " + target + b" HTTP/1.1"), answers=(BAD,))
    yield Case(name="target: CONNECT", data=_request(b"CONNECT a:443 HTTP/1.1"), answers=(NO_METHOD,), closes=True)
    yield Case(
        name="target: CONNECT of a path",
        data=_request(b"CONNECT / HTTP/1.1") + b"\x16\x03\x01",
        answers=(NO_METHOD,),
        closes=True,
    )
    yield Case(
        name="target: too long", data=_request(b"GET /" + b"a" * 17_000 + b" HTTP/1.1"), answers=(TARGET_TOO_LONG,)
    )
    yield Case(
        name="target: long query", data=_request(b"GET /?" + b"a=b&" * 5_000 + b" HTTP/1.1"), answers=(TARGET_TOO_LONG,)
    )
    yield Case(name="target: without end", data=b"GET /" + b"a" * 200_000, answers=(TARGET_TOO_LONG,))


def _hosts() -> Iterator[Case]:
    yield from _many(
        "host", BAD,
        ("missing", _request(host=b"")),
        ("twice", _request(headers=HOST)),
        ("two different", _request(headers=b"host: evil.example\r\n")),
        ("twice in HTTP/1.0", _request(b"GET / HTTP/1.0", headers=HOST)),
        ("missing with an absolute target", _request(b"GET http://a/ HTTP/1.1", host=b"")),
    )  # fmt: skip
    for host in (
        b"", b" ", b"a/b", b"x/healthz?", b"a?b", b"a#b", b"a@b", b"user:pass@a", b"a b", b"a:b", b"a:80:80", b"a:-1",
        b"a:999999", b"[::1", b"::1", b"[]", b"[::1]x", b"[::g]", b"[1.2.3.4]", b"[::1%25eth0]", b"[fe80::1%eth0]",
        b"a\\b", b'"a"', b"<a>", b"a%zz", b"a%", b"\xc3\xa4.example", b"a,b:80,c", b"http://a", b"a\tb", b":80",
    ):  # fmt: skip
        yield Case(name=f"host: {host!r}", data=_request(host=b"Host: " + host + b"\r\n"), answers=(BAD,))


def _lengths() -> Iterator[Case]:
    yield from _many(
        "length", BAD,
        ("twice the same", _post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello")),
        ("two different", _post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!")),
        ("list of the same", _post(b"Content-Length: 5, 5\r\n", b"hello")),
        ("plus", _post(b"Content-Length: +5\r\n", b"hello")),
        ("minus", _post(b"Content-Length: -5\r\n", b"hello")),
        ("minus zero", _post(b"Content-Length: -0\r\n")),
        ("hexadecimal", _post(b"Content-Length: 0x5\r\n", b"hello")),
        ("decimal point", _post(b"Content-Length: 5.0\r\n", b"hello")),
        ("underscore", _post(b"Content-Length: 1_0\r\n", b"0123456789")),
        ("exponent", _post(b"Content-Length: 5e0\r\n", b"hello")),
        ("empty", _post(b"Content-Length: \r\n", b"hello")),
        ("words", _post(b"Content-Length: five\r\n", b"hello")),
        ("two numbers", _post(b"Content-Length: 5 5\r\n", b"hello")),
        ("semicolon", _post(b"Content-Length: 5;\r\n", b"hello")),
        ("arabic digits", _post(b"Content-Length: \xd9\xa5\r\n", b"hello")),
        ("superscript two", _post(b"Content-Length: \xb2\r\n", b"he")),
        ("quoted", _post(b'Content-Length: "5"\r\n', b"hello")),
        ("space before the colon", _post(b"Content-Length : 5\r\n", b"hello")),
        ("beyond 64 bits", _post(b"Content-Length: 18446744073709551616\r\n")),
        ("with transfer-encoding", _post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
        ("after transfer-encoding", _chunked(b"0\r\n\r\n", b"Content-Length: 5\r\n")),
        ("zero with transfer-encoding", _chunked(b"0\r\n\r\n", b"Content-Length: 0\r\n")),
    )  # fmt: skip
    yield from _many(
        "length", TOO_LARGE,
        ("one byte more", _post(b"Content-Length: 1048577\r\n")),
        ("one byte more, and sent", _post(b"Content-Length: 1048577\r\n", b"x" * 1048577)),
        ("leading zeros", _post(b"Content-Length: 00000000001048577\r\n")),
        ("64 bits", _post(b"Content-Length: 18446744073709551615\r\n", b"x" * 100)),
        ("with expect", _post(b"Content-Length: 99999999\r\nExpect: 100-continue\r\n")),
        ("in HTTP/1.0", _post(b"Content-Length: 99999999\r\n", line=b"POST / HTTP/1.0")),
        ("in HEAD", _post(b"Content-Length: 99999999\r\n", line=b"HEAD / HTTP/1.1")),
    )  # fmt: skip
    yield Case(name="length: misspelt", data=_post(b"Content_Length: 5\r\n", b"hello"), answers=(OK, BAD), body=b"")


def _codings() -> Iterator[Case]:
    end = b"5\r\nhello\r\n0\r\n\r\n"
    for coding in (
        b"gzip", b"identity", b"xchunked", b"chunkedx", b"gzip, chunked", b"identity, chunked", b'"chunked"',
        b"chunked;q=1", b"gzip\r\nTransfer-Encoding: chunked", b"identity\r\nTransfer-Encoding: chunked",
    ):  # fmt: skip
        data = _post(b"Transfer-Encoding: " + coding + b"\r\n", end)
        yield Case(name=f"coding: {coding!r}", data=data, answers=(NO_CODING,))
    for coding in (
        b"", b"chunked, gzip", b"chunked, chunked", b"chunked,", b",chunked", b" , chunked", b"\x0bchunked",
        b"chunked\x00", b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: identity",
        b"chunked\r\n , x", b"\rchunked",
    ):  # fmt: skip
        data = _post(b"Transfer-Encoding: " + coding + b"\r\n", end)
        yield Case(name=f"coding: {coding!r}", data=data, answers=(BAD,))
    yield Case(
        name="coding: HTTP/1.0", data=_post(b"Transfer-Encoding: chunked\r\n", end, b"POST / HTTP/1.0"), answers=(BAD,)
    )
    yield Case(
        name="coding: space before the colon", data=_post(b"Transfer-Encoding : chunked\r\n", end), answers=(BAD,)
    )
    yield Case(
        name="coding: trailing space",
        data=_post(b"Transfer-Encoding: chunked  \r\n", end),
        answers=(OK,),
        body=b"hello",
    )


def _chunks() -> Iterator[Case]:
    for chunks in (
        b"0x5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"5\t\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5;\r\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5;a=\x00\r\nhello\r\n0\r\n\r\n", b"\r\n", b"g\r\n",
        b"5_\r\nhello\r\n0\r\n\r\n", b"5,5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\nx",
        b"\xd9\xa5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\n\n", b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\nX : y\r\n\r\n", b"5\r\nhello\r\n0\r\nX\r\n\r\n", b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: a\x00\r\n\r\n", b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
        b"5\r\nhello\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n", b"2\r\nhello\r\n0\r\n\r\n", b"6\r\nhello\r\n0\r\n\r\n",
    ):  # fmt: skip
        yield Case(name=f"chunk: {chunks!r}", data=_chunked(chunks), answers=(BAD,))
    megabyte = b"100000\r\n" + b"x" * 1048576 + b"\r\n"
    yield from _many(
        "chunk", TOO_LARGE,
        ("one byte too many", _chunked(megabyte + b"1\r\nx\r\n0\r\n\r\n")),
        ("two megabytes", _chunked(megabyte * 2 + b"0\r\n\r\n")),
        ("one chunk of 64 bits", _chunked(b"FFFFFFFFFFFFFFFF\r\n" + b"x" * 1100000)),
        ("extension without end", _chunked(b"5;a=" + b"x" * 1300000)),
        ("trailer without end", _chunked(b"5\r\nhello\r\n0\r\nX: " + b"x" * 1300000)),
        ("trailers without end", _chunked(b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 220000)),
        ("many small chunks", _chunked(b"1\r\nx\r\n" * 220000)),
    )  # fmt: skip
    yield Case(
        name="chunk: trailer that looks like a header",
        answers=(OK,),
        body=b"hello",
        data=_chunked(b"5\r\nhello\r\n0\r\nAuthorization: Bearer admin\r\nHost: evil\r\nExpect: 100-continue\r\n\r\n"),
    )
    yield Case(
        name="chunk: request hidden in a body",
        data=_post(b"Content-Length: %d\r\n" % len(NEXT), NEXT),
        answers=(OK,),
        body=NEXT,
    )
    yield Case(
        name="chunk: request hidden in a chunk",
        data=_chunked(b"%x\r\n" % len(NEXT) + NEXT + b"\r\n0\r\n\r\n"),
        answers=(OK,),
        body=NEXT,
    )


def _heads() -> Iterator[Case]:
    yield from _many(
        "head", HEAD_TOO_LARGE,
        ("201 headers", _request(headers=b"X: y\r\n" * 200)),
        ("many headers", _request(headers=b"X: y\r\n" * 9000)),
        ("many headers without end", _request(headers=b"X: y\r\n" * 9000)[:-2]),
        ("long value", _request(headers=b"X: " + b"y" * 66_000 + b"\r\n")),
        ("long value without end", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 300_000),
        ("long name", _request(headers=b"X" * 66_000 + b": y\r\n")),
        ("long name without end", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 300_000),
        ("many long values", _request(headers=(b"X: " + b"y" * 8000 + b"\r\n") * 9)),
        ("empty lines without end", b"\r\n" * 50_000),
        ("long cookie", _request(headers=b"Cookie: a=" + b"y" * 70_000 + b"\r\n")),
        ("long head of a HEAD", _request(b"HEAD / HTTP/1.1", headers=b"X: " + b"y" * 66_000 + b"\r\n")),
    )  # fmt: skip


def _truncated() -> Iterator[Case]:
    for name, data in (
        ("nothing", b""),
        ("empty lines", b"\r\n\r\n"),
        ("method", b"GE"),
        ("target", b"GET /x"),
        ("request line", b"GET / HTTP/1.1\r\n"),
        ("header", b"GET / HTTP/1.1\r\nHost: a\r\nX: y"),
        ("headers", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n"),
        ("body", _post(b"Content-Length: 10\r\n", b"hello")),
        ("chunk size", _chunked(b"5")),
        ("chunk", _chunked(b"5\r\nhel")),
        ("last chunk", _chunked(b"5\r\nhello\r\n")),
        ("trailer", _chunked(b"5\r\nhello\r\n0\r\nX: y\r\n")),
    ):
        yield Case(name=f"truncated: {name}", data=data, answers=(), half_close=True, closes=True)


def _upgrades() -> Iterator[Case]:
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    hello = h2c + b"Content-Length: 5\r\n"
    chunked = h2c + b"Transfer-Encoding: chunked\r\n"
    yield Case(name="upgrade: h2c get", data=_request(headers=h2c), answers=(OK,))
    yield Case(name="upgrade: h2c post", data=_post(hello, b"hello"), answers=(OK,), body=b"hello")
    yield Case(
        name="upgrade: h2c chunked", data=_post(chunked, b"5\r\nhello\r\n0\r\n\r\n"), answers=(OK,), body=b"hello"
    )
    yield Case(name="upgrade: websocket", data=_request(headers=websocket), answers=(OK,))
    yield Case(
        name="upgrade: unknown protocol",
        data=_request(headers=b"Connection: upgrade\r\nUpgrade: foo/2\r\n"),
        answers=(OK,),
    )
    yield Case(
        name="upgrade: not named in connection",
        data=_post(b"Upgrade: h2c\r\nContent-Length: 5\r\n", b"hello"),
        answers=(OK,),
        body=b"hello",
    )
    yield Case(name="upgrade: then another request", data=_request(headers=h2c) + NEXT, answers=(OK, OK))
    yield Case(name="upgrade: post, then another request", data=_post(hello, b"hello") + NEXT, answers=(OK, OK))
    yield Case(
        name="upgrade: chunked, then another request",
        data=_post(chunked, b"5\r\nhello\r\n0\r\nX: y\r\n\r\n") + NEXT,
        answers=(OK, OK),
    )
    yield Case(name="upgrade: three posts", data=_post(hello, b"hello") * 3, answers=(OK, OK, OK), body=b"hello")
    yield Case(
        name="upgrade: a request hidden in the body",
        data=_post(h2c + b"Content-Length: %d\r\n" % len(NEXT), NEXT),
        answers=(OK,),
        body=NEXT,
    )
    yield Case(name="upgrade: post, then garbage", data=_post(hello, b"hello") + b"\x00", answers=(OK, BAD))
    yield Case(name="upgrade: get, then no host", data=_request(headers=h2c) + _request(host=b""), answers=(OK, BAD))
    yield Case(
        name="upgrade: post, then too large",
        data=_post(hello, b"hello") * 2 + _post(b"Content-Length: 1048577\r\n"),
        answers=(OK, OK, TOO_LARGE),
    )
    yield Case(name="upgrade: bad chunk", data=_post(chunked, b"5\r\nhelloX"), answers=(BAD,))
    yield Case(
        name="upgrade: body too large",
        data=_post(h2c + b"Content-Length: 1048577\r\n", b"x" * 100),
        answers=(TOO_LARGE,),
    )
    yield Case(
        name="upgrade: chunked body too large",
        data=_post(chunked, b"100001\r\n" + b"x" * 1048577),
        answers=(TOO_LARGE,),
    )
    yield Case(
        name="upgrade: close",
        data=_post(b"Connection: Upgrade, close\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", b"hello") + NEXT,
        answers=(OK,),
        closes=True,
        body=b"hello",
    )
    yield Case(
        name="upgrade: HTTP/1.0",
        data=_post(hello, b"hello", b"POST / HTTP/1.0"),
        answers=(OK,),
        closes=True,
        body=b"hello",
    )
    yield Case(name="upgrade: without host", data=_request(headers=h2c, host=b""), answers=(BAD,))
    yield Case(name="upgrade: many", data=_request(headers=h2c) * 30, answers=(OK,) * 30)
    yield Case(name="upgrade: too many", data=_request(headers=h2c) * 70, answers=(OK,) * 65 + (frozenset({429}),))


def _websockets() -> Iterator[Case]:
    """Handshakes that come to nothing: malformed ones are refused, and elsewhere an Upgrade says nothing."""
    to_socket, elsewhere = b"GET /socket HTTP/1.1", b"GET /other HTTP/1.1"
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    version, key = b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    good = upgrade + version + key
    yield from _many(
        "websocket",
        BAD,
        ("no key", _request(to_socket, upgrade + version)),
        ("empty key", _request(to_socket, upgrade + version + b"Sec-WebSocket-Key:\r\n")),
        ("short key", _request(to_socket, upgrade + version + b"Sec-WebSocket-Key: YWJj\r\n")),
        ("long key", _request(to_socket, upgrade + version + b"Sec-WebSocket-Key: " + b"A" * 64 + b"\r\n")),
        ("huge key", _request(to_socket, upgrade + version + b"Sec-WebSocket-Key: " + b"A" * 60000 + b"\r\n")),
        (
            "key that is no base64",
            _request(to_socket, upgrade + version + b"Sec-WebSocket-Key: " + b"?" * 24 + b"\r\n"),
        ),
        ("two keys", _request(to_socket, good + key)),
        ("no version", _request(to_socket, upgrade + key)),
        ("two versions", _request(to_socket, good + version)),
        ("a body", _request(to_socket, good + b"Content-Length: 5\r\n", b"hello")),
        ("a chunked body", _request(to_socket, good + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
        ("a length and a coding", _request(to_socket, good + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
        ("no host", _request(to_socket, good, host=b"")),
        ("two hosts", _request(to_socket, good + HOST)),
        ("path in another form", _request(b"GET /sock%et HTTP/1.1", good)),
        ("behind it frames", _request(to_socket, upgrade + version, b"\x81\x05hello" * 100)),
    )
    yield from _many(
        "websocket version",
        NO_WEBSOCKET_VERSION,
        ("0", _request(to_socket, upgrade + key + b"Sec-WebSocket-Version: 0\r\n")),
        ("8", _request(to_socket, upgrade + key + b"Sec-WebSocket-Version: 8\r\n")),
        ("a list", _request(to_socket, upgrade + key + b"Sec-WebSocket-Version: 13, 8\r\n")),
    )
    yield from _many(
        "websocket",
        HEAD_TOO_LARGE,
        ("too many headers", _request(to_socket, good + b"X: y\r\n" * 200)),
        ("too many bytes", _request(to_socket, good + b"X: " + b"y" * 66000 + b"\r\n")),
    )
    yield Case(
        name="websocket: too long a target",
        data=_request(b"GET /socket?" + b"x" * 20000 + b" HTTP/1.1", good),
        answers=(TARGET_TOO_LONG,),
    )
    for name, line, headers in (
        ("elsewhere", elsewhere, good),
        ("elsewhere, malformed", elsewhere, upgrade),
        ("below", b"GET /socket/x HTTP/1.1", good),
        ("another case", b"GET /Socket HTTP/1.1", good),
        ("dots", b"GET /x/../socket HTTP/1.1", good),
        ("two slashes", b"GET //socket HTTP/1.1", good),
        ("no upgrade in connection", to_socket, b"Connection: keep-alive\r\nUpgrade: websocket\r\n" + version + key),
        ("no connection", to_socket, b"Upgrade: websocket\r\n" + version + key),
        ("another protocol", to_socket, b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + version + key),
        ("no upgrade", to_socket, version + key),
        ("head", b"HEAD /socket HTTP/1.1", good),
        ("post", b"POST /socket HTTP/1.1", good),
        ("options", b"OPTIONS /socket HTTP/1.1", good),
    ):
        yield Case(name=f"websocket that is none: {name}", data=_request(line, headers), answers=(OK,))
    yield Case(
        name="websocket that is none: HTTP/1.0",
        data=_request(b"GET /socket HTTP/1.0", good),
        answers=(OK,),
        closes=True,
    )
    yield Case(
        name="websocket that is none: a request in its body",
        data=_request(elsewhere, good + b"Content-Length: %d\r\n" % len(NEXT), NEXT),
        answers=(OK,),
        body=NEXT,
    )


CASES: tuple[Case, ...] = (
    *_ordinary(),
    *_pipelined(),
    *_syntax(),
    *_targets(),
    *_hosts(),
    *_lengths(),
    *_codings(),
    *_chunks(),
    *_heads(),
    *_truncated(),
    *_upgrades(),
    *_websockets(),
)
