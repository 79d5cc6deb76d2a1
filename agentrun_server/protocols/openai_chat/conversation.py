"""Reading the messages of a Chat Completions request.

Lenient where clients differ without harm (arguments as an object, ``image_url`` as a string, empty ``tool_calls``,
unknown keys and part types are kept), exact where a mistake would change the conversation.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from agentrun_server.core.messages import Message
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import (
    MAX_CALL_ID,
    array,
    choice,
    invalid,
    mapping,
    missing,
    text,
    wrong_type,
)

__all__ = ["read_messages"]

_Parts = Callable[[dict[str, Any], str], None]


def read_messages(value: Any, *, max_messages: int) -> list[Message]:
    """Return the conversation.

    Raises:
        InvalidRequestError: it is empty or too long, a message is malformed, or a call was not answered.
    """
    items = array(value, "messages", 1, max_messages)
    messages: list[Message] = []
    plain = True
    for i, item in enumerate(items):
        # Almost every message is a role and a text: nothing in it can be wrong.
        if type(item) is dict and len(item) == 2 and item.get("role") in _SPEAKERS and type(item.get("content")) is str:
            messages.append(Message(item))
        else:
            plain = False
            messages.append(_read_message(item, f"messages[{i}]"))
    if not plain:
        _check_calls_answered(messages)
    return messages


_SPEAKERS = ("user", "assistant", "system", "developer")  # no set: a role may be anything, also what has no hash


def _read_message(value: Any, here: str) -> Message:
    data = mapping(value, here)
    role = data.get("role")
    if role is None:
        missing(f"{here}.role")
    read = _ROLES.get(role) if isinstance(role, str) else None
    if read is None:
        choice(*_ROLES)(role, f"{here}.role")
        raise AssertionError("unreachable: every known role is in the table")
    read(data, here)
    if data.get("name") is not None:
        text(256)(data["name"], f"{here}.name")
    return Message(data)


def _read_spoken(data: dict[str, Any], here: str) -> None:
    """developer, system, user: content is required."""
    content = data.get("content")
    if isinstance(content, str):
        return
    if content is None:
        missing(f"{here}.content")
    _read_parts(content, f"{here}.content")


def _read_assistant(data: dict[str, Any], here: str) -> None:
    content = data.get("content")
    if content is not None and not isinstance(content, str):
        _read_parts(content, f"{here}.content", low=0)
    calls = data.get("tool_calls")
    if not calls:
        data.pop("tool_calls", None)
    else:
        for i, call in enumerate(array(calls, f"{here}.tool_calls")):
            _read_call(call, f"{here}.tool_calls[{i}]")
    if data.get("function_call") is not None:
        function = mapping(data["function_call"], f"{here}.function_call")
        _read_called(function, f"{here}.function_call")
    for key in ("refusal", "reasoning_content"):
        if data.get(key) is not None:
            text()(data[key], f"{here}.{key}")


def _read_tool(data: dict[str, Any], here: str) -> None:
    _read_spoken(data, here)
    if data.get("tool_call_id") is None:
        missing(f"{here}.tool_call_id")
    text(MAX_CALL_ID)(data["tool_call_id"], f"{here}.tool_call_id")


def _read_function(data: dict[str, Any], here: str) -> None:
    if data.get("name") is None:
        missing(f"{here}.name")
    if data.get("content") is not None:
        _read_spoken(data, here)


_ROLES: Mapping[str, _Parts] = {
    "developer": _read_spoken,
    "system": _read_spoken,
    "user": _read_spoken,
    "assistant": _read_assistant,
    "tool": _read_tool,
    "function": _read_function,
}


def _read_call(value: Any, here: str) -> None:
    call = mapping(value, here)
    if call.get("id") is None:
        missing(f"{here}.id")
    text(MAX_CALL_ID)(call["id"], f"{here}.id")
    if call.get("type") is None:
        call["type"] = "function"
    kind = choice("function", "custom")(call["type"], f"{here}.type")
    if call.get(kind) is None:
        missing(f"{here}.{kind}")
    body = mapping(call[kind], f"{here}.{kind}")
    _read_called(body, f"{here}.{kind}", "arguments" if kind == "function" else "input")


def _read_called(body: dict[str, Any], here: str, key: str = "arguments") -> None:
    if body.get("name") is None:
        missing(f"{here}.name")
    text(256)(body["name"], f"{here}.name")
    arguments = body.get(key)
    if arguments is None:
        body[key] = ""
    elif isinstance(arguments, dict):
        body[key] = json.dumps(arguments)  # some clients send the object itself
    elif not isinstance(arguments, str):
        wrong_type(f"{here}.{key}", "a string", arguments)


def _read_parts(value: Any, here: str, low: int = 1) -> None:
    if not isinstance(value, list):
        wrong_type(here, "a string or an array of parts", value)
    for i, item in enumerate(array(value, here, low)):
        part = mapping(item, f"{here}[{i}]")
        if part.get("type") is None:
            missing(f"{here}[{i}].type")
        kind = text(64)(part["type"], f"{here}[{i}].type")
        read = _PARTS.get(kind)
        if read is not None:
            read(part, f"{here}[{i}]")


def _read_text_part(part: dict[str, Any], here: str) -> None:
    if part.get("text") is None:
        missing(f"{here}.text")
    text()(part["text"], f"{here}.text")


def _read_refusal_part(part: dict[str, Any], here: str) -> None:
    text()(part.get("refusal"), f"{here}.refusal")


def _read_image_part(part: dict[str, Any], here: str) -> None:
    image = part.get("image_url")
    if image is None:
        missing(f"{here}.image_url")
    if isinstance(image, str):
        part["image_url"] = image = {"url": image}
    url = mapping(image, f"{here}.image_url").get("url")
    if url is None:
        missing(f"{here}.image_url.url")
    text(min_length=1)(url, f"{here}.image_url.url")


def _read_audio_part(part: dict[str, Any], here: str) -> None:
    if part.get("input_audio") is None:
        missing(f"{here}.input_audio")
    audio = mapping(part["input_audio"], f"{here}.input_audio")
    text(min_length=1)(audio.get("data"), f"{here}.input_audio.data")
    choice("wav", "mp3")(audio.get("format"), f"{here}.input_audio.format")


def _read_file_part(part: dict[str, Any], here: str) -> None:
    if part.get("file") is None:
        missing(f"{here}.file")
    file = mapping(part["file"], f"{here}.file")
    if not any(isinstance(file.get(key), str) for key in ("file_data", "file_id", "file_url")):
        invalid(f"{here}.file", "expected 'file_data' or 'file_id'.")


_PARTS: Mapping[str, _Parts] = {
    "text": _read_text_part,
    "refusal": _read_refusal_part,
    "image_url": _read_image_part,
    "input_audio": _read_audio_part,
    "file": _read_file_part,
}


def _check_calls_answered(messages: list[Message]) -> None:
    """Every call of an assistant message is answered by the tool messages right behind it.

    A tool message without its call is let pass: clients trim old turns.
    """
    pending: list[str] = []
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id in pending:
                pending.remove(message["tool_call_id"])
            continue
        if pending:
            break
        pending = [call.id for call in message.tool_calls or ()]
    if pending:
        raise InvalidRequestError(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. {len(pending)} tool_call_ids did not have response messages.",
            code="invalid_value",
            param="messages",
        )
