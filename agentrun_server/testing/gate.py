"""A point where a script waits until the test lets it go on. Works across threads and event loops.

An `asyncio.Event` belongs to one loop; an upstream served on a real socket may live on another one, in
another thread.
"""

import asyncio
import threading
from contextlib import suppress

__all__ = ["Flag", "Gate"]


class Flag:
    """A `threading.Event` that can be awaited, by any number of loops."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()

    def set(self) -> None:
        """Wake everyone who waits, now and later."""
        with self._lock:
            self._event.set()
            waiters, self._waiters = self._waiters, set()
        for loop, future in waiters:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_wake, future)

    async def wait(self) -> None:
        """Wait in an event loop, without a limit."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._event.is_set():
                return
            self._waiters.add((loop, future))
        try:
            await future
        finally:
            with self._lock:
                self._waiters.discard((loop, future))

    def wait_sync(self, timeout: float) -> bool:
        """Block this thread for at most `timeout` seconds; False when nothing happened."""
        return self._event.wait(timeout)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Gate:
    """Holds a scripted turn at one piece until the test opens it.

    ::

        gate = Gate()
        fake = FakeOpenAI(Turn("Hello there", gate=gate, gate_at=1))
        ...                      # start reading the stream
        await gate.arrived()     # the upstream has sent "Hello" and holds " there"
        gate.open()

    A gate stays open once opened.
    """

    def __init__(self) -> None:
        self._arrived = Flag()
        self._opened = Flag()

    def open(self) -> None:
        """Let the upstream go on. May be called from any thread, also before anyone waits."""
        self._opened.set()

    async def wait(self) -> None:
        """Wait at the gate: what the upstream does."""
        self._arrived.set()
        await self._opened.wait()

    async def arrived(self, timeout: float = 5.0) -> None:
        """Wait until the upstream stands at the gate; `TimeoutError` when it does not come."""
        async with asyncio.timeout(timeout):
            await self._arrived.wait()

    def arrived_sync(self, timeout: float = 5.0) -> None:
        """Do what `arrived` does, in a test without an event loop."""
        if not self._arrived.wait_sync(timeout):
            raise TimeoutError(f"nobody came to the gate within {timeout} s")
