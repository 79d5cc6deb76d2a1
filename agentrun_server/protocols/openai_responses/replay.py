"""Reading the log of a response: what was said, how far each item is, and what is missing until all are done.

The log outlives the worker that wrote it. Whoever shows the response meanwhile, ends it, or runs the agent once more
reads here where it stands. Any beginning of a stream can be read, also one that ends between two events that an encoder
writes together.

An item goes through the stages of `Stage`; `_STAGES` says which event leads to which. What closes an item is what
`ResponseEncoder` would have written: incomplete, with what there is of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from agentrun_server.core.usage import utf8_size
from agentrun_server.errors import APIError
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.items import Item
from agentrun_server.protocols.openai_responses.parts import output_text

__all__ = ["LoggedItem", "Missing", "ResponseLog", "Stage", "output_so_far", "read_log"]

Missing = tuple[str, dict[str, Any]]
"""An event that is missing: its type, and its fields without the number."""

_CLIENT_CALLS = frozenset({"function_call", "custom_tool_call"})


class Stage(IntEnum):
    """How far an item is; a message that gets another part is `OPEN` again."""

    ADDED = 0
    OPEN = 1
    """It has a part that grows; a call of the agent's own tool has begun."""
    TOLD = 2
    """Its text, its arguments or its input are whole."""
    SHUT = 3
    """The part is done; the agent's own tool has returned."""
    DONE = 4


_STAGES: Mapping[str, Stage] = {
    "response.content_part.added": Stage.OPEN,
    "response.output_text.done": Stage.TOLD,
    "response.refusal.done": Stage.TOLD,
    "response.content_part.done": Stage.SHUT,
    "response.reasoning_summary_part.added": Stage.OPEN,
    "response.reasoning_summary_text.done": Stage.TOLD,
    "response.reasoning_summary_part.done": Stage.SHUT,
    "response.function_call_arguments.done": Stage.TOLD,
    "response.custom_tool_call_input.done": Stage.TOLD,
    "response.mcp_call.in_progress": Stage.OPEN,
    "response.mcp_call_arguments.done": Stage.TOLD,
    "response.mcp_call.completed": Stage.SHUT,
    "response.mcp_call.failed": Stage.SHUT,
    "response.output_item.done": Stage.DONE,
}
"""Type of event → what its item has reached. Deltas and annotations change nothing."""


@dataclass(slots=True)
class LoggedItem:
    """An item of the log."""

    number: int
    item: Item
    """As far as it was told."""
    stage: Stage = Stage.ADDED
    pieces: list[str] = field(default_factory=list[str])
    """The deltas of what grows."""

    @property
    def kind(self) -> str:
        """The type of the item."""
        return str(self.item["type"])

    @property
    def is_cut_call(self) -> bool:
        """It is a call of a client's tool whose end was never told; nobody must run half of one."""
        return self.kind in _CLIENT_CALLS and self.stage is Stage.ADDED

    def take(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take the next event of the item, which is not a delta."""
        item = self.item
        match kind:
            case "response.content_part.added":
                item["content"].append(event["part"])
                self.pieces = []
            case "response.reasoning_summary_part.added":
                item["summary"].append(event["part"])
            case "response.output_text.annotation.added":
                item["content"][-1]["annotations"].append(event["annotation"])
            case "response.mcp_call.completed" | "response.mcp_call.failed":
                item["status"] = kind.removeprefix("response.mcp_call.")
            case "response.output_item.done":
                self.item = event["item"]
        stage = _STAGES.get(kind)
        if stage is Stage.TOLD:
            self.settle()
        if stage is not None:
            self.stage = stage

    def take_delta(self, event: Mapping[str, Any]) -> None:
        """Take the next piece of what grows."""
        self.pieces.append(event["delta"])
        if event.get("logprobs"):
            self.item["content"][-1]["logprobs"] += event["logprobs"]

    def settle(self) -> None:
        """Put into the item what the pieces say."""
        text = "".join(self.pieces)
        match self.item:
            case {"type": "message", "content": [*_, part]}:
                part["refusal" if part["type"] == "refusal" else "text"] = text
            case {"type": "reasoning", "summary": [*_, part]}:
                part["text"] = text
            case {"type": "function_call" | "mcp_call"}:
                self.item["arguments"] = text
            case {"type": "custom_tool_call"}:
                self.item["input"] = text
            case _:
                pass  # nothing of it grows, or nothing has begun to

    def close(self, phase: str | None = None) -> list[Missing]:
        """Finish the item, which is not done, as it is; return the events for it. A message gets `phase`.

        A call of a client's tool that was cut gets none: it is only seen in the response. One whose arguments are whole
        is done, and so is a call whose tool has returned, though what it returned was not written down.
        """
        where = {"item_id": self.item["id"], "output_index": self.number}
        missing: list[Missing] = []
        match self.kind:
            case "message":
                missing = self._close_part(where)
                if phase is not None:
                    self.item["phase"] = phase
                self.item["status"] = "incomplete"
            case "reasoning":
                missing = self._close_summary(where)
                self.item["status"] = "incomplete"
            case "mcp_call":
                missing = self._close_own_call(where)
            case kind if kind in _CLIENT_CALLS:
                if self.is_cut_call:
                    self.item["status"] = "incomplete"
                    return []
                self.item["status"] = "completed"
            case _:
                pass
        self.stage = Stage.DONE
        return [*missing, ("response.output_item.done", {"output_index": self.number, "item": self.item})]

    def _close_part(self, where: dict[str, Any]) -> list[Missing]:
        missing: list[Missing] = []
        content: list[dict[str, Any]] = self.item["content"]
        if self.stage is Stage.ADDED:
            content.append(output_text(""))
            missing.append(("response.content_part.added", {**where, "content_index": 0, "part": output_text("")}))
        part = content[-1]
        where = {**where, "content_index": len(content) - 1}
        if self.stage < Stage.TOLD:
            if part["type"] == "refusal":
                missing.append(("response.refusal.done", {**where, "refusal": part["refusal"]}))
            else:
                told = {"text": part["text"], "logprobs": part["logprobs"]}
                missing.append(("response.output_text.done", {**where, **told}))
        if self.stage < Stage.SHUT:
            missing.append(("response.content_part.done", {**where, "part": part}))
        return missing

    def _close_summary(self, where: dict[str, Any]) -> list[Missing]:
        missing: list[Missing] = []
        summary: list[dict[str, Any]] = self.item["summary"]
        where = {**where, "summary_index": 0}
        if self.stage is Stage.ADDED:
            empty = {"type": "summary_text", "text": ""}
            summary.append(dict(empty))
            missing.append(("response.reasoning_summary_part.added", {**where, "part": empty}))
        if self.stage < Stage.TOLD:
            missing.append(("response.reasoning_summary_text.done", {**where, "text": summary[0]["text"]}))
        if self.stage < Stage.SHUT:
            missing.append(("response.reasoning_summary_part.done", {**where, "part": summary[0]}))
        return missing

    def _close_own_call(self, where: dict[str, Any]) -> list[Missing]:
        missing: list[Missing] = []
        if self.stage is Stage.ADDED:
            missing.append(("response.mcp_call.in_progress", where))
        if self.stage < Stage.TOLD:
            if not self.item["arguments"]:
                self.item["arguments"] = "{}"
                missing.append(("response.mcp_call_arguments.delta", {**where, "delta": "{}"}))
            missing.append(("response.mcp_call_arguments.done", {**where, "arguments": self.item["arguments"]}))
        match self.item["status"]:
            case "completed":
                self.item["output"] = ""
            case "failed":
                self.item["error"] = objects.tool_error("")
            case _:
                self.item["status"] = "incomplete"
        return missing


@dataclass(slots=True)
class ResponseLog:
    """What a log says."""

    status: Literal["", "queued", "in_progress"] = ""
    """What was last told of a response that has not ended; empty when the log is."""
    items: list[LoggedItem] = field(default_factory=list[LoggedItem])
    text_bytes: int = 0
    """As in `Turn`: bytes of answer text, and of what the client's tools were given."""
    reasoning_bytes: int = 0
    own_bytes: int = 0
    """Bytes of what the agent's own tools were given and returned."""
    error: dict[str, Any] | None = None
    """The ``error`` of the response, when it was told: nothing but `response.failed` may follow."""
    response: dict[str, Any] | None = None
    """The whole response, when it has ended."""

    @property
    def left_open(self) -> list[LoggedItem]:
        """The items that are not done, in the order in which they are closed: calls of own tools last."""
        left = [logged for logged in self.items if logged.stage is not Stage.DONE]
        return sorted(left, key=lambda logged: logged.kind == "mcp_call")

    @property
    def is_whole(self) -> bool:
        """The agent has said all it had to say: only the end is missing."""
        return any(logged.item.get("phase") == "final_answer" for logged in self.items)

    @property
    def calls_client(self) -> bool:
        """A tool of the client's was called: the client may run it already, and another attempt would call it again."""
        return any(logged.kind in _CLIENT_CALLS for logged in self.items)

    @property
    def obstacle(self) -> str:
        """Why nothing more of an agent may follow, though the response has not ended; empty when it may.

        A call of a client's tool that was cut can be neither taken back nor made whole, and clients run the calls of a
        completed response whatever their status.
        """
        if self.error is not None:
            return "it has failed"
        if any(logged.is_cut_call for logged in self.items):
            return "a call of the client's was cut"
        done = [logged.item for logged in self.items if logged.kind == "message" and logged.stage is Stage.DONE]
        if any("phase" not in message for message in done):
            return "it was being ended"
        return ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Take the next event."""
        kind = event["type"]
        if kind.endswith(".delta"):
            self._count(kind, utf8_size(event["delta"]))
            self.items[event["output_index"]].take_delta(event)
        elif "response" in event:
            response = event["response"]
            if response["status"] in ("queued", "in_progress"):
                self.status = response["status"]
            else:
                self.response = response
        elif kind == "error":
            error = APIError(event["message"], type=event["error"]["type"])
            self.error = objects.response_error(error)
        elif kind == "response.output_item.added":
            self.items.append(LoggedItem(event["output_index"], event["item"]))
        else:
            self.items[event["output_index"]].take(kind, event)
            if kind == "response.output_item.done":
                self.own_bytes += utf8_size(_returned(event["item"]))

    def _count(self, kind: str, size: int) -> None:
        match kind:
            case "response.reasoning_summary_text.delta":
                self.reasoning_bytes += size
            case "response.mcp_call_arguments.delta":
                self.own_bytes += size
            case _:
                self.text_bytes += size


def read_log(events: Sequence[bytes]) -> ResponseLog:
    """Read the events of a response from the first on, as `split_events` gives them."""
    log = ResponseLog()
    for event in events:
        log.take(json.loads(event.partition(b"\ndata: ")[2]))
    for logged in log.left_open:
        logged.settle()
    return log


def output_so_far(
    events: Sequence[bytes], *, status: Literal["in_progress", "incomplete"] = "in_progress"
) -> list[Item]:
    """Return the items of a log. Those that are not done have what they have so far.

    Args:
        events: the log from its first event on.
        status: ``in_progress`` for a response that still runs; ``incomplete`` for one of which no more will come: its
            items are then those with which `ResponseEncoder.cancel` ends it.
    """
    log = read_log(events)
    if log.response is not None:
        output: list[Item] = log.response["output"]
        return output
    if status == "incomplete":
        for logged in log.left_open:
            logged.close()
    return [logged.item for logged in log.items]


def _returned(item: Item) -> str:
    """Return what a call of the agent's own tool returned; empty for every other item."""
    match item:
        case {"type": "mcp_call", "output": str(output)}:
            return output
        case {"type": "mcp_call", "error": {"content": [{"text": str(text)}]}}:
            return text
        case _:
            return ""
