"""Every field of a request: what is accepted, what is refused, and how the error names it."""

import math
from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_chat.fields import FIELDS, integer, invalid, missing, number, text, wrong_type
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat.requests import read, refused

FUNCTION = {"type": "function", "function": {"name": "f"}}
CUSTOM = {"type": "custom", "custom": {"name": "sh"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
NAME_ONLY = {"type": "json_schema", "json_schema": {"name": "answer", "schema": None}}
LONG = "x" * 600

GOOD: dict[str, list[Any]] = {
    "model": ["m", "vendor/model:tag", "x" * 256, "模型"],
    "stream": [True, False],
    "stream_options": [{}, {"include_usage": True}, {"include_usage": None, "include_obfuscation": False}, {"x": 1}],
    "tools": [
        [],
        [FUNCTION],
        [CUSTOM],
        [FUNCTION, CUSTOM],
        [{"function": {"name": "f"}}],
        [{"type": "web_search", "anything": 1}],
        [
            {
                "type": "function",
                "function": {"name": "A-z_0" * 12, "description": None, "parameters": None, "strict": None},
            }
        ],
        [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}, "x": 1}],
    ],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}, {"type": "json_object"}, SCHEMA, {**SCHEMA, "vendor": 1}, NAME_ONLY],
    "temperature": [0, 0.0, 1, 2, 2.0, 0.7],
    "top_p": [0, 1, 0.5],
    "presence_penalty": [-2, 2, 0.5],
    "frequency_penalty": [-2.0, 2.0],
    "logprobs": [True, False],
    "top_logprobs": [0, 20, 5.0],
    "logit_bias": [{}, {"50256": -100, "1": 100, "2": 0.5}],
    "seed": [0, -(2**63), 2**63 - 1],
    "n": [1, 8],
    "max_completion_tokens": [1, 2**53],
    "max_tokens": [1, 100.0],
    "stop": ["x", ["x"], ["a", "b", "c", "d"], "", ["", "x"]],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", "max", "something-new"],
    "verbosity": ["low", "medium", "high", "something-new"],
    "modalities": [["text"]],
    "audio": [{"voice": "alloy", "format": "mp3"}],
    "prediction": [{"type": "content", "content": "x"}],
    "web_search_options": [{}],
    "moderation": [True, {"model": "m"}, "x"],
    "metadata": [{}, {"k": "v"}, {str(i): "v" for i in range(16)}, {"k" * 64: "v" * 512}],
    "store": [True, False],
    "service_tier": ["auto", "default", "flex", "scale", "priority", "fast", "something-new"],
    "user": ["u", "x" * 512],
    "safety_identifier": ["s", "x" * 64],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "prompt_cache_options": [{}],
    "functions": [[{"name": "f"}], [{"name": "f", "parameters": {}}] * 128],
    "x_agent": [{}, {"include": None}, {"include": ["tools", "steps", "unknown"]}],
}

WRONG_TYPE = "invalid_type"
MISSING = "missing_required_parameter"
VALUE = "invalid_value"
LOW, HIGH = "decimal_below_min_value", "decimal_above_max_value"
INTEGER_LOW, INTEGER_HIGH = "integer_below_min_value", "integer_above_max_value"

BAD: list[tuple[str, Any, str, str]] = [
    # field, value, param, code
    ("model", 5, "model", WRONG_TYPE),
    ("model", "", "model", "empty_string"),
    ("model", "x" * 257, "model", "string_above_max_length"),
    ("messages", "Hi", "messages", WRONG_TYPE),
    ("messages", {}, "messages", WRONG_TYPE),
    ("messages", [], "messages", "empty_array"),
    ("messages", [5], "messages[0]", WRONG_TYPE),
    ("stream", "yes", "stream", WRONG_TYPE),
    ("stream", 1, "stream", WRONG_TYPE),
    ("stream_options", [], "stream_options", WRONG_TYPE),
    ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage", WRONG_TYPE),
    ("stream_options", {"include_obfuscation": 1}, "stream_options.include_obfuscation", WRONG_TYPE),
    ("tools", {}, "tools", WRONG_TYPE),
    ("tools", [5], "tools[0]", WRONG_TYPE),
    ("tools", [{"type": 5}], "tools[0].type", WRONG_TYPE),
    ("tools", [{"type": "function"}], "tools[0].function", MISSING),
    ("tools", [{"type": "custom", "function": {}}], "tools[0].custom", MISSING),
    ("tools", [{"type": "function", "function": 5}], "tools[0].function", WRONG_TYPE),
    ("tools", [{"type": "function", "function": {}}], "tools[0].function.name", MISSING),
    ("tools", [FUNCTION, {"function": {"name": 5}}], "tools[1].function.name", WRONG_TYPE),
    ("tools", [{"function": {"name": ""}}], "tools[0].function.name", VALUE),
    ("tools", [{"function": {"name": "get weather"}}], "tools[0].function.name", VALUE),
    ("tools", [{"function": {"name": "f\n"}}], "tools[0].function.name", VALUE),
    ("tools", [{"function": {"name": "x" * 65}}], "tools[0].function.name", VALUE),
    ("tools", [{"function": {"name": "é"}}], "tools[0].function.name", VALUE),
    ("tools", [{"function": {"name": "f", "description": 5}}], "tools[0].function.description", WRONG_TYPE),
    ("tools", [{"function": {"name": "f", "parameters": []}}], "tools[0].function.parameters", WRONG_TYPE),
    ("tools", [{"function": {"name": "f", "strict": "yes"}}], "tools[0].function.strict", WRONG_TYPE),
    ("tools", [FUNCTION] * 1025, "tools", "array_above_max_length"),
    ("tool_choice", 5, "tool_choice", WRONG_TYPE),
    ("tool_choice", "sometimes", "tool_choice", VALUE),
    ("tool_choice", {}, "tool_choice.type", WRONG_TYPE),
    ("tool_choice", {"type": "other"}, "tool_choice.type", VALUE),
    ("tool_choice", {"type": "function"}, "tool_choice.function", MISSING),
    ("tool_choice", {"type": "function", "function": {}}, "tool_choice.function.name", MISSING),
    ("tool_choice", {"type": "custom", "custom": 5}, "tool_choice.custom", WRONG_TYPE),
    ("tool_choice", {"type": "allowed_tools", "allowed_tools": {}}, "tool_choice.allowed_tools.mode", WRONG_TYPE),
    (
        "tool_choice",
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}},
        "tool_choice.allowed_tools.tools",
        WRONG_TYPE,
    ),
    ("parallel_tool_calls", "yes", "parallel_tool_calls", WRONG_TYPE),
    ("response_format", "json", "response_format", WRONG_TYPE),
    ("response_format", {}, "response_format.type", MISSING),
    ("response_format", {"type": "xml"}, "response_format.type", VALUE),
    ("response_format", {"type": 5}, "response_format.type", WRONG_TYPE),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema", MISSING),
    ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name", MISSING),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a b"}},
        "response_format.json_schema.name",
        VALUE,
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": "{}"}},
        "response_format.json_schema.schema",
        WRONG_TYPE,
    ),
    ("temperature", "hot", "temperature", WRONG_TYPE),
    ("temperature", True, "temperature", WRONG_TYPE),
    ("temperature", -0.1, "temperature", LOW),
    ("temperature", 2.1, "temperature", HIGH),
    ("temperature", math.nan, "temperature", HIGH),
    ("temperature", math.inf, "temperature", HIGH),
    ("temperature", 10**400, "temperature", HIGH),
    ("temperature", -(10**400), "temperature", LOW),
    ("top_p", 1.5, "top_p", HIGH),
    ("top_p", [], "top_p", WRONG_TYPE),
    ("presence_penalty", 3, "presence_penalty", HIGH),
    ("frequency_penalty", -3, "frequency_penalty", LOW),
    ("logprobs", 1, "logprobs", WRONG_TYPE),
    ("top_logprobs", 21, "top_logprobs", INTEGER_HIGH),
    ("top_logprobs", -1, "top_logprobs", INTEGER_LOW),
    ("top_logprobs", 1.5, "top_logprobs", WRONG_TYPE),
    ("logit_bias", [], "logit_bias", WRONG_TYPE),
    ("logit_bias", {"1": 101}, "logit_bias.1", HIGH),
    ("logit_bias", {"1": "x"}, "logit_bias.1", WRONG_TYPE),
    ("seed", 2**63, "seed", INTEGER_HIGH),
    ("seed", "1", "seed", WRONG_TYPE),
    ("seed", True, "seed", WRONG_TYPE),
    ("n", 0, "n", INTEGER_LOW),
    ("n", 129, "n", INTEGER_HIGH),
    ("n", 9, "n", "integer_above_max_value"),
    ("n", 1.5, "n", WRONG_TYPE),
    ("n", math.inf, "n", WRONG_TYPE),
    ("n", 1e300, "n", INTEGER_HIGH),
    ("max_completion_tokens", 0, "max_completion_tokens", INTEGER_LOW),
    ("max_completion_tokens", 2**53 + 1, "max_completion_tokens", INTEGER_HIGH),
    ("max_tokens", -5, "max_tokens", INTEGER_LOW),
    ("max_tokens", "100", "max_tokens", WRONG_TYPE),
    ("stop", 5, "stop", WRONG_TYPE),
    ("stop", {}, "stop", WRONG_TYPE),
    ("stop", [], "stop", "empty_array"),
    ("stop", ["a"] * 5, "stop", "array_above_max_length"),
    ("stop", ["a", 5], "stop[1]", WRONG_TYPE),
    ("stop", ["a", None], "stop[1]", WRONG_TYPE),
    ("reasoning_effort", 5, "reasoning_effort", WRONG_TYPE),
    ("reasoning_effort", LONG, "reasoning_effort", "string_above_max_length"),
    ("verbosity", [], "verbosity", WRONG_TYPE),
    ("modalities", "text", "modalities", WRONG_TYPE),
    ("modalities", [], "modalities", "empty_array"),
    ("modalities", ["video"], "modalities[0]", VALUE),
    ("modalities", ["text", "audio"], "modalities", "unsupported_value"),
    ("audio", "x", "audio", WRONG_TYPE),
    ("prediction", [], "prediction", WRONG_TYPE),
    ("web_search_options", True, "web_search_options", WRONG_TYPE),
    ("metadata", [], "metadata", WRONG_TYPE),
    ("metadata", {str(i): "v" for i in range(17)}, "metadata", "object_above_max_properties"),
    ("metadata", {"k" * 65: "v"}, "metadata", "string_above_max_length"),
    ("metadata", {"k": "v" * 513}, "metadata.k", "string_above_max_length"),
    ("metadata", {"k": 5}, "metadata.k", WRONG_TYPE),
    ("metadata", {"k": None}, "metadata.k", WRONG_TYPE),
    ("store", "no", "store", WRONG_TYPE),
    ("service_tier", 1, "service_tier", WRONG_TYPE),
    ("user", 5, "user", WRONG_TYPE),
    ("user", LONG, "user", "string_above_max_length"),
    ("safety_identifier", "x" * 65, "safety_identifier", "string_above_max_length"),
    ("prompt_cache_key", {}, "prompt_cache_key", WRONG_TYPE),
    ("prompt_cache_retention", 24, "prompt_cache_retention", WRONG_TYPE),
    ("prompt_cache_options", "x", "prompt_cache_options", WRONG_TYPE),
    ("functions", [], "functions", "empty_array"),
    ("functions", [{}], "functions[0].name", MISSING),
    ("functions", [{"name": "f"}] * 129, "functions", "array_above_max_length"),
    ("functions", [{"name": "f g"}], "functions[0].name", VALUE),
    ("function_call", 5, "function_call", WRONG_TYPE),
    ("function_call", "required", "function_call", VALUE),
    ("function_call", {}, "function_call.name", MISSING),
    ("x_agent", True, "x_agent", WRONG_TYPE),
    ("x_agent", {"include": "tools"}, "x_agent.include", WRONG_TYPE),
    ("x_agent", {"include": [5]}, "x_agent.include[0]", WRONG_TYPE),
]

_ELSEWHERE = {"messages", "tool_choice", "function_call"}
"""Fields whose good values are tested with what they refer to."""


def shown(value: Any) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in GOOD.items() for v in values], ids=shown)
def test_a_good_value_is_accepted(name: str, value: Any) -> None:
    read({name: value})


@requirement("chat.request.ranges", "chat.error.bad-request")
@pytest.mark.parametrize(("name", "value", "param", "code"), BAD, ids=shown)
def test_a_bad_value_is_a_400_that_names_where_it_stands(name: str, value: Any, param: str, code: str) -> None:
    assert refused({name: value}) == (param, code)


def test_no_field_was_forgotten() -> None:
    assert FIELDS.keys() == GOOD.keys() | _ELSEWHERE
    assert FIELDS.keys() - {name for name, *_ in BAD} <= {"moderation"}


@requirement("chat.request.null-is-absent")
@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"model", "messages"}))
def test_null_is_read_as_absent(name: str) -> None:
    request, options = read({name: None})
    without, options_without = read()
    assert not hasattr(request, name) or getattr(request, name) == getattr(without, name)
    assert name not in request.extra
    assert options == options_without


def test_an_error_never_repeats_the_value() -> None:
    for name, value in {"temperature": "hunter2", "user": ["hunter2"], "stop": {"hunter2": "hunter2"}}.items():
        with pytest.raises(InvalidRequestError) as raised:
            read({name: value})
        assert "hunter2" not in raised.value.message


def test_the_error_says_what_was_expected_and_what_came() -> None:
    with pytest.raises(InvalidRequestError, match=r"'a': expected a number, but got a string instead\."):
        number(0, 1)("x", "a")
    with pytest.raises(InvalidRequestError, match="expected an integer, but got null"):
        integer(0)(None, "a")
    with pytest.raises(InvalidRequestError, match="but got something else"):
        text()(object(), "a")
    with pytest.raises(InvalidRequestError, match="Missing required parameter: 'a'"):
        missing("a")
    with pytest.raises(InvalidRequestError, match=r"^Invalid 'a': no good\.$"):
        invalid("a", "no good.")
    with pytest.raises(InvalidRequestError, match="expected a cat, but got an object"):
        wrong_type("a", "a cat", {})


def test_a_float_without_a_fraction_counts_as_an_integer() -> None:
    request, _ = read({"max_tokens": 100.0})
    assert request.max_tokens == 100
    assert type(request.max_tokens) is int
