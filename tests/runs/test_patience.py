"""How long a store that is away is waited for: pauses that grow, differ, and come to an end."""

import pytest

from agentrun_server.runs import patience as patience_module
from agentrun_server.runs.patience import Patience, patiently
from agentrun_server.storage.contracts import ConflictError, StorageUnavailableError
from tests.runs.stores import Clock
from tests.support.clock import within


def pauses(patience: Patience, clock: Clock) -> list[float]:
    """Return all pauses of a wait; each try takes no time."""
    found: list[float] = []
    while (pause := patience.pause()) is not None:
        assert pause > 0
        found.append(pause)
        clock.now += pause
    return found


@pytest.mark.parametrize("seconds", [0.01, 1.5, 30.0, 600.0])
@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_pauses_grow_to_two_seconds_or_so_and_the_last_try_is_at_the_end(seconds: float, drawn: float) -> None:
    clock = Clock()
    found = pauses(Patience(seconds, clock=clock, draw=lambda: drawn), clock)
    assert sum(found) == pytest.approx(seconds)
    assert found[:-1] == sorted(found[:-1])
    assert max(found) <= 3.0
    assert len(found) <= 5 + seconds


def test_those_who_wait_together_do_not_come_back_together() -> None:
    firsts = {Patience(30.0, clock=Clock(), draw=lambda drawn=drawn: drawn / 10).pause() for drawn in range(10)}  # type: ignore[misc]
    assert len(firsts) == 10
    assert min(filter(None, firsts)) == pytest.approx(0.025)
    assert max(filter(None, firsts)) < 0.075


def test_the_wait_begins_when_it_is_made_and_a_try_that_takes_long_counts() -> None:
    clock = Clock()
    patience = Patience(4.0, clock=clock)
    clock.now += 3.99
    assert patience.pause() == pytest.approx(0.01)
    clock.now += 0.01
    assert patience.pause() is None


async def test_what_cannot_be_read_now_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "_PAUSES", (0.0,))
    left = 3

    async def read() -> str:
        nonlocal left
        if left:
            left -= 1
            raise StorageUnavailableError("away")
        return "read"

    assert await within(patiently(read, Patience(1.0))) == "read"
    left = 1
    with pytest.raises(StorageUnavailableError):
        await within(patiently(read, Patience(0.0)))


async def test_another_error_is_none_to_wait_for() -> None:
    async def read() -> None:
        raise ConflictError("another")

    with pytest.raises(ConflictError):
        await within(patiently(read, Patience(60.0)))
