"""Which event may follow which, and how pieces of tool calls become calls.

Two state machines, without I/O, shared by every protocol:

* `Grammar` knows how far a turn is (`FOLLOWS`): an agent may mix text, reasoning, calls and activity in any order, but
  nothing may follow the end of its turn.
* `CallBook` puts pieces of tool calls together and decides whose they are. A call belongs to the client when the client
  declared a tool of that name; then the client runs it. Every other call is the agent's own. Client calls are handed on
  one at a time: clients take the next call's first piece for the end of the one before it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from agentrun_server.core.events import (
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    TypedEvent,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import GrammarError

__all__ = ["FOLLOWS", "Call", "CallBook", "CallPiece", "Grammar", "Kind", "Phase", "ToolKind"]

ToolKind = Literal["function", "custom"]


class Phase(Enum):
    """How far a turn is."""

    ANSWERING = auto()
    """The agent may yield anything."""
    FINISHED = auto()
    """It gave a finish reason; token counts may still come."""
    FAILED = auto()
    """It gave up."""


class Kind(Enum):
    """What an event means for the turn."""

    CONTENT = auto()
    USAGE = auto()
    FINISH = auto()
    FAILURE = auto()


FOLLOWS: Mapping[Phase, Mapping[Kind, Phase]] = {
    Phase.ANSWERING: {
        Kind.CONTENT: Phase.ANSWERING,
        Kind.USAGE: Phase.ANSWERING,
        Kind.FINISH: Phase.FINISHED,
        Kind.FAILURE: Phase.FAILED,
    },
    Phase.FINISHED: {Kind.USAGE: Phase.FINISHED, Kind.FAILURE: Phase.FAILED},
    Phase.FAILED: {},
}
"""What may follow: phase → kind of event → next phase. What is not in the table may not follow."""

_KINDS: Mapping[type[object], Kind] = {Usage: Kind.USAGE, Finish: Kind.FINISH, Failure: Kind.FAILURE}


class Grammar:
    """Follows one turn through `FOLLOWS`."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.ANSWERING

    def accept(self, event: str | TypedEvent) -> Kind:
        """Take the next event of the turn.

        Raises:
            GrammarError: nothing, or not this, may follow.
        """
        kind = _KINDS.get(type(event), Kind.CONTENT)
        following = FOLLOWS[self.phase].get(kind)
        if following is None:
            raise GrammarError(f"{type(event).__name__} may not follow: the turn has {self.phase.name.lower()}")
        self.phase = following
        return kind


@dataclass(slots=True, eq=False)
class Call:
    """A tool call as it comes together."""

    id: str
    name: str = ""
    client: ToolKind | None = None
    """The kind of client tool that is called, or None for a tool of the agent's own."""
    index: int = -1
    """Position among the client's calls, from 0, once it has been handed on."""
    parts: list[str] = field(default_factory=list[str])
    complete: bool = False

    @property
    def arguments(self) -> str:
        """The arguments so far, as JSON text."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a client's call to hand on. `opens` tells the first; its `arguments` may be empty."""

    call: Call
    arguments: str
    opens: bool = False


class CallBook:
    """Collects the calls of one turn.

    Args:
        client_tools: names the client declared, with their kinds.
        new_id: makes an id for a call that has none.
    """

    __slots__ = ("_by_key", "_client_tools", "_last", "_new_id", "_open", "_waiting", "calls", "client_calls")

    def __init__(self, client_tools: Mapping[str, ToolKind], new_id: Callable[[], str]) -> None:
        self._client_tools = client_tools
        self._new_id = new_id
        self._by_key: dict[str | int, Call] = {}
        self._last: Call | None = None
        self._open: Call | None = None
        self._waiting: list[Call] = []
        self.calls: list[Call] = []
        self.client_calls: list[Call] = []
        """Client calls that have been handed on, by index."""

    def find(self, call_id: str) -> Call | None:
        """Return the call with this id."""
        return self._by_key.get(call_id)

    def add(self, event: FunctionCall) -> tuple[Call, bool, list[CallPiece]]:
        """Take a whole call; see `add_delta`. One that came in pieces before is only completed by it."""
        known = self._by_key.get(event.id) if event.id else None
        if known is None:
            call, arguments = self._create(event.id), event.arguments
        else:
            call, arguments = known, "" if known.parts else event.arguments
        named = self._name(call, event.name)
        pieces = self._extend(call, arguments)
        call.complete = True
        self._last = call
        return call, named, pieces

    def add_delta(self, event: FunctionCallDelta) -> tuple[Call, bool, list[CallPiece]]:
        """Take a piece of a call; return the call, whether its name is new, and what can be handed to the client."""
        call = self._find_or_create(event)
        named = bool(event.name) and self._name(call, event.name or "")
        self._last = call
        if not event.arguments and not named:
            return call, False, []
        return call, named, self._extend(call, event.arguments)

    def close(self) -> list[CallPiece]:
        """End the turn: hand on the calls that were waiting for the one before them.

        Raises:
            GrammarError: a call never got a name.
        """
        for call in self.calls:
            if not call.name:
                raise GrammarError("a tool call has no name")
            call.complete = True
        return self._advance()

    def _find_or_create(self, event: FunctionCallDelta) -> Call:
        if event.id:
            call = self._by_key.get(event.id)
            if call is None:
                call = self._create(event.id)
        elif event.index is not None and event.index in self._by_key:
            call = self._by_key[event.index]
            if event.name and _is_complete(call):  # the next model call, from a provider that gives no ids
                call = self._create(None)
        elif event.name or event.index is not None or self._last is None:
            call = self._create(None)
        else:
            call = self._last
        if event.index is not None:
            # A later model call counts from 0 again: the newest call owns the index.
            self._by_key[event.index] = call
        return call

    def _create(self, call_id: str | None) -> Call:
        call = Call(call_id or self._new_id())
        self.calls.append(call)
        self._by_key[call.id] = call
        return call

    def _name(self, call: Call, name: str) -> bool:
        if call.name or not name:
            return False
        call.name = name
        call.client = self._client_tools.get(name)
        if call.client is not None:
            self._waiting.append(call)
        return True

    def _extend(self, call: Call, arguments: str) -> list[CallPiece]:
        if arguments and (call.complete or (call.index >= 0 and call is not self._open)):
            raise GrammarError("a tool call got arguments after it was complete")
        if arguments:
            call.parts.append(arguments)
        if call is self._open:
            return [CallPiece(call, arguments)] if arguments else []
        return self._advance() if call.client is not None else []

    def _advance(self) -> list[CallPiece]:
        """Open waiting calls, in order of appearance, for as long as the one before is complete."""
        pieces: list[CallPiece] = []
        while self._waiting and (self._open is None or _is_complete(self._open)):
            call = self._waiting.pop(0)
            call.index = len(self.client_calls)
            self.client_calls.append(call)
            self._open = call
            pieces.append(CallPiece(call, call.arguments, opens=True))
        return pieces


def _is_complete(call: Call) -> bool:
    """Whether nothing more can belong to `call`: it was given whole, or its arguments are a whole JSON object."""
    if call.complete:
        return True
    arguments = call.arguments.rstrip()
    if not arguments.endswith("}"):
        return False
    try:
        json.loads(arguments)
    except ValueError:
        return False
    call.complete = True
    return True
