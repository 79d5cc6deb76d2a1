"""One suite for every bus, and what is Redis's own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from agentrun_server.storage import redis_bus
from agentrun_server.storage.contracts import Bus
from agentrun_server.storage.local_bus import KEPT, LocalBus
from agentrun_server.storage.redis_bus import RedisBus
from tests.support.clock import LIMIT, eventually, within
from tests.support.redis_server import RedisServer, needs_redis, redis_server

Open = Callable[[], RedisBus]


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def mortal_redis() -> Iterator[RedisServer]:
    """Return a Redis of this test alone."""
    with redis_server() as server:
        yield server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def opened(stack: AsyncExitStack, server: RedisServer, timeout: float = LIMIT) -> RedisBus:
    bus = RedisBus(server.url, timeout=timeout)
    stack.push_async_callback(bus.aclose)
    return bus


@pytest.fixture(
    params=["local", pytest.param("redis", marks=needs_redis), pytest.param("redis: two", marks=needs_redis)]
)
def buses(request: pytest.FixtureRequest, stack: AsyncExitStack) -> tuple[Bus, Bus]:
    """Return the bus of who publishes and of who listens: one and the same, or those of two processes."""
    if request.param == "local":
        bus: Bus = LocalBus()
        return bus, bus
    server = request.getfixturevalue("shared_redis")
    first = opened(stack, server)
    return first, opened(stack, server) if "two" in request.param else first


async def test_a_message_arrives_at_all_who_listen_to_its_topic(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    async with listener.subscribe("t") as a, listener.subscribe("t") as b, listener.subscribe("other") as other:
        await publisher.publish("t", b"1")
        await publisher.publish("t", b"\x00\xff")
        await publisher.publish("t")
        await publisher.publish("other", b"o")
        for reader in (a, b):
            assert [await within(anext(reader)) for _ in range(3)] == [b"1", b"\x00\xff", b""]
        assert await within(anext(other)) == b"o"


async def test_each_message_arrives_once_and_in_order(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    async with listener.subscribe("t") as reader:
        for number in range(300):
            await publisher.publish("t", b"%d" % number)
            if number % 20 == 19:
                for earlier in range(number - 19, number + 1):
                    assert await within(anext(reader)) == b"%d" % earlier


async def test_who_comes_later_hears_nothing_of_before(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    async with listener.subscribe("t") as first:
        await publisher.publish("t", b"before")
        assert await within(anext(first)) == b"before"
    async with listener.subscribe("t") as second:
        await publisher.publish("t", b"after")
        assert await within(anext(second)) == b"after"


async def test_topics_are_any_text(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    topics = ["", "a b", "*", "\r\n", "日本", "\ud800", "x" * 5000, "[a-z]?"]
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(listener.subscribe(topic)) for topic in topics]
        for number, topic in enumerate(topics):
            await publisher.publish(topic, b"%d" % number)
        for number, reader in enumerate(readers):
            assert await within(anext(reader)) == b"%d" % number


async def test_a_slow_reader_keeps_the_latest_messages_and_holds_up_nobody(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    async with listener.subscribe("t") as slow, listener.subscribe("end") as end:
        for number in range(KEPT * 3):
            await publisher.publish("t", b"%d" % number)
        await publisher.publish("end")
        await within(anext(end))
        kept = [await within(anext(slow)) for _ in range(KEPT)]
        assert kept == [b"%d" % number for number in range(KEPT * 2, KEPT * 3)]


async def test_a_reader_that_is_cancelled_loses_no_message(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    async with listener.subscribe("t") as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await publisher.publish("t", b"1")
        assert await within(anext(reader)) == b"1"


async def test_topics_nobody_listens_to_are_forgotten() -> None:
    bus = LocalBus()
    for number in range(10):
        async with bus.subscribe(f"t{number}"):
            assert bus.topics == {f"t{number}"}
    assert bus.topics == set()


@needs_redis
async def test_what_redis_sends_back_to_its_sender_is_not_heard_twice(
    shared_redis: RedisServer, stack: AsyncExitStack
) -> None:
    sender, other = opened(stack, shared_redis), opened(stack, shared_redis)
    async with sender.subscribe("t") as own, other.subscribe("t") as theirs:
        await sender.publish("t", b"1")
        assert await within(anext(theirs)) == b"1"
        await other.publish("t", b"2")
        assert [await within(anext(own)), await within(anext(own))] == [b"1", b"2"]


@needs_redis
async def test_redis_is_told_when_nobody_listens_any_more(mortal_redis: RedisServer, stack: AsyncExitStack) -> None:
    bus = opened(stack, mortal_redis)
    async with bus.subscribe("a"), bus.subscribe("b"):
        async with bus.subscribe("a"):
            pass
        assert set(mortal_redis.ask("PUBSUB", "CHANNELS").split()) >= {"agentrun:bus:a", "agentrun:bus:b"}
    await eventually(lambda: mortal_redis.ask("PUBSUB", "CHANNELS") == "agentrun:bus:")
    await eventually(lambda: not bus._heard)


@needs_redis
async def test_subscriptions_are_made_again_when_redis_is_back(
    mortal_redis: RedisServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentrun_server.storage")
    publisher, listener = opened(stack, mortal_redis), opened(stack, mortal_redis)
    async with listener.subscribe("t") as reader, publisher.subscribe("t") as own:
        mortal_redis.kill()
        await within(publisher.publish("t", b"lost to others"))
        assert await within(anext(own)) == b"lost to others", "this process hears it all the same"
        await eventually(lambda: publisher._away and listener._away)
        async with asyncio.timeout(1):
            async with listener.subscribe("new"):
                pass  # does not wait for what is away
        mortal_redis.start()
        await eventually(lambda: publisher._heard["t"].is_set() and listener._heard["t"].is_set())
        await publisher.publish("t", b"back")
        assert await within(anext(reader)) == b"back"
        assert await within(anext(own)) == b"back"
    messages = [record.message for record in caplog.records]
    assert messages.count("Redis does not answer: other processes hear of events later") == 2, "once for each bus"
    assert messages.count("Redis answers again: other processes hear of events at once") == 2


@needs_redis
async def test_a_frozen_redis_holds_up_nobody(
    mortal_redis: RedisServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "_SILENCE", 0.05)
    monkeypatch.setattr(redis_bus, "_MAX_WAITING", 10)
    bus = opened(stack, mortal_redis, timeout=0.2)
    async with bus.subscribe("t") as reader:
        with mortal_redis.frozen():
            for number in range(KEPT):
                await within(bus.publish("t", b"%d" % number))
            assert len(bus._waiting) <= 10, "what waits is bounded"
            assert await within(anext(reader)) == b"0"
            async with bus.subscribe("other"):
                pass  # waits `timeout` at most
            await eventually(lambda: bus._away)
        await eventually(lambda: not bus._away)


@needs_redis
async def test_a_silent_connection_is_kept_while_it_lives(
    mortal_redis: RedisServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "_SILENCE", 0.01)
    publisher, listener = opened(stack, mortal_redis), opened(stack, mortal_redis)
    async with listener.subscribe("t") as reader:
        before = mortal_redis.ask("CLIENT", "LIST", "TYPE", "pubsub").split()[0]
        await eventually(lambda: "cmd=ping" in mortal_redis.ask("CLIENT", "LIST", "TYPE", "pubsub"))
        await publisher.publish("t", b"1")
        assert await within(anext(reader)) == b"1"
        assert mortal_redis.ask("CLIENT", "LIST", "TYPE", "pubsub").split()[0] == before
        assert not listener._away


@needs_redis
async def test_nothing_is_left_of_a_closed_bus(mortal_redis: RedisServer) -> None:
    before = asyncio.all_tasks()
    bus = RedisBus(mortal_redis.url)
    async with bus.subscribe("t") as reader:
        await bus.publish("t", b"1")
        await bus.aclose()
        await bus.aclose()
        await bus.publish("t", b"2")
        assert [await within(anext(reader)) for _ in range(2)] == [b"1", b"2"]
        async with bus.subscribe("other"):
            pass
    assert asyncio.all_tasks() == before
    await eventually(lambda: "agentrun" not in mortal_redis.ask("PUBSUB", "CHANNELS"))


async def test_a_url_that_cannot_work_is_refused_without_telling_it() -> None:
    with pytest.raises(ValueError, match="redis://") as raised:
        RedisBus("nonsense://:secret@h")
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match="redis://") as raised:
        RedisBus("redis://:x/secret@h:port")
    assert "secret" not in str(raised.value)
