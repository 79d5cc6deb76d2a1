"""Checks for the fields of a Responses request, as a table: field name → check.

What a check is, `agentrun_server.protocols.fields` says. Source: `CreateResponse` of the OpenAI specification 2.3.0 and
`CreateResponseBody` of Open Responses 2026-04-24. Exact where a mistake would change the answer; values that only an
agent can judge (effort, verbosity, tiers, what to include) are open.
"""

import re
from collections.abc import Mapping
from typing import Any

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

__all__ = ["FIELDS", "identifier"]

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_FORMAT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_IDENTIFIER = text(256, min_length=1)


def identifier(value: Any, param: str) -> str:
    """Accept the id of an object, or the name of a tool that was called."""
    return str(_IDENTIFIER(value, param))


def conversation(value: Any, param: str) -> str:
    """Accept a conversation's id, or an object that has it; return the id."""
    if isinstance(value, dict):
        value, param = value.get("id"), f"{param}.id"
        if value is None:
            missing(param)
    if not isinstance(value, str):
        wrong_type(param, "a string or an object", value)
    return identifier(value, param)


def stream_options(value: Any, param: str) -> dict[str, Any]:
    """Accept an object whose known member is a boolean or null."""
    options = mapping(value, param)
    if options.get("include_obfuscation") is not None:
        boolean(options["include_obfuscation"], f"{param}.include_obfuscation")
    return options


def include(value: Any, param: str) -> list[str]:
    """Accept names of additional output; those nobody here knows are let pass."""
    items = array(value, param, 0, 64)
    for i, item in enumerate(items):
        text(256)(item, f"{param}[{i}]")
    return items


def tools(value: Any, param: str) -> list[dict[str, Any]]:
    """Accept function and custom tools in the flat form; tools of other types pass unread."""
    items = array(value, param, 0, 1024)
    for i, item in enumerate(items):
        here = f"{param}[{i}]"
        tool = mapping(item, here)
        if tool.get("type") is None:
            missing(f"{here}.type")
        kind = text(64, min_length=1)(tool["type"], f"{here}.type")
        if kind in ("function", "custom"):
            _named_tool(tool, here)
            if tool.get("parameters") is not None:
                mapping(tool["parameters"], f"{here}.parameters")
            if tool.get("strict") is not None:
                boolean(tool["strict"], f"{here}.strict")
        if kind == "custom" and tool.get("format") is not None:
            _custom_format(tool["format"], f"{here}.format")
    return items


def _named_tool(tool: dict[str, Any], here: str) -> None:
    if tool.get("name") is None:
        missing(f"{here}.name")
    if not _TOOL_NAME.fullmatch(text()(tool["name"], f"{here}.name")):
        invalid(f"{here}.name", "expected 1 to 128 letters, digits, underscores or dashes.")
    if tool.get("description") is not None:
        text()(tool["description"], f"{here}.description")


def _custom_format(value: Any, param: str) -> None:
    form = mapping(value, param)
    if choice("text", "grammar")(form.get("type"), f"{param}.type") == "grammar":
        for key, check in (("syntax", choice("lark", "regex")), ("definition", text())):
            if form.get(key) is None:
                missing(f"{param}.{key}")
            check(form[key], f"{param}.{key}")


def tool_choice(value: Any, param: str) -> Any:
    """Accept a mode, one named tool, a set of allowed tools, or a tool of another type."""
    if isinstance(value, str):
        return choice("none", "auto", "required")(value, param)
    if not isinstance(value, dict):
        wrong_type(param, "a string or an object", value)
    if value.get("type") is None:
        missing(f"{param}.type")
    match text(64)(value["type"], f"{param}.type"):
        case "allowed_tools":
            choice("auto", "required")(value.get("mode"), f"{param}.mode")
            for i, tool in enumerate(array(value.get("tools"), f"{param}.tools")):
                _chosen_tool(mapping(tool, f"{param}.tools[{i}]"), f"{param}.tools[{i}]")
        case _:
            _chosen_tool(value, param)
    return value


def _chosen_tool(tool: dict[str, Any], here: str) -> None:
    if tool.get("type") in ("function", "custom"):
        if tool.get("name") is None:
            missing(f"{here}.name")
        text(128, min_length=1)(tool["name"], f"{here}.name")


def text_options(value: Any, param: str) -> dict[str, Any]:
    """Accept the format of the answer and its verbosity."""
    options = mapping(value, param)
    if options.get("verbosity") is not None:
        text(64)(options["verbosity"], f"{param}.verbosity")
    if options.get("format") is None:
        return options
    here = f"{param}.format"
    form = mapping(options["format"], here)
    if form.get("type") is None:
        missing(f"{here}.type")
    if choice("text", "json_object", "json_schema")(form["type"], f"{here}.type") == "json_schema":
        for key in ("name", "schema"):
            if form.get(key) is None:
                missing(f"{here}.{key}")
        if not _FORMAT_NAME.fullmatch(text()(form["name"], f"{here}.name")):
            invalid(f"{here}.name", "expected 1 to 64 letters, digits, underscores or dashes.")
        mapping(form["schema"], f"{here}.schema")
        if form.get("description") is not None:
            text()(form["description"], f"{here}.description")
        if form.get("strict") is not None:
            boolean(form["strict"], f"{here}.strict")
    return options


def reasoning(value: Any, param: str) -> dict[str, Any]:
    """Accept effort, and how the reasoning is to be summarized."""
    options = mapping(value, param)
    if options.get("effort") is not None:
        text(64)(options["effort"], f"{param}.effort")
    for key in ("summary", "generate_summary"):
        if options.get(key) is not None:
            choice("auto", "concise", "detailed")(options[key], f"{param}.{key}")
    return options


def prompt(value: Any, param: str) -> dict[str, Any]:
    """Accept the name of a prompt that the agent keeps, its version and variables."""
    reference = mapping(value, param)
    if reference.get("id") is None:
        missing(f"{param}.id")
    identifier(reference["id"], f"{param}.id")
    if reference.get("version") is not None:
        text(64)(reference["version"], f"{param}.version")
    if reference.get("variables") is not None:
        mapping(reference["variables"], f"{param}.variables")
    return reference


FIELDS: Mapping[str, Check] = {
    "model": text(256, min_length=1),
    "input": anything,  # read by `agentrun_server.protocols.openai_responses.items`
    "instructions": text(),
    "previous_response_id": identifier,
    "conversation": conversation,
    "store": boolean,
    "background": boolean,
    "stream": boolean,
    "stream_options": stream_options,
    "include": include,
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": boolean,
    "max_tool_calls": integer(1),
    "max_output_tokens": integer(16),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "top_logprobs": integer(0, 20),
    "text": text_options,
    "reasoning": reasoning,
    "truncation": choice("auto", "disabled"),
    "metadata": metadata,
    "user": text(512),
    "safety_identifier": text(64),
    "prompt_cache_key": text(512),
    "prompt_cache_retention": text(64),
    "prompt_cache_options": mapping,
    "service_tier": text(64),
    "prompt": prompt,
    "moderation": anything,
    "context_management": array,
}
