"""Agents of every kind that hang where a test wants them to, and a witness of what they live through.

An agent here says up to three pieces, ``p0 p1 p2``. Before the piece with the number `hang_at` (or, at 3, after the
last) it waits for ever, until it is cancelled. What happens to it is noted: ``started``, ``waiting`` (it hangs),
``cancelled``, ``ended`` (its ``finally`` has run to the end).
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Never

from agentrun_server import AgentRequest
from agentrun_server.invoker.agent import AgentCallable
from tests.support.clock import within

__all__ = ["ASYNC_STREAMS", "FUNCTIONS", "SYNC_STREAMS", "HangingAgent", "Witness"]

PIECES = 3


class Witness:
    """What an agent lived through. `note` may be called on any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: dict[str, asyncio.Event] = {}
        self.notes: list[str] = []
        self.times: dict[str, float] = {}
        self.threads: set[int] = set()

    def note(self, what: str) -> None:
        """Write down that something has happened."""
        self.notes.append(what)
        self.times.setdefault(what, time.monotonic())
        self.threads.add(threading.get_ident())
        self._loop.call_soon_threadsafe(self._event(what).set)

    def _event(self, what: str) -> asyncio.Event:
        return self._events.setdefault(what, asyncio.Event())

    async def saw(self, what: str) -> float:
        """Wait until `what` has been noted; return when it was, on the clock of `time.monotonic`."""
        try:
            await within(self._event(what).wait())
        except TimeoutError:
            raise AssertionError(f"{what!r} was not seen; only {self.notes}") from None
        return self.times[what]

    async def hang(self) -> Never:
        """Wait for ever; to be cancelled."""
        self.note("waiting")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.note("cancelled")
            raise
        raise AssertionError("nobody sets this future")

    def hang_on_thread(self, request: AgentRequest) -> None:
        """Wait on a thread until the run is cancelled."""
        self.note("waiting")
        assert request.wait_cancelled(30), "nobody cancelled the run"
        self.note("cancelled")


HangingAgent = Callable[[Witness, int], AgentCallable]
"""Makes an agent that hangs before the piece of the given number."""


def async_generator(witness: Witness, hang_at: int) -> AgentCallable:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        witness.note("started")
        try:
            for i in range(PIECES):
                if i == hang_at:
                    await witness.hang()
                yield f"p{i}"
            await witness.hang()
        finally:
            witness.note("ended")

    return agent


def nested_generators(witness: Witness, hang_at: int) -> AgentCallable:
    innermost = async_generator(witness, hang_at)

    async def middle(request: AgentRequest) -> AsyncGenerator[str, None]:
        async with aclosing(innermost(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        async with aclosing(middle(request)) as pieces:
            async for piece in pieces:
                yield piece

    return agent


def slow_cleanup(witness: Witness, hang_at: int) -> AgentCallable:
    """Its ``finally`` waits several times, in two nested blocks."""

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        witness.note("started")
        try:
            try:
                for i in range(PIECES):
                    if i == hang_at:
                        await witness.hang()
                    yield f"p{i}"
                await witness.hang()
            finally:
                await asyncio.sleep(0.002)
                await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.002))
        finally:
            async with asyncio.timeout(1):
                await asyncio.sleep(0.002)
            witness.note("ended")

    return agent


def task_group(witness: Witness, hang_at: int) -> AgentCallable:
    """It waits inside a task group whose other tasks hang as well."""

    async def child() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.001)
            witness.note("child ended")

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        witness.note("started")
        try:
            for i in range(hang_at):
                yield f"p{i}"
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())
                await asyncio.sleep(0)
                await witness.hang()
        finally:
            if witness.notes.count("child ended") == 2:
                witness.note("ended")

    return agent


def inside_timeout(witness: Witness, hang_at: int) -> AgentCallable:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        witness.note("started")
        try:
            async with asyncio.timeout(60):
                for i in range(hang_at):
                    yield f"p{i}"
                await witness.hang()
        finally:
            witness.note("ended")

    return agent


def callable_object(witness: Witness, hang_at: int) -> AgentCallable:
    class Agent:
        def __init__(self) -> None:
            self._pieces = async_generator(witness, hang_at)

        async def __call__(self, request: AgentRequest, *, prefix: str) -> AsyncIterator[str]:
            return aiter(self._pieces(request))

    return partial(Agent(), prefix="")


def handed_over(witness: Witness, hang_at: int) -> AgentCallable:
    """A plain function that returns an async generator: begun on a thread, continued on the event loop."""
    pieces = async_generator(witness, hang_at)
    return lambda request: pieces(request)


def upstream_stream(witness: Witness, hang_at: int) -> AgentCallable:
    """A function that returns a stream object of a client library: an iterator with an async ``close``."""

    class Stream:
        def __init__(self) -> None:
            self._at = 0

        def __aiter__(self) -> "Stream":
            return self

        async def __anext__(self) -> str:
            if self._at in (hang_at, PIECES):
                await witness.hang()
            self._at += 1
            return f"p{self._at - 1}"

        async def close(self) -> None:
            await asyncio.sleep(0.001)
            witness.note("ended")

    async def agent(request: AgentRequest) -> Stream:
        witness.note("started")
        return Stream()

    return agent


def sync_generator(witness: Witness, hang_at: int) -> AgentCallable:
    def agent(request: AgentRequest) -> Iterator[str]:
        witness.note("started")
        try:
            for i in range(PIECES):
                if i == hang_at:
                    witness.hang_on_thread(request)
                yield f"p{i}"
            witness.hang_on_thread(request)
        finally:
            time.sleep(0.002)
            witness.note("ended")

    return agent


def unaware_sync_generator(witness: Witness, hang_at: int) -> AgentCallable:
    """It never asks whether it is still wanted: it works on, and is closed at its next yield."""

    def agent(request: AgentRequest) -> Iterator[str]:
        witness.note("started")
        try:
            for i in range(hang_at):
                yield f"p{i}"
            witness.note("waiting")
            for _ in range(5000):
                time.sleep(0.001)
                yield ""
        except GeneratorExit:
            witness.note("cancelled")
            raise
        finally:
            witness.note("ended")

    return agent


def async_function(witness: Witness, hang_at: int) -> AgentCallable:
    async def agent(request: AgentRequest) -> str:
        witness.note("started")
        try:
            await witness.hang()
        finally:
            await asyncio.sleep(0.002)
            witness.note("ended")
        return "never"

    return agent


def polling_function(witness: Witness, hang_at: int) -> AgentCallable:
    """A sync function that looks at ``request.is_cancelled`` now and then."""

    def agent(request: AgentRequest) -> str:
        witness.note("started")
        witness.note("waiting")
        for _ in range(10_000):
            if request.is_cancelled:
                witness.note("cancelled")
                break
            time.sleep(0.002)
        witness.note("ended")
        return "too late"

    return agent


ASYNC_STREAMS: Mapping[str, HangingAgent] = {
    "async generator": async_generator,
    "nested generators": nested_generators,
    "slow clean-up": slow_cleanup,
    "task group": task_group,
    "timeout": inside_timeout,
    "callable object": callable_object,
    "handed over": handed_over,
    "upstream stream": upstream_stream,
}
SYNC_STREAMS: Mapping[str, HangingAgent] = {
    "sync generator": sync_generator,
    "unaware sync generator": unaware_sync_generator,
}
FUNCTIONS: Mapping[str, HangingAgent] = {
    "async function": async_function,
    "sync function": polling_function,
}


def raising(error: BaseException, *, after: int = 0) -> Callable[[AgentRequest], AsyncIterator[Any]]:
    """Return an agent that says `after` pieces and then raises `error`."""

    async def agent(request: AgentRequest) -> AsyncIterator[Any]:
        for i in range(after):
            yield f"p{i}"
        raise error

    return agent
