"""Sync agents: each on a thread of its own, from its first line to its last."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from agentrun_server.errors import TooManyRequestsError
from agentrun_server.invoker.threads import HandedOver, ThreadRun, Threads
from tests.support.clock import eventually, within

MAX_ITEMS = 64


def pool(limit: int = 8, *, max_waiting: int = 8, timeout: float = 5, grace: float = 5) -> Threads:
    return Threads(limit, max_waiting=max_waiting, timeout=timeout, grace=grace)


async def items_of(run: AsyncGenerator[list[Any], None]) -> list[Any]:
    async with aclosing(run) as batches:
        return [item async for batch in batches for item in batch]


async def result_of(call: Callable[[], Any], threads: Threads | None = None) -> list[Any]:
    return await within(items_of((threads or pool()).run(call, "agent-test")))


def has_stopped_for_the_reader(run: ThreadRun) -> bool:
    waiting: Any = run._room._waiters  # type: ignore[attr-defined]
    return bool(waiting)


async def happens(event: threading.Event) -> None:
    """Wait until a thread has set `event`."""
    assert await asyncio.to_thread(event.wait, 5)


class TestOneThread:
    async def test_a_function_gives_one_item(self) -> None:
        assert await result_of(lambda: "a") == ["a"]

    async def test_a_generator_gives_what_it_yields(self) -> None:
        assert await result_of(lambda: iter("abc")) == ["a", "b", "c"]

    async def test_a_generator_lives_on_one_thread_from_the_first_line_to_the_last(self) -> None:
        lines: list[int] = []

        def agent() -> Iterator[int]:
            try:
                for i in range(3 * MAX_ITEMS):
                    lines.append(threading.get_ident())
                    yield i
            finally:
                lines.append(threading.get_ident())

        assert await result_of(agent) == list(range(3 * MAX_ITEMS))
        assert set(lines) == {lines[0]}
        assert lines[0] != threading.get_ident()

    async def test_what_belongs_to_one_thread_works_in_a_generator(self) -> None:
        def agent() -> Iterator[int]:
            with sqlite3.connect(":memory:") as connection:
                for i in range(3):
                    yield connection.execute("select ?", (i,)).fetchone()[0]
            connection.close()

        runs = [items_of(pool(50).run(agent, "agent-test")) for _ in range(20)]
        assert await within(asyncio.gather(*runs)) == [[0, 1, 2]] * 20

    async def test_no_two_runs_share_a_thread_nor_its_locals(self) -> None:
        local, lock = threading.local(), threading.Barrier(3)

        def agent() -> bool:
            fresh = not hasattr(local, "used")
            local.used = True
            lock.wait(5)
            return fresh

        assert await within(asyncio.gather(*(result_of(agent) for _ in range(3)))) == [[True]] * 3

    async def test_its_thread_is_named_after_the_run_and_does_not_keep_the_process_alive(self) -> None:
        (thread,) = await result_of(threading.current_thread)
        assert thread.name == "agent-test"
        assert thread.daemon

    async def test_the_default_executor_is_left_alone(self) -> None:
        await result_of(lambda: "a")
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]


class TestHandingOver:
    async def test_an_awaitable_is_handed_over_without_being_touched(self) -> None:
        async def later() -> str:
            return "a"

        coroutine = later()
        (handed,) = await result_of(lambda: coroutine)
        assert handed == HandedOver(coroutine)
        assert await coroutine == "a"

    async def test_an_async_generator_is_handed_over(self) -> None:
        async def agent() -> AsyncGenerator[str, None]:
            yield "a"

        (handed,) = await result_of(agent)
        assert isinstance(handed, HandedOver)
        assert [item async for item in handed.value] == ["a"]


class TestBackpressure:
    @pytest.mark.parametrize(
        ("item", "unread"),
        [(0, MAX_ITEMS), ("x", MAX_ITEMS), ("x" * (1 << 20), 1), ("x" * (1 << 18), 4)],
        ids=["items", "short text", "long text", "text"],
    )
    async def test_the_thread_waits_when_so_much_is_unread(self, item: Any, unread: int) -> None:
        made: list[int] = []

        def agent() -> Iterator[Any]:
            for i in range(200):
                made.append(i)
                yield item

        run = ThreadRun(agent, asyncio.get_running_loop())
        thread = threading.Thread(target=run.work, daemon=True)
        thread.start()
        batches = run.batches()
        taken = 0
        for _ in range(3):
            await eventually(lambda: has_stopped_for_the_reader(run))
            assert len(made) - taken == unread
            taken += len(await within(anext(batches)))
            assert taken == len(made)
        assert taken + len(await within(items_of(batches))) == 200
        await asyncio.to_thread(thread.join, 5)

    async def test_a_thread_that_waits_for_its_reader_ends_when_it_is_stopped(self) -> None:
        closed = threading.Event()

        def agent() -> Iterator[int]:
            try:
                yield from range(1000)
            finally:
                closed.set()

        run = ThreadRun(agent, asyncio.get_running_loop())
        threading.Thread(target=run.work, daemon=True).start()
        await eventually(lambda: has_stopped_for_the_reader(run))
        assert not run.ended
        run.stop()
        assert await within(run.wait_ended(5))
        assert closed.is_set()

    async def test_items_that_are_ready_together_come_in_one_batch(self) -> None:
        done = threading.Event()

        def agent() -> Iterator[int]:
            yield from range(50)
            done.set()

        async with aclosing(pool().run(agent, "agent-test")) as run:
            batches = [await within(anext(run))]
            await happens(done)
            batches += [batch async for batch in run]
        assert [item for batch in batches for item in batch] == list(range(50))
        assert len(batches) <= 3


class TestErrors:
    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(2), KeyboardInterrupt(), asyncio.CancelledError()])
    async def test_what_a_call_raises_is_raised_behind_its_items(self, error: BaseException) -> None:
        def agent() -> Iterator[str]:
            yield "a"
            raise error

        items: list[Any] = []

        async def read() -> None:
            async for batch in pool().run(agent, "agent-test"):
                items.extend(batch)

        raised: BaseException | None = None
        try:
            await read()
        except BaseException as exc:  # whatever it is
            raised = exc
        assert raised is error
        assert items == ["a"]

    async def test_a_stop_iteration_is_no_end(self) -> None:
        def agent() -> Any:
            return next(iter(()))

        with pytest.raises(RuntimeError, match="StopIteration"):
            await result_of(agent)

    async def test_a_thread_that_cannot_be_started_is_a_429_and_gives_its_place_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: Any) -> None:
            raise RuntimeError("can't start new thread")

        threads = pool()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(TooManyRequestsError):
                await result_of(lambda: "a", threads)
        assert threads.running == 0
        assert await result_of(lambda: "a", threads) == ["a"]


class TestStopping:
    async def test_a_generator_that_is_left_is_closed_at_its_next_yield(self) -> None:
        closed: list[type[BaseException]] = []

        def agent() -> Iterator[int]:
            try:
                yield from range(10_000)
            except GeneratorExit as exc:
                closed.append(type(exc))
                raise

        threads = pool()
        run = threads.run(agent, "agent-test")
        await within(anext(run))
        await within(run.aclose())
        assert closed == [GeneratorExit]
        assert threads.running == 0

    async def test_an_iterator_that_has_no_close_is_simply_left(self) -> None:
        run = pool().run(lambda: iter(range(10_000)), "agent-test")
        await within(anext(run))
        await within(run.aclose())

    async def test_leaving_waits_until_the_last_line_has_run(self) -> None:
        working, finish, ended = threading.Event(), threading.Event(), threading.Event()

        def agent() -> Iterator[str]:
            try:
                yield "a"
                working.set()
                finish.wait(5)
                yield "b"
            finally:
                ended.set()

        run = pool().run(agent, "agent-test")
        await within(anext(run))
        await happens(working)
        closing = asyncio.create_task(run.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        finish.set()
        await within(closing)
        assert ended.is_set()

    async def test_a_thread_that_does_not_end_is_counted_until_it_does(self) -> None:
        working, finish = threading.Event(), threading.Event()

        def agent() -> Iterator[str]:
            yield "a"
            working.set()
            finish.wait(10)
            yield "b"

        threads = pool(grace=0.01)
        run = threads.run(agent, "agent-test")
        await within(anext(run))
        await happens(working)
        await within(run.aclose())
        assert (threads.zombies, threads.running) == (1, 1)
        finish.set()
        await eventually(lambda: threads.zombies == 0 and threads.running == 0)

    async def test_a_thread_is_counted_also_when_waiting_for_it_is_cancelled(self) -> None:
        working, finish = threading.Event(), threading.Event()

        def agent() -> Iterator[str]:
            yield "a"
            working.set()
            finish.wait(10)

        threads, leaving = pool(grace=60), asyncio.Event()

        async def leave_early() -> None:
            async with aclosing(threads.run(agent, "agent-test")) as run:
                await anext(run)
                await happens(working)
                leaving.set()

        task = asyncio.create_task(leave_early())
        await within(leaving.wait())  # and in the same step the task has begun to wait for the thread
        task.cancel()  # the run has been given up: nobody waits any more
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert threads.zombies == 1
        finish.set()
        await eventually(lambda: threads.zombies == 0 and threads.running == 0)


class TestPlaces:
    async def test_so_many_run_at_once_and_the_others_wait_in_order(self) -> None:
        threads = pool(2)
        gates = [threading.Event() for _ in range(4)]
        started: list[int] = []

        def agent(number: int) -> int:
            started.append(number)
            gates[number].wait(5)
            return number

        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(result_of(partial(agent, number), threads)))
            await eventually(lambda: len(started) + len(threads._waiting) == len(tasks))
        assert sorted(started) == [0, 1]
        assert threads.running == 2
        gates[1].set()
        await eventually(lambda: len(started) == 3)
        assert started[2] == 2
        for gate in gates:
            gate.set()
        assert await within(asyncio.gather(*tasks)) == [[0], [1], [2], [3]]
        await eventually(lambda: threads.running == 0)

    async def test_a_full_queue_is_a_429_and_the_call_has_not_run(self) -> None:
        threads, gate = pool(1, max_waiting=1), threading.Event()
        first = asyncio.create_task(result_of(lambda: gate.wait(5), threads))
        second = asyncio.create_task(result_of(lambda: "second", threads))
        await eventually(lambda: len(threads._waiting) == 1)
        ran: list[str] = []
        with pytest.raises(TooManyRequestsError) as raised:
            await result_of(lambda: ran.append("third"), threads)
        assert (b"retry-after", b"1") in raised.value.headers
        assert ran == []
        gate.set()
        assert await within(first) == [True]
        assert await within(second) == ["second"]

    async def test_waiting_too_long_is_a_429(self) -> None:
        threads, gate = pool(1, timeout=0.01), threading.Event()
        first = asyncio.create_task(result_of(lambda: gate.wait(5), threads))
        await eventually(lambda: threads.running == 1)
        with pytest.raises(TooManyRequestsError):
            await result_of(lambda: "second", threads)
        assert len(threads._waiting) == 0
        gate.set()
        await within(first)
        assert await result_of(lambda: "third", threads) == ["third"]

    async def test_one_who_leaves_the_queue_takes_no_place(self) -> None:
        threads, gate = pool(1), threading.Event()
        first = asyncio.create_task(result_of(lambda: gate.wait(5), threads))
        await eventually(lambda: threads.running == 1)
        second = asyncio.create_task(result_of(lambda: "second", threads))
        await eventually(lambda: len(threads._waiting) == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(second)
        assert len(threads._waiting) == 0
        gate.set()
        await within(first)
        await eventually(lambda: threads.running == 0)

    async def test_one_who_leaves_in_the_moment_of_being_called_passes_the_place_on(self) -> None:
        threads, gate = pool(1), threading.Event()
        first = asyncio.create_task(result_of(lambda: gate.wait(5), threads))
        await eventually(lambda: threads.running == 1)
        second = asyncio.create_task(result_of(lambda: "second", threads))
        third = asyncio.create_task(result_of(lambda: "third", threads))
        await eventually(lambda: len(threads._waiting) == 2)
        threads._waiting[0].add_done_callback(lambda _: second.cancel())
        gate.set()
        await within(first)
        with pytest.raises(asyncio.CancelledError):
            await within(second)
        assert await within(third) == ["third"]
        await eventually(lambda: threads.running == 0)


async def test_a_thread_that_outlives_its_loop_ends_quietly() -> None:
    """The server is gone, nobody waits: no exception may reach the thread's own hook."""
    working, finish, ended = threading.Event(), threading.Event(), threading.Event()

    def agent() -> Iterator[str]:
        try:
            yield "a"
            working.set()
            finish.wait(5)
            yield "b"
        finally:
            ended.set()

    async def serve_and_die() -> None:
        run = pool(grace=0.01).run(agent, "agent-test")
        await anext(run)
        await asyncio.to_thread(working.wait, 5)
        await run.aclose()

    await asyncio.to_thread(lambda: asyncio.run(serve_and_die()))
    finish.set()
    await happens(ended)
    for thread in threading.enumerate():
        if thread.name == "agent-test":
            await asyncio.to_thread(thread.join, 5)
