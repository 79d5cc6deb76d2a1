"""Whatever an agent yields becomes a stream that an independent judge accepts, or an error; never anything else."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agentrun_server.core.events import Interrupt, ReasoningDelta, RefusalDelta, TextDelta
from agentrun_server.core.usage import Usage
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.encode import plain_completion
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat import strategies
from tests.protocols.openai_chat.answers import (
    CREATED,
    ID,
    MODEL,
    PROMPT_TOKENS,
    completion_of,
    judged,
    judged_body,
    options,
    same_text,
    stream_of,
    summary,
    texts_said,
)
from tests.support.properties import any_text
from tests.support.sse import parse_events

_KNOWN = {"role", "content", "refusal", "annotations", "tool_calls", "function_call", "reasoning_content", "reasoning"}


def without_additions(body: bytes) -> bytes:
    """Return the stream without the fields an agent added to a delta: it answers for their form."""
    written = b""
    for event in parse_events(body):
        if event.data != "[DONE]":
            chunk = json.loads(event.data)
            for choice in chunk.get("choices", ()):
                choice["delta"] = {key: value for key, value in choice["delta"].items() if key in _KNOWN}
            written += f"data: {json.dumps(chunk)}\n\n".encode()
    return written + b"data: [DONE]\n\n"


def strict_json(body: bytes) -> None:
    """Check that every event is JSON on one line, without what only Python's parser accepts."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in body.decode().splitlines():
        assert line == "" or line.startswith((": ", "data: ")) or line == ":", line[:80]
        if line.startswith("data: {"):
            json.loads(line.removeprefix("data: "), parse_constant=refuse)


def check(items: list[Any], asked: ChatOptions, settings: ChatSettings) -> None:
    body, raised = stream_of(items, asked, settings)
    strict_json(body)
    streamed = judged(without_additions(body), asked)
    whole, also_raised = completion_of(items, asked, settings)
    assert type(raised) is type(also_raised), f"the stream ended with {raised!r}, the body with {also_raised!r}"
    assert (streamed.error is not None) == (raised is not None)
    if whole is not None:
        parsed = judged_body(whole, asked)
        assert [summary(choice) for choice in streamed.choices] == [summary(choice) for choice in parsed.choices]
        if asked.include_usage:
            assert streamed.usage == parsed.usage
        assert streamed.x_agent == parsed.x_agent


@requirement("chat.stream.json", "chat.completion.same-as-stream")
@given(strategies.items, strategies.chat_options(), strategies.chat_settings)
def test_anything_an_agent_may_yield_gives_a_valid_stream_and_the_same_body(
    items: list[Any], asked: ChatOptions, settings: ChatSettings
) -> None:
    check(items, asked, settings)


@given(
    st.lists(strategies.wrong_items, min_size=1, max_size=3),
    strategies.items,
    strategies.chat_options(),
    strategies.chat_settings,
)
def test_what_no_agent_should_yield_is_refused_or_read_but_breaks_nothing(
    wrong: list[Any], items: list[Any], asked: ChatOptions, settings: ChatSettings
) -> None:
    check([*items[:3], *wrong, *items[3:]], asked, settings)


@requirement("chat.completion.same-as-stream")
@given(any_text)
def test_the_short_way_for_plain_text_writes_what_the_long_way_writes(text: str) -> None:
    short = plain_completion(text, id=ID, created=CREATED, model=MODEL, prompt_tokens=PROMPT_TOKENS)
    whole, _ = completion_of([text], options())
    assert json.loads(short) == whole


def expected_content(items: list[Any]) -> str:
    """Say what the content is, as simply as possible: the texts, and the questions to a human."""
    content = ""
    for said in texts_said(items):
        match said:
            case str():
                content += said
            case TextDelta():
                replaced = said.addition.fields.get("content") if said.addition else None
                content += replaced if isinstance(replaced, str) else said.text
            case Interrupt():
                content += said.prompt
                for option in said.options or ():
                    content += f"\n- {option}"
            case _:
                pass
    return content


_texts = st.one_of(
    any_text,
    st.builds(TextDelta, any_text),
    st.builds(ReasoningDelta, any_text),
    st.builds(Usage, st.integers(0, 9)),
    st.builds(Interrupt, any_text, any_text, st.just("input"), st.none(), st.none() | st.lists(any_text, max_size=2)),
)


@given(st.lists(_texts, max_size=10), strategies.chat_settings)
def test_the_content_is_what_the_agent_said_and_nothing_else(items: list[Any], settings: ChatSettings) -> None:
    body, raised = stream_of(items, options(), settings)
    assert raised is None
    answer = judged(body, options()).choices[0]
    assert same_text(answer.content) == same_text(expected_content(items))
    reasoning = "".join(item.text for item in items if isinstance(item, ReasoningDelta))
    assert same_text(answer.reasoning) == ("" if settings.reasoning_field == "none" else same_text(reasoning))
    assert answer.finish_reason == "stop"


@requirement("chat.stream.tool-calls", "chat.stream.tool-call-order", "activity.ownership")
@given(strategies.call_scripts(), st.lists(any_text, max_size=3), st.sets(st.sampled_from(strategies.CLIENT_TOOLS)))
def test_calls_come_out_as_they_were_said_and_only_the_clients(
    script: strategies.CallScript, texts: list[str], tools: set[str]
) -> None:
    items = [*texts[:1], *script.said, *texts[1:]]
    asked = options(tools=tools)
    body, raised = stream_of(items, asked)
    assert raised is None
    answer = judged(body, asked).choices[0]
    said = [(call.id, same_text(call.name), same_text(call.arguments)) for call in answer.tool_calls]
    assert said == [(call_id, name, same_text(args)) for call_id, name, args in script.calls if name in tools]
    assert same_text(answer.content) == same_text("".join(texts))
    check(items, asked, ChatSettings())


@requirement("chat.stream.refusal")
@given(st.lists(any_text, min_size=1), st.lists(any_text), strategies.chat_settings)
def test_a_refusal_is_what_the_agent_said_in_stream_and_body(
    refused: list[str], thoughts: list[str], settings: ChatSettings
) -> None:
    items = [*map(ReasoningDelta, thoughts), *map(RefusalDelta, refused), Usage(1, 2)]
    check(items, options(include_usage=True), settings)
    body, _ = stream_of(items, options(), settings)
    answer = judged(body, options()).choices[0]
    assert same_text(answer.refusal) == same_text("".join(refused))
    assert answer.content == ""


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Return a text, and the same text in pieces."""
    text = draw(st.text("ab\n") | any_text)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    return text, [text[start:end] for start, end in pairwise(edges)]


def cut(text: str, stop: list[str]) -> str:
    """Return `text` up to the sequence that is complete first, as a model that stops there would."""
    found = [(text.index(sequence) + len(sequence), text.index(sequence)) for sequence in stop if sequence in text]
    return text[: min(found)[1]] if found else text


_stops = st.lists(st.sampled_from(["a", "ab", "bb", "aba", "\n\n", "b\na"]) | any_text.filter(bool), max_size=4)


@requirement("chat.request.stop")
@given(split_texts(), _stops, st.booleans())
@example(("aab", ["aa", "b"]), ["ab"], False)
@example(("data", ["da", "ta"]), ["a", "data"], False)
def test_however_a_text_is_split_the_answer_is_the_same(
    split: tuple[str, list[str]], stop: list[str], obfuscated: bool
) -> None:
    text, pieces = split
    expected = cut(text, stop)
    asked = options(stop=tuple(stop), include_obfuscation=obfuscated)
    body, raised = stream_of(pieces, asked)
    assert raised is None
    assert same_text(judged(body, asked).choices[0].content) == same_text(expected)
    whole, raised = completion_of(pieces, asked)
    assert raised is None
    assert whole is not None
    assert same_text(judged_body(whole, asked).choices[0].content) == same_text(expected)


_noise = st.sampled_from([ReasoningDelta("hm"), Usage(1), Interrupt("i")])


@given(split_texts(), st.lists(_noise, max_size=4), _stops)
def test_no_stop_sequence_is_ever_shown_whatever_stands_between_the_pieces(
    split: tuple[str, list[str]], noise: list[Any], stop: list[str]
) -> None:
    text, pieces = split
    items: list[Any] = []
    for i, piece in enumerate(pieces):
        items += [piece, noise[i % len(noise)]] if noise else [piece]
    asked = options(stop=tuple(stop))
    body, _ = stream_of(items, asked)
    content = same_text(judged(body, asked).choices[0].content)
    assert content.startswith(same_text(cut(text, stop)))
    assert not any(sequence in content for sequence in stop if sequence == same_text(sequence))
