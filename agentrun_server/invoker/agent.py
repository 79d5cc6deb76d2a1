"""Running a callable of any kind: one way in, one stream of pieces out."""

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

from agentrun_server.core.events import TypedEvent
from agentrun_server.core.request import AgentRequest
from agentrun_server.errors import ConfigurationError
from agentrun_server.invoker.coerce import coerce
from agentrun_server.invoker.threads import HandedOver, Threads

__all__ = ["NOTHING", "Agent", "AgentCallable", "runs_on_loop"]

AgentCallable: TypeAlias = Callable[[AgentRequest], Any]
"""A sync or async function or generator function, or an object called like one."""


NOTHING: Any = object()
"""An agent has not been run; None is what many return."""


def runs_on_loop(target: Any) -> bool:
    """Tell whether calling `target` gives a coroutine or an async generator without running any of its code.

    Such a callable is called on the event loop. Any other might block, and is called on a thread; it may still return
    an awaitable or an async generator, which continues on the loop.
    """
    function = _called(target)
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _called(target: Any) -> Any:
    """Return the function that runs when `target` is called."""
    while isinstance(target, partial):
        target = target.func
    if inspect.isroutine(target) or inspect.isclass(target):
        return target
    return getattr(type(target), "__call__", None)  # noqa: B004 - its kind matters, not whether it is there


class Agent:
    """The user's agent, ready to run.

    Raises:
        ConfigurationError: `target` cannot be called with a request.
    """

    __slots__ = ("_is_async_generator", "_on_loop", "is_async_function", "target")

    def __init__(self, target: AgentCallable) -> None:
        if not callable(target):
            raise ConfigurationError(f"invoke_agent must be callable, and a {type(target).__name__} is not")
        _check_signature(target)
        self.target = target
        self._on_loop = runs_on_loop(target)
        self._is_async_generator = inspect.isasyncgenfunction(_called(target))
        self.is_async_function = inspect.iscoroutinefunction(_called(target))
        """Calling `target` gives a coroutine that can be run by itself, its result then `given` to `open`."""

    async def run(self, request: AgentRequest, threads: Threads) -> AsyncGenerator[str | TypedEvent, None]:
        """Run the agent; yield pieces of text and typed events.

        The agent is iterated and closed by whoever iterates and closes this generator, in the same task.

        Raises:
            TypeError: it yielded or returned something that is no answer.
            Exception: whatever the agent raised.
        """
        async with aclosing(self.open(request, threads)) as items:
            async for item in items:
                for event in coerce(item):
                    yield event

    def open(self, request: AgentRequest, threads: Threads, given: Any = NOTHING) -> AsyncGenerator[Any, None]:
        """Run the agent; yield what it yields or returns, for `coerce`. `given` is what it returned, if it was run.

        An async generator function's own generator is returned as it is: one in between would cost every piece.
        """
        if self._is_async_generator:
            generator: AsyncGenerator[Any, None] = self.target(request)
            return generator
        return self._open(request, threads, given)

    async def _open(self, request: AgentRequest, threads: Threads, given: Any) -> AsyncGenerator[Any, None]:
        result: Any = None
        call: Callable[[], Any] | None = partial(self.target, request)
        if self._on_loop:
            result = self.target(request) if given is NOTHING else given
            while hasattr(result, "__await__"):
                result = await result
            call = _continue(result)
        while call is not None:
            on_thread = _OnThread(threads.run(call, f"agent-{request.request_id}"))
            async with aclosing(on_thread.items()) as items:
                async for item in items:
                    yield item
            result = on_thread.handed_over
            while hasattr(result, "__await__"):
                result = await result
            call = _continue(result)
        if hasattr(result, "__aiter__"):
            try:
                async for item in result:
                    yield item
            finally:
                await _close(result)
        else:
            yield result


class _OnThread:
    """What a sync call says, and what it hands over to be continued on the event loop."""

    __slots__ = ("_batches", "handed_over")

    def __init__(self, batches: AsyncGenerator[list[Any], None]) -> None:
        self._batches = batches
        self.handed_over: Any = None

    async def items(self) -> AsyncGenerator[Any, None]:
        async with aclosing(self._batches) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, HandedOver):
                        self.handed_over = item.value
                    else:
                        yield item


def _continue(result: Any) -> Callable[[], Any] | None:
    """Return a call that continues a sync iterator on a thread; None when `result` is anything else."""
    return (lambda: result) if hasattr(result, "__next__") else None


async def _close(source: Any) -> None:
    """Close an async iterator that was left early: a generator, or a stream object of a client library."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if callable(close):
        closing: Any = close()
        if hasattr(closing, "__await__"):
            await closing


def _check_signature(target: Any) -> None:
    try:
        inspect.signature(target).bind(None)
    except TypeError:
        raise ConfigurationError(
            "the agent must take exactly one required argument, the AgentRequest: def invoke_agent(request): ..."
        ) from None
    except ValueError:
        pass  # a builtin without a signature
