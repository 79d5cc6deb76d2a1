"""How much may be in the background: runs that nobody waits for, so that nobody's patience bounds how many there are.

Each takes room from the moment it is accepted until its task has ended, whatever way that is: a place, and the bytes of
what it was asked. One that is taken up from another process takes the same. Of both there is a bound for all, and one
for each owner, who has the same share of the bytes as of the places: one caller alone leaves room for others. Without
authentication everybody is one owner, and only the bounds for all hold.

A run that is larger than a bound in bytes gets room when it is the only one: it would never get any otherwise.
"""

from dataclasses import dataclass
from typing import Final

from agentrun_server.errors import TooManyRequestsError

__all__ = ["Background", "Room"]

_COME_AGAIN: Final = 10.0


@dataclass(slots=True)
class _Load:
    """What is taken: of all owners, or of one."""

    runs: int = 0
    size: int = 0

    def add(self, runs: int, size: int) -> None:
        self.runs += runs
        self.size += size

    def has_room(self, size: int, max_runs: int, max_bytes: int) -> bool:
        return not self.runs or (self.runs < max_runs and self.size + size <= max_bytes)


class Background:
    """The room there is.

    Args:
        max_runs: of all owners.
        max_runs_per_owner: of one; None: as many as there may be at all.
        max_bytes: of what all runs were asked.
    """

    __slots__ = ("_all", "_max_bytes", "_max_bytes_per_owner", "_max_runs", "_max_runs_per_owner", "_owners")

    def __init__(self, max_runs: int, *, max_runs_per_owner: int | None, max_bytes: int) -> None:
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._max_runs_per_owner = min(max_runs, max_runs_per_owner or max_runs)
        self._max_bytes_per_owner = max_bytes * self._max_runs_per_owner // max_runs
        self._all = _Load()
        self._owners: dict[str, _Load] = {}

    @property
    def is_empty(self) -> bool:
        """Nothing is taken."""
        return self._all == _Load() and not self._owners

    def take(self, owner: str, size: int) -> "Room":
        """Take room for a run of `owner` that was asked so many bytes; empty: nobody is authenticated.

        Raises:
            TooManyRequestsError: there is none.
        """
        if not self._all.has_room(size, self._max_runs, self._max_bytes):
            raise _full("Too much is running in the background.")
        own = self._owners.get(owner) or _Load()
        if owner and not own.has_room(size, self._max_runs_per_owner, self._max_bytes_per_owner):
            raise _full("Too many of your requests are running in the background.")
        self._owners[owner] = own
        for load in (self._all, own):
            load.add(1, size)
        return Room(self, owner, size)

    def _give_back(self, owner: str, size: int) -> None:
        own = self._owners[owner]
        for load in (self._all, own):
            load.add(-1, -size)
        if not own.runs:
            del self._owners[owner]  # who has nothing here leaves no name behind


class Room:
    """What one run takes."""

    __slots__ = ("_background", "_owner", "_size")

    def __init__(self, background: Background, owner: str, size: int) -> None:
        self._background: Background | None = background
        self._owner = owner
        self._size = size

    def give_back(self) -> None:
        """Give it back; once, however often this is called."""
        background, self._background = self._background, None
        if background is not None:
            background._give_back(self._owner, self._size)


def _full(message: str) -> TooManyRequestsError:
    return TooManyRequestsError(f"{message} Please try again later.").retry_after(_COME_AGAIN)
