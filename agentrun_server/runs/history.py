"""What was said before: items of conversations and responses, read from the store.

An item is a record of its own. One of a conversation holds the item; one of a response is only a sign that leads to the
response, whose record holds its input and output, so that nothing is kept twice.

A history has bounds, in items and in bytes. It is read from its end, as far as there is room; what is too much loses
its beginning, up to a place where a history can begin: a message of the user, or a compaction, which stands for all
that came before it. A response names the `_LINKS` responses before it, and the oldest of them those before that: did
each name them all, a conversation of n turns would need room for n * n.
"""

import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.items import MAX_BYTES, PREFIXES, Item, refuse_size, size_of
from agentrun_server.runs.entry import OPEN
from agentrun_server.runs.item_record import KIND as ITEM
from agentrun_server.runs.item_record import get_item_records, item_record
from agentrun_server.storage.contracts import Create, Record, Store

__all__ = [
    "conversation_items",
    "find_previous",
    "is_kept",
    "item_records",
    "links",
    "previous_not_found",
    "renamed",
    "resolve_references",
    "response_context",
    "with_results",
    "without_result",
]

_LINKS: Final = 64
_TOGETHER: Final = 8
"""Records that are read together: each has up to a whole request and a whole answer."""
_MAX_READ: Final = 8 * MAX_BYTES
"""Bytes of records that are read for one history, or for the items a request refers to."""
_PLAIN_ID: Final = re.compile(r"[\w-]{1,256}", re.ASCII)
"""What can stand in a path as it is: an item with another id could not be asked for."""


# --- reading


async def conversation_items(store: Store, conversation_id: str, owner: str, *, max_items: int) -> list[Item]:
    """Return the items of a conversation, oldest first; the newest ones when there are more than there is room for."""
    tail = _Tail(max_items)
    await _take_conversation(tail, store, conversation_id, owner, None)
    return tail.items


async def find_previous(store: Store, response_id: str, owner: str) -> Record:
    """Return the response of `owner` that a request goes on from.

    Raises:
        InvalidRequestError: there is none of that id, or it has not ended.
    """
    record = await store.get("response", response_id, owner)
    if record is None or not is_kept(record):
        raise previous_not_found(response_id)
    if record.status in OPEN:
        raise InvalidRequestError(
            f"Response with id '{response_id}' has not ended yet.",
            code="previous_response_not_completed",
            param="previous_response_id",
        )
    return record


def is_kept(record: Record) -> bool:
    """Tell whether a response is to be found: one with ``store: false`` has a record only while its turn is taken."""
    return record.body["response"].get("store") is not False


def links(record: Record) -> list[str]:
    """Return what the record of a response that goes on from `record` says of the responses before it."""
    return [*record.body["history"], record.id][-_LINKS:]


async def response_context(
    store: Store, record: Record, owner: str, *, max_items: int, used: Callable[[Record], None] | None = None
) -> list[Item]:
    """Return what an answer that goes on from the response `record` has before it, oldest first.

    That is input and output of the responses before it and its own. For one that was a turn of a conversation it is the
    conversation up to that turn. `used` is called with each response that it is made of.

    Raises:
        InvalidRequestError: a part of it has been deleted, or never was in the conversation: its turn failed.
    """
    tail = _Tail(max_items)
    async with aclosing(_chain(store, record, owner)) as chain:
        async for one in chain:
            if used is not None:
                used(one)
            if one.body["conversation"]:
                await _take_conversation_until(tail, store, one, owner)
                break
            tail.take(_own_items(one), one.size)
            if tail.is_full:
                break
    return tail.items


async def _chain(store: Store, record: Record, owner: str) -> AsyncGenerator[Record, None]:
    """Yield `record` and the responses before it, newest first."""
    yield record
    before: list[str] = list(record.body["history"])
    while before:
        some = before[-_TOGETHER:]
        known = await store.get_many("response", some, owner)
        for response_id in reversed(some):
            if response_id not in known:
                raise previous_not_found(response_id)
            yield known[response_id]
        # What is before the oldest that a record names, that one says.
        before = before[:-_TOGETHER] or list(known[some[0]].body["history"])


async def _take_conversation(tail: "_Tail", store: Store, conversation_id: str, owner: str, after: str | None) -> None:
    """Take the items of a conversation before the item `after`, newest first; without it from the last one on.

    Raises:
        KeyError: it has no item `after`.
    """
    first = after
    while not tail.is_full:
        try:
            page = await store.list(ITEM, owner, parent=conversation_id, after=after, limit=tail.room + 1, order="desc")
        except KeyError:
            if after == first:
                raise
            return tail.cut()  # it was deleted between two pages
        for record in page.records:
            tail.take([dict(record.body)], record.size)
        if not page.has_more:
            return None
        after = page.records[-1].id
    return None


async def _take_conversation_until(tail: "_Tail", store: Store, record: Record, owner: str) -> None:
    """Take the conversation of the response `record`, up to the last item of its turn that is still there."""
    conversation_id = record.body["conversation"]
    last: Record | None = None
    for some in _few([item["id"] for item in _own_items(record)]):
        for item in (await get_item_records(store, some, owner)).values():
            if item.parent == conversation_id and (last is None or item.position > last.position):
                last = item
    try:
        if last is None:
            raise KeyError(record.id)
        tail.take([dict(last.body)], last.size)
        await _take_conversation(tail, store, conversation_id, owner, last.id)
    except KeyError:  # or it was deleted just now
        raise InvalidRequestError(
            f"Response with id '{record.id}' cannot be continued: its items are not in its conversation.",
            code="previous_response_not_found",
            param="previous_response_id",
        ) from None


async def resolve_references(store: Store, ids: Sequence[str], owner: str, *, param: str = "input") -> dict[str, Item]:
    """Return those items of `owner` that are there, by id: of responses and of conversations.

    Raises:
        InvalidRequestError: they are too large together, or so are the responses they are in.
    """
    found: dict[str, Item] = {}
    parents: dict[str, set[str]] = {}
    size = read = 0
    for some in _few(ids):
        for item_id, record in (await get_item_records(store, some, owner)).items():
            if record.body:
                found[item_id] = dict(record.body)
                size += record.size
            else:
                parents.setdefault(record.parent, set()).add(item_id)
        if size > MAX_BYTES:
            refuse_size(param)
    for some in _few(sorted(parents)):
        for response in (await store.get_many("response", some, owner)).values():
            read += response.size
            for item in _own_items(response):
                if item["id"] in parents[response.id]:
                    found[item["id"]] = item
                    size += size_of(item)
        if size > MAX_BYTES or read > _MAX_READ:
            refuse_size(param)
    return found


def _few(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield `ids`, as many at a time as may be read together."""
    return (ids[start : start + _TOGETHER] for start in range(0, len(ids), _TOGETHER))


def _own_items(record: Record) -> list[Item]:
    return [*record.body["input"], *record.body["response"]["output"]]


class _Tail:
    """The end of a history, which is read from its end, as far as there is room."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._newest_first: list[Item] = []
        self._size = self._read = 0
        self.is_full = False
        """There is more than there is room for."""

    @property
    def room(self) -> int:
        """How many items more there is room for."""
        return self._max_items - len(self._newest_first)

    def take(self, items: Sequence[Item], read: int) -> None:
        """Take items that stand before those that were taken; `read` bytes of records had to be read for them."""
        if self.is_full:
            return
        # What the answer goes on from is taken however large it is: it fitted into a request and an answer.
        bounded = bool(self._newest_first)
        self._size += sum(map(size_of, items))
        self._read += read
        if bounded and (self._size > MAX_BYTES or self._read > _MAX_READ):
            self.cut()
            return
        self._newest_first += reversed(items)
        self.is_full = self.room < 0

    def cut(self) -> None:
        """Take nothing more: what is before was too much, or is gone."""
        self.is_full = True

    @property
    def items(self) -> list[Item]:
        """What was taken, oldest first. When that is not all, it begins where a history can begin."""
        items = self._newest_first[: self._max_items][::-1]
        if not self.is_full:
            return items
        begin = next((place for place, item in enumerate(items) if _begins(item)), len(items))
        return items[begin:]


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


def without_result(items: Sequence[Item]) -> list[str]:
    """Return the ids of calls of the agent's own tools that a client sent back without what they returned.

    Some clients do: they expect the server to know it.
    """
    return [item["id"] for item in items if _lacks_result(item)]


def with_results(items: Sequence[Item], known: Mapping[str, Item]) -> list[Item]:
    """Return `items` with those that lack their result as they are `known`.

    Raises:
        InvalidRequestError: what they lacked is larger than `MAX_BYTES` together.
    """
    found: list[Item] = []
    left = MAX_BYTES
    for item in items:
        whole = known.get(item["id"]) if _lacks_result(item) else None
        if whole is not None:
            left -= size_of(whole)
            if left < 0:
                refuse_size()
        found.append(whole or item)
    return found


def _lacks_result(item: Item) -> bool:
    return item["type"] == "mcp_call" and item["output"] is None and item["error"] is None


# --- writing


def item_records(items: Sequence[Item], conversation_id: str, owner: str) -> list[Create]:
    """Return the changes that add `items` to a conversation."""
    return [item_record(owner, conversation_id, item["id"], item) for item in items]


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
            new = new_id(PREFIXES.get(item["type"], "item_"))
        if item["type"] == "mcp_approval_request":
            names[old] = new
        used.add(new)
        result.append({**item, "id": new, **_renamed_request(item, names)})
    return result


def _renamed_request(item: Item, names: Mapping[str, str]) -> dict[str, Any]:
    asked = item.get("approval_request_id")
    return {"approval_request_id": names[asked]} if isinstance(asked, str) and asked in names else {}
