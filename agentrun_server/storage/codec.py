"""How records and events become columns: the same in every store, so that all give back the same.

Bodies are stored as JSON in ASCII, in a column of text that the database does not look into: a model may say NUL or
half of a surrogate pair, which databases refuse. So lists are filtered by members of the body here, batch by batch.
A page of a list has a bound in bytes too (`PAGE_BYTES`): a hundred bodies may be a gigabyte.
"""

import json
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, assert_never

from agentrun_server.storage.contracts import AppendEvents, Change, Create, Delete, Event, Page, Record, Update

__all__ = [
    "PAGE_BYTES",
    "check_text",
    "dump_body",
    "encode",
    "fill_page",
    "first_events",
    "is_text",
    "load_body",
    "pack",
    "unpack",
]

_LENGTH: Final = struct.Struct(">I")
_BATCH: Final = 100
PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of bodies behind which a page ends."""


def dump_body(body: Mapping[str, Any]) -> str:
    """Return `body` as JSON in ASCII."""
    return json.dumps(body, separators=(",", ":"))


def load_body(text: str) -> dict[str, Any]:
    """Return what `dump_body` made `text` from."""
    body: dict[str, Any] = json.loads(text)
    return body


def pack(data: Sequence[bytes]) -> bytes:
    """Return events as one piece: each is its length in four bytes, then its bytes."""
    return b"".join(part for piece in data for part in (_LENGTH.pack(len(piece)), piece))


def unpack(piece: bytes) -> Iterator[bytes]:
    """Yield the events of a piece."""
    position = 0
    while position < len(piece):
        (length,) = _LENGTH.unpack_from(piece, position)
        position += _LENGTH.size
        yield piece[position : position + length]
        position += length


def first_events(pieces: Iterable[tuple[int, bytes]], after: int, limit: int, max_bytes: int | None) -> list[Event]:
    """Return the events of numbered `pieces` behind the number `after`, in the bounds of `Store.events`."""
    found: list[Event] = []
    size = 0
    for first, piece in pieces:
        for number, data in enumerate(unpack(piece), first):
            if len(found) >= limit or (max_bytes is not None and size >= max_bytes):
                return found
            if number > after:
                found.append(Event(number, data))
                size += len(data)
    return found


def is_text(*texts: str | None) -> bool:
    """Tell whether every database can store `texts` outside of a body; None is nothing to store."""
    try:
        return not any("\0" in text for text in texts if text is not None and (text.isascii() or text.encode()))
    except UnicodeEncodeError:
        return False


def check_text(*texts: str) -> None:
    """Refuse what is not `is_text`.

    Raises:
        ValueError: there is NUL or a lone surrogate in one.
    """
    if not is_text(*texts):
        raise ValueError("ids, names, owners and states are text without NUL and lone surrogates")


def encode(change: Change) -> Any:
    """Return the body of `change` as text, or its events as one piece; None when it has neither.

    Called before the first wait of a commit, so that nobody changes a body while it waits.

    Raises:
        ValueError: an id, owner or state cannot be stored.
    """
    value: Any = None
    match change:
        case Create(record):
            texts = [record.kind, record.id, record.owner, record.parent, record.status]
            value = dump_body(record.body)
        case Update(body=body, status=status):
            texts = [change.kind, change.id, status or "", *(change.expect_status or ())]
            value = None if body is None else dump_body(body)
        case AppendEvents(run=run, data=data):
            texts = [run]
            value = pack(data)
        case Delete(kind, identity):
            texts = [kind, identity]
        case _:
            assert_never(change)
    check_text(*texts)
    return value


async def fill_page(
    read: Callable[[int, int], Awaitable[Sequence[Record]]], position: int, limit: int, fields: Mapping[str, str]
) -> Page:
    """Return the first records behind `position` whose body has `fields`: `limit`, or fewer that are large.

    ``read(position, count)`` returns `count` records behind a position, in the order of the list: fewer when no more
    are there, or behind the one with which their bodies reach `PAGE_BYTES`.
    """
    found: list[Record] = []
    size = 0
    while True:
        # One more than is wanted tells whether more follow.
        count = 1 if size >= PAGE_BYTES else limit + 1 - len(found)
        count = max(count, _BATCH) if fields else count
        records = await read(position, count)
        for record in records:
            if _has(record.body, fields):
                if len(found) == limit or size >= PAGE_BYTES:
                    return Page(found, True)
                found.append(record)
                size += record.size
        if len(records) < count and sum(record.size for record in records) < PAGE_BYTES:
            return Page(found, False)
        position = records[-1].position


def _has(body: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    for name, value in fields.items():
        outer, dot, inner = name.partition(".")
        member = body.get(outer)
        if dot:
            member = member.get(inner) if isinstance(member, Mapping) else None
        if member != value:
            return False
    return True
