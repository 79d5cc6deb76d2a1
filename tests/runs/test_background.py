"""How much may run in the background: of all callers, of one, and in bytes."""

import random

import pytest

from agentrun_server.errors import TooManyRequestsError
from agentrun_server.runs.background import Background, Room


def refused(background: Background, owner: str, size: int = 1) -> TooManyRequestsError:
    """Return how a run is told that there is no room for it."""
    with pytest.raises(TooManyRequestsError) as caught:
        background.take(owner, size)
    return caught.value


def test_one_owner_leaves_room_for_others() -> None:
    background = Background(4, max_runs_per_owner=2, max_bytes=100)
    first = background.take("alice", 1)
    background.take("alice", 1)
    assert "your requests" in refused(background, "alice").message
    background.take("bob", 1)
    background.take("carol", 1)
    assert "your" not in refused(background, "dave").message
    first.give_back()
    background.take("alice", 1)


def test_a_refusal_is_one_that_clients_come_back_from() -> None:
    background = Background(1, max_runs_per_owner=None, max_bytes=1)
    background.take("alice", 1)
    error = refused(background, "alice")
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert dict(error.headers)[b"retry-after"] == b"10"


@pytest.mark.parametrize("per_owner", [None, 4, 9])
def test_an_owner_without_a_bound_may_have_it_all(per_owner: int | None) -> None:
    background = Background(4, max_runs_per_owner=per_owner, max_bytes=4)
    for _ in range(4):
        background.take("alice", 1)
    refused(background, "bob")


def test_without_authentication_only_the_whole_counts() -> None:
    background = Background(3, max_runs_per_owner=1, max_bytes=30)
    for _ in range(3):
        background.take("", 10)
    refused(background, "", 0)


def test_bytes_have_a_bound_for_all() -> None:
    background = Background(10, max_runs_per_owner=None, max_bytes=100)
    background.take("alice", 60)
    refused(background, "bob", 41)
    background.take("bob", 40)
    refused(background, "carol")
    background.take("carol", 0)


def test_an_owner_has_the_same_share_of_bytes_as_of_places() -> None:
    background = Background(4, max_runs_per_owner=2, max_bytes=100)
    background.take("alice", 30)
    refused(background, "alice", 21)
    background.take("bob", 21)
    background.take("alice", 20)


def test_a_run_that_is_too_large_for_any_bound_gets_room_when_it_is_the_only_one() -> None:
    background = Background(4, max_runs_per_owner=2, max_bytes=100)
    small = background.take("bob", 1)
    refused(background, "alice", 1000)
    small.give_back()
    large = background.take("alice", 1000)
    refused(background, "alice", 0)
    refused(background, "bob")
    large.give_back()
    assert background.is_empty


def test_what_is_given_back_twice_counts_once() -> None:
    background = Background(4, max_runs_per_owner=2, max_bytes=100)
    first, _ = background.take("alice", 10), background.take("alice", 10)
    first.give_back()
    first.give_back()
    background.take("alice", 40)
    refused(background, "alice", 0)


def test_whatever_comes_and_goes_no_bound_is_broken_and_all_comes_back() -> None:
    chance = random.Random(4)
    background = Background(8, max_runs_per_owner=3, max_bytes=80)
    taken: list[tuple[str, int, Room]] = []
    for _ in range(5000):
        owner, size = chance.choice(["", "alice", "bob"]), chance.randrange(20)
        if chance.random() < 0.5:
            own = [size for name, size, _ in taken if name == owner]
            fits = len(taken) < 8 and sum(size for _, size, _ in taken) + size <= 80
            mine = not own or (len(own) < 3 and sum(own) + size <= 30)
            if not taken or (fits and (mine or not owner)):
                taken.append((owner, size, background.take(owner, size)))
            else:
                refused(background, owner, size)
        elif taken:
            taken.pop(chance.randrange(len(taken)))[2].give_back()
        assert background.is_empty == (not taken)
    for _, _, room in taken:
        room.give_back()
    assert background.is_empty
