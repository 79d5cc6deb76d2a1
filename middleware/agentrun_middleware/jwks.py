"""The signing keys that an identity provider publishes (RFC 7517), kept so that the provider is hardly ever asked.

Whoever sends tokens decides what is looked up here, and the provider decides how long it takes. So neither may cost
anybody else anything:

* One fetch at a time, whoever waits for it. It has an owner, this cache: a caller who leaves does not end it.
* A set is fresh for what ``Cache-Control: max-age`` says, 5 to 60 minutes (10 without it). The first look-up after
  80 % of that, more or less, starts a fetch and does not wait for it.
* A key that is not there is looked for at the provider: once in 30 seconds at most, whatever became of the last fetch
  and whatever it was for. Hence a new key is known 30 seconds after it was published, and a flood of invented ``kid``
  comes to one fetch in 30 seconds.
* When the provider fails, what is known stays, 24 hours beyond its freshness, and nobody who has a known key waits.
  Nor does a set without usable keys replace a good one.
* A ``kid`` that a good set did not have is remembered, 128 of them for 300 seconds, apart from the keys. It may start
  a fetch like any other, since its key may be published any moment; but while the provider fails it waits for no
  fetch that others have started.
* While there are no keys at all, callers are told to come back, and fetches back off: a random part of 1, 2, 4 … 30
  seconds.

There are no timers: what is due is done at the next look-up. The times are those of `clock`.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Final

from agentrun_middleware.jwks_fetcher import Document, FetchError, JWKSFetcher
from agentrun_middleware.signing_keys import SigningKey, parse_jwks

__all__ = ["JWKS", "Fetch", "KeysUnavailableError", "UnknownKeyError"]

logger = logging.getLogger("agentrun_middleware.jwks")

Fetch = Callable[[], Awaitable[Document]]
"""Returns what is published now, within seconds; `FetchError` when that cannot be had."""

_DEFAULT_TTL: Final = 600.0
_MIN_TTL: Final = 300.0
_MAX_TTL: Final = 3600.0
_STALE_SECONDS: Final = 24 * 3600.0
"""How long a set may be used beyond its freshness (RFC 5861, section 4)."""
_COOLDOWN: Final = 30.0
_MAX_BACKOFF: Final = 30.0
_MAX_ABSENT: Final = 128
_ABSENT_SECONDS: Final = 300.0
_NEVER: Final = float("-inf")


class UnknownKeyError(Exception):
    """The provider publishes no such key, or publishes several of which the token names none."""


class KeysUnavailableError(Exception):
    """There are no keys: they could not be fetched yet, or not for so long that the old ones do not count any more."""

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds until it makes sense to ask again."""


class JWKS:
    """The keys of one family at one URL.

    Use it in one event loop at a time; after `aclose`, or when its loop has ended, in another.

    Args:
        url: https, or http on the loopback.
        family: of algorithms; see `family_of`. Not HS.
        allow_private: the host may have addresses that are not public. The loopback is allowed to a URL that names it.
        ca_file: certificate authorities in PEM, in place of the usual ones.
        clock: seconds, from anywhere.
        draw: a random number in [0, 1), for jitter.
        fetcher: in place of the fetch over HTTP.

    Raises:
        ValueError: an argument cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        family: str,
        allow_private: bool = False,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        fetcher: Fetch | None = None,
    ) -> None:
        if family not in ("RS", "PS", "ES", "EdDSA"):
            raise ValueError("family: RS, PS, ES or EdDSA; secrets (HS) are not published")
        over_http = JWKSFetcher(url, allow_private=allow_private, ca_file=ca_file)
        self._name = over_http.name
        self._fetch = fetcher or over_http
        self._family = family
        self._clock = clock
        self._draw = draw
        self._keys: tuple[SigningKey, ...] = ()
        self._body: bytes | None = None  # what the keys were read from
        self._generation = 0
        self._asked_at = _NEVER  # when the last fetch began
        self._due_at = _NEVER  # when one is made without a reason of its own, or, without keys, may be made
        self._fresh_until = _NEVER
        self._usable_until = _NEVER
        self._failures = 0  # since the last success
        self._absent: OrderedDict[tuple[str | None, str], float] = OrderedDict()  # → until when it counts
        self._fetching: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """A number that goes up whenever a key that was there is gone or changed."""
        return self._generation

    async def find(self, kid: str | None, algorithm: str) -> SigningKey:
        """Return the key for a token: that named `kid`, or without a name the only one that fits `algorithm`.

        Returns without letting other tasks run when the key is known and fresh.

        Raises:
            UnknownKeyError: there is none.
            KeysUnavailableError: that cannot be known now.
        """
        now = self._clock()
        key = self._look_up(kid, algorithm)
        if key is not None and now < self._due_at:
            return key
        if self._keys and now >= self._usable_until:
            self._give_up()
            key = None
        fetching = self._fetch_under_way()
        begins = fetching is None and now >= self._earliest(key)
        if begins:
            fetching = self._begin(now)
        if fetching is not None and (begins or self._joins(kid, algorithm, now)) and self._waits(key, now):
            await asyncio.wait((fetching,))  # which passes our cancellation on to nobody
            key = self._look_up(kid, algorithm)
        if key is not None:
            return key
        if not self._keys:
            wait = max(1.0, self._due_at - self._clock())
            raise KeysUnavailableError("no signing keys could be fetched", retry_after=wait)
        if not self._failures:
            self._remember_absent(kid, algorithm)
        raise UnknownKeyError("no such signing key")

    async def aclose(self) -> None:
        """End the fetch that is under way; those who wait for it get what is known. It may be used again."""
        fetching, self._fetching = self._fetch_under_way(), None
        if fetching is not None:
            fetching.cancel()
            await asyncio.wait((fetching,))

    # --- looking up

    def _look_up(self, kid: str | None, algorithm: str) -> SigningKey | None:
        if kid is not None:
            return next((key for key in self._keys if key.kid == kid and key.fits(algorithm)), None)
        fitting = [key for key in self._keys if key.fits(algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    def _earliest(self, key: SigningKey | None) -> float:
        """Return from when on a fetch may be made for a look-up that found `key`."""
        if key is None and self._keys:
            return self._asked_at + _COOLDOWN
        return self._due_at

    def _waits(self, key: SigningKey | None, now: float) -> bool:
        """Return whether a look-up that found `key` is worth a wait for the provider."""
        return key is None or (now >= self._fresh_until and not self._failures)

    def _joins(self, kid: str | None, algorithm: str, now: float) -> bool:
        """Return whether a look-up waits for a fetch that another has started."""
        return not self._failures or self._absent.get((kid, algorithm), _NEVER) <= now

    def _remember_absent(self, kid: str | None, algorithm: str) -> None:
        self._absent[kid, algorithm] = self._clock() + _ABSENT_SECONDS
        self._absent.move_to_end((kid, algorithm))
        if len(self._absent) > _MAX_ABSENT:
            self._absent.popitem(last=False)

    # --- fetching

    def _fetch_under_way(self) -> asyncio.Task[None] | None:
        fetching = self._fetching
        if fetching is None or fetching.done() or fetching.get_loop() is not asyncio.get_running_loop():
            return None
        return fetching

    def _begin(self, now: float) -> asyncio.Task[None]:
        self._asked_at = now
        # In a context of its own: what it logs belongs to no request.
        self._fetching = asyncio.get_running_loop().create_task(self._refresh(), name="fetch JWKS", context=Context())
        return self._fetching

    async def _refresh(self) -> None:
        try:
            document = await self._fetch()
            keys = self._keys if document.body == self._body else parse_jwks(document.body, family=self._family)
        except (FetchError, ValueError) as exc:
            self._failed(str(exc))
        except Exception as exc:
            # The edge of a task that nobody awaits: what is known must stay known.
            logger.exception("fetching signing keys broke", extra={"jwks": self._name})
            self._failed(type(exc).__name__)
        else:
            self._succeeded(document, keys)

    def _succeeded(self, document: Document, keys: Sequence[SigningKey]) -> None:
        known = {key: key for key in self._keys}
        if not known.keys() <= set(keys):
            self._generation += 1
        self._keys = tuple(known.get(key, key) for key in keys)
        self._body = document.body
        now = self._clock()
        ttl = _DEFAULT_TTL if document.max_age is None else min(max(document.max_age, _MIN_TTL), _MAX_TTL)
        self._fresh_until = now + ttl
        self._usable_until = self._fresh_until + _STALE_SECONDS
        self._due_at = now + ttl * (0.75 + 0.1 * self._draw())
        if self._failures:
            logger.info("signing keys are fetched again", extra={"jwks": self._name, "failures": self._failures})
        self._failures = 0

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("signing keys cannot be fetched", extra={"jwks": self._name, "reason": reason})
        if self._keys:
            self._due_at = min(self._asked_at + _COOLDOWN * (1 + self._draw()), self._usable_until)
        else:
            self._due_at = self._clock() + self._draw() * min(_MAX_BACKOFF, 2.0 ** min(self._failures - 1, 5))

    def _give_up(self) -> None:
        """Forget keys that have been out of date for too long."""
        if self._failures:  # else nobody has asked for a day
            logger.error("signing keys are too old to be used", extra={"jwks": self._name, "failures": self._failures})
        self._keys, self._body = (), None
        self._generation += 1
