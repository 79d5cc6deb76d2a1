"""What is deleted without being asked: on SQLite, and on a store that does what a test says."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import cast

import pytest

from agentrun_server.runs.entry import OPEN
from agentrun_server.runs.retention import KINDS, Retention
from agentrun_server.storage.contracts import (
    AppendEvents,
    Create,
    Lease,
    Leases,
    Record,
    StorageUnavailableError,
    Store,
)
from agentrun_server.storage.sqlite import SQLiteStore
from tests.support.clock import eventually, within

START = 1_000_000.0


class Clock:
    """The time of a store."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "store.db", durable=False, clock=clock)
    yield store
    await store.aclose()


def create(identity: str, kind: str = "response", *, expires_at: float | None = None, status: str = "") -> Create:
    body = {"text": f"{identity} " * 1000}
    return Create(Record(kind=kind, id=identity, owner="", body=body, expires_at=expires_at, status=status))


async def left(store: Store, kind: str = "response") -> list[str]:
    return [record.id for record in (await store.list(kind, None, limit=1000)).records]


# --- a round


async def test_all_that_has_expired_goes_whatever_its_kind(store: SQLiteStore, clock: Clock) -> None:
    kinds = ("response", "completion", "run", "idempotency", "session")
    for kind in kinds:
        await store.commit([create(f"{kind}-{n}", kind, expires_at=START + n) for n in range(60)])
    await store.commit([create("kept")])
    clock.now += 50
    await Retention(store, store, "me", max_bytes=None).delete()
    for kind in kinds:
        assert await left(store, kind) == [f"{kind}-{n}" for n in range(51, 60)] + ["kept"] * (kind == "response")


async def test_the_oldest_answers_go_until_the_store_is_small_enough(store: SQLiteStore) -> None:
    await store.commit([create("talk", "conversation"), create("running", status="in_progress")])
    await store.commit([create("session", "session"), create("key", "idempotency")])
    for number in range(450):
        kind = KINDS[number % 3]
        await store.commit([create(f"{kind}-{number:03}", kind, status="completed" if number % 2 else "")])
        await store.commit([AppendEvents(run=f"{kind}-{number:03}", first=0, data=[b"x" * 2000])])
    limit = await store.size() // 2
    await Retention(store, store, "me", max_bytes=limit).delete()
    size = await store.size()
    assert limit * 0.5 < size <= limit, "in steps, and not more than it takes"
    names = [name for kind in KINDS for name in await left(store, kind)]
    assert "running" in names
    remaining = sorted(name[-3:] for name in names if name != "running")
    assert remaining == [f"{n:03}" for n in range(450 - len(remaining), 450)], "the newest"
    assert len(remaining) in range(150, 300)
    for kind in ("conversation", "session", "idempotency"):
        assert len(await left(store, kind)) == 1


async def test_a_store_that_is_small_enough_keeps_all(store: SQLiteStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await store.commit([create(f"r{n}") for n in range(20)])
    await Retention(store, store, "me", max_bytes=await store.size()).delete()
    await Retention(store, store, "me", max_bytes=None).delete()
    assert len(await left(store)) == 20
    assert caplog.records == []


async def test_what_was_deleted_is_told(store: SQLiteStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentrun_server.run")
    await store.commit([create(f"r{n}", expires_at=START if n < 3 else None) for n in range(10)])
    await Retention(store, store, "me", max_bytes=1).delete()
    (told,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert told.message == "old records were deleted"
    assert (vars(told)["expired"], vars(told)["oldest"]) == (3, 7)


async def test_a_store_that_stays_too_large_is_told_once(store: SQLiteStore, caplog: pytest.LogCaptureFixture) -> None:
    retention = Retention(store, store, "me", max_bytes=200_000)
    await store.commit([create(f"c{n}", "conversation") for n in range(50)])
    await store.commit([create("r", status="queued")])
    for _ in range(3):
        await retention.delete()
    message = "the store is too large, and holds no answers that may be deleted"
    assert [record.message for record in caplog.records] == [message]
    assert await left(store) == ["r"]
    retention._max_bytes = 10_000_000
    await retention.delete()
    retention._max_bytes = 200_000
    await retention.delete()
    assert [record.message for record in caplog.records] == [message] * 2, "it is so again"


# --- who does it


async def test_one_process_does_it_until_it_dies(store: SQLiteStore, clock: Clock) -> None:
    first = Retention(store, store, "first", max_bytes=None, interval=60)
    second = Retention(store, store, "second", max_bytes=None, interval=60)
    await first.delete()
    for _ in range(3):
        clock.now += 60
        await store.commit([create("old", expires_at=clock.now)])
        await second.delete()
        assert await left(store) == ["old"]
        await first.delete()
        assert await left(store) == []
    await store.commit([create("old", expires_at=clock.now)])
    clock.now += 121
    await second.delete()
    assert await left(store) == []
    await store.commit([create("old", expires_at=clock.now)])
    await first.delete()
    assert await left(store) == ["old"], "the other has it now"


class Scripted:
    """A store and leases that delete as many records as a test says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sweeps: list[int | Exception] = []
        self.shrinks: list[int] = []
        self.sizes: list[int] = []
        self.renewed = True
        self.held: list[float] = []

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        self.calls.append(f"acquire {name} {holder}")
        self.held.append(seconds)
        return Lease(name, holder, 1)

    async def renew(self, lease: Lease, seconds: float) -> bool:
        self.calls.append(f"renew {lease.name}")
        self.held.append(seconds)
        return self.renewed

    async def sweep(self, limit: int) -> int:
        self.calls.append(f"sweep {limit}")
        answer = self.sweeps.pop(0) if self.sweeps else 0
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def size(self) -> int:
        self.calls.append("size")
        return self.sizes.pop(0)

    async def shrink(self, kinds: Collection[str], *, keep_statuses: Collection[str], limit: int) -> int:
        assert (kinds, keep_statuses) == (KINDS, OPEN)
        self.calls.append(f"shrink {limit}")
        return self.shrinks.pop(0)

    def retention(self, max_bytes: int | None = None, **options: object) -> Retention:
        return Retention(cast("Store", self), cast("Leases", self), "me", max_bytes=max_bytes, **options)  # type: ignore[arg-type]


async def test_a_round_goes_in_steps_and_the_lease_is_renewed_between_them() -> None:
    store = Scripted()
    store.sweeps, store.sizes, store.shrinks = [100, 7, 0], [30, 20, 10], [100, 100]
    await store.retention(10, interval=25).delete()
    renewed = "renew retention"
    assert store.calls == [
        "acquire retention me",
        *("sweep 100", renewed, "sweep 100", renewed, "sweep 100"),
        *("size", "shrink 100", renewed, "size", "shrink 100", renewed, "size"),
    ]
    assert set(store.held) == {50}


async def test_who_lost_the_lease_stops() -> None:
    store = Scripted()
    store.renewed = False
    store.sweeps, store.sizes = [100, 100, 100], [5]
    await store.retention(10).delete()
    assert store.calls == ["acquire retention me", "sweep 100", "renew retention", "size"]


# --- the task


class Rounds:
    """Intervals that end when a test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._go = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._go.acquire()

    async def next(self, retention: "asyncio.Task[None]") -> None:
        """Let one more round be done."""
        done = len(self.slept)
        self._go.release()
        await eventually(lambda: len(self.slept) > done or retention.done())


async def test_a_round_is_done_at_once_and_after_each_interval() -> None:
    store, rounds = Scripted(), Rounds()
    task = asyncio.create_task(store.retention(interval=25, sleep=rounds.sleep).run())
    await eventually(lambda: len(rounds.slept) == 1)
    assert store.calls == ["acquire retention me", "sweep 100"]
    await rounds.next(task)
    assert store.calls == ["acquire retention me", "sweep 100"] * 2
    assert rounds.slept == [25, 25]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


@pytest.mark.parametrize(
    ("make", "traced"), [(lambda: StorageUnavailableError("away"), False), (lambda: KeyError("a bug"), True)]
)
async def test_an_error_is_told_once_and_it_goes_on(
    make: Callable[[], Exception], traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store, rounds = Scripted(), Rounds()
    store.sweeps = [make(), make(), 0, make()]
    task = asyncio.create_task(store.retention(sleep=rounds.sleep).run())
    await eventually(lambda: len(rounds.slept) == 1)
    await rounds.next(task)
    assert [record.message for record in caplog.records] == ["old records cannot be deleted"]
    assert vars(caplog.records[0])["error"] == type(make()).__name__
    assert bool(caplog.records[0].exc_info) == traced
    await rounds.next(task)
    await rounds.next(task)
    assert len(caplog.records) == 2, "it went well in between"
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)


async def test_a_closed_store_does_not_end_the_task(store: SQLiteStore) -> None:
    rounds = Rounds()
    await store.aclose()
    task = asyncio.create_task(Retention(store, store, "me", max_bytes=1, sleep=rounds.sleep).run())
    await eventually(lambda: len(rounds.slept) == 1)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
