"""What the two wires of the scripted upstream share: one server-sent event, made-up ids, estimated usage."""

import json
from collections.abc import Sequence
from typing import Any

from agentrun_server.core.usage import Usage
from agentrun_server.testing.turns import Piece, ToolCallSpec

__all__ = ["CREATED", "DONE", "Frame", "Json", "call_id", "estimate", "frame"]

Json = dict[str, Any]

Frame = tuple[bytes, int | None]
"""Bytes of a stream, and the index of the piece they carry; None for what stands around the pieces."""

CREATED = 1_750_000_000
"""The time of every answer: a script gives the same bytes whenever it runs."""

DONE = b"data: [DONE]\n\n"


def frame(data: Json, *, event: str | None = None) -> bytes:
    """Return one server-sent event."""
    named = "" if event is None else f"event: {event}\n"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{named}data: {text}\n\n".encode()


def call_id(call: ToolCallSpec, number: int, index: int) -> str:
    """Return the id of the `index`-th tool call of answer `number`: its own, or a made-up one."""
    return call.id or f"call_{number:012d}{index:012d}"


def estimate(question: Any, pieces: Sequence[Piece]) -> Usage:
    """Count every piece as a token, and every four characters of the question as one."""
    return Usage(
        input_tokens=1 + len(json.dumps(question, ensure_ascii=False)) // 4,
        output_tokens=len(pieces),
        reasoning_tokens=sum(piece.kind == "reasoning" for piece in pieces),
    )
