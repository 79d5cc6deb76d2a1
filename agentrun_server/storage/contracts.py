"""The protocols of storage: `Store`, `Leases`, `Bus`.

A store holds `Record` objects, which belong to an owner, and the numbered events of runs. Everything is written by
`Store.commit`: a list of changes that are made together or not at all, and are durable when it returns. Conditions in
the changes (`expect`, `fence`) make a late writer fail instead of overwriting: cancelling wins over completing because
both are updates that expect the run to be still open.

Times are seconds since the epoch, by the clock of the store (one for all machines where there are several).

A body may hold any text that JSON can write. All other text, ids and owners above all, is Unicode without NUL and lone
surrogates: to write anything else is a `ValueError`, and to ask for it finds nothing.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from agentrun_server.storage.errors import ConflictError, SchemaVersionError, StorageError, StorageUnavailableError

__all__ = [
    "AppendEvents",
    "Bus",
    "Change",
    "ConflictError",
    "Create",
    "Delete",
    "Event",
    "Lease",
    "Leases",
    "Page",
    "Record",
    "SchemaVersionError",
    "StorageError",
    "StorageUnavailableError",
    "Store",
    "Update",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A stored object."""

    kind: str
    """What it is: ``response``, ``conversation``, ``item``, ``completion``, ``session`` …"""
    id: str
    """Unique among all records of its kind, whoever owns them."""
    owner: str
    """``issuer|subject`` of who made it; empty where nobody is authenticated. Others do not see that it exists."""
    body: Mapping[str, Any]
    """The object itself, as JSON."""
    parent: str = ""
    """Id of the record it belongs to, and is deleted with: the conversation or response of an item. A record that has
    children or events shares its id with none of another kind."""
    status: str = ""
    """A state that is looked for (``queued``, ``in_progress``), apart from the body so that an index finds it."""
    created_at: float = 0.0
    """Set by the store."""
    expires_at: float | None = None
    """When the sweeper may delete it; None: never."""
    version: int = 0
    """Set by the store: 1 at first, then one more with each update."""
    position: int = 0
    """Set by the store: grows with each record that is created; lists are sorted by it."""
    size: int = field(default=0, compare=False)
    """Set by the store: bytes of the body, as it is stored."""


@dataclass(frozen=True, slots=True)
class Create:
    """Add `record`. None of that kind and id must be there; its parent must be: late writers leave no orphans."""

    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Change a record. What is None stays."""

    kind: str
    id: str
    body: Mapping[str, Any] | None = None
    status: str | None = None
    expires_at: float | None = None
    expect_status: Collection[str] | None = None
    """The record must have one of these states."""
    expect_version: int | None = None
    """The record must have this version."""
    fence: "Lease | None" = None
    """The lease must be held still: who lost it must not write any more."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record, what has it as parent, and so on down, with their events, for good. It need not be there."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEvents:
    """Append events to the log of a run, numbered from `first`; the log must hold exactly `first` events before.

    A record whose id is `run` must be there: the log is deleted with it.
    """

    run: str
    first: int
    data: Sequence[bytes]
    fence: "Lease | None" = None


Change: TypeAlias = Create | Update | Delete | AppendEvents


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run's log."""

    number: int
    """Counts from 0 without gaps."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list."""

    records: Sequence[Record]
    has_more: bool
    """More records follow in the order asked for."""


class Store(Protocol):
    """Records and event logs."""

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all `changes`, in order, or none; durable when it returns.

        Bodies are read before the first wait. Who is cancelled meanwhile does not know whether they were written.

        Raises:
            ConflictError: a condition does not hold.
            StorageUnavailableError: it cannot be known whether anything was written; reading tells.
            ValueError: text other than of a body that cannot be stored.
        """
        ...

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002 - the field's name
        """Return a record, None when there is none that `owner` may see. Owner None sees all: for the server itself."""
        ...

    async def get_many(self, kind: str, ids: Sequence[str], owner: str | None) -> Mapping[str, Record]:
        """Return those of the records that are there, by id."""
        ...

    async def list(
        self,
        kind: str,
        owner: str | None,
        *,
        parent: str | None = None,
        statuses: Collection[str] | None = None,
        fields: Mapping[str, str] = ...,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "asc",
    ) -> Page:
        """Return records by position, those behind the id `after`.

        There are `limit` at most, and fewer when their bodies are large: a page ends behind some megabytes of them, so
        `has_more` tells whether these were all.

        `fields` are members of the body that must be equal: ``{"model": "m", "metadata.topic": "x"}``. What is behind
        the first dot is one name. No index helps: bodies are read until the page is full.

        Raises:
            KeyError: there is no record `after` of this kind, owner and parent; its status and fields may be others.
        """
        ...

    async def events(
        self, run: str, after: int = -1, limit: int = 1000, *, max_bytes: int | None = None
    ) -> Sequence[Event]:
        """Return the events of a run with numbers greater than `after`.

        There are `limit` at most, and with `max_bytes` none behind those that reach it; one at least, if any is left.
        """
        ...

    async def sweep(self, limit: int = 500) -> int:
        """Delete records that have expired, with what belongs to them; return how many."""
        ...

    async def shrink(self, kinds: Collection[str], *, keep_statuses: Collection[str] = (), limit: int = 100) -> int:
        """Delete the oldest records of `kinds` that belong to no other, with what belongs to them; return how many.

        At most `limit` go, oldest first. Those whose state is one of `keep_statuses` stay.
        """
        ...

    async def size(self) -> int:
        """Return about how many bytes records and events take.

        What was deleted does not count, though files keep the room for what is written next: so who deletes until the
        size is small enough comes to an end.
        """
        ...

    async def aclose(self) -> None:
        """Write what was accepted, and let go of files and connections."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do something that only one may do at a time, until it runs out."""

    name: str
    holder: str
    fence: int
    """Grows with each holder: a write that carries an older number is refused."""


class Leases(Protocol):
    """Who may do what, among all processes that share a store."""

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Return the lease `name` for `seconds`, None while somebody else holds it."""
        ...

    async def renew(self, lease: Lease, seconds: float) -> bool:
        """Hold `lease` for `seconds` from now; False when it was lost."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give `lease` back, if it is held still."""
        ...


class Bus(Protocol):
    """Wakes who waits, in this process and others. The truth is in the store: a message may be lost, and readers look
    again after a while by themselves."""

    async def publish(self, topic: str, message: bytes = b"") -> None:
        """Tell all who listen to `topic`. Never waits for them."""
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return a context in which messages of `topic` arrive; a slow reader keeps the latest ones only."""
        ...

    async def aclose(self) -> None:
        """End what runs for it, and let go of connections. Who listens hears nothing more."""
        ...
