"""Annotations and log probabilities in the flat form of the Responses API.

Agents yield what Chat Completions has: ``{"type": "url_citation", "url_citation": {…}}``. Clients of the Responses API
read closed unions and fail on what they do not know, so a type that is not in the specification is left out, and what a
known one lacks is filled in.
"""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["flat_annotation", "flat_logprobs"]

_FIELDS: Mapping[str, Mapping[str, str | int]] = {
    "url_citation": {"url": "", "title": "", "start_index": 0, "end_index": 0},
    "file_citation": {"file_id": "", "filename": "", "index": 0},
    "container_file_citation": {"container_id": "", "file_id": "", "filename": "", "start_index": 0, "end_index": 0},
    "file_path": {"file_id": "", "index": 0},
}
"""Types of annotations, with the fields each must have, and what stands there when the agent gave nothing of use."""


def flat_annotation(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an annotation as the Responses API has it, None for one of a type it does not have."""
    kind = data.get("type")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or not isinstance(kind, str):
        return None
    inner = data.get(kind)
    given = {**data, **inner} if isinstance(inner, Mapping) else dict(data)
    given.pop(kind, None)
    flat = {name: value if _same_type(value := given.get(name), like) else like for name, like in fields.items()}
    return {**given, "type": kind, **flat}


def flat_logprobs(logprobs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the tokens of OpenAI's ``logprobs`` object; what is no token is left out."""
    content = None if logprobs is None else logprobs.get("content")
    tokens = [_token(token) for token in content] if isinstance(content, list) else []
    return [token for token in tokens if token is not None]


def _token(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("token"), str) or not _finite(value.get("logprob")):
        return None
    top = value.get("top_logprobs")
    return {
        **_told(value),
        "top_logprobs": [_told(other) for other in top if _is_told(other)] if isinstance(top, list) else [],
    }


def _is_told(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("token"), str) and _finite(value.get("logprob"))


def _told(value: Mapping[str, Any]) -> dict[str, Any]:
    given = value.get("bytes")
    usable = isinstance(given, list) and all(type(byte) is int for byte in given)
    return {"token": value["token"], "logprob": value["logprob"], "bytes": given if usable else []}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same_type(value: Any, like: str | int) -> bool:
    return isinstance(value, type(like)) and not isinstance(value, bool)
