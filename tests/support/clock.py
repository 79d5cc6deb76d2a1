"""Time that passes when a test says so, and waits that end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agentrun_server import AgentRunServer

__all__ = ["LIMIT", "after", "eventually", "within"]

T = TypeVar("T")

LIMIT = 20.0
"""Longest wait in a test, in seconds: what is waited for comes in milliseconds, on a busy machine later, or never."""


def after(server: AgentRunServer, seconds: float) -> None:
    """Let `server` look at its open requests as it will when `seconds` have passed, without waiting for it."""
    sweeper = server._sweeper
    clock, sweeper.clock = sweeper.clock, lambda: time.monotonic() + seconds
    try:
        sweeper.tick()
    finally:
        sweeper.clock = clock


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
