"""The opening handshake, as values."""

import pytest

from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError
from agentrun_server.server.http.head import CHUNKED
from agentrun_server.server.http.refusal import RefusedError
from agentrun_server.server.websocket.head import WebSocketLimits, asks_for_websocket, read_handshake
from tests.support.websocket import ACCEPT, KEY

UPGRADE = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
GOOD = [(b"sec-websocket-key", KEY.encode()), (b"sec-websocket-version", b"13")]


def test_the_answer_to_a_key_is_that_of_the_standard() -> None:
    handshake = read_handshake(GOOD, 0)
    assert (handshake.accept, handshake.subprotocols) == (ACCEPT.encode(), [])


def test_subprotocols_are_a_list_in_one_header_or_several() -> None:
    offered = [(b"sec-websocket-protocol", b"a, b"), (b"sec-websocket-protocol", b" c,,")]
    assert read_handshake([*GOOD, *offered], 0).subprotocols == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "version", "headers", "asks"),
    [
        ("GET", "1.1", UPGRADE, True),
        ("GET", "1.1", [(b"connection", b"keep-alive, UPGRADE"), (b"upgrade", b"WebSocket")], True),
        ("GET", "1.1", [*UPGRADE[:1], (b"upgrade", b"h2c, websocket")], True),
        ("GET", "1.0", UPGRADE, False),
        ("POST", "1.1", UPGRADE, False),
        ("GET", "1.1", UPGRADE[:1], False),
        ("GET", "1.1", UPGRADE[1:], False),
        ("GET", "1.1", [*UPGRADE[:1], (b"upgrade", b"websockets")], False),
    ],
)
def test_only_a_get_of_http_1_1_asks_for_one(
    method: str, version: str, headers: list[tuple[bytes, bytes]], asks: bool
) -> None:
    assert asks_for_websocket(method, version, headers) is asks


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"short",
        KEY[:-1].encode(),
        KEY.encode() + b"=",
        b"dGhlIHNhbXBsZSBub25jZSE=",
        b"dGhlIHNhbXBsZSBub25jZ!==",
        b"dGhlIHNhbXBsZSBu b25jZQ==",
        b"\xff" * 24,
        KEY.encode() * 100,
    ],
)
def test_a_key_is_16_bytes_in_base64(key: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake([(b"sec-websocket-key", key), GOOD[1]], 0)
    assert refused.value.error.status_code == 400


@pytest.mark.parametrize("headers", [GOOD[:1], GOOD[1:], GOOD[:1] * 2 + GOOD[1:], GOOD + GOOD[1:]])
def test_key_and_version_come_once(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake(headers, 0)
    assert refused.value.error.status_code == 400


@pytest.mark.parametrize("version", [b"", b"0", b"8", b"012", b"13, 8", b"1 3", b"14"])
def test_another_version_is_told_the_right_one(version: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake([GOOD[0], (b"sec-websocket-version", version)], 0)
    error = refused.value.error
    assert (error.status_code, error.code) == (426, "websocket_version")
    assert error.headers == ((b"upgrade", b"websocket"), (b"sec-websocket-version", b"13"))


@pytest.mark.parametrize("length", [1, 1000, CHUNKED])
def test_a_handshake_has_no_body(length: int) -> None:
    with pytest.raises(RefusedError):
        read_handshake(GOOD, length)


def test_limits_are_those_of_requests_and_streams() -> None:
    config = ServerConfig(max_body_bytes=7, body_timeout=3, heartbeat_interval=None, write_timeout=5)
    assert WebSocketLimits.from_config(config) == WebSocketLimits(7, 3, None, 5)


@pytest.mark.parametrize("limit", ["max_message_bytes", "message_timeout", "ping_interval", "ping_timeout"])
def test_limits_under_which_nothing_passes_are_refused(limit: str) -> None:
    with pytest.raises(ConfigurationError, match=limit):
        WebSocketLimits(**{limit: 0})
