"""Long work of the interpreter, beside the event loop.

A thread does not make it quicker, but others get their turn meanwhile: a request of ten megabytes would hold up every
stream of the server for a quarter of a second. What is short is done at once, since a thread costs a tenth of a
millisecond. What is done aside makes ids, and touches nothing else that it shares with others.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from agentrun_server.protocols.openai_responses.compaction import expand
from agentrun_server.protocols.openai_responses.items import Item

__all__ = ["aside", "expanded"]

T = TypeVar("T")

_LARGE: Final = 256 * 1024
_DENSEST: Final = 1000
"""How much longer at most is what was packed."""


async def aside(work: Callable[[], T], size: float) -> T:
    """Return what `work` returns; it is done in a thread when it is about more than so many bytes."""
    return await asyncio.to_thread(work) if size > _LARGE else work()


async def expanded(items: Sequence[Item], new_id: Callable[[str], str], *, max_items: int) -> list[Item]:
    """Return `items` with those of each compaction in its place.

    Raises:
        InvalidRequestError: a compaction is not from this server, or all hold more than the limits allow.
    """
    packed = sum(len(item["encrypted_content"]) for item in items if item["type"] == "compaction")
    return await aside(partial(expand, items, new_id, max_items=max_items), packed * _DENSEST)
