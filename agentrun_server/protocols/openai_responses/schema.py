"""The OpenAPI description of the Responses API and of conversations, for ``/docs``."""

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

__all__ = ["CONVERSATION_OPERATIONS", "RESPONSE_OPERATIONS"]

_ITEM: Final[Schema] = {
    "type": "object",
    "description": "A message, a call of a tool or its output, reasoning, a reference to a stored item …",
    "additionalProperties": True,
    "properties": {
        "type": {"type": "string", "default": "message", "examples": ["message", "function_call_output"]},
        "id": {"type": "string"},
        "status": {"type": "string", "enum": ["in_progress", "completed", "incomplete"]},
        "role": {"type": "string", "enum": ["user", "assistant", "system", "developer"]},
        "content": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object", "required": ["type"]}}]
        },
        "call_id": {"type": "string"},
        "name": {"type": "string"},
        "arguments": {"type": "string", "description": "JSON."},
        "output": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    },
}
_INPUT: Final[Schema] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": _ITEM}],
    "examples": ["Hello"],
}
_TOOL: Final[Schema] = {
    "type": "object",
    "required": ["type"],
    "additionalProperties": True,
    "properties": {
        "type": {"type": "string", "examples": ["function"]},
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,128}$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
}

_CONTEXT: Final[Mapping[str, Schema]] = {
    "model": {"type": "string", "examples": ["agentrun"]},
    "input": _INPUT,
    "instructions": {"type": "string", "description": "A system message for this request alone."},
    "previous_response_id": {"type": "string", "description": "The stored response to go on from."},
    "conversation": {
        "description": "The conversation to go on with, in place of `previous_response_id`.",
        "anyOf": [
            {"type": "string"},
            {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        ],
    },
    "tools": {"type": "array", "items": _TOOL, "description": "Tools that the caller runs."},
    "tool_choice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]},
    "parallel_tool_calls": {"type": "boolean", "default": True},
    "text": {"type": "object", "description": "`format` and `verbosity` of the answer."},
    "reasoning": {"type": "object", "description": "`effort` and `summary`."},
    "truncation": {"type": "string", "enum": ["auto", "disabled"], "default": "disabled"},
}
"""What a request says of its question."""

_RUN: Final[Mapping[str, Schema]] = {
    "stream": {"type": "boolean", "default": False},
    "stream_options": {"type": "object", "properties": {"include_obfuscation": {"type": "boolean"}}},
    "store": {"type": "boolean", "default": True, "description": "Keep the response, and all that it goes on from."},
    "background": {
        "type": "boolean",
        "default": False,
        "description": "Answer at once and go on without the caller, who asks again for the response by its id.",
    },
    "include": {"type": "array", "items": {"type": "string"}},
    "max_output_tokens": {"type": "integer", "minimum": 16},
    "max_tool_calls": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "metadata": METADATA,
    "user": {"type": "string"},
}
"""What a request says of its answer."""

_RESPONSE: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "output"],
    "additionalProperties": True,
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "const": "response"},
        "created_at": {"type": "integer", "description": "Unix time."},
        "status": {
            "type": "string",
            "enum": ["queued", "in_progress", "completed", "failed", "incomplete", "cancelled"],
        },
        "error": {"type": ["object", "null"]},
        "incomplete_details": {"type": ["object", "null"]},
        "model": {"type": "string"},
        "output": {"type": "array", "items": _ITEM},
        "usage": {"type": ["object", "null"]},
    },
}
_CONVERSATION: Final[Schema] = {
    "type": "object",
    "required": ["id", "object", "created_at", "metadata"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "const": "conversation"},
        "created_at": {"type": "integer", "description": "Unix time."},
        "metadata": METADATA,
    },
}
_NEW_ITEMS: Final[Schema] = {"type": "array", "items": _ITEM, "maxItems": 20}


def _request(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "required": list(required), "additionalProperties": True, "properties": fields}


_MALFORMED = {"400": "The request is malformed or out of range."}
_NO_RESPONSE = {"404": "The caller has no such response."}
_NO_CONVERSATION = {"404": "The caller has no such conversation."}
_NO_ITEM = {"404": "The caller has no such conversation, or it has no such item."}

RESPONSE_OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /responses": operation(
        "Create a response",
        "A response, or with `stream` the events of one.",
        _RESPONSE,
        body=json_body(_request("model", **_CONTEXT, **_RUN)),
        parameters=[IDEMPOTENCY_KEY],
        stream=True,
        errors={
            "400": "The request is malformed, out of range, or names a model or response that is not there.",
            "404": "The caller has no such conversation.",
            "409": "Another turn of the conversation runs.",
            "429": "All places are taken; see `Retry-After`.",
            "500": "The agent failed.",
            "503": "The server is shutting down, or what is stored cannot be reached.",
        },
    ),
    "GET /responses/{response_id}": operation(
        "Retrieve a response",
        "The response as it is now, or with `stream` its events.",
        _RESPONSE,
        parameters=[
            query("stream", {"type": "boolean", "default": False}, "Send the events, and those to come as they come."),
            query(
                "starting_after",
                {"type": "integer", "minimum": 0},
                "The `sequence_number` of the last event that the caller has; only with `stream`.",
            ),
        ],
        stream=True,
        errors={**_MALFORMED, **_NO_RESPONSE},
    ),
    "DELETE /responses/{response_id}": operation(
        "Delete a response", "It is gone.", deleted("response"), errors=_NO_RESPONSE
    ),
    "POST /responses/{response_id}/cancel": operation(
        "Cancel a response that runs in the background",
        "The response, with what was said up to now.",
        _RESPONSE,
        errors={"400": "The response does not run in the background.", **_NO_RESPONSE},
    ),
    "GET /responses/{response_id}/input_items": operation(
        "List the input of a response",
        "Items, newest first unless asked for otherwise.",
        listed(_ITEM),
        parameters=PAGE,
        errors={**_MALFORMED, **_NO_RESPONSE},
    ),
    "POST /responses/input_tokens": operation(
        "Estimate the tokens of a request",
        "An estimate; no agent runs.",
        {"type": "object", "properties": {"object": {"type": "string"}, "input_tokens": {"type": "integer"}}},
        body=json_body(_request(**_CONTEXT)),
        errors=_MALFORMED,
    ),
    "POST /responses/compact": operation(
        "Compact a conversation",
        "One item that stands for all of them, to go on from.",
        {"type": "object", "properties": {"id": {"type": "string"}, "output": {"type": "array", "items": _ITEM}}},
        body=json_body(_request("model", **_CONTEXT)),
        errors=_MALFORMED,
    ),
}

CONVERSATION_OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /conversations": operation(
        "Create a conversation",
        "The conversation.",
        _CONVERSATION,
        body=json_body(_request(items=_NEW_ITEMS, metadata=METADATA), required=False),
        errors=_MALFORMED,
    ),
    "GET /conversations/{conversation_id}": operation(
        "Retrieve a conversation", "The conversation.", _CONVERSATION, errors=_NO_CONVERSATION
    ),
    "POST /conversations/{conversation_id}": operation(
        "Replace the metadata of a conversation",
        "The conversation.",
        _CONVERSATION,
        body=json_body(_request("metadata", metadata=METADATA)),
        errors={**_MALFORMED, **_NO_CONVERSATION},
    ),
    "DELETE /conversations/{conversation_id}": operation(
        "Delete a conversation and its items",
        "They are gone.",
        deleted("conversation.deleted"),
        errors=_NO_CONVERSATION,
    ),
    "POST /conversations/{conversation_id}/items": operation(
        "Add items to a conversation",
        "The items, with their ids.",
        listed(_ITEM),
        body=json_body(_request("items", items=_NEW_ITEMS)),
        errors={**_MALFORMED, **_NO_CONVERSATION},
    ),
    "GET /conversations/{conversation_id}/items": operation(
        "List the items of a conversation",
        "Items, newest first unless asked for otherwise.",
        listed(_ITEM),
        parameters=PAGE,
        errors={**_MALFORMED, **_NO_CONVERSATION},
    ),
    "GET /conversations/{conversation_id}/items/{item_id}": operation(
        "Retrieve an item", "The item.", _ITEM, errors=_NO_ITEM
    ),
    "DELETE /conversations/{conversation_id}/items/{item_id}": operation(
        "Delete an item", "The conversation.", _CONVERSATION, errors=_NO_ITEM
    ),
}
