"""A stream that is kept: what is stored is what a client makes of the chunks, whatever the agent says."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from agentrun_server.core.events import (
    Addition,
    Annotation,
    Failure,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, APIError
from agentrun_server.invoker.coerce import coerce
from agentrun_server.protocols.openai_chat.both import KeptChunks
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from tests.protocols.openai_chat import strategies
from tests.protocols.openai_chat.answers import (
    ALLOWED,
    CREATED,
    ID,
    MODEL,
    PROMPT_TOKENS,
    Counter,
    chunk_encoder,
    completion_of,
    judged,
    judged_body,
    options,
)
from tests.support.properties import EXAMPLES
from tests.support.sse import parse_events

Encoder = KeptChunks | ChunkEncoder


def kept_chunks(asked: ChatOptions, chosen: ChatSettings | None = None) -> KeptChunks:
    return KeptChunks(
        asked,
        chosen or ChatSettings(),
        Counter(),
        id=ID,
        created=CREATED,
        model=MODEL,
        prompt_tokens=lambda: PROMPT_TOKENS,
    )


def feed(said: list[str | TypedEvent], encoder: Encoder) -> str:
    """Do what the pump does: feed plain texts together, the rest one by one, and stop at the end."""
    written, texts = "", list[str]()
    for event in said:
        if type(event) is str and event and encoder.plain:
            texts.append(event)
            continue
        if texts:
            written += encoder.feed_texts(texts)
            texts = []
        if encoder.ended:
            return written
        written += encoder.feed(event)
        if encoder.ended:
            return written
    return written + (encoder.feed_texts(texts) if texts else "")


def stream(items: list[Any], encoder: Encoder, n: int) -> str:
    """Return the stream of an agent that yields `items`, once for each choice."""
    written = ""
    for left in range(n - 1, -1, -1):
        written += feed([event for item in items for event in coerce(item)], encoder)
        written += encoder.finish_choice(more=left > 0)
    return written + encoder.finish()


def as_read(value: Any) -> Any:
    """Return `value` as every reader of JSON sees it: two halves of a surrogate pair are one character."""
    return json.loads(json.dumps(value))


def joined(body: str) -> dict[str, Any]:
    """Return the completion that a client makes of a stream, in the simplest way: texts join, lists of logprobs too."""
    *events, done = parse_events(body.encode())
    assert done.data == "[DONE]"
    made: dict[str, Any] = {"object": "chat.completion", "choices": [], "usage": None}
    activity: list[Any] = []
    for event in events:
        chunk = json.loads(event.data)
        made |= {key: chunk[key] for key in ("id", "created", "model", "service_tier")}
        made["usage"] = chunk.get("usage") or made["usage"]
        activity += [chunk["x_agent"]] if "x_agent" in chunk else []
        for piece in chunk["choices"]:
            if piece["index"] == len(made["choices"]):
                made["choices"].append({"index": piece["index"], "message": {}, "logprobs": None})
            _join(made["choices"][piece["index"]], piece)
    if activity:
        made["x_agent"] = {"events": activity}
    return made


def _join(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    message = choice["message"]
    choice["finish_reason"] = piece["finish_reason"]
    for kind, tokens in (piece["logprobs"] or {}).items():
        logprobs: dict[str, Any] = choice["logprobs"] or {"content": None, "refusal": None}
        choice["logprobs"] = {**logprobs, kind: [*(logprobs[kind] or []), *(tokens or [])] or None}
    for key, value in piece["delta"].items():
        if key == "tool_calls":
            _join_call(message.setdefault("tool_calls", []), value[0])
        elif key == "function_call":
            called = message.setdefault("function_call", {"arguments": ""})
            called |= {**value, "arguments": called["arguments"] + value["arguments"]}
        else:
            both_text = isinstance(value, str) and isinstance(message.get(key), str)
            message[key] = message[key] + value if both_text else value


def _join_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    if piece["index"] == len(calls):
        calls.append({key: value for key, value in piece.items() if key != "index"})
        return
    ((kind, key),) = [pair for pair in (("function", "arguments"), ("custom", "input")) if pair[0] in piece]
    calls[piece["index"]][kind][key] += piece[kind][key]


def bare(completion: dict[str, Any]) -> dict[str, Any]:
    """Return a completion without the difference between no text and an empty one, no annotations and an empty list."""
    choices = []
    for choice in completion["choices"]:
        message = {"annotations": [], "refusal": None, **choice["message"]}
        choices.append({**choice, "message": {**message, "content": message.get("content") or ""}})
    return {**as_read({**completion, "choices": choices}), "usage": completion["usage"]}


_CASES = (strategies.items, strategies.chat_options(), strategies.chat_settings)


@settings(max_examples=EXAMPLES // 3)  # each makes three answers
@given(*_CASES)
def test_what_is_stored_is_what_a_client_makes_of_the_chunks(
    items: list[Any], asked: ChatOptions, chosen: ChatSettings
) -> None:
    alone, both = chunk_encoder(asked, chosen), kept_chunks(asked, chosen)
    try:
        expected = stream(items, alone, asked.n)
    except ALLOWED as exc:
        with pytest.raises(type(exc)):
            stream(items, both, asked.n)
        return
    body = stream(items, both, asked.n)
    assert body == expected, "the client reads what it would read if nothing were kept"
    stored = json.loads(both.completion())
    made = joined(body)
    if not asked.include_usage:
        made["usage"] = stored["usage"]
    assert bare(made) == bare(stored)
    assert stored == completion_of(items, asked, chosen)[0], "and what it would get in one piece"


TOOLS = ["alpha", "beta"]
TOKENS = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
SOURCE = {"url": "http://a", "title": "A", "start_index": 0, "end_index": 2}

AGENTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "text": (["Hel", "lo", " ", "you"], {}),
    "nothing": ([], {}),
    "usage": (["Hi", Usage(10, 20, 3, 4)], {"include_usage": True}),
    "three choices": (["Hi"], {"n": 3, "include_usage": True}),
    "stop sequence": (["one E", "N", "D two"], {"stop": ("END",)}),
    "text held back": (["one E", "N"], {"stop": ("END",)}),
    "reasoning": ([ReasoningDelta("Let me "), ReasoningDelta("think."), "Hi"], {}),
    "refusal": ([RefusalDelta("I "), RefusalDelta("won't.")], {}),
    "logprobs": ([TextDelta("Hi", TOKENS), TextDelta("Hi", TOKENS)], {"logprobs": True}),
    "a call": ([FunctionCall("alpha", '{"a": 1}')], {"tools": TOOLS}),
    "a call with an id": ([FunctionCall("alpha", "{}", "call_mine")], {"tools": TOOLS}),
    "calls in pieces": (
        [
            "Wait.",
            FunctionCallDelta('{"a"', "alpha"),
            FunctionCallDelta(":1}"),
            FunctionCall("beta", "{}"),
            FunctionCall("beta", '{"b":2}'),
        ],
        {"tools": TOOLS, "n": 2, "include_obfuscation": True},
    ),
    "a custom tool": ([FunctionCall("shell", "ls -l")], {"client_tools": {"shell": "custom"}}),
    "the deprecated form": (
        [FunctionCallDelta('{"a"', "alpha", addition=Addition({"vendor": "x"}, {})), FunctionCallDelta(":1}")],
        {"tools": TOOLS, "legacy_functions": True},
    ),
    "the agent's own tool": (
        [FunctionCall("mine", '{"q": 1}', "c1"), FunctionCallOutput("c1", "found"), "Hi"],
        {"activity": frozenset({"tools", "io"})},
    ),
    "additions": (
        [
            TextDelta("Hi", None, Addition({"vendor": "x", "score": 1}, {})),
            TextDelta("!", None, Addition({"vendor": "y", "score": 2}, {})),
        ],
        {},
    ),
    "sources": (
        ["Hi", Annotation({"type": "url_citation", "url_citation": SOURCE})],
        {},
    ),
    "half a character": (["\ud83d", "\ude00", "\ud83d"], {}),
}

agents = pytest.mark.parametrize("agent", AGENTS)


@agents
def test_the_judge_finds_the_same_answer_in_both(agent: str) -> None:
    items, changes = AGENTS[agent]
    asked = options(**changes)
    encoder = kept_chunks(asked)
    body = stream(items, encoder, asked.n)
    made, stored = joined(body), json.loads(encoder.completion())
    assert bare({**made, "usage": None}) == bare({**stored, "usage": None})
    if agent != "additions" and agent != "a custom tool":  # what an agent adds has any form, and is checked above
        streamed, whole = judged(body.encode(), asked), judged_body(stored, asked)
        assert [as_read(asdict(one)) for one in streamed.choices] == [as_read(asdict(one)) for one in whole.choices]
        assert (streamed.id, streamed.created, streamed.model) == (whole.id, whole.created, whole.model)
        assert streamed.x_agent == whole.x_agent
        assert streamed.usage == (whole.usage if asked.include_usage else None)


# Its types know no custom tools in a stream.
@pytest.mark.parametrize("agent", sorted(AGENTS.keys() - {"a custom tool"}))
def test_the_official_client_finds_the_same_answer_in_both(agent: str) -> None:
    items, changes = AGENTS[agent]
    asked = options(**changes)
    encoder = kept_chunks(asked)
    events = parse_events(stream(items, encoder, asked.n).encode())
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for event in events[:-1]:
        state.handle_chunk(ChatCompletionChunk.model_validate(json.loads(event.data)))
    stored = ChatCompletion.model_validate(json.loads(encoder.completion()))
    made = state.get_final_completion()
    for mine, theirs in zip(made.choices, stored.choices, strict=True):
        assert as_read(mine.message.content or "") == (theirs.message.content or "")
        assert mine.finish_reason == theirs.finish_reason
        assert plain(mine.message.tool_calls or []) == plain(theirs.message.tool_calls or [])
        assert mine.message.refusal == theirs.message.refusal
        assert mine.logprobs == theirs.logprobs
        assert mine.message.function_call == theirs.message.function_call


def plain(calls: list[Any]) -> list[dict[str, Any]]:
    return [call.model_dump(exclude={"index": True, "function": {"parsed_arguments"}}) for call in calls]


def test_calls_that_the_agent_left_without_an_id_get_one_that_both_know() -> None:
    items, changes = AGENTS["calls in pieces"]
    asked = options(**changes)
    encoder = kept_chunks(asked)
    streamed = judged(stream(items, encoder, asked.n).encode(), asked)
    stored = json.loads(encoder.completion())
    ids = [[call["id"] for call in choice["message"]["tool_calls"]] for choice in stored["choices"]]
    assert ids == [["call_1", "call_2", "call_3"], ["call_4", "call_5", "call_6"]]
    assert [[call.id for call in choice.tool_calls] for choice in streamed.choices] == ids


def test_the_text_is_what_has_been_said_so_far_of_the_choice() -> None:
    encoder = kept_chunks(options(n=2, stop=("END",)))
    for piece in ("one", " E", "ND", " two"):
        encoder.feed(piece)
    assert encoder.ended
    assert encoder.text == "one "
    encoder.finish_choice(more=True)
    assert (encoder.text, encoder.ended) == ("", False)
    encoder.feed("E")
    assert encoder.text == "", "it may be the begin of an end"


def test_a_long_answer_is_cut_at_the_same_place_in_both() -> None:
    encoder = kept_chunks(options(), ChatSettings(max_output_bytes=100))
    made = joined(stream(["ab" * 20] * 9, encoder, 1))
    stored = json.loads(encoder.completion())
    assert stored["choices"][0]["message"]["content"] == made["choices"][0]["message"]["content"] == "ab" * 50
    assert stored["choices"][0]["finish_reason"] == made["choices"][0]["finish_reason"] == "length"


def test_the_cost_is_the_same_in_both_and_known_at_any_time() -> None:
    encoder = kept_chunks(options(include_usage=True))
    encoder.feed("four")
    assert encoder.usage(lambda: 7) == Usage(7, 1)
    made = joined(stream(["four" * 2], encoder, 1))
    assert json.loads(encoder.completion())["usage"] == made["usage"]
    assert made["usage"]["total_tokens"] == PROMPT_TOKENS + 3


def test_an_answer_that_fails_is_ended_as_any_stream() -> None:
    encoder, error = kept_chunks(options()), AgentFailedError("no")
    encoder.feed("one")
    assert encoder.fail(error) == ChunkEncoder.fail(error)
    with pytest.raises(APIError):
        encoder.feed(Failure("no", "x"))
