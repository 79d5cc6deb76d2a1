"""What an agent may yield, drawn at random: the good, the odd and the wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from agentrun_server.core import events
from agentrun_server.core.events import Addition, AgentEvent, EventType
from agentrun_server.core.usage import Usage
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from tests.support.properties import any_text, json_objects, json_values

__all__ = [
    "CLIENT_TOOLS",
    "CallScript",
    "additions",
    "call_scripts",
    "chat_options",
    "chat_settings",
    "items",
    "wrong_items",
]

CLIENT_TOOLS = ("alpha", "beta", "request_human_input")
_NAMES = st.sampled_from([*CLIENT_TOOLS, *CLIENT_TOOLS, "own_tool", "other tool"])
_IDS = st.sampled_from(["call_a", "call_b", "0", ""]) | st.none()
_ARGUMENTS = st.one_of(st.sampled_from(["", "{}", '{"a":', "1}", '{"city":"Paris"}', '{"x":"}"', "}"]), any_text)
_OWN_KEYS = [
    "role",
    "content",
    "refusal",
    "annotations",
    "tool_calls",
    "function_call",
    "reasoning",
    "reasoning_content",
]

additions = st.one_of(
    json_objects,
    st.dictionaries(st.sampled_from([*_OWN_KEYS, "vendor", "score"]), json_values, max_size=4),
)
"""Fields an event wants to add: of any name, those of the protocol too, with any value."""

_merge_options: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "concat_list": st.booleans(),
        "no_new_field": st.booleans(),
        "ignore_empty_list": st.booleans(),
    },
)
_addition = st.none() | st.none() | st.builds(Addition, additions, _merge_options)
_logprobs = st.none() | st.fixed_dictionaries({"content": st.lists(json_objects, max_size=2), "refusal": st.none()})
_annotation = json_objects.map(lambda data: {**data, "type": "url_citation"})
_counts = st.integers(0, 10_000)
_usage = st.builds(Usage, _counts, _counts, _counts, _counts)

_content = st.one_of(
    st.builds(events.TextDelta, any_text, _logprobs, _addition),
    st.builds(events.ReasoningDelta, any_text, _addition),
)
_calls = st.one_of(
    st.builds(events.FunctionCall, _NAMES, _ARGUMENTS | json_objects, _IDS, _addition),
    st.builds(events.FunctionCallDelta, _ARGUMENTS, _NAMES | st.none(), _IDS, st.integers(0, 2) | st.none(), _addition),
)


@dataclass(frozen=True)
class CallScript:
    """Calls of tools, whole or in pieces of some form, and what each of them must become."""

    said: list[Any]
    calls: list[tuple[str, str, str]]
    """Id, name and arguments of each, in the order in which they begin."""


def _typed_piece(call_id: str, name: str | None, arguments: str) -> Any:
    return events.FunctionCallDelta(arguments, name, call_id)


def _sdk_piece(call_id: str, name: str | None, arguments: str) -> Any:
    return AgentEvent(EventType.TOOL_CALL_CHUNK, {"id": call_id, "name": name, "args_delta": arguments})


def _upstream_piece(call_id: str, name: str | None, arguments: str) -> Any:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


def _langchain_piece(call_id: str, name: str | None, arguments: str) -> Any:
    return SimpleNamespace(content="", tool_call_chunks=[{"id": call_id, "name": name, "args": arguments}])


_FORMS = [_typed_piece, _sdk_piece, _upstream_piece, _langchain_piece]


@st.composite
def call_scripts(draw: st.DrawFn) -> CallScript:
    """Up to three calls whose pieces are mixed, each with an id of its own and a whole object as its arguments."""
    queues: list[list[Any]] = []
    calls: dict[int, tuple[str, str, str]] = {}
    for number in range(draw(st.integers(1, 3))):
        call_id = f"script_{draw(st.integers(0, 10**9))}_{number}"
        name = draw(_NAMES)
        arguments = json.dumps(draw(json_objects), ensure_ascii=draw(st.booleans())).replace("NaN", "null")
        arguments = arguments.replace("Infinity", "1")
        calls[number] = (call_id, name, arguments)
        cuts = sorted(draw(st.lists(st.integers(0, len(arguments)), max_size=4)))
        pieces = [arguments[start:end] for start, end in pairwise([0, *cuts, len(arguments)])]
        form = draw(st.sampled_from(_FORMS))
        if draw(st.booleans()):
            queues.append([form(call_id, name if i == 0 else None, piece) for i, piece in enumerate(pieces)])
        else:
            queues.append([events.FunctionCall(name, arguments, call_id)])
    said: list[Any] = []
    order: list[int] = []
    while any(queues):
        number = draw(st.sampled_from([i for i, queue in enumerate(queues) if queue]))
        said.append(queues[number].pop(0))
        if number not in order:
            order.append(number)
    return CallScript(said, [calls[number] for number in order])


_activity = st.one_of(
    st.builds(events.FunctionCallOutput, _NAMES, json_values, _NAMES | st.none(), st.booleans()),
    st.builds(events.FunctionCallOutputDelta, _NAMES, any_text),
    st.builds(events.StateUpdate, json_values, st.none() | st.lists(json_objects, max_size=2)),
    st.builds(events.Step, any_text, st.sampled_from(["started", "finished"])),
    st.builds(events.Progress, any_text, st.none() | st.floats(0, 1)),
    st.builds(events.Custom, any_text, json_values),
    st.builds(
        events.Interrupt,
        any_text,
        any_text,
        st.sampled_from(["input", "confirmation", "choice"]),
        _IDS,
        st.none() | st.lists(json_values, max_size=3),
        st.none() | json_objects,
        json_values,
        st.none() | st.floats(0, 60),
    ),
)
_comments = st.text("abc ", max_size=8).map(lambda text: f": {text}")
"""What an agent may write into the stream itself without breaking it."""

_rest = st.one_of(
    st.builds(events.Annotation, _annotation),
    _usage,
    st.builds(events.Raw, _comments),
)
_ends = st.one_of(
    st.builds(events.Finish, st.sampled_from(["stop", "length", "content_filter"])),
    st.builds(events.Failure, any_text.filter(bool), any_text.filter(bool)),
)

_DATA: Mapping[EventType, st.SearchStrategy[dict[str, Any]]] = {
    EventType.TEXT: st.fixed_dictionaries({"delta": any_text}),
    EventType.REASONING: st.fixed_dictionaries({"delta": any_text}),
    EventType.TOOL_CALL: st.fixed_dictionaries({"name": _NAMES, "args": _ARGUMENTS | json_values, "id": _IDS}),
    EventType.TOOL_CALL_CHUNK: st.fixed_dictionaries({"name": _NAMES, "args_delta": _ARGUMENTS, "id": _IDS}),
    EventType.TOOL_RESULT: st.fixed_dictionaries({"id": _IDS, "result": json_values}),
    EventType.TOOL_RESULT_CHUNK: st.fixed_dictionaries({"id": _IDS, "delta": json_values}),
    EventType.ERROR: st.fixed_dictionaries({"message": any_text, "code": any_text}),
    EventType.STATE: st.fixed_dictionaries({}, optional={"snapshot": json_values, "delta": json_values}),
    EventType.HITL: st.fixed_dictionaries(
        {"id": _IDS, "prompt": any_text},
        optional={"tool_call_id": _IDS, "type": any_text, "options": json_values, "schema": json_values},
    ),
    EventType.CUSTOM: st.fixed_dictionaries({"name": any_text, "value": json_values}),
    EventType.RAW: st.fixed_dictionaries({"raw": _comments}),
}


def _agent_events(kind: EventType) -> st.SearchStrategy[AgentEvent]:
    data = _DATA[kind]
    if kind is not EventType.RAW:  # what stands there is written as it is
        data = st.one_of(data, data, st.dictionaries(st.sampled_from(["delta", "id", "name", "args"]), json_values))
    return st.builds(AgentEvent, st.just(kind), data, st.none() | additions, st.none() | _merge_options)


_sdk = st.sampled_from([kind for kind in EventType if kind is not EventType.ERROR]).flatmap(_agent_events)
_sdk_dicts = _sdk.map(lambda event: {"event": str(event.event), "data": event.data, "addition": event.addition})

_tool_calls = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({}, optional={"name": _NAMES, "arguments": _ARGUMENTS | st.none()})},
        optional={"index": st.integers(0, 2), "id": _IDS, "type": st.sampled_from(["function", "custom", None])},
    ),
    max_size=2,
)
_deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": any_text | st.none(),
        "reasoning_content": any_text,
        "reasoning": any_text,
        "tool_calls": _tool_calls | st.none(),
        "function_call": st.fixed_dictionaries({"arguments": _ARGUMENTS}, optional={"name": _NAMES}),
        "annotations": st.lists(_annotation, max_size=1),
    },
)
_upstream_usage = st.none() | st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "prompt_tokens_details"]),
    st.one_of(_counts, st.floats(), st.booleans(), st.none(), st.dictionaries(st.just("cached_tokens"), st.floats())),
)
_chunks = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {"index": st.sampled_from([0, 0, 0, 1, None]), "delta": _deltas},
                optional={
                    "finish_reason": st.sampled_from([None, None, None, "stop", "tool_calls", "length"]),
                    "logprobs": _logprobs,
                },
            ),
            max_size=2,
        ),
    },
    optional={"usage": _upstream_usage, "id": any_text, "object": st.just("chat.completion.chunk")},
)
_parts = st.lists(
    st.one_of(
        any_text,
        st.fixed_dictionaries({"type": st.just("text"), "text": any_text}),
        st.fixed_dictionaries({"type": st.just("thinking"), "thinking": any_text}),
        st.fixed_dictionaries({"type": st.just("image_url"), "image_url": json_objects}),
    ),
    max_size=3,
)
_messages = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": any_text | _parts | st.none()},
    optional={"tool_calls": _tool_calls, "usage_metadata": _upstream_usage, "reasoning_content": any_text},
)

_one = st.one_of(
    any_text,
    any_text,
    _content,
    _calls,
    call_scripts().map(lambda script: script.said),
    _activity,
    _rest,
    _sdk,
    _sdk_dicts,
    _chunks,
    _messages,
    _messages.map(lambda message: SimpleNamespace(**message)),
    st.none(),
)

wrong_items: st.SearchStrategy[Any] = st.one_of(
    json_values,
    st.binary(max_size=4),
    st.builds(events.TextDelta, json_values),
    st.builds(events.ReasoningDelta, json_values, json_values),
    st.builds(events.FunctionCall, json_values, json_values, json_values),
    st.builds(events.FunctionCallDelta, json_values, json_values, json_values, json_values),
    st.builds(events.FunctionCallOutput, json_values, json_values),
    st.builds(events.Annotation, json_values.filter(lambda data: not isinstance(data, dict))),
    st.builds(Usage, st.none() | any_text | st.booleans()),
    st.builds(events.Finish, json_values),
    st.builds(events.Interrupt, json_values, json_values, json_values, json_values, json_values),
    st.builds(events.Progress, json_values, json_values),
    st.builds(events.Failure, json_values),
    st.builds(AgentEvent, st.sampled_from([k for k in EventType if k is not EventType.RAW]), json_values, json_values),
    st.fixed_dictionaries({"event": json_values, "data": json_values}),
    st.fixed_dictionaries({"choices": st.lists(json_objects | json_values, max_size=2)}),
    st.fixed_dictionaries({"content": json_values, "tool_calls": json_values}),
    st.fixed_dictionaries({"type": json_values}),
)
"""What no agent should yield."""

items: st.SearchStrategy[list[Any]] = st.builds(
    lambda said, end: said + end,
    st.lists(st.recursive(_one, lambda inner: st.lists(inner, max_size=3), max_leaves=3), max_size=8),
    st.lists(_ends | _usage, max_size=2),
)
"""What an agent yields, in any order; an end of the turn, if any, comes late, so that most of it counts."""

_some_tools = st.just(set(CLIENT_TOOLS)) | st.sets(st.sampled_from(CLIENT_TOOLS))
_stops = st.lists(st.sampled_from(["a", "b", "ab", "ba", "\n\n", "\ud83d", "END"]) | any_text, max_size=4)

chat_settings = st.builds(
    ChatSettings, reasoning_field=st.sampled_from(["both", "reasoning_content", "reasoning", "none"])
)


@st.composite
def chat_options(draw: st.DrawFn) -> ChatOptions:
    """What a request may ask for."""
    legacy = draw(st.booleans()) and draw(st.booleans())
    n = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kinds = st.sampled_from(["tools", "steps", "progress", "io"])
    return ChatOptions(
        n=n,
        stop=tuple(stop for stop in draw(_stops) if stop),
        include_usage=draw(st.booleans()),
        include_obfuscation=draw(st.booleans()),
        logprobs=draw(st.booleans()),
        legacy_functions=legacy,
        client_tools=dict.fromkeys(draw(_some_tools), "function"),
        # The judge wants activity at the choice with the index 0.
        activity=draw(st.frozensets(kinds)) if n == 1 else frozenset(),
    )
