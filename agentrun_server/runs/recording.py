"""A run that outlives the request: it is written into a log, and whoever wants to reads there.

It belongs to the server, not to the request that asked for it. What it says is durable before anybody sees it. It ends
by itself, by a limit, or because it is cancelled: then the end is written at once, with all that was said before, and
whatever the agent still does is not heard any more.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from agentrun_server.config import ServerConfig
from agentrun_server.errors import APIError
from agentrun_server.runs.execution import Execution, last_words
from agentrun_server.runs.failure import agent_failure, without_retry
from agentrun_server.runs.journal import Journal
from agentrun_server.runs.run import RunStatus, StopReason
from agentrun_server.runs.script import Script

__all__ = ["Recording"]

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
        "_rest",
        "_resumable",
        "attended",
        "before",
        "behind",
        "error",
        "journal",
        "passes_on",
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
        """A request waits for it, and has it counted when it is over itself."""
        self.passes_on = False
        """It waited for a place, and will not get one here any more."""
        self._counted = 0
        self._enter = enter
        self._resumable = resumable
        self._hold = hold
        self._rest: list[bytes] = []
        """The last events, while something is left to do before they are told."""

    @property
    def id(self) -> str:
        """The id of the run and of its record."""
        return self.journal.entry.id

    @property
    def is_background(self) -> bool:
        """Nobody waits for it."""
        return self._enter is not None

    # --- where the pump writes

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
                    self._fail(agent_failure("the agent cancelled itself", self.request_id, debug=self._config.debug))
            while task.uncancel():
                pass
        except GeneratorExit:
            raise  # the event loop is gone, and nothing can be waited for
        except BaseException as exc:  # agents raise SystemExit too, and groups of anything
            self._fail(agent_failure(exc, self.request_id, debug=self._config.debug))
        finally:
            self.cancel_request()
            self.release()
            await self._leave()
        with contextlib.suppress(asyncio.CancelledError):  # given up: what is written is written
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
        self._rest = await self.script.perform(self)
        await self._leave()
        if self.run.stop_reason is None:
            self._finish([])

    def count(self) -> None:
        """Tell the rate limit in front what the run cost: when its request is over, and what was added after that."""
        meter = self.meter
        if meter is None or self.attended:
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
        self.run.move(outcome.status)
        rest, self._rest = self._rest, []
        self.journal.finish(rest + events, outcome)

    def _fail(self, error: APIError) -> None:
        if self.run.stop_reason is not None:
            return  # what came of it has been told
        self._end_with(error)

    def _end_with(self, error: APIError) -> None:
        self.error = error
        if not self.script.is_open and not self.journal.entry.begun:
            # Nobody has heard of it: there is nothing to write down.
            self.run.move(RunStatus.FAILED)
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
        if reason in _BROKEN or (reason is StopReason.SHUTDOWN and (waits or self._resumable)):
            self.passes_on = waits and reason is StopReason.SHUTDOWN
            self.run.move(RunStatus.CANCELLED)
            self.journal.leave()
            return
        words = last_words(reason)
        if words is not None:
            self._end_with(words)
        elif self.script.is_open or self.journal.entry.begun:
            self._finish(self.script.cancel())
        else:
            self.run.move(RunStatus.CANCELLED)
            self.journal.leave()

    def check(self, now: float) -> None:
        """Look after the run; a stream that stays silent is opened, so that its caller learns its id."""
        super().check(now)
        hold = self._hold
        if hold is not None and self.run_started and not self.stopped_at and now - self.run_started > hold:
            self._hold = None
            self.journal.append(self.script.open())
