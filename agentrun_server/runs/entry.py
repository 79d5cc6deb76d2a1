"""What a run leaves in the store: its record, and what must be written together with it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agentrun_server.runs.run import RunStatus
from agentrun_server.storage.contracts import Change, Create, Lease, Record, Update

__all__ = ["CANCELLING", "OPEN", "Entry", "Outcome", "RecordEntry"]

CANCELLING: Final = "cancelling"
"""Status of a record whose run is to be cancelled by its worker: from then on it cannot complete any more."""
OPEN: Final = frozenset({RunStatus.QUEUED.value, RunStatus.IN_PROGRESS.value, CANCELLING})
"""Statuses of runs that have not ended."""
_MAY_END: Final = frozenset({RunStatus.QUEUED.value, RunStatus.IN_PROGRESS.value})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: RunStatus
    body: Mapping[str, Any]
    """What the record says of it from now on, in place of what it said before."""


class Entry(Protocol):
    """A run's record and its companions. Times are seconds since the epoch."""

    kind: str
    id: str
    owner: str
    begun: bool
    """The record has been created."""

    @property
    def wakes(self) -> Sequence[str]:
        """Topics of the bus on which somebody waits for the end of this run."""
        ...

    def begin(self, worker: str, status: RunStatus, now: float) -> list[Change]:
        """Return what creates the record, of a run that `worker` has."""
        ...

    def proceed(self, worker: str, fence: Lease | None) -> list[Change]:
        """Return what tells that a run which was queued runs now, and that `worker` has it."""
        ...

    def pass_on(self, heir: str, fence: Lease | None) -> list[Change]:
        """Return what leaves a run that is queued still to the worker `heir`."""
        ...

    def end(self, outcome: Outcome, fence: Lease | None, now: float) -> list[Change]:
        """Return what writes down the end; whoever wants another one comes too late or has come before."""
        ...

    def give_way(self) -> bool:
        """Leave out of the end what may have been in the way; False when there is nothing left to leave out."""
        ...


@dataclass(slots=True, kw_only=True)
class RecordEntry:
    """One record by itself; an `Entry`."""

    kind: str
    id: str
    owner: str
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """While the run is open."""
    companions: tuple[Change, ...] = ()
    """Written when it begins."""
    ttl: float | None = None
    begun: bool = False

    @property
    def wakes(self) -> Sequence[str]:
        """Topics of those who wait for the end: nobody but the readers."""
        return ()

    def begin(self, worker: str, status: RunStatus, now: float) -> list[Change]:  # noqa: ARG002 - see Entry
        """Return what creates the record."""
        # It does not expire while it is open.
        return [self._create({**self.body, "worker": worker}, status, None), *self.companions]

    def proceed(self, worker: str, fence: Lease | None) -> list[Change]:
        """Return what tells that a run which was queued runs now, and that `worker` has it."""
        return [
            Update(
                kind=self.kind,
                id=self.id,
                body={**self.body, "worker": worker},
                status=RunStatus.IN_PROGRESS.value,
                expect_status={RunStatus.QUEUED.value},
                fence=fence,
            )
        ]

    def pass_on(self, heir: str, fence: Lease | None) -> list[Change]:
        """Return what leaves a run that is queued still to the worker `heir`."""
        return [
            Update(
                kind=self.kind,
                id=self.id,
                body={**self.body, "worker": heir},
                expect_status={RunStatus.QUEUED.value},
                fence=fence,
            )
        ]

    def end(self, outcome: Outcome, fence: Lease | None, now: float) -> list[Change]:
        """Return what ends the record, or creates it when it was not begun."""
        if not self.begun:
            return [self._create(outcome.body, outcome.status, self._expires_at(now)), *self.companions]
        return [self._update(outcome, fence, now)]

    def give_way(self) -> bool:
        """Return False: there is nothing but the record."""
        return False

    def _expires_at(self, now: float) -> float | None:
        return None if self.ttl is None else now + self.ttl

    def _create(self, body: Mapping[str, Any], status: RunStatus, expires_at: float | None) -> Create:
        return Create(
            Record(
                kind=self.kind,
                id=self.id,
                owner=self.owner,
                body=body,
                status=status.value,
                expires_at=expires_at,
            )
        )

    def _update(self, outcome: Outcome, fence: Lease | None, now: float, expect: Collection[str] = _MAY_END) -> Update:
        return Update(
            kind=self.kind,
            id=self.id,
            body=outcome.body,
            status=outcome.status.value,
            expires_at=self._expires_at(now),
            expect_status={CANCELLING, *expect} if outcome.status is RunStatus.CANCELLED else expect,
            fence=fence,
        )
