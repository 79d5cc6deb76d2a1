"""The one place where what an agent yields becomes a piece of text or a typed event.

Accepted: `str`; the typed events of `agentrun_server.core.events`; `AgentEvent(event, data)` of the AgentRun SDK; lists
of these; Chat Completions chunks and completions, as objects or dicts (what an upstream model said); objects with
``.content``, as LangChain's messages are. ``None`` and empty strings mean nothing. Everything else is a `TypeError`.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any, cast, get_args

from agentrun_server.core.events import (
    Addition,
    AgentEvent,
    Annotation,
    Custom,
    EventType,
    Failure,
    Finish,
    FinishReason,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    MergeOptions,
    Progress,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.usage import Usage

__all__ = ["coerce"]

_FINISH_REASONS = frozenset(get_args(FinishReason))

Items = Iterator[str | TypedEvent]


def coerce(item: Any) -> Items:
    """Yield what `item` means.

    Raises:
        TypeError: it means nothing the server knows; the message names its type, never its value.
    """
    if item is None:
        return
    if isinstance(item, str):
        if item:
            yield _exact(item)
    elif type(item) in _FIELDS:
        yield _checked(item)
    elif isinstance(item, AgentEvent):
        yield from _from_agent_event(item)
    elif isinstance(item, (list, tuple)):
        for member in cast("list[Any]", item):
            yield from coerce(member)
    elif isinstance(item, Mapping):
        yield from _from_mapping(cast("Mapping[str, Any]", item))
    else:
        yield from _from_object(item)


def _refuse(item: object) -> TypeError:
    kind = type(item)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return TypeError(
        f"an agent yielded or returned something of type {name}, which is no answer; yield str, typed events, "
        "AgentEvent, OpenAI chunks, or objects with .content"
    )


def _exact(text: str) -> str:
    """Return `text` as a plain `str`; `str()` itself would give the name of an enum's member, not its value."""
    return text if type(text) is str else str.__str__(text)


# --- typed events

_OPTIONAL_STR = (str, NoneType)
_OPTIONAL_MAPPING = (NoneType, Mapping)
_OPTIONAL_ADDITION = (NoneType, Addition)

_FIELDS: Mapping[type, Mapping[str, type | tuple[type, ...]]] = {
    TextDelta: {"text": str, "logprobs": _OPTIONAL_MAPPING, "addition": _OPTIONAL_ADDITION},
    ReasoningDelta: {"text": str, "addition": _OPTIONAL_ADDITION},
    RefusalDelta: {"text": str},
    FunctionCall: {"name": str, "id": _OPTIONAL_STR, "addition": _OPTIONAL_ADDITION},
    FunctionCallDelta: {
        "arguments": str,
        "name": _OPTIONAL_STR,
        "id": _OPTIONAL_STR,
        "index": (int, NoneType),
        "addition": _OPTIONAL_ADDITION,
    },
    FunctionCallOutput: {"id": str, "name": _OPTIONAL_STR},
    FunctionCallOutputDelta: {"id": str, "delta": str},
    Annotation: {"data": Mapping},
    Usage: {"input_tokens": int, "output_tokens": int, "cached_tokens": int, "reasoning_tokens": int},
    Finish: {"reason": str},
    StateUpdate: {},
    Interrupt: {
        "id": str,
        "prompt": str,
        "type": str,
        "tool_call_id": _OPTIONAL_STR,
        "options": (NoneType, list, tuple),
    },
    Step: {"name": str, "status": str},
    Progress: {"label": str},
    Custom: {"name": str},
    Raw: {"raw": str},
    Failure: {"message": str, "code": str},
}
"""What the fields of the typed events must be; those that may hold anything are not listed."""


def _checked(event: Any) -> TypedEvent:
    """Return `event` if its fields are what they must be: encoders trust them."""
    for name, kinds in _FIELDS[type(event)].items():
        value = getattr(event, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{type(event).__name__}.{name} must not be of type {type(value).__name__}")
    if type(event) is FunctionCall and not isinstance(event.arguments, str):
        return replace(event, arguments=_string(event.arguments))
    if type(event) is Finish and event.reason not in _FINISH_REASONS:
        raise TypeError(f"Finish.reason must be one of {', '.join(sorted(_FINISH_REASONS))}")
    return cast("TypedEvent", event)


# --- AgentRun SDK events


def _from_agent_event(event: AgentEvent) -> Items:
    data = _mapping(event.data, "data")
    addition = None
    if event.addition:
        options = _mapping(event.addition_merge_options or {}, "addition_merge_options")
        addition = Addition(_mapping(event.addition, "addition"), cast("MergeOptions", options))
    yield from _AGENT_EVENTS[event.event](data, addition)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"the '{name}' of an AgentEvent must be a dict, not {type(value).__name__}")
    return dict(cast("Mapping[str, Any]", value))


def _string(value: Any) -> str:
    """Return text as it is and anything else as JSON: tool arguments and results come both ways."""
    if isinstance(value, str):
        return _exact(value)
    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        except ValueError:  # NaN and infinities, which JSON does not have, become null
            finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
            return json.dumps(finite, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON: it contains itself") from None


def _event_text(data: dict[str, Any], addition: Addition | None) -> Items:
    text = _delta(data)
    if addition is not None:
        yield TextDelta(text, None, addition)
    elif text:
        yield _exact(text)


def _event_reasoning(data: dict[str, Any], addition: Addition | None) -> Items:
    text = _delta(data)
    if text or addition is not None:
        yield ReasoningDelta(text, addition)


def _delta(data: dict[str, Any]) -> str:
    delta = data.get("delta")
    if delta is None:
        return ""
    if not isinstance(delta, str):
        raise TypeError(f"the 'delta' of an AgentEvent must be a str, not {type(delta).__name__}")
    return delta


def _event_tool_call(data: dict[str, Any], addition: Addition | None) -> Items:
    arguments = data.get("args", data.get("arguments"))
    yield FunctionCall(
        str(data.get("name") or ""),
        "{}" if arguments is None or arguments == "" else _string(arguments),
        _id(data),
        addition,
    )


def _event_tool_call_chunk(data: dict[str, Any], addition: Addition | None) -> Items:
    arguments = data.get("args_delta")
    yield FunctionCallDelta("" if arguments is None else _string(arguments), _name(data), _id(data), None, addition)


def _event_tool_result(data: dict[str, Any], _: Addition | None) -> Items:
    result = data.get("result", data.get("content"))
    yield FunctionCallOutput(str(data.get("id") or ""), result, _name(data))


def _event_tool_result_chunk(data: dict[str, Any], _: Addition | None) -> Items:
    yield FunctionCallOutputDelta(str(data.get("id") or ""), _string(data.get("delta", "")))


def _event_error(data: dict[str, Any], _: Addition | None) -> Items:
    yield Failure(str(data.get("message") or "The agent reported an error."), str(data.get("code") or "agent_error"))


def _event_state(data: dict[str, Any], _: Addition | None) -> Items:
    yield StateUpdate(data.get("snapshot"), data.get("delta"))


def _event_hitl(data: dict[str, Any], _: Addition | None) -> Items:
    yield Interrupt(
        id=str(data.get("id") or ""),
        prompt=str(data.get("prompt") or ""),
        type=str(data.get("type") or "input"),
        tool_call_id=_text_or_none(data.get("tool_call_id")),
        options=_options(data.get("options")),
        schema=data.get("schema"),
        default=data.get("default"),
        timeout=data.get("timeout"),
    )


def _event_custom(data: dict[str, Any], _: Addition | None) -> Items:
    yield Custom(str(data.get("name") or ""), data.get("value"))


def _options(value: Any) -> list[Any] | None:
    if value is None or isinstance(value, list):
        return value
    return list(cast("Any", value)) if isinstance(value, (tuple, set, frozenset, Mapping)) else [value]


def _event_raw(data: dict[str, Any], _: Addition | None) -> Items:
    raw = data.get("raw")
    if raw:
        yield Raw(_string(raw) if isinstance(raw, str) else f"data: {_string(raw)}")


def _id(data: dict[str, Any]) -> str | None:
    return _text_or_none(data.get("id"))


def _name(data: dict[str, Any]) -> str | None:
    return _text_or_none(data.get("name"))


def _text_or_none(value: Any) -> str | None:
    """Return an id or a name as text; None when there is none."""
    if value is None or value == "":
        return None
    return _exact(value) if isinstance(value, str) else str(value)


_AGENT_EVENTS: Mapping[EventType, Callable[[dict[str, Any], Addition | None], Items]] = {
    EventType.TEXT: _event_text,
    EventType.REASONING: _event_reasoning,
    EventType.TOOL_CALL: _event_tool_call,
    EventType.TOOL_CALL_CHUNK: _event_tool_call_chunk,
    EventType.TOOL_RESULT: _event_tool_result,
    EventType.TOOL_RESULT_CHUNK: _event_tool_result_chunk,
    EventType.ERROR: _event_error,
    EventType.STATE: _event_state,
    EventType.HITL: _event_hitl,
    EventType.CUSTOM: _event_custom,
    EventType.RAW: _event_raw,
}


# --- dicts


def _from_mapping(item: Mapping[str, Any]) -> Items:
    if isinstance(item.get("choices"), (list, tuple)):
        yield from _from_chunk(item)
    elif "error" in item and isinstance(item["error"], Mapping):
        yield Failure(str(item["error"].get("message") or "The agent reported an error."))
    elif "event" in item and "data" in item:
        yield from _from_agent_event(_agent_event(item))
    elif _is_part(item):
        yield from _from_part(item)
    elif "content" in item or "tool_calls" in item:
        yield from _from_message(item.get)
    else:
        raise _refuse(item)


def _agent_event(item: Mapping[str, Any]) -> AgentEvent:
    """An `AgentEvent` that became a dict on its way."""
    try:
        kind = EventType(item["event"])
    except ValueError:
        raise TypeError("the 'event' of an AgentEvent must be an EventType") from None
    return AgentEvent(kind, item["data"] or {}, item.get("addition"), item.get("addition_merge_options"))


def _is_part(part: Mapping[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind in _PARTS


def _from_part(part: Mapping[str, Any]) -> Items:
    """A content part: text of some kind, or reasoning under one of its names."""
    kind, key = _PARTS[part["type"]]
    text = part.get(key)
    if isinstance(text, str) and text:
        yield kind(text) if kind is not None else text


_PARTS: Mapping[str, tuple[Callable[[str], TypedEvent] | None, str]] = {
    "text": (None, "text"),
    "output_text": (None, "text"),
    "refusal": (RefusalDelta, "refusal"),
    "thinking": (ReasoningDelta, "thinking"),
    "reasoning": (ReasoningDelta, "reasoning"),
}


# --- Chat Completions chunks and completions, from an upstream model


def _from_chunk(chunk: Any) -> Items:
    get = _getter(chunk)
    for choice in get("choices") or ():
        of_choice = _getter(choice)
        if of_choice("index"):
            continue  # only the first choice of an upstream answer is this agent's answer
        yield from _from_delta(of_choice("delta") or of_choice("message"), of_choice("logprobs"))
        reason = of_choice("finish_reason")
        if isinstance(reason, str) and reason in _FINISH_REASONS and reason != "stop":
            yield Finish(cast("FinishReason", reason))
    usage = get("usage")
    if usage:
        yield _usage(_getter(usage))


def _from_delta(delta: Any, logprobs: Any) -> Items:
    get = _getter(delta)
    reasoning = get("reasoning_content") or get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        yield ReasoningDelta(reasoning)
    content = get("content")
    if isinstance(content, str) and content:
        yield TextDelta(content, _plain(logprobs)) if logprobs else _exact(content)
    elif isinstance(content, (list, tuple)):
        yield from _from_parts(content)
    refusal = get("refusal")
    if isinstance(refusal, str) and refusal:
        yield RefusalDelta(refusal)
    yield from _from_tool_calls(get("tool_calls"))
    legacy = get("function_call")
    if legacy:
        called = _getter(legacy)
        yield FunctionCallDelta(_string(called("arguments") or ""), _text_or_none(called("name")), None, 0)
    for annotation in get("annotations") or ():
        yield Annotation(_plain(annotation))


def _from_tool_calls(calls: Any) -> Items:
    for position, call in enumerate(calls or ()):
        get = _getter(call)
        kind = "custom" if get("type") == "custom" else "function"
        called = _getter(get(kind))
        arguments = called("arguments" if kind == "function" else "input")
        index, call_id = _index(get("index")), _text_or_none(get("id"))
        yield FunctionCallDelta(
            "" if arguments is None else _string(arguments),
            _text_or_none(called("name")),
            call_id,
            position if index is None and call_id is None else index,
        )


def _index(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _usage(get: Callable[[str], Any]) -> Usage:
    """Read OpenAI's usage under both its names, or LangChain's ``usage_metadata``."""
    given = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    made = get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details")
    cached, reasoning = _getter(given), _getter(made)
    return Usage(
        _count(get("prompt_tokens") or get("input_tokens")),
        _count(get("completion_tokens") or get("output_tokens")),
        _count(cached("cached_tokens") or cached("cache_read")),
        _count(reasoning("reasoning_tokens") or reasoning("reasoning")),
    )


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for what is none. An upstream's odd count is no reason to fail an answer."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return max(0, int(value))


# --- objects


def _from_object(item: Any) -> Items:
    if isinstance(item, (bytes, bytearray, int, float, complex, set, frozenset, BaseException, type)):
        raise _refuse(item)
    if isinstance(getattr(item, "choices", None), (list, tuple)):
        yield from _from_chunk(item)
    elif hasattr(item, "content"):
        yield from _from_message(_getter(item))
    else:
        raise _refuse(item)


def _from_message(get: Callable[[str], Any]) -> Items:
    """A message: OpenAI's as a dict, LangChain's, or anything with ``.content``."""
    content = get("content")
    if get("tool_call_id") and (get("type") == "tool" or get("role") == "tool"):
        failed = get("status") == "error"
        yield FunctionCallOutput(str(get("tool_call_id")), content, _text_or_none(get("name")), failed)
        return
    more = _getter(get("additional_kwargs"))
    reasoning = get("reasoning_content") or more("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield ReasoningDelta(reasoning)
    if isinstance(content, str):
        if content:
            yield _exact(content)
    elif isinstance(content, (list, tuple)):
        yield from _from_parts(content)
    elif content is not None:
        raise _refuse(content)
    pieces = get("tool_call_chunks")
    if pieces:
        for piece in pieces:
            of = _getter(piece)
            arguments = _string(of("args") or "")
            yield FunctionCallDelta(arguments, _text_or_none(of("name")), _text_or_none(of("id")), _index(of("index")))
    else:
        yield from _from_message_calls(get("tool_calls"))
    usage = get("usage_metadata")
    if usage:
        yield _usage(_getter(usage))


def _from_message_calls(calls: Any) -> Items:
    for call in calls or ():
        get = _getter(call)
        if get("function") is not None or get("custom") is not None:
            yield from _from_tool_calls([call])
        else:  # LangChain: {"name", "args", "id"}
            yield FunctionCall(str(get("name") or ""), _string(get("args") or {}), _text_or_none(get("id")))


def _from_parts(parts: Any) -> Items:
    for part in parts:
        if isinstance(part, str):
            if part:
                yield _exact(part)
        elif isinstance(part, Mapping):
            if _is_part(cast("Mapping[str, Any]", part)):
                yield from _from_part(cast("Mapping[str, Any]", part))
        else:
            raise _refuse(part)


def _getter(source: Any) -> Callable[[str], Any]:
    """Return a function that reads a field of a dict or an object, None when it is not there."""
    if source is None:
        return lambda _: None
    if isinstance(source, Mapping):
        return cast("Callable[[str], Any]", cast("Mapping[str, Any]", source).get)
    return lambda name: getattr(source, name, None)


def _plain(value: Any) -> dict[str, Any]:
    """Return a pydantic object or mapping as a dict."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return cast("dict[str, Any]", dump(exclude_none=True))
    if not isinstance(value, Mapping):
        raise _refuse(value)
    return dict(cast("Mapping[str, Any]", value))
