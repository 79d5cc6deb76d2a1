"""A connection without a network and a clock that is turned by hand, for protocol objects of asyncio."""

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["ManualLoop", "ManualTimer", "Wire"]


class ManualTimer:
    """A timer of `ManualLoop`."""

    def __init__(self, when: float, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., None] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None
        self.args = ()


class ManualLoop:
    """As much of a loop as the protocol uses: tasks run in the real one, time stands still unless it is moved."""

    def __init__(self) -> None:
        self.create_task = asyncio.get_running_loop().create_task
        self.now = 1000.0
        self._timers: list[ManualTimer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> ManualTimer:
        timer = ManualTimer(self.now + delay, callback, args)
        self._timers.append(timer)
        return timer

    @property
    def timers(self) -> list[ManualTimer]:
        self._timers = sorted((timer for timer in self._timers if timer.callback), key=lambda timer: timer.when)
        return self._timers

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0].when <= end:
            timer = self._timers.pop(0)
            self.now = timer.when
            assert timer.callback is not None
            timer.callback(*timer.args)
        self.now = end


class Wire:
    """A transport without a network."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.reading = True
        self.eof = False
        self.closed = False
        self.aborted = False
        self.unsent = 0
        self.tls = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 9000), "peername": ("192.0.2.1", 4711)}.get(name, default)

    def write(self, data: bytes) -> None:
        assert not self.eof, "written after the end"
        assert not self.closed, "written after close"
        self.written += data

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        self.eof = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
