"""A run that outlives the request: it is written into a log, and whoever wants to reads there.

It belongs to the server, not to the request that asked for it. What it says is durable before anybody sees it. It ends
by itself, by a limit, or because it is cancelled: then the end is written at once, with all that was said before, and
whatever the agent still does is not heard any more.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from agentrun_server.config import ServerConfig
from agentrun_server.errors import APIError
from agentrun_server.observability.logs import get_logger
from agentrun_server.observability.logs import request_id as current_request_id
from agentrun_server.runs.background import Room
from agentrun_server.runs.execution import Execution, last_words
from agentrun_server.runs.failure import agent_failure, without_retry
from agentrun_server.runs.journal import Journal
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.runs.script import Script

__all__ = ["Recording"]

logger = get_logger("agentrun_server.run")

_BROKEN = frozenset({StopReason.LEASE_LOST, StopReason.STORAGE})
"""Nothing can be written any more."""


class Recording(Execution):
    """One run and its log.

    Args:
        config: of the server.
        request_id: of the request that asked for it.
        script: how it is written.
        enter: waits for a place; None when it has one.
        resumable: when the server stops it is left to others, instead of ending with an error. One that waits for a
            place is so anyhow.
        hold: show that it has begun after so many seconds, though the agent has said nothing; None: wait.
    """

    __slots__ = (
        "_counted",
        "_enter",
        "_hold",
        "_is_whole",
        "_ran",
        "_rest",
        "_resumable",
        "attended",
        "before",
        "behind",
        "error",
        "journal",
        "passes_on",
        "room",
        "script",
    )

    def __init__(
        self,
        config: ServerConfig,
        request_id: str,
        script: Script,
        *,
        enter: Callable[[], Awaitable[Callable[[], None]]] | None = None,
        resumable: bool = False,
        hold: float | None = None,
    ) -> None:
        super().__init__(config, request_id)
        self.script = script
        self.journal: Journal
        self.used = script.usage
        self.error: APIError | None = None
        """Why it failed, as its caller may know it."""
        self.before: Callable[[], Awaitable[None]] | None = None
        """What must be had before the agent runs."""
        self.behind: Callable[[], Awaitable[None]] | None = None
        """What is left to do when it has run, before its end is told; it is done when it was never run, too."""
        self.attended = False
        """A request waits for it, and has it counted, and its end in its own log line, when it is over itself."""
        self.passes_on = False
        """It waited for a place, and will not get one here any more."""
        self.room: Room | None = None
        """What it takes of the background; given back when its task has ended."""
        self._ran = False
        """The agent has begun: before that nothing costs anything."""
        self._counted = 0
        self._enter = enter
        self._resumable = resumable
        self._hold = hold
        self._is_whole = False
        """The agent has come to its end: what would stop the run now comes too late."""
        self._rest: list[bytes] = []
        """The last events, while something is left to do before they are told."""

    @property
    def id(self) -> str:
        """The id of the run and of its record."""
        return self.journal.entry.id

    # --- where the pump writes

    def push(self, text: str, now: float) -> bool:  # noqa: ARG002 - see `Outlet`
        """Take nothing: `write` knows how much is to be written down."""
        return False

    async def write(self, text: str) -> None:
        """Take whole events. Waits while much is to be written down."""
        self.last_write = time.monotonic()
        self.journal.append(self.script.split(text))
        await self.journal.room()

    def before_wait(self) -> None:
        """Do nothing: nobody has to be watched."""

    def watch(self) -> None:
        """Do nothing: nobody has to be watched."""

    # --- the run

    async def execute(self) -> None:
        """Run to the end, whatever it is, and until that is written down; the body of the run's task."""
        self.task = task = asyncio.current_task()
        assert task is not None, "it runs in a task"
        current_request_id.set(self.request_id)  # it may have been asked of another process
        try:
            if self.run.stop_reason is None:
                await self._perform()
        except APIError as error:
            self._fail(without_retry(error) if self.run_started else error)
        except asyncio.CancelledError:
            if self.run.stop_reason is None:
                if task.cancelling():
                    self.stop(StopReason.SHUTDOWN)  # the event loop ends
                else:
                    self._fail(self._failure("the agent cancelled itself"))
            while task.uncancel():
                pass
        except BaseException as exc:  # agents raise SystemExit too, and groups of anything
            if isinstance(exc, GeneratorExit) and self.is_thrown_away:
                raise
            self._fail(self._failure(exc))
        finally:
            self.cancel_request()
            self.release()
            await self._leave()
        self.stopped_at, self._hold = 0.0, None  # what is left is the journal's, which may have to wait for its store
        with contextlib.suppress(asyncio.CancelledError):  # the server ends: what is written is written
            await self.journal.wait_closed()
        self.count()
        self.run_started = self.stopped_at = 0.0
        self.task = None

    async def _perform(self) -> None:
        if self._enter is not None and not await self._wait_turn(self._enter):
            return
        if self.before is not None:
            await self.before()
        self.run.move(RunStatus.IN_PROGRESS)
        self.begin()
        self._ran = True
        self._rest = await self.script.perform(self)
        self._is_whole = True
        await self._leave()
        if self.run.stop_reason is None:
            self._finish([])

    def count(self) -> None:
        """Tell the rate limit in front what the run cost: when its request is over, and what was added after that."""
        meter = self.meter
        if meter is None or self.attended or not self._ran:
            return
        usage = self.script.usage()
        cost = usage.input_tokens + usage.output_tokens - self._counted
        self._counted += cost
        charge = meter.get("charge")
        if callable(charge):
            charge(cost)
        else:
            meter["total_tokens"] = self._counted

    async def _leave(self) -> None:
        behind, self.behind = self.behind, None
        if behind is not None:
            await behind()

    async def _wait_turn(self, enter: Callable[[], Awaitable[Callable[[], None]]]) -> bool:
        """Wait for a place, and write down that it has one before agent code runs; tell whether it may."""
        try:
            self.enter(await enter())
        except APIError:
            self.stop(StopReason.SHUTDOWN)  # nobody gets a place any more
            return False
        return await self.journal.proceed(self.script.proceed())

    def _finish(self, events: list[bytes]) -> None:
        outcome = self.script.outcome()
        self._end(outcome.status)
        rest, self._rest = self._rest, []
        self.journal.finish(rest + events, outcome)

    def _end(self, status: RunStatus) -> None:
        """Bring the run to its end; the log is told of it here, unless a request has a line for it."""
        if self.run.move(status) and not self.attended:
            logger.info("run ended", extra={"run": status, **self._facts()})

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"request_id": self.request_id, "run_id": self.id}
        if self.request is not None:
            facts["model"] = self.request.model
        if self.run_started:
            facts["duration_ms"] = round((time.monotonic() - self.run_started) * 1000, 1)
        if self.first_event:
            facts["first_event_ms"] = round((self.first_event - self.run_started) * 1000, 1)
        if self.run.stop_reason is not None:
            facts["stopped"] = self.run.stop_reason
        if self.error is not None:
            facts["error"] = self.error.code
        return facts

    def _failure(self, cause: BaseException | str) -> APIError:
        return agent_failure(cause, self.request_id, debug=self._config.debug, run_id=self.id)

    def _fail(self, error: APIError) -> None:
        if self.run.stop_reason is not None:
            return  # what came of it has been told
        self._tell(partial(self._end_with, error))

    def _tell(self, end: Callable[[], None]) -> None:
        """Tell the end; when the agent has spoiled what that is made of, it is told from what is written down."""
        try:
            end()
        except Exception:
            logger.exception("the end of a run cannot be told", extra=self._facts())
            self.journal.give_up(StopReason.STORAGE)

    def _end_with(self, error: APIError) -> None:
        if self._is_whole:
            self._finish([])
            return
        self.error = error
        if not self.script.is_open and not self.journal.entry.begun:
            # Nobody has heard of it: there is nothing to write down.
            self._end(RunStatus.FAILED)
            self.journal.leave()
        elif self.script.is_open:
            self._finish(self.script.fail(error))
        else:
            # Who asked is told by the status of the answer: there is no stream yet.
            self.script.fail(error)
            self._finish([])

    # --- stopping

    def _is_over(self, reason: StopReason) -> bool:  # noqa: ARG002 - one of several kinds of runs
        return self.run.status not in (RunStatus.QUEUED, RunStatus.IN_PROGRESS)

    def _stopped(self, reason: StopReason) -> None:
        waits = self._enter is not None and not self.run_started
        others_may = (waits or self._resumable) and not self._is_whole
        if reason in _BROKEN or (reason is StopReason.SHUTDOWN and others_may):
            self.passes_on = waits and reason is StopReason.SHUTDOWN
            if self.run.move(RunStatus.CANCELLED) and not self.attended:
                logger.info("run left to others", extra=self._facts())
            self.journal.leave()
            return
        words = last_words(reason)
        self._tell(self._cancel if words is None else partial(self._end_with, words))

    def _cancel(self) -> None:
        if self.script.is_open or self.journal.entry.begun:
            self._finish(self.script.cancel())
        else:
            self._end(RunStatus.CANCELLED)
            self.journal.leave()

    def check(self, now: float) -> None:
        """Look after the run; a stream that stays silent is opened, so that its caller learns its id."""
        super().check(now)
        hold = self._hold
        if hold is not None and self.run_started and not self.stopped_at and now - self.run_started > hold:
            self._hold = None
            self.journal.append(self.script.open())
