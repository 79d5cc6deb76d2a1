"""The log of a run: durable before it is shown, written once, and ended once, whatever the store does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.runs import journal as journal_module
from agentrun_server.runs import patience as patience_module
from agentrun_server.runs.entry import CANCELLING, Outcome, RecordEntry
from agentrun_server.runs.journal import Journal, topic
from agentrun_server.runs.patience import Patience
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.storage.contracts import (
    AppendEvents,
    Change,
    ConflictError,
    Create,
    Delete,
    Lease,
    StorageUnavailableError,
    Update,
)
from agentrun_server.storage.opening import Storage
from tests.runs.doubles import PlannedStore
from tests.runs.stores import Clock, sqlite
from tests.support.clock import eventually, within

DONE = Outcome(RunStatus.COMPLETED, {"said": "all"})
FAILED = Outcome(RunStatus.FAILED, {"said": "not all"})
CANCELLED = Outcome(RunStatus.CANCELLED, {"said": "some"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def storage(tmp_path: Path, clock: Clock) -> AsyncIterator[Storage]:
    async with sqlite(tmp_path, clock) as storage:
        yield storage


@pytest.fixture
def store(storage: Storage) -> PlannedStore:
    return PlannedStore(storage.store)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "_PAUSES", (0.0,))


class Journals:
    """Makes journals of the run ``r``, and remembers why one was given up.

    A store that is away is waited for `patience` seconds; each commit that is tried takes one.
    """

    def __init__(self, store: PlannedStore, storage: Storage, clock: Clock) -> None:
        self.store: Any = store
        self.storage = storage
        self.clock = clock
        self.lost: list[StopReason] = []
        self.lease: Lease | None = None
        self.patience = 30.0

    def now(self) -> float:
        return float(len(self.store.commits))

    def __call__(self, entry: RecordEntry | None = None, **options: Any) -> Journal:
        entry = entry or RecordEntry(kind="response", id="r", owner="alice", body={"question": "?"})
        return Journal(
            self.store,
            self.storage.bus,
            entry,
            worker="w",
            lease=lambda: self.lease,
            lost=self.lost.append,
            patience=lambda: Patience(self.patience, clock=self.now),
            clock=self.clock,
            **options,
        )

    async def log(self) -> list[bytes]:
        return [event.data for event in await self.storage.store.events("r")]

    async def status(self) -> str | None:
        record = await self.storage.store.get("response", "r", None)
        return None if record is None else record.status


@pytest.fixture
def journals(store: PlannedStore, storage: Storage, clock: Clock) -> Journals:
    return Journals(store, storage, clock)


async def read(journal: Journal, after: int = -1) -> list[bytes]:
    """Return what a reader sees until the end."""
    return [event async for batch in journal.follow(after) for event in batch]


async def until_written(journal: Journal, count: int) -> None:
    await eventually(lambda: journal.written == count)


async def written(journal: Journal) -> None:
    await within(journal.wait_closed())


# --- writing


async def test_the_record_comes_with_the_first_events_and_ends_with_the_last(journals: Journals) -> None:
    journal = journals()
    journal.append([b"one", b"two"])
    await eventually(lambda: journal.written == 2)
    record = await journals.storage.store.get("response", "r", "alice")
    assert record is not None
    assert (record.status, record.body) == ("in_progress", {"question": "?", "worker": "w"})
    journal.finish([b"three"], DONE)
    await written(journal)
    record = await journals.storage.store.get("response", "r", "alice")
    assert record is not None
    assert (record.status, record.body) == ("completed", {"said": "all"})
    assert await journals.log() == [b"one", b"two", b"three"]
    assert journal.settled
    assert journals.lost == []


async def test_a_run_that_says_all_at_once_is_one_commit(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    journal.append([b"one"])
    journal.finish([b"two"], DONE)
    await written(journal)
    assert len(store.commits) == 1
    assert await journals.log() == [b"one", b"two"]


async def test_while_one_batch_is_written_the_next_gathers(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    store.gate.clear()
    journal.append([b"one"])
    await eventually(lambda: len(store.commits) == 1)
    journal.append([b"two"])
    journal.append([b"three"])
    store.gate.set()
    await eventually(lambda: journal.written == 3)
    assert len(store.commits) == 2


async def test_nothing_is_shown_before_it_is_written(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    reader = asyncio.ensure_future(anext(journal.follow()))
    store.gate.clear()
    journal.append([b"one"])
    await eventually(lambda: len(store.commits) == 1)
    assert not reader.done()
    store.gate.set()
    assert await within(reader) == [b"one"]
    assert await journals.log() == [b"one"]


async def test_the_first_end_counts(journals: Journals) -> None:
    journal = journals()
    journal.finish([b"end"], DONE)
    journal.append([b"late"])
    journal.finish([b"other end"], FAILED)
    await written(journal)
    journal.append([b"later"])
    journal.finish([], CANCELLED)
    await asyncio.sleep(0)
    assert await journals.log() == [b"end"]
    assert await journals.status() == "completed"


async def test_what_is_left_is_not_written(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    journal.append([b"one"])
    journal.leave()
    journal.append([b"two"])
    await within(journal.wait_closed())
    await asyncio.sleep(0)
    assert not store.commits
    assert not journal.settled
    assert journals.lost == []


async def test_a_run_without_a_log_is_its_record_alone(journals: Journals) -> None:
    journal = journals(keep_events=False)
    journal.append([b"one"])
    reader = asyncio.ensure_future(read(journal))
    journal.finish([b"two"], DONE)
    assert await within(reader) == []
    assert await journals.status() == "completed"
    assert await journals.log() == []


async def test_an_agent_waits_while_much_is_to_be_written(
    journals: Journals, store: PlannedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_PENDING", 10)
    journal = journals()
    store.gate.clear()
    journal.append([b"x" * 20])
    await eventually(lambda: len(store.commits) == 1)
    await within(journal.room())  # what is being written does not count
    journal.append([b"x" * 20])
    waiting = asyncio.ensure_future(journal.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    store.gate.set()
    await within(waiting)
    journal.append([b"x" * 20])
    journal.leave()
    await within(journal.room())


async def test_readers_and_those_who_wait_for_the_end_are_woken(journals: Journals) -> None:
    class Waking(RecordEntry):
        @property
        def wakes(self) -> list[str]:
            return ["turn:c"]

    journal = journals(Waking(kind="response", id="r", owner="alice"))
    async with (
        journals.storage.bus.subscribe(topic("r")) as news,
        journals.storage.bus.subscribe("turn:c") as ends,
    ):
        journal.append([b"one"])
        await within(anext(news))
        journal.finish([], DONE)
        await within(anext(news))
        await within(anext(ends))


# --- beginning


async def test_a_run_can_begin_before_it_says_anything(journals: Journals) -> None:
    journal = journals()
    await journal.begin(RunStatus.QUEUED, [b"queued"])
    assert (await journals.status(), await journals.log()) == ("queued", [b"queued"])
    assert await within(journal.proceed([b"runs"]))
    assert (await journals.status(), await journals.log()) == ("in_progress", [b"queued", b"runs"])
    journal.finish([b"end"], DONE)
    assert await within(read(journal)) == [b"queued", b"runs", b"end"]


async def test_a_beginning_that_is_refused_is_not_looked_after(journals: Journals) -> None:
    await journals().begin(RunStatus.QUEUED)
    with pytest.raises(ConflictError):
        await journals().begin(RunStatus.QUEUED)
    assert journals.lost == []


@pytest.mark.parametrize("step", ["away", "unsure"])
async def test_of_a_beginning_that_is_not_certain_somebody_hears(
    journals: Journals, store: PlannedStore, step: Any
) -> None:
    store.plan.append(step)
    journal = journals()
    with pytest.raises(StorageUnavailableError):
        await journal.begin(RunStatus.QUEUED, [b"queued"])
    assert journal.closed
    assert journals.lost == [StopReason.STORAGE]


async def test_of_a_beginning_that_is_cancelled_somebody_hears(journals: Journals, store: PlannedStore) -> None:
    store.gate.clear()
    beginning = asyncio.ensure_future(journals().begin(RunStatus.IN_PROGRESS))
    await eventually(lambda: len(store.commits) == 1)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert journals.lost == [StopReason.STORAGE]


@pytest.mark.parametrize("events", [[], [b"one"]])
async def test_who_was_taken_for_dead_begins_nothing(journals: Journals, clock: Clock, events: list[bytes]) -> None:
    journals.lease = await journals.storage.leases.acquire("worker:w", "w", 30)
    clock.now += 31
    with pytest.raises(ConflictError):
        await journals().begin(RunStatus.IN_PROGRESS, events)
    assert await journals.status() is None


async def test_a_run_that_is_not_queued_any_more_does_not_proceed(journals: Journals) -> None:
    journal = journals()
    await journal.begin(RunStatus.QUEUED)
    cancelled = Update(kind="response", id="r", status=CANCELLING)
    await journals.storage.store.commit([cancelled])
    assert not await within(journal.proceed([b"runs"]))
    assert await journals.log() == []
    assert journals.lost == [StopReason.LEASE_LOST]


async def test_an_end_that_comes_while_a_run_proceeds_stands_behind_it(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    await journal.begin(RunStatus.QUEUED, [b"queued"])
    store.gate.clear()
    proceeding = asyncio.ensure_future(journal.proceed([b"runs"]))
    await eventually(lambda: len(store.commits) == 2)
    proceeding.cancel()
    journal.finish([b"cancelled"], CANCELLED)
    store.gate.set()
    await written(journal)
    assert await journals.log() == [b"queued", b"runs", b"cancelled"]
    assert await journals.status() == "cancelled"
    assert journals.lost == []


async def test_an_end_that_comes_before_a_run_proceeds_is_all_that_is_written(
    journals: Journals, store: PlannedStore
) -> None:
    journal = journals()
    await journal.begin(RunStatus.QUEUED)
    proceeding = asyncio.ensure_future(journal.proceed([b"runs"]))
    await asyncio.sleep(0)
    journal.finish([b"cancelled"], CANCELLED)
    assert not await within(proceeding)
    assert await journals.log() == [b"runs", b"cancelled"]
    assert len(store.commits) == 2


# --- a store that fails


async def test_a_store_that_was_away_loses_nothing(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    store.plan.extend(["away", "away", "written", "away"])
    journal.append([b"one"])
    await eventually(lambda: journal.written == 1)
    journal.finish([b"two"], DONE)
    await written(journal)
    assert await within(read(journal)) == [b"one", b"two"] == await journals.log()
    assert journals.lost == []


async def test_what_was_written_after_all_is_not_written_twice(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    store.plan.append("unsure")
    journal.append([b"one", b"two"])
    await eventually(lambda: journal.written == 2)
    store.plan.append("unsure")
    journal.finish([b"three"], DONE)
    await written(journal)
    assert len(store.commits) == 2
    assert await journals.log() == [b"one", b"two", b"three"]
    assert await journals.status() == "completed"


async def test_a_run_that_proceeded_after_all_does_not_proceed_twice(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    await journal.begin(RunStatus.QUEUED)
    store.plan.append("unsure")
    assert await within(journal.proceed([]))
    assert len(store.commits) == 2


async def test_a_store_that_cannot_be_read_either_is_tried_again(journals: Journals, store: PlannedStore) -> None:
    journal = journals()
    store.plan.append("unsure")
    store.reads_fail = 2
    journal.append([b"one"])
    await eventually(lambda: journal.written == 1)
    assert await journals.log() == [b"one"]
    assert len(store.commits) == 1


@pytest.mark.parametrize("reads_fail", [0, 2])
async def test_what_was_written_late_is_not_written_twice(
    journals: Journals, store: PlannedStore, reads_fail: int
) -> None:
    """The commit that failed is made after it was looked for, and before the next try."""
    journal = journals()
    journal.append([b"zero"])
    await eventually(lambda: journal.written == 1)

    class Late(PlannedStore):
        async def commit(self, changes: Any) -> None:
            if len(self.commits) == 1:
                await self._store.commit(self.commits[0])
                self.reads_fail = reads_fail
            await super().commit(changes)

    late: Any = Late(journals.storage.store)
    late.plan.append("away")
    journal._store = late
    journal.finish([b"one"], DONE)
    await written(journal)
    assert journal.settled
    assert await journals.log() == [b"zero", b"one"]
    assert not late.reads_fail


@pytest.mark.parametrize("ended", [False, True])
async def test_a_store_that_stays_away_is_given_up(
    journals: Journals, store: PlannedStore, caplog: pytest.LogCaptureFixture, ended: bool
) -> None:
    journals.patience = 9.0
    journal = journals()
    store.plan.extend(["away"] * 10)
    journal.append([b"one"])
    if ended:
        journal.finish([b"two"], DONE)
    await written(journal)
    assert await within(read(journal)) == []
    assert not journal.settled
    assert journals.lost == [StopReason.STORAGE] == [journal.given_up]
    assert len(store.commits) == 9
    assert [record.message for record in caplog.records] == ["a run cannot be written down now"]


async def test_a_store_that_is_away_for_less_is_waited_for_and_what_is_said_gathers(
    journals: Journals, store: PlannedStore
) -> None:
    journal = journals()
    store.plan.extend(["away", "unsure"])  # what comes behind the second is refused, until it is known to be written
    store.reads_fail = 50
    journal.append([b"one"])
    await eventually(lambda: len(store.commits) == 2)
    for word in (b"two", b"three"):
        journal.append([word])
    journal.finish([b"four"], DONE)
    await written(journal)
    assert journal.settled
    assert await journals.log() == [b"one", b"two", b"three", b"four"]
    assert len(store.commits) == 3, "what was said meanwhile is one commit"
    assert journals.lost == []


async def test_each_time_that_the_store_is_away_is_waited_for_anew(journals: Journals, store: PlannedStore) -> None:
    journals.patience = 3.0
    journal = journals()
    for number in range(1, 4):
        store.plan.extend(["away"] * 2)
        journal.append([b"one"])
        await until_written(journal, number)
    journal.finish([], DONE)
    await written(journal)
    assert await journals.log() == [b"one"] * 3


async def test_a_run_that_was_taken_away_meanwhile_is_not_written(
    journals: Journals, store: PlannedStore, clock: Clock
) -> None:
    journals.lease = await journals.storage.leases.acquire("worker:w", "w", 30)
    journal = journals()
    journal.append([b"one"])
    await eventually(lambda: journal.written == 1)
    store.plan.extend(["away"] * 5)

    async def time_passes() -> None:
        clock.now += 7

    store.before = time_passes
    journal.append([b"two"])
    await written(journal)
    assert await journals.log() == [b"one"]
    assert journals.lost == [StopReason.LEASE_LOST] == [journal.given_up]


async def test_who_waits_for_the_store_can_be_told_to_leave(
    journals: Journals, store: PlannedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "_PAUSES", (3600.0,))
    journals.patience = 4000.0
    journal = journals()
    store.plan.append("away")
    journal.append([b"one"])
    await eventually(lambda: not store.plan)
    journal.leave()
    await eventually(lambda: journal._writer is None)
    assert (len(store.commits), journals.lost, journal.given_up) == (1, [], None)


async def test_a_writer_that_is_cancelled_leaves_nobody_waiting(journals: Journals, store: PlannedStore) -> None:
    started: list[asyncio.Task[None]] = []

    def spawn(writing: Any) -> "asyncio.Task[None]":
        started.append(asyncio.create_task(writing))
        return started[-1]

    journal = journals(spawn=spawn)
    store.gate.clear()
    journal.append([b"one"])
    await eventually(lambda: len(store.commits) == 1)
    started[0].cancel()
    await written(journal)
    await asyncio.wait(started)
    assert journals.lost == []


async def test_a_reader_waits_for_a_store_that_is_away(
    journals: Journals, store: PlannedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_TAIL", 0)
    journal = journals()
    journal.append([b"one", b"two"])
    journal.finish([b"three"], DONE)
    await written(journal)
    store.reads_fail = 5
    assert await within(read(journal)) == [b"one", b"two", b"three"]
    assert store.reads_fail == 0


@pytest.mark.parametrize("theirs", [FAILED, DONE])
async def test_the_end_that_others_wrote_meanwhile_is_not_taken_for_ours(
    journals: Journals, store: PlannedStore, theirs: Outcome
) -> None:
    journal = journals()
    journal.append([b"one"])
    await eventually(lambda: journal.written == 1)
    store.plan.append("away")

    async def end_it() -> None:
        other = journals(RecordEntry(kind="response", id="r", owner="alice", begun=True), written=1)
        other._store = journals.storage.store
        other.finish([b"their end"], theirs)
        await other.wait_closed()

    store.before = end_it
    journal.finish([b"our end"], FAILED)
    await written(journal)
    assert await within(read(journal)) == [b"one"], "nobody is shown what is not in the log"
    assert await journals.log() == [b"one", b"their end"]
    assert journals.lost == [StopReason.LEASE_LOST]


async def test_who_lost_the_lease_writes_nothing(journals: Journals, clock: Clock) -> None:
    journals.lease = await journals.storage.leases.acquire("worker:w", "w", 30)
    journal = journals()
    journal.append([b"one"])
    await eventually(lambda: journal.written == 1)
    clock.now += 31
    journal.append([b"two"])
    await written(journal)
    journal.finish([b"three"], DONE)
    assert await journals.log() == [b"one"]
    assert await journals.status() == "in_progress"
    assert (journals.lost, journal.settled) == ([StopReason.LEASE_LOST], False)


async def test_who_was_cancelled_elsewhere_does_not_complete(journals: Journals) -> None:
    journal = journals()
    await journal.begin(RunStatus.IN_PROGRESS)
    await journals.storage.store.commit([Update(kind="response", id="r", status=CANCELLING)])
    journal.finish([b"end"], DONE)
    await written(journal)
    assert (await journals.status(), await journals.log()) == (CANCELLING, [])
    assert journals.lost == [StopReason.LEASE_LOST]


async def test_what_stands_in_the_way_of_an_end_is_left_out(journals: Journals, store: PlannedStore) -> None:
    class WithItem(RecordEntry):
        left_out = False

        def end(self, outcome: Outcome, fence: Lease | None, now: float) -> list[Change]:
            changes = RecordEntry.end(self, outcome, fence, now)
            return changes if self.left_out else [*changes, Update(kind="conversation", id="gone", status="")]

        def give_way(self) -> bool:
            self.left_out, before = True, self.left_out
            return not before

    journal = journals(WithItem(kind="response", id="r", owner="alice"))
    journal.finish([b"end"], DONE)
    await written(journal)
    assert journal.settled
    assert await journals.log() == [b"end"]
    assert len(store.commits) == 2


async def test_an_error_that_nobody_expected_ends_the_run(
    journals: Journals, store: PlannedStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ValueError("a bug")

    store.plan.append("away")
    store.before = broken
    journal = journals()
    journal.append([b"one"])
    await written(journal)
    assert journals.lost == [StopReason.STORAGE]
    assert [record.message for record in caplog.records] == ["a run cannot be written down"]


# --- reading


async def test_a_reader_begins_where_it_wants_to(journals: Journals) -> None:
    journal = journals()
    journal.append([b"0", b"1", b"2"])
    await eventually(lambda: journal.written == 3)
    readers = [asyncio.ensure_future(read(journal, after)) for after in range(-1, 6)]
    await asyncio.sleep(0)
    journal.finish([b"3"], DONE)
    found = await within(asyncio.gather(*readers))
    assert found == [[b"0", b"1", b"2", b"3"], [b"1", b"2", b"3"], [b"2", b"3"], [b"3"], [], [], []]


async def test_what_is_not_in_memory_any_more_is_read_from_the_store(
    journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_TAIL", 3)
    monkeypatch.setattr(journal_module, "_PAGE", 2)
    journal = journals()
    events = [b"%d" % number for number in range(9)]
    journal.append(events)
    await eventually(lambda: journal.written == 9)
    assert len(journal._tail) == 3
    reader = asyncio.ensure_future(read(journal))
    journal.finish([b"end"], DONE)
    assert await within(reader) == [*events, b"end"]


async def test_a_run_that_goes_on_shows_what_was_said_before(journals: Journals) -> None:
    first = journals()
    await first.begin(RunStatus.IN_PROGRESS, [b"0", b"1"])
    first.leave()
    entry = RecordEntry(kind="response", id="r", owner="alice", begun=True)
    second = journals(entry, written=2)
    second.finish([b"2"], DONE)
    assert await within(read(second)) == [b"0", b"1", b"2"]
    assert await within(read(first)) == [b"0", b"1"]


async def test_a_reader_of_what_was_deleted_comes_to_an_end(
    journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_TAIL", 0)
    journal = journals()
    journal.append([b"0", b"1"])
    await eventually(lambda: journal.written == 2)
    await journals.storage.store.commit([Delete("response", "r")])
    assert await within(read(journal)) == []


async def test_the_record_stands_before_its_log(journals: Journals, store: PlannedStore) -> None:
    companion = Delete("idempotency", "i")
    journal = journals(RecordEntry(kind="response", id="r", owner="alice", companions=(companion,)))
    journal.finish([b"one"], DONE)
    await written(journal)
    ((created, *others),) = store.commits
    assert isinstance(created, Create)
    assert others == [companion, AppendEvents(run="r", first=0, data=[b"one"])]
