"""Token buckets: how much a caller has left, and where that is kept within one process.

A bucket holds up to `Rate.capacity` units and gains `Rate.per_minute` of them every minute. What is kept of it is not
its level but its debt: the time until it is full again, in whole nanoseconds. So no rounding error builds up, an unused
bucket needs no upkeep, and a full one need not be kept at all. Only time that has passed counts, never a date: a clock
that stands still or jumps back takes nothing from a caller and gives nothing.

`rate_limit` decides who has which limits and what is answered; `redis_buckets` keeps the same buckets for many
processes, with the same arithmetic.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

__all__ = [
    "LONGEST_DEBT",
    "NANOSECONDS",
    "Account",
    "BucketStore",
    "BucketsUnavailableError",
    "Limits",
    "LocalBuckets",
    "Rate",
    "Standing",
]

NANOSECONDS = 1_000_000_000
"""In a second."""

LONGEST_DEBT = 31 * 24 * 3600 * NANOSECONDS
"""The longest time in which a bucket fills, and the longest that anything is held against a caller: 31 days.

It is less than 2**53: exact in the floating point numbers that a script of Redis computes with.
"""

_MOST_PER_MINUTE = 1e9
_LOOKED_AT = 8


@dataclass(frozen=True, slots=True)
class Rate:
    """One kind of limit, of requests or of tokens.

    Raises:
        ValueError: the numbers cannot work.
    """

    per_minute: float
    """Units that come back in a minute: more than 0, at most a thousand million."""
    burst: int | None = None
    """Units that may be used at once. By default those of a minute, at least one."""
    capacity: int = field(init=False, repr=False, compare=False)
    """Units in a full bucket."""
    unit: int = field(init=False, repr=False, compare=False)
    """Nanoseconds in which one unit comes back; rounded up, so that never more than `per_minute` do."""
    full: int = field(init=False, repr=False, compare=False)
    """Nanoseconds in which an empty bucket fills."""

    def __post_init__(self) -> None:
        if not 0 < self.per_minute <= _MOST_PER_MINUTE:  # not NaN, either
            raise ValueError("a rate is more than 0 and at most a thousand million a minute")
        if self.burst is not None and (type(self.burst) is not int or self.burst < 1):
            raise ValueError("a burst is a whole number, at least 1")
        capacity = self.burst or max(1, int(self.per_minute))
        unit = math.ceil(60 * NANOSECONDS / self.per_minute)
        if capacity * unit > LONGEST_DEBT:
            raise ValueError("this rate and burst make a bucket that takes longer than 31 days to fill")
        object.__setattr__(self, "capacity", capacity)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "full", capacity * unit)

    def cost(self, units: float) -> int:
        """Return the debt that `units` make."""
        return min(math.ceil(units * self.unit), LONGEST_DEBT)

    def remaining(self, debt: int) -> int:
        """Return how many whole units are left."""
        return max(0, (self.full - debt) // self.unit)

    def wait(self, debt: int) -> int:
        """Return the nanoseconds until a whole unit is there, 0 when one is."""
        return max(0, debt + self.unit - self.full)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may use: None is without limit. Make it once, not for each request."""

    requests: Rate | None = None
    tokens: Rate | None = None


class Standing(NamedTuple):
    """What became of a request, and what the caller owes now: for each bucket the nanoseconds until it is full."""

    admitted: bool
    requests: int
    tokens: int


class BucketsUnavailableError(Exception):
    """Nobody can say now what the caller has left, and the store was told not to guess."""


class BucketStore(Protocol):
    """Keeps the buckets of all callers. A caller is any text; nothing is known of its form."""

    async def take(self, caller: str, limits: Limits) -> Standing:
        """Take one request, when there is one and a whole token besides; take nothing otherwise.

        Raises:
            BucketsUnavailableError: that cannot be known now.
        """
        ...

    def charge(self, caller: str, cost: int) -> None:
        """Take tokens that are spent already; `cost` is what `Rate.cost` says.

        It neither waits nor fails, so that nothing can come between: the request may just be being cancelled.
        """
        ...

    async def aclose(self) -> None:
        """End tasks and connections of the store. It may be called more than once."""
        ...


class Account:
    """The debts of one caller, at a moment that `settle` moves on."""

    __slots__ = ("_now", "_requests", "_tokens")

    def __init__(self, now: int) -> None:
        self._now = now
        self._requests = 0
        self._tokens = 0

    def settle(self, now: int) -> None:
        """Let time pass until `now`."""
        passed = now - self._now
        self._now = now  # also when the clock has jumped back: from there it counts again
        if passed > 0:
            self._requests = max(0, self._requests - passed)
            self._tokens = max(0, self._tokens - passed)

    def take(self, limits: Limits) -> Standing:
        """Take one request if both buckets have something in them."""
        requests, tokens = limits.requests, limits.tokens
        admitted = not ((requests and requests.wait(self._requests)) or (tokens and tokens.wait(self._tokens)))
        if admitted and requests:
            self._requests += requests.unit
        return Standing(admitted, self._requests, self._tokens)

    def charge(self, cost: int) -> None:
        """Take tokens, below nothing if need be."""
        self._tokens = min(self._tokens + cost, LONGEST_DEBT)

    def debt(self, now: int) -> int:
        """Return how long after `now` both buckets are full."""
        return max(0, max(self._requests, self._tokens) - max(0, now - self._now))


class LocalBuckets:
    """The buckets of one process, in its memory.

    There are never more than `max_callers`. Whoever owes nothing is forgotten first, which changes nothing. When all
    that have been away for longest still owe, the one of them who owes least is forgiven: to be forgiven, a caller has
    to stay away while `max_callers` others come.

    Each call takes constant time and none awaits, so no lock is needed. `clock` is in nanoseconds and monotonic.
    """

    def __init__(self, *, max_callers: int = 100_000, clock: Callable[[], int] = time.monotonic_ns) -> None:
        if max_callers < 1:
            raise ValueError("max_callers is at least 1")
        self._max_callers = max_callers
        self._clock = clock
        self._accounts: OrderedDict[str, Account] = OrderedDict()  # whoever was away for longest comes first

    def __len__(self) -> int:
        return len(self._accounts)

    async def take(self, caller: str, limits: Limits) -> Standing:
        """Take one request, when there is one and a whole token besides."""
        return self._account(caller).take(limits)

    def charge(self, caller: str, cost: int) -> None:
        """Take tokens that are spent already."""
        self._account(caller).charge(cost)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to end."""

    def _account(self, caller: str) -> Account:
        now = self._clock()
        account = self._accounts.get(caller)
        if account is None:
            self._make_room(now)
            account = self._accounts[caller] = Account(now)
        else:
            self._accounts.move_to_end(caller)
            account.settle(now)
        return account

    def _make_room(self, now: int) -> None:
        """Forget those who owe nothing among the first few, and one who does if there is no room otherwise."""
        owing: list[tuple[int, str]] = []
        for caller, account in list(islice(self._accounts.items(), _LOOKED_AT)):
            debt = account.debt(now)
            if debt:
                owing.append((debt, caller))
            else:
                del self._accounts[caller]
        if len(self._accounts) >= self._max_callers:
            del self._accounts[min(owing)[1]]
