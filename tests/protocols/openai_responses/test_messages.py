"""The conversation an agent is given: which items become which messages, and what is out of order."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.core.messages import Message
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_chat.conversation import read_messages
from agentrun_server.protocols.openai_responses.messages import to_messages
from tests.protocols.openai_chat import strategies
from tests.protocols.openai_responses.answers import FUNCTION, judged
from tests.protocols.openai_responses.items import any_items, read
from tests.protocols.openai_responses.variants import VARIANTS, Variant

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Ho"}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def call(call_id: str, **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}", **more}


def output(call_id: str, value: Any = "1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def own(**more: Any) -> dict[str, Any]:
    return {"type": "mcp_call", "id": "mcp_1", "name": "f", "arguments": "{}", **more}


def asked(*ids: str, content: Any = None, **more: Any) -> dict[str, Any]:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "content": content, **more, "tool_calls": calls}


def told(call_id: str, content: Any = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


CONVERSATIONS: dict[str, tuple[list[Any], list[Any]]] = {
    # items → messages
    "nothing": ([], []),
    "turns": ([USER, SAID, USER], [USER, SAID, USER]),
    "every role": (
        [{"role": r, "content": "x"} for r in ("system", "developer", "user")],
        [{"role": r, "content": "x"} for r in ("system", "developer", "user")],
    ),
    "two messages of the assistant": ([SAID, SAID], [SAID, SAID]),
    "a call": ([call("a"), output("a")], [asked("a"), told("a")]),
    "calls together": (
        [call("a"), call("b"), output("b", "2"), output("a")],
        [asked("a", "b"), told("a"), told("b", "2")],
    ),
    "calls one after the other": (
        [call("a"), output("a"), call("b"), output("b")],
        [asked("a"), told("a"), asked("b"), told("b")],
    ),
    "text before a call": ([SAID, call("a"), output("a")], [asked("a", content="Ho"), told("a")]),
    "text after a call": ([call("a"), SAID, output("a")], [asked("a"), told("a"), SAID]),
    "somebody speaks before the output": ([call("a"), USER, output("a")], [asked("a"), told("a"), USER]),
    "an output of parts": (
        [call("a"), output("a", [{"type": "input_text", "text": "x"}])],
        [asked("a"), told("a", "x")],
    ),
    "reasoning before text": ([thought("hm"), SAID], [{**SAID, "reasoning_content": "hm"}]),
    "reasoning before a call": (
        [thought("hm"), thought("aha"), call("a"), output("a")],
        [asked("a", reasoning_content="hm\n\naha"), told("a")],
    ),
    "reasoning in between": ([SAID, thought("hm"), SAID], [SAID, {**SAID, "reasoning_content": "hm"}]),
    "reasoning alone": ([thought("hm"), USER], [USER]),
    "reasoning that says nothing": ([{"type": "reasoning", "summary": []}, SAID], [SAID]),
    "raw reasoning": (
        [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}, SAID],
        [{**SAID, "reasoning_content": "hm"}],
    ),
    "own tool": ([SAID, own(output="1"), SAID], [asked("mcp_1", content="Ho"), told("mcp_1"), SAID]),
    "own tool without its output": ([own()], [asked("mcp_1"), told("mcp_1", "")]),
    "own tool that failed": (
        [own(error={"type": "x", "content": [{"type": "text", "text": "no"}, {"text": 5}, 7]})],
        [asked("mcp_1"), told("mcp_1", "no")],
    ),
    "own tool that failed with a text": ([own(error="no")], [asked("mcp_1"), told("mcp_1", "no")]),
    "own tool that failed otherwise": ([own(error={"code": 5})], [asked("mcp_1"), told("mcp_1", '{"code":5}')]),
    "own tool among the client's": (
        [call("a"), own(output="2"), output("a")],
        [asked("a"), told("a"), asked("mcp_1"), told("mcp_1", "2")],
    ),
    "a call that was cut": ([SAID, call("a", status="incomplete"), USER], [SAID, USER]),
    "refusal": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
        [{"role": "assistant", "content": None, "refusal": "no"}],
    ),
    "custom": (
        [
            {"type": "custom_tool_call", "call_id": "a", "name": "sh", "input": "ls"},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "x"},
        ],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}],
            },
            told("a", "x"),
        ],
    ),
    "approval": (
        [
            {"type": "mcp_approval_request", "id": "q", "name": "f", "arguments": "{}"},
            {"type": "mcp_approval_response", "approval_request_id": "q", "approve": False, "reason": "no"},
        ],
        [asked("q"), told("q", '{"approve":false,"reason":"no"}')],
    ),
    "approval nobody gave": (
        [{"type": "mcp_approval_request", "id": "q", "name": "f", "arguments": "{}"}, USER],
        [USER],
    ),
    "what no message can hold": ([{"type": "mcp_list_tools", "tools": []}, {"type": "hologram"}, USER], [USER]),
    "the same call again": (
        [call("a"), output("a"), call("a"), output("a", "2")],
        [asked("a"), told("a"), asked("a"), told("a", "2")],
    ),
}


@pytest.mark.parametrize(("items", "messages"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_items_become_messages(items: list[Any], messages: list[Any]) -> None:
    made = to_messages(read(*items))
    assert made == messages
    assert all(isinstance(message, Message) for message in made)


def test_instructions_come_first() -> None:
    assert to_messages(read(USER), "Be kind.") == [{"role": "system", "content": "Be kind."}, USER]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([output("a")], "No tool call found for function call output with call_id 'a'"),
        ([output("a"), call("a")], "No tool call found"),
        (
            [call("a"), {**output("a"), "type": "custom_tool_call_output"}],
            "No tool call found for custom tool call output",
        ),
        ([call("a"), USER], "No tool output found for function call a"),
        ([call("a"), call("b"), output("a")], "No tool output found for function call b"),
        ([call("a"), output("a"), call("a")], "No tool output found for function call a"),
        ([call("x" * 999)], f"No tool output found for function call {'x' * 64}…."),
        ([output("x" * 999)], f"No tool call found for function call output with call_id '{'x' * 64}…'."),
        ([{"type": "mcp_approval_response", "approval_request_id": "q", "approve": True}], "No approval request found"),
        (
            [call("q"), {"type": "mcp_approval_response", "approval_request_id": "q", "approve": True}],
            "No approval request",
        ),
    ],
)
def test_what_is_out_of_order_is_refused(items: list[Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as raised:
        to_messages(read(*items))
    assert (raised.value.param, raised.value.code) == ("input", "invalid_value")


@given(any_items, st.none() | st.just("Be kind."))
def test_any_items_are_a_conversation_that_a_model_accepts_or_a_400(items: list[Any], instructions: str | None) -> None:
    try:
        messages = to_messages(read(*items), instructions)
    except InvalidRequestError:
        return
    if messages:
        # The reader of Chat Completions checks every message, and that each call is answered right behind it.
        assert read_messages(json.loads(json.dumps(messages)), max_messages=99) == messages
    said = [item["role"] for item in items if item["type"] == "message" and item["role"] != "assistant"]
    heard = [m.role for m in messages[instructions is not None :] if m.role not in ("assistant", "tool")]
    assert heard == said


def test_much_reasoning_is_put_together_once() -> None:
    """Put together item by item it would be copied as often as there are items, and twice in memory meanwhile."""
    items = read(*[thought("x" * 40_000)] * 50, SAID)
    tracemalloc.start()
    try:
        (message,) = to_messages(items)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message["reasoning_content"]) == 50 * 40_000 + 49 * 2
    assert peak < 1.5 * 50 * 40_000


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_was_answered_can_be_sent_back(variant: Variant) -> None:
    check_history(judged(variant.items, variant.body, variant.settings, variant.end).response["output"])


def check_history(answer: list[dict[str, Any]]) -> None:
    items = read(USER, *answer, *answers_to(answer), USER)
    assert items[1 : 1 + len(answer)] == answer or any(item["type"] == "reasoning" for item in answer)
    messages = to_messages(items)
    assert messages[0] == messages[-1] == USER
    assert read_messages(json.loads(json.dumps(messages)), max_messages=99) == messages


def answers_to(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a client answers to the calls it got."""
    return [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "1"}
        for item in answer
        if item["type"] in ("function_call", "custom_tool_call") and item["status"] == "completed"
    ]


@given(strategies.call_scripts(), st.lists(st.sampled_from(["text", ""]), max_size=2))
def test_any_calls_that_were_answered_can_be_sent_back(script: strategies.CallScript, texts: list[str]) -> None:
    tools = [{**FUNCTION, "name": name} for name in ("alpha", "beta")]
    check_history(judged([*texts, *script.said, *texts], {"tools": tools}).response["output"])
