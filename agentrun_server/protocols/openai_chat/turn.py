"""One answer of Chat Completions as it comes together, whichever way it is written.

`Turn` takes what the agent yields, one item after the other, and decides what it means for the caller: which text is
shown, which calls are the client's, how the turn ends, what it cost. `agentrun_server.protocols.openai_chat.encode` has
the two ways of writing it down: as a stream of chunks, or as one completion.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentrun_server.core.events import (
    Addition,
    Annotation,
    Custom,
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    MergeOptions,
    Progress,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.grammar import Call, CallBook, CallPiece, Grammar
from agentrun_server.core.usage import Usage, utf8_size
from agentrun_server.errors import AgentFailedError
from agentrun_server.protocols.json_text import dumps
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


def _replaced(text: str, addition: Addition | None, *keys: str) -> str:
    """Return what an event's addition puts in the place of its text, else `text`."""
    if addition is not None:
        for key in keys:
            other = addition.fields.get(key)
            if isinstance(other, str):
                return other
    return text


class Turn:
    """The answer to one choice. Subclasses write: each ``_write_…`` returns text for the wire, or an empty string.

    After every `feed`, `ended` tells whether nothing more of the agent will be shown: a stop sequence was found, or a
    limit reached. The agent is closed then.
    """

    __slots__ = (
        "_activity",
        "_annotations",
        "_calls",
        "_grammar",
        "_max_bytes",
        "_new_id",
        "_options",
        "_seq",
        "_settings",
        "_stop",
        "ended",
        "finish_reason",
        "plain",
        "reasoning_bytes",
        "reported",
        "text_bytes",
    )

    def __init__(self, options: ChatOptions, settings: ChatSettings, new_id: Callable[[str], str]) -> None:
        self._options = options
        self._settings = settings
        self._max_bytes = settings.max_output_bytes
        self._new_id = new_id
        self._seq = 0
        self._activity: list[dict[str, Any]] = []
        self.reported: Usage | None = None
        """What the agent said it cost, all choices together."""
        self.text_bytes = 0
        """UTF-8 bytes of answer text and arguments, all choices together: what the estimate of tokens is made of."""
        self.reasoning_bytes = 0
        self._begin()

    def _begin(self) -> None:
        """Start a choice."""
        options = self._options
        self._grammar = Grammar()
        self._calls: CallBook | None = None  # most answers call nothing
        self._annotations: list[dict[str, Any]] = []
        self._stop = StopFilter(options.stop) if options.stop else None
        self.plain = False
        """Text can be taken at once: nothing to look for in it, nothing to add to it, no limit or end reached."""
        self.ended = False
        self.finish_reason = "stop"

    # --- what the agent yields

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; return what can be written now.

        Raises:
            APIError: the agent gave up.
            GrammarError: the item may not follow the ones before it.
        """
        self._grammar.accept(item)
        if isinstance(item, str):
            return self._text(item)
        if isinstance(item, TextDelta):
            return self._text(item.text, item)
        held = self._flush_held()
        written = self._event(item)
        return held + written if held else written

    def close(self) -> str:
        """End the choice: return what was still held back."""
        written = self._flush_held()
        if self._calls is not None:
            written += self._pieces(self._calls.close())
        if self._annotations:
            written += self._write_annotations(self._annotations)
        return written

    def usage(self, prompt_tokens: Callable[[], int]) -> Usage:
        """Return the agent's own count, or an estimate from the bytes of question and answer."""
        if self.reported is not None:
            return self.reported
        reasoning = (self.reasoning_bytes + 3) // 4
        return Usage(prompt_tokens(), (self.text_bytes + 3) // 4 + reasoning, 0, reasoning)

    # --- one method for each event

    def _event(self, event: TypedEvent) -> str:  # noqa: C901 - one case for each event, each a line
        match event:
            case ReasoningDelta():
                return self._reasoning(event)
            case RefusalDelta():
                return self._refusal(event.text)
            case FunctionCall():
                return self._function_call(event)
            case FunctionCallDelta():
                return self._function_call_delta(event)
            case FunctionCallOutput():
                return self._function_call_output(event)
            case FunctionCallOutputDelta():
                return self._active("io", "tool_call.output", id=event.id, delta=event.delta)
            case Annotation():
                self._annotations.append(dict(event.data))
                return ""
            case Usage():
                self.reported = event if self.reported is None else self.reported + event
                return ""
            case Finish():
                # Not the end yet: an upstream model tells its usage after its finish reason.
                if event.reason != "stop":  # with calls of the client's tools, "stop" would leave them unanswered
                    self.finish_reason = event.reason
                self.plain = False
                return ""
            case Interrupt():
                return self._interrupt(event)
            case Step():
                return self._active("steps", f"step.{event.status}", name=event.name)
            case Progress():
                return self._active("progress", "progress", label=event.label, progress=event.progress)
            case StateUpdate():
                key = "snapshot" if event.delta is None else "delta"
                value = event.snapshot if event.delta is None else event.delta
                return self._active("steps", "state", **{key: value})
            case Custom():
                return self._active("steps", "custom", name=event.name, value=event.value)
            case Raw():
                return self._write_raw(event.raw)
            case Failure():
                message, code = event.message or "The agent reported an error.", event.code or "agent_error"
                raise AgentFailedError(message, code=code).no_retry()
            case TextDelta():
                return self._text(event.text, event)

    def _text(self, text: str, event: TextDelta | None = None) -> str:
        if self.ended:
            return ""
        addition = None if event is None else event.addition
        text = _replaced(text, addition, "content")
        if self._stop is not None:
            text = self._stop.feed(text)
            if self._stop.hit:
                self.ended = True
        text = self._within_limit(text)
        if not text and addition is None:
            return ""
        self.text_bytes += utf8_size(text)
        if event is None or (addition is None and event.logprobs is None):
            return self._write_text(text)
        return self._write_text(text, event.logprobs if self._options.logprobs else None, addition)

    def _flush_held(self) -> str:
        if self._stop is None or self.ended:
            return ""
        held = self._within_limit(self._stop.flush())
        self.text_bytes += utf8_size(held)
        return self._write_text(held) if held else ""

    def _within_limit(self, text: str) -> str:
        if not text:
            return ""
        room = max(0, self._max_bytes - self.text_bytes)
        if utf8_size(text) <= room:
            return text
        self._cut()
        return text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")

    def _cut(self) -> None:
        self.finish_reason, self.ended, self.plain = "length", True, False

    def _reasoning(self, event: ReasoningDelta) -> str:
        text = _replaced(event.text, event.addition, "reasoning_content", "reasoning")
        if not text and event.addition is None:
            return ""
        self.reasoning_bytes += utf8_size(text)
        if self.reasoning_bytes > self._max_bytes:
            self._cut()
            return ""
        return self._write_reasoning(text, event.addition)

    def _refusal(self, text: str) -> str:
        text = self._within_limit(text)
        if not text:
            return ""
        self.text_bytes += utf8_size(text)
        return self._write_refusal(text)

    def _book(self) -> CallBook:
        if self._calls is None:
            self._calls = CallBook(self._options.client_tools, lambda: self._new_id("call_"))
        return self._calls

    def _function_call(self, event: FunctionCall) -> str:
        call, named, pieces = self._book().add(event)
        if call.client is None:
            return self._call_started(call, event.arguments) if named else ""
        return self._pieces(pieces, event.addition)

    def _function_call_delta(self, event: FunctionCallDelta) -> str:
        call, named, pieces = self._book().add_delta(event)
        if call.client is None:
            return self._call_started(call, None) if named else ""
        return self._pieces(pieces, event.addition)

    def _pieces(self, pieces: Iterable[CallPiece], addition: Addition | None = None) -> str:
        written = ""
        legacy = self._options.legacy_functions
        for piece in pieces:
            if self.finish_reason == "stop":
                self.finish_reason = "function_call" if legacy else "tool_calls"
            if legacy and piece.call.index > 0:  # the deprecated form has room for one call
                continue
            self.text_bytes += utf8_size(piece.arguments)
            written += self._write_call(piece, addition)
            addition = None
        if self.text_bytes > self._max_bytes:
            self._cut()
        return written

    def _call_started(self, call: Call, arguments: str | None) -> str:
        shown = {"arguments": arguments} if arguments is not None and "io" in self._options.activity else {}
        return self._active("tools", "tool_call.started", id=call.id, name=call.name, **shown)

    def _function_call_output(self, event: FunctionCallOutput) -> str:
        call = self._book().find(event.id)
        if call is not None and call.client is not None:
            return ""  # the client runs this tool; see ownership in docs/architecture.md
        shown: dict[str, Any] = {}
        if "io" in self._options.activity:
            shown["output"] = event.output
            if call is not None and call.parts:
                shown["arguments"] = call.arguments
        name = call.name if call is not None else event.name
        outcome = "failed" if event.is_error else "completed"
        return self._active("tools", f"tool_call.{outcome}", id=event.id, name=name, **shown)

    def _interrupt(self, event: Interrupt) -> str:
        """Ask the human: by a tool the client declared for it, else in the answer's text."""
        question: dict[str, Any] = {"prompt": event.prompt, "type": event.type}
        for key in ("options", "schema", "default", "timeout"):
            value = getattr(event, key)
            if value is not None:
                question[key] = value
        asked = {"kind" if key == "type" else key: value for key, value in question.items()}
        shown = self._active("steps", "interrupt", id=event.id, tool_call_id=event.tool_call_id, **asked)
        known = self._calls.find(event.tool_call_id) if self._calls and event.tool_call_id else None
        if known is not None and known.client is not None:
            return shown  # the client already has the call that needs the human
        tool = self._settings.human_input_tool
        if tool in self._options.client_tools:
            return shown + self._function_call(FunctionCall(tool, dumps(question), event.id))
        text = event.prompt
        if event.options:
            text += "\n" + "\n".join(
                f"- {option if isinstance(option, str) else dumps(option)}" for option in event.options
            )
        return shown + self._text(text)

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

    def _write_text(
        self, text: str, logprobs: Mapping[str, Any] | None = None, addition: Addition | None = None
    ) -> str:
        raise NotImplementedError

    def _write_reasoning(self, text: str, addition: Addition | None) -> str:
        raise NotImplementedError

    def _write_refusal(self, text: str) -> str:
        raise NotImplementedError

    def _write_call(self, piece: CallPiece, addition: Addition | None) -> str:
        raise NotImplementedError

    def _write_annotations(self, annotations: list[dict[str, Any]]) -> str:
        raise NotImplementedError

    def _write_activity(self, event: dict[str, Any]) -> str:
        raise NotImplementedError

    def _write_raw(self, raw: str) -> str:
        raise NotImplementedError
