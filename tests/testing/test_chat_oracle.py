"""The judge of chat answers: good ones pass and are put together, and every rule catches what it is for."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.chat_oracle import (
    RULES,
    ParsedChoice,
    ParsedToolCall,
    RuleViolationError,
    check_chat_stream,
    check_completion,
)

Json = dict[str, Any]

USAGE: Json = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
ERROR: Json = {"error": {"message": "It failed.", "type": "server_error", "param": None, "code": "agent_error"}}


def choice(delta: Json, finish: str | None = None, index: int = 0, logprobs: Any = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def chunk(*choices: Json, **more: Any) -> Json:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1750000000, "model": "m"}
    return {**head, "service_tier": "default", "choices": list(choices), **more}


def delta(finish: str | None = None, **fields: Any) -> Json:
    return chunk(choice(fields, finish))


ROLE = delta(role="assistant", content="", refusal=None)
TOOL_ROLE = delta(role="assistant", content=None)
STOP = delta("stop")


def call(index: int, ident: str = "call_1", name: str = "search", arguments: str = "") -> Json:
    return {"index": index, "id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def arguments(index: int, text: str) -> Json:
    return delta(tool_calls=[{"index": index, "function": {"arguments": text}}])


def stream(*chunks: Json | str, done: bool = True) -> bytes:
    """Encode chunks; a string stands for itself."""
    blocks = [block if isinstance(block, str) else f"data: {json.dumps(block)}" for block in chunks]
    return "".join(f"{block}\n\n" for block in [*blocks, *(["data: [DONE]"] if done else [])]).encode()


def with_usage(*chunks: Json) -> list[Json]:
    return [{**one, "usage": None} for one in chunks]


def agent_event(seq: int, **more: Any) -> Json:
    return chunk(choice({}), x_agent={"type": "progress", "seq": seq, **more})


class TestGoodStreams:
    def test_text(self) -> None:
        parsed = check_chat_stream(
            stream(ROLE, delta(content="Hel"), ": keep-alive", delta(content="lo"), STOP), include_usage=False
        )
        assert (parsed.text, parsed.comments, parsed.usage, parsed.error) == ("Hello", ["keep-alive"], None, None)
        assert (parsed.id, parsed.model, parsed.created) == ("chatcmpl-1", "m", 1750000000)
        assert parsed.choices == [ParsedChoice(content="Hello", finish_reason="stop")]
        assert len(parsed.chunks) == 4

    def test_usage(self) -> None:
        chunks = [*with_usage(ROLE, delta(content="x"), STOP), chunk(usage=USAGE)]
        assert check_chat_stream(stream(*chunks), include_usage=True).usage == USAGE

    def test_tool_calls(self) -> None:
        parsed = check_chat_stream(
            stream(
                TOOL_ROLE,
                delta(tool_calls=[call(0)]),
                arguments(0, '{"q":'),
                arguments(0, '"x"}'),
                delta(tool_calls=[call(1, "call_2", "open", "{}")]),
                delta("tool_calls"),
            ),
            include_usage=False,
        )
        assert parsed.choices[0].tool_calls == [
            ParsedToolCall("call_1", "search", '{"q":"x"}'),
            ParsedToolCall("call_2", "open", "{}"),
        ]

    def test_a_legacy_function_call(self) -> None:
        chunks = [
            delta(function_call={"name": "f", "arguments": ""}),
            delta(function_call={"arguments": "{}"}),
            delta("function_call"),
        ]
        parsed = check_chat_stream(stream(TOOL_ROLE, *chunks), include_usage=False)
        assert parsed.choices[0].function_call == ParsedToolCall("", "f", "{}")

    def test_reasoning_in_either_field_or_both(self) -> None:
        for fields in (
            {"reasoning": "hm"},
            {"reasoning_content": "hm"},
            {"reasoning": "hm", "reasoning_content": "hm"},
        ):
            parsed = check_chat_stream(stream(ROLE, delta(**fields), delta(content="x"), STOP), include_usage=False)
            assert (parsed.choices[0].reasoning, parsed.choices[0].content) == ("hm", "x")

    def test_a_refusal(self) -> None:
        parsed = check_chat_stream(
            stream(ROLE, delta(refusal="I "), delta(refusal="won't."), STOP), include_usage=False
        )
        assert parsed.choices[0].refusal == "I won't."

    def test_several_choices(self) -> None:
        roles = [chunk(choice({"role": "assistant", "content": ""}, index=index)) for index in range(2)]
        texts = [chunk(choice({"content": str(index)}, index=index)) for index in (1, 0)]
        ends = [chunk(choice({}, "stop", index)) for index in (1, 0)]
        parsed = check_chat_stream(stream(*roles, *texts, *ends), include_usage=False, n=2)
        assert [one.content for one in parsed.choices] == ["0", "1"]

    def test_logprobs_and_obfuscation_when_asked_for(self) -> None:
        token = {"token": "x", "logprob": -1, "bytes": None, "top_logprobs": []}
        piece = chunk(choice({"content": "x"}, logprobs={"content": [token], "refusal": None}), obfuscation="abc")
        parsed = check_chat_stream(stream(ROLE, piece, STOP), include_usage=False, logprobs=True, obfuscation=True)
        assert parsed.choices[0].logprobs == [token]

    def test_an_error_in_the_middle_and_before_the_first_chunk(self) -> None:
        for chunks in ([], [ROLE], [ROLE, delta(content="x")]):
            assert check_chat_stream(stream(*chunks, ERROR), include_usage=False).error == ERROR["error"]

    def test_agent_events_and_other_extensions(self) -> None:
        note = {"type": "url_citation", "url_citation": {"url": "https://a.b", "title": "t"}}
        parsed = check_chat_stream(
            stream(
                ROLE,
                agent_event(0),
                agent_event(3, label="Searching"),
                delta(annotations=[note]),
                delta(mood="hap"),
                delta(mood="py"),
                {**STOP, "citations": ["https://a.b"]},
            ),
            include_usage=False,
        )
        assert [event["seq"] for event in parsed.x_agent] == [0, 3]
        assert parsed.choices[0].annotations == [note]
        assert (parsed.choices[0].extra, parsed.extra) == ({"mood": "happy"}, {"citations": ["https://a.b"]})

    def test_a_call_cut_off_by_the_token_limit(self) -> None:
        check_chat_stream(stream(TOOL_ROLE, delta(tool_calls=[call(0)]), delta("length")), include_usage=False)


class Bad:
    """A stream that breaks `rule`."""

    def __init__(self, rule: str, body: bytes, **asked: Any) -> None:
        self.rule = rule
        self.body = body
        self.asked = {"include_usage": False, **asked}

    def __repr__(self) -> str:
        return self.rule


def two(role_index: int = 1) -> list[Json]:
    return [chunk(choice({"role": "assistant", "content": ""}, index=index)) for index in (0, role_index)]


def without(value: Json, *keys: str) -> Json:
    return {key: item for key, item in value.items() if key not in keys}


def bare(key: str) -> Json:
    return chunk(without(choice({"content": "x"}), key))


BAD_STREAMS = [
    Bad("utf-8", b"\xef\xbb\xbf" + stream(ROLE, STOP)),
    Bad("utf-8", stream(ROLE, STOP).replace(b"data", b"\xff", 1)),
    Bad("lf-only", stream(ROLE, STOP).replace(b"\n", b"\r\n")),
    Bad("whole-events", stream(ROLE, STOP)[:-1]),
    Bad("whole-events", b""),
    Bad("no-empty-block", stream(ROLE, STOP).replace(b"\n\n", b"\n\n\n", 1)),
    Bad("no-empty-block", stream(ROLE, STOP).replace(b"\n\n", b"\n\n\n\n", 1)),
    Bad("no-empty-block", stream(ROLE, STOP) + b"\n"),
    Bad("one-data-line", stream("data: {\ndata: }", STOP)),
    Bad("space-after-colon", stream(ROLE, STOP).replace(b"data: ", b"data:")),
    Bad("no-event-line", stream("event: chunk\ndata: {}")),
    Bad("no-id-line", stream("id: 1\ndata: {}")),
    Bad("no-retry-line", stream("retry: 100")),
    Bad("no-unknown-line", stream("date: {}")),
    Bad("space-after-colon", stream(ROLE, "data")),
    Bad("comment-alone", stream(": ping\ndata: {}")),
    Bad("done-last", stream(ROLE, STOP, done=False)),
    Bad("done-last", stream(ROLE, STOP, "data: [DONE]")),
    Bad("done-last", stream(ROLE, STOP) + stream(STOP, done=False)),
    Bad("done-last", stream(ROLE, STOP) + b": bye\n\n"),
    Bad("json", stream(ROLE, "data: {oops}")),
    Bad("json", stream(ROLE, "data: [1]")),
    Bad("json", stream(ROLE, 'data: {"a":NaN}')),
    Bad("json", stream(ROLE, 'data: {"a":1e999}')),
    Bad("json", stream(ROLE, 'data: {"a":[{"b":-Infinity}]}')),
    Bad("json", stream(ROLE, 'data: {"a":1,"a":2}')),
    Bad("object", stream(without(ROLE, "object"), STOP)),
    Bad("object", stream(ROLE, {**STOP, "object": "chat.completion"})),
    Bad("id", stream(ROLE, {**STOP, "id": "chatcmpl-2"})),
    Bad("id", stream({**ROLE, "id": "1"})),
    Bad("id", stream(without(ROLE, "id"))),
    Bad("created", stream(ROLE, {**STOP, "created": 1750000001})),
    Bad("created", stream({**ROLE, "created": 1750000000.5})),
    Bad("created", stream({**ROLE, "created": True})),
    Bad("model", stream(ROLE, {**STOP, "model": "n"})),
    Bad("model", stream({**ROLE, "model": None})),
    Bad("service-tier", stream(ROLE, without(STOP, "service_tier"))),
    Bad("service-tier", stream(without(ROLE, "service_tier"), STOP)),
    Bad("service-tier", stream({**ROLE, "service_tier": None})),
    Bad("system-fingerprint", stream({**ROLE, "system_fingerprint": None})),
    Bad("choices", stream({**ROLE, "choices": None})),
    Bad("choices", stream(without(ROLE, "choices"))),
    Bad("choices", stream({**ROLE, "choices": ["x"]})),
    Bad("choice-index", stream(ROLE, chunk(choice({"content": "x"}, index=1)))),
    Bad("choice-index", stream(ROLE, chunk(choice({"content": "x"}), choice({"content": "x"})))),
    Bad("choice-index", stream(chunk(choice({"role": "assistant"}, index="0")))),  # type: ignore[arg-type]
    Bad("choice-keys", stream(ROLE, bare("index"))),
    Bad("choice-keys", stream(ROLE, bare("delta"))),
    Bad("choice-keys", stream(ROLE, bare("finish_reason"))),
    Bad("choice-keys", stream(ROLE, bare("logprobs"))),
    Bad("choice-order", stream(*reversed(two())), n=2),
    Bad("every-choice", stream(ROLE, STOP), n=2),
    Bad("every-choice", stream(ROLE, delta(content="x"))),
    Bad("every-choice", stream()),
    Bad("every-choice", stream(*with_usage(ROLE), chunk(usage=USAGE)), include_usage=True),
    Bad("logprobs", stream(ROLE, chunk(choice({"content": "x"}, logprobs={"content": [], "refusal": None})))),
    Bad("logprobs", stream(ROLE, chunk(choice({"content": "x"}, logprobs={"content": []}))), logprobs=True),
    Bad("obfuscation", stream({**ROLE, "obfuscation": "x"})),
    Bad("obfuscation", stream({**ROLE, "obfuscation": 1}), obfuscation=True),
    Bad("no-empty-choices", stream(ROLE, chunk(), STOP)),
    Bad("no-empty-choices", stream(ROLE, STOP, chunk(usage=USAGE))),
    Bad("no-empty-choices", stream(*with_usage(ROLE, chunk(), STOP)), include_usage=True),
    Bad("delta", stream(ROLE, chunk(choice(None, "stop")))),  # type: ignore[arg-type]
    Bad("role-first", stream(delta(content="x"))),
    Bad("role-first", stream(agent_event(0), ROLE)),
    Bad("role-first", stream(ROLE, delta(role="assistant", content="x"))),
    Bad("role-assistant", stream(delta(role="tool", content=""))),
    Bad("role-chunk", stream(delta(role="assistant", content="Hello"))),
    Bad("role-chunk", stream(delta("stop", role="assistant", content=""))),
    Bad("role-chunk", stream(delta(role="assistant", content="", tool_calls=[call(0)]))),
    Bad("delta-strings", stream(ROLE, delta(content=None))),
    Bad("delta-strings", stream(ROLE, delta(reasoning={"text": "x"}))),
    Bad("delta-mergeable", stream(ROLE, delta(score=1))),
    Bad("delta-mergeable", stream(ROLE, delta(sources=["a"]), delta(sources=["b"]))),
    Bad("delta-mergeable", stream(ROLE, delta(annotations=[]), delta(annotations=[]))),
    Bad("reasoning-agree", stream(ROLE, delta(reasoning="a", reasoning_content="b"))),
    Bad("refusal", stream(ROLE, delta(content="Well, "), delta(refusal="no"))),
    Bad("refusal", stream(ROLE, delta(refusal="no"), delta("length"))),
    Bad("tool-calls-list", stream(TOOL_ROLE, delta(tool_calls=[]))),
    Bad("tool-calls-list", stream(TOOL_ROLE, delta(tool_calls=None))),
    Bad("tool-calls-list", stream(TOOL_ROLE, delta(tool_calls=[None]))),
    Bad("tool-call-index", stream(TOOL_ROLE, delta(tool_calls=[without(call(0), "index")]))),
    Bad("tool-call-index", stream(TOOL_ROLE, delta(tool_calls=[call(1)]))),
    Bad("tool-call-index", stream(TOOL_ROLE, delta(tool_calls=[call(0)]), delta(tool_calls=[call(2, "call_2")]))),
    Bad("tool-call-opening", stream(TOOL_ROLE, delta(tool_calls=[without(call(0), "id")]))),
    Bad("tool-call-opening", stream(TOOL_ROLE, delta(tool_calls=[without(call(0), "type")]))),
    Bad("tool-call-opening", stream(TOOL_ROLE, delta(tool_calls=[{**call(0), "function": {"name": "f"}}]))),
    Bad("tool-call-opening", stream(TOOL_ROLE, delta(tool_calls=[call(0, name="")]))),
    Bad("tool-call-opening", stream(TOOL_ROLE, delta(tool_calls=[call(0, arguments={})]))),  # type: ignore[arg-type]
    Bad("tool-call-continuation", stream(TOOL_ROLE, delta(tool_calls=[call(0)]), delta(tool_calls=[call(0)]))),
    Bad(
        "tool-call-continuation",
        stream(
            TOOL_ROLE,
            delta(tool_calls=[call(0)]),
            delta(tool_calls=[{"index": 0, "id": None, "function": {"arguments": "{"}}]),
        ),
    ),
    Bad(
        "tool-call-sequence",
        stream(
            TOOL_ROLE,
            delta(tool_calls=[call(0)]),
            delta(tool_calls=[call(1, "call_2")]),
            arguments(0, "{}"),
        ),
    ),
    Bad("tool-call-id", stream(TOOL_ROLE, delta(tool_calls=[call(0)]), delta(tool_calls=[call(1)]))),
    Bad("function-call", stream(TOOL_ROLE, delta(function_call={"arguments": "{}"}))),
    Bad("function-call", stream(TOOL_ROLE, *[delta(function_call={"name": "f", "arguments": ""})] * 2)),
    Bad("function-call", stream(TOOL_ROLE, delta("function_call"))),
    Bad("function-call", stream(TOOL_ROLE, delta(function_call={"name": "f", "arguments": ""}), STOP)),
    Bad("finish-once", stream(ROLE, STOP, STOP)),
    Bad("finish-once", stream(ROLE, STOP, delta(content="more"))),
    Bad("finish-reason", stream(ROLE, delta("error"))),
    Bad("finish-reason", stream(ROLE, delta(True))),  # type: ignore[arg-type]
    Bad("finish-delta", stream(ROLE, delta("stop", content="x"))),
    Bad("finish-tool-calls", stream(TOOL_ROLE, delta(tool_calls=[call(0)]), STOP)),
    Bad("finish-tool-calls", stream(ROLE, delta("tool_calls"))),
    Bad("usage-unasked", stream(ROLE, {**STOP, "usage": None})),
    Bad("usage-null", stream(*with_usage(ROLE), STOP, chunk(usage=USAGE)), include_usage=True),
    Bad("usage-null", stream(*with_usage(ROLE), {**STOP, "usage": USAGE}), include_usage=True),
    Bad("usage-last", stream(*with_usage(ROLE, STOP)), include_usage=True),
    Bad("usage-last", stream(*with_usage(ROLE, STOP), chunk(usage=USAGE), chunk(usage=USAGE)), include_usage=True),
    Bad("usage", stream(*with_usage(ROLE, STOP), chunk(usage={**USAGE, "total_tokens": 6})), include_usage=True),
    Bad("usage", stream(*with_usage(ROLE, STOP), chunk(usage={"prompt_tokens": 1})), include_usage=True),
    Bad(
        "usage",
        stream(*with_usage(ROLE, STOP), chunk(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": None}})),
        include_usage=True,
    ),
    Bad("error-frame", stream(ROLE, {"error": "it failed"})),
    Bad("error-frame", stream(ROLE, {"type": "error", "message": "it failed"})),
    Bad("error-frame", stream(ROLE, {**STOP, **ERROR})),
    Bad("error-frame", stream(ROLE, {"error": without(ERROR["error"], "param")})),
    Bad("error-frame", stream(ROLE, {"error": {**ERROR["error"], "code": 500}})),
    Bad("error-last", stream(ROLE, ERROR, STOP)),
    Bad("error-last", stream(ROLE, ERROR, ERROR)),
    Bad("error-unfinished", stream(ROLE, STOP, ERROR)),
    Bad("x-agent", stream(ROLE, chunk(choice({"content": "x"}), x_agent={"type": "progress", "seq": 0}))),
    Bad("x-agent", stream(ROLE, agent_event(0), agent_event(0))),
    Bad("x-agent", stream(ROLE, chunk(choice({}), x_agent={"type": "progress"}))),
    Bad("annotations", stream(ROLE, delta(annotations=[{"url": "https://a.b"}]))),
]

COMPLETION: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1750000000,
    "model": "m",
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]


def changed(change: Callable[[Json], object]) -> Json:
    body = copy.deepcopy(COMPLETION)
    change(body)
    return body


def message(**fields: Any) -> Json:
    return changed(lambda body: body["choices"][0]["message"].update(fields))


def finished(reason: Any, **fields: Any) -> Json:
    body = message(**fields)
    body["choices"][0]["finish_reason"] = reason
    return body


BAD_COMPLETIONS: list[tuple[str, Json]] = [
    ("object", {**COMPLETION, "object": "chat.completion.chunk"}),
    ("id", {**COMPLETION, "id": 1}),
    ("created", {**COMPLETION, "created": "now"}),
    ("model", without(COMPLETION, "model")),
    ("json", {**COMPLETION, "score": float("nan")}),
    ("system-fingerprint", {**COMPLETION, "system_fingerprint": None}),
    ("choices", without(COMPLETION, "choices")),
    ("every-choice", {**COMPLETION, "choices": []}),
    ("choice-keys", changed(lambda body: body["choices"][0].pop("logprobs"))),
    ("message", changed(lambda body: body["choices"][0]["message"].pop("refusal"))),
    ("message", message(content=["Hello"])),
    ("role-assistant", message(role="user")),
    ("delta-strings", message(reasoning=None)),
    ("tool-calls-list", message(tool_calls=[])),
    ("tool-calls-list", message(tool_calls=None)),
    ("tool-call-id", finished("tool_calls", content=None, tool_calls=CALLS * 2)),
    (
        "message-tool-calls",
        finished("tool_calls", tool_calls=[{**CALLS[0], "function": {"name": "search", "arguments": {}}}]),
    ),
    ("finish-tool-calls", finished("stop", tool_calls=CALLS)),
    ("finish-tool-calls", finished("tool_calls")),
    ("finish-reason", finished("error")),
    ("finish-reason", finished(None)),
    ("refusal", message(refusal="no")),
    ("annotations", message(annotations=None)),
    ("usage", {**COMPLETION, "usage": None}),
    ("usage", without(COMPLETION, "usage")),
    ("x-agent", {**COMPLETION, "x_agent": []}),
]


@pytest.mark.parametrize("bad", BAD_STREAMS, ids=repr)
def test_a_bad_stream_is_caught_by_the_rule_it_breaks(bad: Bad) -> None:
    with pytest.raises(RuleViolationError) as caught:
        check_chat_stream(bad.body, **bad.asked)
    assert caught.value.rule == bad.rule, str(caught.value)
    assert str(caught.value).startswith(f"{bad.rule}: ")


@pytest.mark.parametrize(("rule", "body"), BAD_COMPLETIONS)
def test_a_bad_body_is_caught_by_the_rule_it_breaks(rule: str, body: Json) -> None:
    with pytest.raises(RuleViolationError) as caught:
        check_completion(body)
    assert caught.value.rule == rule, str(caught.value)


def test_every_rule_has_a_bad_answer_that_breaks_it() -> None:
    tried = {bad.rule for bad in BAD_STREAMS} | {rule for rule, _ in BAD_COMPLETIONS}
    assert tried == set(RULES)


def test_a_good_body_is_put_together_as_a_stream_is() -> None:
    streamed = check_chat_stream(stream(ROLE, delta(content="Hel"), delta(content="lo"), STOP), include_usage=False)
    whole = check_completion(COMPLETION)
    assert whole.choices == streamed.choices
    assert whole.usage == USAGE


def test_a_good_body_with_tool_calls_reasoning_and_agent_events() -> None:
    body = finished("tool_calls", content=None, tool_calls=CALLS, reasoning="hm", reasoning_content="hm")
    parsed = check_completion({**body, "x_agent": {"events": [{"type": "progress", "seq": 0}]}})
    expected = ParsedChoice(
        reasoning="hm", tool_calls=[ParsedToolCall("call_1", "search", "{}")], finish_reason="tool_calls"
    )
    assert parsed.choices == [expected]
    assert parsed.x_agent == [{"type": "progress", "seq": 0}]
