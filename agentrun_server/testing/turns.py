"""What a scripted model says: one `Turn` for each request, as plain values.

A turn is a row of pieces, in the order a model produces them: reasoning, text, refusal, the arguments of each
tool call. Where something is to happen *during* an answer (`Turn.gate_at`, `Turn.error_at`,
`Turn.disconnect_at`), it is said as the index of a piece, counted from 0 over the whole turn. How a turn
looks on a wire is not said here; that is `agentrun_server.testing.fake_chat` and
`agentrun_server.testing.fake_responses`.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentrun_server.core.usage import Usage

__all__ = [
    "BEFORE_HEAD",
    "FinishReason",
    "Piece",
    "Split",
    "ToolCallSpec",
    "Turn",
    "UpstreamError",
    "Waitable",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

Split = int | Callable[[str], Sequence[str]]
"""How a text is cut into pieces: after so many characters, or by a function. Nothing may be lost."""

BEFORE_HEAD = -1
"""For `Turn.gate_at`: hold the response head, so that the client has not even got a status."""

_WORD = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")


class Waitable(Protocol):
    """An `agentrun_server.testing.Gate`, an `asyncio.Event`, or anything else that can be waited for."""

    def wait(self) -> Awaitable[object]:
        """Return when the turn may go on."""
        ...


@dataclass(frozen=True, slots=True)
class ToolCallSpec:
    """A call the model asks for.

    Attributes:
        name: the function to call.
        arguments: a mapping, sent as JSON, or a string sent as it is, well-formed or not.
        id: the id of the call; None for one made up, which is the same in every run of a test.
    """

    name: str
    arguments: str | Mapping[str, Any] = "{}"
    id: str | None = None

    @property
    def json_arguments(self) -> str:
        """The arguments as they are sent."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments, ensure_ascii=False)


_ERROR_KINDS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", "invalid_value"),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "insufficient_permissions"),
    404: ("invalid_request_error", "model_not_found"),
    408: ("invalid_request_error", "request_timeout"),
    409: ("invalid_request_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """An error answer, in OpenAI's shape. What is None is what OpenAI sends with that status.

    Attributes:
        headers: extra response headers, such as ``{"retry-after-ms": "10"}`` or ``{"x-should-retry":
            "false"}``.
    """

    status: int
    message: str
    code: str | None = None
    type: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object, all four keys."""
        kind, code = _ERROR_KINDS.get(self.status, ("server_error", "server_error"))
        return {
            "error": {
                "message": self.message,
                "type": self.type or kind,
                "param": self.param,
                "code": self.code or code,
            }
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """One delta of a turn: what it is part of, its text, and for arguments the index of the tool call."""

    kind: Literal["reasoning", "text", "refusal", "arguments"]
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a scripted model.

    Attributes:
        text: what the model says; a list of strings is streamed in exactly these pieces.
        reasoning: what it thinks before it says it; likewise.
        refusal: what it says instead, when it refuses.
        tool_calls: calls it asks for, after the text.
        usage: the tokens it reports; None for an estimate.
        finish_reason: why it stopped; None for ``tool_calls`` when there are some, else ``stop``.
        error: an error instead of an answer: ``(429, "slow down")``, ``(429, "slow down", "my_code")`` or an
            `UpstreamError`. With `error_at` it comes in the middle of the stream.
        error_at: the piece before which a stream breaks off with `error`. An answer in one body is the error.
        delay: seconds before each piece; an answer in one body takes as long as its pieces together.
        gate: something the answer waits for: a `Gate`, or an `asyncio.Event` of the same event loop.
        gate_at: the piece that is held back by `gate`; `BEFORE_HEAD` (-1) holds the response head. An answer
            in one body is always held before its head. One past the last piece holds the end of the answer.
        disconnect_at: the piece before which the connection breaks, without an error and without an end.
        headers: extra response headers.
    """

    text: str | Sequence[str] = ""
    reasoning: str | Sequence[str] = field(default="", kw_only=True)
    refusal: str | Sequence[str] = field(default="", kw_only=True)
    tool_calls: Sequence[ToolCallSpec] = field(default=(), kw_only=True)
    usage: Usage | None = field(default=None, kw_only=True)
    finish_reason: FinishReason | None = field(default=None, kw_only=True)
    error: UpstreamError | tuple[int, str] | tuple[int, str, str] | None = field(default=None, kw_only=True)
    error_at: int | None = field(default=None, kw_only=True)
    delay: float = field(default=0.0, kw_only=True)
    gate: Waitable | None = field(default=None, kw_only=True)
    gate_at: int = field(default=0, kw_only=True)
    disconnect_at: int | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], kw_only=True)

    def __post_init__(self) -> None:
        if self.refusal and (self.text or self.tool_calls):
            raise ValueError("a turn with a refusal has neither text nor tool calls")
        if self.error_at is not None and self.error is None:
            raise ValueError("error_at needs an error")

    @property
    def failure(self) -> UpstreamError | None:
        """The error of this turn, whichever way it was written."""
        if self.error is None or isinstance(self.error, UpstreamError):
            return self.error
        status, message, *code = self.error
        return UpstreamError(status, message, code[0] if code else None)

    @property
    def finish(self) -> FinishReason:
        """Why the model stopped."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def pieces(self, split: Split | None = None) -> list[Piece]:
        """Return the turn in the pieces in which it is streamed: words, unless `split` says otherwise."""
        return [
            *(Piece("reasoning", text) for text in _cut(self.reasoning, split)),
            *(Piece("text", text) for text in _cut(self.text, split)),
            *(Piece("refusal", text) for text in _cut(self.refusal, split)),
            *(
                Piece("arguments", text, index)
                for index, call in enumerate(self.tool_calls)
                for text in _cut(call.json_arguments, split)
            ),
        ]


def _cut(text: str | Sequence[str], split: Split | None) -> list[str]:
    if not isinstance(text, str):
        return [piece for piece in text if piece]
    if split is None:
        return _WORD.findall(text)
    if isinstance(split, int):
        return [text[start : start + split] for start in range(0, len(text), split)]
    pieces = list(split(text))
    if "".join(pieces) != text:
        raise ValueError(f"the pieces of split() do not add up to the text: {pieces!r} and {text!r}")
    return [piece for piece in pieces if piece]


def joined(text: str | Sequence[str]) -> str:
    """Return a text that may be given in pieces as one string."""
    return text if isinstance(text, str) else "".join(text)
