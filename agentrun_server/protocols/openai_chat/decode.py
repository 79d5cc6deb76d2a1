"""Reading a Chat Completions request."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentrun_server.core.grammar import ToolKind
from agentrun_server.core.messages import Tool
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import check_amount, check_density, check_finite, invalid, missing
from agentrun_server.protocols.openai_chat.conversation import read_messages
from agentrun_server.protocols.openai_chat.fields import FIELDS

__all__ = ["PLAIN", "ChatOptions", "decode", "parse_json", "warm_up"]

_ACTIVITY_HEADER = b"x-agent-events"
"""A caller names the kinds of ``x_agent`` activity it wants: ``X-Agent-Events: tools,steps``."""

_OPTIONS = frozenset({"n", "stop", "stream_options", "logprobs", "functions", "x_agent"})


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the answer must look like, as the request asks for it."""

    n: int = 1
    stop: tuple[str, ...] = ()
    include_usage: bool = False
    include_obfuscation: bool = False
    logprobs: bool = False
    legacy_functions: bool = False
    """The request used ``functions``: calls are answered in the deprecated form."""
    client_tools: Mapping[str, ToolKind] = None  # type: ignore[assignment] # always given by `decode`
    activity: frozenset[str] = frozenset()
    """Kinds of ``x_agent`` activity to send."""


_NO_TOOLS: Mapping[str, ToolKind] = {}
PLAIN = ChatOptions(client_tools=_NO_TOOLS)
"""The options of a request that asks for nothing special: almost every one."""
_loads: Callable[..., Any] | None = None


def warm_up() -> None:
    """Import the JSON parser now, and not with the first request: it takes a tenth of a second."""
    global _loads  # noqa: PLW0603 - set once
    from pydantic_core import from_json

    _loads = from_json


def parse_json(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a request body: strict JSON, UTF-8, no NaN, nested 200 deep at most, not too much, an object at the top.

    Raises:
        InvalidRequestError: it is not.
    """
    if _loads is None:
        warm_up()
    assert _loads is not None, "set by warm_up"
    check_density(body)
    try:
        value = _loads(body, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequestError(
            "We could not parse the JSON body of your request. Expected a JSON object in UTF-8.",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body of the request must be a JSON object.", code="invalid_type")
    check_amount(value, body)
    return value


def decode(
    body: dict[str, Any],
    headers: Headers,
    *,
    max_messages: int = 2048,
    max_choices: int = 8,
    strict_fields: bool = False,
    activity: Iterable[str] = (),
    offered: Collection[str] = ("tools", "steps", "progress", "io"),
) -> tuple[AgentRequest, ChatOptions]:
    """Turn a parsed body into the agent's request and the options of the answer. `body` is used up.

    Raises:
        InvalidRequestError: a field is missing, has the wrong type or is out of range; `param` names it.
    """
    params: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    fields = FIELDS
    for key, value in body.items():
        if value is None:
            continue
        check = fields.get(key)
        if check is None:
            extra[key] = value
        else:
            params[key] = check(value, key)
    if extra:
        if strict_fields:
            invalid(min(extra)[:64], "unknown request field.", "unknown_parameter")
        check_finite(extra)
    if "model" not in params:
        missing("model")
    if "messages" not in params:
        missing("messages")
    pop = params.pop
    messages = read_messages(pop("messages"), max_messages=max_messages)
    tools, tool_choice = pop("tools", None), pop("tool_choice", None)
    options = _read_options(params, tools, tool_choice, headers, max_choices, activity, offered)
    if tools:
        tools = [Tool(tool) for tool in tools]
    elif options.legacy_functions:
        tools = [Tool(type="function", function=item) for item in params["functions"]]
        tool_choice = tool_choice or _legacy_choice(params.get("function_call"))
    else:
        tools = None
    request = AgentRequest(
        messages,
        model=pop("model"),
        stream=pop("stream", False),
        tools=tools,
        tool_choice=tool_choice,
        response_format=pop("response_format", None),
        metadata=pop("metadata", None),
        user=pop("user", None),
        params=params,
        extra=extra,
        headers=headers,
    )
    return request, options


def _read_options(
    params: dict[str, Any],
    tools: list[dict[str, Any]] | None,
    tool_choice: Any,
    headers: Headers,
    max_choices: int,
    activity: Iterable[str],
    offered: Collection[str],
) -> ChatOptions:
    header = headers.first.get(_ACTIVITY_HEADER)
    if header is None and not activity and tools is tool_choice is None and _OPTIONS.isdisjoint(params):
        return PLAIN
    n = params.get("n", 1)
    if n > max_choices:
        invalid("n", f"this server answers with at most {max_choices} choices.", "integer_above_max_value")
    stream_options = params.get("stream_options") or {}
    asked: set[str] = set((params.pop("x_agent", None) or {}).get("include") or ())
    if header:
        asked.update(part.strip().lower() for part in header.decode("latin-1").split(","))
    wanted = frozenset(activity) | asked.intersection(offered)
    legacy = not tools and "functions" in params
    names: Mapping[str, ToolKind] = _NO_TOOLS
    if tools:
        names = {tool[tool["type"]]["name"]: tool["type"] for tool in tools if tool["type"] in ("function", "custom")}
    elif legacy:
        names = {item["name"]: "function" for item in params["functions"]}
    _check_tool_choice(tool_choice, names)
    return ChatOptions(
        n=n,
        stop=tuple(params.get("stop", ())),
        include_usage=bool(stream_options.get("include_usage")),
        include_obfuscation=bool(stream_options.get("include_obfuscation")),
        logprobs=bool(params.get("logprobs")),
        legacy_functions=legacy,
        client_tools=names,
        activity=wanted,
    )


def _check_tool_choice(tool_choice: Any, names: Mapping[str, ToolKind]) -> None:
    if tool_choice is None or tool_choice in ("none", "auto"):
        return
    if not names:
        invalid("tool_choice", "it is only allowed when 'tools' are specified.")
    if isinstance(tool_choice, dict) and tool_choice["type"] in ("function", "custom"):
        name = tool_choice[tool_choice["type"]]["name"]
        if name not in names:
            invalid("tool_choice", "the named tool is not in 'tools'.")


def _legacy_choice(function_call: Any) -> Any:
    if isinstance(function_call, dict):
        return {"type": "function", "function": {"name": function_call["name"]}}
    return function_call
