"""Every test here ends, and leaves no task."""

import asyncio
from collections.abc import AsyncIterator

import pytest

LIMIT = 15.0


@pytest.fixture(autouse=True)
async def ends_and_leaves_nothing() -> AsyncIterator[None]:
    def stop() -> None:
        for task in asyncio.all_tasks():
            task.cancel(f"the test took longer than {LIMIT} s")

    watchdog = asyncio.get_running_loop().call_later(LIMIT, stop)
    yield
    watchdog.cancel()
    for _ in range(20):  # generators that a test dropped are closed by tasks of the loop
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
