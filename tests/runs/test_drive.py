"""Driving an async generator by hand: what is ready, what has to be waited for, and how it ends."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agentrun_server.runs.drive import Stepper
from tests.support.clock import within

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


async def ready(*items: Any) -> AsyncGenerator[Any, None]:
    for item in items:
        yield item


class Scene:
    """A generator that waits for `gate` before each item, and notes what happens to it."""

    def __init__(self, items: str = "ab", *, cleanup: int = 0) -> None:
        self.items = items
        self.cleanup = cleanup
        self.gate = asyncio.Event()
        self.notes: list[str] = []
        self.tasks: list[Any] = []

    async def generator(self) -> AsyncGenerator[str, None]:
        try:
            for item in self.items:
                self.tasks.append(asyncio.current_task())
                await self.gate.wait()
                self.gate.clear()
                yield item
        except BaseException as exc:
            self.notes.append(type(exc).__name__)
            raise
        finally:
            for _ in range(self.cleanup):
                await asyncio.sleep(0)
            self.tasks.append(asyncio.current_task())
            self.notes.append("ended")


class TestSteps:
    async def test_an_item_that_is_ready_comes_without_waiting(self) -> None:
        steps = Stepper(ready("a", "b"))
        assert (steps.begin(), steps.waiting) == ("a", False)
        assert (steps.begin(), steps.waiting) == ("b", False)
        with pytest.raises(StopAsyncIteration):
            steps.begin()
        assert not steps.waiting

    async def test_an_item_that_has_to_be_waited_for_says_so(self) -> None:
        scene = Scene()
        steps = Stepper(scene.generator())
        assert steps.begin() is None
        assert steps.waiting
        scene.gate.set()
        assert await within(steps.resume()) == "a"
        assert not steps.waiting

    async def test_none_is_an_item_too(self) -> None:
        steps = Stepper(ready(None))
        assert steps.begin() is None
        assert not steps.waiting

    async def test_a_step_may_wait_many_times_for_one_item(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            for _ in range(5):
                await asyncio.sleep(0)
            yield "a"

        steps = Stepper(generator())
        steps.begin()
        assert steps.waiting
        assert await within(steps.resume()) == "a"

    async def test_a_mix_of_both_keeps_the_order(self) -> None:
        async def generator() -> AsyncGenerator[int, None]:
            for i in range(20):
                if i % 3 == 0:
                    await asyncio.sleep(0)
                yield i

        steps, seen, waits = Stepper(generator()), [], 0
        while True:
            try:
                item = steps.begin()
                if steps.waiting:
                    waits += 1
                    item = await within(steps.resume())
            except StopAsyncIteration:
                break
            seen.append(item)
        assert seen == list(range(20))
        assert waits == 7

    async def test_the_end_may_have_to_be_waited_for(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            yield "a"
            await asyncio.sleep(0)

        steps = Stepper(generator())
        steps.begin()
        steps.begin()
        assert steps.waiting
        with pytest.raises(StopAsyncIteration):
            await within(steps.resume())
        assert not steps.waiting

    @pytest.mark.parametrize("waits", [False, True])
    async def test_an_error_comes_out_of_the_step(self, waits: bool) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            if waits:
                await asyncio.sleep(0)
            raise ValueError("no")
            yield ""

        steps = Stepper(generator())
        with pytest.raises(ValueError, match="no"):  # noqa: PT012 - either step may raise it
            steps.begin()
            await within(steps.resume())
        assert not steps.waiting

    async def test_everything_runs_in_the_task_that_steps_and_in_its_context(self) -> None:
        async def generator() -> AsyncGenerator[tuple[str, Any], None]:
            for i in range(3):
                variable.set(f"step {i}")
                await asyncio.sleep(0)
                yield variable.get(), asyncio.current_task()

        steps = Stepper(generator())
        for i in range(3):
            steps.begin()
            seen = await within(steps.resume())
            assert seen == (f"step {i}", asyncio.current_task())
            assert variable.get() == f"step {i}"

    async def test_timeouts_and_task_groups_hold_over_many_steps(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                for letter in "ab":
                    yield await group.create_task(asyncio.sleep(0, letter))

        steps, seen = Stepper(generator()), []
        for _ in range(2):
            steps.begin()
            seen.append(await within(steps.resume()))
        assert seen == ["a", "b"]
        await within(steps.close(asyncio.CancelledError()))

    async def test_a_timeout_inside_the_generator_fires_while_it_waits(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                yield "timed out"

        steps = Stepper(generator())
        steps.begin()
        assert await within(steps.resume()) == "timed out"


class TestCancellation:
    async def test_cancelling_the_task_cancels_the_generator_where_it_waits(self) -> None:
        scene = Scene(cleanup=3)
        steps = Stepper(scene.generator())

        async def drive() -> None:
            steps.begin()
            await steps.resume()

        task = asyncio.create_task(drive())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert scene.notes == ["CancelledError", "ended"]
        assert set(scene.tasks) == {task}
        assert not steps.waiting

    async def test_a_generator_that_swallows_the_cancellation_may_go_on(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                yield "goes on"

        steps = Stepper(generator())

        async def drive() -> Any:
            steps.begin()
            return await steps.resume()

        task = asyncio.create_task(drive())
        await asyncio.sleep(0)
        task.cancel()
        assert await within(task) == "goes on"


class TestClosing:
    async def test_a_generator_that_stands_at_a_yield_is_closed_there(self) -> None:
        scene = Scene(cleanup=3)
        scene.gate.set()
        steps = Stepper(scene.generator())
        assert steps.begin() == "a"
        await within(steps.close(asyncio.CancelledError()))
        assert scene.notes == ["GeneratorExit", "ended"]

    async def test_a_generator_that_waits_is_told_why_and_cleans_up(self) -> None:
        scene = Scene(cleanup=3)
        steps = Stepper(scene.generator())
        steps.begin()
        await within(steps.close(asyncio.CancelledError()))
        assert scene.notes == ["CancelledError", "ended"]
        assert set(scene.tasks) == {asyncio.current_task()}
        assert not steps.waiting

    async def test_a_generator_that_was_never_begun_is_closed_without_a_word(self) -> None:
        scene = Scene()
        await within(Stepper(scene.generator()).close(asyncio.CancelledError()))
        assert scene.notes == []

    async def test_a_generator_that_has_ended_can_be_closed_again(self) -> None:
        steps = Stepper(ready())
        with pytest.raises(StopAsyncIteration):
            steps.begin()
        await within(steps.close(asyncio.CancelledError()))
        await within(steps.close(asyncio.CancelledError()))

    async def test_a_generator_that_swallows_why_and_yields_is_closed_all_the_same(self) -> None:
        notes: list[str] = []

        async def generator() -> AsyncGenerator[str, None]:
            try:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    yield "one more"
            finally:
                await asyncio.sleep(0)
                notes.append("ended")

        steps = Stepper(generator())
        steps.begin()
        await within(steps.close(asyncio.CancelledError()))
        assert notes == ["ended"]

    async def test_an_error_in_the_clean_up_comes_out(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            try:
                await asyncio.Event().wait()
                yield ""
            finally:
                raise ValueError("clean-up failed")

        steps = Stepper(generator())
        steps.begin()
        with pytest.raises(ValueError, match="clean-up failed"):
            await within(steps.close(asyncio.CancelledError()))

    async def test_a_generator_that_will_not_end_is_an_error(self) -> None:
        async def generator() -> AsyncGenerator[str, None]:
            try:
                yield "a"
            except GeneratorExit:
                yield "b"

        steps = Stepper(generator())
        steps.begin()
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            await within(steps.close(asyncio.CancelledError()))

    async def test_a_second_cancellation_reaches_the_clean_up(self) -> None:
        notes: list[str] = []
        cleaning = asyncio.Event()

        async def generator() -> AsyncGenerator[str, None]:
            try:
                await asyncio.Event().wait()
                yield ""
            finally:
                cleaning.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    notes.append("given up")
                    raise

        steps = Stepper(generator())

        async def drive() -> None:
            steps.begin()
            await steps.close(asyncio.CancelledError())

        task = asyncio.create_task(drive())
        await within(cleaning.wait())
        task.cancel()
        await within(asyncio.wait([task]))
        assert notes == ["given up"]
        assert task.done()
