"""What a response leaves in the store: itself, its items, and the turn of its conversation."""

from collections.abc import Sequence
from typing import Any

import pytest

from agentrun_server.runs.entry import Outcome
from agentrun_server.runs.item_record import item_record
from agentrun_server.runs.response_entry import ResponseEntry, ended_body
from agentrun_server.runs.run import RunStatus
from agentrun_server.storage.contracts import Change, Create, Lease, Update
from tests.runs.doubles import Counter

LEASE = Lease("worker:w", "w", 7)
MADE = {"type": "message", "id": "msg_made", "role": "user", "content": []}
THEIRS = {"type": "message", "id": "msg_theirs", "role": "user", "content": []}
ANSWER = {"type": "message", "id": "msg_answer", "role": "assistant", "content": []}


def entry(**fields: Any) -> ResponseEntry:
    given = {
        "body": {"response": {"id": "r", "status": "queued"}, "background": True},
        "input": [MADE, THEIRS],
        "made": frozenset({"msg_made"}),
        "new_id": Counter(),
        "begun": True,
        **fields,
    }
    return ResponseEntry(id="r", owner="alice", **given)


def ended(
    entry: ResponseEntry, status: RunStatus = RunStatus.COMPLETED, output: Sequence[Any] = (ANSWER,)
) -> list[Change]:
    """Return what the end adds to the change of the record itself."""
    record, *rest = entry.end(Outcome(status, {"response": {"output": list(output)}}), LEASE, 1000.0)
    assert isinstance(record, Update)
    assert (record.id, record.status, record.fence) == ("r", status.value, LEASE)
    return rest


def item(identity: str, parent: str, body: dict[str, Any] | None = None) -> Create:
    return item_record("alice", parent, identity, body or {})


def test_one_that_proceeds_says_so_and_still_has_its_worker() -> None:
    assert entry().proceed("w", LEASE) == [
        Update(
            kind="response",
            id="r",
            body={"response": {"id": "r", "status": "in_progress"}, "background": True, "worker": "w"},
            status="in_progress",
            expect_status={"queued"},
            fence=LEASE,
        )
    ]


def test_items_that_were_made_here_can_be_found_below_the_response() -> None:
    assert ended(entry()) == [item("msg_made", "r"), item("msg_answer", "r")]
    assert ended(entry(), output=[ANSWER, ANSWER]) == [item("msg_made", "r"), item("msg_answer", "r")]
    assert not entry().give_way()


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.INCOMPLETE])
def test_a_conversation_goes_on_with_input_and_output_and_its_turn_is_free(status: RunStatus) -> None:
    assert ended(entry(conversation="c", turn="w/r"), status) == [
        item("msg_made", "c", MADE),
        item("msg_theirs", "c", THEIRS),
        item("msg_answer", "c", ANSWER),
        Update(kind="conversation", id="c", status="", expect_status={"w/r"}),
    ]


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.CANCELLED])
def test_of_a_turn_that_failed_the_conversation_hears_nothing(status: RunStatus) -> None:
    assert ended(entry(conversation="c", turn="w/r"), status) == [
        Update(kind="conversation", id="c", status="", expect_status={"w/r"})
    ]


def test_those_who_wait_for_the_turn_are_woken() -> None:
    assert entry(conversation="c", turn="w/r").wakes == ("turn:c",)
    assert entry(conversation="c").wakes == ()


def test_what_is_in_the_way_is_left_out_step_by_step() -> None:
    turn = entry(conversation="c", turn="w/r")
    assert turn.give_way()
    first, second, answer, _ = ended(turn)
    assert first == item("msg_made", "c", MADE)
    assert second == item("msg_1", "c", {**THEIRS, "id": "msg_1"}), "there is an item with the client's id"
    assert answer == item("msg_answer", "c", ANSWER)
    assert turn.give_way()
    assert ended(turn) == [], "the conversation is gone"
    assert not turn.give_way()


def test_at_the_end_nothing_is_kept_that_only_a_run_needs() -> None:
    body = {
        "response": {"status": "in_progress"},
        "input": [MADE],
        "history": ["r0"],
        "conversation": "",
        "background": True,
        "streamed": True,
        "call": {"input": "a secret"},
        "principal": {"subject": "alice"},
        "worker": "w",
        "attempt": 2,
    }
    assert ended_body(body, {"status": "completed"}) == {
        "response": {"status": "completed"},
        "input": [MADE],
        "history": ["r0"],
        "conversation": "",
        "background": True,
        "streamed": True,
    }
