"""Reading requests of the Responses API and of conversations.

The agent gets the `AgentRequest` that it knows from Chat Completions: tools, ``tool_choice`` and ``response_format`` in
that form, and beside the parameters' own names those an agent may look for (``max_completion_tokens``,
``reasoning_effort``, ``verbosity``). Its messages are put in by the caller, who knows the history:
``call.request.messages = to_messages(history + call.items, call.instructions)``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrun_server.core.grammar import ToolKind
from agentrun_server.core.messages import Tool
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import array, check_finite, invalid, metadata, missing
from agentrun_server.protocols.openai_responses.fields import FIELDS
from agentrun_server.protocols.openai_responses.items import Item, read_items

__all__ = ["ResponseOptions", "ResponsesCall", "decode", "decode_conversation", "decode_items", "decode_metadata"]

_MAX_NEW_ITEMS = 20
"""Items that may be added to a conversation at once."""

_STATE = ("input", "instructions", "previous_response_id", "conversation", "store", "background", "include")
"""Fields that are for the server; the agent sees their effect."""


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What the answer must look like, as the request asks for it."""

    client_tools: Mapping[str, ToolKind]
    logprobs: bool = False
    include_obfuscation: bool = False
    max_tool_calls: int | None = None


@dataclass(frozen=True, slots=True)
class ResponsesCall:
    """A request, read."""

    request: AgentRequest
    """For the agent; its messages are put in by the caller."""
    items: list[Item]
    """The input, each item with an id; references are not resolved."""
    instructions: str | None
    """For this response alone: they are not part of the history."""
    options: ResponseOptions
    echo: Mapping[str, Any]
    """What the response object repeats, with the defaults of what was not sent."""
    store: bool
    background: bool
    previous_response_id: str | None
    conversation: str | None
    """The id of the conversation that goes on."""
    include: frozenset[str]


def decode(
    body: dict[str, Any],
    headers: Headers,
    new_id: Callable[[str], str],
    *,
    max_items: int = 2048,
    strict_fields: bool = False,
    default_model: str | None = None,
) -> ResponsesCall:
    """Read the body of a request for a response, for a count of its tokens or for a compaction. `body` is used up.

    Args:
        body: a parsed JSON object.
        headers: of the HTTP request, for the agent.
        new_id: makes an id with the prefix it is given.
        max_items: more input items are refused.
        strict_fields: refuse fields that the protocol does not know, instead of handing them on in `extra`.
        default_model: who answers when the request names nobody; None: it must.

    Raises:
        InvalidRequestError: a field is missing, has the wrong type or is out of range, or two exclude each other;
            `param` names it.
    """
    params: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in body.items():
        if value is None:
            continue
        check = FIELDS.get(key)
        if check is None:
            extra[key] = value
        else:
            params[key] = check(value, key)
    if extra and strict_fields:
        invalid(min(extra)[:64], "unknown request field.", "unknown_parameter")
    check_finite({**params, **extra, "input": None})  # at the items `read_items` looks
    if "model" not in params:
        if default_model is None:
            missing("model")
        params["model"] = default_model
    _check_together(params)
    items = read_items(params.get("input", []), new_id, max_items=max_items)
    if "input" in params and not _has_context(params):
        array(items, "input", 1)
    echo = _echo(params)
    include = frozenset(params.get("include", ()))
    tools = params.pop("tools", None)
    options = _read_options(params, tools, include)
    _check_tool_choice(params.get("tool_choice"), options.client_tools, tools)
    call = ResponsesCall(
        request=_request(params, tools, extra, headers),
        items=items,
        instructions=params.get("instructions"),
        options=options,
        echo=echo,
        store=params.get("store", True),
        background=params.get("background", False),
        previous_response_id=params.get("previous_response_id"),
        conversation=params.get("conversation"),
        include=include,
    )
    for key in _STATE:
        params.pop(key, None)
    return call


def _has_context(params: Mapping[str, Any]) -> bool:
    return any(key in params for key in ("previous_response_id", "conversation", "prompt"))


def _check_together(params: Mapping[str, Any]) -> None:
    if "input" not in params and not _has_context(params):
        raise InvalidRequestError(
            "One of 'input', 'previous_response_id', 'conversation' or 'prompt' must be provided.",
            code="missing_required_parameter",
            param="input",
        )
    if "previous_response_id" in params and "conversation" in params:
        raise InvalidRequestError(
            "Mutually exclusive parameters: provide either 'previous_response_id' or 'conversation', not both.",
            code="mutually_exclusive_parameters",
            param="previous_response_id",
        )
    if params.get("background") and not params.get("store", True):
        invalid("background", "a background response must be stored; leave out 'store'.")


def _read_options(
    params: Mapping[str, Any], tools: list[dict[str, Any]] | None, include: frozenset[str]
) -> ResponseOptions:
    names: dict[str, ToolKind] = {}
    for tool in tools or ():
        if tool["type"] == "function":
            names[tool["name"]] = "function"
        elif tool["type"] == "custom":
            names[tool["name"]] = "custom"
    return ResponseOptions(
        client_tools=names,
        logprobs="message.output_text.logprobs" in include or params.get("top_logprobs", 0) > 0,
        include_obfuscation=bool((params.get("stream_options") or {}).get("include_obfuscation")),
        max_tool_calls=params.get("max_tool_calls"),
    )


def _check_tool_choice(tool_choice: Any, names: Mapping[str, ToolKind], tools: list[dict[str, Any]] | None) -> None:
    if tool_choice is None or tool_choice in ("none", "auto"):
        return
    if not tools:
        invalid("tool_choice", "it is only allowed when 'tools' are specified.")
    if not isinstance(tool_choice, dict):
        return
    for tool in tool_choice["tools"] if tool_choice["type"] == "allowed_tools" else [tool_choice]:
        if tool.get("type") in ("function", "custom") and names.get(tool["name"]) != tool["type"]:
            invalid("tool_choice", "the named tool is not in 'tools'.")


# --- the request, in the form agents know


def _request(
    params: dict[str, Any], tools: list[dict[str, Any]] | None, extra: dict[str, Any], headers: Headers
) -> AgentRequest:
    pop = params.pop
    also = {
        "max_completion_tokens": params.get("max_output_tokens"),
        "reasoning_effort": (params.get("reasoning") or {}).get("effort"),
        "verbosity": (params.get("text") or {}).get("verbosity"),
    }
    params |= {name: value for name, value in also.items() if value is not None}
    return AgentRequest(
        protocol="openai_responses",
        model=pop("model"),
        stream=pop("stream", False),
        tools=[_chat_tool(tool) for tool in tools] if tools else None,
        tool_choice=_chat_tool_choice(pop("tool_choice", None)),
        response_format=_response_format((params.get("text") or {}).get("format")),
        metadata=pop("metadata", None),
        user=pop("user", None),
        params=params,
        extra=extra,
        headers=headers,
    )


def _chat_tool(tool: Mapping[str, Any]) -> Tool:
    kind = tool["type"]
    if kind not in ("function", "custom"):
        return Tool(tool)
    inner = {key: value for key, value in tool.items() if key != "type"}
    form = inner.get("format")
    if form is not None and form["type"] == "grammar":
        inner["format"] = {"type": "grammar", "grammar": {k: v for k, v in form.items() if k != "type"}}
    return Tool({"type": kind, kind: inner})


def _chat_tool_choice(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    match value["type"]:
        case "function" | "custom":
            return _named(value)
        case "allowed_tools":
            allowed = {"mode": value["mode"], "tools": [_named(tool) for tool in value["tools"]]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
        case _:
            return value


def _named(tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    return {"type": kind, kind: {"name": tool.get("name")}} if kind in ("function", "custom") else tool


def _response_format(form: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if form is None:
        return None
    if form["type"] != "json_schema":
        return dict(form)
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}


# --- what the response repeats


def _echo(params: Mapping[str, Any]) -> dict[str, Any]:
    get = params.get
    echo = {
        "model": params["model"],
        "instructions": get("instructions"),
        "previous_response_id": get("previous_response_id"),
        "tools": [_echoed_tool(tool) for tool in get("tools", ())],
        "tool_choice": get("tool_choice", "auto"),
        "truncation": get("truncation", "disabled"),
        "parallel_tool_calls": get("parallel_tool_calls", True),
        "text": _echoed_text(get("text") or {}),
        "top_p": get("top_p", 1.0),
        "presence_penalty": get("presence_penalty", 0.0),
        "frequency_penalty": get("frequency_penalty", 0.0),
        "top_logprobs": get("top_logprobs", 0),
        "temperature": get("temperature", 1.0),
        "reasoning": {"effort": None, "summary": None, **_given(get("reasoning") or {})},
        "max_output_tokens": get("max_output_tokens"),
        "max_tool_calls": get("max_tool_calls"),
        "store": get("store", True),
        "background": get("background", False),
        "service_tier": "default",
        "metadata": get("metadata", {}),
        "safety_identifier": get("safety_identifier"),
        "prompt_cache_key": get("prompt_cache_key"),
    }
    # Of these the specification has no null.
    for key in ("user", "prompt"):
        if key in params:
            echo[key] = params[key]
    if "conversation" in params:
        echo["conversation"] = {"id": params["conversation"]}
    return echo


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that are not null: clients send null for absent, where the specification has none."""
    return {key: value for key, value in members.items() if value is not None}


def _echoed_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    sent = _given(tool)
    if tool["type"] != "function":
        return sent
    return {"description": None, "parameters": None, "strict": True, **sent}


def _echoed_text(options: Mapping[str, Any]) -> dict[str, Any]:
    sent = _given(options)
    form = sent.get("format", {"type": "text"})
    if form["type"] == "json_schema":
        strict = form.get("strict")
        # Open Responses wants a description, and OpenAI's has no null.
        form = {**form, "description": form.get("description") or "", "strict": False if strict is None else strict}
    return {**sent, "format": form}


# --- conversations


def decode_conversation(body: dict[str, Any], new_id: Callable[[str], str]) -> tuple[list[Item], dict[str, str]]:
    """Read the body that makes a conversation: its first items, and metadata.

    Raises:
        InvalidRequestError: there are more than 20 items, or something is malformed.
    """
    items = body.get("items")
    pairs = body.get("metadata")
    return (
        [] if items is None else read_items(array(items, "items"), new_id, max_items=_MAX_NEW_ITEMS, param="items"),
        {} if pairs is None else metadata(pairs, "metadata"),
    )


def decode_items(body: dict[str, Any], new_id: Callable[[str], str]) -> list[Item]:
    """Read the body that adds items to a conversation.

    Raises:
        InvalidRequestError: there are none or more than 20, or one is malformed.
    """
    if body.get("items") is None:
        missing("items")
    return read_items(array(body["items"], "items"), new_id, max_items=_MAX_NEW_ITEMS, param="items")


def decode_metadata(body: dict[str, Any]) -> dict[str, str]:
    """Read the body that changes an object's metadata, the one thing of it that can be changed; null takes them away.

    Raises:
        InvalidRequestError: it has none, or it is malformed.
    """
    if "metadata" not in body:
        missing("metadata")
    return {} if body["metadata"] is None else metadata(body["metadata"], "metadata")
