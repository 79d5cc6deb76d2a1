"""Tests of `agentrun_server.runs.drive`: it tells of every wait, and changes nothing else."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from agentrun_server.runs.drive import drive


class Waits:
    """Counts the waits; `meanwhile` is awaited before each."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.count = 0
        self._meanwhile = meanwhile

    def __call__(self) -> Coroutine[Any, Any, None] | None:
        self.count += 1
        return self._meanwhile() if self._meanwhile is not None else None


async def test_a_coroutine_that_never_waits_is_run_without_a_word() -> None:
    async def ready() -> AsyncGenerator[int, None]:
        for number in range(100):
            yield number

    async def total() -> int:
        return sum([number async for number in ready()])

    waits = Waits()
    assert await drive(total(), waits) == 4950
    assert waits.count == 0


async def test_every_wait_is_told_before_it_begins() -> None:
    seen: list[str] = []

    async def running() -> str:
        for name in ("first", "second"):
            seen.append(f"before {name}")
            await asyncio.sleep(0)
            seen.append(f"after {name}")
        return "done"

    def before_wait() -> None:
        seen.append("waits")

    assert await drive(running(), before_wait) == "done"
    assert seen == ["before first", "waits", "after first", "before second", "waits", "after second"]


async def test_what_before_wait_returns_is_awaited_while_the_wait_goes_on() -> None:
    order: list[str] = []
    arrived = asyncio.get_running_loop().create_future()

    async def running() -> str:
        return await arrived  # type: ignore[no-any-return] # a future without a type

    async def meanwhile() -> None:
        order.append("meanwhile begins")
        arrived.set_result("item")  # what the coroutine waits for comes while this is still at work
        await asyncio.sleep(0)
        order.append("meanwhile ends")

    assert await drive(running(), Waits(meanwhile)) == "item"
    assert order == ["meanwhile begins", "meanwhile ends"]


async def test_an_exception_comes_out_as_it_is() -> None:
    async def running() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await drive(running(), Waits())


async def test_a_cancellation_is_raised_where_the_coroutine_waits_and_its_clean_up_may_wait_too() -> None:
    waiting, seen = asyncio.Event(), list[str]()

    async def running() -> None:
        try:
            waiting.set()
            await asyncio.Event().wait()
        finally:
            seen.append("clean-up begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append("clean-up ends")

    task = asyncio.create_task(_await(drive(running(), Waits())))
    await asyncio.wait_for(waiting.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["clean-up begins", "clean-up ends"]


async def test_a_cancellation_during_the_meanwhile_reaches_the_coroutine() -> None:
    blocked, seen = asyncio.Event(), list[str]()

    async def meanwhile() -> None:
        blocked.set()
        await asyncio.Event().wait()

    async def running() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    waits = Waits(meanwhile)
    task = asyncio.create_task(_await(drive(running(), waits)))
    await asyncio.wait_for(blocked.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (seen, waits.count) == (["cancelled"], 1)


async def test_a_coroutine_may_swallow_its_cancellation_and_go_on() -> None:
    waiting = asyncio.Event()

    async def running() -> str:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "still here"

    task = asyncio.create_task(_await(drive(running(), Waits())))
    await asyncio.wait_for(waiting.wait(), 5)
    task.cancel()
    assert await task == "still here"


async def test_task_context_and_timeouts_are_those_of_who_awaits() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def running() -> asyncio.Task[Any] | None:
        variable.set("set inside")
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return asyncio.current_task()

    assert await drive(running(), Waits()) is asyncio.current_task()
    assert variable.get() == "set inside"


async def _await(awaitable: Any) -> Any:
    return await awaitable
