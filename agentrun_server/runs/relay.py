"""What a run says, handed on to one reader and not kept: a journal for runs that are not stored.

The agent waits while the reader has not taken what it said (`_MAX_PENDING`).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from agentrun_server.runs.entry import Entry, Outcome

__all__ = ["Relay"]

_MAX_PENDING: Final = 64 * 1024


class Relay:
    """Stands where a `Journal` does, for one reader."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.closed = False
        self.settled = False
        """The run has said how it ended."""
        self._pending: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._taken = asyncio.Event()

    async def proceed(self, events: Sequence[bytes]) -> bool:
        """Take events; return True."""
        self.append(events)
        return True

    def append(self, events: Sequence[bytes]) -> None:
        """Take events."""
        if not self.closed and events:
            self._pending += events
            self._size += sum(map(len, events))
            self._news.set()

    def finish(self, events: Sequence[bytes], outcome: Outcome) -> None:  # noqa: ARG002 - told by the last event
        """Take the last events."""
        self.append(events)
        self.settled = True
        self.leave()

    def leave(self) -> None:
        """Take nothing more."""
        self.closed = True
        self._news.set()
        self._taken.set()

    async def room(self) -> None:
        """Wait until the reader has taken what was said."""
        while self._size > _MAX_PENDING and not self.closed:
            self._taken.clear()
            await self._taken.wait()

    async def wait_closed(self) -> None:
        """Wait until nothing more will come."""
        while not self.closed:
            self._taken.clear()
            await self._taken.wait()

    async def follow(self, after: int = -1) -> AsyncGenerator[list[bytes], None]:  # noqa: ARG002 - nothing is kept
        """Yield events, several at a time, to the end."""
        while True:
            batch, self._pending, self._size = self._pending, [], 0
            if batch:
                self._taken.set()
                yield batch
            elif self.closed:
                return
            else:
                self._news.clear()
                await self._news.wait()
