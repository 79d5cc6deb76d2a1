"""One stream of every kind: what an agent yields, what the request asked for, and how it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrun_server.core.events import (
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    Progress,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, TooManyRequestsError
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings
from tests.protocols.openai_responses.answers import FUNCTION, End, finish

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A stream."""

    items: list[Any]
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: ResponseSettings = field(default_factory=ResponseSettings)
    end: End = finish
    open_types: bool = True
    """All its items are of types that Open Responses has; its unions are closed."""


_CUSTOM = {"type": "custom", "name": "sh", "format": {"type": "grammar", "syntax": "regex", "definition": ".*"}}
_SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
_LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}

VARIANTS: Mapping[str, Variant] = {
    "text": Variant(["Hel", "lo"]),
    "nothing": Variant([]),
    "reasoning, then text": Variant([ReasoningDelta("Let "), ReasoningDelta("me see."), "42"]),
    "reasoning alone": Variant([ReasoningDelta("Hm.")]),
    "text and refusal": Variant(["I would, but ", RefusalDelta("I "), RefusalDelta("cannot.")]),
    "refusal": Variant([RefusalDelta("No.")]),
    "annotations": Variant(
        [Annotation.url_citation("https://a.example", "A"), "see", Annotation.url_citation("https://b.example")]
    ),
    "annotation without text": Variant([Annotation.url_citation("https://a.example", "A", 1, 2)]),
    "usage": Variant(["Hi", Usage(3, 4, 1, 2), Usage(1, 1)]),
    "activity": Variant([Progress("Looking", 0.5), "Hi", Interrupt("i", "Which?", options=["a", "b"])]),
    "function call": Variant(["I will look.", FunctionCall("f", '{"a":1}', "call_1")], {"tools": [FUNCTION]}),
    "function call in pieces": Variant(
        [FunctionCallDelta('{"a"', "f", "c1"), FunctionCallDelta(":1}", None, "c1")], {"tools": [FUNCTION]}
    ),
    "function calls": Variant([FunctionCall("f", "", "c1"), FunctionCall("f", "{}", "c2")], {"tools": [FUNCTION]}),
    "text in a call": Variant(
        [FunctionCallDelta('{"a"', "f", "c1"), "wait", FunctionCallDelta(":1}", None, "c1")], {"tools": [FUNCTION]}
    ),
    "human input": Variant(
        [Interrupt("i1", "Which?", "choice", options=["a", "b"])],
        {"tools": [{"type": "function", "name": "request_human_input"}]},
    ),
    "custom call": Variant([FunctionCall("sh", "ls -l", "c1")], {"tools": [_CUSTOM]}, open_types=False),
    "own call": Variant(
        ["Looking.", FunctionCall("search", '{"q":1}', "c1"), FunctionCallOutput("c1", {"n": 3}), "Three."],
        open_types=False,
    ),
    "own call that fails": Variant(
        [FunctionCall("search", "{}", "c1"), FunctionCallOutput("c1", "no net", is_error=True), "Sorry."],
        open_types=False,
    ),
    "own calls at once": Variant(
        [
            FunctionCall("a", "{}", "c1"),
            FunctionCallDelta('{"x":', "b", "c2"),
            FunctionCallDelta("2}", None, "c2"),
            "meanwhile",
            FunctionCallOutput("c2", "two"),
            FunctionCallOutputDelta("c1", "on"),
            FunctionCallOutput("c1", "one"),
            FunctionCallOutput("c1", "again"),
            FunctionCallOutput("c9", "unannounced", "late"),
        ],
        open_types=False,
    ),
    "own call that never returns": Variant(
        [FunctionCall("a", "{}", "c1"), FunctionCallOutputDelta("c1", "half"), "done"], open_types=False
    ),
    "own calls hidden": Variant(
        ["Look", FunctionCall("search", "{}", "c1"), FunctionCallOutput("c1", "x"), "ing."],
        settings=ResponseSettings(server_tool_items="hidden"),
    ),
    "own calls, then the client's": Variant(
        [FunctionCall("a", "{}", "c1"), FunctionCallOutput("c1", "one"), FunctionCall("f", "{}", "c2")],
        {"tools": [FUNCTION]},
        open_types=False,
    ),
    "too many own calls": Variant(
        [FunctionCall("a", "{}", "c1"), FunctionCallOutput("c1", "1"), FunctionCall("a", "{}", "c2"), "never"],
        {"max_tool_calls": 1},
        open_types=False,
    ),
    "approval": Variant(
        ["May I?", Interrupt("i1", "Delete?", "confirmation")],
        settings=ResponseSettings(approval_items=True),
        open_types=False,
    ),
    "obfuscated": Variant(
        [ReasoningDelta("Hm"), "Hello"], {"stream_options": {"include_obfuscation": True}, "stream": True}
    ),
    "logprobs": Variant([TextDelta("Hi", _LOGPROBS)], {"include": ["message.output_text.logprobs"]}),
    "every field": Variant(
        ["Hi"],
        {
            "instructions": "Be kind.", "previous_response_id": "resp_0", "store": False, "stream": True,
            "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False,
            "max_output_tokens": 100, "max_tool_calls": 3, "temperature": 0.5, "top_p": 0.5, "top_logprobs": 2,
            "presence_penalty": 1, "frequency_penalty": -1, "text": {"verbosity": "low"},
            "reasoning": {"effort": "low", "summary": "auto"}, "truncation": "auto", "metadata": {"k": "v"},
            "user": "u", "safety_identifier": "s", "prompt_cache_key": "p", "service_tier": "auto",
        },
    ),
    "json schema": Variant(["{}"], {"text": {"format": _SCHEMA}}, open_types=False),
    "conversation": Variant(["Hi"], {"conversation": {"id": "conv_1"}, "user": "u"}),
    "length": Variant(["12345", "67890"], settings=ResponseSettings(max_output_bytes=8)),
    "reasoning too long": Variant([ReasoningDelta("123456789")], settings=ResponseSettings(max_output_bytes=8)),
    "filter": Variant(["Hi", Finish("content_filter"), Usage(1, 1)]),
    "cut in a call": Variant(
        ["Hi", FunctionCallDelta('{"a":', "f", "c1"), Finish("length")], {"tools": [FUNCTION]}
    ),
    "cancelled": Variant(
        ["Hi", FunctionCallDelta('{"a":', "f", "c1")], {"tools": [FUNCTION]}, end=ResponseEncoder.cancel
    ),
    "cancelled before it began": Variant([], end=ResponseEncoder.cancel),
    "failed": Variant(["Hi"], end=lambda encoder: encoder.fail(AgentFailedError("It broke."))),
    "failed before it began": Variant([], end=lambda encoder: encoder.fail(TooManyRequestsError("Later."))),
    "failed in an own call": Variant(
        [FunctionCall("a", "{}", "c1")], end=lambda encoder: encoder.fail(AgentFailedError("No.")), open_types=False
    ),
}  # fmt: skip
