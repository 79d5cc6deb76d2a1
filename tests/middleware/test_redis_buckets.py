import asyncio
import logging
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from agentrun_middleware.asgi import Receive, Scope, Send
from agentrun_middleware.rate_limit import RateLimitMiddleware
from agentrun_middleware.redis_buckets import RedisBuckets
from agentrun_middleware.token_bucket import (
    LONGEST_DEBT,
    NANOSECONDS,
    Account,
    BucketsUnavailableError,
    Limits,
    Rate,
)
from tests.support.clock import eventually, within
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.serve import owned, serve

pytestmark = needs_redis

SECOND = NANOSECONDS
DAY = 24 * 3600 * SECOND

FEW = Limits(requests=Rate(1, burst=3))
"""Three requests, and then none as long as the test runs."""

Open = Callable[..., RedisBuckets]


class Clock:
    """Time in nanoseconds, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """Return an empty Redis that must be left running."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture
def mortal_redis() -> Iterator[RedisServer]:
    """Return a Redis of this test alone."""
    with redis_server() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def open_buckets(clock: Clock) -> AsyncIterator[Open]:
    """Return a function that makes the buckets of one process, which are closed at the end."""
    async with AsyncExitStack() as stack:

        def opened(server: RedisServer, **options: Any) -> RedisBuckets:
            # Where Redis is to answer, it may take its time: the machine may be busy.
            buckets = RedisBuckets(server.url, **{"timeout": 5, "clock": clock, **options})
            stack.push_async_callback(buckets.aclose)
            return buckets

        yield opened


async def admitted(buckets: RedisBuckets, count: int, limits: Limits = FEW, caller: str = "alice") -> list[bool]:
    """Take so many requests, one after the other."""
    return [(await within(buckets.take(caller, limits))).admitted for _ in range(count)]


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Return what was logged here; redis-py has a log of its own."""
    ours = (record for record in caplog.records if record.name == "agentrun_middleware.redis_buckets")
    return [(record.levelno, record.getMessage()) for record in ours]


AWAY = (logging.WARNING, "Redis does not answer: limits are not shared")
BACK = (logging.INFO, "Redis answers again: limits are shared")


# --- shared


async def test_processes_share_one_limit(redis: RedisServer, open_buckets: Open) -> None:
    one, other = open_buckets(redis), open_buckets(redis)
    assert await admitted(one, 2) == [True, True]
    assert await admitted(other, 2) == [True, False]
    assert await admitted(one, 1) == [False]
    assert await admitted(other, 1, caller="bob") == [True]


async def test_no_more_pass_than_may_however_many_ask_at_once(redis: RedisServer, open_buckets: Open) -> None:
    processes = [open_buckets(redis, max_connections=4) for _ in range(3)]
    limits = Limits(requests=Rate(1, burst=20))
    asked = [processes[number % 3].take("alice", limits) for number in range(120)]
    standings = await within(asyncio.gather(*asked))
    assert sum(standing.admitted for standing in standings) == 20


async def test_tokens_spent_in_one_process_are_missing_in_another(redis: RedisServer, open_buckets: Open) -> None:
    one, other = open_buckets(redis), open_buckets(redis)
    rate = Rate(1, burst=10)
    assert (await one.take("alice", Limits(tokens=rate))).tokens == 0
    one.charge("alice", rate.cost(25))
    await eventually(lambda: not one._charges)
    standing = await other.take("alice", Limits(tokens=rate))
    assert not standing.admitted
    assert 24 * 60 * SECOND < standing.tokens <= 25 * 60 * SECOND


async def test_half_a_token_is_not_enough(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis)
    rate = Rate(1, burst=2)
    for tokens, enough in ((0.5, True), (1, False)):
        buckets.charge("alice", rate.cost(tokens))
        await eventually(lambda: not buckets._charges)
        assert (await buckets.take("alice", Limits(tokens=rate))).admitted is enough


async def test_two_servers_with_the_middleware_share_one_limit(redis: RedisServer, open_buckets: Open) -> None:
    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
        scope["state"]["usage"]["total_tokens"] = 600

    def app() -> RateLimitMiddleware:
        return RateLimitMiddleware(
            hello, requests_per_minute=1, requests_burst=3, tokens_per_minute=600, buckets=open_buckets(redis)
        )

    async with serve(app(), lifespan=False) as one, serve(app(), lifespan=False) as other:
        first = await one.ask("GET", "/")
        assert (first.status, first.header("x-ratelimit-remaining-requests")) == (200, "2")

        async def tokens_are_used_up() -> str | None:
            return (await other.ask("GET", "/")).header("x-ratelimit-remaining-tokens")

        async with asyncio.timeout(5):
            while await tokens_are_used_up() != "0":  # what an answer cost is taken after it has ended
                pass
        refused = await other.ask("GET", "/")
        assert refused.error()["code"] == "rate_limit_exceeded"


# --- the same arithmetic as in one process


def kept(redis: RedisServer) -> tuple[int, int, int] | None:
    """Return what the only key holds: the time of Redis in microseconds, and both debts."""
    keys = redis.ask("KEYS", "*")
    text = redis.ask("GET", keys) if keys else ""  # it may go between the two
    if not text:
        return None
    now, requests, tokens = map(int, text.split())
    return now, requests, tokens


@pytest.mark.parametrize("seed", range(4))
async def test_redis_counts_as_one_process_does(redis: RedisServer, open_buckets: Open, seed: int) -> None:
    """Whatever callers do: after each step both owe the same, to the nanosecond, at the time that Redis wrote down."""
    dice = random.Random(seed)
    buckets = open_buckets(redis)
    requests = Rate(dice.choice([6_000, 30_000, 70_001]), burst=dice.randint(2, 6))
    tokens = Rate(dice.choice([600_000, 7_000_000]), burst=dice.randint(1, 5000))
    every = [Limits(requests), Limits(tokens=tokens), Limits(requests, tokens), Limits(Rate(1, 9), tokens)]
    account: Account | None = None
    compared = refused = 0
    for _ in range(150):
        if dice.random() < 0.2:
            cost = tokens.cost(dice.randint(1, 3000))
            buckets.charge("alice", cost)
            await eventually(lambda: not buckets._charges)
            standing = None
        else:
            limits = dice.choice(every)
            standing = await buckets.take("alice", limits)
            refused += not standing.admitted
        written = kept(redis)
        if written is None:  # nothing is owed any more
            account = None
            continue
        now = written[0] * 1000
        if account is not None:
            account.settle(now)
            if standing is None:
                account.charge(cost)
            else:
                assert account.take(limits) == standing
            assert (account._requests, account._tokens) == written[1:]
            compared += 1
        account = Account(now)
        account._requests, account._tokens = written[1:]
    assert compared > 50
    assert refused > 10


def key_of(redis: RedisServer) -> str:
    key = redis.ask("KEYS", "*")
    assert key.count("\n") == 0
    return key


async def test_a_clock_that_jumps_back_gives_nothing_and_takes_nothing(redis: RedisServer, open_buckets: Open) -> None:
    """As after a failover to a machine whose clock is behind."""
    buckets = open_buckets(redis)
    await admitted(buckets, 1)
    now = kept(redis)
    assert now is not None
    in_an_hour = now[0] + 3600 * 1_000_000
    redis.ask("SET", key_of(redis), f"{in_an_hour} {2 * 60 * SECOND} {DAY}")
    assert await buckets.take("alice", FEW) == (True, 3 * 60 * SECOND, DAY)
    after = kept(redis)
    assert after is not None
    assert after[0] < in_an_hour  # from there it counts again
    assert not (await buckets.take("alice", FEW)).admitted


async def test_time_that_has_passed_pays_back_both_debts(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis)
    await admitted(buckets, 3)
    now = kept(redis)
    assert now is not None
    redis.ask("SET", key_of(redis), f"{now[0] - 90 * 1_000_000} {3 * 60 * SECOND} {2 * 60 * SECOND}")
    standing = await buckets.take("alice", FEW)
    assert standing.admitted
    assert 140 * SECOND < standing.requests <= 150 * SECOND
    assert 20 * SECOND < standing.tokens <= 30 * SECOND


async def test_no_debt_lasts_longer_than_31_days(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis)
    for _ in range(3):
        buckets.charge("alice", LONGEST_DEBT)
    await eventually(lambda: not buckets._charges)
    standing = await buckets.take("alice", Limits(tokens=Rate(1)))
    assert LONGEST_DEBT - 60 * SECOND < standing.tokens <= LONGEST_DEBT


# --- what Redis is told


async def test_a_key_names_nobody_and_goes_when_the_buckets_are_full(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis, prefix="shop:")
    await admitted(buckets, 2, caller="principal:https://issuer.example|alice")
    key = key_of(redis)
    assert re.fullmatch(r"shop:[0-9a-f]{32}", key)
    assert 110_000 < int(redis.ask("PTTL", key)) <= 120_000


async def test_nothing_is_kept_of_a_caller_who_owes_nothing(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis)
    limits = Limits(tokens=Rate(60))
    await buckets.take("alice", limits)
    assert redis.ask("DBSIZE") == "0"
    buckets.charge("alice", 60 * SECOND)
    await eventually(lambda: not buckets._charges)
    now = kept(redis)
    assert now is not None
    redis.ask("SET", key_of(redis), f"{now[0] - 61 * 1_000_000} 0 {60 * SECOND}")
    await buckets.take("alice", limits)
    assert redis.ask("DBSIZE") == "0"


@pytest.mark.parametrize("caller", ["", "\udc80", "a\r\nFLUSHALL\r\n", "x" * 100_000])
async def test_any_text_is_a_caller(redis: RedisServer, open_buckets: Open, caller: str) -> None:
    assert await admitted(open_buckets(redis), 4, caller=caller) == [True, True, True, False]


async def test_what_somebody_else_wrote_under_the_key_counts_for_nothing(
    redis: RedisServer, open_buckets: Open
) -> None:
    buckets = open_buckets(redis)
    await admitted(buckets, 3)
    redis.ask("SET", key_of(redis), "1.5e3 nonsense")
    assert await admitted(buckets, 4) == [True, True, True, False]


async def test_a_request_costs_one_round_trip(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis)
    both = Limits(Rate(600), Rate(600))
    await buckets.take("alice", both)
    redis.ask("CONFIG", "RESETSTAT")
    for _ in range(10):
        await buckets.take("alice", both)
    calls = dict(re.findall(r"cmdstat_(\S+):calls=(\d+)", redis.ask("INFO", "commandstats")))
    inside = {"time", "get", "set"}  # called by the script
    assert {name: count for name, count in calls.items() if name not in inside} == {
        "evalsha": "10",
        "config|resetstat": "1",
    }


async def test_a_script_that_redis_has_forgotten_is_loaded_again(
    redis: RedisServer, open_buckets: Open, caplog: pytest.LogCaptureFixture
) -> None:
    buckets = open_buckets(redis)
    assert await admitted(buckets, 2) == [True, True]
    redis.ask("SCRIPT", "FLUSH")
    assert await admitted(buckets, 2) == [True, False]
    assert not caplog.records


# --- Redis is away


async def test_each_process_counts_for_itself_until_redis_is_back(
    mortal_redis: RedisServer, open_buckets: Open, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, other = open_buckets(mortal_redis), open_buckets(mortal_redis)
    assert await admitted(one, 3) == [True, True, True]
    assert await admitted(other, 1) == [False]
    mortal_redis.kill()
    assert await admitted(one, 5) == [True, True, True, False, False]
    assert await admitted(other, 5) == [True, True, True, False, False]
    assert messages(caplog) == [AWAY, AWAY]  # one line of each process
    assert [record.__dict__["on_error"] for record in caplog.records] == ["local", "local"]

    mortal_redis.start()
    assert await admitted(one, 1) == [False]  # nobody has looked yet
    clock.now += SECOND
    assert await admitted(one, 2) == [True, True]
    assert await admitted(other, 2) == [True, False]
    assert messages(caplog) == [AWAY, AWAY, BACK, BACK]


async def test_while_redis_is_away_one_request_a_second_looks_for_it(
    mortal_redis: RedisServer,
    open_buckets: Open,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    buckets = open_buckets(mortal_redis)
    mortal_redis.kill()
    tries = []
    script = buckets._script

    async def counted(**arguments: Any) -> Any:
        tries.append(clock.now)
        return await script(**arguments)

    monkeypatch.setattr(buckets, "_script", counted)
    for _ in range(31):
        await admitted(buckets, 3)
        clock.now += SECOND // 10
    assert tries == [0, SECOND, 2 * SECOND, 3 * SECOND]
    assert messages(caplog) == [AWAY]


async def test_a_redis_that_hangs_is_waited_for_once(
    mortal_redis: RedisServer, open_buckets: Open, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Were each request to wait, four hundred of them would take twenty times as long as the test may."""
    caplog.set_level(logging.INFO)
    buckets = open_buckets(mortal_redis, timeout=0.25)
    many = Limits(requests=Rate(1000))
    await admitted(buckets, 1, many)
    with mortal_redis.frozen():
        assert await within(admitted(buckets, 400, many)) == [True] * 400
        clock.now += SECOND
        assert await within(admitted(buckets, 200, many)) == [True] * 200
        assert messages(caplog) == [AWAY]
        assert caplog.records[0].__dict__["error"] == "TimeoutError"
    clock.now += SECOND
    buckets._timeout = 5
    assert await within(buckets.take("alice", many))
    assert messages(caplog) == [AWAY, BACK]


async def test_only_one_of_those_that_come_together_looks_whether_redis_is_back(
    mortal_redis: RedisServer, open_buckets: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = open_buckets(mortal_redis)
    mortal_redis.kill()
    await admitted(buckets, 1)
    clock.now += SECOND
    tries: list[str] = []
    found = asyncio.Event()

    async def script(keys: list[str], args: Any) -> list[int]:
        tries.extend(keys)
        await found.wait()
        return [1, 60 * SECOND, 0]

    monkeypatch.setattr(buckets, "_script", script)
    first = asyncio.ensure_future(buckets.take("alice", FEW))
    await eventually(lambda: bool(tries))
    for _ in range(50):
        await within(buckets.take("bob", FEW))
    found.set()
    await within(first)
    assert len(tries) == 1


async def test_an_answer_to_what_was_asked_before_the_failure_does_not_mean_redis_is_back(
    mortal_redis: RedisServer,
    open_buckets: Open,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a Redis that is slow now and then would have many requests wait, and fill the log."""
    caplog.set_level(logging.INFO)
    buckets = open_buckets(mortal_redis)
    answers: list[asyncio.Future[list[int]]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    asked = iter(answers)

    async def script(**arguments: Any) -> list[int]:
        return await next(asked)

    monkeypatch.setattr(buckets, "_script", script)
    slow, failing = (asyncio.ensure_future(buckets.take("alice", FEW)) for _ in range(2))
    await asyncio.sleep(0)
    answers[1].set_exception(ConnectionResetError())
    await within(failing)
    answers[0].set_result([1, 60 * SECOND, 0])
    assert (await within(slow)) == (True, 60 * SECOND, 0)
    assert messages(caplog) == [AWAY]
    await within(buckets.take("alice", FEW))  # asks nobody: there is no third answer


async def test_the_wait_ends_however_many_steps_it_has(clock: Clock) -> None:
    """A server that answers each command of a handshake in time, but so late that all of them are not."""
    commands: list[bytes] = []
    left = asyncio.Event()

    async def serve_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                words = int((await reader.readuntil(b"\r\n"))[1:])
                command = []
                for _ in range(words):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    command.append((await reader.readexactly(size + 2))[:-2])
                commands.append(command[0])
                await asyncio.sleep(0.15)
                writer.write(b"+OK\r\n")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(serve_slowly, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        buckets = RedisBuckets(f"redis://:s3cret@127.0.0.1:{port}/1", timeout=0.2, clock=clock)
        assert await admitted(buckets, 4) == [True, True, True, False]
        await buckets.aclose()
        await within(left.wait())
    assert commands[0] == b"AUTH"
    assert b"EVALSHA" not in commands


async def test_requests_that_come_together_wait_together(mortal_redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(mortal_redis, timeout=0.125, max_connections=2)
    many = Limits(requests=Rate(600))
    with mortal_redis.frozen():
        standings = await within(asyncio.gather(*(buckets.take("alice", many) for _ in range(200))))
    assert all(standing.admitted for standing in standings)


async def test_no_caller_gets_the_answer_of_another_after_redis_hung(
    mortal_redis: RedisServer, open_buckets: Open, clock: Clock
) -> None:
    """A connection that was given up while an answer was due must not be used again."""
    buckets = open_buckets(mortal_redis, timeout=0.25, max_connections=4)
    await admitted(buckets, 1, Limits(requests=Rate(1, burst=1)), "alice")
    for _ in range(3):
        with mortal_redis.frozen():
            asked = [buckets.take(f"caller {number}", FEW) for number in range(20)]
            await within(asyncio.gather(*asked))
        clock.now += SECOND
        await eventually(lambda: mortal_redis.ask("PING") == "PONG")
    buckets._timeout = 5
    for number in range(20):
        rate = Rate(1, burst=number + 1)
        standing = await buckets.take(f"new caller {number}", Limits(tokens=rate))
        assert standing == (True, 0, 0)
        assert not (await buckets.take("alice", Limits(requests=Rate(1, burst=1)))).admitted


async def test_a_redis_that_was_restarted_meanwhile_goes_unnoticed(
    mortal_redis: RedisServer, open_buckets: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """All connections were cut while they lay idle: that is no reason to think that Redis is away."""
    buckets = open_buckets(mortal_redis)
    await asyncio.gather(*(admitted(buckets, 1) for _ in range(5)))
    assert int(mortal_redis.ask("CLIENT", "LIST").count("name=")) > 3
    mortal_redis.kill()
    mortal_redis.start()
    assert await admitted(buckets, 4) == [True, True, True, False]
    assert mortal_redis.ask("DBSIZE") == "1"
    assert not caplog.records


async def test_tokens_are_charged_to_this_process_while_redis_is_away(
    mortal_redis: RedisServer, open_buckets: Open
) -> None:
    buckets = open_buckets(mortal_redis)
    mortal_redis.kill()
    for cost in (100 * SECOND, 50 * SECOND):  # the first finds out, the second knows
        buckets.charge("alice", cost)
        await eventually(lambda: not buckets._charges)
    assert await buckets.take("alice", Limits(tokens=Rate(60))) == (False, 0, 150 * SECOND)


async def test_requests_may_be_refused_while_redis_is_away(
    mortal_redis: RedisServer, open_buckets: Open, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    buckets = open_buckets(mortal_redis, on_error="refuse")
    mortal_redis.kill()
    buckets.charge("alice", SECOND)
    await eventually(lambda: not buckets._charges)
    for _ in range(2):
        with pytest.raises(BucketsUnavailableError):
            await buckets.take("alice", FEW)
    assert messages(caplog) == [AWAY]
    assert caplog.records[0].__dict__["on_error"] == "refuse"
    limited = RateLimitMiddleware(app, requests_per_minute=1, buckets=buckets)
    async with serve(limited, lifespan=False) as served:
        answer = await served.ask("GET", "/")
    assert (answer.status, answer.error()["code"]) == (503, "rate_limit_unavailable")
    assert answer.header("retry-after") == "1"
    mortal_redis.start()
    clock.now += SECOND
    assert await admitted(buckets, 1) == [True]


# --- tasks and connections


async def test_a_charge_survives_the_request_that_made_it(redis: RedisServer, open_buckets: Open) -> None:
    """A request may be cancelled again and again while it ends: nothing it would wait for is sure to be done."""
    buckets = open_buckets(redis)
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["usage"]["total_tokens"] = 7
        running.set()
        await asyncio.Event().wait()

    limited = RateLimitMiddleware(app, tokens_per_minute=1, buckets=buckets, key=lambda scope: "alice")
    task = asyncio.ensure_future(limited({"type": "http", "path": "/"}, nothing_to_receive, nothing_to_send))
    await within(running.wait())
    task.cancel()
    while not task.done():
        await asyncio.sleep(0)
        task.cancel()
    await eventually(lambda: not buckets._charges)
    assert 6 * 60 * SECOND < (await buckets.take("alice", Limits(tokens=Rate(1)))).tokens <= 7 * 60 * SECOND


async def nothing_to_receive() -> Any:
    raise NotImplementedError


async def nothing_to_send(message: Any) -> None:
    raise NotImplementedError


async def test_requests_that_are_given_up_leave_no_connection_taken(redis: RedisServer, open_buckets: Open) -> None:
    buckets = open_buckets(redis, max_connections=2)
    await admitted(buckets, 1)
    for turns in range(40):
        tasks = [asyncio.ensure_future(buckets.take("alice", FEW)) for _ in range(4)]
        for _ in range(turns % 8):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await within(asyncio.wait(tasks))
        for task in tasks:
            with suppress(asyncio.CancelledError):
                task.result()
    assert not (await within(buckets.take("bob", FEW))).requests > 60 * SECOND


async def test_there_is_a_bound_to_charges_under_way(
    mortal_redis: RedisServer, open_buckets: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrun_middleware.redis_buckets._MOST_CHARGES", 5)
    buckets = open_buckets(mortal_redis)
    for _ in range(8):
        buckets.charge("alice", SECOND)
    assert len(buckets._charges) == 5
    await eventually(lambda: not buckets._charges)
    rate = Limits(tokens=Rate(1, burst=100))
    assert (await buckets.take("alice", rate)).tokens > 4 * SECOND
    mortal_redis.kill()
    assert (await buckets.take("alice", rate)).tokens == 3 * SECOND


async def test_closing_waits_for_charges_and_leaves_nothing(redis: RedisServer) -> None:
    before = owned()
    buckets = RedisBuckets(redis.url, timeout=5)
    await asyncio.gather(*(buckets.take(f"caller {number}", FEW) for number in range(10)))
    for number in range(20):
        buckets.charge(f"spender {number}", DAY)
    await within(buckets.aclose())
    assert redis.ask("DBSIZE") == "30"
    await eventually(lambda: owned() == before)
    await eventually(lambda: redis.ask("CLIENT", "LIST").count("\n") <= 1)
    assert (await buckets.take("caller 0", FEW)).admitted  # opened again
    await within(buckets.aclose())
    await within(buckets.aclose())
    await eventually(lambda: owned() == before)


async def test_closing_does_not_wait_for_a_redis_that_hangs(mortal_redis: RedisServer) -> None:
    before = owned()
    buckets = RedisBuckets(mortal_redis.url)
    await buckets.take("alice", FEW)
    with mortal_redis.frozen():
        buckets.charge("alice", SECOND)
        await within(buckets.aclose())
    await eventually(lambda: owned() == before)


async def test_closing_ends_even_if_connections_will_not_close(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = RedisBuckets(redis.url, timeout=0.125)
    with monkeypatch.context() as patched:
        patched.setattr(buckets._redis, "aclose", asyncio.Event().wait)
        await within(buckets.aclose())
    await within(buckets.aclose())


async def test_the_end_of_the_server_closes_them(redis: RedisServer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    before = owned()
    limited = RateLimitMiddleware(app, requests_per_minute=1, buckets=RedisBuckets(redis.url, timeout=5))
    async with serve(limited) as served:
        assert (await served.ask("GET", "/")).status == 204
        assert (await served.ask("GET", "/")).status == 429
    await eventually(lambda: owned() == before)


# --- secrets and arguments


async def test_the_password_is_nowhere_to_be_seen(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(password="s3cret") as server:
        buckets = RedisBuckets(server.url, timeout=5, clock=clock)
        assert await admitted(buckets, 4) == [True, True, True, False]
        wrong = RedisBuckets(server.url.replace("s3cret", "wr0ng"), timeout=5, clock=clock)
        assert await admitted(wrong, 1) == [True]
        server.kill()
        assert await admitted(buckets, 1) == [True]
        for opened in (buckets, wrong):
            assert "s3cret" not in repr(opened)
            await opened.aclose()
    assert messages(caplog) == [AWAY, AWAY]
    assert "AuthenticationError" in [record.__dict__.get("error") for record in caplog.records]
    for record in caplog.records:
        assert record.exc_info is None
        assert not re.search("s3cret|wr0ng", str(record.__dict__))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:s3cret@localhost",
        "redis://:s3cret/x@localhost:6379",  # not escaped: "s3cret" stands where a port does
        "redis://:s3cret@localhost:port",
        "redis://:s3cret@localhost?no_such_option=1",
        "redis://:s3cret@localhost?db=s3cret",
        "redis://[:s3cret@localhost",
    ],
)
async def test_a_url_that_cannot_be_read_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="the URL of Redis") as caught:
        RedisBuckets(url)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://user:s3cret@localhost:6380/3", "unix:///run/redis.sock?db=1"]
)
def test_every_form_of_url_is_understood(url: str) -> None:
    RedisBuckets(url)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": 61}, {"timeout": float("nan")}, {"on_error": "panic"}, {"max_connections": 0}],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RedisBuckets("redis://localhost", **options)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'agentrun-server[redis]'")):
        RedisBuckets("redis://localhost")
