"""The runs of a server, and what becomes of those that nobody runs any more."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.config import ServerConfig
from agentrun_server.errors import APIError, InvalidRequestError, NotFoundError
from agentrun_server.runs import registry
from agentrun_server.runs.entry import CANCELLING, OPEN, Entry, Outcome, RecordEntry
from agentrun_server.runs.patience import SHORT, Patience
from agentrun_server.runs.pump import Outlet
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.registry import Revived, Runs, storage_lost, worker_lost
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.storage.contracts import (
    AppendEvents,
    ConflictError,
    Create,
    Delete,
    Record,
    StorageUnavailableError,
    Update,
)
from agentrun_server.storage.opening import Storage
from tests.runs.doubles import Counter, PlannedStore, Said
from tests.runs.stores import Clock, sqlite
from tests.support.clock import eventually, within

LEASE = 30.0
_sleep = asyncio.sleep


async def hang(outlet: Outlet) -> None:
    await outlet.write("some")
    await asyncio.get_running_loop().create_future()


class Kind:
    """A `KindOfRun` whose runs say words."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.attempts: list[tuple[str, int]] = []
        self.refuses: Exception | None = None
        self.breaks_at = ""

    def conclude(
        self, record: Record, events: Sequence[bytes], error: APIError | None
    ) -> tuple[Entry, list[bytes], Outcome]:
        if record.id == self.breaks_at:
            raise LookupError("a log that cannot be read")
        script = Said(is_open=True)
        written = script.cancel() if error is None else script.fail(error)
        return self._entry(record), written, script.outcome()

    async def revive(self, record: Record, events: Sequence[bytes], *, attempt: int) -> Revived | None:
        if self.refuses is not None:
            raise self.refuses
        if record.body.get("call") is None:
            return None
        self.attempts.append((record.id, attempt))
        entry = self._entry(record)
        entry.body = {**record.body, "attempt": attempt}
        recording = Recording(self._config, record.id, Said(), enter=self._enter)
        changes = [Update(kind="conversation", id="c", status="")] if record.body.get("conversation") else []
        return Revived(recording, entry, entry.body, changes)

    def _entry(self, record: Record) -> RecordEntry:
        return RecordEntry(kind="response", id=record.id, owner=record.owner, body=record.body, begun=True)

    async def _enter(self) -> Any:
        return lambda: None


class Quiet(Runs):
    """Runs whose lease is renewed, and whose dead are buried, when the test says so."""

    async def _keep(self, seconds: float, work: Callable[[], Awaitable[None]], *, vital: bool = False) -> None:
        if seconds < 1:
            await super()._keep(seconds, work, vital=vital)


class Server:
    """One server of a store that others share."""

    def __init__(self, storage: Storage, config: ServerConfig) -> None:
        self.storage = storage
        self.config = config
        self.opened = 0
        self.away = False
        self.kind = Kind(config)
        self.runs = Quiet(config, _ids, Sweeper(config), self._open)
        self.runs.kinds = {"response": self.kind}

    async def _open(self) -> Storage:
        self.opened += 1
        if self.away:
            raise StorageUnavailableError("away")
        return self.storage

    @property
    def worker(self) -> str:
        return self.runs._worker.id

    async def start(self, identity: str = "r", agent: Any = hang, **options: Any) -> Recording:
        """Run `agent`, whose record is begun."""
        recording = self.make(identity, agent, **options)
        await recording.journal.begin(RunStatus.IN_PROGRESS)
        self.runs.start(recording)
        return recording

    def make(self, identity: str, agent: Any = hang, **options: Any) -> Recording:
        recording = Recording(self.config, "req", Said(agent), **options)
        entry = RecordEntry(kind="response", id=identity, owner="alice", body={"attempt": 1})
        self.runs.journal(self.storage, entry, recording)
        return recording

    async def bury_dead(self) -> None:
        await self.runs._bury_dead(self.storage)

    async def renew(self) -> None:
        await self.runs._renew(self.storage)


_ids = Counter()


class Bench:
    """A file and the servers that share it."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.clock = Clock()

    async def server(self, *, store: type[PlannedStore] | None = None, **settings: Any) -> Server:
        """Return one more server; its storage is open."""
        storage = await self._stack.enter_async_context(sqlite(self._folder, self.clock))
        if store is not None:
            planned: Any = store(storage.store)
            storage = replace(storage, store=planned)
        server = Server(storage.lent(), ServerConfig(**{"worker_lease": LEASE, **settings}))
        await server.runs.storage()
        self._stack.push_async_callback(self._close, server)
        return server

    @staticmethod
    async def _close(server: Server) -> None:
        await server.runs.aclose()
        assert server.runs.background.is_empty

    async def leave_behind(self, server: Server, *records: Record) -> None:
        """Put runs of a worker into the store that is dead."""
        dead = server.runs._worker.heir()
        body = {"worker": dead.record.id, "attempt": 1}
        made = [Create(replace(record, body={**body, **record.body})) for record in records]
        await server.storage.store.commit([dead, *made])


def run(identity: str = "r", status: str = "in_progress", **body: Any) -> Record:
    return Record(kind="response", id=identity, owner="alice", status=status, body=body)


async def outcome(server: Server, identity: str = "r") -> tuple[str, Any, list[str]]:
    """Return status, what was said of it, and the log."""
    record = await server.storage.store.get("response", identity, None)
    assert record is not None
    events = await server.storage.store.events(identity)
    return record.status, record.body.get("said"), [event.data.decode() for event in events]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(5000):
        if await holds():
            return
        await _sleep(0.001)
    raise AssertionError("it did not come to hold")


async def ended(server: Server, identity: str = "r") -> None:
    async def has_ended() -> bool:
        return (await outcome(server, identity))[0] not in OPEN

    await until(has_ended)


async def workers(server: Server) -> int:
    return len((await server.storage.store.list("worker", None, limit=100)).records)


async def read(server: Server, record: Record, after: int = -1) -> list[bytes]:
    return [event async for batch in server.runs.follow(record, after) for event in batch]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(registry, "_LOOK_OFTEN", 0.005)
    async with AsyncExitStack() as stack:
        yield Bench(tmp_path, stack)


# --- the storage


async def test_the_storage_is_opened_once_and_again_when_that_failed(bench: Bench) -> None:
    server = await bench.server()
    await server.runs.aclose()
    assert not server.runs.is_open
    server.opened, server.away = 0, True
    for _ in range(2):
        with pytest.raises(StorageUnavailableError):
            await server.runs.storage()
    assert (server.opened, server.runs.is_open) == (2, False)
    server.away = False
    await asyncio.gather(*(server.runs.storage() for _ in range(5)))
    assert (server.opened, server.runs.is_open) == (3, True)


async def test_what_is_there_is_opened_when_the_server_starts(bench: Bench) -> None:
    server = await bench.server(worker_lease=0.01)
    await server.runs.aclose()
    server.opened, server.away = 0, True
    server.runs.open_soon()
    await eventually(lambda: server.opened > 1)
    assert server.runs.failing
    server.away = False
    await eventually(lambda: server.runs.is_open)
    await eventually(lambda: not server.runs.failing)
    await server.runs.aclose()
    server.runs._is_there = lambda: False
    server.opened = 0
    server.runs.open_soon()
    await asyncio.sleep(0)
    assert not server.opened


# --- runs of dead workers


async def test_the_runs_of_a_dead_worker_are_ended_and_it_is_buried(bench: Bench) -> None:
    server = await bench.server()
    await bench.leave_behind(server, *(run(f"r{number}") for number in range(120)), run("c", CANCELLING))
    await bench.leave_behind(server)
    await server.bury_dead()
    assert await outcome(server, "r0") == ("failed", "failed:worker_lost", [])
    assert await outcome(server, "r119") == ("failed", "failed:worker_lost", [])
    assert await outcome(server, "c") == ("cancelled", "cancelled", [])
    assert await workers(server) == 1


async def test_the_end_stands_behind_what_was_said(bench: Bench) -> None:
    dying, living = await bench.server(), await bench.server()
    recording = await dying.start()
    await eventually(lambda: recording.journal.closed or len(recording.journal._tail) == 1)
    bench.clock.now += LEASE + 1
    await living.renew()
    await living.bury_dead()
    assert await outcome(living) == ("failed", "failed:worker_lost", ["some", "failed:worker_lost"])


async def test_those_of_the_living_go_on(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    await one.start()
    await other.bury_dead()
    assert (await outcome(other))[0] == "in_progress"


async def test_who_cannot_end_all_runs_of_a_dead_worker_tries_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "pause", lambda _: None)
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    await bench.leave_behind(server, run("r1"), run("r2"))
    server.kind.breaks_at = "r1"
    await server.bury_dead()
    assert (await outcome(server, "r1"))[0] == "in_progress"
    assert (await outcome(server, "r2"))[0] == "failed", "one that cannot be ended holds up nobody"
    assert await workers(server) == 2, "it is not forgotten"
    server.kind.breaks_at = ""
    store.plan.append("away")
    await server.bury_dead()
    assert (await outcome(server, "r1"))[0] == "in_progress"
    assert await workers(server) == 2
    await server.bury_dead()
    assert (await outcome(server, "r1"))[0] == "failed"
    assert await workers(server) == 1


async def test_one_that_waited_runs_elsewhere_and_that_is_no_attempt(bench: Bench) -> None:
    server = await bench.server()
    await bench.leave_behind(server, run("r", "queued", call={}))
    await server.bury_dead()
    await eventually(lambda: not server.runs.local)
    assert server.kind.attempts == [("r", 1)]
    assert await outcome(server) == ("completed", "done", ["proceeds", "hello", "done"])


@pytest.mark.parametrize("models", [["m"], ["*"], ["other", "m"]])
async def test_one_whose_agent_is_idempotent_runs_again(bench: Bench, models: list[str]) -> None:
    server = await bench.server(idempotent_models=models)
    await bench.leave_behind(server, run(model="m", call={}, background=True))
    await server.bury_dead()
    await eventually(lambda: not server.runs.local)
    assert server.kind.attempts == [("r", 2)]
    assert (await outcome(server))[0] == "completed"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("in_progress", {"model": "other", "call": {}, "background": True}),
        ("in_progress", {"model": "m", "call": {}, "background": False}),
        ("in_progress", {"model": "m", "call": {}, "background": True, "attempt": 3}),
        ("in_progress", {"model": "m", "background": True}),
        ("queued", {"model": "m", "background": True}),
        ("queued", {"model": "m", "call": {}, "background": True, "conversation": "gone"}),
    ],
    ids=["another agent", "somebody waited", "three times", "cannot be run", "nor this one", "its turn is gone"],
)
async def test_others_have_failed(bench: Bench, status: str, body: dict[str, Any]) -> None:
    server = await bench.server(idempotent_models=["m"])
    await bench.leave_behind(server, run("r", status, **body))
    await server.bury_dead()
    assert await outcome(server) == ("failed", "failed:worker_lost", [])
    assert not server.runs.local


async def test_one_that_is_not_allowed_any_more_has_failed(bench: Bench) -> None:
    server = await bench.server()
    server.kind.refuses = InvalidRequestError("too long")
    await bench.leave_behind(server, run("r", "queued", call={}))
    await server.bury_dead()
    assert (await outcome(server))[0] == "failed"


async def test_one_that_was_perhaps_taken_over_is_looked_after(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    await bench.leave_behind(server, run("r", "queued", call={}))
    store.plan.append("unsure")
    with pytest.raises(StorageUnavailableError):
        await server.bury_dead()
    await ended(server, "r")
    assert await outcome(server) == ("failed", "failed:storage_unavailable", [])


async def test_one_that_is_cancelled_while_it_is_taken_over_does_not_run(bench: Bench) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    await bench.leave_behind(server, run("r", "queued", call={}))
    store.gate.clear()
    burying = asyncio.create_task(server.bury_dead())
    await eventually(lambda: bool(server.kind.attempts))
    await store._store.commit([Update(kind="response", id="r", status=CANCELLING)])
    store.gate.set()
    await within(burying)
    assert not server.runs.local
    await server.bury_dead()
    assert await outcome(server) == ("cancelled", "cancelled", [])


async def test_a_worker_that_dies_while_it_takes_over_leaves_it_to_the_next(bench: Bench) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    await bench.leave_behind(server, run("r", "queued", call={}))
    store.gate.clear()
    burying = asyncio.create_task(server.bury_dead())
    await eventually(lambda: bool(server.kind.attempts))
    server.runs._worker.id = "another"
    store.gate.set()
    await within(burying)
    assert not server.runs.local
    assert (await outcome(server))[0] == "queued"


async def test_those_for_which_there_is_no_room_wait_where_they_are(bench: Bench) -> None:
    server = await bench.server(max_background_runs=2, max_background_runs_per_owner=1)
    room = server.runs.background.take("bob", 1)
    await bench.leave_behind(
        server, run("r1", "queued", call={}), run("r2", "queued", call={}), run("r3", "in_progress")
    )
    await server.bury_dead()
    await eventually(lambda: not server.runs.local)
    assert [(await outcome(server, name))[0] for name in ("r1", "r2", "r3")] == ["completed", "queued", "failed"]
    await server.bury_dead()
    await eventually(lambda: not server.runs.local)
    assert (await outcome(server, "r2"))[0] == "completed"
    assert server.kind.attempts == [("r1", 1), ("r2", 1)]
    await server.bury_dead()
    assert await workers(server) == 1
    room.give_back()


async def test_one_that_is_taken_over_takes_what_it_was_asked(bench: Bench) -> None:
    server = await bench.server(max_background_bytes=1000, max_background_runs_per_owner=None)
    room = server.runs.background.take("bob", 1)
    await bench.leave_behind(server, run("r", "queued", call={}, size=1000))
    await server.bury_dead()
    assert (await outcome(server))[0] == "queued"
    room.give_back()
    await server.bury_dead()
    await ended(server)
    assert (await outcome(server))[0] == "completed"


@pytest.mark.parametrize("reason", [StopReason.CANCELLED, StopReason.SHUTDOWN, StopReason.LEASE_LOST])
async def test_room_comes_back_when_the_task_has_ended(bench: Bench, reason: StopReason) -> None:
    server = await bench.server()
    recording = server.make("r")
    recording.room = server.runs.background.take("alice", 10)
    await recording.journal.begin(RunStatus.QUEUED)
    server.runs.start(recording)
    await asyncio.sleep(0)
    assert not server.runs.background.is_empty
    recording.stop(reason)
    assert not server.runs.background.is_empty  # the agent cleans up, and holds what it was asked
    await eventually(lambda: server.runs.background.is_empty)


# --- a lease that is lost


async def test_who_was_taken_for_dead_stops_its_runs_and_goes_on_as_another(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    server = await bench.server()
    recording, worker = await server.start(), server.worker
    turns = server.runs.turns
    bench.clock.now += LEASE + 1
    await server.renew()
    assert recording.run.stop_reason is StopReason.LEASE_LOST
    assert server.worker != worker
    assert server.runs.turns is not turns
    assert "taken for dead" in caplog.text
    await eventually(lambda: not server.runs.local)
    await server.bury_dead()
    assert (await outcome(server))[1] == "failed:worker_lost"
    fresh = await server.start("fresh")
    assert not fresh.journal.closed


async def test_what_was_to_begin_under_the_old_name_is_refused(bench: Bench) -> None:
    server = await bench.server()
    recording = server.make("r")
    bench.clock.now += LEASE + 1
    await server.renew()
    with pytest.raises(ConflictError):
        await recording.journal.begin(RunStatus.IN_PROGRESS)


async def test_who_has_left_writes_nothing(bench: Bench) -> None:
    server = await bench.server()
    recording = server.make("r")
    await server.runs._worker.leave()
    with pytest.raises(ConflictError):
        await recording.journal.begin(RunStatus.IN_PROGRESS)


# --- a store that fails


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "pause", lambda _: None)

    async def sleep(seconds: float) -> None:
        await _sleep(min(seconds, 0.01))

    monkeypatch.setattr(asyncio, "sleep", sleep)


@pytest.mark.usefixtures("no_pauses")
async def test_a_run_that_cannot_be_written_is_ended_as_soon_as_that_is_possible(bench: Bench) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    recording = await server.start()
    store.plan.extend(["away"] * 3)  # what it says, and twice the end
    await eventually(lambda: recording.run.stop_reason is StopReason.STORAGE)
    await ended(server)
    assert await outcome(server) == ("failed", "failed:storage_unavailable", [])


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("step", ["away", "unsure"])
async def test_a_run_of_which_nobody_knows_whether_it_began_is_not_left_behind(bench: Bench, step: Any) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    store.plan.append(step)
    with pytest.raises(StorageUnavailableError):
        await server.start()
    if step == "unsure":
        await ended(server)
        assert (await outcome(server))[1] == "failed:storage_unavailable"
    else:
        await eventually(lambda: not any("_look_after" in repr(task) for task in server.runs._tasks))
        assert await store.get("response", "r", None) is None


class Late(PlannedStore):
    """A store that makes what has failed when it is looked for once more."""

    looks = 0
    made = False

    async def get(self, kind: str, id: str, owner: str | None) -> Record | None:  # noqa: A002 - the field's name
        self.looks += kind == "response"
        if self.looks == 2:
            await self._store.commit(self.commits[-1])
            self.made = True
        return await super().get(kind, id, owner)


@pytest.mark.usefixtures("no_pauses")
async def test_a_run_that_appears_late_is_not_left_behind(bench: Bench) -> None:
    server = await bench.server(store=Late)
    store: Any = server.storage.store
    store.plan.append("away")
    with pytest.raises(StorageUnavailableError):
        await server.start()
    await eventually(lambda: store.made)
    await ended(server)
    assert (await outcome(server))[1] == "failed:storage_unavailable"


@pytest.mark.usefixtures("no_pauses")
async def test_a_run_that_goes_on_here_is_not_ended(bench: Bench) -> None:
    server = await bench.server()
    await server.start()
    await server.runs._look_after("response", "r")
    assert (await outcome(server))[0] == "in_progress"


async def test_while_the_lease_cannot_be_renewed_the_server_is_not_ready(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = await bench.server()
    monkeypatch.setattr(registry, "_LOOK_EVERY", 0.001)
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StorageUnavailableError("away")
        if tries == 5:
            raise LookupError("a bug")

    keeping = asyncio.create_task(server.runs._keep(0.001, work, vital=True))
    await eventually(lambda: server.runs.failing)
    await eventually(lambda: tries > 5 and not server.runs.failing)
    keeping.cancel()
    assert caplog.text.count("cannot be asked") == 2, "once for each time that it begins to fail"


# --- a store that is away for a while


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrun_server.runs.patience._PAUSES", (0.001,))


class Waits(list[float]):
    """Seconds of each patience that was begun."""

    def __call__(self, seconds: float) -> Patience:
        self.append(seconds)
        return Patience(seconds)


@pytest.mark.parametrize(
    ("settings", "longest"), [({}, LEASE), ({"store_patience": 12.0}, 12.0), ({"store_patience": 0.1}, SHORT)]
)
async def test_a_run_waits_for_its_store_as_long_as_the_settings_say(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], longest: float
) -> None:
    monkeypatch.setattr(registry, "Patience", waits := Waits())
    server = await bench.server(**settings)
    recording = await server.start()
    await eventually(lambda: recording.journal.written == 1)
    assert waits == [longest]


@pytest.mark.parametrize(("worked", "waits_for"), [(0.2, SHORT), (9.0, 9.0), (60.0, LEASE)])
async def test_one_of_which_nothing_is_stored_waits_no_longer_than_it_has_worked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, worked: float, waits_for: float
) -> None:
    monkeypatch.setattr(registry, "Patience", waits := Waits())
    server = await bench.server()
    recording = server.make("r")

    async def agent(outlet: Outlet) -> None:
        recording.run_started -= worked
        await outlet.write("some")

    recording.script = Said(agent)
    server.runs.start(recording)
    await eventually(lambda: recording.journal.settled)
    assert waits[0] == pytest.approx(waits_for, abs=0.5)


@pytest.mark.usefixtures("short_pauses")
async def test_a_run_goes_on_when_its_store_is_back(bench: Bench) -> None:
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    said = asyncio.Event()

    async def agent(outlet: Outlet) -> None:
        for word in ("1", "2", "3"):
            await outlet.write(word)
            await asyncio.sleep(0)
        said.set()

    recording = server.make("r", agent)
    await recording.journal.begin(RunStatus.IN_PROGRESS)
    store.away = True
    server.runs.start(recording)
    reader = asyncio.create_task(read(server, run()))
    await within(said.wait())
    await eventually(lambda: store.refused > 10)
    assert "r" in server.runs.local
    assert not reader.done()
    store.away = False
    assert await within(reader) == [b"1", b"2", b"3", b"done"]
    assert await outcome(server) == ("completed", "done", ["1", "2", "3", "done"])


@pytest.mark.usefixtures("short_pauses")
async def test_a_run_is_cancelled_while_its_store_is_away_and_that_is_written_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "_CANCEL_WAIT", 0.02)
    server = await bench.server(store=PlannedStore)
    store: Any = server.storage.store
    recording = await server.start()
    await eventually(lambda: recording.journal.written == 1)
    store.away = True
    with pytest.raises(StorageUnavailableError):
        await within(server.runs.cancel(run()))
    assert recording.run.stop_reason is StopReason.CANCELLED
    await eventually(lambda: recording.stopped_at == 0.0)
    recording.check(time.monotonic() + 3600)
    assert not recording.abandoned, "its agent has ended; what is left is to be written"
    store.away = False
    await ended(server)
    assert await outcome(server) == ("cancelled", "cancelled", ["some", "cancelled"])
    assert "does not end" not in caplog.text


@pytest.mark.parametrize(
    ("is_background", "owner", "stops"), [(True, "alice", True), (True, "bob", False), (False, "alice", False)]
)
async def test_its_owner_stops_what_runs_here_in_the_background_without_the_store(
    bench: Bench, is_background: bool, owner: str, stops: bool
) -> None:
    server = await bench.server()
    recording = await server.start()
    recording.room = server.runs.background.take("alice", 1) if is_background else None
    server.runs.stop_here("r", owner)
    server.runs.stop_here("another", owner)
    assert (recording.run.stop_reason is StopReason.CANCELLED) is stops


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("agent_ended", [False, True])
async def test_a_server_whose_store_is_away_stops_all_the_same(bench: Bench, agent_ended: bool) -> None:
    server, other = await bench.server(store=PlannedStore, cancel_grace=0.05), await bench.server()
    store: Any = server.storage.store
    recording = await server.start(agent=None if agent_ended else hang)
    store.away = True
    await eventually(lambda: store.refused > 5)
    await within(server.runs.aclose())
    assert recording.journal.closed
    assert not [task for task in asyncio.all_tasks() if "Journal" in repr(task.get_coro())]
    store.away = False
    bench.clock.now += LEASE + 1
    await other.bury_dead()
    assert (await outcome(other))[1] == "failed:worker_lost"


@pytest.mark.usefixtures("short_pauses")
async def test_who_reads_at_another_server_waits_for_the_store_too(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server(store=PlannedStore)
    store: Any = other.storage.store
    recording = await one.start()
    reader = asyncio.create_task(read(other, run()))
    await eventually(lambda: recording.journal.written == 1)
    store.away = True
    await _sleep(0.03)
    recording.stop(StopReason.CANCELLED)
    await eventually(lambda: not one.runs.local)
    assert not reader.done()
    store.away = False
    assert await within(reader) == [b"some", b"cancelled"]


# --- reading


async def test_a_run_is_read_wherever_it_runs(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    go_on = asyncio.Event()

    async def agent(outlet: Outlet) -> None:
        await outlet.write("0 1")
        await go_on.wait()
        await outlet.write("2")

    await one.start("r", agent)
    readers = [asyncio.create_task(read(server, run(), after)) for server in (one, other) for after in (-1, 0, 1, 99)]
    await asyncio.sleep(0.02)
    go_on.set()
    found = await within(asyncio.gather(*readers))
    assert found == [[b"0", b"1", b"2", b"done"], [b"1", b"2", b"done"], [b"2", b"done"], []] * 2
    assert await read(one, run()) == found[0], "afterwards too"


async def test_who_reads_what_others_go_on_with_sees_it_all(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    recording = await one.start()
    record = run()
    reader = asyncio.create_task(read(one, record))
    await eventually(lambda: recording.journal.written == 1)
    recording.stop(StopReason.LEASE_LOST)
    entry, events, outcome_ = other.kind.conclude(record, [b"some"], worker_lost())
    theirs = other.runs.journal(other.storage, entry, Recording(other.config, "req", Said()), written=1)
    theirs.finish(events, outcome_)
    assert await within(reader) == [b"some", b"failed:worker_lost"]


async def test_who_reads_what_another_takes_up_sees_what_both_have_said_once(bench: Bench) -> None:
    """At the server that lost it, at the one that has it, and at a third."""
    losing, taking, third = await bench.server(), await bench.server(idempotent_models=["*"]), await bench.server()
    recording = losing.make("r")
    entry: Any = recording.journal.entry
    entry.body = {"attempt": 1, "call": {}, "background": True}
    await recording.journal.begin(RunStatus.IN_PROGRESS)
    losing.runs.start(recording)
    readers = [asyncio.create_task(read(server, run())) for server in (losing, taking, third)]
    await eventually(lambda: recording.journal.written == 1)
    bench.clock.now += LEASE + 1
    await taking.renew()
    await taking.bury_dead()
    await losing.renew()
    found = await within(asyncio.gather(*readers))
    assert found == [[b"some", b"proceeds", b"hello", b"done"]] * 3
    assert await outcome(third) == ("completed", "done", ["some", "proceeds", "hello", "done"])


async def test_who_reads_what_nobody_takes_up_waits_as_long_as_a_run_does(bench: Bench) -> None:
    server = await bench.server(store_patience=0.01)
    recording = await server.start()
    reader = asyncio.create_task(read(server, run()))
    await eventually(lambda: recording.journal.written == 1)
    recording.stop(StopReason.LEASE_LOST)
    with pytest.raises(StorageUnavailableError):
        await within(reader)


async def test_who_was_taken_for_dead_may_take_up_its_own_run_and_its_readers_see_it_all(bench: Bench) -> None:
    server = await bench.server(idempotent_models=["*"])
    recording = server.make("r")
    entry: Any = recording.journal.entry
    entry.body = {"attempt": 1, "call": {}, "background": True}
    await recording.journal.begin(RunStatus.IN_PROGRESS)
    server.runs.start(recording)
    reader = asyncio.create_task(read(server, run()))
    await eventually(lambda: recording.journal.written == 1)
    bench.clock.now += LEASE + 1
    await server.renew()
    await server.bury_dead()
    assert await within(reader) == [b"some", b"proceeds", b"hello", b"done"]


async def test_a_reader_of_what_was_deleted_comes_to_an_end(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    recording = await one.start()
    reader = asyncio.create_task(read(other, run()))
    await eventually(lambda: recording.journal.written == 1)
    await one.storage.store.commit([Delete("response", "r")])
    await within(reader)
    with pytest.raises(NotFoundError):
        await one.runs.reload(run())


async def test_a_reader_that_stops_holds_no_more_than_the_events_it_was_given(bench: Bench) -> None:
    server = await bench.server()
    store = server.storage.store
    log = AppendEvents(run="r", first=0, data=[b"some", b"more"])
    await store.commit([Create(run("r", "completed", large=["megabytes"])), log])

    def bodies() -> int:
        gc.collect()
        return sum(isinstance(one, dict) and one.get("large") == ["megabytes"] for one in gc.get_objects())

    async with aclosing(server.runs.follow(run(), -1)) as batches:
        assert await anext(batches) == [b"some", b"more"]
        # The threads of the store hold what they have done last.
        await store.commit([Create(run("other", "completed"))])
        await store.get("response", "other", None)
        assert bodies() == 0


async def test_a_record_is_reloaded_as_it_is_now(bench: Bench) -> None:
    server = await bench.server()
    await server.storage.store.commit([Create(run("r", "completed", said="all"))])
    assert (await server.runs.reload(run())).body == {"said": "all"}


# --- cancelling


async def test_a_run_of_this_server_is_cancelled_at_once(bench: Bench) -> None:
    server = await bench.server()
    await server.start()
    await asyncio.sleep(0)
    cancelled = await within(server.runs.cancel(run()))
    assert (cancelled.status, cancelled.body) == ("cancelled", {"said": "cancelled"})


async def test_a_run_of_another_server_is_cancelled_there(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    recording = await one.start()
    record = await one.runs.reload(run())
    cancelled = await within(other.runs.cancel(record))
    assert cancelled.status == "cancelled"
    assert recording.run.stop_reason is StopReason.CANCELLED


async def test_who_cancels_waits_only_so_long_for_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CANCEL_WAIT", 0.02)
    server = await bench.server()
    await server.storage.store.commit([Create(run("r", worker="wrk_frozen"))])
    record = await server.runs.reload(run())
    assert (await within(server.runs.cancel(record))).status == CANCELLING


async def test_one_that_has_ended_stays_as_it_is(bench: Bench) -> None:
    server = await bench.server()
    await server.storage.store.commit([Create(run("r", "completed"))])
    assert (await within(server.runs.cancel(run()))).status == "completed"


async def test_one_that_cannot_be_written_here_any_more_is_marked_as_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_CANCEL_WAIT", 0.02)
    stubborn = asyncio.Event()

    async def agent(outlet: Outlet) -> None:
        try:
            await hang(outlet)
        finally:
            await stubborn.wait()

    server = await bench.server()
    recording = await server.start("r", agent)
    await eventually(lambda: recording.journal.written == 1)
    recording.stop(StopReason.LEASE_LOST)
    assert "r" in server.runs.local
    assert (await within(server.runs.cancel(await server.runs.reload(run())))).status == CANCELLING
    stubborn.set()


async def test_what_is_about_to_be_deleted_is_ended_before(bench: Bench) -> None:
    server = await bench.server()
    await server.start()
    await asyncio.sleep(0)
    await within(server.runs.delete(run()))
    assert (await outcome(server))[0] == "cancelled", "so that it gives back what it holds"


# --- the end of a server


async def test_who_leaves_leaves_what_waits_to_others_at_once(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def enter() -> Any:
        return await never

    recording = one.make("r", enter=enter)
    recording.journal.entry.body = {"attempt": 1, "call": {}}  # type: ignore[attr-defined]
    await recording.journal.begin(RunStatus.QUEUED)
    one.runs.start(recording)
    await asyncio.sleep(0)
    recording.stop(StopReason.SHUTDOWN)
    await eventually(lambda: not one.runs.local)

    async def passed_on() -> bool:
        record = await one.storage.store.get("response", "r", None)
        return record is not None and record.body["worker"] != one.worker

    await until(passed_on)
    await one.bury_dead()
    assert not one.kind.attempts, "nor does it take anything over any more"
    await other.bury_dead()
    assert other.kind.attempts == [("r", 1)]
    await ended(other)
    assert (await outcome(other))[0] == "completed"


async def test_who_is_closed_ends_its_runs_and_is_found_at_once(bench: Bench) -> None:
    one, other = await bench.server(), await bench.server()
    recording = await one.start()
    await eventually(lambda: recording.journal.written == 1)
    await within(one.runs.aclose())
    assert (await outcome(other))[1] == "failed:server_shutting_down"
    assert await workers(other) == 2
    await other.bury_dead()
    assert await workers(other) == 1
    await within(one.runs.aclose())


def test_the_reasons_are_no_invitation_to_try_again() -> None:
    for error, code in ((worker_lost(), "worker_lost"), (storage_lost(), "storage_unavailable")):
        assert (error.status_code, error.code) == (503, code)
        assert (b"x-should-retry", b"false") in error.headers
