"""Reading the query of requests for stored objects: which part of a list, and from where a stream goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentrun_server.protocols.fields import choice, integer, invalid
from agentrun_server.protocols.openai_responses.fields import identifier

__all__ = ["PageQuery", "Resume", "read_page", "read_resume"]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a list is asked for."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    """The id of the item before the first one wanted."""


@dataclass(frozen=True, slots=True)
class Resume:
    """How a stored response is to be read."""

    stream: bool = False
    starting_after: int = -1
    """The number of the last event the client has; -1: from the first."""
    include_obfuscation: bool = False


def read_page(query: Mapping[str, str], *, order: Literal["asc", "desc"] = "desc") -> PageQuery:
    """Read ``limit`` (1 to 100), ``order`` and ``after``; `order` is what goes without saying.

    Raises:
        InvalidRequestError: one of them is malformed or out of range.
    """
    wanted: Any = choice("asc", "desc")(query["order"], "order") if query.get("order") else order
    after = identifier(query["after"], "after") if query.get("after") else None
    return PageQuery(_integer(query, "limit", 20, 1, 100), wanted, after)


def read_resume(query: Mapping[str, str]) -> Resume:
    """Read ``stream``, ``starting_after`` and ``include_obfuscation``.

    Raises:
        InvalidRequestError: one of them is malformed, or there is no stream to start.
    """
    stream = _boolean(query, "stream")
    if query.get("starting_after") and not stream:
        invalid("starting_after", "it is only allowed with 'stream'.")
    return Resume(stream, _integer(query, "starting_after", -1, 0), _boolean(query, "include_obfuscation"))


def _integer(query: Mapping[str, str], name: str, default: int, low: int, high: int = 2**53) -> int:
    value = query.get(name)
    if not value:
        return default
    # No sign, no blanks, no digits of other scripts: what `int` would take besides.
    plain = value.isascii() and value.isdigit() and len(value) <= 16
    return int(integer(low, high)(int(value) if plain else value, name))


def _boolean(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "")
    if value.lower() not in ("", "true", "false", "1", "0"):
        invalid(name, "expected 'true' or 'false'.")
    return value.lower() in ("true", "1")
