"""What became of an agent's runs, for clients that ask: how many were started and cancelled, and who may go on.

It is kept in files below ``$TEST_LEDGER``, so that all processes of a deployment write into one, and whichever of them
a client reaches can read it.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Final

from agentrun_server import AgentRequest

__all__ = ["WAIT", "Entry", "entry_of", "ledger"]

WAIT: Final = 10.0
"""Seconds after which an agent stops waiting for its test."""
_LOOK: Final = 0.01
"""Seconds between two looks for a file that somebody else writes."""


class Entry:
    """What happened to the runs of one key."""

    def __init__(self, key: str) -> None:
        self._directory = Path(os.environ["TEST_LEDGER"], hashlib.sha256(key.encode()).hexdigest())

    @property
    def started(self) -> int:
        """How many runs were started."""
        return len(list(self._directory.glob("started-*")))

    @property
    def cancelled(self) -> int:
        """How many were cancelled."""
        return len(list(self._directory.glob("cancelled-*")))

    def start(self) -> None:
        """Write down that a run was started."""
        self._write(f"started-{uuid.uuid4().hex}")

    def release(self) -> None:
        """Let the runs that wait go on."""
        self._write("released")

    async def wait_released(self) -> None:
        """Wait until somebody lets the runs go on."""
        await self._wait_for("released")

    async def wait_cancelled(self) -> None:
        """Wait until a run was cancelled."""
        await self._wait_for("cancelled-*")

    async def stall(self) -> None:
        """Wait to be cancelled, and write it down."""
        try:
            await asyncio.sleep(3 * WAIT)
        except asyncio.CancelledError:
            self._write(f"cancelled-{uuid.uuid4().hex}")
            raise

    def _write(self, name: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / name).touch()

    async def _wait_for(self, pattern: str) -> None:
        async with asyncio.timeout(WAIT):
            while not any(self._directory.glob(pattern)):  # noqa: ASYNC110 - another process may write it
                await asyncio.sleep(_LOOK)


def entry_of(request: AgentRequest) -> Entry:
    """Return the entry whose key is the first message of the user."""
    return Entry(next(message.text for message in request.messages if message.role == "user"))


async def ledger(request: AgentRequest) -> str:
    """Read an entry, release the agent that waits under a key, or wait until a run of it was cancelled: an agent."""
    order = json.loads(request.messages[-1].text)
    entry = Entry(order["key"])
    if order["do"] == "release":
        entry.release()
    elif order["do"] == "wait_cancelled":
        with contextlib.suppress(TimeoutError):  # the answer says so: `cancelled` is 0
            await entry.wait_cancelled()
    return json.dumps({"started": entry.started, "cancelled": entry.cancelled})
