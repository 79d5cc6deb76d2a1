"""The judge of streams objects to what is wrong: each change to a good stream breaks the rule that is named."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentrun_server.core.events import Annotation, FunctionCall, FunctionCallOutput, ReasoningDelta
from tests.protocols.openai_responses.answers import FUNCTION, stream_of
from tests.support.responses_oracle import RuleViolationError, check_response_stream

Events = list[dict[str, Any]]

STREAM = stream_of(
    [
        ReasoningDelta("Hm"), "Hel", "lo", Annotation.url_citation("u"),
        FunctionCall("own", "{}", "c1"), FunctionCallOutput("c1", "x"), FunctionCall("f", "{}", "c2"),
    ],
    {"tools": [FUNCTION]},
)[0]  # fmt: skip


def events() -> Events:
    blocks = STREAM.decode().split("\n\n")[:-2]
    return [json.loads(block.split("data: ", 1)[1]) for block in blocks]


def written(some: Events) -> bytes:
    """Write events, numbered anew."""
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(some)]
    blocks = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in numbered]
    return "".join([*blocks, "data: [DONE]\n\n"]).encode()


def at(kind: str, nth: int = 0) -> int:
    return [i for i, event in enumerate(events()) if event["type"] == f"response.{kind}"][nth]


def without(kind: str, nth: int = 0) -> Callable[[Events], Events]:
    return lambda some: some[: at(kind, nth)] + some[at(kind, nth) + 1 :]


def changed(kind: str, nth: int = 0, **fields: Any) -> Callable[[Events], Events]:
    def change(some: Events) -> Events:
        some[at(kind, nth)] |= fields
        return some

    return change


def in_response(**fields: Any) -> Callable[[Events], Events]:
    def change(some: Events) -> Events:
        some[-1]["response"] |= fields
        return some

    return change


def without_store(some: Events) -> Events:
    del some[0]["response"]["store"]
    return some


def swapped(some: Events) -> Events:
    some[3], some[4] = some[4], some[3]
    return some


BROKEN: dict[str, tuple[str, Callable[[Events], Events]]] = {
    "no created": ("created-first", lambda some: some[1:]),
    "no in_progress": ("created-first", without("in_progress")),
    "no end": ("terminal", lambda some: some[:-1]),
    "two ends": ("terminal", lambda some: [*some, some[-1]]),
    "not added": ("item-id", without("output_item.added")),
    "not done": ("item-order", without("output_text.done")),
    "part not done": ("item-order", without("content_part.done")),
    "item not done": ("one-open", without("output_item.done")),
    "last item not done": ("output", without("output_item.done", 3)),
    "part not added": ("item-order", without("content_part.added")),
    "a delta is lost": ("text", without("output_text.delta")),
    "arguments without a delta": ("text", without("function_call_arguments.delta")),
    "order": ("item-order", swapped),
    "a gap in output_index": ("item-added", changed("output_item.added", 1, output_index=2)),
    "wrong item": ("item-id", changed("output_text.delta", item_id="msg_9")),
    "wrong content_index": ("part-index", changed("output_text.delta", content_index=1)),
    "wrong annotation_index": ("part-index", changed("output_text.annotation.added", annotation_index=1)),
    "wrong text": ("text", changed("output_text.done", text="Hallo")),
    "wrong part": ("item-done", changed("content_part.done", part={"type": "output_text", "text": "x"})),
    "wrong name": ("item-done", changed("function_call_arguments.done", name="g")),
    "empty delta": ("delta", changed("output_text.delta", delta="")),
    "unknown key": ("keys", changed("output_text.delta", more=1)),
    "unknown type": ("type", changed("output_text.delta", type="response.more")),
    "padding": ("obfuscation", changed("output_text.delta", obfuscation="x")),
    "another id": ("response-same", in_response(id="resp_9")),
    "another status": ("response-types", in_response(status="failed")),
    "no usage": ("usage", in_response(usage=None)),
    "no output": ("output", in_response(output=[])),
    "a key is missing": ("response-keys", without_store),
    "early usage": ("usage", lambda some: [{**some[0], "response": {**some[0]["response"], "usage": {}}}, *some[1:]]),
}


def test_the_stream_is_good_to_begin_with() -> None:
    check_response_stream(STREAM)
    check_response_stream(written(events()))


@pytest.mark.parametrize(("rule", "change"), BROKEN.values(), ids=BROKEN)
def test_a_change_breaks_its_rule(rule: str, change: Callable[[Events], Events]) -> None:
    with pytest.raises(RuleViolationError) as raised:
        check_response_stream(written(change(events())))
    assert raised.value.rule == rule, raised.value


@pytest.mark.parametrize(
    ("rule", "stream"),
    [
        ("done-last", STREAM.removesuffix(b"data: [DONE]\n\n")),
        ("block", STREAM.removesuffix(b"\n")),
        ("lf-only", STREAM.replace(b"\n", b"\r\n", 1)),
        ("block", STREAM.replace(b"event: response.created\n", b"", 1)),
        ("type", STREAM.replace(b"event: response.created", b"event: message", 1)),
        ("sequence", STREAM.replace(b'"sequence_number":5', b'"sequence_number":6', 1)),
        ("json", STREAM.replace(b'"output_index":0', b'"output_index":NaN', 1)),
        ("json", STREAM.replace(b'"output_index":0', b'"output_index":0,"output_index":0', 1)),
        ("utf-8", STREAM + b"\xff\n\n"),
    ],
)
def test_bytes_that_are_wrong_break_their_rule(rule: str, stream: bytes) -> None:
    with pytest.raises(RuleViolationError) as raised:
        check_response_stream(stream)
    assert raised.value.rule == rule, raised.value
