"""Reading messages: lenient where clients differ without harm, exact where a mistake would change the conversation."""

import json
from typing import Any

import pytest

from agentrun_server.core.messages import Message
from agentrun_server.protocols.fields import MAX_CALL_ID
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat.requests import USER, read, refused

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "ok"}
TEXT = {"type": "text", "text": "Hi"}

MISSING = "missing_required_parameter"
WRONG_TYPE = "invalid_type"
VALUE = "invalid_value"


def calling(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


UNCHANGED: dict[str, list[dict[str, Any]]] = {
    "developer": [{"role": "developer", "content": "Be brief."}, USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "system parts": [{"role": "system", "content": [TEXT]}, USER],
    "user": [USER],
    "user name": [{**USER, "name": "ann"}],
    "user null name": [{**USER, "name": None}],
    "empty user": [{"role": "user", "content": ""}],
    "user parts": [
        {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]}
    ],
    "audio": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]}],
    "file data": [{"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "x"}}]}],
    "file id": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}],
    "unknown part": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "u"}}]}],
    "part with extra keys": [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}],
    "assistant": [USER, {"role": "assistant", "content": "Hello"}, USER],
    "assistant without content": [USER, {"role": "assistant"}, USER],
    "assistant with null content": [USER, {"role": "assistant", "content": None}, USER],
    "assistant with empty content": [USER, {"role": "assistant", "content": ""}, USER],
    "assistant parts": [USER, {"role": "assistant", "content": [TEXT, {"type": "refusal", "refusal": "no"}]}],
    "assistant no parts": [USER, {"role": "assistant", "content": []}],
    "assistant refusal": [USER, {"role": "assistant", "content": None, "refusal": "no", "audio": None}],
    "assistant echo": [
        USER,
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "reasoning_content": "hm", "x": 1},
        USER,
    ],
    "tool turn": [USER, calling(CALL), RESULT],
    "tool result in parts": [USER, calling(CALL), {**RESULT, "content": [TEXT]}],
    "a call with a thought in its id": [
        USER,
        calling({**CALL, "id": "x" * MAX_CALL_ID}),
        {**RESULT, "tool_call_id": "x" * MAX_CALL_ID},
    ],
    "two calls": [USER, calling(CALL, {**CALL, "id": "2"}), {**RESULT, "tool_call_id": "2"}, RESULT, USER],
    "custom call": [
        USER,
        calling({"id": "call_1", "type": "custom", "custom": {"name": "sh", "input": "ls"}}),
        RESULT,
    ],
    "call of the deprecated kind": [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "ok"},
    ],
    "function without content": [USER, {"role": "function", "name": "f", "content": None}],
    "tool message whose call was trimmed": [RESULT, USER],
    "unknown keys": [{"role": "user", "content": "Hi", "vendor": {"a": [1]}}],
}


@requirement("chat.request.roles", "chat.request.content", "chat.request.assistant", "chat.request.tool-message")
@pytest.mark.parametrize("name", UNCHANGED)
def test_a_good_conversation_reaches_the_agent_as_it_came(name: str) -> None:
    messages = json.loads(json.dumps(UNCHANGED[name]))
    request, _ = read({"messages": messages})
    assert request.messages == UNCHANGED[name]
    assert all(isinstance(message, Message) for message in request.messages)
    assert json.loads(json.dumps(request.messages)) == UNCHANGED[name]


MENDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "arguments as an object": (
        calling({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}),
        calling({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}),
    ),
    "no arguments": (
        calling({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": None}}),
        calling({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}),
    ),
    "a call without a type": (calling({"id": "call_1", "function": {"name": "f", "arguments": "{}"}}), calling(CALL)),
    "a call with a null type": (calling({**CALL, "type": None}), calling(CALL)),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_some_clients_send_otherwise_is_mended(name: str) -> None:
    sent, expected = MENDED[name]
    request, _ = read({"messages": [USER, sent, RESULT]})
    assert request.messages[1] == expected


@pytest.mark.parametrize("calls", [[], None])
def test_empty_tool_calls_are_taken_away(calls: Any) -> None:
    request, _ = read({"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": calls}, USER]})
    assert request.messages[1] == {"role": "assistant", "content": "a"}
    assert request.messages[1].tool_calls is None


def test_an_image_given_as_text_becomes_an_object() -> None:
    request, _ = read(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://e.com"}]}]}
    )
    assert request.messages[0].content == [{"type": "image_url", "image_url": {"url": "https://e.com"}}]


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "Hi"}, fields]}]


PART = "messages[0].content[1]"
FUNCTION = "messages[0].tool_calls[0].function"
BAD: dict[str, tuple[list[Any], str, str]] = {
    "null message": ([None], "messages[0]", WRONG_TYPE),
    "text as a message": (["Hi"], "messages[0]", WRONG_TYPE),
    "no role": ([{"content": "Hi"}], "messages[0].role", MISSING),
    "null role": ([{"role": None, "content": "Hi"}], "messages[0].role", MISSING),
    "unknown role": ([USER, {"role": "robot", "content": "Hi"}], "messages[1].role", VALUE),
    "role in capitals": ([{"role": "USER", "content": "Hi"}], "messages[0].role", VALUE),
    "role that is no text": ([{"role": ["user"], "content": "Hi"}], "messages[0].role", WRONG_TYPE),
    "user without content": ([{"role": "user"}], "messages[0].content", MISSING),
    "user with null content": ([{"role": "user", "content": None}], "messages[0].content", MISSING),
    "system without content": ([{"role": "system"}], "messages[0].content", MISSING),
    "content as a number": ([{"role": "user", "content": 5}], "messages[0].content", WRONG_TYPE),
    "content as an object": ([{"role": "user", "content": {"text": "Hi"}}], "messages[0].content", WRONG_TYPE),
    "no parts": ([{"role": "user", "content": []}], "messages[0].content", "empty_array"),
    "text as a part": ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]", WRONG_TYPE),
    "part without a type": (part(text="a"), f"{PART}.type", MISSING),
    "part with a number as type": (part(type=5), f"{PART}.type", WRONG_TYPE),
    "text part without text": (part(type="text"), f"{PART}.text", MISSING),
    "text part with a number": (part(type="text", text=5), f"{PART}.text", WRONG_TYPE),
    "image without an image": (part(type="image_url"), f"{PART}.image_url", MISSING),
    "image without a url": (part(type="image_url", image_url={}), f"{PART}.image_url.url", MISSING),
    "image with an empty url": (part(type="image_url", image_url=""), f"{PART}.image_url.url", "empty_string"),
    "image as a number": (part(type="image_url", image_url=5), f"{PART}.image_url", WRONG_TYPE),
    "audio without audio": (part(type="input_audio"), f"{PART}.input_audio", MISSING),
    "audio without data": (
        part(type="input_audio", input_audio={"format": "wav"}),
        f"{PART}.input_audio.data",
        WRONG_TYPE,
    ),
    "audio of another format": (
        part(type="input_audio", input_audio={"data": "x", "format": "ogg"}),
        f"{PART}.input_audio.format",
        VALUE,
    ),
    "file without a file": (part(type="file"), f"{PART}.file", MISSING),
    "file without data": (part(type="file", file={"filename": "a"}), f"{PART}.file", VALUE),
    "refusal part without text": (
        [{"role": "assistant", "content": [{"type": "refusal"}]}],
        "messages[0].content[0].refusal",
        WRONG_TYPE,
    ),
    "name as a number": ([{**USER, "name": 5}], "messages[0].name", WRONG_TYPE),
    "name that is too long": ([{**USER, "name": "x" * 257}], "messages[0].name", "string_above_max_length"),
    "tool without an id": ([{"role": "tool", "content": "ok"}], "messages[0].tool_call_id", MISSING),
    "tool with an id that is too long": (
        [{"role": "tool", "content": "ok", "tool_call_id": "x" * (MAX_CALL_ID + 1)}],
        "messages[0].tool_call_id",
        "string_above_max_length",
    ),
    "tool with a number as id": (
        [{"role": "tool", "content": "ok", "tool_call_id": 5}],
        "messages[0].tool_call_id",
        WRONG_TYPE,
    ),
    "tool without content": ([{"role": "tool", "tool_call_id": "1"}], "messages[0].content", MISSING),
    "function without a name": ([{"role": "function", "content": "ok"}], "messages[0].name", MISSING),
    "reasoning as a list": (
        [{"role": "assistant", "reasoning_content": []}],
        "messages[0].reasoning_content",
        WRONG_TYPE,
    ),
    "calls as an object": ([{"role": "assistant", "tool_calls": {"a": 1}}], "messages[0].tool_calls", WRONG_TYPE),
    "call as text": ([calling("f")], "messages[0].tool_calls[0]", WRONG_TYPE),  # type: ignore[arg-type]
    "call without an id": ([calling({"function": {"name": "f"}})], "messages[0].tool_calls[0].id", MISSING),
    "call of another type": ([calling({"id": "1", "type": "x"})], "messages[0].tool_calls[0].type", VALUE),
    "call without a function": ([calling({"id": "1"})], FUNCTION, MISSING),
    "call without a name": ([calling({"id": "1", "function": {}})], f"{FUNCTION}.name", MISSING),
    "arguments as a list": (
        [calling({"id": "1", "function": {"name": "f", "arguments": []}})],
        f"{FUNCTION}.arguments",
        WRONG_TYPE,
    ),
    "deprecated call without a name": (
        [{"role": "assistant", "function_call": {}}],
        "messages[0].function_call.name",
        MISSING,
    ),
}


@requirement("chat.error.bad-request")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_conversation_is_a_400_that_names_where_it_is_bad(name: str) -> None:
    messages, param, code = BAD[name]
    assert refused({"messages": messages}) == (param, code)


@requirement("chat.request.calls-answered")
@pytest.mark.parametrize(
    "messages",
    [
        [USER, calling(CALL)],
        [USER, calling(CALL), USER],
        [USER, calling(CALL), {**RESULT, "tool_call_id": "other"}],
        [USER, calling(CALL, {**CALL, "id": "call_2"}), RESULT],
        [USER, calling(CALL, {**CALL, "id": "call_2"}), RESULT, USER, {**RESULT, "tool_call_id": "call_2"}],
        [USER, calling(CALL), calling({**CALL, "id": "call_2"}), RESULT, {**RESULT, "tool_call_id": "call_2"}],
    ],
)
def test_a_call_without_its_answer_right_behind_it_is_refused(messages: list[Any]) -> None:
    assert refused({"messages": messages}) == ("messages", VALUE)


def test_a_conversation_has_a_longest_length() -> None:
    assert refused({"messages": [USER] * 11}, max_messages=10) == ("messages", "array_above_max_length")
    request, _ = read({"messages": [USER] * 10}, max_messages=10)
    assert len(request.messages) == 10
