"""How many runs there are at once: a limit, a short queue in front of it, and a no for everyone else."""

import asyncio
from collections import deque

from agentrun_server.errors import ServiceUnavailableError, TooManyRequestsError

__all__ = ["Admission", "shutting_down"]


class Admission:
    """Gives out places. The queue is first come, first served, bounded in length and time."""

    __slots__ = ("_limit", "_max_queued", "_patient", "_queue", "_timeout", "closed", "running")

    def __init__(self, limit: int, *, max_queued: int, timeout: float) -> None:
        self._limit = limit
        self._max_queued = max_queued
        self._timeout = timeout
        self._queue: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()
        self.running = 0
        self.closed = False
        """The server drains: nobody is admitted any more."""

    @property
    def queued(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits.

        Raises:
            ServiceUnavailableError: the server is shutting down.
        """
        if self.closed:
            raise shutting_down()
        if self.running < self._limit and not self._queue:
            self.running += 1
            return True
        return False

    async def enter(self) -> None:
        """Wait for a place; `try_enter` said there is none.

        Raises:
            TooManyRequestsError: the queue is full, or no place became free in time.
            ServiceUnavailableError: the server is shutting down.
        """
        if len(self._queue) >= self._max_queued:
            raise _busy()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(self._timeout):
                await place
        except (TimeoutError, asyncio.CancelledError) as exc:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()  # the place was given to us in the same moment
            if isinstance(exc, TimeoutError):
                raise _busy() from None
            raise
        finally:
            if place in self._queue:
                self._queue.remove(place)

    async def enter_patiently(self) -> None:
        """Take a place when one is free that nobody in the queue wants, however long that takes.

        For runs that nobody waits for; whoever starts them bounds their number.

        Raises:
            ServiceUnavailableError: the server is shutting down.
        """
        if self.try_enter():
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patient.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()  # the place was given to us in the same moment
            raise
        finally:
            if place in self._patient:
                self._patient.remove(place)

    def leave(self) -> None:
        """Give the place back: to the first in the queue, if anyone waits."""
        for queue in (self._queue, self._patient):
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(None)
                    return
        self.running -= 1

    def close(self) -> None:
        """Admit nobody any more; those who wait are told so."""
        self.closed = True
        for queue in (self._queue, self._patient):
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_exception(shutting_down())


def _busy() -> TooManyRequestsError:
    return TooManyRequestsError("The server is busy. Please try again shortly.").retry_after(1.0)


def shutting_down() -> ServiceUnavailableError:
    """Return the answer to whoever comes while the server drains."""
    message = "The server is shutting down. Please try again."
    return ServiceUnavailableError(message, code="server_shutting_down").retry_after(1.0)
