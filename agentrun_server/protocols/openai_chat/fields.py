"""Checks for the fields of a Chat Completions request, as a table: field name → check.

A check takes the value the client sent (never null: null is read as absent) and the field's name for the error, and
returns the value to use. Source: `CreateChatCompletionRequest` of the OpenAI specification 2.3.0.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from agentrun_server.errors import InvalidRequestError

__all__ = ["FIELDS", "Check", "array", "choice", "invalid", "missing", "text", "wrong_type"]

Check = Callable[[Any, str], Any]

_MAX_INTEGER = 2**53
_NAMES: Mapping[type, str] = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a decimal number",
    list: "an array", dict: "an object", type(None): "null",
}  # fmt: skip
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def wrong_type(param: str, expected: str, value: object) -> NoReturn:
    """Raise the answer to a value of the wrong type. The value itself is never repeated."""
    got = _NAMES.get(type(value), "something else")
    raise InvalidRequestError(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        code="invalid_type",
        param=param,
    )


def invalid(param: str, problem: str, code: str = "invalid_value") -> NoReturn:
    """Raise the answer to a value of the right type that cannot be used."""
    raise InvalidRequestError(f"Invalid '{param}': {problem}", code=code, param=param)


def missing(param: str) -> NoReturn:
    """Raise the answer to a field that must be there."""
    raise InvalidRequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def text(max_length: int | None = None, *, min_length: int = 0) -> Check:
    """Accept a string of bounded length."""

    def check(value: Any, param: str) -> str:
        if not isinstance(value, str):
            wrong_type(param, "a string", value)
        if max_length is not None and len(value) > max_length:
            invalid(
                param,
                f"string too long. Expected at most {max_length} characters.",
                "string_above_max_length",
            )
        if len(value) < min_length:
            invalid(param, "empty string. Expected at least one character.", "empty_string")
        return value

    return check


def choice(*values: str) -> Check:
    """Accept one of `values`."""
    listed = ", ".join(f"'{value}'" for value in values)

    def check(value: Any, param: str) -> str:
        if not isinstance(value, str):
            wrong_type(param, f"one of {listed}", value)
        if value not in values:
            invalid(param, f"expected one of {listed}.")
        return value

    return check


def number(low: float, high: float) -> Check:
    """Accept a finite number between `low` and `high`."""

    def check(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            wrong_type(param, "a number", value)
        if not low <= value <= high:  # never so for NaN and the infinities
            invalid(param, f"expected a number between {low:g} and {high:g}.", "number_out_of_range")
        return value

    return check


def integer(low: int, high: int = _MAX_INTEGER) -> Check:
    """Accept an integer between `low` and `high`; a float without a fraction counts."""

    def check(value: Any, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(param, "an integer", value)
        if not low <= value <= high:
            invalid(param, f"expected an integer between {low} and {high}.", "integer_out_of_range")
        return value

    return check


def boolean(value: Any, param: str) -> bool:
    """Accept true or false, nothing that looks like it."""
    if not isinstance(value, bool):
        wrong_type(param, "a boolean", value)
    return value


def anything(value: Any, _param: str) -> Any:
    """Accept any value: the agent judges it."""
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    """Accept an object."""
    if not isinstance(value, dict):
        wrong_type(param, "an object", value)
    return value


def array(value: Any, param: str, low: int = 0, high: int | None = None) -> list[Any]:
    """Accept an array of `low` to `high` items."""
    if not isinstance(value, list):
        wrong_type(param, "an array", value)
    if len(value) < low:
        invalid(param, f"array too short. Expected at least {low} item(s).", "array_below_min_length")
    if high is not None and len(value) > high:
        invalid(param, f"array too long. Expected at most {high} items.", "array_above_max_length")
    return value


def metadata(value: Any, param: str) -> dict[str, str]:
    """Accept at most 16 pairs, keys of 64 and string values of 512 characters."""
    pairs = mapping(value, param)
    if len(pairs) > 16:
        invalid(param, "expected at most 16 pairs.", "object_above_max_properties")
    for key, item in pairs.items():
        if len(key) > 64:
            invalid(param, "a key is longer than 64 characters.", "string_above_max_length")
        text(512)(item, f"{param}.{key}")
    return pairs


def stop(value: Any, param: str) -> list[str]:
    """Accept one sequence or up to four; return them as a list without empty ones."""
    if isinstance(value, str):
        value = [value]
    elif not isinstance(value, list):
        wrong_type(param, "a string or an array of strings", value)
    items = array(value, param, 1, 4)
    return [item for i, item in enumerate(items) if text()(item, f"{param}[{i}]")]


def stream_options(value: Any, param: str) -> dict[str, Any]:
    """Accept an object whose known members are booleans or null."""
    options = mapping(value, param)
    for key in ("include_usage", "include_obfuscation"):
        if options.get(key) is not None:
            boolean(options[key], f"{param}.{key}")
    return options


def logit_bias(value: Any, param: str) -> dict[str, Any]:
    """Accept token → bias between -100 and 100."""
    biases = mapping(value, param)
    check = number(-100, 100)
    for key, item in biases.items():
        check(item, f"{param}.{key}")
    return biases


def modalities(value: Any, param: str) -> list[str]:
    """Accept text; audio output is something no agent here can give."""
    items = array(value, param, 1)
    for i, item in enumerate(items):
        choice("text", "audio")(item, f"{param}[{i}]")
    if "audio" in items:
        raise InvalidRequestError(
            "This server does not produce audio. Leave 'audio' out of 'modalities'.",
            code="unsupported_value",
            param=param,
        )
    return items


def response_format(value: Any, param: str) -> dict[str, Any]:
    """Accept ``text``, ``json_object`` or a named ``json_schema``."""
    form = mapping(value, param)
    if form.get("type") is None:
        missing(f"{param}.type")
    if choice("text", "json_object", "json_schema")(form["type"], f"{param}.type") == "json_schema":
        if form.get("json_schema") is None:
            missing(f"{param}.json_schema")
        schema = mapping(form["json_schema"], f"{param}.json_schema")
        if schema.get("name") is None:
            missing(f"{param}.json_schema.name")
        _tool_name(schema["name"], f"{param}.json_schema.name")
        if schema.get("schema") is not None:
            mapping(schema["schema"], f"{param}.json_schema.schema")
    return form


def tools(value: Any, param: str) -> list[dict[str, Any]]:
    """Accept function and custom tools with names of letters, digits, ``_`` and ``-``; other types pass unread."""
    items = array(value, param, 0, 1024)
    for i, item in enumerate(items):
        here = f"{param}[{i}]"
        tool = mapping(item, here)
        kind = tool.get("type") or "function"
        if not isinstance(kind, str):
            wrong_type(f"{here}.type", "a string", kind)
        tool["type"] = kind
        if kind in ("function", "custom"):
            if tool.get(kind) is None:
                missing(f"{here}.{kind}")
            _function(tool[kind], f"{here}.{kind}")
    return items


def functions(value: Any, param: str) -> list[dict[str, Any]]:
    """Accept the deprecated form of function tools."""
    items = array(value, param, 1, 128)
    for i, item in enumerate(items):
        _function(item, f"{param}[{i}]")
    return items


def _function(value: Any, param: str) -> None:
    function = mapping(value, param)
    if function.get("name") is None:
        missing(f"{param}.name")
    _tool_name(function["name"], f"{param}.name")
    if function.get("description") is not None:
        text()(function["description"], f"{param}.description")
    if function.get("parameters") is not None:
        mapping(function["parameters"], f"{param}.parameters")
    if function.get("strict") is not None:
        boolean(function["strict"], f"{param}.strict")


def _tool_name(value: Any, param: str) -> str:
    name: str = text()(value, param)
    if not _TOOL_NAME.fullmatch(name):
        invalid(param, "expected 1 to 64 letters, digits, underscores or dashes.")
    return name


def tool_choice(value: Any, param: str) -> Any:
    """Accept a mode, one named tool, or a set of allowed tools."""
    if isinstance(value, str):
        return choice("none", "auto", "required")(value, param)
    if not isinstance(value, dict):
        wrong_type(param, "a string or an object", value)
    kind = choice("function", "custom", "allowed_tools")(value.get("type"), f"{param}.type")
    if value.get(kind) is None:
        missing(f"{param}.{kind}")
    body = mapping(value[kind], f"{param}.{kind}")
    if kind == "allowed_tools":
        choice("auto", "required")(body.get("mode"), f"{param}.{kind}.mode")
        array(body.get("tools"), f"{param}.{kind}.tools")
    elif not isinstance(body.get("name"), str):
        missing(f"{param}.{kind}.name")
    return value


def function_call(value: Any, param: str) -> Any:
    """Accept the deprecated ``none``, ``auto`` or ``{"name": …}``."""
    if isinstance(value, str):
        return choice("none", "auto")(value, param)
    if not isinstance(value, dict):
        wrong_type(param, "a string or an object", value)
    if not isinstance(value.get("name"), str):
        missing(f"{param}.name")
    return value


def x_agent(value: Any, param: str) -> dict[str, Any]:
    """Accept ``{"include": ["tools", "steps", "progress", "io"]}``; unknown kinds are ignored."""
    options = mapping(value, param)
    for i, item in enumerate(array(options.get("include") or [], f"{param}.include")):
        text(32)(item, f"{param}.include[{i}]")
    return options


FIELDS: Mapping[str, Check] = {
    "model": text(256, min_length=1),
    "messages": anything,  # read by `agentrun_server.protocols.openai_chat.conversation`
    "stream": boolean,
    "stream_options": stream_options,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": boolean,
    "functions": functions,
    "function_call": function_call,
    "response_format": response_format,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "logit_bias": logit_bias,
    "seed": integer(-(2**63), 2**63 - 1),
    "n": integer(1, 128),
    "max_completion_tokens": integer(1),
    "max_tokens": integer(1),
    "stop": stop,
    "reasoning_effort": text(64),
    "verbosity": text(64),
    "modalities": modalities,
    "audio": mapping,
    "prediction": mapping,
    "web_search_options": mapping,
    "moderation": anything,
    "metadata": metadata,
    "store": boolean,
    "service_tier": text(64),
    "user": text(512),
    "safety_identifier": text(64),
    "prompt_cache_key": text(512),
    "prompt_cache_retention": text(64),
    "prompt_cache_options": mapping,
    "x_agent": x_agent,
}
