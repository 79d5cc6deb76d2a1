"""Sync agents: each runs on a thread of its own, from its first line to its last.

A generator is iterated *and closed* on that thread, with the context variables of the request, so that thread-locals,
SQLite connections and tracing spans hold. Items cross to the event loop in batches, one wake-up each. The thread waits
when `_MAX_ITEMS` items or `_MAX_CHARACTERS` of text have not been taken: a slow reader holds the agent back.

Threads are not pooled: starting one costs less than a tenth of a millisecond, and a fresh one cannot carry thread-local
state from one caller to the next. Python cannot stop a thread from outside; one that does not come to an end
is counted in `Threads.zombies` until it does.
"""

import asyncio
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentrun_server.errors import TooManyRequestsError

__all__ = ["HandedOver", "ThreadRun", "Threads"]

_MAX_ITEMS = 64
_MAX_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What a sync call returned to be continued on the event loop: an awaitable or an async iterator."""

    value: Any


class ThreadRun:
    """One call of a sync agent on its thread. `batches` yields what it returns or yields, in lists."""

    __slots__ = (
        "_call", "_done", "_ended", "_error", "_items", "_lock", "_loop", "_room", "_stopped", "_waiter", "_weight",
        "handed_over",
    )  # fmt: skip

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._items: list[Any] = []
        self._weight = 0
        self._waiter: asyncio.Future[None] | None = None
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._done: asyncio.Future[None] = loop.create_future()
        self.handed_over: Any = None
        """See `HandedOver`."""

    # --- on the thread

    def work(self) -> None:
        """Run the agent to its end; the target of the thread."""
        try:
            result = self._call()
            if hasattr(result, "__next__"):
                self._iterate(result)
            elif hasattr(result, "__await__") or hasattr(result, "__aiter__"):
                self.handed_over = result
            else:
                self._put(result)
        except BaseException as exc:  # handed to the event loop, which judges it
            self._error = exc
        finally:
            self._call = _nothing  # the thread must not keep the request alive
            self._end()

    def _iterate(self, iterator: Any) -> None:
        try:
            for item in iterator:
                if not self._put(item):
                    break
        finally:
            close = getattr(iterator, "close", None)
            if callable(close):
                close()

    def _put(self, item: Any) -> bool:
        """Hand over `item`; wait while the reader is behind. Return whether more is wanted."""
        with self._lock:
            if self._stopped:
                return False
            self._items.append(item)
            if isinstance(item, str):
                self._weight += len(item)
            self._wake()
            while len(self._items) >= _MAX_ITEMS or self._weight >= _MAX_CHARACTERS:
                self._room.wait()  # ended by the reader, or by `stop`
                if self._stopped:
                    return False
            return True

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            self._wake()
        with suppress(RuntimeError):  # the loop is closed: the server is gone, and nobody waits
            self._loop.call_soon_threadsafe(self._set_done)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            try:
                self._loop.call_soon_threadsafe(_resolve, waiter)
            except RuntimeError:
                self._stopped = True

    # --- on the event loop

    def _set_done(self) -> None:
        _resolve(self._done)
        if self._stopped:
            self._discard()

    def _discard(self) -> None:
        """Close a coroutine that nobody will await any more: none of its code has run."""
        result, self.handed_over = self.handed_over, None
        if inspect.iscoroutine(result):
            result.close()

    async def batches(self) -> AsyncGenerator[list[Any], None]:
        """Yield lists of items as they come; raise what the agent raised."""
        while True:
            waiter = None
            with self._lock:
                items, self._items, self._weight = self._items, [], 0
                if items:
                    self._room.notify()
                elif not self._ended:
                    waiter = self._waiter = self._loop.create_future()
            if items:
                yield items
            elif waiter is not None:
                await waiter
            else:
                break
        self.raise_error()

    def raise_error(self) -> None:
        """Raise what the agent raised, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """Ask the thread to end: a generator is closed at its next `yield`."""
        with self._lock:
            self._stopped = True
            self._items, self._weight = [], 0
            self._room.notify()
        self._discard()

    async def wait_ended(self, grace: float) -> bool:
        """Wait until the thread has run its last line, at most `grace` seconds; return whether it has."""
        if not self._done.done():
            await asyncio.wait([self._done], timeout=grace)
        return self.ended

    @property
    def ended(self) -> bool:
        """Whether the thread has run its last line."""
        return self._done.done()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop when the thread has run its last line."""
        self._done.add_done_callback(lambda _: callback())


class Threads:
    """Starts threads for sync agents, at most `limit` at once; others wait, at most `max_waiting` for `timeout` s."""

    def __init__(self, limit: int, *, max_waiting: int, timeout: float, grace: float) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.grace = grace
        self.running = 0
        self.zombies = 0
        """Threads that were given up and still run."""

    async def run(self, call: Callable[[], Any], name: str) -> AsyncGenerator[list[Any], None]:
        """Run `call` on a thread; yield its items in batches, then, alone in a batch, what it handed over.

        Raises:
            TooManyRequestsError: no thread became free in time; `call` has not run.
        """
        await self._admit()
        thread_run = ThreadRun(call, asyncio.get_running_loop())
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(thread_run.work,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            self._release()
            raise TooManyRequestsError("The server cannot start another thread.").retry_after(1.0) from exc
        thread_run.when_ended(self._release)
        batches = thread_run.batches()
        try:
            async for batch in batches:
                yield batch
            result, thread_run.handed_over = thread_run.handed_over, None
            if result is not None:
                yield [HandedOver(result)]
        finally:
            thread_run.stop()
            try:
                await thread_run.wait_ended(self.grace)
            finally:  # also when the wait is cancelled: the run has been given up
                if not thread_run.ended:
                    self.zombies += 1
                    thread_run.when_ended(self._zombie_ended)
            thread_run.raise_error()  # of its clean-up

    async def _admit(self) -> None:
        if self.running < self._limit:
            self.running += 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise TooManyRequestsError("The server is busy. Please try again shortly.").retry_after(1.0)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._timeout):
                await waiter
        except (TimeoutError, asyncio.CancelledError) as exc:
            if waiter.done() and not waiter.cancelled():
                self._release()  # the place was given to us in the same moment
            if isinstance(exc, TimeoutError):
                raise TooManyRequestsError("The server is busy. Please try again shortly.").retry_after(1.0) from None
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _release(self) -> None:
        """Give the place to the next who waits, or free it."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.running -= 1

    def _zombie_ended(self) -> None:
        self.zombies -= 1


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    return None
