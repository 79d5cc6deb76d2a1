"""Start-up and shutdown of an ASGI app: the lifespan protocol, run as a server runs it.

The app's lifespan lives in one task of its own, because frameworks open and close their resources in it and
some of those (task groups, context variables) must be closed by the task that opened them. Start-up and
shutdown are both bounded in time.
"""

import asyncio
import logging
from typing import Any, Literal

from starlette.types import ASGIApp, Message

__all__ = ["Lifespan", "LifespanMode"]

LifespanMode = Literal["auto", "on", "off"]
"""``auto``: an app may be without the lifespan protocol. ``on``: that is an error. ``off``: never run it."""

logger = logging.getLogger(__name__)


class Lifespan:
    """One run of an app's lifespan: `startup`, which several tasks may await, then `shutdown`.

    The state of the app's start-up that every request gets a copy of is in `state`.
    """

    def __init__(self, app: ASGIApp, *, mode: LifespanMode, startup_timeout: float, shutdown_timeout: float) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._startup_timeout = startup_timeout
        self._shutdown_timeout = shutdown_timeout
        self._asked_to_start = False
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._startup_error: Exception | None = None
        self._shutdown_error: Exception | None = None
        self._task = None if mode == "off" else asyncio.create_task(self._run(), name="asgi lifespan")

    async def startup(self) -> None:
        """Wait until the app is up; raise when it says that it cannot start."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(self._startup_timeout):
                await self._started.wait()
        except TimeoutError:
            self._startup_error = TimeoutError(f"the app did not start within {self._startup_timeout} s")
            await self._abandon(self._task)
        if self._startup_error is not None:
            raise self._startup_error

    async def shutdown(self) -> None:
        """Ask the app to shut down and wait until it has; raise when it could not."""
        if self._task is None:
            return
        self._stopping.set()
        _, pending = await asyncio.wait([self._task], timeout=self._shutdown_timeout)
        if pending:
            await self._abandon(self._task)
            raise TimeoutError(f"the app did not shut down within {self._shutdown_timeout} s")
        if self._shutdown_error is not None:
            raise self._shutdown_error

    async def _abandon(self, task: "asyncio.Task[None]") -> None:
        task.cancel()
        await asyncio.wait([task], timeout=self._shutdown_timeout)

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        try:
            await self._app({"type": "lifespan", "asgi": asgi, "state": self.state}, self._receive, self._send)
        except Exception as error:
            self._raised(error)
        finally:
            self._started.set()

    def _raised(self, error: Exception) -> None:
        if self._startup_error or self._shutdown_error:
            return  # the app has told the cause in a message, and raises it once more
        if self._started.is_set():
            self._shutdown_error = error
        elif self._mode == "on":
            self._startup_error = error
        else:
            # As uvicorn does: an app that raises at the lifespan scope is one that does not know lifespans.
            logger.info("the app does not support lifespans", exc_info=error)

    async def _receive(self) -> Message:
        if not self._asked_to_start:
            self._asked_to_start = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        text = message.get("message", "")
        match message["type"]:
            case "lifespan.startup.complete":
                self._started.set()
            case "lifespan.startup.failed":
                self._startup_error = RuntimeError(f"the app failed to start: {text}")
                self._started.set()
            case "lifespan.shutdown.complete":
                pass  # the end of the task is what `shutdown` waits for
            case "lifespan.shutdown.failed":
                self._shutdown_error = RuntimeError(f"the app failed to shut down: {text}")
            case other:
                raise RuntimeError(f"unexpected ASGI message {other!r} in a lifespan")
