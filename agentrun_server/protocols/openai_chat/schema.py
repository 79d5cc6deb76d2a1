"""The OpenAPI description of Chat Completions, for ``/docs``."""

from collections.abc import Mapping
from typing import Final

from agentrun_server.protocols.schema import (
    IDEMPOTENCY_KEY,
    METADATA,
    PAGE,
    Operation,
    Schema,
    deleted,
    json_body,
    listed,
    operation,
    query,
)

__all__ = ["CHAT_OPERATIONS"]

_MESSAGE: Final[Schema] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "enum": ["developer", "system", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "object", "required": ["type"]}},
                {"type": "null"},
            ]
        },
        "name": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
    },
}

_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": True,
    "properties": {
        "model": {"type": "string", "examples": ["agentrun"]},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": _MESSAGE,
            "examples": [[{"role": "user", "content": "Hello"}]],
        },
        "stream": {"type": "boolean", "default": False},
        "stream_options": {
            "type": "object",
            "properties": {
                "include_usage": {"type": "boolean"},
                "include_obfuscation": {"type": "boolean"},
            },
        },
        "tools": {"type": "array", "items": {"type": "object"}},
        "tool_choice": {"anyOf": [{"type": "string"}, {"type": "object"}]},
        "parallel_tool_calls": {"type": "boolean"},
        "response_format": {"type": "object"},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "n": {"type": "integer", "minimum": 1},
        "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "reasoning_effort": {"type": "string"},
        "store": {"type": "boolean", "default": False, "description": "Keep the answer."},
        "metadata": METADATA,
        "user": {"type": "string"},
    },
}

_COMPLETION: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
    "additionalProperties": True,
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "const": "chat.completion"},
        "created": {"type": "integer", "description": "Unix time."},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"type": "object"},
    },
}
_MALFORMED = {"400": "The request is malformed or out of range."}
_NOT_FOUND = {"404": "The caller has no such stored completion."}

CHAT_OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /chat/completions": operation(
        "Create a chat completion",
        "A `chat.completion`, or with `stream` a stream of `chat.completion.chunk` events.",
        _COMPLETION,
        body=json_body(_REQUEST),
        parameters=[IDEMPOTENCY_KEY],
        stream=True,
        errors={
            **_MALFORMED,
            "404": "There is no such model.",
            "429": "All places are taken; see `Retry-After`.",
            "500": "The agent failed.",
            "503": "The server is shutting down.",
        },
    ),
    "GET /chat/completions": operation(
        "List stored chat completions",
        "Completions, oldest first unless asked for otherwise.",
        listed(_COMPLETION),
        parameters=[
            *PAGE,
            query("model", {"type": "string"}, "Only those of this model."),
            {
                **query("metadata", METADATA, "Only those with these pairs: `metadata[topic]=weather`."),
                "style": "deepObject",
                "explode": True,
            },
        ],
        errors=_MALFORMED,
    ),
    "GET /chat/completions/{completion_id}": operation(
        "Retrieve a stored chat completion", "The completion.", _COMPLETION, errors=_NOT_FOUND
    ),
    "POST /chat/completions/{completion_id}": operation(
        "Replace the metadata of a stored chat completion",
        "The completion.",
        _COMPLETION,
        body=json_body({"type": "object", "required": ["metadata"], "properties": {"metadata": METADATA}}),
        errors={**_MALFORMED, **_NOT_FOUND},
    ),
    "DELETE /chat/completions/{completion_id}": operation(
        "Delete a stored chat completion", "It is gone.", deleted("chat.completion.deleted"), errors=_NOT_FOUND
    ),
    "GET /chat/completions/{completion_id}/messages": operation(
        "List the messages of a stored chat completion",
        "Those of the request, oldest first unless asked for otherwise.",
        listed(_MESSAGE),
        parameters=PAGE,
        errors={**_MALFORMED, **_NOT_FOUND},
    ),
}
