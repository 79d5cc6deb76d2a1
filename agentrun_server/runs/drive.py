"""Driving an async generator by hand.

`await anext(generator)` does not tell whether the item was there already or whether the agent had to wait for it. The
difference decides when bytes are sent: pieces that are ready together go out in one write, and a piece is never held
back while the agent waits for the next. `Stepper` takes one step at a time and says which it was.

The generator runs in the task that steps it, so its context variables, timeouts and task groups hold.
"""

from collections.abc import AsyncGenerator, Callable, Generator
from types import coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Stepper"]

T = TypeVar("T")


class Stepper(Generic[T]):
    """Steps through `generator`: `begin`, and while `waiting`, `resume`."""

    __slots__ = ("_generator", "_pending", "_step", "advance", "ended", "waiting")

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self._generator = generator
        self.advance: Callable[[], Any] = generator.__anext__
        """Return the next step: an awaitable that brings the next item."""
        self._step: Any = None
        self._pending: Any = None
        self.waiting = False
        """The last step has not brought an item yet: the generator waits for something."""
        self.ended = False
        """It ran to its end: there is nothing to close. Set by who steps."""

    def begin(self) -> T | None:
        """Run the generator up to its next item, or until it has to wait (then `waiting` is set, and nothing returned).

        Raises:
            StopAsyncIteration: the generator has ended.
        """
        step = self.advance()
        try:
            pending = step.send(None)
        except StopIteration as ready:
            return ready.value  # type: ignore[no-any-return]
        self.hold(step, pending)
        return None

    def hold(self, step: Any, pending: Any) -> None:
        """Keep a step that has to wait for `pending`.

        For a loop that has no time for the call of `begin`: it calls `advance` and sends into the step itself.
        """
        self._step, self._pending, self.waiting = step, pending, True

    @coroutine
    def resume(self) -> Generator[Any, Any, T]:
        """Wait for the item that `begin` did not bring."""
        step, pending = self._step, self._pending
        self._pending = None
        while True:
            try:
                value = yield pending
            except BaseException as exc:
                try:
                    pending = step.throw(exc)
                except StopIteration as ready:
                    self.waiting = False
                    return ready.value  # type: ignore[no-any-return]
                except BaseException:
                    self.waiting = False
                    raise
            else:
                try:
                    pending = step.send(value)
                except StopIteration as ready:
                    self.waiting = False
                    return ready.value  # type: ignore[no-any-return]
                except BaseException:
                    self.waiting = False
                    raise

    @coroutine
    def _abort(self, exc: BaseException) -> Generator[Any, Any, None]:
        """Raise `exc` where the generator waits, and run its clean-up."""
        self.waiting = False
        self._pending = None
        step = self._step
        try:
            pending = step.throw(exc)
            while True:
                try:
                    value = yield pending
                except BaseException as again:
                    pending = step.throw(again)
                else:
                    pending = step.send(value)
        except (StopIteration, StopAsyncIteration):
            return
        except BaseException as outcome:
            if outcome is exc or isinstance(outcome, type(exc)):
                return
            raise

    async def close(self, exc: BaseException) -> None:
        """Close the generator, wherever it stands, and run its clean-up; `exc` is raised where it waits."""
        if self.waiting:
            await self._abort(exc)
        try:
            await self._generator.aclose()
        except BaseExceptionGroup as group:
            # A task group around a `yield` puts the request to close into a group, with what else it has to say.
            _, errors = group.split(GeneratorExit)
            if errors is not None:
                raise errors from None
