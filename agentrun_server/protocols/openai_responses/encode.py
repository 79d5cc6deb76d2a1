"""Writing a response: a stream of numbered events, and the response object that is its sum.

Rules are those of the OpenAI specification, of Open Responses, and of what their clients do with each event: created
first, items numbered in the order in which they begin and without a gap, each closed before the next message, reasoning
or client call begins, `sequence_number` without a gap, one terminal event with the whole response, ``[DONE]`` last.

Calls of the agent's own tools are ``mcp_call`` items, which stock clients show and do not run. Such an item stays open
until its tool has returned, while other items come and go: what is really going on at the same time is shown so.

What the Responses API has no place for is left out: ``x_agent`` activity, which clients that read closed unions refuse,
fields an event adds, and `Raw`, which could be neither numbered nor sent again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from agentrun_server.core.events import (
    Addition,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    TypedEvent,
)
from agentrun_server.core.grammar import Call, CallPiece
from agentrun_server.core.usage import utf8_size
from agentrun_server.errors import APIError, GrammarError
from agentrun_server.protocols.json_text import dumps, quote, quote_of
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.annotations import flat_annotation, flat_logprobs
from agentrun_server.protocols.openai_responses.decode import ResponsesCall
from agentrun_server.protocols.openai_responses.items import PREFIXES, Item
from agentrun_server.protocols.openai_responses.parts import output_text
from agentrun_server.protocols.openai_responses.replay import LoggedItem, read_log
from agentrun_server.protocols.turn import MAX_PIECE, Turn

__all__ = ["DONE", "IncompleteReason", "ResponseEncoder", "ResponseSettings", "obfuscated", "split_events"]

DONE = "data: [DONE]\n\n"
"""Ends a stream; it is no event of the response, and has no number."""

IncompleteReason = Literal["max_output_tokens", "content_filter"]
_INCOMPLETE: dict[str, IncompleteReason] = {"length": "max_output_tokens", "content_filter": "content_filter"}

_TEXT_DELTA = "response.output_text.delta"
_DELTA_HEAD = f'event: {_TEXT_DELTA}\ndata: {{"type":"{_TEXT_DELTA}","sequence_number":'
_DELTA_TAIL = ',"logprobs":[]}\n\n'
_CALL_DELTAS = {
    "arguments": "response.function_call_arguments.delta",
    "input": "response.custom_tool_call_input.delta",
}
_ANSWERS = frozenset({"message", "function_call", "custom_tool_call", "mcp_approval_request"})
"""Items that answer the caller; a response that has none gets an empty message. One that was cut is none."""

_OPENING_EVENTS = 2
"""What `ResponseEncoder.open` writes before all others."""

_APPROVALS = frozenset({"confirmation", "approval"})
"""Types of `Interrupt` that yes or no answers."""


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """What the server's configuration says about responses."""

    server_tool_items: Literal["mcp_call", "hidden"] = "mcp_call"
    """Whether calls of the agent's own tools are shown, with arguments and outputs."""
    approval_items: bool = False
    """Ask for confirmation by an ``mcp_approval_request`` item; not by default, because some clients fail on it."""
    server_label: str = "agent"
    """Who runs the tools, in the items."""
    human_input_tool: str = "request_human_input"
    max_output_bytes: int = 50 * 1024 * 1024


def split_events(written: str) -> list[bytes]:
    """Return the events of what an encoder wrote, one by one and without the end mark: what an event log keeps."""
    blocks = written.split("\n\n")  # JSON has no line ends: they can only stand between events
    return [f"{block}\n\n".encode() for block in blocks if block and block != DONE.strip()]


def obfuscated(event: bytes, new_id: Callable[[str], str]) -> bytes:
    """Return an event of a log as it is for a reader who asks for padding: a delta has some."""
    if b".delta\n" not in event or b',"obfuscation":"' in event:  # JSON escapes what was said
        return event
    return event.removesuffix(b"}\n\n") + _padding(len(event), new_id).encode() + b"}\n\n"


def _padding(length: int, new_id: Callable[[str], str]) -> str:
    """Return the member that hides the length of a delta from someone who watches the encrypted stream."""
    return f',"obfuscation":"{new_id("")[: 16 - length % 16]}"'


def _fields(fields: Mapping[str, Any]) -> str:
    """Return the members of an object, to stand among others."""
    return dumps(fields)[1:-1]


def _is_answer(item: Item) -> bool:
    return item["type"] in _ANSWERS and item.get("status") != "incomplete"


class _Place(NamedTuple):
    """Where an item stands, for its events and for the response."""

    number: int
    item: Item
    fields: str
    """``"item_id":…,"output_index":…``"""


def _place(number: int, item: Item) -> _Place:
    return _Place(number, item, f'"item_id":"{item["id"]}","output_index":{number}')


@dataclass(slots=True)
class _Message:
    """The message that is open, and its last part."""

    place: _Place
    content: list[dict[str, Any]]
    kind: Literal["", "output_text", "refusal"] = ""
    texts: list[str] = field(default_factory=list[str])
    where: str = ""
    """The fields of the part: those of the item, and ``content_index``."""


@dataclass(slots=True)
class _Reasoning:
    """The reasoning item that is open; all its text is one summary."""

    place: _Place
    texts: list[str]


@dataclass(slots=True)
class _ClientCall:
    """The call of a client's tool that is open."""

    place: _Place
    call: Call
    key: Literal["arguments", "input"]
    texts: list[str]


@dataclass(slots=True)
class _OwnCall:
    """A call of a tool of the agent's own, from its beginning to what it returned."""

    place: _Place
    call: Call | None
    sent: int = 0
    """So many parts of the call's arguments have been written."""
    texts: list[str] = field(default_factory=list[str])
    arguments_done: bool = False
    outputs: list[str] = field(default_factory=list[str])
    done: bool = False


class ResponseEncoder(Turn):
    """Writes one response. What is not streamed is in `response` when it has ended.

    The stream opens by itself with the first item that is shown, so that a failure before it can still have a status;
    `open` opens it earlier. Every end (`finish`, `fail`, `cancel`, `incomplete`) is written once: after one, the others
    write nothing.

    What the worker of another encoder has left behind, `take_up` goes on with.

    Args:
        call: the request.
        settings: of the server.
        new_id: makes an id with the prefix it is given.
        id: of the response.
        created_at: in seconds since the epoch.
        prompt_tokens: counts the tokens of the question, for an estimate; asked at the end.
    """

    __slots__ = (
        "_created_at",
        "_delta_middle",
        "_echo",
        "_error",
        "_held_annotations",
        "_id",
        "_is_open",
        "_left_open",
        "_message",
        "_obfuscate",
        "_obstacle",
        "_open_call",
        "_output_bytes",
        "_own",
        "_own_left",
        "_places",
        "_prompt_tokens",
        "_reasoning_item",
        "_sequence",
        "_shown",
        "_status",
        "response",
    )

    def __init__(
        self,
        call: ResponsesCall,
        settings: ResponseSettings,
        new_id: Callable[[str], str],
        *,
        id: str,  # noqa: A002 - the wire's name for it
        created_at: int,
        prompt_tokens: Callable[[], int],
    ) -> None:
        options = call.options
        super().__init__(
            options.client_tools,
            new_id,
            max_output_bytes=settings.max_output_bytes,
            human_input_tool=settings.human_input_tool,
            logprobs=options.logprobs,
        )
        self._id = id
        self._created_at = created_at
        self._echo = call.echo
        self._prompt_tokens = prompt_tokens
        self._obfuscate = options.include_obfuscation
        self._shown = settings
        self._own_left = options.max_tool_calls
        self._sequence = 0
        self._is_open = False
        self._status: Literal["", "queued", "in_progress"] = ""
        self._left_open: list[LoggedItem] = []
        self._obstacle = ""
        self._error: dict[str, Any] | None = None
        self._places: list[_Place] = []
        self._message: _Message | None = None
        self._reasoning_item: _Reasoning | None = None
        self._open_call: _ClientCall | None = None
        self._own: dict[str, _OwnCall] = {}
        self._output_bytes = 0
        self._held_annotations: list[dict[str, Any]] = []
        self._delta_middle = ""
        self.response: dict[str, Any] | None = None
        """The whole response, once it has ended."""

    # --- the beginning

    def open(self, *, queued: bool = False) -> str:
        """Begin the stream, of a response that runs or, for one in the background, of one that waits to (`queued`)."""
        self._sequence, self._is_open = 0, True
        status: Literal["queued", "in_progress"] = "queued" if queued else "in_progress"
        self._status = status
        body = self._response_field(self._object(status))
        return self._emit("response.created", body) + self._emit(f"response.{status}", body)

    def take_up(self, events: Sequence[bytes]) -> None:
        """Go on where a log ends; this encoder is fresh, and made for the same request, with the same id and time.

        Then either an end follows, or `proceed` and what another attempt of the agent yields. Either way what the log
        left open is closed as incomplete. What the agent reported of its cost is not in the log and counts no more.

        A log that tells an error can only end as failed, with that error, whichever end is asked for. After one that
        has ended nothing is written.

        Args:
            events: the log from its first event on, see `split_events`; an empty one changes nothing.
        """
        log = read_log(events)
        self._sequence = len(events)
        self._status = log.status
        self._places = [_place(logged.number, logged.item) for logged in log.items]
        self._left_open = log.left_open
        self._obstacle = log.obstacle
        self._error, self.response = log.error, log.response
        self.text_bytes, self.reasoning_bytes = log.text_bytes, log.reasoning_bytes
        self._output_bytes = log.own_bytes
        if self._own_left is not None:
            called = sum(place.item["type"] == "mcp_call" for place in self._places)
            self._own_left = max(0, self._own_left - called)
        self.ended = log.response is not None or log.error is not None or log.is_whole

    def go_on_at(self, number: int) -> None:
        """Write an end behind so many events, for a reader who has them; what they told is not known here."""
        self._sequence = number
        if number:
            self._status = "in_progress"

    def proceed(self) -> str:
        """Tell that the response runs now: it was queued, or was taken up and the agent runs once more.

        What the attempt before left open is closed first, a message as commentary. `ended` tells that the answer was
        whole already: `finish` is all it needs.

        Raises:
            GrammarError: nothing more may follow but an end; see `ResponseLog.obstacle`.
        """
        if self.response is not None:
            return ""
        if self._obstacle:
            raise GrammarError(f"the agent cannot go on with the response: {self._obstacle}")
        if not self._status:
            return self.open()
        written = ""
        if self._status == "queued" or self._sequence == 1:
            written += self._tell("in_progress")
        self._is_open = not self.ended
        return written + self._close_left_open("commentary")

    def _tell(self, status: Literal["queued", "in_progress"]) -> str:
        self._status = status
        return self._emit(f"response.{status}", self._response_field(self._object(status)))

    # --- what the agent yields

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; return the events it becomes."""
        # The path of almost every token: plain text in a part that is text already.
        if type(item) is str and self.plain:
            size = len(item) if item.isascii() else utf8_size(item)
            total = self.text_bytes + size
            if size <= MAX_PIECE and total <= self._max_bytes and self._message is not None:
                self.text_bytes = total
                self._message.texts.append(item)
                number = self._sequence
                self._sequence = number + 1
                return f"{_DELTA_HEAD}{number}{self._delta_middle}{quote(item)}{_DELTA_TAIL}"
        if self._is_open:
            return super().feed(item)
        if self.ended:
            return ""
        assert not self._status, "a response that was taken up has to proceed first"
        self._sequence = _OPENING_EVENTS
        written = super().feed(item)
        return self._opening(written) if written else ""

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of plain text, one event each: as `feed` for each, for less."""
        text = "".join(texts)
        size = utf8_size(text)
        if size > MAX_PIECE or self.text_bytes + size > self._max_bytes or self._message is None or not self.plain:
            return "".join([self.feed(piece) for piece in texts])
        self.text_bytes += size
        self._message.texts += texts
        middle, number, quoted = self._delta_middle, self._sequence, quote_of(text)
        self._sequence = number + len(texts)
        return "".join(
            [f"{_DELTA_HEAD}{n}{middle}{quoted(piece)}{_DELTA_TAIL}" for n, piece in enumerate(texts, number)]
        )

    def _opening(self, written: str) -> str:
        """Put the opening before what was written with the numbers behind it."""
        number = self._sequence
        opening = self.open()
        self._sequence = number
        return opening + written

    # --- the end

    def finish(self, completed_at: int) -> str:
        """End the response: completed at that time, or incomplete when the answer was cut.

        Raises:
            GrammarError: a call never got a name; or as `proceed`.
        """
        reason = _INCOMPLETE.get(self.finish_reason)
        if reason is not None:
            return self.incomplete(reason)
        if self.response is not None:
            return ""
        if self._error is not None:
            return self._end("response.failed", "failed")
        if self._is_open:
            written = self.close()
        elif self._status:
            written = self.proceed() + self.close()
        else:
            self._sequence = _OPENING_EVENTS
            written = self._opening(self.close())
        return written + self._end("response.completed", "completed", completed_at=completed_at)

    def incomplete(self, reason: IncompleteReason) -> str:
        """End the response as one that was cut, with what there is of it."""
        return self._abort("response.incomplete", "incomplete", incomplete_reason=reason)

    def cancel(self) -> str:
        """End the response as one that was cancelled. The protocol has no event of that name: the status tells."""
        return self._abort("response.incomplete", "cancelled")

    def fail(self, error: APIError) -> str:
        """End the response with an error: an event for it, then the failed response."""
        if self.response is not None:
            return ""
        written = self._stop_all()
        if self._error is None:
            self._error = objects.response_error(error)
            written += self._emit("error", _fields(objects.error_event(error)))
        return written + self._end("response.failed", "failed")

    def close(self) -> str:
        """Close every item: the agent has said all it had to say."""
        written = super().close() + self._close_client_call()
        if self._held_annotations:
            written += self._open_part("output_text")
        written += self._leave("final_answer")
        written += "".join([self._close_own(own, "incomplete") for own in self._own.values()])
        if not any(_is_answer(place.item) for place in self._places):
            written += self._open_part("output_text") + self._leave("final_answer")
        return written

    def _abort(self, event: str, status: objects.ResponseStatus, **more: Any) -> str:
        if self.response is not None:
            return ""
        return self._stop_all() + self._end(event, status, **more)

    def _stop_all(self) -> str:
        """Close what is open as incomplete. A client's call is left as it is: nobody must run half of one."""
        written = ""
        if not self._status:
            written += self.open()
        elif self._sequence == 1:
            written += self._tell(self._status)
        self.ended, self.plain = True, False
        if self._open_call is not None:
            item = self._open_call.place.item
            item[self._open_call.key] = "".join(self._open_call.texts)
            item["status"] = "incomplete"
            self._open_call = None
        written += self._close_left_open() + self._leave(None, status="incomplete")
        return written + "".join([self._close_own(own, "incomplete") for own in self._own.values()])

    def _close_left_open(self, phase: str | None = None) -> str:
        """Close what the log left open."""
        left, self._left_open = self._left_open, []
        written = ""
        for kind, fields in [missing for logged in left for missing in logged.close(phase)]:
            delta = fields.pop("delta", "")
            written += self._deltas(kind, _fields(fields), delta) if delta else self._emit(kind, _fields(fields))
        return written

    def _end(self, event: str, status: objects.ResponseStatus, **more: Any) -> str:
        if self._error is not None:
            event, status, more = "response.failed", "failed", {"error": self._error}
        output = [place.item for place in self._places]
        self.response = self._object(status, output=output, usage=self.usage(self._prompt_tokens), **more)
        self.ended, self.plain = True, False
        return self._emit(event, self._response_field(self.response)) + DONE

    def _object(self, status: objects.ResponseStatus, **more: Any) -> dict[str, Any]:
        return objects.response(self._echo, id=self._id, created_at=self._created_at, status=status, **more)

    # --- events

    def _emit(self, kind: str, fields: str) -> str:
        number = self._sequence
        self._sequence = number + 1
        return f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number},{fields}}}\n\n'

    @staticmethod
    def _response_field(response: dict[str, Any]) -> str:
        return f'"response":{dumps(response)}'

    def _deltas(self, kind: str, where: str, text: str, more: str = "") -> str:
        """Write pieces of `text`; `more` goes with the first."""
        written = ""
        for start in range(0, len(text), MAX_PIECE):
            piece = text if len(text) <= MAX_PIECE else text[start : start + MAX_PIECE]
            padding = _padding(len(piece), self._new_id) if self._obfuscate else ""
            logprobs = f',"logprobs":{more or "[]"}' if kind == _TEXT_DELTA else ""
            written += self._emit(kind, f'{where},"delta":{quote(piece)}{logprobs}{padding}')
            more = ""
        return written

    # --- items

    def _add(self, kind: str, **fields: Any) -> tuple[_Place, str]:
        """Begin an item behind the others."""
        index = len(self._places)
        item = {"id": self._new_id(PREFIXES[kind]), "type": kind, **fields}
        place = _place(index, item)
        self._places.append(place)
        return place, self._emit("response.output_item.added", f'"output_index":{index},"item":{dumps(item)}')

    def _done(self, place: _Place, status: str | None) -> str:
        if status is not None:
            place.item["status"] = status
        return self._emit("response.output_item.done", f'"output_index":{place.number},"item":{dumps(place.item)}')

    def _leave(self, phase: str | None = "commentary", *, status: str = "completed") -> str:
        """Close the message or the reasoning that is open; a message that others follow is commentary."""
        written = ""
        if self._message is not None:
            written += self._close_part()
            place, self._message = self._message.place, None
            if phase is not None:
                place.item["phase"] = phase
            written += self._done(place, status)
        if self._reasoning_item is not None:
            place, text = self._reasoning_item.place, "".join(self._reasoning_item.texts)
            self._reasoning_item = None
            where = f'{place.fields},"summary_index":0'
            part = {"type": "summary_text", "text": text}
            place.item["summary"] = [part]
            written += self._emit("response.reasoning_summary_text.done", f'{where},"text":{quote(text)}')
            written += self._emit("response.reasoning_summary_part.done", f'{where},"part":{dumps(part)}')
            written += self._done(place, status)
        return written

    # --- messages

    def _open_part(self, kind: Literal["output_text", "refusal"]) -> str:
        """See to it that a message is open, and in it a part of this kind."""
        written = ""
        message = self._message
        if message is None:
            written += self._leave()
            place, added = self._add("message", role="assistant", status="in_progress", content=[])
            written += added
            # Events hold the item as it is when they are written: the content is put in at the end.
            message = self._message = _Message(place, [])
        if message.kind != kind:
            written += self._close_part()
            part = output_text("") if kind == "output_text" else {"type": "refusal", "refusal": ""}
            message.kind, message.texts = kind, []
            message.where = f'{message.place.fields},"content_index":{len(message.content)}'
            message.content.append(part)
            written += self._emit("response.content_part.added", f'{message.where},"part":{dumps(part)}')
            self._delta_middle = f',{message.where},"delta":'
        if kind == "output_text":
            self.plain = not self._obfuscate and not self.ended
            held, self._held_annotations = self._held_annotations, []
            written += "".join([self._annotate(message, annotation) for annotation in held])
        return written

    def _close_part(self) -> str:
        message = self._message
        self.plain = False
        if message is None or not message.kind:
            return ""
        text = "".join(message.texts)
        part = message.content[-1]
        if message.kind == "output_text":
            part["text"] = text
            fields = f'"text":{quote(text)},"logprobs":{dumps(part["logprobs"])}'
            written = self._emit("response.output_text.done", f"{message.where},{fields}")
        else:
            part["refusal"] = text
            written = self._emit("response.refusal.done", f'{message.where},"refusal":{quote(text)}')
        message.place.item["content"] = message.content
        return written + self._emit("response.content_part.done", f'{message.where},"part":{dumps(part)}')

    def _write_text(
        self,
        text: str,
        logprobs: Any = None,
        addition: Addition | None = None,  # noqa: ARG002 - what is added has no place here
    ) -> str:
        if not text:
            return ""
        written = self._open_part("output_text")
        assert self._message is not None, "it was opened"
        self._message.texts.append(text)
        tokens = flat_logprobs(logprobs)
        self._message.content[-1]["logprobs"] += tokens
        return written + self._deltas(_TEXT_DELTA, self._message.where, text, dumps(tokens) if tokens else "")

    def _write_refusal(self, text: str) -> str:
        written = self._open_part("refusal")
        assert self._message is not None, "it was opened"
        self._message.texts.append(text)
        return written + self._deltas("response.refusal.delta", self._message.where, text)

    def _annotation(self, data: dict[str, Any]) -> str:
        """Put an annotation to the text that is open; one that comes before the text waits for it."""
        annotation = flat_annotation(data)
        if annotation is None:
            return ""
        annotation = json.loads(dumps(annotation))  # as clients see it, whatever objects the agent put in
        if self._message is not None and self._message.kind == "output_text":
            return self._annotate(self._message, annotation)
        self._held_annotations.append(annotation)
        return ""

    def _annotate(self, message: _Message, annotation: dict[str, Any]) -> str:
        known = message.content[-1]["annotations"]
        fields = f'{message.where},"annotation_index":{len(known)},"annotation":{dumps(annotation)}'
        known.append(annotation)
        return self._emit("response.output_text.annotation.added", fields)

    # --- reasoning

    def _write_reasoning(self, text: str, addition: Addition | None) -> str:  # noqa: ARG002
        if not text:
            return ""
        written = ""
        if self._reasoning_item is None:
            written += self._leave()
            place, added = self._add("reasoning", status="in_progress", summary=[])
            self._reasoning_item = _Reasoning(place, [])
            empty = '"summary_index":0,"part":{"type":"summary_text","text":""}'
            written += added + self._emit("response.reasoning_summary_part.added", f"{place.fields},{empty}")
        self._reasoning_item.texts.append(text)
        where = f'{self._reasoning_item.place.fields},"summary_index":0'
        return written + self._deltas("response.reasoning_summary_text.delta", where, text)

    # --- the client's tools

    def _write_call(self, piece: CallPiece, addition: Addition | None) -> str:  # noqa: ARG002
        written = ""
        call = piece.call
        if piece.opens:
            written += self._leave() + self._close_client_call()
            key: Literal["arguments", "input"] = "arguments" if call.client == "function" else "input"
            kind = "function_call" if call.client == "function" else "custom_tool_call"
            fields = {"call_id": call.id, "name": call.name, key: "", "status": "in_progress"}
            place, added = self._add(kind, **fields)
            self._open_call = _ClientCall(place, call, key, [])
            written += added
        client_call = self._open_call
        assert client_call is not None, "a call's first piece opens it"
        if piece.arguments:
            client_call.texts.append(piece.arguments)
            written += self._deltas(_CALL_DELTAS[client_call.key], client_call.place.fields, piece.arguments)
        return written + self._close_client_call() if call.complete else written

    def _close_client_call(self) -> str:
        client_call = self._open_call
        if client_call is None:
            return ""
        self._open_call = None
        place, key = client_call.place, client_call.key
        written = ""
        text = "".join(client_call.texts)
        if key == "input":
            done = f'"input":{quote(text)}'
            kind = "response.custom_tool_call_input.done"
        else:
            if not text:  # clients parse it, and some take the arguments from the deltas alone
                text = "{}"
                written += self._deltas(_CALL_DELTAS[key], place.fields, text)
            done = f'"name":{quote(client_call.call.name)},"arguments":{quote(text)}'
            kind = "response.function_call_arguments.done"
        place.item[key] = text
        return written + self._emit(kind, f"{place.fields},{done}") + self._done(place, "completed")

    # --- the agent's own tools

    def _write_own_call(self, call: Call, event: FunctionCall | FunctionCallDelta, *, named: bool) -> str:  # noqa: ARG002
        own = self._own.get(call.id)
        written = ""
        if own is None:
            if not call.name or self.ended:
                return ""
            written, own = self._open_own(call.id, call.name, call)
        if own is None:
            return written
        written += self._own_arguments(own)
        return written + self._own_arguments_done(own) if call.complete else written

    def _open_own(self, call_id: str, name: str, call: Call | None) -> tuple[str, _OwnCall | None]:
        """Begin the item of a call; there is none when such items are hidden, or when it is one call too many."""
        if self._own_left is not None:
            if self._own_left == 0:
                self._cut()
                return "", None
            self._own_left -= 1
        if self._shown.server_tool_items == "hidden":
            own = _OwnCall(_Place(-1, {}, ""), call, arguments_done=True, done=True)
            self._own[call_id] = own
            return "", own
        written = self._leave()
        place, added = self._add(
            "mcp_call",
            server_label=self._shown.server_label,
            name=name,
            arguments="",
            output=None,
            error=None,
            status="in_progress",
            approval_request_id=None,
        )
        own = self._own[call_id] = _OwnCall(place, call)
        return written + added + self._emit("response.mcp_call.in_progress", place.fields), own

    def _own_arguments(self, own: _OwnCall) -> str:
        if own.call is None or own.arguments_done:
            return ""
        text = self._within_own_limit("".join(own.call.parts[own.sent :]))
        own.sent = len(own.call.parts)
        if not text:
            return ""
        own.texts.append(text)
        return self._deltas("response.mcp_call_arguments.delta", own.place.fields, text)

    def _own_arguments_done(self, own: _OwnCall) -> str:
        if own.arguments_done:
            return ""
        own.arguments_done = True
        text = "".join(own.texts)
        written = ""
        if not text:
            text = "{}"
            written = self._deltas("response.mcp_call_arguments.delta", own.place.fields, text)
        own.place.item["arguments"] = text
        fields = f'{own.place.fields},"arguments":{quote(text)}'
        return written + self._emit("response.mcp_call_arguments.done", fields)

    def _write_own_output(self, event: FunctionCallOutput, call: Call | None) -> str:
        text = event.output if isinstance(event.output, str) else dumps(event.output)
        own = self._own.get(event.id)
        written = ""
        if own is None:
            name = (call.name if call is not None else "") or event.name or "tool"
            written, own = self._open_own(event.id, name, call)
        if own is None or own.done:
            return written
        written += self._own_arguments(own) + self._own_arguments_done(own)
        text = self._within_own_limit(text)
        item = own.place.item
        if event.is_error:
            item["error"] = objects.tool_error(text)
        else:
            item["output"] = text
        status = "failed" if event.is_error else "completed"
        own.done = True
        return written + self._emit(f"response.mcp_call.{status}", own.place.fields) + self._done(own.place, status)

    def _write_own_output_delta(self, event: FunctionCallOutputDelta) -> str:
        """Keep it: the protocol has no event for it, and the item only needs it when nothing better comes."""
        own = self._own.get(event.id)
        if own is not None and not own.done:
            own.outputs.append(self._within_own_limit(event.delta))
        return ""

    def _close_own(self, own: _OwnCall, status: str) -> str:
        """Close a call that has not returned."""
        if own.done:
            return ""
        own.done = True
        if own.outputs:
            own.place.item["output"] = "".join(own.outputs)
        return self._own_arguments(own) + self._own_arguments_done(own) + self._done(own.place, status)

    def _within_own_limit(self, text: str) -> str:
        """Cut what tools were given and returned at the limit of answers; the answer itself goes on."""
        room = max(0, self._max_bytes - self._output_bytes)
        size = utf8_size(text)
        if size > room:
            text = text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
        self._output_bytes += min(size, room)
        return text

    # --- what else an agent may do

    def _interrupt(self, event: Interrupt) -> str:
        if not self._shown.approval_items or event.type not in _APPROVALS:
            return super()._interrupt(event)
        call = self._calls.find(event.tool_call_id) if self._calls is not None and event.tool_call_id else None
        if call is not None and call.client is not None:
            return ""  # the client already has the call that needs the human
        if call is not None and call.name:
            name, arguments = call.name, call.arguments or "{}"
        else:
            name, arguments = self._human_input_tool, dumps({"id": event.id, "prompt": event.prompt})
        written = self._leave()
        place, added = self._add(
            "mcp_approval_request", server_label=self._shown.server_label, name=name, arguments=arguments
        )
        return written + added + self._done(place, None)

    def _active(self, kind: str, activity: str, /, **fields: Any) -> str:  # noqa: ARG002
        return ""

    def _write_raw(self, raw: str) -> str:  # noqa: ARG002
        return ""
