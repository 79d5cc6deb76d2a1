"""Going down in good order.

::

    SERVING ──begin──> DRAINING ──last run ended──> DRAINED ──reopen──> SERVING
                          └──drain_timeout──> ENDING ──last run ended, or cancel_grace──> DRAINED

While it drains the server still listens, so that ``/readyz`` can say 503 and new requests get a proper answer. Open
answers may finish; after `drain_timeout` the rest get an error in the stream. Only then does the HTTP server hear of
the signal: its own shutdown would close the listener at once and wait for streams without a limit, or cut them.

A second signal is someone's impatience: open answers end now, with the error, and the HTTP server hears of it at once.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from types import FrameType
from typing import Any

from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.execution import Execution
from agentrun_server.runs.run import StopReason
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.admission import Admission

__all__ = ["TRANSITIONS", "Drain", "DrainState"]

logger = get_logger("agentrun_server.drain")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_READERS_WAIT = 1.0
"""Seconds in which a run that was stopped is written down and its readers have seen how it ended."""


class DrainState(Enum):
    """How far the server is on its way down."""

    SERVING = auto()
    DRAINING = auto()
    ENDING = auto()
    DRAINED = auto()


TRANSITIONS: Mapping[DrainState, frozenset[DrainState]] = {
    DrainState.SERVING: frozenset({DrainState.DRAINING}),
    DrainState.DRAINING: frozenset({DrainState.ENDING, DrainState.DRAINED}),
    DrainState.ENDING: frozenset({DrainState.DRAINED}),
    DrainState.DRAINED: frozenset({DrainState.SERVING}),
}


class Drain:
    """Drains one server."""

    def __init__(self, sweeper: Sweeper, admission: Admission, *, timeout: float, grace: float) -> None:
        self._sweeper = sweeper
        self._admission = admission
        self._timeout = timeout
        self._grace = grace
        self._timer: asyncio.TimerHandle | None = None
        self._then: list[Callable[[], None]] = []
        self._previous: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = False
        self._guests = 0
        self._told: set[Callable[[], None]] = set()
        self.state = DrainState.SERVING

    @property
    def serving(self) -> bool:
        """New work is welcome."""
        return self.state is DrainState.SERVING

    @property
    def should_exit(self) -> bool:
        """Whether open answers must end now: sse-starlette looks for this name on whoever handles SIGTERM."""
        return self.state in (DrainState.ENDING, DrainState.DRAINED)

    @contextmanager
    def guest(self) -> Iterator[None]:
        """Have the drain wait for a request that is no run of ours, as it waits for runs."""
        self._guests += 1
        try:
            yield
        finally:
            self._guests -= 1
            self._ended_one()

    @contextmanager
    def told(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` called when the drain begins, for who would wait for more work until then."""
        self._told.add(callback)
        try:
            yield
        finally:
            self._told.discard(callback)

    # --- the states

    def begin(self, then: Callable[[], None] | None = None) -> None:
        """Begin to drain; call `then` when nothing is open any more (at once, if nothing is). Safe to call again."""
        if then is not None:
            self._then.append(then)
        if self.state is DrainState.SERVING:
            logger.info("draining", extra={"open": len(self._sweeper.active)})
            self._move(DrainState.DRAINING)
            self._admission.close()
            self._sweeper.on_empty = self._ended_one
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._end_runs)
            for tell in tuple(self._told):
                tell()
        if self.state is DrainState.DRAINED:
            self._emptied()
        else:
            self._ended_one()

    def reopen(self) -> None:
        """Serve again: the app is started once more after a shutdown, as tests do. Does nothing else."""
        if self.state is DrainState.DRAINED:
            self._move(DrainState.SERVING)
            self._admission.closed = False
            self._sweeper.on_empty = None
            self._signalled = False

    def _hurry(self) -> None:
        if self.state is DrainState.DRAINING:
            if self._timer is not None:
                self._timer.cancel()
            self._end_runs()

    def _ended_one(self) -> None:
        if not self._sweeper.active and not self._guests and self.state in (DrainState.DRAINING, DrainState.ENDING):
            self._emptied()

    def _end_runs(self) -> None:
        self._move(DrainState.ENDING)
        logger.warning("drain timeout: ending open runs", extra={"open": len(self._sweeper.active)})
        readers = []
        for execution in tuple(self._sweeper.active):
            if execution.reads_log:
                readers.append(execution)
            else:
                execution.stop(StopReason.SHUTDOWN)
        loop = asyncio.get_running_loop()
        # What runs here writes its own end into its log, and its readers see that one. Others must be told.
        loop.call_later(min(_READERS_WAIT, self._grace / 2), self._end_readers, readers)
        self._timer = loop.call_later(self._grace, self._emptied)

    def _end_readers(self, readers: list[Execution]) -> None:
        for reader in readers:
            if reader in self._sweeper.active:
                reader.stop(StopReason.SHUTDOWN)

    def _emptied(self) -> None:
        if self.state is not DrainState.DRAINED:
            self._move(DrainState.DRAINED)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        then, self._then = self._then, []
        for callback in then:
            callback()

    def _move(self, to: DrainState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} cannot become {to}"
        self.state = to

    # --- signals

    def catch_signals(self) -> None:
        """Drain on SIGTERM and SIGINT, and only then pass the signal on to whoever caught it before.

        A second signal ends open runs and is passed on at once. Does nothing outside the main thread, where no
        signals arrive.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            # Nobody to pass it on to (a test, a REPL): leave the signal alone.
            if callable(previous) and previous is not signal.default_int_handler:
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    def release_signals(self) -> None:
        """Give the signals back."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)
        self._previous = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if self._loop is None or self._loop.is_closed():
            previous(number, frame)
        elif self._signalled:
            self._loop.call_soon_threadsafe(self._hurry)
            previous(number, frame)
        else:
            self._signalled = True
            self._loop.call_soon_threadsafe(self.begin, lambda: previous(number, None))
