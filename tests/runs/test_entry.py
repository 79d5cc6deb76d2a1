"""What a run writes when it begins, goes on and ends, as values."""

import pytest

from agentrun_server.runs.entry import CANCELLING, OPEN, Outcome, RecordEntry
from agentrun_server.runs.run import TERMINAL, RunStatus
from agentrun_server.storage.contracts import Create, Delete, Lease, Record, Update

LEASE = Lease("worker:w", "w", 7)
NOW = 1000.0


def entry(**fields: object) -> RecordEntry:
    return RecordEntry(kind="response", id="r", owner="alice", body={"question": "?"}, **fields)  # type: ignore[arg-type]


def test_a_run_is_open_until_it_has_ended() -> None:
    assert set(OPEN) == {"queued", "in_progress", CANCELLING}
    assert not OPEN & {status.value for status in TERMINAL}


def test_it_begins_with_its_worker_and_companions_and_does_not_expire() -> None:
    companion = Delete("idempotency", "i")
    changes = entry(ttl=60, companions=(companion,)).begin("w", RunStatus.QUEUED, NOW)
    body = {"question": "?", "worker": "w"}
    assert changes == [Create(Record(kind="response", id="r", owner="alice", body=body, status="queued")), companion]


def test_one_that_proceeds_was_queued_and_still_has_its_worker() -> None:
    assert entry().proceed("w", LEASE) == [
        Update(
            kind="response",
            id="r",
            body={"question": "?", "worker": "w"},
            status="in_progress",
            expect_status={"queued"},
            fence=LEASE,
        )
    ]


def test_one_that_is_passed_on_is_queued_still() -> None:
    assert entry().pass_on("heir", LEASE) == [
        Update(
            kind="response",
            id="r",
            body={"question": "?", "worker": "heir"},
            expect_status={"queued"},
            fence=LEASE,
        )
    ]


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_it_ends_once_and_only_a_cancellation_ends_one_that_is_cancelled(status: RunStatus) -> None:
    (change,) = entry(ttl=60, begun=True).end(Outcome(status, {"answer": "!"}), LEASE, NOW)
    expected = {"queued", "in_progress", CANCELLING} if status is RunStatus.CANCELLED else {"queued", "in_progress"}
    assert change == Update(
        kind="response",
        id="r",
        body={"answer": "!"},
        status=status.value,
        expires_at=NOW + 60,
        expect_status=expected,
        fence=LEASE,
    )


def test_one_that_was_not_begun_is_created_as_it_ended() -> None:
    companion = Delete("idempotency", "i")
    changes = entry(ttl=60, companions=(companion,)).end(Outcome(RunStatus.COMPLETED, {"answer": "!"}), LEASE, NOW)
    record = Record(
        kind="response", id="r", owner="alice", body={"answer": "!"}, status="completed", expires_at=NOW + 60
    )
    assert changes == [Create(record), companion]


def test_without_a_ttl_it_is_kept() -> None:
    (change,) = entry(begun=True).end(Outcome(RunStatus.COMPLETED, {}), None, NOW)
    assert isinstance(change, Update)
    assert (change.expires_at, change.fence) == (None, None)


def test_a_record_by_itself_wakes_nobody_and_has_nothing_to_leave_out() -> None:
    assert entry().wakes == ()
    assert not entry().give_way()
