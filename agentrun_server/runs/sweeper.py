"""One look at all open runs every so often, in place of a timer for each.

While nothing is open there is no timer either.
"""

import asyncio
import time
from collections.abc import Callable

from agentrun_server.config import ServerConfig
from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.execution import Execution

__all__ = ["Sweeper"]

logger = get_logger("agentrun_server.run")


class Sweeper:
    """Holds the open runs, those that answer a request and those that outlive it, and checks them."""

    __slots__ = ("_handle", "_interval", "_loop", "active", "clock", "on_empty")

    def __init__(self, config: ServerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.active: set[Execution] = set()
        self.on_empty: Callable[[], None] | None = None
        """Called when the last run has gone; the drain waits for it."""
        self._interval = _interval(config)
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, execution: Execution) -> None:
        """Look after `execution` from now on."""
        self.active.add(execution)
        loop = asyncio.get_running_loop()
        # A timer of another loop never fires: test clients run each request in a loop of its own.
        if self._handle is None or self._loop is not loop:
            self._schedule(loop)

    def discard(self, execution: Execution) -> None:
        """Forget `execution`: it has ended."""
        self.active.discard(execution)
        if self.on_empty is not None and not self.active:
            self.on_empty()

    def tick(self) -> None:
        """Check every run once."""
        now = self.clock()
        for execution in tuple(self.active):
            try:
                execution.check(now)
            except Exception:
                logger.exception("check failed", extra={"request_id": execution.request_id})

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle = loop.call_later(self._interval, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self.tick()
        if self.active:
            self._schedule(asyncio.get_running_loop())


def _interval(config: ServerConfig) -> float:
    """Return the time between two looks: a quarter of the shortest limit, at most a second."""
    limits = (
        config.heartbeat_interval,
        config.response_hold,
        config.first_event_timeout,
        config.run_timeout,
        config.write_timeout,
        config.cancel_grace,
        config.body_timeout,
    )
    shortest = min(limit for limit in limits if limit is not None)
    return min(max(shortest / 4, 0.01), 1.0)
