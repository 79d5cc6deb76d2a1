"""The state machine of a run, as a table.

A run is one execution of an agent. It ends in exactly one terminal state, whoever else still wants it to end otherwise:
the first to move it there wins.
"""

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["TERMINAL", "TRANSITIONS", "Run", "RunStatus", "StopReason"]


class RunStatus(StrEnum):
    """Where a run stands; the names are those of OpenAI's Responses."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StopReason(StrEnum):
    """Why the server stops a run that has not come to its own end."""

    DISCONNECTED = "disconnected"
    SLOW_READER = "slow_reader"
    FIRST_EVENT_TIMEOUT = "first_event_timeout"
    RUN_TIMEOUT = "run_timeout"
    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"
    """Its owner asked for it."""
    LEASE_LOST = "lease_lost"
    """Others took this worker for dead, and the run is theirs."""
    STORAGE = "storage"
    """What it says cannot be kept."""


TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.IN_PROGRESS, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.IN_PROGRESS: frozenset(
        {RunStatus.COMPLETED, RunStatus.INCOMPLETE, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.INCOMPLETE: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}
"""What may follow: status → next statuses. A terminal status has none."""

TERMINAL = frozenset(status for status, following in TRANSITIONS.items() if not following)


class Run:
    """The state of one execution."""

    __slots__ = ("status", "stop_reason")

    def __init__(self) -> None:
        self.status = RunStatus.QUEUED
        self.stop_reason: StopReason | None = None

    def move(self, to: RunStatus) -> bool:
        """Go to `to` if the table allows it; return whether it did."""
        if to not in TRANSITIONS[self.status]:
            return False
        self.status = to
        return True
