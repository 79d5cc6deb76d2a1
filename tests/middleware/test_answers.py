import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun_middleware.answers import Refusal, challenge, duration, refuse, retry_headers
from agentrun_middleware.asgi import Message, Scope
from tests.support.properties import EXAMPLES

REFUSAL = Refusal(429, "Too much.", "too_much", "rate_limit_error", ((b"retry-after", b"1"),))


async def answer(refusal: Refusal, scope: Scope, first: str = "websocket.connect") -> list[Message]:
    """Return what `refuse` sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        assert scope["type"] == "websocket", "the body of a refused request is not read"
        return {"type": first}

    async def send(message: Message) -> None:
        sent.append(message)

    await refuse(refusal, scope, receive, send)
    return sent


# --- the error object


def test_all_four_keys_of_the_error_object_are_there() -> None:
    assert json.loads(Refusal(400, "No.", None).body()) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}
    }


async def test_a_request_is_answered_with_the_status_and_the_headers_of_the_refusal() -> None:
    body = REFUSAL.body()
    assert await answer(REFUSAL, {"type": "http"}) == [
        {
            "type": "http.response.start",
            "status": 429,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"retry-after", b"1"),
            ],
        },
        {"type": "http.response.body", "body": body},
    ]


async def test_the_length_counts_bytes() -> None:
    start, body = await answer(Refusal(400, "zu groß \u2028 😀", None), {"type": "http"})
    assert (b"content-length", b"%d" % len(body["body"])) in start["headers"]
    assert json.loads(body["body"])["error"]["message"] == "zu groß \u2028 😀"


# --- handshakes


async def test_a_handshake_gets_the_answer_where_the_server_can_send_one() -> None:
    scope = {"type": "websocket", "extensions": {"websocket.http.response": {}}}
    start, body = await answer(REFUSAL, scope)
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 429
    assert (b"retry-after", b"1") in start["headers"]
    assert body == {"type": "websocket.http.response.body", "body": REFUSAL.body()}


@pytest.mark.parametrize("extensions", [{}, {"extensions": {}}, {"extensions": None}])
@pytest.mark.parametrize(("status", "code"), [(401, 1008), (403, 1008), (429, 1013), (503, 1013)])
async def test_a_handshake_is_closed_where_the_server_can_do_no_better(
    extensions: dict[str, Any], status: int, code: int
) -> None:
    assert await answer(Refusal(status, "No.", "no"), {"type": "websocket", **extensions}) == [
        {"type": "websocket.close", "code": code, "reason": "no"}
    ]


async def test_a_close_without_a_code_of_ours_has_an_empty_reason() -> None:
    assert (await answer(Refusal(400, "No.", None), {"type": "websocket"}))[0]["reason"] == ""


async def test_nothing_is_sent_to_a_handshake_whose_client_has_left() -> None:
    assert await answer(REFUSAL, {"type": "websocket"}, "websocket.disconnect") == []


# --- headers


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("api",), b'Bearer realm="api"'),
        (("api", "invalid_token"), b'Bearer realm="api", error="invalid_token"'),
        (("a b", "insufficient_scope", "x y"), b'Bearer realm="a b", error="insufficient_scope", scope="x y"'),
        (("api", "insufficient_scope", ""), b'Bearer realm="api", error="insufficient_scope"'),
    ],
)
def test_a_challenge_says_what_is_amiss_and_nothing_when_no_credential_came(
    arguments: tuple[str, ...], value: bytes
) -> None:
    assert challenge(*arguments) == (b"www-authenticate", value)


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [
        (0, 1, 1),
        (-3, 1, 1),
        (1e-9, 1, 1),
        (0.02, 1, 20),
        (0.0201, 1, 21),
        (1, 1, 1000),
        (1.0000001, 2, 1001),
        (1.1, 2, 1100),
        (59.9999, 60, 60000),
        (60, 60, 60000),
        (61, 60, 60000),
        (86400, 60, 60000),
        (float("inf"), 60, 60000),
    ],
)
def test_a_wait_is_rounded_up_and_at_most_a_minute(seconds: float, whole: int, milliseconds: int) -> None:
    assert retry_headers(seconds) == ((b"retry-after", b"%d" % whole), (b"retry-after-ms", b"%d" % milliseconds))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"),
        (-1, b"0s"),
        (1e-9, b"1ms"),
        (0.001, b"1ms"),
        (0.02, b"20ms"),
        (0.0201, b"21ms"),
        (0.547, b"547ms"),
        (0.999, b"999ms"),
        (0.9991, b"1s"),
        (1, b"1s"),
        (1.1, b"1.1s"),
        (1.5, b"1.5s"),
        (2.007, b"2.007s"),
        (8.64, b"8.64s"),
        (59.999, b"59.999s"),
        (59.9991, b"1m0s"),
        (60, b"1m0s"),
        (72, b"1m12s"),
        (172.8, b"2m52.8s"),
        (360, b"6m0s"),
        (3599.9999, b"1h0m0s"),
        (3600, b"1h0m0s"),
        (3661.25, b"1h1m1.25s"),
        (86400, b"24h0m0s"),
        (31 * 86400, b"744h0m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


_UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6}


def nanoseconds(text: str) -> int:
    """Read a duration as ``time.ParseDuration`` of Go does."""
    total, number, unit = 0, "", ""
    for character in f"{text}0":
        if (character.isdigit() or character == ".") and unit:
            whole, _, fraction = number.partition(".")
            total += int(f"{whole}{fraction}") * _UNITS[unit] // 10 ** len(fraction)
            number, unit = "", ""
        if character.isdigit() or character == ".":
            number += character
        else:
            unit += character
    return total


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 86400 * 10**9))
def test_whoever_waits_the_duration_has_waited_long_enough_and_less_than_a_millisecond_too_long(time: int) -> None:
    assert 0 <= nanoseconds(duration(time / 10**9).decode()) - time < 10**6
