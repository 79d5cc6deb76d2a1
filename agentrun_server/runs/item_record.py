"""The record of an item (kind ``item``): below a conversation it is the item itself, below a response a sign that leads
there, without a body.

Its id in the store is not the item's own, since clients choose those: one that is another record's id would take what
belongs to that record with it when it is deleted, and one that is taken would tell what others have. So it begins with
the owner, and has a slash, which no other record's id has.
"""

from collections.abc import Collection, Mapping
from typing import Final

from agentrun_server.protocols.openai_responses.items import Item
from agentrun_server.storage.contracts import Create, Record, Store

__all__ = ["KIND", "get_item_records", "item_id", "item_key", "item_record"]

KIND: Final = "item"


def item_key(owner: str, item: str) -> str:
    """Return the id in the store of the item `item` of `owner`."""
    return f"{owner}/{item}"


def item_id(record: Record) -> str:
    """Return the id that the item of a record has for its owner."""
    return record.id.removeprefix(f"{record.owner}/")


def item_record(owner: str, parent: str, item: str, body: Item) -> Create:
    """Return the change that makes the record of an item; `body` is empty below a response."""
    return Create(Record(kind=KIND, id=item_key(owner, item), owner=owner, parent=parent, body=body))


async def get_item_records(store: Store, items: Collection[str], owner: str) -> Mapping[str, Record]:
    """Return those records of items of `owner` that are there, by the item's id."""
    records = await store.get_many(KIND, [item_key(owner, item) for item in items], owner)
    return {item_id(record): record for record in records.values()}
