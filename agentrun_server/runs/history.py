"""What was said before: items of conversations and responses, read from the store.

An item is a record of its own. One of a conversation holds the item; one of a response is only a sign that leads to the
response, whose record holds its input and output, so that nothing is kept twice.

A history has a bound. What is too much loses its beginning, up to a place where a history can begin: a message of the
user, or a compaction, which stands for all that came before it.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.items import PREFIXES, Item
from agentrun_server.runs.entry import OPEN
from agentrun_server.storage.contracts import Create, Record, Store

__all__ = [
    "conversation_items",
    "find_previous",
    "item_records",
    "previous_not_found",
    "renamed",
    "resolve_references",
    "response_context",
]

_PLAIN_ID: Final = re.compile(r"[\w-]{1,256}", re.ASCII)
"""What can stand in a path as it is: an item with another id could not be asked for."""


# --- reading


async def conversation_items(store: Store, conversation_id: str, owner: str, *, max_items: int) -> list[Item]:
    """Return the items of a conversation, oldest first; the newest ones when there are more than `max_items`."""
    page = await store.list("item", owner, parent=conversation_id, limit=max_items + 1, order="desc")
    return _newest([dict(record.body) for record in reversed(page.records)], max_items)


async def find_previous(store: Store, response_id: str, owner: str) -> Record:
    """Return the response of `owner` that a request goes on from.

    Raises:
        InvalidRequestError: there is none of that id, or it has not ended.
    """
    record = await store.get("response", response_id, owner)
    if record is None:
        raise previous_not_found(response_id)
    if record.status in OPEN:
        raise InvalidRequestError(
            f"Response with id '{response_id}' has not ended yet.",
            code="previous_response_not_completed",
            param="previous_response_id",
        )
    return record


async def response_context(store: Store, record: Record, owner: str, *, max_items: int) -> list[Item]:
    """Return what an answer that goes on from the response `record` has before it, oldest first.

    That is input and output of the responses before it and its own. For one that was a turn of a conversation it is the
    conversation up to that turn.

    Raises:
        InvalidRequestError: a part of it has been deleted, or never was in the conversation: its turn failed.
    """
    before = record.body["history"]
    known = await store.get_many("response", before, owner) if before else {}
    items: list[Item] = []
    for response_id in before:
        if response_id not in known:
            raise previous_not_found(response_id)
        items = await _with_response(store, items, known[response_id], owner, max_items)
    return _newest(await _with_response(store, items, record, owner, max_items), max_items)


async def _with_response(store: Store, items: list[Item], record: Record, owner: str, max_items: int) -> list[Item]:
    if record.body["conversation"]:
        return await _conversation_until(store, record, owner, max_items)
    return [*items, *_own_items(record)]


async def _conversation_until(store: Store, record: Record, owner: str, max_items: int) -> list[Item]:
    """Return the conversation of the response `record`, up to the last item of its turn that is still there."""
    conversation_id = record.body["conversation"]
    own = await store.get_many("item", [item["id"] for item in _own_items(record)], owner)
    last = max(
        (item for item in own.values() if item.parent == conversation_id), key=lambda item: item.position, default=None
    )
    try:
        if last is None:
            raise KeyError(record.id)
        page = await store.list("item", owner, parent=conversation_id, after=last.id, limit=max_items, order="desc")
    except KeyError:  # or it was deleted just now
        raise InvalidRequestError(
            f"Response with id '{record.id}' cannot be continued: its items are not in its conversation.",
            code="previous_response_not_found",
            param="previous_response_id",
        ) from None
    return [dict(one.body) for one in (*reversed(page.records), last)]


async def resolve_references(store: Store, ids: Sequence[str], owner: str) -> dict[str, Item]:
    """Return those items of `owner` that are there, by id: of responses and of conversations."""
    if not ids:
        return {}
    records = await store.get_many("item", ids, owner)
    parents = sorted({record.parent for record in records.values() if not record.body})
    responses = await store.get_many("response", parents, owner) if parents else {}
    of_responses = {item["id"]: item for response in responses.values() for item in _own_items(response)}
    found = {item_id: dict(record.body) or of_responses.get(item_id) for item_id, record in records.items()}
    return {item_id: item for item_id, item in found.items() if item}


def _own_items(record: Record) -> list[Item]:
    return [*record.body["input"], *record.body["response"]["output"]]


def _newest(items: list[Item], max_items: int) -> list[Item]:
    if len(items) <= max_items:
        return items
    newest = items[len(items) - max_items :]
    begin = next((place for place, item in enumerate(newest) if _begins(item)), len(newest))
    return newest[begin:]


def _begins(item: Item) -> bool:
    kind: str = item["type"]
    return kind == "compaction" or (kind == "message" and item["role"] == "user")


def previous_not_found(response_id: str) -> InvalidRequestError:
    """Return the answer to who goes on from a response that is not there."""
    return InvalidRequestError(
        f"Previous response with id '{response_id}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


# --- writing


def item_records(items: Sequence[Item], conversation_id: str, owner: str) -> list[Create]:
    """Return the changes that add `items` to a conversation."""
    return [
        Create(Record(kind="item", id=item["id"], owner=owner, parent=conversation_id, body=item)) for item in items
    ]


def renamed(items: Sequence[Item], taken: Collection[str], new_id: Callable[[str], str]) -> list[Item]:
    """Return `items`, each with an id of its own: the one it has, unless that is `taken`, comes twice or is odd.

    What in `items` speaks of an item that has another id now speaks of that.
    """
    used = set(taken)
    names: dict[str, str] = {}
    result: list[Item] = []
    for item in items:
        old = new = item["id"]
        if old in used or not _PLAIN_ID.fullmatch(old):
            new = names[old] = new_id(PREFIXES.get(item["type"], "item_"))
        used.add(new)
        result.append({**item, "id": new, **_renamed_request(item, names)})
    return result


def _renamed_request(item: Item, names: Mapping[str, str]) -> dict[str, Any]:
    asked = item.get("approval_request_id")
    return {"approval_request_id": names[asked]} if isinstance(asked, str) and asked in names else {}
