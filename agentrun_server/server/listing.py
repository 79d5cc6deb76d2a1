"""Part of a list: what is in the store, and what one record holds."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from agentrun_server.protocols.fields import invalid
from agentrun_server.protocols.openai_responses.objects import item_list
from agentrun_server.protocols.openai_responses.queries import PageQuery
from agentrun_server.storage.contracts import Page, Store

__all__ = ["part_of", "read_records"]


async def read_records(
    store: Store,
    kind: str,
    owner: str,
    page: PageQuery,
    *,
    parent: str | None = None,
    fields: Mapping[str, str] = MappingProxyType({}),
) -> Page:
    """Return the part of the records of `kind` that `page` asks for.

    Raises:
        InvalidRequestError: the list does not hold the object behind which the part should begin.
    """
    try:
        return await store.list(
            kind, owner, parent=parent, fields=fields, after=page.after, limit=page.limit, order=page.order
        )
    except KeyError:
        _not_in_list()


def part_of(objects: Sequence[dict[str, Any]], page: PageQuery) -> dict[str, Any]:
    """Return the part of `objects`, oldest first, that `page` asks for, as a list object.

    Raises:
        InvalidRequestError: none of them has the id behind which the part should begin.
    """
    ordered = list(objects) if page.order == "asc" else list(reversed(objects))
    start = 0
    if page.after is not None:
        # Of several with the same id the last one counts: so who reads page by page comes to an end.
        places = [place for place, one in enumerate(ordered) if one["id"] == page.after]
        start = places[-1] + 1 if places else _not_in_list()
    end = start + page.limit
    return item_list(ordered[start:end], has_more=end < len(ordered))


def _not_in_list() -> NoReturn:
    invalid("after", "nothing in this list has that id.")
