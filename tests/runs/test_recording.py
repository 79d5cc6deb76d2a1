"""A run and its log: it ends once, with what was said, whoever wants what of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.config import ServerConfig
from agentrun_server.core.request import AgentRequest
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentError, ServiceUnavailableError
from agentrun_server.observability.logs import request_id
from agentrun_server.runs.entry import RecordEntry
from agentrun_server.runs.execution import Execution
from agentrun_server.runs.journal import Journal
from agentrun_server.runs.pump import Outlet
from agentrun_server.runs.recording import Recording
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.storage.contracts import Record
from agentrun_server.storage.opening import Storage
from tests.runs.doubles import PlannedStore, Said
from tests.runs.stores import Clock, sqlite
from tests.support.clock import eventually, within

Agent = Callable[[Outlet], Awaitable[None]]


class Bench:
    """Makes recordings of the run ``r`` and looks into the store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.lost: list[StopReason] = []
        self.released = 0

    def record(self, agent: Agent | None = None, *, begun: bool = False, **options: Any) -> Recording:
        recording = Recording(ServerConfig(cancel_grace=1.0), "req_1", Said(agent), **options)
        recording.request = AgentRequest(protocol="openai_responses", model="m")
        entry = RecordEntry(kind="response", id="r", owner="alice", begun=begun)
        recording.journal = Journal(
            self.storage.store, self.storage.bus, entry, worker="w", lease=lambda: None, lost=self.lost.append
        )
        if "enter" not in options:
            recording.enter(self.leave)
        return recording

    def leave(self) -> None:
        self.released += 1

    async def start(self, recording: Recording) -> "asyncio.Task[None]":
        recording.task = task = asyncio.create_task(recording.execute())
        await asyncio.sleep(0)
        return task

    async def kept(self) -> Record | None:
        return await self.storage.store.get("response", "r", None)

    async def end(self) -> tuple[str, list[str]]:
        """Return the status and the log."""
        record = await self.kept()
        assert record is not None
        return record.status, [event.data.decode() for event in await self.storage.store.events("r")]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with sqlite(tmp_path, Clock()) as storage:
        yield Bench(storage)


class Place:
    """What a run in the background waits for."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = asyncio.Event()

    async def __call__(self) -> Callable[[], None]:
        self.waiting.set()
        await self._given
        return self._bench.leave

    def give(self) -> None:
        self._given.set_result(None)

    def refuse(self) -> None:
        self._given.set_exception(ServiceUnavailableError("The server is shutting down."))


class Hanging:
    """An agent that says ``some`` and hangs; what it does when it is cancelled, it does `at_end`."""

    def __init__(self, at_end: Agent | None = None) -> None:
        self._at_end = at_end
        self.hangs = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, outlet: Outlet) -> None:
        try:
            await outlet.write("some")
            self.hangs.set()
            await self.may_end.wait()
        finally:
            if self._at_end is not None:
                await self._at_end(outlet)
            self.ended.set()


# --- to the end


async def test_what_the_agent_says_is_in_the_log_and_its_place_is_free(bench: Bench) -> None:
    recording = bench.record()
    await within(await bench.start(recording))
    assert await bench.end() == ("completed", ["hello", "done"])
    assert recording.run.status is RunStatus.COMPLETED
    assert recording.journal.settled
    assert bench.released == 1
    assert recording.request is not None
    assert recording.request.is_cancelled, "nothing that the agent left behind is wanted any more"
    assert (recording.task, recording.error, recording.id) == (None, None, "r")


async def test_an_agent_that_fails_ends_its_run(bench: Bench) -> None:
    async def fail(outlet: Outlet) -> None:
        await outlet.write("some")
        raise AgentError("Too bad.", code="too_bad")

    recording = bench.record(fail)
    await within(await bench.start(recording))
    assert await bench.end() == ("failed", ["some", "failed:too_bad"])
    assert recording.error is not None
    assert recording.error.code == "too_bad"


async def test_of_an_agent_that_fails_before_it_says_anything_nothing_is_kept(bench: Bench) -> None:
    async def fail(_: Outlet) -> None:
        raise SystemExit

    recording = bench.record(fail)
    await within(await bench.start(recording))
    assert await bench.kept() is None
    assert recording.error is not None
    assert recording.run.status is RunStatus.FAILED


async def test_one_that_was_begun_keeps_its_failure_and_the_status_of_the_answer_tells_it(bench: Bench) -> None:
    async def fail(_: Outlet) -> None:
        raise AgentError("Too bad.", code="too_bad")

    recording = bench.record(fail)
    await recording.journal.begin(RunStatus.IN_PROGRESS)
    await within(await bench.start(recording))
    assert await bench.end() == ("failed", [])


async def test_an_agent_that_cancels_itself_has_failed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def cancel(outlet: Outlet) -> None:
        await outlet.write("some")
        raise asyncio.CancelledError

    recording = bench.record(cancel)
    await within(await bench.start(recording))
    status, log = await bench.end()
    assert (status, log[0]) == ("failed", "some")
    assert "cancelled itself" in caplog.text


async def test_what_must_be_had_before_comes_before_the_agent_and_what_is_left_to_do_before_its_end(
    bench: Bench,
) -> None:
    order: list[str] = []

    async def agent(_: Outlet) -> None:
        order.append("agent")

    async def before() -> None:
        order.append("before")

    async def behind() -> None:
        order.append("behind")
        assert await bench.kept() is None

    recording = bench.record(agent)
    recording.before, recording.behind = before, behind
    await within(await bench.start(recording))
    assert order == ["before", "agent", "behind"]


@pytest.mark.parametrize("reason", [StopReason.CANCELLED, StopReason.RUN_TIMEOUT, StopReason.SHUTDOWN])
@pytest.mark.parametrize("resumable", [False, True])
async def test_what_would_stop_a_run_whose_agent_has_ended_comes_too_late(
    bench: Bench, reason: StopReason, resumable: bool
) -> None:
    leaving = asyncio.Event()

    async def behind() -> None:
        leaving.set()
        await asyncio.get_running_loop().create_future()

    recording = bench.record(resumable=resumable)
    recording.behind = behind
    task = await bench.start(recording)
    await within(leaving.wait())
    recording.stop(reason)
    await within(task)
    assert await bench.end() == ("completed", ["hello", "done"])
    assert recording.error is None, "nor is anybody told that it failed"
    assert recording.run.status is RunStatus.COMPLETED


async def test_an_answer_is_whole_though_what_was_left_to_do_has_failed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def behind() -> None:
        raise ValueError("a bug")

    recording = bench.record()
    recording.behind = behind
    await within(await bench.start(recording))
    assert await bench.end() == ("completed", ["hello", "done"])
    assert recording.error is None
    assert "ValueError" in caplog.text


# --- waiting for a place


async def test_a_run_that_waits_for_a_place_says_when_it_has_one(bench: Bench) -> None:
    place = Place(bench)
    recording = bench.record(enter=place)
    await recording.journal.begin(RunStatus.QUEUED, [b"queued"])
    task = await bench.start(recording)
    await within(place.waiting.wait())
    assert await bench.end() == ("queued", ["queued"])
    place.give()
    await within(task)
    assert await bench.end() == ("completed", ["queued", "proceeds", "hello", "done"])
    assert bench.released == 1


async def test_one_that_is_cancelled_while_it_waits_never_runs(bench: Bench) -> None:
    place = Place(bench)
    recording = bench.record(enter=place)
    await recording.journal.begin(RunStatus.QUEUED)
    task = await bench.start(recording)
    await within(place.waiting.wait())
    recording.stop(StopReason.CANCELLED)
    await within(task)
    assert await bench.end() == ("cancelled", ["cancelled"])
    assert bench.released == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_one_that_waits_when_the_server_stops_is_left_to_others(bench: Bench, refused: bool) -> None:
    place = Place(bench)
    recording = bench.record(enter=place)
    await recording.journal.begin(RunStatus.QUEUED)
    task = await bench.start(recording)
    await within(place.waiting.wait())
    if refused:
        place.refuse()
    else:
        recording.stop(StopReason.SHUTDOWN)
    await within(task)
    assert await bench.end() == ("queued", [])
    assert recording.passes_on
    assert not recording.journal.settled


async def test_one_that_cannot_proceed_does_not_run(bench: Bench) -> None:
    place = Place(bench)
    recording = bench.record(enter=place, begun=True)  # and there is no such record
    task = await bench.start(recording)
    place.give()
    await eventually(lambda: bench.lost == [StopReason.LEASE_LOST])
    recording.stop(StopReason.LEASE_LOST)  # as the registry does
    await within(task)
    assert await bench.kept() is None
    assert bench.released == 1


# --- stopping


async def test_a_cancellation_is_written_at_once_with_what_was_said(bench: Bench) -> None:
    late = asyncio.Event()

    async def clean_up(outlet: Outlet) -> None:
        await late.wait()
        await outlet.write("late")

    agent = Hanging(clean_up)
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    recording.stop(StopReason.CANCELLED)
    await within(recording.journal.wait_closed())
    assert await bench.end() == ("cancelled", ["some", "cancelled"])
    assert not agent.ended.is_set()
    late.set()
    await within(task)
    assert await bench.end() == ("cancelled", ["some", "cancelled"]), "what it still does is not heard"
    assert bench.released == 1


async def test_the_first_reason_to_stop_counts(bench: Bench) -> None:
    agent = Hanging()
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    recording.stop(StopReason.DISCONNECTED)
    recording.stop(StopReason.RUN_TIMEOUT)
    await within(task)
    assert recording.run.stop_reason is StopReason.DISCONNECTED
    assert await bench.end() == ("cancelled", ["some", "cancelled"])


async def test_one_that_has_ended_cannot_be_stopped(bench: Bench) -> None:
    recording = bench.record()
    await within(await bench.start(recording))
    recording.stop(StopReason.CANCELLED)
    assert recording.run.stop_reason is None
    assert await bench.end() == ("completed", ["hello", "done"])


async def test_one_of_which_nobody_has_heard_leaves_nothing_when_it_is_cancelled(bench: Bench) -> None:
    waiting = asyncio.Event()

    async def hang(_: Outlet) -> None:
        waiting.set()
        await asyncio.get_running_loop().create_future()

    recording = bench.record(hang)
    task = await bench.start(recording)
    await within(waiting.wait())
    recording.stop(StopReason.DISCONNECTED)
    await within(task)
    assert await bench.kept() is None
    assert recording.run.status is RunStatus.CANCELLED


async def test_one_that_is_stopped_before_it_runs_never_does(bench: Bench) -> None:
    async def never(_: Outlet) -> None:
        raise AssertionError("it was stopped")

    recording = bench.record(never)
    recording.stop(StopReason.CANCELLED)
    await within(await bench.start(recording))
    assert await bench.kept() is None
    assert bench.released == 1


@pytest.mark.parametrize(
    ("reason", "code"),
    [(StopReason.SHUTDOWN, "server_shutting_down"), (StopReason.RUN_TIMEOUT, "timeout")],
)
async def test_a_limit_of_the_server_is_a_failure(bench: Bench, reason: StopReason, code: str) -> None:
    agent = Hanging()
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    recording.stop(reason)
    await within(task)
    assert recording.error is not None
    assert await bench.end() == ("failed", ["some", f"failed:{recording.error.code}"])


async def test_one_that_may_run_again_is_left_to_others_when_the_server_stops(bench: Bench) -> None:
    agent = Hanging()
    recording = bench.record(agent, enter=(place := Place(bench)), resumable=True)
    await recording.journal.begin(RunStatus.QUEUED)
    place.give()
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    await eventually(lambda: recording.journal.closed or recording.journal.written == 2)
    recording.stop(StopReason.SHUTDOWN)
    await within(task)
    assert await bench.end() == ("in_progress", ["proceeds", "some"])
    assert not recording.passes_on, "it has run: another attempt counts"


async def test_one_that_waits_for_its_store_is_not_given_up_as_an_agent_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    recording = bench.record(hold=1.0)
    store = PlannedStore(bench.storage.store)
    await recording.journal.begin(RunStatus.IN_PROGRESS)
    unwritten: Any = store
    recording.journal._store = unwritten
    store.gate.clear()
    agent = Hanging()
    recording.script = Said(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    recording.stop(StopReason.CANCELLED)
    await within(agent.ended.wait())
    await eventually(lambda: bench.released == 1)
    recording.check(time.monotonic() + 3600)
    await asyncio.sleep(0)
    assert not task.done()
    store.gate.set()
    await within(task)
    assert await bench.end() == ("cancelled", ["some", "cancelled"])
    assert "does not end" not in caplog.text


@pytest.mark.parametrize("reason", [StopReason.LEASE_LOST, StopReason.STORAGE])
async def test_one_that_cannot_be_written_any_more_writes_nothing(bench: Bench, reason: StopReason) -> None:
    agent = Hanging()
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    await eventually(lambda: recording.journal.written == 1)  # type: ignore[union-attr, unused-ignore]
    recording.stop(reason)
    await within(task)
    assert await bench.end() == ("in_progress", ["some"])
    assert agent.ended.is_set()


async def test_the_end_of_the_event_loop_is_a_shutdown(bench: Bench) -> None:
    agent = Hanging()
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    task.cancel()
    await within(task)
    assert recording.run.stop_reason is StopReason.SHUTDOWN
    assert (await bench.end())[0] == "failed"


async def test_an_agent_that_does_not_end_is_given_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    stubborn = asyncio.Event()

    async def stay(_: Outlet) -> None:
        await stubborn.wait()

    agent = Hanging(stay)
    recording = bench.record(agent)
    task = await bench.start(recording)
    await within(agent.hangs.wait())
    recording.stop(StopReason.CANCELLED)
    recording.check(time.monotonic() + 2)
    assert bench.released == 1, "its place is free though it goes on"
    assert "does not end" in caplog.text
    stubborn.set()
    await within(task)
    assert bench.released == 1


# --- what the sweeper and the rate limit want


async def test_a_stream_that_stays_silent_is_opened(bench: Bench) -> None:
    waiting = asyncio.Event()

    async def think(outlet: Outlet) -> None:
        await waiting.wait()
        await outlet.write("hello")

    recording = bench.record(think, hold=10.0)
    task = await bench.start(recording)
    recording.check(recording.run_started + 9)
    recording.check(recording.run_started + 11)
    recording.check(recording.run_started + 12)
    waiting.set()
    await within(task)
    assert await bench.end() == ("completed", ["open", "hello", "done"])


async def test_what_it_cost_is_counted_once_and_what_is_added_later_too(bench: Bench) -> None:
    recording = bench.record()
    script: Any = recording.script
    recording.meter = meter = dict[str, Any]()
    recording.attended = True
    script.cost = Usage(input_tokens=3, output_tokens=4)
    await within(await bench.start(recording))
    assert meter == {}, "the request counts it when it is over"
    recording.attended = False
    recording.count()
    assert meter == {"total_tokens": 7}
    charged: list[int] = []
    meter["charge"] = charged.append
    script.cost = Usage(input_tokens=3, output_tokens=6)
    recording.count()
    recording.count()
    assert charged == [2, 0]


async def test_a_run_whose_agent_never_began_cost_nothing(bench: Bench) -> None:
    place = Place(bench)
    recording = bench.record(enter=place)
    script: Any = recording.script
    script.cost = Usage(input_tokens=3, output_tokens=0)  # an estimate of the question
    recording.meter = meter = dict[str, Any]()
    await recording.journal.begin(RunStatus.QUEUED)
    task = await bench.start(recording)
    await within(place.waiting.wait())
    recording.stop(StopReason.CANCELLED)
    await within(task)
    recording.count()
    assert meter == {}


# --- what is logged


async def test_what_the_agent_logs_names_the_request_wherever_it_runs(bench: Bench) -> None:
    seen: list[str] = []

    async def agent(_: Outlet) -> None:
        seen.append(request_id.get())

    recording = bench.record(agent)
    await within(await bench.start(recording))
    assert seen == ["req_1"]
    assert request_id.get() == ""


@pytest.mark.parametrize(
    ("reason", "attended", "lines"),
    [
        (None, True, []),
        (None, False, [("run ended", "completed", None, None)]),
        (StopReason.CANCELLED, False, [("run ended", "cancelled", "cancelled", None)]),
        (StopReason.RUN_TIMEOUT, False, [("run ended", "failed", "run_timeout", "agent_timeout")]),
        (StopReason.LEASE_LOST, False, [("run left to others", None, "lease_lost", None)]),
    ],
)
async def test_a_run_that_nobody_waits_for_has_a_line_when_it_ends(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    reason: StopReason | None,
    attended: bool,
    lines: list[tuple[Any, ...]],
) -> None:
    agent = Hanging()
    recording = bench.record(agent)
    recording.attended = attended
    with caplog.at_level("INFO", "agentrun_server.run"):
        task = await bench.start(recording)
        await within(agent.hangs.wait())
        await eventually(lambda: recording.journal.written == 1)
        if reason is None:
            agent.may_end.set()
        else:
            recording.stop(reason)
        await within(task)
    written = [vars(record) for record in caplog.records]
    assert [(one["msg"], one.get("run"), one.get("stopped"), one.get("error")) for one in written] == lines
    assert [(one["request_id"], one["run_id"], one["model"]) for one in written] == [("req_1", "r", "m")] * len(lines)
    assert all(0 <= one["duration_ms"] < 60_000 for one in written)


def test_a_run_is_thrown_away_when_another_than_its_task_closes_it() -> None:
    execution = Execution(ServerConfig(), "req_1")

    async def its_own() -> bool:
        execution.task = asyncio.current_task()
        return execution.is_thrown_away

    async def another() -> bool:
        return execution.is_thrown_away

    assert not asyncio.run(its_own())
    assert asyncio.run(another())
    assert execution.is_thrown_away, "no event loop runs"
