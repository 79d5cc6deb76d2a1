"""One answer of Chat Completions as it comes together, whichever way it is written.

What is Chat Completions' own of `agentrun_server.protocols.turn`: stop sequences, ``x_agent`` activity, annotations at
the end, fields an event adds, and the deprecated form of calls. `agentrun_server.protocols.openai_chat.encode` has the
two ways of writing it down: as a stream of chunks, or as one completion.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentrun_server.core.events import (
    Addition,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    MergeOptions,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.grammar import Call, CallPiece
from agentrun_server.core.usage import utf8_size
from agentrun_server.protocols import turn
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.stop import StopFilter

__all__ = ["OWN_KEYS", "ChatSettings", "Turn", "merge"]

OWN_KEYS = frozenset(
    {"role", "content", "refusal", "annotations", "tool_calls", "function_call", "reasoning_content", "reasoning"}
)
"""Keys of a delta that an event's addition may not bring: clients build their state from them."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What the server's configuration says about answers."""

    reasoning_field: Literal["both", "reasoning_content", "reasoning", "none"] = "both"
    human_input_tool: str = "request_human_input"
    max_output_bytes: int = 50 * 1024 * 1024


def merge(fields: Mapping[str, Any], addition: Mapping[str, Any], options: MergeOptions) -> dict[str, Any]:
    """Return `fields` with `addition` merged in, objects member by member; see `MergeOptions` for lists."""
    result = dict(fields)
    for key, value in addition.items():
        if key not in result:
            if not options.get("no_new_field"):
                result[key] = value
            continue
        old = result[key]
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merge(old, value, options)
        elif isinstance(old, list) and isinstance(value, list) and options.get("concat_list"):
            result[key] = [*old, *value]
        elif value is not None and not (value == [] and options.get("ignore_empty_list")):
            result[key] = value
    return result


class Turn(turn.Turn):
    """The answer to one choice."""

    __slots__ = ("_activity", "_annotations", "_options", "_seq", "_settings", "_stop")

    def __init__(self, options: ChatOptions, settings: ChatSettings, new_id: Callable[[str], str]) -> None:
        self._options = options
        self._settings = settings
        self._seq = 0
        self._activity: list[dict[str, Any]] = []
        super().__init__(
            options.client_tools,
            new_id,
            max_output_bytes=settings.max_output_bytes,
            human_input_tool=settings.human_input_tool,
            logprobs=options.logprobs,
        )

    def _begin(self) -> None:
        """Start a choice."""
        super()._begin()
        self._annotations: list[dict[str, Any]] = []
        self._stop = StopFilter(self._options.stop) if self._options.stop else None

    # --- what the agent yields

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; return what can be written now, with the text that was held back before it."""
        if self._stop is None or isinstance(item, (str, TextDelta)):
            return super().feed(item)
        self._grammar.accept(item)
        held = self._flush_held()
        return held + self._event(item)

    def close(self) -> str:
        """End the choice: return what was still held back."""
        written = self._flush_held() + super().close()
        if self._annotations:
            written += self._write_annotations(self._annotations)
        return written

    def _passed(self, text: str) -> str:
        if self._stop is None:
            return text
        text = self._stop.feed(text)
        if self._stop.hit:
            self.ended = True
        return text

    def _flush_held(self) -> str:
        if self._stop is None or self.ended:
            return ""
        held = self._within_limit(self._stop.flush())
        self.text_bytes += utf8_size(held)
        return self._write_text(held) if held else ""

    def _pieces(self, pieces: Iterable[CallPiece], addition: Addition | None = None) -> str:
        if not self._options.legacy_functions:
            return super()._pieces(pieces, addition)
        first = [piece for piece in pieces if piece.call.index == 0]  # the deprecated form has room for one call
        if first and self.finish_reason == "stop":
            self.finish_reason = "function_call"
        return super()._pieces(first, addition)

    def _write_own_call(self, call: Call, event: FunctionCall | FunctionCallDelta, *, named: bool) -> str:
        if not named:
            return ""
        whole = type(event) is FunctionCall and "io" in self._options.activity
        shown = {"arguments": event.arguments} if whole else {}
        return self._active("tools", "tool_call.started", id=call.id, name=call.name, **shown)

    def _write_own_output(self, event: FunctionCallOutput, call: Call | None) -> str:
        shown: dict[str, Any] = {}
        if "io" in self._options.activity:
            shown["output"] = event.output
            if call is not None and call.parts:
                shown["arguments"] = call.arguments
        name = call.name if call is not None else event.name
        outcome = "failed" if event.is_error else "completed"
        return self._active("tools", f"tool_call.{outcome}", id=event.id, name=name, **shown)

    def _write_own_output_delta(self, event: FunctionCallOutputDelta) -> str:
        return self._active("io", "tool_call.output", id=event.id, delta=event.delta)

    def _annotation(self, data: dict[str, Any]) -> str:
        self._annotations.append(data)
        return ""

    def _active(self, kind: str, activity: str, /, **fields: Any) -> str:
        """Show activity to callers who asked for its kind."""
        wanted = self._options.activity
        if kind not in wanted:
            return ""
        self._seq += 1
        event = {"type": activity, "seq": self._seq, **{k: v for k, v in fields.items() if v is not None}}
        return self._write_activity(event)

    def _with_addition(self, fields: dict[str, Any], addition: Addition | None) -> dict[str, Any]:
        if addition is None:
            return fields
        allowed = {key: value for key, value in addition.fields.items() if key not in OWN_KEYS}
        return merge(fields, allowed, addition.options)

    # --- how it is written

    def _write_annotations(self, annotations: list[dict[str, Any]]) -> str:
        raise NotImplementedError

    def _write_activity(self, event: dict[str, Any]) -> str:
        raise NotImplementedError
