"""How a turn looks on the wire of Chat Completions. Values in, values out; nothing is sent from here.

Written from OpenAI's specification and recorded traffic, apart from the server's own encoder on purpose: each
is a check on the other.
"""

from collections.abc import Iterator, Sequence

from agentrun_server.core.usage import Usage
from agentrun_server.testing.fake_wire import CREATED, DONE, Frame, Json, call_id, estimate, frame
from agentrun_server.testing.turns import Piece, ToolCallSpec, Turn, UpstreamError, joined

__all__ = ["ChatAnswer"]


class ChatAnswer:
    """The answer of `turn` to the request `body`, the `number`-th the upstream got."""

    def __init__(
        self,
        turn: Turn,
        pieces: Sequence[Piece],
        body: Json,
        *,
        number: int,
        reasoning_fields: tuple[str, ...],
    ) -> None:
        self._turn = turn
        self._pieces = pieces
        self._reasoning_fields = reasoning_fields
        self._number = number
        self._choices = int(body.get("n") or 1)
        self._logprobs = body.get("logprobs") is True
        options = body.get("stream_options") or {}
        self._include_usage = options.get("include_usage") is True
        self._obfuscate = options.get("include_obfuscation") is True
        self._model = body["model"]
        self._usage = turn.usage or estimate(body["messages"], pieces)

    def document(self) -> Json:
        """Return the answer in one body."""
        turn = self._turn
        message: Json = {
            "role": "assistant",
            "content": joined(turn.text) or (None if turn.tool_calls or turn.refusal else ""),
            "refusal": joined(turn.refusal) or None,
            "annotations": [],
        }
        if turn.reasoning:
            message |= dict.fromkeys(self._reasoning_fields, joined(turn.reasoning))
        if turn.tool_calls:
            message["tool_calls"] = [self._call(index, call) for index, call in enumerate(turn.tool_calls)]
        logprobs = self._logprobs_of(self._pieces)
        return {
            **self._envelope("chat.completion"),
            "choices": [
                {"index": index, "message": message, "logprobs": logprobs, "finish_reason": turn.finish}
                for index in range(self._choices)
            ],
            "usage": _usage(self._usage),
        }

    def frames(self) -> Iterator[Frame]:
        """Yield the answer as a stream, from the role to ``[DONE]``."""
        opened = 0
        first: Json = {"role": "assistant", "content": None}
        if self._turn.text or not self._turn.tool_calls:
            first = {"role": "assistant", "content": "", "refusal": None}
        yield from self._each_choice(first)
        for index, piece in enumerate(self._pieces):
            while piece.kind == "arguments" and opened <= piece.call:
                yield from self._each_choice(self._opening(opened), index)
                opened += 1
            yield from self._each_choice(self._delta(piece), index, self._logprobs_of([piece]))
        end = len(self._pieces)
        for call in range(opened, len(self._turn.tool_calls)):  # calls without a byte of arguments
            yield from self._each_choice(self._opening(call), end)
        yield from self._each_choice({}, end, finish_reason=self._turn.finish)
        if self._include_usage:
            yield (
                frame({**self._envelope("chat.completion.chunk"), "choices": [], "usage": _usage(self._usage)}),
                end,
            )
        yield DONE, None

    def failure(self, error: UpstreamError, *, sent: int) -> Iterator[bytes]:  # noqa: ARG002 - as Responses
        """Yield the end of a stream that breaks off with `error`."""
        yield frame(error.body())
        yield DONE

    def _envelope(self, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{self._number:024d}",
            "object": kind,
            "created": CREATED,
            "model": self._model,
            "service_tier": "default",
        }

    def _each_choice(
        self,
        delta: Json,
        piece: int | None = None,
        logprobs: Json | None = None,
        finish_reason: str | None = None,
    ) -> Iterator[Frame]:
        for index in range(self._choices):
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
            chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
            if self._include_usage:
                chunk["usage"] = None
            if self._obfuscate and delta:
                chunk["obfuscation"] = "x" * (16 - len(str(delta)) % 16)
            yield frame(chunk), piece

    def _delta(self, piece: Piece) -> Json:
        match piece.kind:
            case "reasoning":
                return dict.fromkeys(self._reasoning_fields, piece.text)
            case "text":
                return {"content": piece.text}
            case "refusal":
                return {"refusal": piece.text}
            case "arguments":
                return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}

    def _opening(self, index: int) -> Json:
        call = self._call(index, self._turn.tool_calls[index])
        call["function"]["arguments"] = ""
        return {"tool_calls": [{"index": index, **call}]}

    def _call(self, index: int, call: ToolCallSpec) -> Json:
        return {
            "id": call_id(call, self._number, index),
            "type": "function",
            "function": {"name": call.name, "arguments": call.json_arguments},
        }

    def _logprobs_of(self, pieces: Sequence[Piece]) -> Json | None:
        if not self._logprobs:
            return None
        found: Json = {"content": None, "refusal": None}
        for piece in pieces:
            key = {"text": "content", "refusal": "refusal"}.get(piece.kind)
            if key is not None:
                as_bytes = list(piece.text.encode())
                token = {"token": piece.text, "logprob": -0.25, "bytes": as_bytes, "top_logprobs": []}
                found[key] = [*(found[key] or []), token]
        return found if any(found.values()) else None


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
