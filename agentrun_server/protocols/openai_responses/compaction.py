"""Compaction items: a whole conversation in one item, which only this server reads again.

``encrypted_content`` is opaque to clients by definition. Here it is the items as compressed JSON: nothing of the
conversation is lost, and it holds nothing that its owner did not have. It is no secret and no proof: a client may write
one of its own, as it may write any history. So what a request unpacks has a bound, for all its compactions together.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from agentrun_server.protocols.fields import check_amount, check_density, invalid
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.items import MAX_BYTES, Item, read_items

__all__ = ["compact", "expand"]

_MARK = "agentrun1."
"""Begins what this server wrote; the number is that of the format."""


def compact(items: Sequence[Item], new_id: Callable[[str], str]) -> Item:
    """Return the compaction item that stands for `items`, which hold no references and no compaction."""
    packed = base64.urlsafe_b64encode(zlib.compress(dumps(list(items)).encode()))
    return {"type": "compaction", "id": new_id("cmp_"), "encrypted_content": _MARK + packed.decode("ascii")}


def expand(
    items: Sequence[Item], new_id: Callable[[str], str], *, max_items: int, max_bytes: int = MAX_BYTES
) -> list[Item]:
    """Return `items` with the items of each compaction in its place.

    Raises:
        InvalidRequestError: a compaction is not from this server, or all hold more than the limits allow.
    """
    expanded: list[Item] = []
    left = max_bytes
    for item in items:
        if item["type"] == "compaction":
            text = _unpack(item["encrypted_content"], left)
            left -= len(text)
            expanded += _read(text, new_id, max_items)
        else:
            expanded.append(item)
        if len(expanded) > max_items:
            invalid(
                "input", f"expected at most {max_items} items, with those of a compaction.", "array_above_max_length"
            )
    return expanded


def _read(text: bytes, new_id: Callable[[str], str], max_items: int) -> list[Item]:
    check_density(text)
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        invalid("input", "a compaction item is damaged.", "invalid_compaction")
    if isinstance(value, list):
        check_amount(value, text)
    items = read_items(value, new_id, max_items=max_items)
    if any(item["type"] in ("compaction", "item_reference") for item in items):  # never written by `compact`
        invalid("input", "a compaction item is damaged.", "invalid_compaction")
    return items


def _unpack(content: str, max_bytes: int) -> bytes:
    if not content.startswith(_MARK):
        invalid("input", "a compaction item is not from this server.", "invalid_compaction")
    stream = zlib.decompressobj()
    try:
        packed = base64.b64decode(content[len(_MARK) :].encode("ascii"), b"-_", validate=True)
        text = stream.decompress(packed, max(max_bytes, 1))  # however much it claims to hold; 0 would be no bound
    except (binascii.Error, zlib.error, ValueError):
        invalid("input", "a compaction item is damaged.", "invalid_compaction")
    if not stream.eof:
        invalid("input", "a compaction item is damaged or too long.", "invalid_compaction")
    return text
