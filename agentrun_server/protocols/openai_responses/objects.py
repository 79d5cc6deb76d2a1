"""The objects of the Responses API, as dictionaries with every key that clients look for."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from agentrun_server.core.usage import Usage
from agentrun_server.errors import APIError
from agentrun_server.protocols.openai_responses.items import Item

__all__ = [
    "OWN_KEYS",
    "ResponseStatus",
    "compaction",
    "conversation",
    "conversation_deleted",
    "error_event",
    "input_tokens",
    "item_list",
    "response",
    "response_deleted",
    "response_error",
    "tool_error",
    "usage_object",
]

ResponseStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"]

Object: TypeAlias = dict[str, Any]

OWN_KEYS: Final = frozenset(
    {
        "id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "output", "usage",
    }
)  # fmt: skip
"""Keys of a response that are not what it repeats of the request."""


def response(
    echo: Mapping[str, Any],
    *,
    id: str,  # noqa: A002 - the wire's name for it
    created_at: int,
    status: ResponseStatus,
    output: Sequence[Item] = (),
    usage: Usage | None = None,
    error: Object | None = None,
    incomplete_reason: str | None = None,
    completed_at: int | None = None,
) -> Object:
    """Return a response. `echo` is what it repeats of the request, see `ResponsesCall.echo`; times are Unix seconds."""
    return {
        "id": id,
        "object": "response",
        "created_at": created_at,
        "completed_at": completed_at,
        "status": status,
        "error": error,
        "incomplete_details": None if incomplete_reason is None else {"reason": incomplete_reason},
        "output": list(output),
        "usage": None if usage is None else usage_object(usage),
        **echo,
    }


def usage_object(usage: Usage) -> Object:
    """Return token counts."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def response_error(error: APIError) -> Object:
    """Return the ``error`` of a failed response. Its codes are a closed list; the agent's own are in `error_event`."""
    code = "rate_limit_exceeded" if error.type == "rate_limit_error" else "server_error"
    return {"code": code, "message": error.message}


def error_event(error: APIError) -> Object:
    """Return the fields of an ``error`` event: flat, as OpenAI has them, and nested, as clients look for them."""
    nested = error.body()["error"]
    return {"code": error.code, "message": error.message, "param": error.param, "error": nested}


def tool_error(text: str) -> Object:
    """Return the ``error`` of a call whose tool failed, for the reason `text`."""
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}


def response_deleted(id: str) -> Object:  # noqa: A002
    """Return what deleting a response is answered with."""
    return {"id": id, "object": "response", "deleted": True}


def conversation(id: str, created_at: int, metadata: Mapping[str, str]) -> Object:  # noqa: A002
    """Return a conversation."""
    return {"id": id, "object": "conversation", "created_at": created_at, "metadata": dict(metadata)}


def conversation_deleted(id: str) -> Object:  # noqa: A002
    """Return what deleting a conversation is answered with."""
    return {"id": id, "object": "conversation.deleted", "deleted": True}


def item_list(items: Sequence[Item], *, has_more: bool) -> Object:
    """Return a page of items; an empty one has no first and last."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "has_more": has_more, "first_id": first, "last_id": last}


def input_tokens(count: int) -> Object:
    """Return the size of an input."""
    return {"object": "response.input_tokens", "input_tokens": count}


def compaction(id: str, created_at: int, output: Sequence[Item], usage: Usage) -> Object:  # noqa: A002
    """Return a compacted conversation: what a client sends as its input from now on."""
    return {
        "id": id,
        "object": "response.compaction",
        "created_at": created_at,
        "output": list(output),
        "usage": usage_object(usage),
    }
