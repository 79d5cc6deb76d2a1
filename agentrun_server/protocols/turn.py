"""One answer as it comes together, in whichever protocol it is written.

`Turn` takes what the agent yields, one item after the other, and decides what it means for the caller: how much text
is shown, which calls are the client's, how the turn ends, what it cost. Protocols subclass it and say how each thing
is written; what a protocol has no place for writes nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
    Progress,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
    TextDelta,
    TypedEvent,
)
from agentrun_server.core.grammar import Call, CallBook, CallPiece, Grammar, ToolKind
from agentrun_server.core.usage import Usage, utf8_size
from agentrun_server.errors import AgentFailedError
from agentrun_server.protocols.json_text import dumps

__all__ = ["MAX_PIECE", "Turn"]

MAX_PIECE = 64 * 1024
"""A longer piece of text is written as several, so that no client has to hold one huge line."""


def _replaced(text: str, addition: Addition | None, *keys: str) -> str:
    """Return what an event's addition puts in the place of its text, else `text`."""
    if addition is not None:
        for key in keys:
            other = addition.fields.get(key)
            if isinstance(other, str):
                return other
    return text


class Turn:
    """The answer to one question. Subclasses write: each ``_write_…`` returns text for the wire, or an empty string.

    After every `feed`, `ended` tells whether nothing more of the agent will be shown: a limit was reached, or the
    protocol found an end. The agent is closed then.

    Args:
        client_tools: names of the client's tools, with their kinds; the calls of no other are the client's.
        new_id: makes an id with the prefix it is given.
        max_output_bytes: where an answer is cut; counted apart for text with arguments, and for reasoning.
        human_input_tool: the name of the client tool by which a human is asked.
        logprobs: the caller wants those of the text.
    """

    __slots__ = (
        "_calls",
        "_client_tools",
        "_grammar",
        "_human_input_tool",
        "_logprobs_wanted",
        "_max_bytes",
        "_new_id",
        "ended",
        "finish_reason",
        "plain",
        "reasoning_bytes",
        "reported",
        "text_bytes",
    )

    def __init__(
        self,
        client_tools: Mapping[str, ToolKind],
        new_id: Callable[[str], str],
        *,
        max_output_bytes: int,
        human_input_tool: str,
        logprobs: bool,
    ) -> None:
        self._client_tools = client_tools
        self._new_id = new_id
        self._max_bytes = max_output_bytes
        self._human_input_tool = human_input_tool
        self._logprobs_wanted = logprobs
        self.reported: Usage | None = None
        """What the agent said it cost, all turns together."""
        self.text_bytes = 0
        """UTF-8 bytes of answer text and arguments, all turns together: what the estimate of tokens is made of."""
        self.reasoning_bytes = 0
        self._begin()

    def _begin(self) -> None:
        """Start a turn; an encoder may write several, one after the other."""
        self._grammar = Grammar()
        self._calls: CallBook | None = None  # most answers call nothing
        self.plain = False
        """Text can be taken at once: nothing to look for in it, nothing to add to it, no limit or end reached."""
        self.ended = False
        self.finish_reason = "stop"
        """``tool_calls`` once a client's tool was called; ``length`` or ``content_filter`` when it is not whole."""

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
        return self._event(item)

    def close(self) -> str:
        """End the turn: return what was still held back."""
        return self._pieces(self._calls.close()) if self._calls is not None else ""

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
                return self._write_own_output_delta(event)
            case Annotation():
                return self._annotation(dict(event.data))
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
        text = self._within_limit(self._passed(_replaced(text, addition, "content")))
        if not text and addition is None:
            return ""
        self.text_bytes += utf8_size(text)
        if event is None or (addition is None and event.logprobs is None):
            return self._write_text(text)
        return self._write_text(text, event.logprobs if self._logprobs_wanted else None, addition)

    def _passed(self, text: str) -> str:
        """Return what of `text` can be shown now; a protocol may hold something back."""
        return text

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
            self._calls = CallBook(self._client_tools, lambda: self._new_id("call_"))
        return self._calls

    def _function_call(self, event: FunctionCall) -> str:
        call, named, pieces = self._book().add(event)
        if call.client is None:
            return self._write_own_call(call, event, named=named)
        return self._pieces(pieces, event.addition)

    def _function_call_delta(self, event: FunctionCallDelta) -> str:
        call, named, pieces = self._book().add_delta(event)
        if call.client is None:
            return self._write_own_call(call, event, named=named)
        return self._pieces(pieces, event.addition)

    def _pieces(self, pieces: Iterable[CallPiece], addition: Addition | None = None) -> str:
        written = ""
        for piece in pieces:
            if self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
            self.text_bytes += utf8_size(piece.arguments)
            written += self._write_call(piece, addition)
            addition = None
        if self.text_bytes > self._max_bytes:
            self._cut()
        return written

    def _function_call_output(self, event: FunctionCallOutput) -> str:
        call = self._book().find(event.id)
        if call is not None and call.client is not None:
            return ""  # the client runs this tool; see ownership in docs/architecture.md
        return self._write_own_output(event, call)

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
        tool = self._human_input_tool
        if tool in self._client_tools:
            return shown + self._function_call(FunctionCall(tool, dumps(question), event.id))
        text = event.prompt
        if event.options:
            text += "\n" + "\n".join(
                f"- {option if isinstance(option, str) else dumps(option)}" for option in event.options
            )
        return shown + self._text(text)

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

    def _write_own_call(self, call: Call, event: FunctionCall | FunctionCallDelta, *, named: bool) -> str:
        """Show a call of the agent's own tool after each piece of it; `named` is the one that told its name."""
        raise NotImplementedError

    def _write_own_output(self, event: FunctionCallOutput, call: Call | None) -> str:
        """Show what a tool of the agent's own returned; `call` is None when the agent has not told of it."""
        raise NotImplementedError

    def _write_own_output_delta(self, event: FunctionCallOutputDelta) -> str:
        raise NotImplementedError

    def _annotation(self, data: dict[str, Any]) -> str:
        raise NotImplementedError

    def _active(self, kind: str, activity: str, /, **fields: Any) -> str:
        """Show what else the agent does."""
        raise NotImplementedError

    def _write_raw(self, raw: str) -> str:
        raise NotImplementedError
