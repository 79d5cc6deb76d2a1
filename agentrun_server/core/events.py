"""What an agent can say.

A piece of answer text is a plain `str`. Everything else is one of the frozen dataclasses below, or an
`AgentEvent(event=EventType.X, data={…})` of the AgentRun SDK, which `agentrun_server.invoker.coerce` turns into one of
them. Protocol encoders see only `str` and `TypedEvent`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias, TypedDict

from agentrun_server.core.usage import Usage

__all__ = [
    "AgentEvent",
    "AgentResult",
    "Annotation",
    "Custom",
    "EventType",
    "Failure",
    "Finish",
    "FinishReason",
    "FunctionCall",
    "FunctionCallDelta",
    "FunctionCallOutput",
    "FunctionCallOutputDelta",
    "Interrupt",
    "MergeOptions",
    "Progress",
    "Raw",
    "ReasoningDelta",
    "RefusalDelta",
    "StateUpdate",
    "Step",
    "TextDelta",
    "TypedEvent",
    "Usage",
]

FinishReason: TypeAlias = Literal["stop", "length", "content_filter"]


class MergeOptions(TypedDict, total=False):
    """How an event's `addition` is merged into the fields the protocol writes itself."""

    concat_list: bool
    """Lists are joined instead of replaced."""
    no_new_field: bool
    """Only fields that are there already are replaced."""
    ignore_empty_list: bool
    """An empty list replaces nothing."""


@dataclass(frozen=True, slots=True)
class Addition:
    """Extra fields for one event's delta on the wire, and how to merge them.

    Of the fields the protocol writes itself, only the text of the event can be replaced (``content``, for reasoning
    ``reasoning_content``). Clients join what they find under one name: strings are appended, numbers added up.
    """

    fields: Mapping[str, Any]
    options: MergeOptions


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Answer text that carries more than text; without `logprobs` or `addition`, yield a plain `str`."""

    text: str
    logprobs: Mapping[str, Any] | None = None
    """OpenAI's ``logprobs`` object, sent only to callers who asked for it."""
    addition: Addition | None = None


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning; shown apart from the answer, never in it."""

    text: str
    addition: Addition | None = None


@dataclass(frozen=True, slots=True)
class RefusalDelta:
    """A piece of a refusal, sent instead of answer text."""

    text: str


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A whole tool call. `arguments` is JSON text or a value to be encoded; without `id` one is made."""

    name: str
    arguments: str = "{}"
    id: str | None = None
    addition: Addition | None = None


@dataclass(frozen=True, slots=True)
class FunctionCallDelta:
    """A piece of a tool call. The first piece of a call carries its name; `id` or `index` tells calls apart.

    A piece with neither belongs to the call of the piece before it.
    """

    arguments: str = ""
    name: str | None = None
    id: str | None = None
    index: int | None = None
    addition: Addition | None = None


@dataclass(frozen=True, slots=True)
class FunctionCallOutput:
    """What a tool that the agent ran itself returned. `output` is text or anything JSON can hold."""

    id: str
    output: Any
    name: str | None = None
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class FunctionCallOutputDelta:
    """A piece of a tool's output, while it runs."""

    id: str
    delta: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """A source or other annotation of the answer, in OpenAI's shape."""

    data: Mapping[str, Any]

    @classmethod
    def url_citation(cls, url: str, title: str = "", start_index: int = 0, end_index: int = 0) -> "Annotation":
        """Build the annotation every client understands: a cited page, and the part of the answer it supports."""
        citation = {"url": url, "title": title, "start_index": start_index, "end_index": end_index}
        return cls({"type": "url_citation", "url_citation": citation})


@dataclass(frozen=True, slots=True)
class Finish:
    """Why the answer ends, when that is not simply ``stop``. Nothing may follow but `Usage`."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """The agent's state: a whole `snapshot`, or a `delta` as JSON Patch (RFC 6902)."""

    snapshot: Any = None
    delta: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The agent needs a human: a confirmation, a choice, an input. It usually ends its turn after this."""

    id: str
    prompt: str = ""
    type: str = "input"
    tool_call_id: str | None = None
    options: Sequence[Any] | None = None
    schema: Mapping[str, Any] | None = None
    default: Any = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A named step of the agent's work begins or ends."""

    name: str
    status: Literal["started", "finished"] = "started"


@dataclass(frozen=True, slots=True)
class Progress:
    """A line that tells the user what is going on; `progress` runs from 0 to 1."""

    label: str
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Custom:
    """An event of the agent's own, for clients that know it."""

    name: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that is written into the stream as it is: whole server-sent events. The agent answers for its form."""

    raw: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The agent gives up. Message and code are shown to the caller; nothing may follow."""

    message: str
    code: str = "agent_error"


TypedEvent: TypeAlias = (
    TextDelta
    | ReasoningDelta
    | RefusalDelta
    | FunctionCall
    | FunctionCallDelta
    | FunctionCallOutput
    | FunctionCallOutputDelta
    | Annotation
    | Usage
    | Finish
    | StateUpdate
    | Interrupt
    | Step
    | Progress
    | Custom
    | Raw
    | Failure
)


class EventType(StrEnum):
    """Event types of the AgentRun SDK, with the keys of `AgentEvent.data`."""

    TEXT = "TEXT"
    """``delta``"""
    REASONING = "REASONING"
    """``delta``"""
    TOOL_CALL = "TOOL_CALL"
    """``id``, ``name``, ``args``: a whole call"""
    TOOL_CALL_CHUNK = "TOOL_CALL_CHUNK"
    """``id``, ``name``, ``args_delta``"""
    TOOL_RESULT = "TOOL_RESULT"
    """``id``, ``result``"""
    TOOL_RESULT_CHUNK = "TOOL_RESULT_CHUNK"
    """``id``, ``delta``"""
    ERROR = "ERROR"
    """``message``, ``code``"""
    STATE = "STATE"
    """``snapshot`` or ``delta``"""
    HITL = "HITL"
    """``id``, ``tool_call_id``, ``type``, ``prompt``, ``options``, ``default``, ``timeout``, ``schema``"""
    CUSTOM = "CUSTOM"
    """``name``, ``value``"""
    RAW = "RAW"
    """``raw``"""


@dataclass(slots=True)
class AgentEvent:
    """An event in the AgentRun SDK's form. `EventType` names the keys of `data`.

    `addition` holds extra fields for the delta on the wire; `addition_merge_options` says how they are merged.
    """

    event: EventType
    data: dict[str, Any] = field(default_factory=dict)
    addition: dict[str, Any] | None = None
    addition_merge_options: MergeOptions | None = None

    def __post_init__(self) -> None:
        self.event = EventType(self.event)


AgentResult = AgentEvent
"""Older name of `AgentEvent` in the AgentRun SDK."""
