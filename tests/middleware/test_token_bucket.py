from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun_middleware.token_bucket import LONGEST_DEBT, NANOSECONDS, Account, Limits, LocalBuckets, Rate
from tests.support.properties import EXAMPLES

SECOND = NANOSECONDS
DAY = 24 * 3600 * SECOND


class Clock:
    """Time in nanoseconds, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 7 * SECOND

    def __call__(self) -> int:
        return self.now


# --- a rate


@pytest.mark.parametrize(
    ("rate", "capacity", "unit"),
    [
        (Rate(60), 60, SECOND),
        (Rate(60, burst=5), 5, SECOND),
        (Rate(0.5), 1, 120 * SECOND),
        (Rate(90.9), 90, 660_066_007),
        (Rate(7), 7, 8_571_428_572),  # rounded up
        (Rate(1_000_000), 1_000_000, 60_000),
        (Rate(1e9), 10**9, 60),
        (Rate(1, burst=44_640), 44_640, 60 * SECOND),  # 31 days, just
    ],
)
def test_a_rate_is_a_capacity_and_the_time_of_one_unit(rate: Rate, capacity: int, unit: int) -> None:
    assert (rate.capacity, rate.unit, rate.full) == (capacity, unit, capacity * unit)


@pytest.mark.parametrize("per_minute", [0, -1, float("nan"), float("inf"), 1e9 + 1])
def test_a_rate_that_cannot_be_kept_is_refused(per_minute: float) -> None:
    with pytest.raises(ValueError, match="a rate is more than 0"):
        Rate(per_minute)


@pytest.mark.parametrize("burst", [0, -1, 1.5, True, "10"])
def test_a_burst_is_a_whole_number(burst: int) -> None:
    with pytest.raises(ValueError, match="a burst is a whole number"):
        Rate(60, burst=burst)


@pytest.mark.parametrize("rate", [(1, 44_641), (0.00002, None)])
def test_a_bucket_that_takes_longer_than_31_days_to_fill_is_refused(rate: tuple[float, int | None]) -> None:
    with pytest.raises(ValueError, match="31 days"):
        Rate(*rate)


def test_rates_with_the_same_numbers_are_equal() -> None:
    assert Rate(60) == Rate(60)
    assert Rate(60) != Rate(60, burst=5)
    assert len({Limits(Rate(60)), Limits(Rate(60)), Limits(tokens=Rate(60))}) == 2


def test_what_units_cost_is_rounded_up_and_bounded() -> None:
    assert Rate(60).cost(3) == 3 * SECOND
    assert Rate(60).cost(0) == 0
    assert Rate(7).cost(0.5) == 4_285_714_286
    assert Rate(1).cost(10**9) == LONGEST_DEBT


# --- a bucket

rates = st.builds(
    Rate,
    st.one_of(st.integers(1, 100_000), st.floats(0.01, 1e6)),
    st.one_of(st.none(), st.integers(1, 40)),
)
moments = st.lists(st.one_of(st.integers(0, 2 * SECOND), st.integers(0, 10**6), st.integers(0, DAY)), max_size=60)


@given(rates, moments, st.lists(st.integers(1, 30), max_size=60))
def test_no_window_holds_more_than_the_capacity_and_what_came_back_in_it(
    rate: Rate, pauses: list[int], bunches: list[int]
) -> None:
    account, now = Account(0), 0
    admitted: list[tuple[int, int]] = []  # when, and how many at that time
    for pause, bunch in zip(pauses, bunches, strict=False):
        now += pause
        account.settle(now)
        admitted.append((now, sum(account.take(Limits(requests=rate)).admitted for _ in range(bunch))))
    for first, (start, _) in enumerate(admitted):
        count = 0
        for end, here in admitted[first:]:
            count += here
            assert count <= rate.capacity + Fraction(rate.per_minute) * Fraction(end - start, 60 * SECOND)


@given(rates, st.lists(st.tuples(st.integers(-DAY, DAY), st.integers(1, 3)), max_size=40))
def test_a_clock_that_jumps_back_gives_nothing_and_takes_nothing(rate: Rate, steps: list[tuple[int, int]]) -> None:
    """The level is computed a second way: it grows by the time that passes forward, and only by that."""
    account, now, level = Account(0), 0, Fraction(rate.capacity)
    for step, requests in steps:
        now += step
        level = min(Fraction(rate.capacity), level + Fraction(max(0, step), rate.unit))
        account.settle(now)
        for _ in range(requests):
            standing = account.take(Limits(requests=rate))
            assert standing.admitted == (level >= 1)
            level -= standing.admitted
            assert rate.remaining(standing.requests) == int(level)
            assert standing.requests == (rate.capacity - level) * rate.unit


@given(rates, st.integers(0, 60), st.integers(0, DAY), st.integers(0, DAY))
def test_the_longer_a_caller_waits_the_more_is_left(rate: Rate, requests: int, sooner: int, more: int) -> None:
    def after(wait: int) -> int:
        account = Account(0)
        for _ in range(requests):
            account.take(Limits(requests=rate))
        account.settle(wait)
        return rate.remaining(account.debt(wait))

    assert 0 <= after(sooner) <= after(sooner + more) <= rate.capacity


@given(rates, st.floats(0, 1e6), st.integers(0, DAY))
def test_a_request_passes_after_the_time_told_and_not_a_nanosecond_sooner(
    rate: Rate, tokens: float, later: int
) -> None:
    limits = Limits(tokens=rate)
    account = Account(0)
    account.charge(rate.cost(tokens))
    account.settle(later)
    wait = rate.wait(account.debt(later))
    if wait:
        account.settle(later + wait - 1)
        assert not account.take(limits).admitted
    account.settle(later + wait)
    assert account.take(limits).admitted


def test_a_clock_that_stands_still_admits_a_burst_and_no_more() -> None:
    account = Account(5)
    taken = [account.take(Limits(requests=Rate(60, burst=3))).admitted for _ in range(10)]
    assert taken == [True] * 3 + [False] * 7


def test_a_request_that_is_refused_takes_nothing() -> None:
    limits = Limits(requests=Rate(60, burst=2), tokens=Rate(60, burst=10))
    account = Account(0)
    account.charge(Rate(60).cost(10))
    assert account.take(limits) == (False, 0, 10 * SECOND)
    account.settle(SECOND)
    assert account.take(limits) == (True, 1 * SECOND, 9 * SECOND)


def test_tokens_may_be_owed_and_are_paid_back() -> None:
    limits = Limits(tokens=Rate(60, burst=10))
    account = Account(0)
    account.charge(Rate(60).cost(25))
    assert account.take(limits) == (False, 0, 25 * SECOND)
    account.settle(16 * SECOND - 1)
    assert not account.take(limits).admitted
    account.settle(16 * SECOND)
    assert account.take(limits).admitted


def test_no_debt_lasts_longer_than_31_days() -> None:
    account = Account(0)
    for _ in range(3):
        account.charge(LONGEST_DEBT)
    assert account.debt(0) == LONGEST_DEBT


def test_a_limit_that_is_not_set_does_not_hold() -> None:
    account = Account(0)
    account.charge(DAY)
    assert account.take(Limits()) == (True, 0, DAY)
    assert account.take(Limits(requests=Rate(1))).admitted


# --- the buckets of a process

ONE = Limits(requests=Rate(60, burst=1))


async def test_callers_do_not_share_a_bucket() -> None:
    buckets = LocalBuckets(clock=Clock())
    assert (await buckets.take("alice", ONE)).admitted
    assert not (await buckets.take("alice", ONE)).admitted
    assert (await buckets.take("bob", ONE)).admitted


async def test_time_passes_by_the_clock_given() -> None:
    clock = Clock()
    buckets = LocalBuckets(clock=clock)
    await buckets.take("alice", ONE)
    clock.now += SECOND - 1
    assert not (await buckets.take("alice", ONE)).admitted
    clock.now += 1
    assert (await buckets.take("alice", ONE)).admitted


async def test_tokens_can_be_charged_to_a_caller_nobody_knows() -> None:
    buckets = LocalBuckets(clock=Clock())
    buckets.charge("alice", 3 * SECOND)
    assert await buckets.take("alice", Limits(tokens=Rate(60, burst=3))) == (False, 0, 3 * SECOND)


async def test_there_are_never_more_callers_than_room() -> None:
    buckets = LocalBuckets(max_callers=20, clock=Clock())
    for number in range(200):
        await buckets.take(f"caller {number}", ONE)
        assert len(buckets) <= 20
    assert len(buckets) == 20


@pytest.mark.parametrize("max_callers", [1, 2, 8, 9])
async def test_there_may_be_room_for_a_few_only(max_callers: int) -> None:
    buckets = LocalBuckets(max_callers=max_callers, clock=Clock())
    for number in range(30):
        assert (await buckets.take(f"caller {number}", ONE)).admitted
    assert len(buckets) == max_callers


async def test_whoever_owes_nothing_is_forgotten_before_anyone_who_does() -> None:
    clock = Clock()
    buckets = LocalBuckets(max_callers=3, clock=clock)
    buckets.charge("debtor", DAY)
    await buckets.take("first", ONE)
    await buckets.take("second", ONE)
    clock.now += SECOND
    await buckets.take("new", ONE)
    assert list(buckets._accounts) == ["debtor", "new"]


async def test_when_all_owe_the_one_who_owes_least_is_forgiven() -> None:
    buckets = LocalBuckets(max_callers=3, clock=Clock())
    buckets.charge("much", 3 * SECOND)
    buckets.charge("little", 1 * SECOND)
    buckets.charge("some", 2 * SECOND)
    buckets.charge("new", 9 * SECOND)
    assert list(buckets._accounts) == ["much", "some", "new"]


async def test_a_caller_who_keeps_coming_is_not_forgiven() -> None:
    """However many others come: only those that have been away for longest are looked at."""
    buckets = LocalBuckets(max_callers=20, clock=Clock())
    await buckets.take("alice", ONE)
    for number in range(500):
        buckets.charge(f"other {number}", 5 * SECOND)
        assert not (await buckets.take("alice", ONE)).admitted


async def test_as_many_callers_are_kept_as_owe_something() -> None:
    """A flood of callers is forgotten by and by when it is over, without a task that does it."""
    clock = Clock()
    buckets = LocalBuckets(clock=clock)
    for number in range(800):
        await buckets.take(f"flood {number}", ONE)
    assert len(buckets) == 800
    clock.now += SECOND
    for number in range(150):
        await buckets.take(f"caller {number}", ONE)
    assert len(buckets) == 150


@settings(max_examples=min(EXAMPLES, 50))
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 30), st.integers(0, SECOND)), max_size=80))
def test_room_is_kept_whatever_callers_do(max_callers: int, visits: list[tuple[int, int]]) -> None:
    clock = Clock()
    buckets = LocalBuckets(max_callers=max_callers, clock=clock)
    for caller, pause in visits:
        clock.now += pause
        buckets.charge(str(caller), SECOND)
        assert len(buckets) <= max_callers


def test_there_is_room_for_one_at_least() -> None:
    with pytest.raises(ValueError, match="max_callers"):
        LocalBuckets(max_callers=0)
