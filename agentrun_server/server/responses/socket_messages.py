"""The messages of a Responses WebSocket, as values in and values out.

What the client sends is ``{"type": "response.create", "stream_id"?, "generate"?, …}`` with the body of
``POST …/responses``. What it gets are the events of a response as they are, and errors with the status they would have.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from agentrun_server.errors import APIError, InvalidRequestError
from agentrun_server.protocols.fields import boolean, invalid, missing, wrong_type
from agentrun_server.protocols.json_text import dumps

__all__ = [
    "Create",
    "error_message",
    "event_message",
    "input_items",
    "output_items",
    "read_create",
    "read_lane",
    "request_body",
]

_CREATE: Final = "response.create"
_LANE = re.compile(r"[A-Za-z0-9_.-]{1,256}", re.ASCII)
_OF_HTTP = frozenset({"stream", "stream_options"})
"""Have no meaning here. Open Responses says clients must not send them; some do."""


@dataclass(frozen=True, slots=True)
class Create:
    """A request for a response."""

    fields: dict[str, Any]
    """The body, without `input` and `previous`."""
    input: Any
    """As it came, or None."""
    previous: str | None
    """The response that is continued."""
    generate: bool
    """False: a warm-up. What it says is remembered, and nothing is answered."""


def read_lane(message: dict[str, Any]) -> str | None:
    """Return the name of the lane, None for the one without a name.

    Raises:
        InvalidRequestError: it is not a name.
    """
    lane = message.get("stream_id")
    if lane is None:
        return None
    if not isinstance(lane, str) or not _LANE.fullmatch(lane):
        raise InvalidRequestError(
            "The 'stream_id' field must be a non-empty string with at most 256 characters and may only contain "
            "letters, numbers, underscores, hyphens, and periods.",
            code="invalid_stream_id",
            param="stream_id",
        )
    return lane


def read_create(message: dict[str, Any]) -> Create:
    """Return what `message` asks for. The body itself is read by whoever answers it.

    Raises:
        InvalidRequestError: it is no ``response.create``, or asks for what there is not over a WebSocket.
    """
    kind = message.get("type")
    if kind is None:
        missing("type")
    if kind != _CREATE:
        invalid("type", f"the one kind of message that is understood here is '{_CREATE}'.")
    generate, background, previous = (message.get(name) for name in ("generate", "background", "previous_response_id"))
    if background is not None and boolean(background, "background"):
        invalid("background", "a response over a WebSocket cannot run in the background.")
    if previous is not None and not isinstance(previous, str):
        wrong_type("previous_response_id", "a string", previous)
    taken = {"type", "stream_id", "generate", "background", "input", "previous_response_id", *_OF_HTTP}
    return Create(
        fields={name: value for name, value in message.items() if name not in taken},
        input=message.get("input"),
        previous=previous,
        generate=generate is None or boolean(generate, "generate"),
    )


def input_items(value: Any) -> str:
    """Return the input of a request as the members of a JSON array."""
    if isinstance(value, str):
        return dumps({"type": "message", "role": "user", "content": value})
    return dumps(value)[1:-1] if isinstance(value, list) else ""


def output_items(output: list[dict[str, Any]]) -> str:
    """Return what was said as the members of a JSON array that can be sent as input: without halves of surrogates."""
    return json.dumps(output, ensure_ascii=False, separators=(",", ":")).encode(errors="replace").decode()[1:-1]


def request_body(create: Create, before: str | None, base: str | None) -> bytes:
    """Return the body of the request that `create` becomes.

    Args:
        create: what was asked for.
        before: what was said before and is not stored, as `input_items` writes it; None: nothing, or it is stored.
        base: the stored response before all that.
    """
    fields = {**create.fields, "stream": True}
    value = create.input
    if base is not None:
        fields["previous_response_id"] = base
    if before is None or not (value is None or isinstance(value, str | list)):
        return dumps(fields if value is None else {**fields, "input": value}).encode()
    items = ",".join(part for part in (before, input_items(value)) if part)
    return f'{dumps(fields)[:-1]},"input":[{items}]}}'.encode()


def event_message(data: bytes, lane: str | None) -> str:
    """Return an event of a response as a message; `data` is a JSON object, which always has members."""
    text = data.decode()
    return text if lane is None else f'{text[:-1]},"stream_id":"{lane}"}}'


def error_message(error: APIError, lane: str | None) -> str:
    """Return `error` as a message, with the headers that its answer would have."""
    told: dict[str, Any] = {**error.body()["error"], "code": error.code or error.type}
    if error.headers:
        told["headers"] = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    message: dict[str, Any] = {"type": "error", "status": error.status_code, "error": told}
    if lane is not None:
        message["stream_id"] = lane
    return dumps(message)
