"""One run at a time has the turn of a conversation, whatever happens to runs and workers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentrun_server.runs.turns import _MAX_WAITING, ConversationLockedError, Turns, released, taken, topic
from agentrun_server.storage.contracts import ConflictError, Create, Record, Update
from agentrun_server.storage.opening import Storage
from tests.runs.stores import Clock, Misbehaving, opened, sqlite
from tests.support.clock import eventually, within

KIND = "conversation"
NEVER_BY_ITSELF = 60.0
"""As `look_every`: who waits is woken, or the test fails."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def storage(tmp_path: Path, clock: Clock) -> AsyncIterator[Storage]:
    async with sqlite(tmp_path, clock) as storage:
        await storage.store.commit([Create(conversation("c"))])
        yield storage


@pytest.fixture
def turns(storage: Storage) -> Turns:
    return Turns(opened(storage), "w1", look_every=NEVER_BY_ITSELF)


def conversation(identity: str) -> Record:
    return Record(kind=KIND, id=identity, owner="alice", body={"metadata": {}})


async def status(storage: Storage, identity: str = "c") -> str:
    record = await storage.store.get(KIND, identity, None)
    assert record is not None
    return record.status


def test_the_changes_expect_what_they_change() -> None:
    assert taken(KIND, "c", "w/r") == Update(kind=KIND, id="c", status="w/r", expect_status={""})
    assert released(KIND, "c", "w/r") == Update(kind=KIND, id="c", status="", expect_status={"w/r"})


@pytest.mark.parametrize("worker", ["", "a/b"])
async def test_the_id_of_a_worker_can_be_told_from_that_of_a_run(storage: Storage, worker: str) -> None:
    with pytest.raises(ValueError, match="slash"):
        Turns(opened(storage), worker)


# --- taking and releasing


async def test_the_holder_is_the_run_with_its_worker(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    assert await status(storage) == turns.holder("r1") == "w1/r1"
    await turns.release(KIND, "c", "r1")
    assert await status(storage) == ""


async def test_a_second_run_is_refused_at_once_when_it_must_not_wait(turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    with pytest.raises(ConversationLockedError) as refused:
        await turns.take(KIND, "c", "r2", wait=0)
    assert refused.value.status_code == 409
    assert refused.value.body()["error"]["code"] == "conversation_locked"
    assert (b"retry-after", b"1") in refused.value.headers


async def test_a_second_run_gets_the_turn_when_the_first_releases_it(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    second = asyncio.create_task(turns.take(KIND, "c", "r2", wait=NEVER_BY_ITSELF))
    await eventually(lambda: topic("c") in storage.bus.topics)  # type: ignore[attr-defined] # a LocalBus
    assert not second.done()
    await turns.release(KIND, "c", "r1")
    await within(second)
    assert await status(storage) == "w1/r2"


async def test_a_second_run_is_refused_when_it_has_waited_long_enough(turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    waiting = [turns.take(KIND, "c", f"r{n}", wait=0.02) for n in (2, 3)]
    results = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(result) for result in results] == [ConversationLockedError] * 2


async def test_a_turn_that_another_process_releases_is_seen_without_a_bus(
    storage: Storage, turns: Turns, tmp_path: Path, clock: Clock
) -> None:
    await storage.leases.acquire("worker:w1", "w1", 30)
    await turns.take(KIND, "c", "r1", wait=0)
    async with sqlite(tmp_path, clock) as elsewhere:
        others = Turns(opened(elsewhere), "w2", look_every=0.005)
        second = asyncio.create_task(others.take(KIND, "c", "r2", wait=NEVER_BY_ITSELF))
        await eventually(lambda: topic("c") in elsewhere.bus.topics)  # type: ignore[attr-defined]
        await turns.release(KIND, "c", "r1")
        await within(second)
    assert await status(storage) == "w2/r2"


async def test_those_who_wait_in_one_process_get_it_in_the_order_in_which_they_came(turns: Turns) -> None:
    order: list[int] = []

    async def run(number: int) -> None:
        await turns.take(KIND, "c", f"r{number}", wait=NEVER_BY_ITSELF)
        order.append(number)
        await turns.release(KIND, "c", f"r{number}")

    await turns.take(KIND, "c", "first", wait=0)
    tasks = [asyncio.create_task(run(number)) for number in range(8)]
    await asyncio.sleep(0)
    await turns.release(KIND, "c", "first")
    await within(asyncio.gather(*tasks))
    assert order == list(range(8))
    assert not turns._queues


async def test_only_so_many_wait_for_one_turn(turns: Turns, storage: Storage) -> None:
    await storage.store.commit([Create(conversation("other"))])
    await turns.take(KIND, "c", "r", wait=0)
    waiting = [
        asyncio.create_task(turns.take(KIND, "c", f"r{number}", wait=NEVER_BY_ITSELF)) for number in range(_MAX_WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ConversationLockedError):
        await within(turns.take(KIND, "c", "one more", wait=NEVER_BY_ITSELF))
    await turns.take(KIND, "other", "r", wait=0)
    for task in waiting:
        task.cancel()
    await within(asyncio.wait(waiting))
    await turns.release(KIND, "c", "r")
    await turns.take(KIND, "c", "one more", wait=0)


async def test_who_is_overtaken_between_looking_and_taking_does_not_get_it(storage: Storage) -> None:
    store = Misbehaving(storage)
    store.overtake = lambda: Turns(opened(storage), "w2").take(KIND, "c", "r2", wait=0)
    with pytest.raises(ConversationLockedError):
        await Turns(opened(store.storage), "w1").take(KIND, "c", "r1", wait=0)
    assert await status(storage) == "w2/r2"


async def test_two_processes_never_have_a_turn_at_once(
    storage: Storage, turns: Turns, tmp_path: Path, clock: Clock
) -> None:
    inside: set[str] = set()
    ended: list[str] = []

    async def run(of: Turns, name: str) -> None:
        await of.take(KIND, "c", name, wait=NEVER_BY_ITSELF)
        assert not inside
        inside.add(name)
        await asyncio.sleep(0)
        inside.remove(name)
        ended.append(name)
        await of.release(KIND, "c", name)

    for worker in ("w1", "w2"):
        await storage.leases.acquire(f"worker:{worker}", worker, 30)
    async with sqlite(tmp_path, clock) as elsewhere:
        others = Turns(opened(elsewhere), "w2", look_every=0.002)
        turns = Turns(opened(storage), "w1", look_every=0.002)
        runs = [run(of, f"{of.holder('')}{number}") for number in range(10) for of in (turns, others)]
        await within(asyncio.gather(*runs), 20)
    assert len(ended) == 20


async def test_who_does_not_have_the_turn_cannot_release_it(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    await turns.release(KIND, "c", "r2")
    assert await status(storage) == "w1/r1"


async def test_a_run_that_has_the_turn_may_take_it_again(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    await turns.take(KIND, "c", "r1", wait=0)
    assert await status(storage) == "w1/r1"


async def test_a_turn_is_released_together_with_what_the_run_writes_or_not_at_all(
    storage: Storage, turns: Turns
) -> None:
    result = Create(Record(kind="item", id="i", owner="alice", parent="c", body={}))
    with pytest.raises(ConflictError):
        await storage.store.commit([result, released(KIND, "c", turns.holder("r1"))])
    assert await storage.store.get("item", "i", None) is None
    await turns.take(KIND, "c", "r1", wait=0)
    await storage.store.commit([result, released(KIND, "c", turns.holder("r1"))])
    assert await status(storage) == ""


# --- records that are not there


async def test_a_record_is_made_with_its_turn_taken(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "new", "r1", wait=0, absent=conversation("new"))
    record = await storage.store.get(KIND, "new", "alice")
    assert record is not None
    assert (record.status, record.body) == ("w1/r1", {"metadata": {}})


async def test_of_two_who_make_it_at_once_one_has_the_turn(storage: Storage, tmp_path: Path, clock: Clock) -> None:
    async with sqlite(tmp_path, clock) as elsewhere:
        for number in range(10):
            taking = [
                Turns(opened(place), worker).take(KIND, f"n{number}", "r", wait=0, absent=conversation(f"n{number}"))
                for place, worker in ((storage, "w1"), (elsewhere, "w2"))
            ]
            for worker in ("w1", "w2"):
                await storage.leases.acquire(f"worker:{worker}", worker, 30)
            results = await within(asyncio.gather(*taking, return_exceptions=True))
            assert sorted(type(result).__name__ for result in results) == ["ConversationLockedError", "NoneType"]


async def test_without_a_record_to_make_it_is_missing(turns: Turns) -> None:
    with pytest.raises(KeyError, match="gone"):
        await turns.take(KIND, "gone", "r1", wait=0)


async def test_who_takes_a_turn_may_say_how_long_the_record_stays(storage: Storage, turns: Turns, clock: Clock) -> None:
    await turns.take(KIND, "c", "r1", wait=0, expires_at=clock.now + 10)
    await turns.release(KIND, "c", "r1")
    clock.now += 11
    assert await storage.store.sweep() == 1


# --- workers that die


async def test_the_turn_of_a_worker_that_lives_is_left_alone_and_that_of_a_dead_one_passes_on(
    storage: Storage, turns: Turns, clock: Clock
) -> None:
    others = Turns(opened(storage), "w2")
    await storage.leases.acquire("worker:w1", "w1", 30)
    await turns.take(KIND, "c", "r1", wait=0)
    with pytest.raises(ConversationLockedError):
        await others.take(KIND, "c", "r2", wait=0)
    clock.now += 31
    await others.take(KIND, "c", "r2", wait=0)
    assert await status(storage) == "w2/r2"


async def test_who_waits_for_a_worker_that_dies_meanwhile_gets_the_turn(
    storage: Storage, turns: Turns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrun_server.runs.turns._PROBE_EVERY", 0.01)
    await storage.leases.acquire("worker:w1", "w1", 30)
    await turns.take(KIND, "c", "r1", wait=0)
    others = Turns(opened(storage), "w2", look_every=0.002)
    waiting = asyncio.create_task(others.take(KIND, "c", "r2", wait=NEVER_BY_ITSELF))
    await eventually(lambda: topic("c") in storage.bus.topics)  # type: ignore[attr-defined]
    clock.now += 31
    await within(waiting)
    assert await status(storage) == "w2/r2"


async def test_the_lease_of_a_dead_worker_is_left_to_who_ends_its_runs(storage: Storage, turns: Turns) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    ending = await storage.leases.acquire("worker:w1", "w2", 30)
    assert ending is not None
    with pytest.raises(ConversationLockedError):
        await Turns(opened(storage), "w2").take(KIND, "c", "r2", wait=0)
    assert await storage.leases.renew(ending, 30)
    await storage.leases.release(ending)
    await Turns(opened(storage), "w2").take(KIND, "c", "r2", wait=0)
    assert await storage.leases.acquire("worker:w1", "w3", 30) is not None


async def test_a_worker_that_was_taken_for_dead_can_write_no_more(storage: Storage, turns: Turns, clock: Clock) -> None:
    await turns.take(KIND, "c", "r1", wait=0)
    await Turns(opened(storage), "w2").take(KIND, "c", "r2", wait=0)
    with pytest.raises(ConflictError):
        await storage.store.commit([released(KIND, "c", turns.holder("r1"))])
    await turns.release(KIND, "c", "r1")
    assert await status(storage) == "w2/r2"


async def test_a_worker_does_not_touch_its_own_lease(storage: Storage, turns: Turns) -> None:
    lease = await storage.leases.acquire("worker:w1", "w1", 30)
    assert lease is not None
    await turns.take(KIND, "c", "r1", wait=0)
    with pytest.raises(ConversationLockedError):
        await turns.take(KIND, "c", "r2", wait=0)
    assert await storage.leases.renew(lease, 30)


async def test_who_ends_the_runs_of_a_dead_worker_releases_their_turns(storage: Storage, turns: Turns) -> None:
    await storage.leases.acquire("worker:w1", "w1", 30)
    for name in ("d", "e"):
        await storage.store.commit([Create(conversation(name))])
    await turns.take(KIND, "c", "r1", wait=0)
    await turns.take(KIND, "d", "r2", wait=0)
    others = Turns(opened(storage), "w2", look_every=NEVER_BY_ITSELF)
    await others.take(KIND, "e", "r1", wait=0)
    waiting = asyncio.create_task(others.take(KIND, "c", "r3", wait=NEVER_BY_ITSELF))
    await eventually(lambda: topic("c") in storage.bus.topics)  # type: ignore[attr-defined]
    assert await others.release_all_of("w1", KIND, ["r1", "r9"]) == 1
    await within(waiting)
    assert [await status(storage, name) for name in ("c", "d", "e")] == ["w2/r3", "w1/r2", "w2/r1"]
    assert await others.release_all_of("w1", KIND, []) == 0


# --- stores that are away


async def test_a_turn_that_cannot_be_released_now_is_released_later(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    store = Misbehaving(storage)
    turns = Turns(opened(store.storage), "w1")
    await turns.take(KIND, "c", "r1", wait=0)
    store.away = True
    await turns.release(KIND, "c", "r1")
    assert "a turn cannot be given back now" in caplog.text
    await turns.retry()
    store.away = False
    assert await status(storage) == "w1/r1"
    await turns.retry()
    assert await status(storage) == ""


async def test_in_its_own_process_a_turn_nobody_has_counts_as_free(storage: Storage) -> None:
    store = Misbehaving(storage)
    turns = Turns(opened(store.storage), "w1")
    await turns.take(KIND, "c", "r1", wait=0)
    store.away = True
    await turns.release(KIND, "c", "r1")
    store.away = False
    await turns.take(KIND, "c", "r2", wait=0)
    await turns.retry()
    assert await status(storage) == "w1/r2"


async def test_a_turn_that_was_taken_and_not_acknowledged_is_not_lost(storage: Storage) -> None:
    store = Misbehaving(storage)
    turns = Turns(opened(store.storage), "w1")
    store.silent = True
    taking = asyncio.create_task(turns.take(KIND, "c", "r1", wait=0))
    await within(store.wrote.wait())
    taking.cancel()
    await within(asyncio.wait([taking]))
    store.silent = False
    assert await status(storage) == "w1/r1"
    await turns.retry()
    assert await status(storage) == ""


async def test_a_turn_that_was_taken_after_all_is_not_released(storage: Storage) -> None:
    store = Misbehaving(storage)
    turns = Turns(opened(store.storage), "w1")
    store.silent = True
    taking = asyncio.create_task(turns.take(KIND, "c", "r1", wait=0))
    await within(store.wrote.wait())
    taking.cancel()
    await within(asyncio.wait([taking]))
    store.silent = False
    await turns.take(KIND, "c", "r1", wait=0)
    await turns.retry()
    assert await status(storage) == "w1/r1"


async def test_a_release_that_was_cancelled_is_made_sure_of(storage: Storage) -> None:
    store = Misbehaving(storage)
    turns = Turns(opened(store.storage), "w1")
    await turns.take(KIND, "c", "r1", wait=0)
    store.silent = True
    releasing = asyncio.create_task(turns.release(KIND, "c", "r1"))
    await within(store.wrote.wait())
    releasing.cancel()
    await within(asyncio.wait([releasing]))
    store.silent = False
    await Turns(opened(storage), "w2").take(KIND, "c", "r2", wait=0)
    await turns.retry()
    assert await status(storage) == "w2/r2"
