"""Parts of OpenAPI descriptions, for ``/docs``. Each protocol's `decode` reads requests; this only tells of them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

__all__ = [
    "IDEMPOTENCY_KEY",
    "METADATA",
    "PAGE",
    "Operation",
    "Schema",
    "deleted",
    "json_body",
    "listed",
    "operation",
    "query",
]

Schema: TypeAlias = dict[str, Any]
"""A JSON schema."""

Operation: TypeAlias = dict[str, Any]
"""An OpenAPI operation, without the parameters of its path."""

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

METADATA: Schema = {
    "type": "object",
    "description": "At most 16 pairs of the caller's own.",
    "maxProperties": 16,
    "additionalProperties": {"type": "string", "maxLength": 512},
}


IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The same request with the same key gets the answer of the first.",
}


def json_body(schema: Schema, *, required: bool = True) -> Schema:
    """Return the description of a request's body."""
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def query(name: str, schema: Schema, description: str) -> Schema:
    """Return the description of a parameter in the query."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def listed(item: Schema) -> Schema:
    """Return the schema of one page of a list."""
    end = {"type": ["string", "null"]}
    return {
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"type": "string", "const": "list"},
            "data": {"type": "array", "items": item},
            "first_id": end,
            "last_id": end,
            "has_more": {"type": "boolean"},
        },
    }


def deleted(kind: str) -> Schema:
    """Return the schema of what deleting an object is answered with."""
    properties: Schema = {
        "id": {"type": "string"},
        "object": {"type": "string", "const": kind},
        "deleted": {"type": "boolean", "const": True},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


PAGE: Sequence[Schema] = (
    query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "How many are wanted."),
    query("order", {"type": "string", "enum": ["asc", "desc"]}, "By the time they were made."),
    query("after", {"type": "string"}, "Id of the one before the first that is wanted: `last_id` of the page before."),
)
"""The parameters of each list."""


def operation(
    summary: str,
    answer: str,
    schema: Schema,
    *,
    body: Schema | None = None,
    parameters: Sequence[Schema] = (),
    stream: bool = False,
    errors: Mapping[str, str] = MappingProxyType({}),
) -> Operation:
    """Return an operation.

    Args:
        summary: what it does.
        answer: what it is answered with.
        schema: of the answer.
        body: what `json_body` returns.
        parameters: those that are no part of the path.
        stream: it may be answered with events.
        errors: when it is answered with which status.
    """
    content: Schema = {"application/json": {"schema": schema}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    described: Operation = {
        "summary": summary,
        "responses": {
            "200": {"description": answer, "content": content},
            **{
                status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
                for status, text in errors.items()
            },
        },
    }
    if body is not None:
        described["requestBody"] = body
    if parameters:
        described["parameters"] = list(parameters)
    return described
