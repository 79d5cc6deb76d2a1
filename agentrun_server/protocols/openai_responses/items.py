"""Reading input items: each gets an id and what clients leave out; what is not known is kept as it came.

Clients send items in many forms: messages without a type, calls without status, their own output without annotations,
references by a bare id. After `read_items` there is one form of each, the one in which items are stored and listed.

A request of a few bytes can mean a lot: items by reference, again and again, or packed into a compaction. What it means
in either way has a bound in bytes (`MAX_BYTES`), and so has the history before it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import (
    MAX_CALL_ID,
    Check,
    array,
    boolean,
    check_finite,
    choice,
    mapping,
    missing,
    text,
    wrong_type,
)
from agentrun_server.protocols.openai_responses.fields import identifier
from agentrun_server.protocols.openai_responses.parts import input_text, read_content

__all__ = ["MAX_BYTES", "PREFIXES", "Item", "read_items", "references", "refuse_size", "resolve", "size_of"]

Item = dict[str, Any]
"""An item of a conversation, in the shape of the Responses API; ``type`` is always there."""

PREFIXES: Mapping[str, str] = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "reasoning": "rs_",
    "mcp_call": "mcp_",
    "mcp_list_tools": "mcpl_",
    "mcp_approval_request": "mcpr_",
    "mcp_approval_response": "mcpa_",
    "compaction": "cmp_",
}
"""How the ids of each type begin; those of other types begin with ``item_``."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of items, as JSON in ASCII, that a request may have from elsewhere."""

_STATUSES = ("in_progress", "completed", "incomplete")

_CALL_ID = text(MAX_CALL_ID, min_length=1)


def read_items(value: Any, new_id: Callable[[str], str], *, max_items: int, param: str = "input") -> list[Item]:
    """Return the items of `value`, which is text or a list; they are normalised in place.

    Raises:
        InvalidRequestError: there are too many, or one is malformed; `param` says which.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": [input_text(value)]}]
    elif not isinstance(value, list):
        wrong_type(param, "a string or an array of items", value)
    items = array(value, param, 0, max_items)
    check_finite(items)
    return [_read_item(item, f"{param}[{i}]", new_id) for i, item in enumerate(items)]


def references(items: Sequence[Item]) -> list[str]:
    """Return the ids of the items that `items` only refer to, each once."""
    return list(dict.fromkeys(item["id"] for item in items if item["type"] == "item_reference"))


def resolve(items: Sequence[Item], known: Mapping[str, Item], *, param: str = "input") -> list[Item]:
    """Return `items` with each reference replaced by the item it means.

    Raises:
        InvalidRequestError: `known` lacks one, or all together are larger than `MAX_BYTES`.
    """
    resolved: list[Item] = []
    sizes: dict[str, int] = {}
    left = MAX_BYTES
    for item in items:
        if item["type"] == "item_reference":
            if item["id"] not in known:
                raise InvalidRequestError(
                    f"Item with id '{item['id']}' not found. Items are only kept when 'store' is true.",
                    code="item_not_found",
                    param=param,
                )
            item = known[item["id"]]  # noqa: PLW2901 - the same item, in full
            if item["id"] not in sizes:
                sizes[item["id"]] = size_of(item)
            left -= sizes[item["id"]]
            if left < 0:
                refuse_size(param)
        resolved.append(item)
    return resolved


def size_of(item: Item) -> int:
    """Return the bytes of an item as JSON in ASCII."""
    return len(json.dumps(item))


def refuse_size(param: str = "input") -> NoReturn:
    """Raise the answer to who refers to more than `MAX_BYTES`."""
    raise InvalidRequestError(
        f"The items that '{param}' refers to are larger than {MAX_BYTES} bytes together.",
        code="context_length_exceeded",
        param=param,
    )


def _read_item(value: Any, here: str, new_id: Callable[[str], str]) -> Item:
    item = mapping(value, here)
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference" if "id" in item else missing(f"{here}.type")
    item["type"] = kind = text(64, min_length=1)(kind, f"{here}.type")
    if item.get("id") is not None:
        identifier(item["id"], f"{here}.id")
    elif kind == "item_reference":
        missing(f"{here}.id")
    else:
        item["id"] = new_id(PREFIXES.get(kind, "item_"))
    read = _READERS.get(kind)
    if read is not None:
        for key in [key for key, member in item.items() if member is None]:
            del item[key]  # clients send their own models with every member, where the protocol has no null
        read(item, here)
    return item


def _read_message(item: Item, here: str) -> None:
    role = item.get("role")
    if role is None:
        missing(f"{here}.role")
    choice("user", "assistant", "system", "developer")(role, f"{here}.role")
    if item.get("content") is None:
        missing(f"{here}.content")
    item["content"] = read_content(item["content"], f"{here}.content", spoken_by_agent=role == "assistant")
    if "phase" in item:
        choice("commentary", "final_answer")(item["phase"], f"{here}.phase")
    _read_status(item, here)


def _read_status(item: Item, here: str) -> None:
    if item.get("status") is None:
        item["status"] = "completed"
    else:
        choice(*_STATUSES)(item["status"], f"{here}.status")


def _read_call(item: Item, here: str) -> None:
    _required(item, here, "call_id", check=_CALL_ID)
    _required(item, here, "name")
    item["arguments"] = _arguments(item.get("arguments"), f"{here}.arguments")
    _read_status(item, here)


def _read_custom_call(item: Item, here: str) -> None:
    _required(item, here, "call_id", check=_CALL_ID)
    _required(item, here, "name")
    item["input"] = text()(item.get("input", ""), f"{here}.input")
    _read_status(item, here)


def _read_output(item: Item, here: str) -> None:
    _required(item, here, "call_id", check=_CALL_ID)
    output = item.get("output")
    if output is None:
        missing(f"{here}.output")
    if not isinstance(output, str):
        item["output"] = read_content(output, f"{here}.output")
    _read_status(item, here)


def _read_reasoning(item: Item, here: str) -> None:
    for key in ("summary", "content"):
        if key in item:
            item[key] = read_content(array(item[key], f"{here}.{key}"), f"{here}.{key}")
    item.setdefault("summary", [])
    if "encrypted_content" in item:
        text()(item["encrypted_content"], f"{here}.encrypted_content")
    _read_status(item, here)


def _read_mcp_call(item: Item, here: str) -> None:
    _required(item, here, "name")
    item["server_label"] = text(256)(item.get("server_label") or "", f"{here}.server_label")
    item["arguments"] = _arguments(item.get("arguments"), f"{here}.arguments")
    if item.get("output") is not None:
        text()(item["output"], f"{here}.output")
    for key in ("output", "error", "approval_request_id"):
        item.setdefault(key, None)
    if item.get("status") is None:
        item["status"] = "completed" if item["error"] is None else "failed"
    else:
        choice(*_STATUSES, "calling", "failed")(item["status"], f"{here}.status")


def _read_approval_request(item: Item, here: str) -> None:
    _required(item, here, "name")
    item["server_label"] = text(256)(item.get("server_label") or "", f"{here}.server_label")
    item["arguments"] = _arguments(item.get("arguments"), f"{here}.arguments")


def _read_approval_response(item: Item, here: str) -> None:
    _required(item, here, "approval_request_id")
    if item.get("approve") is None:
        missing(f"{here}.approve")
    boolean(item["approve"], f"{here}.approve")
    if item.get("reason") is not None:
        text()(item["reason"], f"{here}.reason")


def _read_compaction(item: Item, here: str) -> None:
    if item.get("encrypted_content") is None:
        missing(f"{here}.encrypted_content")
    text()(item["encrypted_content"], f"{here}.encrypted_content")


_READERS: Mapping[str, Callable[[Item, str], None]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_output,
    "reasoning": _read_reasoning,
    "mcp_call": _read_mcp_call,
    "mcp_approval_request": _read_approval_request,
    "mcp_approval_response": _read_approval_response,
    "compaction": _read_compaction,
}


def _required(item: Item, here: str, key: str, *, check: Check = identifier) -> None:
    if item.get(key) is None:
        missing(f"{here}.{key}")
    check(item[key], f"{here}.{key}")


def _arguments(value: Any, here: str) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value)  # some clients send the object itself
    return str(text()(value, here))
