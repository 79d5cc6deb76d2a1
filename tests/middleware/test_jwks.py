"""The cache of published keys: how seldom it asks, whom it never refuses, and how soon it knows a new key.

Providers are real servers on the loopback; time is what the test says.
"""

import asyncio
import contextvars
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun_middleware.jwks import JWKS, Fetch, KeysUnavailableError, UnknownKeyError
from agentrun_middleware.jwks_fetcher import Document, FetchError, JWKSFetcher
from agentrun_middleware.signing_keys import SigningKey
from tests.support.clock import eventually, within
from tests.support.jwks_server import (
    Answer,
    Authority,
    Connection,
    JWKSServer,
    gzip_bomb,
    hangs,
    jwks,
    key_pair,
    publishes,
    redirects,
    resets,
    says,
    trickles,
)
from tests.support.serve import owned

MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR
TTL = 600.0
PATIENCE = 0.05
"""Seconds, real ones, after which a fetch is given up in tests of providers that hang."""

OLD, NEW, OTHER = key_pair("P-256", "old"), key_pair("P-256", "new"), key_pair("P-256", "other")


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Caches:
    """Makes the caches under test, and closes them: half of every jitter, and the provider is on the loopback."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.made: list[JWKS] = []

    def __call__(self, provider: JWKSServer, **options: Any) -> JWKS:
        fetcher = JWKSFetcher(provider.url, allow_private=True)
        settings = {"family": "ES", "clock": self._clock, "draw": lambda: 0.5, "fetcher": fetcher}
        self.made.append(JWKS(provider.url, allow_private=True, **{**settings, **options}))
        return self.made[-1]


@pytest.fixture
async def cached(clock: Clock) -> AsyncIterator[Caches]:
    caches = Caches(clock)
    yield caches
    for cache in caches.made:
        await within(cache.aclose())


def impatient(cache: JWKS) -> None:
    """From now on a fetch is given up soon: what it is about to meet never answers."""
    assert isinstance(cache._fetch, JWKSFetcher)
    cache._fetch._timeout = PATIENCE


async def settled(cache: JWKS) -> None:
    """Wait until no fetch is under way."""
    if cache._fetching is not None:
        await within(asyncio.wait((cache._fetching,)))


async def found(cache: JWKS, kid: str | None, algorithm: str = "ES256") -> SigningKey | None:
    """Return the key, None when there is none; fail when nobody knows."""
    try:
        return await cache.find(kid, algorithm)
    except UnknownKeyError:
        return None


def at_once(find: Awaitable[SigningKey]) -> SigningKey:
    """Return what `find` gives without letting any other task run."""
    steps = find.__await__()
    with pytest.raises(StopIteration) as done:
        next(steps)
    key: SigningKey = done.value.value
    return key


def noted(provider: JWKSServer, clock: Clock) -> list[float]:
    """Return a list that gets the time of every fetch."""
    times: list[float] = []
    answer = provider.answer

    async def note(connection: Connection) -> None:
        times.append(clock())
        await answer(connection)

    provider.answer = note
    return times


class TestKnownKeys:
    async def test_the_first_look_up_fetches_and_the_rest_do_not(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD, OTHER) as provider:
            cache = cached(provider)
            key = await cache.find("old", "ES256")
            assert (key.kid, key.material) == ("old", OLD.private.public_key())
            clock.advance(0.79 * TTL)
            assert await cache.find("old", "ES256") is key
            assert (await cache.find("other", "ES256")).kid == "other"
            assert provider.fetches == 1

    async def test_nothing_is_fetched_before_somebody_asks(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.aclose()
            assert provider.fetches == 0

    async def test_a_key_that_is_known_and_fresh_costs_no_task_switch(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            key = await cache.find("old", "ES256")
            assert at_once(cache.find("old", "ES256")) is key
            assert at_once(cache.find(None, "ES256")) is key

    async def test_a_key_must_fit_the_algorithm(self, cached: Caches) -> None:
        async with JWKSServer(key_pair("P-256", "k"), key_pair("P-384", "k")) as provider:
            cache = cached(provider)
            for bits in ("256", "384"):
                assert (await cache.find("k", f"ES{bits}")).material.curve.key_size == int(bits)
            for algorithm in ("ES512", "RS256", "HS256", "none"):
                assert await found(cache, "k", algorithm) is None

    async def test_a_token_without_a_kid_takes_the_only_key_that_fits(self, cached: Caches) -> None:
        async with JWKSServer(key_pair("P-256", "a"), key_pair("P-384", "b"), key_pair("P-384", None)) as provider:
            cache = cached(provider)
            assert (await cache.find(None, "ES256")).kid == "a"
            assert await found(cache, None, "ES384") is None, "two fit"
            assert await found(cache, None, "ES512") is None, "none fits"
            assert await found(cache, "", "ES256") is None, "an empty name is a name"


class TestSingleFlight:
    async def test_500_first_callers_make_one_fetch(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            provider.hold()
            cache = cached(provider)
            callers = [asyncio.ensure_future(cache.find("old", "ES256")) for _ in range(500)]
            await provider.fetched(1)
            provider.release()
            keys = await within(asyncio.gather(*callers))
            assert all(key is keys[0] for key in keys)
            assert provider.fetches == 1

    async def test_a_caller_who_leaves_takes_nobody_along(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            provider.hold()
            cache = cached(provider)
            first, second = (asyncio.ensure_future(cache.find("old", "ES256")) for _ in range(2))
            await provider.fetched(1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(first)
            provider.release()
            assert (await within(second)).kid == "old"
            assert provider.fetches == 1

    async def test_a_fetch_goes_on_when_all_callers_have_left(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            provider.hold()
            cache = cached(provider)
            caller = asyncio.ensure_future(cache.find("old", "ES256"))
            await provider.fetched(1)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(caller)
            provider.release()
            await settled(cache)
            assert at_once(cache.find("old", "ES256")).kid == "old"
            assert provider.fetches == 1

    async def test_a_fetch_that_fails_fails_for_all_who_wait(self, cached: Caches) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"", 500)
            cache = cached(provider)
            ended = await within(asyncio.gather(*(cache.find("k", "ES256") for _ in range(50)), return_exceptions=True))
            assert {type(end) for end in ended} == {KeysUnavailableError}
            assert provider.fetches == 1


class TestFreshness:
    @pytest.mark.parametrize(
        ("cache_control", "ttl"),
        [
            (None, 10 * MINUTE),
            ("no-store", 10 * MINUTE),
            ("max-age=0", 5 * MINUTE),
            ("max-age=299", 5 * MINUTE),
            ("max-age=301", 301),
            ("max-age=1800", 30 * MINUTE),
            ("max-age=3601", HOUR),
            ("max-age=9999999999", HOUR),
        ],
    )
    async def test_at_80_percent_of_it_a_fetch_is_made_that_nobody_waits_for(
        self, cache_control: str | None, ttl: float, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            if cache_control is not None:
                provider.answer = publishes(("cache-control", cache_control))
            cache = cached(provider)
            await cache.find("old", "ES256")
            clock.advance(0.8 * ttl - 1)
            await cache.find("old", "ES256")
            assert cache._fetching is not None
            assert cache._fetching.done()
            provider.hold()
            clock.advance(2)
            for _ in range(3):
                assert at_once(cache.find("old", "ES256")).kid == "old"
            await provider.fetched(2)
            provider.release()
            await settled(cache)
            clock.advance(0.8 * ttl - 1)
            assert at_once(cache.find("old", "ES256")).kid == "old"
            assert provider.fetches == 2, "fresh again"

    @pytest.mark.parametrize(("draw", "share"), [(0.0, 0.75), (0.999, 0.8499)])
    async def test_processes_do_not_ask_all_at_once(
        self, draw: float, share: float, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider, draw=lambda: draw)
            await cache.find("old", "ES256")
            clock.advance(share * TTL - 1)
            await cache.find("old", "ES256")
            await settled(cache)
            assert provider.fetches == 1
            clock.advance(2)
            await cache.find("old", "ES256")
            await settled(cache)
            assert provider.fetches == 2

    async def test_a_set_that_is_out_of_date_is_fetched_before_it_is_used(self, cached: Caches, clock: Clock) -> None:
        """Nobody had asked meanwhile; a key that was withdrawn must not be taken once more."""
        async with JWKSServer(OLD, OTHER) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.publish(NEW, OTHER)
            clock.advance(TTL)
            assert await found(cache, "old") is None
            assert await found(cache, "other") is not None
            assert provider.fetches == 2

    async def test_when_that_fetch_fails_the_old_set_is_used(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            key = await cache.find("old", "ES256")
            provider.answer = says(b"", 500)
            clock.advance(TTL)
            assert await found(cache, "old") is key
            assert provider.fetches == 2
            provider.hold()
            clock.advance(2 * MINUTE)
            assert at_once(cache.find("old", "ES256")) is key, "now that it fails nobody waits for it"


class TestRotation:
    async def test_a_new_key_is_found_when_a_token_names_it(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            old = await cache.find("old", "ES256")
            provider.publish(OLD, NEW)
            clock.advance(30)
            assert (await cache.find("new", "ES256")).material == NEW.private.public_key()
            assert at_once(cache.find("old", "ES256")) is old
            assert provider.fetches == 2

    @pytest.mark.parametrize("early", [[0], [0, 29], [0, 30, 60, 90], list(range(0, 700, 7)), [0, 299, 301]])
    async def test_it_is_found_30_seconds_after_it_was_published_though_it_was_asked_for_too_early(
        self, early: list[int], cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            start = clock.now
            for second in early:
                clock.now = start + second
                assert await found(cache, "new") is None
            provider.publish(OLD, NEW)
            clock.advance(30)
            assert await found(cache, "new") is not None

    async def test_it_is_found_30_seconds_after_a_provider_that_failed_is_back(
        self, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            for answer in (publishes(), says(b"", 500), says(b"", 500)):
                provider.answer = answer
                assert await found(cache, "new") is None
                clock.advance(30)
            provider.publish(OLD, NEW)
            provider.answer = publishes()
            assert await found(cache, "new") is not None

    async def test_within_30_seconds_of_a_fetch_no_other_is_made(self, cached: Caches, clock: Clock) -> None:
        """Whatever that fetch was for: one at the provider is one."""
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.publish(OLD, NEW)
            clock.advance(29.9)
            assert await found(cache, "new") is None
            assert provider.fetches == 1

    async def test_a_key_that_is_asked_for_while_a_refresh_is_under_way_is_found_in_it(
        self, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.publish(OLD, NEW)
            provider.hold()
            clock.advance(0.8 * TTL)
            assert at_once(cache.find("old", "ES256")).kid == "old"
            caller = asyncio.ensure_future(cache.find("new", "ES256"))
            await provider.fetched(2)
            provider.release()
            assert (await within(caller)).kid == "new"
            assert provider.fetches == 2

    async def test_old_keys_are_used_until_the_new_set_is_there(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            old = await cache.find("old", "ES256")
            provider.publish(NEW)
            provider.hold()
            clock.advance(30)
            caller = asyncio.ensure_future(cache.find("new", "ES256"))
            await provider.fetched(2)
            assert at_once(cache.find("old", "ES256")) is old
            provider.release()
            await within(caller)
            assert await found(cache, "old") is None


class TestGeneration:
    @pytest.mark.parametrize(
        ("published", "steps"),
        [
            (jwks(OLD, OTHER), 0),
            (jwks(OTHER, OLD), 0),
            (jwks(OLD.jwk(x5t="added", use=...), OTHER), 0),
            (jwks(OLD, OTHER, NEW), 0),
            (jwks(NEW, OTHER, OLD), 0),
            (jwks(OLD), 1),
            (jwks(NEW), 1),
            (jwks(OTHER.jwk(kid="old"), OTHER), 1),
            (jwks(OLD.jwk(kid="new"), OTHER), 1),
            (jwks(OLD.jwk(alg="ES256"), OTHER), 1),
            (jwks(OLD.jwk(use="enc"), OTHER), 1),
            (b"<html>", 0),
            (jwks(), 0),
        ],
    )
    async def test_it_goes_up_when_a_key_that_was_there_is_gone_or_changed(
        self, published: bytes, steps: int, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD, OTHER) as provider:
            cache = cached(provider)
            assert cache.generation == 0
            await cache.find("old", "ES256")
            assert cache.generation == 0, "there was nothing before"
            provider.document = published
            clock.advance(TTL)
            await found(cache, "old")
            assert provider.fetches == 2
            assert cache.generation == steps

    async def test_a_key_that_is_fetched_again_is_the_same_object(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD, OTHER) as provider:
            cache = cached(provider)
            key = await cache.find("old", "ES256")
            for published in (jwks(OLD, OTHER), jwks(NEW, OTHER.jwk(x="y"), OLD.jwk(use=...))):
                provider.document = published
                clock.advance(TTL)
                assert await cache.find("old", "ES256") is key
            assert provider.fetches == 3

    async def test_the_same_set_is_parsed_once(
        self, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is strange in it is in the log once, not every few minutes."""
        caplog.set_level(logging.INFO)
        async with JWKSServer(OLD, NEW.jwk(use="enc")) as provider:
            cache = cached(provider)
            for _ in range(3):
                await cache.find("old", "ES256")
                clock.advance(TTL)
            assert provider.fetches == 3
        assert [record.getMessage() for record in caplog.records if "agentrun" in record.name] == [
            "published key left out"
        ]


DEAD: Answer | None = None
NEVER_ENDING = (hangs(), trickles())


class TestFlood:
    """Invented key names are free for whoever sends them, and must be nearly so for the provider."""

    @pytest.mark.parametrize("together", [1, 200])
    @pytest.mark.parametrize(
        "answer",
        [publishes(), says(b"", 500), resets(b""), says(b"<html>"), *NEVER_ENDING, DEAD],
        ids=["well", "failing", "resetting", "lying", "hanging", "trickling", "dead"],
    )
    async def test_10_000_random_names_make_one_fetch_in_30_seconds_at_most(
        self, answer: Answer | None, together: int, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider, draw=random.Random(1).random)
            key = await cache.find("old", "ES256")
            if answer in NEVER_ENDING:
                impatient(cache)
            start = clock.now
            if answer is None:
                await provider.stop()
            else:
                provider.answer = answer
            times = [start]
            seen = noted(provider, clock)
            numbers = random.Random(2)
            for _ in range(10_000 // together):
                clock.advance(numbers.random() * 400 * together / 10_000)
                names = [f"{numbers.getrandbits(64):x}" for _ in range(together)]
                if together == 1:
                    assert await found(cache, names[0]) is None
                else:
                    assert not any(await within(asyncio.gather(*(found(cache, name) for name in names))))
                assert at_once(cache.find("old", "ES256")) is key
            times += seen
            if answer is not None:
                assert len(times) >= 3, "it does look for them"
            assert all(later - earlier >= 30 for earlier, later in pairwise(times)), times
            assert len(cache._absent) <= 128
            assert len(cache._keys) == 1
            await cache.aclose()

    async def test_names_that_a_good_set_did_not_have_wait_for_no_fetch_of_others_that_fails(
        self, cached: Caches, clock: Clock
    ) -> None:
        """One request in 30 seconds finds out whether the provider is back; a client that repeats itself is told."""
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            assert await found(cache, "gone") is None
            provider.answer = says(b"", 500)
            clock.advance(30)
            assert await found(cache, "gone") is None
            provider.hold()
            clock.advance(30)
            first = asyncio.ensure_future(found(cache, "gone"))
            await provider.fetched(3)
            with pytest.raises(UnknownKeyError):
                cache.find("gone", "ES256").__await__().__next__()
            never_seen = asyncio.ensure_future(found(cache, "never seen"))
            await asyncio.sleep(0)
            assert not never_seen.done(), "it may be a new key"
            clock.advance(300)
            again = asyncio.ensure_future(found(cache, "gone"))
            await asyncio.sleep(0)
            assert not again.done(), "after 300 seconds it may be one too"
            provider.publish(OLD, key_pair("P-256", "never seen"))
            provider.answer = publishes()
            provider.release()
            assert await within(first) is None
            assert await within(again) is None
            assert await within(never_seen) is not None
            assert provider.fetches == 3

    async def test_a_name_that_was_only_asked_for_while_the_provider_failed_may_be_a_new_key(
        self, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.answer = says(b"", 500)
            for _ in range(2):
                clock.advance(30)
                assert await found(cache, "new") is None
            provider.publish(OLD, NEW)
            provider.answer = publishes()
            provider.hold()
            clock.advance(30)
            first, second = (asyncio.ensure_future(found(cache, "new")) for _ in range(2))
            await provider.fetched(4)
            provider.release()
            assert await within(first) is await within(second) is not None

    async def test_of_the_names_that_were_not_there_the_last_128_are_remembered(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            for name in ["first", *map(str, range(127)), "first", "one more"]:
                assert await found(cache, name) is None
            assert len(cache._absent) == 128
            assert ("first", "ES256") in cache._absent
            assert ("0", "ES256") not in cache._absent
            assert at_once(cache.find("old", "ES256")).kid == "old"


class TestOutage:
    @pytest.mark.parametrize("hours", [1, 23])
    @pytest.mark.parametrize("how", ["dead", "failing"])
    async def test_a_provider_that_is_down_for_hours_refuses_no_known_key(
        self, hours: int, how: str, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "agentrun_middleware.jwks")
        async with JWKSServer(OLD, OTHER) as provider:
            cache = cached(provider)
            keys = [await cache.find("old", "ES256"), await cache.find("other", "ES256")]
            provider.answer = says(b"", 503)
            tries = noted(provider, clock)
            if how == "dead":
                await provider.stop()
            end = clock.now + hours * HOUR
            while clock.now < end:
                clock.advance(45 if hours == 1 else 10 * MINUTE)
                assert [await cache.find("old", "ES256"), await cache.find("other", "ES256")] == keys
                await settled(cache)
            assert cache.generation == 0
            assert all(later - earlier >= 30 for earlier, later in pairwise(tries))
            assert [record.getMessage() for record in caplog.records] == ["signing keys cannot be fetched"]
            if how == "dead":
                await provider.start()
            provider.answer = publishes()
            clock.advance(MINUTE)
            assert at_once(cache.find("old", "ES256")) is keys[0]
            await settled(cache)
            assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
                ("WARNING", "signing keys cannot be fetched"),
                ("INFO", "signing keys are fetched again"),
            ]

    async def test_each_outage_gets_its_two_lines(
        self, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "agentrun_middleware.jwks")
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            for answer in (publishes(), says(b"", 500), says(b"", 502), publishes(), says(b"", 500), publishes()):
                provider.answer = answer
                clock.advance(TTL)
                assert await found(cache, "old") is not None
                await settled(cache)
        assert caplog.messages == ["signing keys cannot be fetched", "signing keys are fetched again"] * 2

    async def test_a_provider_that_hangs_holds_nobody_up_who_has_a_known_key(
        self, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.answer = hangs()
            impatient(cache)
            for _ in range(40):
                clock.advance(40)
                assert at_once(cache.find("old", "ES256")).kid == "old"
                if clock.now < 1000 + TTL:
                    await settled(cache)
            assert provider.fetches > 2
            await cache.aclose()

    async def test_after_24_hours_old_keys_do_not_count(
        self, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.answer = says(b"", 500)
            clock.advance(TTL + DAY - 1)
            assert await found(cache, "old") is not None
            clock.advance(1)
            with pytest.raises(KeysUnavailableError) as caught:
                await within(cache.find("old", "ES256"))
            assert 1 <= caught.value.retry_after <= 30
            assert cache.generation == 1, "who verified a token with them must forget it"
            assert "signing keys are too old to be used" in caplog.messages
            clock.advance(30)
            provider.answer = publishes()
            assert (await cache.find("old", "ES256")).kid == "old"
            assert cache.generation == 1

    async def test_they_do_not_count_though_the_next_fetch_is_not_due(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            provider.answer = says(b"", 500)
            clock.advance(TTL + DAY - 1)
            await cache.find("old", "ES256")
            await settled(cache)
            clock.advance(1)
            with pytest.raises(KeysUnavailableError):
                await within(cache.find("old", "ES256"))

    async def test_a_server_that_nobody_asked_for_days_says_nothing_of_it(
        self, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            clock.advance(3 * DAY)
            assert (await cache.find("old", "ES256")).kid == "old"
        assert not caplog.records

    @pytest.mark.parametrize(
        "answer",
        [
            says(b"<html><body>Maintenance</body></html>", headers=(("content-type", "text/html"),)),
            says(jwks(NEW)[:-7]),
            says(jwks()),
            says(b"{}"),
            says(jwks({"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "new", "alg": "HS256"})),
            says(jwks(NEW.jwk(d="c2VjcmV0"))),
            says(jwks(NEW.jwk(use="enc"))),
            says(jwks(key_pair("RSA", "new"))),
            says(jwks(*({**NEW.jwk(), "kid": f"k{i}"} for i in range(200)))),
            says(b" " * (300 * 1024) + jwks(NEW)),
            says(jwks(NEW), 204),
            says(jwks(NEW), 500),
            says(jwks(NEW), headers=(("content-length", "9999"),)),
            says(jwks(NEW), headers=(("content-length", "20"),)),
            gzip_bomb(10_000_000),
            redirects(302, "https://elsewhere.example/keys"),
            resets(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n" + jwks(NEW)[:40]),
        ],
    )
    async def test_what_is_no_good_set_replaces_none(
        self, answer: Answer, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            key = await cache.find("old", "ES256")
            provider.answer = answer
            for _ in range(3):
                clock.advance(TTL)
                assert await found(cache, "old") is key
                assert await found(cache, "new") is None
            assert provider.fetches > 3
            assert caplog.messages.count("signing keys cannot be fetched") == 1
            assert "fetching signing keys broke" not in caplog.messages
            assert cache.generation == 0

    async def test_the_log_says_where_and_why(self, cached: Caches, caplog: pytest.LogCaptureFixture) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"", 418)
            cache = cached(provider)
            with pytest.raises(KeysUnavailableError):
                await cache.find("old", "ES256")
        (record,) = caplog.records
        assert (vars(record)["jwks"], vars(record)["reason"]) == (provider.url, "status 418")


class TestFirstFetch:
    """There are no keys yet."""

    async def test_while_there_are_none_callers_are_told_when_to_come_back(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            await provider.stop()
            cache = cached(provider, draw=lambda: 0.999)
            for _ in range(6):
                with pytest.raises(KeysUnavailableError) as caught:
                    await within(cache.find("old", "ES256"))
                assert 1 <= caught.value.retry_after <= 30
            await provider.start()
            clock.advance(1)
            assert (await cache.find("old", "ES256")).kid == "old"

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
    async def test_fetches_back_off_by_a_random_part_of_a_doubling_time(
        self, share: float, cached: Caches, clock: Clock
    ) -> None:
        async with JWKSServer() as provider:
            provider.answer = says(b"", 500)
            times = noted(provider, clock)
            cache = cached(provider, draw=lambda: share)
            for _ in range(1600):
                with pytest.raises(KeysUnavailableError):
                    await within(cache.find("old", "ES256"))
                clock.advance(0.1)
            pauses = [later - earlier for earlier, later in pairwise(times)]
            wanted = [share * limit for limit in (1, 2, 4, 8, 16, 30, 30)]
            assert pauses[:7] == pytest.approx(wanted, abs=0.15)
            assert max(pauses) <= 30.1

    async def test_a_provider_that_hangs_is_asked_by_one_at_a_time(self, cached: Caches) -> None:
        async with JWKSServer() as provider:
            provider.answer = hangs()
            cache = cached(provider)
            impatient(cache)
            ends = await within(asyncio.gather(*(found(cache, str(i)) for i in range(200)), return_exceptions=True))
            assert {type(end) for end in ends} == {KeysUnavailableError}
            assert provider.fetches == 1

    @pytest.mark.parametrize("body", [b"", b"{}", jwks(), jwks({"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "k"})])
    async def test_a_provider_that_has_nothing_to_give_fails(
        self, body: bytes, cached: Caches, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JWKSServer(OLD) as provider:
            provider.answer = says(body)
            cache = cached(provider)
            with pytest.raises(KeysUnavailableError):
                await cache.find("old", "ES256")
            assert caplog.messages[-1] == "signing keys cannot be fetched"
            provider.answer = publishes()
            clock.advance(30)
            assert (await cache.find("old", "ES256")).kid == "old"


class TestEnd:
    async def test_nothing_is_left_after_it(self, cached: Caches, clock: Clock) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.find("old", "ES256")
            before = owned()
            provider.answer = hangs()
            clock.advance(0.9 * TTL)
            await cache.find("old", "ES256")
            await provider.fetched(2)
            assert provider.connections == 1
            fetching = cache._fetching
            assert fetching is not None
            await within(cache.aclose())
            assert fetching.cancelled()
            await eventually(lambda: not provider.connections)
            left = {kind: owned()[kind] - before[kind] for kind in ("tasks", "files")}
            assert not any(left.values()), left

    async def test_who_waits_is_told_at_once(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            provider.answer = hangs()
            cache = cached(provider)
            caller = asyncio.ensure_future(cache.find("old", "ES256"))
            await provider.fetched(1)
            await cache.aclose()
            with pytest.raises(KeysUnavailableError):
                await within(caller)

    async def test_it_may_come_twice_or_without_a_beginning(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            cache = cached(provider)
            await cache.aclose()
            await cache.find("old", "ES256")
            await cache.aclose()
            await cache.aclose()

    async def test_afterwards_it_works_again(self, cached: Caches) -> None:
        async with JWKSServer(OLD) as provider:
            provider.answer = hangs()
            cache = cached(provider)
            caller = asyncio.ensure_future(cache.find("old", "ES256"))
            await provider.fetched(1)
            await cache.aclose()
            with pytest.raises(KeysUnavailableError):
                await within(caller)
            provider.answer = publishes()
            assert (await within(cache.find("old", "ES256"))).kid == "old"
            await cache.aclose()
            assert at_once(cache.find("old", "ES256")).kid == "old"

    @pytest.mark.parametrize("closes", [True, False], ids=["closed", "left behind"])
    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
    def test_it_works_in_one_event_loop_after_another(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], closes: bool, clock: Clock
    ) -> None:
        fetch: Fetch

        async def fetch_now() -> Document:
            return await fetch()

        async def hang() -> Document:
            await asyncio.Event().wait()
            raise NotImplementedError

        cache = JWKS("https://issuer.example", family="ES", clock=clock, fetcher=fetch_now)

        async def run() -> None:
            nonlocal fetch
            async with JWKSServer(OLD) as provider:
                fetch = JWKSFetcher(provider.url, allow_private=True)
                assert (await within(cache.find("old", "ES256"))).kid == "old"
                assert provider.fetches == 1
            fetch = hang
            clock.advance(0.9 * TTL)
            assert at_once(cache.find("old", "ES256")).kid == "old"
            await asyncio.sleep(0)
            assert cache._fetch_under_way() is not None
            if closes:
                await cache.aclose()
            clock.advance(TTL)

        for _ in range(3):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(run())

    def test_a_loop_that_was_stopped_in_the_middle_of_a_fetch_is_forgotten(self, clock: Clock) -> None:
        held: list[asyncio.Future[Document]] = []

        async def fetch() -> Document:
            if held:
                return Document(jwks(OLD), None)
            held.append(asyncio.get_running_loop().create_future())
            return await held[0]

        cache = JWKS("https://issuer.example", family="ES", clock=clock, fetcher=fetch)
        loop = asyncio.new_event_loop()
        caller = loop.create_task(cache.find("old", "ES256"))
        while not held:
            loop.call_soon(loop.stop)
            loop.run_forever()
        assert asyncio.run(within(cache.find("old", "ES256"))).kid == "old"
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.wait((caller,)))
        loop.close()


class TestOwner:
    async def test_a_fetch_belongs_to_no_request(self, clock: Clock) -> None:
        """What it logs must not carry the id of the request that happened to start it."""
        request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")
        seen = []

        async def fetch() -> Document:
            seen.append(request_id.get())
            return Document(jwks(OLD), None)

        request_id.set("r1")
        await JWKS("https://issuer.example", family="ES", clock=clock, fetcher=fetch).find("old", "ES256")
        assert seen == ["none"]

    async def test_a_fetch_that_breaks_breaks_nothing_else(
        self, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = False

        async def fetch() -> Document:
            if broken:
                raise RuntimeError("a mistake in the program")
            return Document(jwks(OLD), None)

        cache = JWKS("https://issuer.example", family="ES", clock=clock, fetcher=fetch)
        key = await cache.find("old", "ES256")
        broken = True
        clock.advance(TTL)
        assert await found(cache, "old") is key
        assert caplog.messages == ["fetching signing keys broke", "signing keys cannot be fetched"]


class TestSettings:
    @pytest.mark.parametrize(
        "url",
        ["http://issuer.example/k", "https://u:p@issuer.example/k", "https://issuer.example/k#f", ""],
    )
    def test_a_url_that_cannot_work_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="jwks_url: "):
            JWKS(url, family="RS")

    @pytest.mark.parametrize("family", ["HS", "RS256", "none", ""])
    def test_keys_are_published_for_public_key_algorithms_alone(self, family: str) -> None:
        with pytest.raises(ValueError, match="family: "):
            JWKS("https://issuer.example/k", family=family)

    async def test_addresses_are_checked_for_it(self, clock: Clock) -> None:
        with pytest.raises(ValueError, match="allow_private"):
            JWKS("https://10.0.0.1/k", family="RS")

    async def test_a_private_authority_is_enough_for_tls(self, tmp_path: Path) -> None:
        authority = Authority()
        ca_file = authority.write(tmp_path)
        async with JWKSServer(OLD, tls=authority.server_context("127.0.0.1")) as provider:
            cache = JWKS(provider.url, family="ES", allow_private=True, ca_file=ca_file)
            assert (await within(cache.find("old", "ES256"))).kid == "old"
            await cache.aclose()


class World:
    """A provider in memory, and what must hold of the cache whatever happens."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.published = {"old"}
        self.works = True
        self.fetches: list[float] = []
        self.too_soon = 0
        self.good: set[str] = set()
        self.good_at = float("-inf")
        self.generation = 0
        self.cache = JWKS("https://issuer.example", family="ES", clock=self.clock, fetcher=self.fetch)

    async def fetch(self) -> Document:
        now = self.clock()
        if self.usable() and now - self.fetches[-1] < 30:
            self.too_soon += 1
        self.fetches.append(now)
        await asyncio.sleep(0)
        if not self.works or not self.published:
            raise FetchError("down")
        self.generation += bool(self.good - self.published)
        self.good, self.good_at = set(self.published), now
        return Document(jwks(*(key_pair("P-256", kid) for kid in sorted(self.published))), None)

    def usable(self) -> bool:
        return self.clock() < self.good_at + TTL + DAY

    async def ask(self, kid: str) -> None:
        known = self.usable() and kid in self.good
        can_fetch = not self.fetches or self.clock() - self.fetches[-1] >= 30
        can_be_had = self.works and kid in self.published and (known or can_fetch)
        if self.good and not self.usable():
            self.good, self.generation = set(), self.generation + 1
        try:
            assert (await self.cache.find(kid, "ES256")).kid == kid
        except UnknownKeyError:
            assert self.usable()
            assert kid not in self.good
            assert not can_be_had, "30 seconds after it was published a key is known"
        except KeysUnavailableError as exc:
            assert not self.usable()
            assert not can_be_had
            assert exc.retry_after <= 30  # noqa: PT017 - which error it is, is what is looked at
        else:
            assert kid in self.good
        await settled(self.cache)
        assert self.cache.generation == self.generation
        assert not self.too_soon, "while there are keys, fetches are 30 seconds apart"
        if known and not self.works:
            assert kid in self.good, "a provider that fails takes no key away"


KIDS = ["old", "new", "other"]
EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([*KIDS, "invented"])),
    st.tuples(
        st.just("wait"), st.sampled_from([0.5, 5, 29, 30, 31, 120, 299, 450, 600, 3600, 23 * HOUR, DAY, 2 * DAY])
    ),
    st.tuples(st.just("publish"), st.sets(st.sampled_from(KIDS))),
    st.tuples(st.just("works"), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_the_promises_hold(events: list[tuple[str, Any]]) -> None:
    async def play() -> None:
        world = World()
        for event, value in events:
            match event:
                case "ask":
                    await world.ask(value)
                case "wait":
                    world.clock.advance(value)
                case "publish":
                    world.published = value
                case _:
                    world.works = value
        await world.cache.aclose()

    asyncio.run(play())
