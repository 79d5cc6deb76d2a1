"""Every field of a request: what is accepted, what is refused, and how the error names it."""

import json
from typing import Any

import pytest

from agentrun_server.protocols.openai_responses.fields import FIELDS
from tests.protocols.openai_responses.answers import FUNCTION, call_of, refused

CUSTOM = {"type": "custom", "name": "sh"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}

GOOD: dict[str, list[Any]] = {
    "model": ["m", "vendor/model:tag", "x" * 256],
    "input": ["", "Hi", [{"role": "user", "content": "Hi"}]],
    "instructions": ["", "Be kind."],
    "previous_response_id": ["resp_1"],
    "conversation": ["conv_1", {"id": "conv_1"}],
    "store": [True, False],
    "background": [True, False],
    "stream": [True, False],
    "stream_options": [{}, {"include_obfuscation": True}, {"include_obfuscation": None, "x": 1}],
    "include": [[], ["reasoning.encrypted_content", "message.output_text.logprobs", "something.new"]],
    "tools": [
        [],
        [FUNCTION],
        [{**FUNCTION, "strict": None, "description": None, "parameters": None}],
        [{**FUNCTION, "name": "A-z_0" * 25, "strict": True, "description": "d"}],
        [CUSTOM, {**CUSTOM, "format": {"type": "text"}}, {**CUSTOM, "format": GRAMMAR, "description": "d"}],
        [{"type": "web_search", "anything": 1}, {"type": "mcp", "server_label": "x"}],
    ],
    "parallel_tool_calls": [True, False],
    "max_tool_calls": [1, 100],
    "max_output_tokens": [16, 2**53, 100.0],
    "temperature": [0, 2, 0.7],
    "top_p": [0, 1, 0.5],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "top_logprobs": [0, 20],
    "text": [
        {},
        {"format": None, "verbosity": None},
        {"format": {"type": "text"}, "verbosity": "low"},
        {"format": {"type": "json_object"}},
        {"format": SCHEMA},
        {"format": {**SCHEMA, "strict": True, "description": "d"}},
    ],
    "reasoning": [{}, {"effort": "low", "summary": "auto"}, {"effort": "something-new", "summary": None}],
    "truncation": ["auto", "disabled"],
    "metadata": [{}, {"k": "v"}],
    "user": ["u"],
    "safety_identifier": ["x" * 64],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "prompt_cache_options": [{}],
    "service_tier": ["auto", "something-new"],
    "prompt": [{"id": "p"}, {"id": "p", "version": "2", "variables": {"x": "y"}}],
    "moderation": [{}, True],
    "context_management": [[{"type": "compaction"}]],
}

TYPE = "invalid_type"
MISSING = "missing_required_parameter"
VALUE = "invalid_value"
LOW, HIGH = "decimal_below_min_value", "decimal_above_max_value"
INTEGER_LOW, INTEGER_HIGH = "integer_below_min_value", "integer_above_max_value"

BAD: list[tuple[str, Any, str, str]] = [
    # field, value, param, code
    ("model", 5, "model", TYPE),
    ("model", "", "model", "empty_string"),
    ("input", 5, "input", TYPE),
    ("input", {}, "input", TYPE),
    ("input", [], "input", "empty_array"),
    ("input", ["Hi"], "input[0]", TYPE),
    ("instructions", [], "instructions", TYPE),
    ("previous_response_id", "", "previous_response_id", "empty_string"),
    ("previous_response_id", 5, "previous_response_id", TYPE),
    ("conversation", 5, "conversation", TYPE),
    ("conversation", {}, "conversation.id", MISSING),
    ("conversation", {"id": 5}, "conversation.id", TYPE),
    ("conversation", "x" * 257, "conversation", "string_above_max_length"),
    ("store", "yes", "store", TYPE),
    ("background", 1, "background", TYPE),
    ("stream", "true", "stream", TYPE),
    ("stream_options", [], "stream_options", TYPE),
    ("stream_options", {"include_obfuscation": 1}, "stream_options.include_obfuscation", TYPE),
    ("include", "x", "include", TYPE),
    ("include", [5], "include[0]", TYPE),
    ("include", ["x"] * 65, "include", "array_above_max_length"),
    ("tools", {}, "tools", TYPE),
    ("tools", [5], "tools[0]", TYPE),
    ("tools", [{}], "tools[0].type", MISSING),
    ("tools", [{"type": 5}], "tools[0].type", TYPE),
    ("tools", [{"type": "function"}], "tools[0].name", MISSING),
    ("tools", [{"type": "function", "function": {"name": "f"}}], "tools[0].name", MISSING),
    ("tools", [FUNCTION, {**FUNCTION, "name": "get weather"}], "tools[1].name", VALUE),
    ("tools", [{**FUNCTION, "name": "x" * 129}], "tools[0].name", VALUE),
    ("tools", [{**FUNCTION, "name": 5}], "tools[0].name", TYPE),
    ("tools", [{**FUNCTION, "description": 5}], "tools[0].description", TYPE),
    ("tools", [{**FUNCTION, "parameters": "x"}], "tools[0].parameters", TYPE),
    ("tools", [{**FUNCTION, "strict": "yes"}], "tools[0].strict", TYPE),
    ("tools", [{"type": "custom"}], "tools[0].name", MISSING),
    ("tools", [{**CUSTOM, "format": "x"}], "tools[0].format", TYPE),
    ("tools", [{**CUSTOM, "format": {}}], "tools[0].format.type", TYPE),
    ("tools", [{**CUSTOM, "format": {"type": "grammar", "syntax": "lark"}}], "tools[0].format.definition", MISSING),
    (
        "tools",
        [{**CUSTOM, "format": {"type": "grammar", "syntax": "yacc", "definition": "x"}}],
        "tools[0].format.syntax",
        VALUE,
    ),
    ("tool_choice", 5, "tool_choice", TYPE),
    ("tool_choice", "maybe", "tool_choice", VALUE),
    ("tool_choice", {}, "tool_choice.type", MISSING),
    ("tool_choice", {"type": "function"}, "tool_choice.name", MISSING),
    ("tool_choice", {"type": "function", "name": 5}, "tool_choice.name", TYPE),
    ("tool_choice", {"type": "allowed_tools", "mode": "none", "tools": []}, "tool_choice.mode", VALUE),
    ("tool_choice", {"type": "allowed_tools", "mode": "auto"}, "tool_choice.tools", TYPE),
    ("tool_choice", {"type": "allowed_tools", "mode": "auto", "tools": [5]}, "tool_choice.tools[0]", TYPE),
    (
        "tool_choice",
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]},
        "tool_choice.tools[0].name",
        MISSING,
    ),
    (
        "tool_choice",
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": []}]},
        "tool_choice.tools[0].name",
        TYPE,
    ),
    ("parallel_tool_calls", 1, "parallel_tool_calls", TYPE),
    ("max_tool_calls", 0, "max_tool_calls", INTEGER_LOW),
    ("max_output_tokens", 15, "max_output_tokens", INTEGER_LOW),
    ("max_output_tokens", "20", "max_output_tokens", TYPE),
    ("temperature", 2.1, "temperature", HIGH),
    ("temperature", "1", "temperature", TYPE),
    ("top_p", -0.1, "top_p", LOW),
    ("presence_penalty", 3, "presence_penalty", HIGH),
    ("frequency_penalty", -3, "frequency_penalty", LOW),
    ("top_logprobs", 21, "top_logprobs", INTEGER_HIGH),
    ("text", "x", "text", TYPE),
    ("text", {"verbosity": 1}, "text.verbosity", TYPE),
    ("text", {"format": "text"}, "text.format", TYPE),
    ("text", {"format": {}}, "text.format.type", MISSING),
    ("text", {"format": {"type": "xml"}}, "text.format.type", VALUE),
    ("text", {"format": {"type": "json_schema", "schema": {}}}, "text.format.name", MISSING),
    ("text", {"format": {"type": "json_schema", "name": "a"}}, "text.format.schema", MISSING),
    ("text", {"format": {**SCHEMA, "name": "a b"}}, "text.format.name", VALUE),
    ("text", {"format": {**SCHEMA, "schema": 5}}, "text.format.schema", TYPE),
    ("text", {"format": {**SCHEMA, "strict": 5}}, "text.format.strict", TYPE),
    ("text", {"format": {**SCHEMA, "description": 5}}, "text.format.description", TYPE),
    ("reasoning", "low", "reasoning", TYPE),
    ("reasoning", {"effort": 1}, "reasoning.effort", TYPE),
    ("reasoning", {"summary": "long"}, "reasoning.summary", VALUE),
    ("reasoning", {"generate_summary": 5}, "reasoning.generate_summary", TYPE),
    ("truncation", "some", "truncation", VALUE),
    ("metadata", {"k": 1}, "metadata.k", TYPE),
    ("user", 5, "user", TYPE),
    ("safety_identifier", "x" * 65, "safety_identifier", "string_above_max_length"),
    ("prompt_cache_key", 5, "prompt_cache_key", TYPE),
    ("prompt_cache_retention", 5, "prompt_cache_retention", TYPE),
    ("prompt_cache_options", 5, "prompt_cache_options", TYPE),
    ("service_tier", 5, "service_tier", TYPE),
    ("prompt", "p", "prompt", TYPE),
    ("prompt", {}, "prompt.id", MISSING),
    ("prompt", {"id": "p", "version": 2}, "prompt.version", TYPE),
    ("prompt", {"id": "p", "variables": []}, "prompt.variables", TYPE),
    ("context_management", {}, "context_management", TYPE),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in GOOD.items() for value in values])
def test_a_good_value_is_accepted(field: str, value: Any) -> None:
    call_of({field: json.loads(json.dumps(value))})


@pytest.mark.parametrize(("field", "value", "param", "code"), BAD)
def test_a_bad_value_is_refused_by_its_name(field: str, value: Any, param: str, code: str) -> None:
    assert refused({field: json.loads(json.dumps(value))}) == (param, code)


@pytest.mark.parametrize("field", FIELDS)
def test_null_is_as_good_as_absent(field: str) -> None:
    if field not in ("model", "input"):
        assert call_of({field: None}).echo == call_of().echo


def test_the_tables_leave_no_field_out() -> None:
    assert GOOD.keys() | {"tool_choice"} == FIELDS.keys()
    assert {field for field, *_ in BAD} == FIELDS.keys() - {"moderation"}
