"""Messages of a Responses WebSocket, as values."""

import json
from typing import Any

import pytest

from agentrun_server.errors import APIError, InvalidRequestError, ServiceUnavailableError
from agentrun_server.server.responses.socket_messages import (
    Create,
    error_message,
    event_message,
    input_items,
    output_items,
    read_create,
    read_lane,
    request_body,
)

CREATE = {"type": "response.create", "model": "m"}


@pytest.mark.parametrize("name", ["a", "A-z_0.9", "x" * 256, "-", "..."])
def test_a_lane_has_a_name_of_few_characters(name: str) -> None:
    assert read_lane({"stream_id": name}) == name


@pytest.mark.parametrize("message", [{}, {"stream_id": None}])
def test_there_is_a_lane_without_a_name(message: dict[str, Any]) -> None:
    assert read_lane(message) is None


@pytest.mark.parametrize("name", ["", "x" * 257, "a b", 'a"', "ä", "a\n", "a/b", 1, True, [], {}])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_lane({"stream_id": name})
    assert (refused.value.code, refused.value.param) == ("invalid_stream_id", "stream_id")


def test_what_is_of_the_connection_is_taken_out_of_the_body() -> None:
    message = {
        **CREATE,
        "stream_id": "a",
        "stream": True,
        "stream_options": {},
        "background": False,
        "generate": True,
        "input": "hi",
        "previous_response_id": "resp_1",
        "store": False,
        "anything": 1,
    }
    fields = {"model": "m", "store": False, "anything": 1}
    assert read_create(message) == Create(fields, "hi", "resp_1", generate=True)


def test_null_is_absent() -> None:
    nothing = dict.fromkeys(("generate", "background", "input", "previous_response_id", "stream"))
    assert read_create({**CREATE, **nothing}) == Create({"model": "m"}, None, None, generate=True)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"model": "m"}, "type"),
        ({"type": "response.cancel"}, "type"),
        ({"type": 1}, "type"),
        ({**CREATE, "background": True}, "background"),
        ({**CREATE, "background": "yes"}, "background"),
        ({**CREATE, "generate": 0}, "generate"),
        ({**CREATE, "previous_response_id": 1}, "previous_response_id"),
    ],
)
def test_what_there_is_not_is_refused_with_the_name_of_the_field(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_create(message)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("hi", [{"type": "message", "role": "user", "content": "hi"}]),
        ("", [{"type": "message", "role": "user", "content": ""}]),
        ([], []),
        ([{"a": "ä\u2028"}, 1], [{"a": "ä\u2028"}, 1]),
        (None, []),
        (7, []),
    ],
)
def test_an_input_becomes_the_members_of_an_array(value: Any, items: list[Any]) -> None:
    assert json.loads(f"[{input_items(value)}]") == items


def create(value: Any = "hi", **fields: Any) -> Create:
    return Create({"model": "m", **fields}, value, None, generate=True)


@pytest.mark.parametrize(
    ("value", "before", "base", "body"),
    [
        ("hi", None, None, {"input": "hi"}),
        (None, None, None, {}),
        ([], None, None, {"input": []}),
        (7, None, None, {"input": 7}),
        ("hi", None, "resp_1", {"input": "hi", "previous_response_id": "resp_1"}),
        ([2], "0,1", None, {"input": [0, 1, 2]}),
        ([], "0,1", None, {"input": [0, 1]}),
        (None, "0,1", "resp_1", {"input": [0, 1], "previous_response_id": "resp_1"}),
        (None, "", None, {"input": []}),
        (7, "0,1", None, {"input": 7}),
        ("hi", "0", None, {"input": [0, {"type": "message", "role": "user", "content": "hi"}]}),
    ],
)
def test_what_was_said_is_put_in_front_of_the_input(
    value: Any, before: str | None, base: str | None, body: dict[str, Any]
) -> None:
    expected = {"model": "m", "store": False, "stream": True, **body}
    assert json.loads(request_body(create(value, store=False), before, base)) == expected


def test_what_was_said_can_be_sent_as_input_again() -> None:
    said = [{"type": "message", "content": "a\ud83d\u2028ä"}, {"type": "reasoning"}]
    sent = json.loads(request_body(Create({}, "more", None, generate=True), output_items(said), None))["input"]
    assert sent[:2] == [{"type": "message", "content": "a?\u2028ä"}, {"type": "reasoning"}]


def test_events_of_a_named_lane_carry_its_name() -> None:
    event = b'{"type":"x","a":{"b":"}\xc3\xa4"}}'
    assert event_message(event, None) == event.decode()
    assert json.loads(event_message(event, "main")) == {**json.loads(event), "stream_id": "main"}


def test_an_error_has_the_status_and_the_headers_of_its_answer() -> None:
    error = ServiceUnavailableError("Later.", code="busy", param="x").retry_after(2)
    assert json.loads(error_message(error, "main")) == {
        "type": "error",
        "status": 503,
        "stream_id": "main",
        "error": {
            "type": "server_error",
            "code": "busy",
            "message": "Later.",
            "param": "x",
            "headers": {"retry-after": "2", "retry-after-ms": "2000"},
        },
    }


def test_an_error_always_has_a_code() -> None:
    told = json.loads(error_message(APIError("No."), None))
    assert told == {
        "type": "error",
        "status": 500,
        "error": {"type": "server_error", "code": "server_error", "message": "No.", "param": None},
    }
