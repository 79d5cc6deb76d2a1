"""Knowing when a coroutine has to wait.

`async for` does not tell whether an item was there already or whether the agent had to wait for it. The difference
decides when bytes are sent: pieces that are ready together go out in one write, and none is held back while the agent
waits for the next. `drive` runs a coroutine and calls back at the moment it is about to wait: what it costs is paid
there, and nothing for an item that is ready.

Everything runs in the task that awaits `drive`, so context variables, timeouts and task groups hold.
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

__all__ = ["drive"]

T = TypeVar("T")


@coroutine
def drive(
    running: Coroutine[Any, Any, T], before_wait: Callable[[], Coroutine[Any, Any, None] | None]
) -> Generator[Any, Any, T]:
    """Run `running` to its end and return its result.

    Whenever it is about to wait, `before_wait` is called, and the coroutine it returns, if any, is awaited first. A
    cancellation, wherever it arrives, is raised where `running` waits.
    """
    raised: BaseException | None = None
    value: Any = None
    while True:
        try:
            pending = running.send(value) if raised is None else running.throw(raised)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        raised = value = None
        try:
            meanwhile = before_wait()
            if meanwhile is not None:
                yield from _steps(meanwhile)
            value = yield pending
        except BaseException as exc:  # whatever it is, it is for `running`
            raised = exc


def _steps(awaitable: Awaitable[None]) -> Generator[Any, Any, None]:
    return (yield from awaitable.__await__())
