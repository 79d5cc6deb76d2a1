"""How long a store that is away is waited for, and how often it is asked again.

Pauses grow up to two seconds, and a part of each is drawn by lot: those who wait for the same store do not all come
back to it at once.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from agentrun_server.storage.errors import StorageUnavailableError

__all__ = ["SHORT", "Patience", "patiently"]

T = TypeVar("T")

SHORT: Final = 1.5
"""Seconds for which anybody waits: a lock, or a connection that was cut, and no more."""

_PAUSES: Final = (0.05, 0.2, 1.0, 2.0)
"""Seconds, each half to one and a half times as long; the last again and again."""


class Patience:
    """One wait, which begins now.

    Args:
        seconds: how long it is at most.
        clock: seconds that only grow.
        draw: a random number in [0, 1).
    """

    __slots__ = ("_clock", "_draw", "_tries", "_until")

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._until = clock() + seconds
        self._tries = 0

    def pause(self) -> float | None:
        """Return the seconds until the next try; None: it was tried for long enough. The last try is at the end."""
        left = self._until - self._clock()
        if left <= 0:
            return None
        pause = _PAUSES[min(self._tries, len(_PAUSES) - 1)] * (0.5 + self._draw())
        self._tries += 1
        return min(pause, left)


async def patiently(read: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """Return what `read` returns, once the store is there.

    Raises:
        StorageUnavailableError: it was away for too long.
    """
    while True:
        try:
            return await read()
        except StorageUnavailableError:
            pause = patience.pause()
            if pause is None:
                raise
        await asyncio.sleep(pause)
