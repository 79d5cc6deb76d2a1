"""Input items: every type in the forms clients send, what they are refused for, and references."""

from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import MAX_CALL_ID
from agentrun_server.protocols.openai_responses.items import MAX_BYTES, read_items, references, resolve
from tests.protocols.openai_responses.answers import Counter
from tests.protocols.openai_responses.items import read

TEXT = {"type": "input_text", "text": "Hi"}
SAID = {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}
DONE = {"status": "completed"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "1"}
SHELL = {"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": "ls"}
OWN = {"type": "mcp_call", "name": "f", "arguments": "{}", "server_label": "s"}
ASK = {"type": "mcp_approval_request", "name": "f", "arguments": "{}", "server_label": "s"}
YES = {"type": "mcp_approval_response", "approval_request_id": "a", "approve": True}

FORMS: list[tuple[Any, Any]] = [
    # as sent → as kept
    ({"role": "user", "content": "Hi"}, {"type": "message", "id": "msg_1", **DONE, "role": "user", "content": [TEXT]}),
    (
        {"role": "assistant", "content": "Hi", "phase": None},
        {"type": "message", "id": "msg_1", **DONE, "role": "assistant", "content": [SAID]},
    ),
    (
        {
            "type": "message",
            "id": "m",
            "status": "incomplete",
            "role": "assistant",
            "content": [SAID],
            "phase": "commentary",
        },
        {
            "type": "message",
            "id": "m",
            "status": "incomplete",
            "role": "assistant",
            "content": [SAID],
            "phase": "commentary",
        },
    ),
    (
        {"role": "developer", "content": [TEXT], "x": 1},
        {"type": "message", "id": "msg_1", **DONE, "role": "developer", "content": [TEXT], "x": 1},
    ),
    (CALL, {**CALL, "id": "fc_1", **DONE}),
    ({**CALL, "arguments": {"a": 1}}, {**CALL, "id": "fc_1", "arguments": '{"a": 1}', **DONE}),
    ({**CALL, "arguments": None, "id": None, "status": None}, {**CALL, "id": "fc_1", "arguments": "", **DONE}),
    ({**CALL, "namespace": None, "caller": None}, {**CALL, "id": "fc_1", **DONE}),
    ({**CALL, "call_id": "x" * MAX_CALL_ID}, {**CALL, "call_id": "x" * MAX_CALL_ID, "id": "fc_1", **DONE}),
    ({**SHELL, "input": None}, {**SHELL, "id": "ctc_1", "input": "", **DONE}),
    (OUTPUT, {**OUTPUT, "id": "fco_1", **DONE}),
    ({**OUTPUT, "output": [TEXT]}, {**OUTPUT, "output": [TEXT], "id": "fco_1", **DONE}),
    (SHELL, {**SHELL, "id": "ctc_1", **DONE}),
    (
        {**OUTPUT, "type": "custom_tool_call_output"},
        {**OUTPUT, "type": "custom_tool_call_output", "id": "ctco_1", **DONE},
    ),
    ({"type": "reasoning", "id": "rs_x", "summary": []}, {"type": "reasoning", "id": "rs_x", "summary": [], **DONE}),
    (
        {"type": "reasoning", "content": None, "encrypted_content": None, "summary": None},
        {"type": "reasoning", "id": "rs_1", "summary": [], **DONE},
    ),
    (
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "content": [{"type": "reasoning_text", "text": "x"}],
            "summary": [],
            **DONE,
        },
    ),
    (OWN, {**OWN, "id": "mcp_1", "output": None, "error": None, "approval_request_id": None, **DONE}),
    (
        {**OWN, "error": "no net", "output": None},
        {**OWN, "id": "mcp_1", "output": None, "error": "no net", "approval_request_id": None, "status": "failed"},
    ),
    (ASK, {**ASK, "id": "mcpr_1"}),
    (YES, {**YES, "id": "mcpa_1"}),
    ({"type": "mcp_list_tools", "tools": []}, {"type": "mcp_list_tools", "tools": [], "id": "mcpl_1"}),
    ({"type": "compaction", "encrypted_content": "x"}, {"type": "compaction", "encrypted_content": "x", "id": "cmp_1"}),
    ({"type": "item_reference", "id": "msg_9"}, {"type": "item_reference", "id": "msg_9"}),
    ({"id": "msg_9"}, {"type": "item_reference", "id": "msg_9"}),
    ({"type": None, "id": "msg_9"}, {"type": "item_reference", "id": "msg_9"}),
    ({"type": "hologram", "depth": 3, "x": None}, {"type": "hologram", "depth": 3, "x": None, "id": "item_1"}),
]

MISSING, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"

BAD: list[tuple[Any, str, str]] = [
    # item, where behind input[0], code
    ("Hi", "", TYPE),
    ({}, ".type", MISSING),
    ({"type": 5}, ".type", TYPE),
    ({"type": ""}, ".type", "empty_string"),
    ({"type": "message"}, ".role", MISSING),
    ({"role": "tool", "content": "x"}, ".role", VALUE),
    ({"role": 5, "content": "x"}, ".role", TYPE),
    ({"role": "user"}, ".content", MISSING),
    ({"role": "user", "content": 5}, ".content", TYPE),
    ({"role": "user", "content": [{"type": "input_text"}]}, ".content[0].text", MISSING),
    ({"role": "user", "content": "x", "id": 5}, ".id", TYPE),
    ({"role": "user", "content": "x", "id": ""}, ".id", "empty_string"),
    ({"role": "user", "content": "x", "status": "great"}, ".status", VALUE),
    ({"role": "assistant", "content": "x", "phase": "last"}, ".phase", VALUE),
    ({**CALL, "call_id": None}, ".call_id", MISSING),
    ({**CALL, "call_id": 5}, ".call_id", TYPE),
    ({**CALL, "call_id": ""}, ".call_id", "empty_string"),
    ({**CALL, "call_id": "x" * (MAX_CALL_ID + 1)}, ".call_id", "string_above_max_length"),
    ({**CALL, "name": "x" * 257}, ".name", "string_above_max_length"),
    ({**CALL, "name": None}, ".name", MISSING),
    ({**CALL, "arguments": 5}, ".arguments", TYPE),
    ({**CALL, "status": "failed"}, ".status", VALUE),
    ({**OUTPUT, "call_id": None}, ".call_id", MISSING),
    ({**OUTPUT, "output": None}, ".output", MISSING),
    ({**OUTPUT, "output": {"a": 1}}, ".output", TYPE),
    ({**SHELL, "input": 5}, ".input", TYPE),
    ({**SHELL, "name": None}, ".name", MISSING),
    ({"type": "reasoning", "summary": "x"}, ".summary", TYPE),
    ({"type": "reasoning", "summary": [5]}, ".summary[0]", TYPE),
    ({"type": "reasoning", "encrypted_content": 5}, ".encrypted_content", TYPE),
    ({**OWN, "name": None}, ".name", MISSING),
    ({**OWN, "output": 5}, ".output", TYPE),
    ({**OWN, "server_label": 5}, ".server_label", TYPE),
    ({**OWN, "status": "great"}, ".status", VALUE),
    ({**ASK, "name": None}, ".name", MISSING),
    ({**YES, "approval_request_id": None}, ".approval_request_id", MISSING),
    ({**YES, "approve": None}, ".approve", MISSING),
    ({**YES, "approve": "yes"}, ".approve", TYPE),
    ({**YES, "reason": 5}, ".reason", TYPE),
    ({"type": "compaction"}, ".encrypted_content", MISSING),
    ({"type": "item_reference"}, ".id", MISSING),
]


@pytest.mark.parametrize(("sent", "kept"), FORMS)
def test_every_form_becomes_the_one_that_is_kept(sent: Any, kept: Any) -> None:
    assert read(sent) == [kept]
    assert read(kept) == [kept], "reading it again changes nothing"


@pytest.mark.parametrize(("item", "where", "code"), BAD)
def test_a_malformed_item_is_refused_by_its_place(item: Any, where: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(item)
    assert (raised.value.param, raised.value.code) == (f"[0]{where}".replace("[0]", "input[0]", 1), code)


def test_a_text_is_a_message_of_the_user() -> None:
    assert read_items("Hi", Counter(), max_items=1) == read({"role": "user", "content": [TEXT]})


def test_references_are_found_once_each_and_replaced() -> None:
    items = read({"id": "msg_9"}, {"role": "user", "content": "x"}, {"id": "rs_1"}, {"id": "msg_9"})
    assert references(items) == ["msg_9", "rs_1"]
    known = {"msg_9": {"type": "message", "id": "msg_9"}, "rs_1": {"type": "reasoning", "id": "rs_1"}}
    assert resolve(items, known) == [known["msg_9"], items[1], known["rs_1"], known["msg_9"]]


def test_what_is_referred_to_has_a_bound_however_often_it_is() -> None:
    known = {"a": {"type": "message", "id": "a", "content": "x" * (MAX_BYTES // 4)}}
    assert resolve(read(*[{"id": "a"}] * 3), known) == [known["a"]] * 3
    with pytest.raises(InvalidRequestError) as refused:
        resolve(read(*[{"id": "a"}] * 4), known, param="items")
    assert (refused.value.param, refused.value.code) == ("items", "context_length_exceeded")


def test_a_reference_to_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="Item with id 'msg_9' not found") as raised:
        resolve(read({"id": "msg_9"}), {})
    assert (raised.value.param, raised.value.code) == ("input", "item_not_found")


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_items([{"type": "hologram", "depth": [float("inf")]}], Counter(), max_items=1)
    assert raised.value.code == "invalid_json"
