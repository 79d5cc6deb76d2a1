"""Time that a test moves by hand, and waits that end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["LIMIT", "ManualClock", "eventually", "within"]

T = TypeVar("T")

LIMIT = 5.0
"""Longest wait in a test, in seconds: what is waited for comes in milliseconds, or never."""


class ManualClock:
    """The clock of a `Sweeper`: the real one, and what a test has added to it."""

    def __init__(self) -> None:
        self._added = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._added

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._added += seconds


async def within(awaitable: Awaitable[T], limit: float = LIMIT) -> T:
    """Wait for `awaitable`, at most `limit` seconds."""
    async with asyncio.timeout(limit):
        return await awaitable


async def eventually(holds: Callable[[], object], limit: float = LIMIT) -> None:
    """Let the event loop run until `holds` does; for what tells nobody when it happens.

    A check that only ever raises `AssertionError` may stand in for a condition: its last message is the test's.
    """
    deadline = time.monotonic() + limit
    while True:
        try:
            if holds() is not False:
                return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        else:
            assert time.monotonic() < deadline, f"did not come to hold within {limit} s"
        await asyncio.sleep(0.001)
