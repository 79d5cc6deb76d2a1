"""What the scripted upstream refuses, as OpenAI does. An upstream that takes everything hides the bugs of an
agent.

Each check answers with the error OpenAI gives, or None when the request is fine.
"""

import re
from typing import Any

from agentrun_server.testing.turns import UpstreamError

__all__ = ["refuse_chat", "refuse_responses"]

Json = dict[str, Any]

_ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def refuse_chat(body: Json) -> UpstreamError | None:
    """Check a request of Chat Completions."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return _bad("Missing or empty parameter: 'messages'.", "messages", "missing_required_parameter")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return _bad(f"Invalid message or role at messages[{index}].", f"messages[{index}].role")
    if body.get("stream_options") and body.get("stream") is not True:
        return _bad("'stream_options' is only allowed when 'stream' is enabled.", "stream_options")
    return _refuse_tool_messages(messages) or _refuse_chat_tools(body) or _refuse_common(body)


def refuse_responses(body: Json) -> UpstreamError | None:
    """Check a request of the Responses API."""
    if not (body.get("input") or body.get("previous_response_id") or body.get("conversation")):
        return _bad("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if body.get("previous_response_id") and body.get("conversation"):
        message = "'previous_response_id' and 'conversation' cannot be given together."
        return _bad(message, "previous_response_id", "mutually_exclusive_parameters")
    return _refuse_responses_tools(body) or _refuse_outputs(body) or _refuse_common(body)


def _refuse_common(body: Json) -> UpstreamError | None:
    if not isinstance(body.get("model"), str) or not body["model"]:
        return _bad("you must provide a model parameter", "model", "missing_required_parameter")
    n = body.get("n")
    if n is not None and (type(n) is not int or not 1 <= n <= 128):
        return _bad("Invalid 'n': expected an integer between 1 and 128.", "n")
    return None


def _refuse_tool_messages(messages: list[Json]) -> UpstreamError | None:
    """Every tool message answers a call of the assistant's message before it; every call gets its answer."""
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if message.get("tool_call_id") not in open_calls:
                return _bad(
                    "messages with role 'tool' must be a response to a preceding message with 'tool_calls'.",
                    f"messages[{index}].role",
                )
            open_calls.discard(message["tool_call_id"])
            continue
        if open_calls:
            return _unanswered(open_calls)
        calls = message.get("tool_calls") or []
        if not all(map(_good_call, calls)):
            return _bad(
                f"Invalid 'messages[{index}].tool_calls': each has an id, a type and arguments as a string.",
                f"messages[{index}].tool_calls",
                "invalid_type",
            )
        open_calls = {call["id"] for call in calls}
    return _unanswered(open_calls) if open_calls else None


def _good_call(call: object) -> bool:
    match call:
        case {"id": str(), "type": "function", "function": {"name": str(), "arguments": str()}}:
            return True
        case {"id": str(), "type": "custom", "custom": {"name": str(), "input": str()}}:
            return True
        case _:
            return False


def _unanswered(calls: set[str]) -> UpstreamError:
    return _bad(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        "'tool_call_id'. The following tool_call_ids did not have response messages: "
        f"{', '.join(sorted(calls))}",
        "messages",
    )


def _refuse_outputs(body: Json) -> UpstreamError | None:
    """Every function output belongs to a call: one in the input, or one the stored context may hold."""
    items = body.get("input")
    if not isinstance(items, list) or body.get("previous_response_id") or body.get("conversation"):
        return None
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            return _bad(f"Invalid type for 'input[{index}]'.", f"input[{index}]", "invalid_type")
    calls = {item.get("call_id") for item in items if item.get("type") == "function_call"}
    for item in items:
        if item.get("type") == "function_call_output" and item.get("call_id") not in calls:
            return _bad(f"No tool call found for function call output with call_id {item.get('call_id')}.", "input")
    return None


def _refuse_chat_tools(body: Json) -> UpstreamError | None:
    for index, tool in enumerate(body.get("tools") or []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in ("function", "custom") or not isinstance(tool.get(kind), dict):
            return _bad(f"Invalid value: 'tools[{index}].type'.", f"tools[{index}].type")
        if not _good_name(tool[kind].get("name")):
            return _bad(f"Invalid 'tools[{index}].{kind}.name'.", f"tools[{index}].{kind}.name")
    if body.get("tool_choice") not in (None, "none") and not body.get("tools"):
        return _bad("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    return None


def _refuse_responses_tools(body: Json) -> UpstreamError | None:
    for index, tool in enumerate(body.get("tools") or []):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            return _bad(f"Invalid value: 'tools[{index}].type'.", f"tools[{index}].type")
        if tool["type"] in ("function", "custom") and not _good_name(tool.get("name")):
            # The shape of Chat Completions, with the name one level down, is the usual mistake.
            return _bad(f"Missing required parameter: 'tools[{index}].name'.", f"tools[{index}].name")
    return None


def _good_name(name: object) -> bool:
    return isinstance(name, str) and _TOOL_NAME.fullmatch(name) is not None


def _bad(message: str, param: str, code: str = "invalid_value") -> UpstreamError:
    return UpstreamError(400, message, code=code, param=param)
