"""What a response leaves in the store: its record, its items, and its turn of a conversation.

The record of a response (kind ``response``) holds the wire's object and the input it was made from. Each of its items
that got its id here can be referred to later, by a record of its own (kind ``item``): below the conversation that the
response continues, where it is the item itself, else below the response, where it only says that the item is in there.
Items with ids of the client's making come again and again with each request, and are not found by id.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentrun_server.protocols.openai_responses.items import PREFIXES, Item
from agentrun_server.runs.entry import Outcome, RecordEntry
from agentrun_server.runs.item_record import item_record
from agentrun_server.runs.run import RunStatus
from agentrun_server.runs.turns import released
from agentrun_server.runs.turns import topic as turn_topic
from agentrun_server.storage.contracts import Change, Lease, Update

__all__ = ["KIND", "ResponseEntry", "ended_body"]

KIND: Final = "response"

_KEPT: Final = frozenset({RunStatus.COMPLETED, RunStatus.INCOMPLETE})
"""A conversation goes on from answers that came to an end; others are seen in their response alone."""


@dataclass(slots=True, kw_only=True)
class ResponseEntry(RecordEntry):
    """The record of one response and its companions; an `Entry`."""

    kind: str = KIND
    input: Sequence[Item] = ()
    made: frozenset[str] = frozenset()
    """Ids of input items that were made here."""
    conversation: str = ""
    turn: str = ""
    """Who has the turn of the conversation: see `agentrun_server.runs.turns`."""
    new_id: Callable[[str], str]
    _renamed: bool = field(default=False)
    _without_conversation: bool = field(default=False)

    @property
    def wakes(self) -> Sequence[str]:
        """Topics of those who wait for the end."""
        return (turn_topic(self.conversation),) if self.turn else ()

    def proceed(self, worker: str, fence: Lease | None) -> list[Change]:
        """Return what tells that a response which was queued runs now, and that `worker` has it."""
        response = {**self.body["response"], "status": RunStatus.IN_PROGRESS.value}
        return [
            Update(
                kind=self.kind,
                id=self.id,
                body={**self.body, "response": response, "worker": worker},
                status=RunStatus.IN_PROGRESS.value,
                expect_status={RunStatus.QUEUED.value},
                fence=fence,
            )
        ]

    def end(self, outcome: Outcome, fence: Lease | None, now: float) -> list[Change]:
        """Return what ends the record, with its items and the turn of its conversation."""
        # `super()` does not work in a dataclass with slots.
        changes = RecordEntry.end(self, outcome, fence, now)
        output: Sequence[Item] = outcome.body["response"]["output"]
        if not self.conversation:
            made = [item for item in self.input if item["id"] in self.made]
            return changes + self._items(self.id, (*made, *output), pointers=True)
        if self._without_conversation:
            return changes
        if outcome.status in _KEPT:
            items = [item if item["id"] in self.made else self._own(item) for item in self.input]
            changes += self._items(self.conversation, (*items, *output), pointers=False)
        if self.turn:
            changes.append(released("conversation", self.conversation, self.turn))
        return changes

    def give_way(self) -> bool:
        """First give items of the client's fresh ids, then leave the conversation out: it has been deleted."""
        if not self.conversation or self._without_conversation:
            return False
        self._without_conversation, self._renamed = self._renamed, True
        return True

    def _own(self, item: Item) -> Item:
        return {**item, "id": self.new_id(PREFIXES.get(item["type"], "item_"))} if self._renamed else item

    def _items(self, parent: str, items: Iterable[Item], *, pointers: bool) -> list[Change]:
        unique = {item["id"]: item for item in items}
        return [
            item_record(self.owner, parent, identity, {} if pointers else dict(item))
            for identity, item in unique.items()
        ]


def ended_body(body: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of a response says when it has ended: nothing that only a run needs."""
    kept = ("input", "history", "conversation", "background", "streamed")
    return {"response": response, **{key: body[key] for key in kept}}
