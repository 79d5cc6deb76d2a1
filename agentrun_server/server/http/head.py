"""Reading the head of an HTTP request, as values in and values out: framing, host and target (RFC 9110, RFC 9112)."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from agentrun_server.server.http.refusal import Headers, bad_request

__all__ = ["CHUNKED", "FRAMING_HEADERS", "check_host", "head_bytes", "read_framing", "split_target"]

CHUNKED = -1
"""Stands for the length of a body that tells its length as it goes."""

_SLASH = ord("/")

FRAMING_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})

# RFC 3986 §3.2.2, §3.2.3. Possessive (++), so that no input makes it backtrack. The name may not be empty: an
# http URI without a host is invalid (RFC 9110 §4.2.1).
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})++(?::[0-9]{0,5})?")
_HOST_LITERAL = re.compile(rb"\[([0-9A-Fa-f:.]++)\](?::[0-9]{0,5})?")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*+)([^?#]*+)(.*)", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def read_framing(version: str, headers: Headers) -> tuple[bytes | None, int]:
    """Return the Host and the length of the body (or `CHUNKED`) that the headers tell.

    Raises:
        RefusedError: RFC 9112 §3.2 or §6 forbids what they say, or leaves two readings of it.
    """
    host = length = coding = None
    for name, value in headers:
        if name == b"host":
            if host is not None:
                raise bad_request("host", "The request has more than one Host header.")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise bad_request("content_length", "The request has more than one Content-Length header.")
            length = value
        elif name == b"transfer-encoding":
            # Several lines of a list are one list (RFC 9110 §5.3).
            coding = value if coding is None else coding + b"," + value
    if host is None and version == "1.1":
        raise bad_request("host", "An HTTP/1.1 request needs a Host header.")
    if coding is not None:
        _check_transfer_encoding(version, coding, has_length=length is not None)
        return host, CHUNKED
    if length is None:
        return host, 0
    return host, int(length) if length.isdigit() else _content_length(length)


def check_host(host: bytes) -> None:
    """Refuse what is no ``uri-host [":" port]`` (RFC 9110 §7.2)."""
    host = host.rstrip(b" \t")
    if _HOST.fullmatch(host) is not None:
        return
    match = _HOST_LITERAL.fullmatch(host)
    if match is not None:
        with contextlib.suppress(ValueError):
            ipaddress.IPv6Address(match[1].decode("ascii"))
            return
    raise bad_request("host", "The Host header is not a valid host name.")


def _content_length(value: bytes) -> int:
    value = value.rstrip(b" \t")  # optional whitespace, which llhttp leaves at the end of a value
    if not value.isdigit():
        raise bad_request("content_length", "The Content-Length header is not a number.")
    return int(value)


def _check_transfer_encoding(version: str, coding: bytes, *, has_length: bool) -> None:
    if has_length:
        # One of the two is wrong, and a proxy in front may have believed the other one (RFC 9112 §6.3).
        raise bad_request("transfer_encoding", "Content-Length and Transfer-Encoding exclude each other.")
    if version == "1.0":
        raise bad_request("transfer_encoding", "HTTP/1.0 has no Transfer-Encoding.")
    codings = coding.lower().replace(b"\t", b" ").split(b",")
    if codings[-1].strip(b" ") == b"chunked" and len(codings) == 1:
        return
    if any(name.strip(b" ") not in (b"", b"chunked") for name in codings):
        raise bad_request(
            "transfer_encoding",
            "The only Transfer-Encoding this server understands is chunked.",
            status=501,
            code="transfer_encoding_not_supported",
        )
    raise bad_request("transfer_encoding", "The Transfer-Encoding header is malformed.")


def split_target(method: str, target: bytes, headers: Headers) -> tuple[str, bytes, bytes]:
    """Return the decoded path, the path as sent and the query of a request target (RFC 9112 §3.2).

    The authority of an absolute target takes the place of the Host header in `headers`.
    """
    if target[0] != _SLASH:
        if target == b"*" and method == "OPTIONS":
            return "*", b"*", b""
        target = _origin_form(target, headers)
    # A str is searched five times faster than bytes are.
    path = target.decode("ascii", "replace")
    if "#" in path or "\ufffd" in path:
        raise bad_request("target", "The request target contains a character that must be escaped.")
    query = b""
    if "?" in path:
        target, _, query = target.partition(b"?")
        path = target.decode("ascii")
    return (_unescape(target) if "%" in path else path), target, query


def _origin_form(target: bytes, headers: Headers) -> bytes:
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        raise bad_request("target", "The request target is neither a path nor an http URL.")
    authority, path, rest = match.groups()
    check_host(authority)
    for index, (name, _) in enumerate(headers):
        if name == b"host":
            headers[index] = (name, authority)
    return (path or b"/") + rest


def _unescape(raw_path: bytes) -> str:
    if _BAD_ESCAPE.search(raw_path) is None:
        try:
            path = unquote_to_bytes(raw_path).decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in path:
                return path
    raise bad_request("target", "The path of the request is not validly percent-encoded UTF-8.")


def head_bytes(method: str, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return what a head took on the wire, optional whitespace left out."""
    request_line = len(method) + len(url) + len("  HTTP/1.1\r\n")
    return request_line + sum(len(name) + len(value) + len(": \r\n") for name, value in headers) + 2
