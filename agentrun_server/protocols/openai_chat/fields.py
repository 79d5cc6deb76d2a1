"""Checks for the fields of a Chat Completions request, as a table: field name → check.

What a check is, `agentrun_server.protocols.fields` says. Source: `CreateChatCompletionRequest` of the OpenAI
specification 2.3.0.
"""

import re
from collections.abc import Mapping
from typing import Any

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import (
    Check,
    anything,
    array,
    boolean,
    choice,
    integer,
    invalid,
    mapping,
    metadata,
    missing,
    number,
    text,
    wrong_type,
)

__all__ = ["FIELDS", "integer", "invalid", "missing", "number", "text", "wrong_type"]

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


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
