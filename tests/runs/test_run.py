"""A run ends in exactly one terminal state: the first to move it there wins."""

import pytest

from agentrun_server.runs.run import TERMINAL, TRANSITIONS, Run, RunStatus

S = RunStatus


def at(status: RunStatus) -> Run:
    run = Run()
    run.status = status
    return run


@pytest.mark.parametrize("status", RunStatus)
@pytest.mark.parametrize("to", RunStatus)
def test_a_run_moves_where_the_table_allows_and_nowhere_else(status: RunStatus, to: RunStatus) -> None:
    run = at(status)
    allowed = to in TRANSITIONS[status]
    assert run.move(to) is allowed
    assert run.status is (to if allowed else status)


def test_the_table_has_a_row_for_every_status() -> None:
    assert set(TRANSITIONS) == set(RunStatus)


def test_a_run_begins_in_the_queue_for_no_reason_to_stop() -> None:
    run = Run()
    assert run.status is S.QUEUED
    assert run.stop_reason is None


def test_every_status_can_reach_an_end() -> None:
    assert {S.COMPLETED, S.INCOMPLETE, S.FAILED, S.CANCELLED} == TERMINAL
    for status in RunStatus:
        seen, waiting = {status}, [status]
        while waiting:
            for after in TRANSITIONS[waiting.pop()] - seen:
                seen.add(after)
                waiting.append(after)
        assert seen & TERMINAL, status


@pytest.mark.parametrize("first", sorted(TERMINAL))
@pytest.mark.parametrize("second", sorted(TERMINAL))
def test_the_first_end_counts(first: RunStatus, second: RunStatus) -> None:
    run = at(S.IN_PROGRESS)
    assert run.move(first)
    assert not run.move(second)
    assert run.status is first
