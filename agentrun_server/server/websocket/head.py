"""Reading the opening handshake of a WebSocket, as values in and values out (RFC 6455, section 4.2).

It is an HTTP request, and all limits of one have been held to it before it comes here. No extension is ever agreed to:
``permessage-deflate`` would let a small frame become a large message, and costs a window of memory for each connection.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError, InvalidRequestError
from agentrun_server.server.http.refusal import Headers, RefusedError, bad_request

__all__ = ["Handshake", "WebSocketLimits", "WebSockets", "asks_for_websocket", "read_handshake"]

_VERSION = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class WebSocketLimits:
    """What one WebSocket may cost. Sizes are bytes, times are seconds; None: no pings, or no end to waiting for one."""

    max_message_bytes: int = 10 * 1024 * 1024
    message_timeout: float = 15.0
    ping_interval: float | None = 15.0
    ping_timeout: float | None = 60.0

    def __post_init__(self) -> None:
        """Refuse limits under which no message would pass."""
        if self.max_message_bytes < 1:
            raise ConfigurationError("max_message_bytes must be at least 1")
        for name in ("message_timeout", "ping_interval", "ping_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be more than 0 seconds")

    @classmethod
    def from_config(cls, config: ServerConfig) -> "WebSocketLimits":
        """Take the limits out of a server's settings: they are those of requests, and of streams."""
        return cls(
            max_message_bytes=config.max_body_bytes,
            message_timeout=config.body_timeout,
            ping_interval=config.heartbeat_interval,
            ping_timeout=config.write_timeout,
        )


@dataclass(frozen=True, slots=True)
class WebSockets:
    """What an app says of its WebSockets, as its attribute `websockets`."""

    paths: frozenset[str]
    """Where they are. Elsewhere an Upgrade is ignored, and a request is one like any other (RFC 9110, section 7.8)."""
    limits: WebSocketLimits = field(default_factory=WebSocketLimits)


@dataclass(frozen=True, slots=True)
class Handshake:
    """A handshake that may be accepted."""

    accept: bytes
    """Proves to the client that its key was read: ``Sec-WebSocket-Accept``."""
    subprotocols: list[str]
    """What the client offers to speak above the frames."""


def asks_for_websocket(method: str, version: str, headers: Headers) -> bool:
    """Tell whether a request wants to become a WebSocket; of one that is ignored the Upgrade says nothing.

    HTTP/1.0 has no Upgrade (RFC 9110, section 7.8), and only GET opens a WebSocket.
    """
    if method != "GET" or version != "1.1":
        return False
    upgrades = _tokens(headers, b"upgrade")
    return b"websocket" in upgrades and b"upgrade" in _tokens(headers, b"connection")


def read_handshake(headers: Headers, length: int) -> Handshake:
    """Return the handshake in `headers`; `length` is that of the request's body.

    Raises:
        RefusedError: it is malformed (400), or of another version (426).
    """
    if length:
        raise bad_request("websocket", "The opening handshake of a WebSocket has no body.")
    versions = [value for name, value in headers if name == b"sec-websocket-version"]
    if len(versions) != 1:
        raise bad_request("websocket", "The Sec-WebSocket-Version header must be there, and once.")
    if versions[0].strip(b" \t") != _VERSION:
        raise _other_version()
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if len(keys) != 1:
        raise bad_request("websocket", "The Sec-WebSocket-Key header must be there, and once.")
    key = keys[0].strip(b" \t")
    if not _is_key(key):
        raise bad_request("websocket", "The Sec-WebSocket-Key header is not 16 bytes in base64.")
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    offered = [value for name, value in headers if name == b"sec-websocket-protocol"]
    names = [name.strip(b" \t") for value in offered for name in value.split(b",")]
    return Handshake(base64.b64encode(digest), [name.decode("latin-1") for name in names if name])


def _is_key(key: bytes) -> bool:
    try:
        decoded = base64.b64decode(key, validate=True)
    except binascii.Error:
        return False
    return len(decoded) == _KEY_BYTES


def _other_version() -> RefusedError:
    error = InvalidRequestError(
        "This server speaks version 13 of the WebSocket protocol.", code="websocket_version", status_code=426
    )
    error.headers = ((b"upgrade", b"websocket"), (b"sec-websocket-version", _VERSION))
    return RefusedError("websocket", error)


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """Return the members of a header that is a list, in lower case."""
    values = [value for key, value in headers if key == name]
    return [token.strip(b" \t").lower() for value in values for token in value.split(b",")]
