"""The one place where what an agent yields becomes a piece of text or a typed event.

Accepted: `str`; the typed events of `agentrun_server.core.events`; `AgentEvent(event, data)` of the AgentRun SDK; lists
of these; Chat Completions chunks and completions, as objects or dicts (what an upstream model said); objects with
``.content``, as LangChain's messages are. ``None`` and empty strings mean nothing. Everything else is a `TypeError`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
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
    Raw,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.usage import Usage

__all__ = ["coerce"]

_TYPED = frozenset(get_args(TypedEvent))
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
            yield str(item)
    elif type(item) in _TYPED:
        yield item
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
        f"an agent yielded or returned a {name}, which is no answer; yield str, typed events, AgentEvent, "
        "OpenAI chunks, or objects with .content"
    )


# --- AgentRun SDK events


def _from_agent_event(event: AgentEvent) -> Items:
    addition = None
    if event.addition:
        addition = Addition(dict(event.addition), event.addition_merge_options or {})
    yield from _AGENT_EVENTS[event.event](event.data, addition)


def _string(value: Any) -> str:
    """Return text as it is and anything else as JSON: tool arguments and results come both ways."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _event_text(data: dict[str, Any], addition: Addition | None) -> Items:
    text = _delta(data)
    if text:
        yield text if addition is None else TextDelta(text, None, addition)


def _event_reasoning(data: dict[str, Any], addition: Addition | None) -> Items:
    text = _delta(data)
    if text:
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
    yield FunctionCallDelta(
        "" if arguments is None else _string(arguments), data.get("name") or None, _id(data), None, addition
    )


def _event_tool_result(data: dict[str, Any], _: Addition | None) -> Items:
    result = data.get("result", data.get("content"))
    yield FunctionCallOutput(str(data.get("id") or ""), result, data.get("name"))


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
        tool_call_id=data.get("tool_call_id"),
        options=data.get("options"),
        schema=data.get("schema"),
        default=data.get("default"),
        timeout=data.get("timeout"),
    )


def _event_custom(data: dict[str, Any], _: Addition | None) -> Items:
    yield Custom(str(data.get("name") or ""), data.get("value"))


def _event_raw(data: dict[str, Any], _: Addition | None) -> Items:
    raw = data.get("raw")
    if raw:
        yield Raw(_string(raw) if isinstance(raw, str) else f"data: {_string(raw)}")


def _id(data: dict[str, Any]) -> str | None:
    call_id = data.get("id")
    return str(call_id) if call_id else None


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
        yield from _from_agent_event(AgentEvent(item["event"], dict(item["data"] or {})))
    elif item.get("type") in _PARTS:
        yield from _from_part(item)
    elif "content" in item or "tool_calls" in item:
        yield from _from_message(item.get)
    else:
        raise _refuse(item)


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
        if reason in _FINISH_REASONS and reason != "stop":
            yield Finish(reason)
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
        yield TextDelta(content, _plain(logprobs)) if logprobs else content
    elif isinstance(content, (list, tuple)):
        yield from _from_parts(content)
    refusal = get("refusal")
    if isinstance(refusal, str) and refusal:
        yield RefusalDelta(refusal)
    yield from _from_tool_calls(get("tool_calls"))
    legacy = get("function_call")
    if legacy:
        called = _getter(legacy)
        yield FunctionCallDelta(called("arguments") or "", called("name"), None, 0)
    for annotation in get("annotations") or ():
        yield Annotation(_plain(annotation))


def _from_tool_calls(calls: Any) -> Items:
    for position, call in enumerate(calls or ()):
        get = _getter(call)
        kind = "custom" if get("type") == "custom" else "function"
        called = _getter(get(kind))
        arguments = called("arguments" if kind == "function" else "input")
        index = get("index")
        yield FunctionCallDelta(
            "" if arguments is None else _string(arguments),
            called("name") or None,
            get("id") or None,
            position if index is None and not get("id") else index,
        )


def _usage(get: Callable[[str], Any]) -> Usage:
    """Read OpenAI's usage under both its names, or LangChain's ``usage_metadata``."""
    given = get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details")
    made = get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details")
    cached, reasoning = _getter(given), _getter(made)
    return Usage(
        get("prompt_tokens") or get("input_tokens") or 0,
        get("completion_tokens") or get("output_tokens") or 0,
        cached("cached_tokens") or cached("cache_read") or 0,
        reasoning("reasoning_tokens") or reasoning("reasoning") or 0,
    )


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
        yield FunctionCallOutput(get("tool_call_id"), content, get("name"), get("status") == "error")
        return
    more = _getter(get("additional_kwargs"))
    reasoning = get("reasoning_content") or more("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield ReasoningDelta(reasoning)
    if isinstance(content, str):
        if content:
            yield str(content)
    elif isinstance(content, (list, tuple)):
        yield from _from_parts(content)
    elif content is not None:
        raise _refuse(content)
    pieces = get("tool_call_chunks")
    if pieces:
        for piece in pieces:
            of = _getter(piece)
            yield FunctionCallDelta(of("args") or "", of("name") or None, of("id") or None, of("index"))
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
            yield FunctionCall(str(get("name") or ""), _string(get("args") or {}), get("id") or None)


def _from_parts(parts: Any) -> Items:
    for part in parts:
        if isinstance(part, str):
            if part:
                yield part
        elif isinstance(part, Mapping):
            if part.get("type") in _PARTS:
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
    return dict(dump(exclude_none=True) if callable(dump) else value)
