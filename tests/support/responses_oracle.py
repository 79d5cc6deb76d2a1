"""An independent judge of Responses API answers. Imports nothing of the project.

`check_response_stream` reads the bytes of a stream, `check_response` a response in one body. Each rule has a name in
`RULES`; a violation is an `AssertionError` that begins with it. What is returned is the answer as a client puts it
together from the events alone; that it equals the response at the end is one of the rules.

The rules are those real clients need: OpenAI's specification, Open Responses, recorded traffic, and what was seen to
break stock clients.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tests.support.sse import parse_events

__all__ = ["RULES", "ParsedResponse", "RuleViolationError", "check_response", "check_response_stream"]

Json = dict[str, Any]

RULES: Mapping[str, str] = {
    # bytes
    "utf-8": "the stream is UTF-8",
    "lf-only": "lines end with LF",
    "block": "an event is an event line and a data line, closed by one blank line",
    "done-last": "[DONE] comes once, last, without an event line",
    "json": "the data is one JSON object, without NaN, Infinity or repeated keys",
    # events
    "type": "the event line is the type, and the type is known",
    "keys": "an event has the keys of its type, and no others",
    "sequence": "sequence_number counts from 0 without a gap",
    "created-first": "the first event is response.created, then queued or in_progress",
    "lifecycle": "queued comes before in_progress, each once; items only while in progress",
    "terminal": "one terminal event with a fitting status, and nothing behind it",
    "obfuscation": "obfuscation stands on deltas only, and only when asked for",
    # items
    "item-added": "an item is added with the next output_index, an id of its own, in progress and empty",
    "item-id": "events of an item have its id and its output_index",
    "item-order": "events of an item come in the order of the table of its type",
    "one-open": "no item begins while a message or reasoning is open, and no client call while another is",
    "part-index": "parts, summaries and annotations count from 0 without a gap",
    "delta": "a delta is text with something in it",
    "text": "what is done is what the deltas say together",
    "item-done": "the item that is done is the item the events describe",
    "arguments": "arguments of a function that are done came with at least one delta",
    "phase": "a message is commentary or the final answer; only the last one is final",
    # the response
    "response-keys": "a response has every key",
    "response-types": "each of them has the right type",
    "response-same": "id, time and what is repeated of the request are the same in every event",
    "output": "the output at the end is the items that are done; only calls of the client's may have been cut",
    "usage": "usage is null until the end, then whole numbers, and a total that is the sum",
    "error": "an error event has both shapes, and response.failed follows",
    "answer": "a completed response has an item that answers",
}


class RuleViolationError(AssertionError):
    """An answer breaks the rule `rule`."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {RULES[rule]}. {detail}")
        self.rule = rule


_KEYS: Mapping[str, set[str]] = {
    "response.created": {"response"},
    "response.queued": {"response"},
    "response.in_progress": {"response"},
    "response.completed": {"response"},
    "response.incomplete": {"response"},
    "response.failed": {"response"},
    "error": {"code", "message", "param", "error"},
    "response.output_item.added": {"output_index", "item"},
    "response.output_item.done": {"output_index", "item"},
    "response.content_part.added": {"item_id", "output_index", "content_index", "part"},
    "response.content_part.done": {"item_id", "output_index", "content_index", "part"},
    "response.output_text.delta": {"item_id", "output_index", "content_index", "delta", "logprobs"},
    "response.output_text.done": {"item_id", "output_index", "content_index", "text", "logprobs"},
    "response.output_text.annotation.added": {
        "item_id", "output_index", "content_index", "annotation_index", "annotation",
    },
    "response.refusal.delta": {"item_id", "output_index", "content_index", "delta"},
    "response.refusal.done": {"item_id", "output_index", "content_index", "refusal"},
    "response.reasoning_summary_part.added": {"item_id", "output_index", "summary_index", "part"},
    "response.reasoning_summary_part.done": {"item_id", "output_index", "summary_index", "part"},
    "response.reasoning_summary_text.delta": {"item_id", "output_index", "summary_index", "delta"},
    "response.reasoning_summary_text.done": {"item_id", "output_index", "summary_index", "text"},
    "response.function_call_arguments.delta": {"item_id", "output_index", "delta"},
    "response.function_call_arguments.done": {"item_id", "output_index", "name", "arguments"},
    "response.custom_tool_call_input.delta": {"item_id", "output_index", "delta"},
    "response.custom_tool_call_input.done": {"item_id", "output_index", "input"},
    "response.mcp_call.in_progress": {"item_id", "output_index"},
    "response.mcp_call_arguments.delta": {"item_id", "output_index", "delta"},
    "response.mcp_call_arguments.done": {"item_id", "output_index", "arguments"},
    "response.mcp_call.completed": {"item_id", "output_index"},
    "response.mcp_call.failed": {"item_id", "output_index"},
}  # fmt: skip
"""Every type of event, and its keys beside type and sequence_number."""

_ADDED, _DONE = "output_item.added", "output_item.done"

_ORDER: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    # type of item → state → event → next state
    "message": {
        "added": {"content_part.added": "part"},
        "part": {
            "output_text.delta": "part",
            "output_text.annotation.added": "part",
            "output_text.done": "told",
            "refusal.delta": "part",
            "refusal.done": "told",
        },
        "told": {"content_part.done": "between"},
        "between": {"content_part.added": "part", _DONE: "done"},
    },
    "reasoning": {
        "added": {"reasoning_summary_part.added": "part"},
        "part": {"reasoning_summary_text.delta": "part", "reasoning_summary_text.done": "told"},
        "told": {"reasoning_summary_part.done": "between"},
        "between": {_DONE: "done"},
    },
    "function_call": {
        "added": {"function_call_arguments.delta": "added", "function_call_arguments.done": "told"},
        "told": {_DONE: "done"},
    },
    "custom_tool_call": {
        "added": {"custom_tool_call_input.delta": "added", "custom_tool_call_input.done": "told"},
        "told": {_DONE: "done"},
    },
    "mcp_call": {
        "added": {"mcp_call.in_progress": "running"},
        "running": {"mcp_call_arguments.delta": "running", "mcp_call_arguments.done": "told"},
        "told": {"mcp_call.completed": "returned", "mcp_call.failed": "failed", _DONE: "done"},
        "returned": {_DONE: "done"},
        "failed": {_DONE: "done"},
    },
    "mcp_approval_request": {"added": {_DONE: "done"}},
}

_PREFIXES = {
    "message": "msg_", "reasoning": "rs_", "function_call": "fc_", "custom_tool_call": "ctc_", "mcp_call": "mcp_",
    "mcp_approval_request": "mcpr_",
}  # fmt: skip
_EMPTY: Mapping[str, Json] = {
    "message": {"role": "assistant", "status": "in_progress", "content": []},
    "reasoning": {"status": "in_progress", "summary": []},
    "function_call": {"status": "in_progress", "arguments": ""},
    "custom_tool_call": {"status": "in_progress", "input": ""},
    "mcp_call": {
        "status": "in_progress", "arguments": "", "output": None, "error": None, "approval_request_id": None,
    },
    "mcp_approval_request": {},
}  # fmt: skip
"""How an item begins."""
_ALSO = {
    "function_call": {"call_id", "name"},
    "custom_tool_call": {"call_id", "name"},
    "mcp_call": {"server_label", "name"},
    "mcp_approval_request": {"server_label", "name", "arguments"},
}
"""What it has from the beginning besides, as text."""

_TERMINAL = {
    "response.completed": {"completed"},
    "response.incomplete": {"incomplete", "cancelled"},
    "response.failed": {"failed"},
}
_CUT_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}

_TEXT_OR_NULL = (str, type(None))
_RESPONSE: Mapping[str, type | tuple[type, ...]] = {
    "id": str, "object": str, "created_at": int, "completed_at": (int, type(None)), "status": str,
    "incomplete_details": (dict, type(None)), "model": str, "previous_response_id": _TEXT_OR_NULL,
    "instructions": _TEXT_OR_NULL, "output": list, "error": (dict, type(None)), "tools": list,
    "tool_choice": (str, dict), "truncation": str, "parallel_tool_calls": bool, "text": dict, "top_p": (int, float),
    "presence_penalty": (int, float), "frequency_penalty": (int, float), "top_logprobs": int,
    "temperature": (int, float), "reasoning": dict, "usage": (dict, type(None)),
    "max_output_tokens": (int, type(None)), "max_tool_calls": (int, type(None)), "store": bool, "background": bool,
    "service_tier": str, "metadata": dict, "safety_identifier": _TEXT_OR_NULL, "prompt_cache_key": _TEXT_OR_NULL,
}  # fmt: skip
_OPTIONAL = {"user": str, "conversation": dict, "prompt": dict}
_CHANGING = {"status", "output", "usage", "error", "incomplete_details", "completed_at"}


@dataclass(slots=True)
class _Item:
    """An item as the events tell it."""

    number: int
    item: Json
    state: str = "added"
    pieces: list[str] = field(default_factory=list[str])
    logprobs: list[Json] = field(default_factory=list[Json])

    @property
    def kind(self) -> str:
        return str(self.item["type"])


@dataclass(slots=True)
class ParsedResponse:
    """An answer, put together from its events."""

    events: list[Json] = field(default_factory=list[Json])
    items: list[Json] = field(default_factory=list[Json])
    """Every item, as the events tell it; also one that was never done."""
    response: Json = field(default_factory=dict[str, Any])
    """The response of the terminal event."""
    error: Json | None = None
    comments: list[str] = field(default_factory=list[str])

    @property
    def types(self) -> list[str]:
        """The types of the events, without ``response.``."""
        return [str(event["type"]).removeprefix("response.") for event in self.events]

    @property
    def text(self) -> str:
        """The text of all messages."""
        return "".join(
            part["text"]
            for item in self.items
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "output_text"
        )


def check_response_stream(body: bytes, *, obfuscation: bool = False) -> ParsedResponse:
    """Check a whole stream against every rule and return what it says."""
    comments, blocks = _blocks(body)
    judge = _Judge(obfuscation=obfuscation)
    for name, data in blocks:
        event = _json_object(data)
        _require("type", event.get("type") == name, f"event: {name}, type: {event.get('type')}")
        judge.take(event)
    parsed = judge.finish()
    parsed.comments = comments
    return parsed


def check_response(response: Json) -> None:
    """Check a response in one body."""
    _finite(response)
    _check_response(response)
    over = response["status"] not in ("queued", "in_progress")
    _check_usage(response["usage"], over=over)
    for item in response["output"]:
        kind = item.get("type")
        _require("item-added", kind in _ORDER and str(item.get("id")).startswith(_PREFIXES[kind]), repr(item))
        _require("item-done", not over or item.get("status") != "in_progress", repr(item))
    if response["status"] == "completed":
        _check_answer(response["output"])
        _check_phases(response["output"])


# Bytes to JSON.


def _blocks(body: bytes) -> tuple[list[str], list[tuple[str, str]]]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail("utf-8", str(error))
    _require("lf-only", "\r" not in text, "there is a CR")
    _require("block", text.endswith("\n\n"), f"it ends with {text[-40:]!r}")
    comments: list[str] = []
    blocks: list[tuple[str, str]] = []
    *parts, last = text.removesuffix("\n\n").split("\n\n")
    _require("done-last", last == "data: [DONE]", repr(last[:80]))
    for block in parts:
        if block.startswith(":"):
            _require("block", "\n" not in block, repr(block))
            comments.append(block[1:].strip())
            continue
        lines = block.split("\n")
        ok = len(lines) == 2 and lines[0].startswith("event: ") and lines[1].startswith("data: ")
        _require("block", ok, repr(block[:120]))
        blocks.append((lines[0].removeprefix("event: "), lines[1].removeprefix("data: ")))
    assert [(event.event, event.data) for event in parse_events(body)][:-1] == blocks, "the parser reads it otherwise"
    return comments, blocks


def _json_object(text: str) -> Json:
    def no_repeats(pairs: list[tuple[str, Any]]) -> Json:
        _require("json", len(dict(pairs)) == len(pairs), f"a key is repeated: {text[:200]}")
        return dict(pairs)

    def not_json(constant: str) -> NoReturn:
        _fail("json", f"{constant} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=no_repeats, parse_constant=not_json)
    except ValueError as error:
        _fail("json", f"{error}: {text[:200]!r}")
    _require("json", isinstance(value, dict), f"not an object: {text[:200]}")
    _finite(value)
    return dict(value)


def _finite(value: object) -> None:
    if isinstance(value, float):
        _require("json", math.isfinite(value), repr(value))
    elif isinstance(value, dict):
        for item in value.values():
            _finite(item)
    elif isinstance(value, list):
        for item in value:
            _finite(item)


def _same_text(text: str) -> str:
    """Two halves of a surrogate pair are one character, wherever they were cut."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


# The stream, event by event.


class _Judge:
    def __init__(self, *, obfuscation: bool) -> None:
        self._obfuscation = obfuscation
        self._parsed = ParsedResponse()
        self._items: list[_Item] = []
        self._status = ""
        self._over = False
        self._first: Json = {}

    def take(self, event: Json) -> None:
        parsed = self._parsed
        kind = event["type"]
        _require("type", kind in _KEYS, repr(kind))
        _require("terminal", not self._over, f"{kind} follows")
        _require("sequence", event.get("sequence_number") == len(parsed.events), repr(event)[:200])
        parsed.events.append(event)
        keys = event.keys() - {"type", "sequence_number"}
        if "obfuscation" in keys:
            ok = self._obfuscation and kind.endswith(".delta") and isinstance(event["obfuscation"], str)
            _require("obfuscation", ok, repr(event))
            keys -= {"obfuscation"}
        elif self._obfuscation:
            _require("obfuscation", not kind.endswith(".delta"), f"missing in {event}")
        _require("keys", keys == _KEYS[kind], f"{kind}: {sorted(keys ^ _KEYS[kind])}")
        if parsed.error is not None:
            _require("error", kind == "response.failed", f"{kind} follows")
        if "response" in event:
            self._take_lifecycle(kind, event["response"])
        else:
            _require("created-first", len(parsed.events) > 2, kind)
            _require("lifecycle", self._status == "in_progress" or kind == "error", f"{kind} while {self._status}")
            if kind == "error":
                _check_error(event)
                parsed.error = event
            else:
                self._take_item_event(kind.removeprefix("response."), event)

    def finish(self) -> ParsedResponse:
        _require("terminal", self._over, "there is none")
        self._parsed.items = [entry.item for entry in self._items]
        return self._parsed

    def _take_lifecycle(self, kind: str, response: Json) -> None:
        number = len(self._parsed.events) - 1
        _check_response(response)
        if number == 0:
            _require("created-first", kind == "response.created", kind)
            self._first = {key: value for key, value in response.items() if key not in _CHANGING}
        same = {key: value for key, value in response.items() if key not in _CHANGING}
        _require("response-same", same == self._first, f"{kind}: {same} after {self._first}")
        if kind in _TERMINAL:
            self._take_terminal(kind, response)
            return
        status = response["status"]
        allowed = {
            "response.created": {"": {"queued", "in_progress"}},
            "response.queued": {"queued": {"queued"}},
            "response.in_progress": {"queued": {"in_progress"}, "in_progress": {"in_progress"}},
        }[kind]
        _require("lifecycle", status in allowed.get(self._status, ()), f"{kind} with {status} while {self._status!r}")
        if kind == "response.queued":
            _require("created-first", number == 1, "queued comes late")
        repeated = kind == "response.in_progress" and "in_progress" in self._parsed.types[:-1]
        _require("lifecycle", not repeated, "in_progress comes twice")
        _require("output", response["output"] == [], repr(response["output"]))
        _check_usage(response["usage"], over=False)
        self._status = status

    def _take_terminal(self, kind: str, response: Json) -> None:
        _require("created-first", len(self._parsed.events) > 2, kind)
        _require("terminal", response["status"] in _TERMINAL[kind], f"{kind} with {response['status']}")
        failed = response["status"] == "failed"
        _require("error", failed == (self._parsed.error is not None), f"{kind}, error {self._parsed.error}")
        _check_usage(response["usage"], over=True)
        output = response["output"]
        _require("output", len(output) == len(self._items), f"{len(output)} of {len(self._items)} items")
        for entry, item in zip(self._items, output, strict=True):
            if entry.state != "done":
                ok = response["status"] != "completed" and entry.kind in _CUT_CALLS and entry.state == "added"
                _require("output", ok, f"{entry.item} is {entry.state}")
                key = _CUT_CALLS[entry.kind]
                entry.item = {**entry.item, "status": "incomplete", key: item.get(key)}
                _require("text", _same_text(str(item.get(key))) == _same_text("".join(entry.pieces)), repr(item))
            _require("output", item == entry.item, f"{item} was {entry.item}")
        if response["status"] == "completed":
            _check_answer(output)
            _check_phases(output)
        self._over = True
        self._parsed.response = response

    def _take_item_event(self, kind: str, event: Json) -> None:
        number = event["output_index"]
        if kind == _ADDED:
            self._take_added(number, event["item"])
            return
        _require("item-id", type(number) is int and 0 <= number < len(self._items), repr(event))
        entry = self._items[number]
        ident = event["item"].get("id") if kind == _DONE else event["item_id"]
        _require("item-id", ident == entry.item["id"], f"{ident} is not {entry.item['id']}")
        following = _ORDER[entry.kind].get(entry.state, {}).get(kind)
        _require("item-order", following is not None, f"{kind} of {entry.kind} that is {entry.state}")
        if kind == _DONE:
            self._take_done(entry, event["item"])
        else:
            _CHECKS.get(entry.kind, _check_nothing)(entry, kind, event)
        entry.state = str(following)

    def _take_added(self, number: object, item: Json) -> None:
        _require("item-added", number == len(self._items), f"output_index {number} is not {len(self._items)}")
        kind = item.get("type")
        _require("item-added", isinstance(kind, str) and kind in _ORDER, repr(item))
        ident = item.get("id")
        known = [entry.item["id"] for entry in self._items]
        ok = isinstance(ident, str) and ident.startswith(_PREFIXES[str(kind)]) and ident not in known
        _require("item-added", ok, repr(ident))
        also = _ALSO.get(str(kind), set())
        _require("item-added", item.keys() == {"id", "type"} | _EMPTY[str(kind)].keys() | also, repr(item))
        _require("item-added", _EMPTY[str(kind)].items() <= item.items(), repr(item))
        _require("item-added", all(isinstance(item[key], str) for key in also), repr(item))
        open_now = [entry.kind for entry in self._items if entry.state != "done"]
        spoken = {"message", "reasoning"}
        _require("one-open", not spoken & set(open_now), f"{kind} begins in {open_now}")
        if kind in _CUT_CALLS:
            _require("one-open", not _CUT_CALLS.keys() & set(open_now), f"{kind} begins in {open_now}")
        self._items.append(_Item(len(self._items), json.loads(json.dumps(item))))

    def _take_done(self, entry: _Item, item: Json) -> None:
        told = dict(entry.item)
        if entry.kind == "message":
            told["status"] = item.get("status")
            _require("item-done", item.get("status") in ("completed", "incomplete"), repr(item))
            if "phase" in item:
                _require("phase", item["phase"] in ("commentary", "final_answer"), repr(item["phase"]))
                told["phase"] = item["phase"]
        elif entry.kind == "mcp_call":
            told |= self._returned(entry, item)
        elif "status" in told:
            told["status"] = item.get("status")
            _require("item-done", item.get("status") in ("completed", "incomplete"), repr(item))
            if entry.kind in _CUT_CALLS:
                _require("item-done", item["status"] == "completed", repr(item))
        _require("item-done", item == told, f"{item} was told as {told}")
        entry.item = item

    @staticmethod
    def _returned(entry: _Item, item: Json) -> Json:
        told = {key: item.get(key) for key in ("status", "output", "error")}
        status = {"returned": "completed", "failed": "failed", "told": "incomplete"}[entry.state]
        _require("item-done", told["status"] == status, f"{entry.state}: {item}")
        _require("item-done", told["output"] is None or isinstance(told["output"], str), repr(item))
        _require("item-done", (told["error"] is not None) == (status == "failed"), repr(item))
        if status == "failed":
            error = told["error"] or {}
            ok = error.keys() == {"type", "content"} and error["type"] == "mcp_tool_execution_error"
            _require("item-done", ok, repr(item))
        if status == "completed":
            _require("item-done", told["output"] is not None, repr(item))
        return told


def _check_nothing(entry: _Item, kind: str, event: Json) -> None:
    _fail("item-order", f"{kind} of {entry.kind}: {event}")


def _check_message(entry: _Item, kind: str, event: Json) -> None:
    content = entry.item["content"]
    if kind == "content_part.added":
        _require("part-index", event["content_index"] == len(content), repr(event))
        part = event["part"]
        empty = [
            {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": ""},
        ]
        _require("item-added", part in empty, repr(part))
        content.append(part)
        entry.pieces, entry.logprobs = [], []
        return
    _require("part-index", event["content_index"] == len(content) - 1, repr(event))
    part = content[-1]
    spoken = "refusal" if part["type"] == "refusal" else "output_text"
    if kind != "content_part.done":
        _require("item-order", kind.startswith(spoken + "."), f"{kind} in a part of {part['type']}")
    match kind:
        case "output_text.delta" | "refusal.delta":
            _take_delta(entry, event)
            entry.logprobs += event.get("logprobs", [])
        case "output_text.annotation.added":
            _require("part-index", event["annotation_index"] == len(part["annotations"]), repr(event))
            ok = isinstance(event["annotation"], dict) and isinstance(event["annotation"].get("type"), str)
            _require("item-added", ok, repr(event))
            part["annotations"].append(event["annotation"])
        case "output_text.done":
            part["text"] = _told(entry, event["text"])
            _require("text", event["logprobs"] == entry.logprobs, repr(event))
            part["logprobs"] = list(entry.logprobs)
        case "refusal.done":
            part["refusal"] = _told(entry, event["refusal"])
        case _:
            _require("item-done", event["part"] == part, f"{event['part']} was told as {part}")


def _check_reasoning(entry: _Item, kind: str, event: Json) -> None:
    _require("part-index", event["summary_index"] == 0, repr(event))
    summary = entry.item["summary"]
    match kind:
        case "reasoning_summary_part.added":
            _require("item-added", event["part"] == {"type": "summary_text", "text": ""}, repr(event))
            summary.append(event["part"])
        case "reasoning_summary_text.delta":
            _take_delta(entry, event)
        case "reasoning_summary_text.done":
            summary[0]["text"] = _told(entry, event["text"])
        case _:
            _require("item-done", event["part"] == summary[0], repr(event))


def _check_call(entry: _Item, kind: str, event: Json) -> None:
    key = _CUT_CALLS.get(entry.kind, "arguments")
    if kind.endswith(".delta"):
        _take_delta(entry, event)
    elif kind.endswith(".done"):
        entry.item[key] = _told(entry, event[key])
        if key == "arguments":
            _require("arguments", bool(entry.pieces), repr(event))
        if "name" in event:
            _require("item-done", event["name"] == entry.item["name"], repr(event))


_CHECKS = {
    "message": _check_message,
    "reasoning": _check_reasoning,
    "function_call": _check_call,
    "custom_tool_call": _check_call,
    "mcp_call": _check_call,
}


def _take_delta(entry: _Item, event: Json) -> None:
    _require("delta", isinstance(event["delta"], str) and event["delta"] != "", repr(event))
    entry.pieces.append(event["delta"])


def _told(entry: _Item, text: object) -> str:
    _require("text", isinstance(text, str), repr(text))
    _require("text", _same_text(str(text)) == _same_text("".join(entry.pieces)), f"{text!r} from {entry.pieces}")
    return str(text)


# The response.


def _check_response(response: object) -> None:
    _require("response-types", isinstance(response, dict), repr(response))
    assert isinstance(response, dict)
    missing = _RESPONSE.keys() - response.keys()
    unknown = response.keys() - _RESPONSE.keys() - _OPTIONAL.keys()
    _require("response-keys", not missing and not unknown, f"missing {sorted(missing)}, unknown {sorted(unknown)}")
    for key, kinds in {**_RESPONSE, **_OPTIONAL}.items():
        if key in response:
            value = response[key]
            ok = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
            _require("response-types", ok, f"{key}: {value!r}")
    _require("response-types", response["id"].startswith("resp_"), repr(response["id"]))
    _require("response-types", response["object"] == "response", repr(response["object"]))
    status = response["status"]
    _require("response-types", (response["error"] is not None) == (status == "failed"), repr(response["error"]))
    if response["error"] is not None:
        ok = response["error"].keys() == {"code", "message"}
        ok = ok and response["error"]["code"] in ("server_error", "rate_limit_exceeded")
        _require("response-types", ok, repr(response["error"]))
    details = response["incomplete_details"]
    _require("response-types", (details is not None) == (status == "incomplete"), f"{status}: {details}")
    if details is not None:
        _require("response-types", details.get("reason") in ("max_output_tokens", "content_filter"), repr(details))
    _require("response-types", (response["completed_at"] is not None) == (status == "completed"), repr(response))
    _require("response-types", {"effort", "summary"} <= response["reasoning"].keys(), repr(response["reasoning"]))
    _require("response-types", isinstance(response["text"].get("format"), dict), repr(response["text"]))
    for tool in response["tools"]:
        if tool.get("type") == "function":
            _require("response-keys", {"name", "description", "parameters", "strict"} <= tool.keys(), repr(tool))


def _check_usage(usage: object, *, over: bool) -> None:
    if not over:
        _require("usage", usage is None, repr(usage))
        return
    _require("usage", isinstance(usage, dict), repr(usage))
    assert isinstance(usage, dict)
    keys = {"input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens"}
    _require("usage", usage.keys() == keys, repr(usage))
    _require("usage", usage["input_tokens_details"].keys() == {"cached_tokens", "cache_write_tokens"}, repr(usage))
    _require("usage", usage["output_tokens_details"].keys() == {"reasoning_tokens"}, repr(usage))
    numbers = [usage[key] for key in ("input_tokens", "output_tokens", "total_tokens")]
    numbers += [*usage["input_tokens_details"].values(), *usage["output_tokens_details"].values()]
    _require("usage", all(type(number) is int and number >= 0 for number in numbers), repr(usage))
    _require("usage", usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"], repr(usage))


def _check_error(event: Json) -> None:
    nested = event["error"]
    ok = isinstance(nested, dict) and nested.keys() == {"type", "code", "message", "param"}
    ok = ok and isinstance(nested["type"], str) and isinstance(event["message"], str)
    ok = ok and all(nested[key] == event[key] for key in ("code", "message", "param"))
    _require("error", ok, repr(event))


def _check_answer(output: list[Json]) -> None:
    kinds = {item["type"] for item in output}
    _require("answer", bool(kinds - {"reasoning", "mcp_call"}), repr(sorted(kinds)))


def _check_phases(output: list[Json]) -> None:
    phases = [item.get("phase") for item in output if item["type"] == "message"]
    _require("phase", all(phase == "commentary" for phase in phases[:-1]), repr(phases))
    _require("phase", not phases or phases[-1] in ("commentary", "final_answer"), repr(phases))


def _require(rule: str, holds: bool, detail: str) -> None:
    if not holds:
        _fail(rule, detail)


def _fail(rule: str, detail: str) -> NoReturn:
    raise RuleViolationError(rule, detail)
