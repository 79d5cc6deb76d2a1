"""One execution of an agent: its task, its place, its time limits, and how it is stopped.

A run is stopped by cancelling its task once, so that the agent's ``finally`` blocks can wait for what they must. If it
has not come to its end after `cancel_grace`, it is given up: its place is freed, whoever waited has an answer already.

Who listens is a subclass's business: `agentrun_server.server.attachment` answers one request,
`agentrun_server.runs.recording` writes into a log that many can read.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from agentrun_server.config import ServerConfig
from agentrun_server.core.request import AgentRequest
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentTimeoutError, APIError, ServiceUnavailableError
from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.run import Run, StopReason

__all__ = ["Execution", "last_words"]

logger = get_logger("agentrun_server.run")


def _first_event_timeout() -> APIError:
    return AgentTimeoutError("The agent did not begin to answer in time.").no_retry()


def _run_timeout() -> APIError:
    return AgentTimeoutError("The agent did not finish its answer in time.").no_retry()


def _shutdown() -> APIError:
    return ServiceUnavailableError("The server is shutting down.", code="server_shutting_down").no_retry()


_LAST_WORDS: Mapping[StopReason, Callable[[], APIError]] = {
    StopReason.FIRST_EVENT_TIMEOUT: _first_event_timeout,
    StopReason.RUN_TIMEOUT: _run_timeout,
    StopReason.SHUTDOWN: _shutdown,
}


def last_words(reason: StopReason) -> APIError | None:
    """Return what a caller who is still there is told when a run is stopped; None: nothing."""
    words = _LAST_WORDS.get(reason)
    return None if words is None else words()


class Execution:
    """A run as the server looks after it. `Sweeper` calls `check` every so often, `stop` ends it from outside."""

    __slots__ = (
        "__weakref__", "_config", "_release", "abandoned", "first_event", "last_write", "meter", "reads_log", "request",
        "request_id", "run", "run_started", "stopped_at", "task", "used",
    )  # fmt: skip

    def __init__(self, config: ServerConfig, request_id: str) -> None:
        self._config = config
        self.request_id = request_id
        self.run = Run()
        self.request: AgentRequest | None = None
        self.task: asyncio.Task[Any] | None = None
        self.meter: dict[str, Any] | None = None
        """Where a rate limit in front wants to read what the run cost; see `agentrun_middleware.state`."""
        self.used: Callable[[], Usage] | None = None
        self._release: Callable[[], None] | None = None
        self.run_started = 0.0
        self.first_event = 0.0
        self.last_write = 0.0
        self.stopped_at = 0.0
        self.abandoned = False
        self.reads_log = False
        """It only shows what another run has said, and has no time limits."""

    def enter(self, release: Callable[[], None]) -> None:
        """Begin the run; `release` gives its place back, and is called once."""
        self._release = release

    def release(self) -> None:
        """Give the run's place back."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def begin(self) -> None:
        """Start the clocks: agent code runs from now on."""
        self.run_started = self.last_write = now = time.monotonic()
        limit = self._config.run_timeout
        if limit is not None and self.request is not None:
            self.request.deadline = now + limit

    def stop(self, reason: StopReason) -> None:
        """Stop the run. The first reason counts; a caller who is still there is told at once."""
        if self.run.stop_reason is not None or self._is_over(reason):
            return
        self.run.stop_reason = reason
        self.stopped_at = time.monotonic()
        self.cancel_request()
        self._stopped(reason)
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    @property
    def is_thrown_away(self) -> bool:
        """Whoever asks runs because its coroutine is closed: the event loop is gone, and nothing can be waited for."""
        try:
            return asyncio.current_task() is not self.task
        except RuntimeError:  # no event loop runs
            return True

    def cancel_request(self) -> None:
        """Tell the agent that its answer is not wanted any more."""
        if self.request is not None:
            self.request._cancel()

    def _is_over(self, reason: StopReason) -> bool:
        """Tell whether there is nothing to stop any more."""
        raise NotImplementedError

    def _stopped(self, reason: StopReason) -> None:
        """Tell whoever listens, before the task is cancelled."""
        raise NotImplementedError

    def check(self, now: float) -> None:
        """Look after the run: called by the sweeper every so often with the time."""
        if self.stopped_at:
            if now - self.stopped_at > self._config.cancel_grace and not self.abandoned:
                self._abandon()
        elif self.run_started:
            self._check_limits(now)

    def _check_limits(self, now: float) -> bool:
        """Stop a run that takes too long; tell whether it goes on."""
        config, age = self._config, now - self.run_started
        if config.run_timeout is not None and age > config.run_timeout:
            self.stop(StopReason.RUN_TIMEOUT)
        elif config.first_event_timeout is not None and not self.first_event and age > config.first_event_timeout:
            self.stop(StopReason.FIRST_EVENT_TIMEOUT)
        else:
            return True
        return False

    def _abandon(self) -> None:
        """Give up waiting for a run that was cancelled and goes on."""
        self.abandoned = True
        logger.error(
            "agent does not end after it was cancelled",
            extra={"request_id": self.request_id, "stopped": self.run.stop_reason},
        )
        self.release()
        self._abandoned()
        if self.task is not None:
            self.task.cancel()

    def _abandoned(self) -> None:
        """Let go of whoever listens: called when the run is given up."""

    def count(self) -> None:
        """Tell the rate limit in front what the run cost."""
        if self.used is not None and self.meter is not None:
            usage = self.used()
            self.meter["total_tokens"] = usage.input_tokens + usage.output_tokens
