"""An independent judge of Chat Completions answers. Imports nothing of the project.

`check_chat_stream` reads the bytes of a stream, `check_completion` an answer in one body. Each rule has a
name in `RULES`; a violation is an `AssertionError` that begins with it. What is returned is the answer as a
client puts it together, in the same shape for both, so that a test can say that a stream and a body are the
same answer.

The rules are those real clients need: OpenAI's specification, recorded traffic, and what was seen to break
stock clients.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tests.support.sse import EventStreamError, parse_events

__all__ = [
    "RULES",
    "ParsedChoice",
    "ParsedStream",
    "ParsedToolCall",
    "RuleViolationError",
    "check_chat_stream",
    "check_completion",
]

Json = dict[str, Any]

RULES: Mapping[str, str] = {
    # bytes
    "utf-8": "the stream is UTF-8, without a byte order mark",
    "lf-only": "lines end with LF; a CR breaks clients that split at LF",
    "whole-events": "every event is closed by one blank line, also the last one",
    "no-empty-block": "there is no blank line but the one that closes an event",
    "one-data-line": "an event has exactly one data line",
    "space-after-colon": "the data line begins with 'data: '",
    "no-event-line": "there is no event line; old clients wrap named events",
    "no-id-line": "there is no id line; after one, clients emit empty events",
    "no-retry-line": "there is no retry line; clients emit an empty event for it",
    "no-unknown-line": "there is no line of another kind",
    "comment-alone": "a comment is a block of its own",
    # events
    "done-last": "the last event is [DONE], it comes once, and nothing follows",
    "json": "the data is one JSON object, without NaN, Infinity or repeated keys",
    # the chunk
    "object": "object is 'chat.completion.chunk', or 'chat.completion' in one body",
    "id": "id is a string that begins with 'chatcmpl-', the same on every chunk",
    "created": "created is a whole number of seconds, the same on every chunk",
    "model": "model is a string, the same on every chunk",
    "service-tier": "service_tier is a string, on every chunk or on none, always the same",
    "system-fingerprint": "system_fingerprint is left out rather than null",
    "choices": "choices is a list of objects",
    "choice-index": "index is a whole number below n, and a chunk has each at most once",
    "choice-keys": "a choice has index, delta (or message), finish_reason and logprobs",
    "choice-order": "choices are opened in the order of their index",
    "every-choice": "each of the n choices is opened and finished",
    "logprobs": "logprobs is null unless asked for; then it has content and refusal",
    "obfuscation": "obfuscation is a string, and only there when asked for",
    "no-empty-choices": "choices is empty only on the usage chunk",
    # the delta
    "delta": "delta is an object",
    "role-first": "the first delta of a choice has the role, and no other has it",
    "role-assistant": "the role is 'assistant'",
    "role-chunk": "the chunk of the role carries no text yet: content '' or null, refusal null, not finished",
    "delta-strings": "content, refusal and reasoning are strings",
    "delta-mergeable": "other keys of a delta are strings, or lists that come once: clients merge them",
    "reasoning-agree": "where both reasoning fields are sent, they are the same",
    "refusal": "a refusal comes instead of content and tool calls, and finishes with 'stop'",
    # tool calls
    "tool-calls-list": "tool_calls is a list with something in it, or not there",
    "tool-call-index": "indexes of tool calls are whole numbers, contiguous from 0, in order of appearance",
    "tool-call-opening": "the first delta of a call has id, type 'function', name and arguments, and no more",
    "tool-call-continuation": "further deltas of a call have index and arguments, and no id, type or name",
    "tool-call-sequence": "a call is finished before the next one is opened",
    "tool-call-id": "each call has an id of its own",
    "function-call": "function_call is named once, then has arguments only; never beside tool_calls",
    # the end
    "finish-once": "a choice is finished once, and nothing follows for it",
    "finish-reason": "finish_reason is one of the five, or null",
    "finish-delta": "the chunk that finishes a choice has an empty delta",
    "finish-tool-calls": "finish_reason is 'tool_calls' when and only when calls were sent",
    # usage
    "usage-unasked": "without include_usage there is no usage key",
    "usage-null": "with include_usage every chunk before the last one has usage null",
    "usage-last": "with include_usage the last chunk has usage and no choices",
    "usage": "usage has whole numbers, details, and a total that is the sum",
    # errors
    "error-frame": "an error is {'error': {message, type, param, code}} and nothing else",
    "error-last": "after an error comes [DONE]",
    "error-unfinished": "an answer that is finished does not end with an error",
    # extensions
    "x-agent": "an x_agent event has a type and a growing seq, on a chunk with one idle choice",
    # one body
    "message": "a message has role, content and refusal; content and refusal are strings or null",
    "message-tool-calls": "tool_calls have id, type 'function', name and arguments as a string",
    "annotations": "annotations are a list of objects",
}

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_CUT_OFF = frozenset({"length", "content_filter"})  # may end a turn in the middle of its tool calls
_REASONING = ("reasoning_content", "reasoning")
_TEXTS = ("content", "refusal", *_REASONING)


class RuleViolationError(AssertionError):
    """An answer breaks the rule `rule`."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {RULES[rule]}. {detail}")
        self.rule = rule


@dataclass(slots=True)
class ParsedToolCall:
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ParsedChoice:
    """One choice, put together. What the answer did not have is ``""``, empty or None."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: list[ParsedToolCall] = field(default_factory=list[ParsedToolCall])
    function_call: ParsedToolCall | None = None
    annotations: list[Json] = field(default_factory=list[Json])
    finish_reason: str | None = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    logprobs: list[Json] = field(default_factory=list[Json])


@dataclass(slots=True)
class ParsedStream:
    """An answer, put together.

    Attributes:
        chunks: the JSON of every event, in order; for a body, that alone.
        comments: the comments of the stream, such as heartbeats.
        extra: top-level keys that the specification does not know, the last value of each.
    """

    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[ParsedChoice] = field(default_factory=list[ParsedChoice])
    usage: Json | None = None
    error: Json | None = None
    x_agent: list[Json] = field(default_factory=list[Json])
    comments: list[str] = field(default_factory=list[str])
    chunks: list[Json] = field(default_factory=list[Json])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def text(self) -> str:
        """The content of the only choice."""
        (choice,) = self.choices
        return choice.content


def check_chat_stream(
    body: bytes, *, include_usage: bool, n: int = 1, logprobs: bool = False, obfuscation: bool = False
) -> ParsedStream:
    """Check a whole stream against every rule and return what it says.

    The arguments are what the request asked for.
    """
    comments, texts = _events(body)
    judge = _StreamJudge(include_usage=include_usage, n=n, logprobs=logprobs, obfuscation=obfuscation)
    for text in texts[:-1]:
        judge.feed(_json_object(text))
    parsed = judge.finish()
    parsed.comments = comments
    return parsed


def check_completion(body: Json, *, n: int = 1, logprobs: bool = False) -> ParsedStream:
    """Check an answer in one body against every rule and return what it says."""
    _finite(body)
    parsed = ParsedStream(chunks=[body])
    _check_envelope(body, "chat.completion", parsed, first=True)
    choices = body.get("choices")
    _require("choices", isinstance(choices, list) and all(isinstance(c, dict) for c in choices), repr(choices))
    indexes = [choice.get("index") for choice in body["choices"]]
    _require("every-choice", indexes == list(range(n)), f"indexes {indexes}, n {n}")
    for choice in body["choices"]:
        _require_keys("choice-keys", choice, {"index", "message", "finish_reason", "logprobs"})
        parsed.choices.append(_check_message(choice, logprobs=logprobs))
    _check_usage(body.get("usage"))
    parsed.usage = body["usage"]
    if "x_agent" in body:
        activity = body["x_agent"]
        ok = isinstance(activity, dict) and isinstance(activity.get("events"), list)
        _require("x-agent", ok, repr(activity))
        for event in activity["events"]:
            _check_x_agent(event, parsed)
    return parsed


# Bytes to JSON.


def _events(body: bytes) -> tuple[list[str], list[str]]:
    """Check the framing; return the comments, and the data of every event."""
    _require("utf-8", not body.startswith(b"\xef\xbb\xbf"), "it begins with a byte order mark")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail("utf-8", str(error))
    _require("lf-only", "\r" not in text, repr(text[max(0, text.find("\r") - 40) :][:80]))
    _require("whole-events", text.endswith("\n\n"), f"it ends with {text[-80:]!r}")
    comments: list[str] = []
    data: list[str] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        _require("no-empty-block", bool(block) and not block.startswith("\n") and not block.endswith("\n"), repr(block))
        lines = block.split("\n")
        if any(line.startswith(":") for line in lines):
            _require("comment-alone", len(lines) == 1, repr(block))
            _require("done-last", "[DONE]" not in data, f"a comment follows: {block!r}")
            comments.append(block.removeprefix(":").removeprefix(" "))
        else:
            data.append(_data_of(lines))
    _require("done-last", data[-1:] == ["[DONE]"], f"the last event is {data[-1:]}")
    _require("done-last", data.count("[DONE]") == 1, f"[DONE] came {data.count('[DONE]')} times")
    try:
        parsed = [event.data for event in parse_events(body)]
    except EventStreamError as error:
        _fail("whole-events", str(error))
    assert parsed == data, "the parser and the judge read different events: one of them is wrong"
    return comments, data


def _data_of(lines: list[str]) -> str:
    found: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            _require("space-after-colon", value.startswith(" "), repr(line[:80]))
            found.append(value.removeprefix(" "))
        elif name in ("event", "id", "retry"):
            _fail(f"no-{name}-line", repr(line))
        else:
            _fail("no-unknown-line", repr(line[:80]))
    _require("one-data-line", len(found) == 1, f"{len(found)} data lines")
    return found[0]


def _json_object(text: str) -> Json:
    def no_repeats(pairs: list[tuple[str, Any]]) -> Json:
        _require("json", len(dict(pairs)) == len(pairs), f"a key is repeated: {text[:200]}")
        return dict(pairs)

    def not_json(constant: str) -> NoReturn:
        _fail("json", f"{constant} is not JSON: {text[:200]}")

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


# A stream, chunk by chunk.


@dataclass(slots=True)
class _OpenChoice:
    """A choice while it is streamed."""

    parsed: ParsedChoice = field(default_factory=ParsedChoice)
    lists_seen: set[str] = field(default_factory=set[str])


class _StreamJudge:
    def __init__(self, *, include_usage: bool, n: int, logprobs: bool, obfuscation: bool) -> None:
        self._include_usage = include_usage
        self._n = n
        self._logprobs = logprobs
        self._obfuscation = obfuscation
        self._parsed = ParsedStream()
        self._open: list[_OpenChoice] = []
        self._service_tier: object = None

    def feed(self, chunk: Json) -> None:
        parsed = self._parsed
        _require("error-last", parsed.error is None, f"after the error comes {chunk}")
        _require("usage-last", parsed.usage is None, f"after the usage comes {chunk}")
        parsed.chunks.append(chunk)
        if chunk.get("error") or not chunk.keys() & {"object", "choices"}:
            self._take_error(chunk)
            return
        self._check_envelope(chunk)
        if chunk["choices"]:
            self._check_usage_key(chunk)
            self._check_choices(chunk)
        else:
            _require("no-empty-choices", self._include_usage and bool(chunk.get("usage")), repr(chunk))
            self._require_all_finished()
            _check_usage(chunk["usage"])
            parsed.usage = chunk["usage"]

    def finish(self) -> ParsedStream:
        parsed = self._parsed
        if parsed.error is None:
            self._require_all_finished()
            if self._include_usage:
                _require("usage-last", parsed.usage is not None, "there is none")
        parsed.choices = [choice.parsed for choice in self._open]
        return parsed

    def _require_all_finished(self) -> None:
        _require("every-choice", len(self._open) == self._n, f"{len(self._open)} choices, n {self._n}")
        for index, choice in enumerate(self._open):
            _require("every-choice", choice.parsed.finish_reason is not None, f"choice {index} is not finished")

    def _take_error(self, chunk: Json) -> None:
        _check_error(chunk)
        finished = [choice.parsed.finish_reason is not None for choice in self._open]
        _require("error-unfinished", len(finished) < self._n or not all(finished), repr(chunk))
        self._parsed.error = chunk["error"]

    def _check_envelope(self, chunk: Json) -> None:
        first = self._parsed.id is None
        _check_envelope(chunk, "chat.completion.chunk", self._parsed, first=first)
        if first:
            self._service_tier = chunk.get("service_tier")
        _require("service-tier", chunk.get("service_tier") == self._service_tier, repr(chunk.get("service_tier")))
        if "obfuscation" in chunk:
            _require(
                "obfuscation", self._obfuscation and isinstance(chunk["obfuscation"], str), repr(chunk["obfuscation"])
            )
        choices = chunk.get("choices")
        _require("choices", isinstance(choices, list) and all(isinstance(c, dict) for c in choices), repr(choices))

    def _check_usage_key(self, chunk: Json) -> None:
        if self._include_usage:
            _require("usage-null", "usage" in chunk and chunk["usage"] is None, repr(chunk))
        else:
            _require("usage-unasked", "usage" not in chunk, repr(chunk))

    def _check_choices(self, chunk: Json) -> None:
        seen: set[int] = set()
        for choice in chunk["choices"]:
            _require_keys("choice-keys", choice, {"index", "delta", "finish_reason", "logprobs"})
            index = choice["index"]
            _require("choice-index", _is_int(index) and 0 <= index < self._n and index not in seen, repr(index))
            seen.add(index)
            self._check_choice(index, choice)
        if "x_agent" in chunk:
            idle = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
            _require("x-agent", chunk["choices"] == [idle], repr(chunk["choices"]))
            _check_x_agent(chunk["x_agent"], self._parsed)

    def _check_choice(self, index: int, choice: Json) -> None:
        delta, finish = choice["delta"], choice["finish_reason"]
        _require("delta", isinstance(delta, dict), repr(delta))
        _check_logprobs(choice["logprobs"], asked=self._logprobs)
        if index >= len(self._open):
            _require("choice-order", index == len(self._open), f"choice {index} after {len(self._open)}")
            _require("role-first", "role" in delta, repr(delta))
            _check_role_chunk(delta, finish)
            self._open.append(_OpenChoice())
            return
        state = self._open[index]
        _require("finish-once", state.parsed.finish_reason is None, f"choice {index} goes on: {choice}")
        _require("role-first", "role" not in delta, repr(delta))
        if choice["logprobs"]:
            state.parsed.logprobs += choice["logprobs"]["content"] or choice["logprobs"]["refusal"] or []
        _take_delta(delta, state)
        if finish is not None:
            _require("finish-delta", delta == {}, repr(delta))
            _check_finish(finish, state.parsed)


def _check_role_chunk(delta: Json, finish: object) -> None:
    _require("role-assistant", delta["role"] == "assistant", repr(delta["role"]))
    rest = {key: value for key, value in delta.items() if key != "role"}
    bare = set(rest) <= {"content", "refusal"} and rest.get("content") in ("", None) and rest.get("refusal") is None
    _require("role-chunk", bare and finish is None, f"{delta}, finish_reason {finish!r}")


def _take_delta(delta: Json, state: _OpenChoice) -> None:
    parsed = state.parsed
    for key, value in delta.items():
        match key:
            case "tool_calls":
                _take_tool_calls(value, parsed)
            case "function_call":
                _take_function_call(value, parsed)
            case "content" | "refusal" | "reasoning_content" | "reasoning":
                _require("delta-strings", isinstance(value, str), f"{key}: {value!r}")
            case _:
                _take_extra(key, value, state)
    thoughts = [delta[key] for key in _REASONING if key in delta]
    _require("reasoning-agree", len(set(thoughts)) <= 1, repr(delta))
    parsed.content += delta.get("content", "")
    parsed.refusal += delta.get("refusal", "")
    parsed.reasoning += thoughts[0] if thoughts else ""
    _check_refusal(parsed)


def _take_extra(key: str, value: object, state: _OpenChoice) -> None:
    """Keys the specification does not know. `openai` merges them: strings join, lists need an index."""
    if isinstance(value, str):
        state.parsed.extra[key] = state.parsed.extra.get(key, "") + value
    else:
        _require("delta-mergeable", isinstance(value, list) and key not in state.lists_seen, f"{key}: {value!r}")
        state.lists_seen.add(key)
        if key == "annotations":
            _check_annotations(value)
            state.parsed.annotations = list(value)  # type: ignore[call-overload]
        else:
            state.parsed.extra[key] = value


def _take_tool_calls(deltas: object, parsed: ParsedChoice) -> None:
    _require("tool-calls-list", isinstance(deltas, list) and len(deltas) > 0, repr(deltas))
    assert isinstance(deltas, list)
    for delta in deltas:
        _require("tool-calls-list", isinstance(delta, dict), repr(delta))
        index = delta.get("index")
        count = len(parsed.tool_calls)
        _require("tool-call-index", _is_int(index) and 0 <= index <= count, f"{delta} after {count} calls")
        if index == count:
            _open_tool_call(delta, parsed)
        else:
            _require("tool-call-sequence", index == count - 1, f"{delta} while call {count - 1} is open")
            ok = set(delta) == {"index", "function"} and isinstance(delta["function"], dict)
            ok = ok and set(delta["function"]) == {"arguments"} and isinstance(delta["function"]["arguments"], str)
            _require("tool-call-continuation", ok, repr(delta))
            parsed.tool_calls[index].arguments += delta["function"]["arguments"]


def _open_tool_call(delta: Json, parsed: ParsedChoice) -> None:
    call = {key: value for key, value in delta.items() if key != "index"}
    _require("tool-call-opening", _is_function_call(call), repr(delta))
    known = [other.id for other in parsed.tool_calls]
    _require("tool-call-id", call["id"] not in known, f"{call['id']} again")
    function = call["function"]
    parsed.tool_calls.append(ParsedToolCall(call["id"], function["name"], function["arguments"]))


def _is_function_call(call: Json) -> bool:
    function = call.get("function")
    return (
        set(call) == {"id", "type", "function"}
        and _is_text(call["id"])
        and call["type"] == "function"
        and isinstance(function, dict)
        and set(function) == {"name", "arguments"}
        and _is_text(function["name"])
        and isinstance(function["arguments"], str)
    )


def _take_function_call(delta: object, parsed: ParsedChoice) -> None:
    """The deprecated single call, for requests that used ``functions``."""
    ok = isinstance(delta, dict) and isinstance(delta.get("arguments"), str) and not parsed.tool_calls
    _require("function-call", ok, repr(delta))
    assert isinstance(delta, dict)
    if parsed.function_call is None:
        _require("function-call", set(delta) == {"name", "arguments"} and _is_text(delta["name"]), repr(delta))
        parsed.function_call = ParsedToolCall("", delta["name"], delta["arguments"])
    else:
        _require("function-call", set(delta) == {"arguments"}, repr(delta))
        parsed.function_call.arguments += delta["arguments"]


# What streams and bodies share.


def _check_envelope(chunk: Json, kind: str, parsed: ParsedStream, *, first: bool) -> None:
    _require("object", chunk.get("object") == kind, repr(chunk.get("object")))
    ident: Any = chunk.get("id")
    created: Any = chunk.get("created")
    model: Any = chunk.get("model")
    _require("id", isinstance(ident, str) and ident.startswith("chatcmpl-") and len(ident) > 9, repr(ident))
    _require("created", _is_int(created) and created > 0, repr(created))
    _require("model", _is_text(model), repr(model))
    if first:
        parsed.id, parsed.created, parsed.model = ident, created, model
    _require("id", ident == parsed.id, f"{ident!r} after {parsed.id!r}")
    _require("created", created == parsed.created, f"{created!r} after {parsed.created!r}")
    _require("model", model == parsed.model, f"{model!r} after {parsed.model!r}")
    tier_ok = "service_tier" not in chunk or _is_text(chunk["service_tier"])
    _require("service-tier", tier_ok, repr(chunk.get("service_tier")))
    print_ok = "system_fingerprint" not in chunk or _is_text(chunk["system_fingerprint"])
    _require("system-fingerprint", print_ok, repr(chunk.get("system_fingerprint")))
    known = {"id", "object", "created", "model", "service_tier", "system_fingerprint", "choices", "usage"}
    parsed.extra |= {key: chunk[key] for key in chunk.keys() - known - {"x_agent", "obfuscation"}}


def _check_message(choice: Json, *, logprobs: bool) -> ParsedChoice:
    message = choice["message"]
    _require("message", isinstance(message, dict) and {"role", "content", "refusal"} <= message.keys(), repr(message))
    _require("role-assistant", message["role"] == "assistant", repr(message["role"]))
    _require(
        "message",
        all(message[key] is None or isinstance(message[key], str) for key in ("content", "refusal")),
        repr(message),
    )
    thoughts = [message[key] for key in _REASONING if key in message]
    _require("delta-strings", all(isinstance(thought, str) for thought in thoughts), repr(thoughts))
    _require("reasoning-agree", len(set(thoughts)) <= 1, repr(thoughts))
    parsed = ParsedChoice(
        content=message["content"] or "", refusal=message["refusal"] or "", reasoning=thoughts[0] if thoughts else ""
    )
    if "annotations" in message:
        _check_annotations(message["annotations"])
        parsed.annotations = list(message["annotations"])
    _take_message_calls(message, parsed)
    known = {*_TEXTS, "role", "annotations", "tool_calls", "function_call"}
    parsed.extra = {key: value for key, value in message.items() if key not in known}
    _check_refusal(parsed)
    _check_logprobs(choice["logprobs"], asked=logprobs)
    if choice["logprobs"]:
        parsed.logprobs = choice["logprobs"]["content"] or choice["logprobs"]["refusal"] or []
    _check_finish(choice["finish_reason"], parsed)
    return parsed


def _take_message_calls(message: Json, parsed: ParsedChoice) -> None:
    if "tool_calls" in message:
        calls = message["tool_calls"]
        _require("tool-calls-list", isinstance(calls, list) and len(calls) > 0, repr(calls))
        for call in calls:
            _require("message-tool-calls", isinstance(call, dict) and _is_function_call(call), repr(call))
            _require("tool-call-id", call["id"] not in [other.id for other in parsed.tool_calls], f"{call['id']} again")
            function = call["function"]
            parsed.tool_calls.append(ParsedToolCall(call["id"], function["name"], function["arguments"]))
    if "function_call" in message:
        _take_function_call(message["function_call"], parsed)


def _check_finish(finish: object, parsed: ParsedChoice) -> None:
    _require("finish-reason", isinstance(finish, str) and finish in FINISH_REASONS, repr(finish))
    assert isinstance(finish, str)
    if parsed.tool_calls:
        _require("finish-tool-calls", finish == "tool_calls" or finish in _CUT_OFF, f"{finish} after tool calls")
    else:
        _require("finish-tool-calls", finish != "tool_calls", "there are no tool calls")
    if parsed.function_call:
        _require("function-call", finish == "function_call" or finish in _CUT_OFF, f"finish_reason {finish}")
    else:
        _require("function-call", finish != "function_call", "there is no function call")
    if parsed.refusal:
        _require("refusal", finish == "stop", f"finish_reason {finish}")
    parsed.finish_reason = finish


def _check_refusal(parsed: ParsedChoice) -> None:
    if parsed.refusal:
        _require("refusal", not parsed.content and not parsed.tool_calls, f"content {parsed.content!r}")


def _check_logprobs(logprobs: object, *, asked: bool) -> None:
    if logprobs is not None:
        ok = asked and isinstance(logprobs, dict) and {"content", "refusal"} <= logprobs.keys()
        _require("logprobs", ok, repr(logprobs))


def _check_annotations(annotations: object) -> None:
    ok = isinstance(annotations, list) and all(
        isinstance(one, dict) and _is_text(one.get("type")) for one in annotations
    )
    _require("annotations", ok, repr(annotations))


def _check_usage(usage: object) -> None:
    _require("usage", isinstance(usage, dict), repr(usage))
    assert isinstance(usage, dict)
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    _require("usage", all(_is_count(usage.get(key)) for key in keys), repr(usage))
    _require("usage", usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"], repr(usage))
    for key in ("prompt_tokens_details", "completion_tokens_details"):
        details = usage.get(key, {})
        _require("usage", isinstance(details, dict) and all(map(_is_count, details.values())), repr(usage))


def _check_error(chunk: Json) -> None:
    _require("error-frame", set(chunk) == {"error"}, repr(chunk))
    error = chunk["error"]
    ok = isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
    ok = ok and _is_text(error["message"]) and _is_text(error["type"])
    ok = ok and all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    _require("error-frame", ok, repr(chunk))


def _check_x_agent(event: object, parsed: ParsedStream) -> None:
    ok = isinstance(event, dict) and _is_text(event.get("type")) and _is_int(event.get("seq"))
    _require("x-agent", ok, repr(event))
    assert isinstance(event, dict)
    before = parsed.x_agent[-1]["seq"] if parsed.x_agent else -1
    _require("x-agent", event["seq"] > before, f"seq {event['seq']} after {before}")
    parsed.x_agent.append(event)


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_count(value: object) -> bool:
    return isinstance(value, int) and type(value) is int and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _require_keys(rule: str, value: Json, keys: set[str]) -> None:
    _require(rule, keys <= value.keys(), f"{sorted(keys - value.keys())} missing in {value}")


def _require(rule: str, holds: bool, detail: str) -> None:
    if not holds:
        _fail(rule, detail)


def _fail(rule: str, detail: str) -> NoReturn:
    raise RuleViolationError(rule, detail)
