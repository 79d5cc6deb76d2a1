"""What an agent yields, and what it means."""

import enum
import math
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from agentrun_server.core.events import (
    Addition,
    AgentEvent,
    Annotation,
    Custom,
    EventType,
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    Progress,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
    TextDelta,
)
from agentrun_server.core.usage import Usage
from agentrun_server.invoker.coerce import coerce
from tests.protocols.openai_chat.strategies import items, wrong_items

E = EventType


class Colour(str, enum.Enum):  # noqa: UP042 - the kind whose str() is not its value
    RED = "red"


class LoudStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class Answer(BaseModel):
    content: str | list[Any] | None
    tool_calls: list[dict[str, Any]] = []


@dataclass
class AIMessageChunk:
    """What LangChain's message chunks look like from outside."""

    content: Any = ""
    tool_call_chunks: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    usage_metadata: dict[str, Any] | None = None
    additional_kwargs: dict[str, Any] = field(default_factory=dict)
    type: str = "AIMessageChunk"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c",
        "created": 1,
        "model": "m",
        "object": "chat.completion.chunk",
        "choices": [choice],
        **more,
    }


MEANINGS: dict[str, tuple[Any, list[Any]]] = {
    # --- text
    "text": ("Hi", ["Hi"]),
    "nothing": (None, []),
    "empty text": ("", []),
    "a member of an enum": (Colour.RED, ["red"]),
    "a subclass of str": (LoudStr("quiet"), ["quiet"]),
    "a list": (["a", None, "", "b"], ["a", "b"]),
    "a tuple": (("a", "b"), ["a", "b"]),
    "lists in lists": ([["a"], [[], ["b", ("c",)]]], ["a", "b", "c"]),
    # --- typed events
    "a typed event": (ReasoningDelta("hm"), [ReasoningDelta("hm")]),
    "typed events in a list": ([Progress("…"), "a"], [Progress("…"), "a"]),
    "a call with a value": (FunctionCall("f", {"a": 1}), [FunctionCall("f", '{"a": 1}')]),  # type: ignore[arg-type]
    # --- AgentRun SDK
    "TEXT": (AgentEvent(E.TEXT, {"delta": "a"}), ["a"]),
    "TEXT without text": (AgentEvent(E.TEXT, {"delta": ""}), []),
    "TEXT without a delta": (AgentEvent(E.TEXT), []),
    "TEXT with an addition": (
        AgentEvent(E.TEXT, {"delta": "a"}, {"k": "v"}, {"no_new_field": True}),
        [TextDelta("a", None, Addition({"k": "v"}, {"no_new_field": True}))],
    ),
    "TEXT with an addition alone": (
        AgentEvent(E.TEXT, {"delta": ""}, {"k": "v"}),
        [TextDelta("", None, Addition({"k": "v"}, {}))],
    ),
    "TEXT with an empty addition": (AgentEvent(E.TEXT, {"delta": "a"}, {}), ["a"]),
    "REASONING": (AgentEvent(E.REASONING, {"delta": "hm"}), [ReasoningDelta("hm")]),
    "TOOL_CALL with text": (
        AgentEvent(E.TOOL_CALL, {"id": "1", "name": "f", "args": '{"a":1}'}),
        [FunctionCall("f", '{"a":1}', "1")],
    ),
    "TOOL_CALL with a dict": (
        AgentEvent(E.TOOL_CALL, {"id": 1, "name": "f", "args": {"a": "ü"}}),
        [FunctionCall("f", '{"a": "ü"}', "1")],
    ),
    "TOOL_CALL under the other name": (
        AgentEvent(E.TOOL_CALL, {"name": "f", "arguments": [1]}),
        [FunctionCall("f", "[1]")],
    ),
    "TOOL_CALL without arguments": (AgentEvent(E.TOOL_CALL, {"name": "f", "args": ""}), [FunctionCall("f", "{}")]),
    "TOOL_CALL with what JSON has not": (
        AgentEvent(E.TOOL_CALL, {"name": "f", "args": {"a": [math.nan, math.inf]}}),
        [FunctionCall("f", '{"a": [null, null]}')],
    ),
    "TOOL_CALL_CHUNK": (
        AgentEvent(E.TOOL_CALL_CHUNK, {"id": "1", "name": "f", "args_delta": "{"}),
        [FunctionCallDelta("{", "f", "1")],
    ),
    "TOOL_CALL_CHUNK with arguments alone": (
        AgentEvent(E.TOOL_CALL_CHUNK, {"args_delta": "}"}),
        [FunctionCallDelta("}")],
    ),
    "TOOL_RESULT": (
        AgentEvent(E.TOOL_RESULT, {"id": "1", "result": {"a": 1}}),
        [FunctionCallOutput("1", {"a": 1})],
    ),
    "TOOL_RESULT under the other name": (
        AgentEvent(E.TOOL_RESULT, {"id": "1", "content": "ok", "name": "f"}),
        [FunctionCallOutput("1", "ok", "f")],
    ),
    "TOOL_RESULT_CHUNK": (
        AgentEvent(E.TOOL_RESULT_CHUNK, {"id": "1", "delta": "o"}),
        [FunctionCallOutputDelta("1", "o")],
    ),
    "ERROR": (AgentEvent(E.ERROR, {"message": "no", "code": "c"}), [Failure("no", "c")]),
    "ERROR without words": (AgentEvent(E.ERROR), [Failure("The agent reported an error.", "agent_error")]),
    "STATE": (AgentEvent(E.STATE, {"snapshot": {"a": 1}}), [StateUpdate({"a": 1})]),
    "STATE as a patch": (AgentEvent(E.STATE, {"delta": [{"op": "add"}]}), [StateUpdate(None, [{"op": "add"}])]),
    "HITL": (
        AgentEvent(
            E.HITL,
            {
                "id": "h",
                "tool_call_id": "1",
                "type": "choice",
                "prompt": "Which?",
                "options": ["a", "b"],
                "schema": {"type": "string"},
                "default": "a",
                "timeout": 60,
            },
        ),
        [Interrupt("h", "Which?", "choice", "1", ["a", "b"], {"type": "string"}, "a", 60)],
    ),
    "HITL with one option": (
        AgentEvent(E.HITL, {"id": "h", "options": "yes"}),
        [Interrupt("h", options=["yes"])],
    ),
    "CUSTOM": (AgentEvent(E.CUSTOM, {"name": "n", "value": [1]}), [Custom("n", [1])]),
    "RAW": (AgentEvent(E.RAW, {"raw": ": hello"}), [Raw(": hello")]),
    "RAW with a value": (AgentEvent(E.RAW, {"raw": {"a": 1}}), [Raw('data: {"a": 1}')]),
    "RAW with nothing": (AgentEvent(E.RAW, {"raw": ""}), []),
    "an event as a dict": ({"event": "TEXT", "data": {"delta": "a"}}, ["a"]),
    "an event as a dict with an addition": (
        {
            "event": "TEXT",
            "data": {"delta": "a"},
            "addition": {"k": 1},
            "addition_merge_options": {"no_new_field": True},
        },
        [TextDelta("a", None, Addition({"k": 1}, {"no_new_field": True}))],
    ),
    "an event as a dict without data": ({"event": "TEXT", "data": None}, []),
    # --- OpenAI chunks and completions, as dicts
    "a chunk": (chunk({"role": "assistant", "content": "a"}), ["a"]),
    "a chunk whose content is in parts": (
        chunk({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}),
        [ReasoningDelta("hm"), "a"],
    ),
    "the role chunk": (chunk({"role": "assistant", "content": "", "refusal": None}), []),
    "a finish chunk": (chunk({}, "stop"), []),
    "a chunk that finishes early": (chunk({"content": "a"}, "length"), ["a", Finish("length")]),
    "a chunk that ends with calls": (chunk({}, "tool_calls"), []),
    "a usage chunk": (
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}},
        [Usage(3, 4)],
    ),
    "usage with details": (
        chunk(
            {},
            usage={
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        ),
        [Usage(3, 4, 1, 2)],
    ),
    "usage under the Responses names": (
        chunk(
            {},
            usage={
                "input_tokens": 3,
                "output_tokens": 4,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
        ),
        [Usage(3, 4, 1, 2)],
    ),
    "usage that is no number": (
        chunk({}, usage={"prompt_tokens": math.nan, "completion_tokens": True, "prompt_tokens_details": "?"}),
        [Usage(0, 0)],
    ),
    "usage in floats": (chunk({}, usage={"prompt_tokens": 3.0, "completion_tokens": -1}), [Usage(3, 0)]),
    "reasoning in a chunk": (chunk({"reasoning_content": "hm", "content": None}), [ReasoningDelta("hm")]),
    "reasoning under the other name": (chunk({"reasoning": "hm"}), [ReasoningDelta("hm")]),
    "reasoning in both": (chunk({"reasoning": "hm", "reasoning_content": "hm"}), [ReasoningDelta("hm")]),
    "a refusal in a chunk": (chunk({"refusal": "no"}), [RefusalDelta("no")]),
    "logprobs in a chunk": (
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]},
        [TextDelta("a", {"content": [{"token": "a"}]})],
    ),
    "another choice": ({"choices": [{"index": 1, "delta": {"content": "b"}}]}, []),
    "pieces of a call": (
        chunk({"tool_calls": [{"index": 1, "id": "x", "function": {"name": "f", "arguments": ""}}]}),
        [FunctionCallDelta("", "f", "x", 1)],
    ),
    "pieces of a call without an id": (
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        [FunctionCallDelta("{}", None, None, 1)],
    ),
    "pieces of calls without anything": (
        chunk({"tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g"}}]}),
        [FunctionCallDelta("", "f", None, 0), FunctionCallDelta("", "g", None, 1)],
    ),
    "an id that is a number": (
        chunk({"tool_calls": [{"index": 0, "id": 7, "function": {"name": "f", "arguments": {"a": 1}}}]}),
        [FunctionCallDelta('{"a": 1}', "f", "7", 0)],
    ),
    "a custom call": (
        chunk({"tool_calls": [{"index": 0, "id": "x", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]}),
        [FunctionCallDelta("ls", "sh", "x", 0)],
    ),
    "a deprecated call": (
        chunk({"function_call": {"name": "f", "arguments": {"a": 1}}}),
        [FunctionCallDelta('{"a": 1}', "f", None, 0)],
    ),
    "annotations": (
        chunk({"annotations": [{"type": "url_citation"}]}),
        [Annotation({"type": "url_citation"})],
    ),
    "a completion": (
        {
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "content_filter"}
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        },
        ["a", Finish("content_filter"), Usage(1, 1)],
    ),
    "an upstream's error": ({"error": {"message": "no", "type": "x"}}, [Failure("no")]),
    # --- messages and parts
    "a message": ({"role": "assistant", "content": "a"}, ["a"]),
    "a message of parts": (
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, "b", {"type": "image_url"}]},
        ["a", "b"],
    ),
    "a message that only calls": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        [FunctionCallDelta("{}", "f", "1")],
    ),
    "a tool message": (
        {"role": "tool", "tool_call_id": "1", "content": "ok", "name": "f"},
        [FunctionCallOutput("1", "ok", "f")],
    ),
    "a text part": ({"type": "text", "text": "a"}, ["a"]),
    "an output_text part": ({"type": "output_text", "text": "a"}, ["a"]),
    "a thinking part": ({"type": "thinking", "thinking": "hm"}, [ReasoningDelta("hm")]),
    "a reasoning part": ({"type": "reasoning", "reasoning": "hm"}, [ReasoningDelta("hm")]),
    "a refusal part": ({"type": "refusal", "refusal": "no"}, [RefusalDelta("no")]),
    # --- objects with .content
    "an object with content": (SimpleNamespace(content="a"), ["a"]),
    "an object with no content to say": (SimpleNamespace(content=None), []),
    "a pydantic model with content": (Answer(content="a"), ["a"]),
    "a pydantic model with parts": (Answer(content=[{"type": "text", "text": "a"}]), ["a"]),
    "a LangChain chunk": (AIMessageChunk("a"), ["a"]),
    "a LangChain chunk that thinks": (
        AIMessageChunk("", additional_kwargs={"reasoning_content": "hm"}),
        [ReasoningDelta("hm")],
    ),
    "a LangChain chunk that calls": (
        AIMessageChunk("", tool_call_chunks=[{"name": "f", "args": "{", "id": "1", "index": 0}]),
        [FunctionCallDelta("{", "f", "1", 0)],
    ),
    "a LangChain message that calls": (
        AIMessageChunk("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1", "type": "tool_call"}]),
        [FunctionCall("f", '{"a": 1}', "1")],
    ),
    "LangChain's usage": (
        AIMessageChunk(
            "",
            usage_metadata={
                "input_tokens": 3,
                "output_tokens": 4,
                "input_token_details": {"cache_read": 1},
                "output_token_details": {"reasoning": 2},
            },
        ),
        [Usage(3, 4, 1, 2)],
    ),
    "a LangChain tool message": (
        SimpleNamespace(type="tool", tool_call_id="1", content="no", name="f", status="error"),
        [FunctionCallOutput("1", "no", "f", is_error=True)],
    ),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_what_an_agent_may_yield_has_a_meaning(name: str) -> None:
    item, meaning = MEANINGS[name]
    assert list(coerce(item)) == meaning
    assert all(type(piece) is not LoudStr for piece in coerce(item))


class TestOpenAIObjects:
    """The classes of the `openai` package, as its client yields them."""

    def test_a_chunk_means_what_its_dict_means(self) -> None:
        for name in ("a chunk", "the role chunk", "a chunk that finishes early", "pieces of a call", "a usage chunk"):
            item, meaning = MEANINGS[name]
            whole = {**chunk({}), **item}
            assert list(coerce(ChatCompletionChunk.model_validate(whole))) == meaning, name

    def test_reasoning_that_the_class_does_not_know_is_read(self) -> None:
        item = ChatCompletionChunk.model_validate(chunk({"reasoning_content": "hm"}))
        assert list(coerce(item)) == [ReasoningDelta("hm")]

    def test_logprobs_and_annotations_become_plain_dicts(self) -> None:
        logprobs = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}], "refusal": None}
        data = chunk({"content": "a"})
        data["choices"][0]["logprobs"] = logprobs
        (said,) = coerce(ChatCompletionChunk.model_validate(data))
        assert isinstance(said, TextDelta)
        assert said.logprobs == {"content": logprobs["content"]}

    def test_a_completion_is_an_answer(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        cited = {
            "type": "url_citation",
            "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1},
        }
        item = ChatCompletion.model_validate(
            {
                "id": "c",
                "created": 1,
                "model": "m",
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "a", "tool_calls": [call], "annotations": [cited]},
                        "finish_reason": "tool_calls",
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            }
        )
        assert list(coerce(item)) == [
            "a",
            FunctionCallDelta("{}", "f", "1", None),
            Annotation(cited),
            Usage(1, 2),
        ]


def generator() -> Any:
    yield "a"


class Opaque:
    def __repr__(self) -> str:
        return "secret"


REFUSED: dict[str, tuple[Any, str]] = {
    "bytes": (b"secret", "of type bytes,"),
    "a bytearray": (bytearray(b"secret"), "of type bytearray,"),
    "an int": (1234567, "of type int,"),
    "a bool": (True, "of type bool,"),
    "a float": (1.5, "of type float,"),
    "a set": ({"secret"}, "of type set,"),
    "an empty dict": ({}, "of type dict,"),
    "a dict of something else": ({"secret": "secret"}, "of type dict,"),
    "a dict with an odd type": ({"type": ["secret"]}, "of type dict,"),
    "an exception": (ValueError("secret"), "of type ValueError,"),
    "a class": (Opaque, "of type type,"),
    "an object": (Opaque(), "Opaque,"),
    "a generator": (generator(), "of type generator,"),
    "a function": (generator, "of type function,"),
    "an object whose content is no text": (SimpleNamespace(content=Opaque()), "Opaque,"),
    "a message with odd parts": ({"content": [b"secret"]}, "of type bytes,"),
    "a list with one wrong member": (["fine", Opaque()], "Opaque,"),
    "odd annotations": ({"choices": [{"delta": {"annotations": ["secret"]}}]}, "of type str,"),
    "an unknown event": ({"event": "SECRET", "data": {}}, "must be an EventType"),
    "an event without a dict": (AgentEvent(E.TEXT, "secret"), "the 'data' of an AgentEvent must be a dict"),  # type: ignore[arg-type]
    "an event as a dict without a dict": ({"event": "TEXT", "data": "secret"}, "the 'data' of an AgentEvent"),
    "an addition that is no dict": (AgentEvent(E.TEXT, {"delta": "a"}, "secret"), "the 'addition'"),  # type: ignore[arg-type]
    "merge options that are no dict": (
        AgentEvent(E.TEXT, {"delta": "a"}, {"k": 1}, "secret"),  # type: ignore[arg-type]
        "the 'addition_merge_options'",
    ),
    "text that is no text": (AgentEvent(E.TEXT, {"delta": 5}), "must be a str, not int"),
    "reasoning that is no text": (AgentEvent(E.REASONING, {"delta": ["secret"]}), "must be a str, not list"),
    "a typed text that is no text": (TextDelta(b"secret"), r"TextDelta\.text must not be of type bytes"),  # type: ignore[arg-type]
    "a call whose name is no text": (FunctionCall(5), r"FunctionCall\.name must not be of type int"),  # type: ignore[arg-type]
    "a call whose id is no text": (FunctionCall("f", "{}", 5), r"FunctionCall\.id must not be"),  # type: ignore[arg-type]
    "a piece that is no text": (FunctionCallDelta({"a": 1}), r"FunctionCallDelta\.arguments must not be"),  # type: ignore[arg-type]
    "usage in bools": (Usage(True), r"Usage\.input_tokens must not be of type bool"),
    "usage in text": (Usage("5"), r"Usage\.input_tokens must not be of type str"),  # type: ignore[arg-type]
    "a finish reason of its own": (Finish("secret"), "must be one of content_filter, length, stop"),  # type: ignore[arg-type]
    "a failure without words": (Failure(ValueError("secret")), r"Failure\.message must not be"),  # type: ignore[arg-type]
    "an annotation that is no dict": (Annotation("secret"), r"Annotation\.data must not be"),  # type: ignore[arg-type]
    "options that are no list": (Interrupt("i", options="secret"), r"Interrupt\.options must not be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_a_type_error_that_names_the_type_and_never_the_value(name: str) -> None:
    item, words = REFUSED[name]
    with pytest.raises(TypeError, match=words) as raised:
        list(coerce(item))
    assert "secret" not in str(raised.value).lower()
    assert "1234567" not in str(raised.value)


def test_arguments_that_contain_themselves_are_a_type_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        list(coerce(AgentEvent(E.TOOL_CALL, {"name": "f", "args": endless})))


def test_arguments_json_does_not_know_become_what_they_say_of_themselves() -> None:
    (call,) = coerce(AgentEvent(E.TOOL_CALL, {"name": "f", "args": {"when": Opaque()}}))
    assert call == FunctionCall("f", '{"when": "secret"}')


@pytest.mark.parametrize(
    "event",
    [Step("s"), Custom("c", object()), StateUpdate(object()), FunctionCallOutput("1", object()), RefusalDelta("no")],
    ids=lambda event: type(event).__name__,
)
def test_fields_that_may_hold_anything_are_not_looked_at(event: Any) -> None:
    assert next(iter(coerce(event))) is event


@given(items | wrong_items)
def test_whatever_an_agent_yields_is_read_or_a_type_error(item: Any) -> None:
    with suppress(TypeError):
        for piece in coerce(item):
            assert piece != ""
            assert type(piece) is str or not isinstance(piece, str)
