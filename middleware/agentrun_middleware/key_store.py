"""Where a running server finds the record of a key: the file, or a function of the user's own.

What a store answers may be old, but only in one direction for long. The file is looked at once a second, so a new or
revoked key counts from then on. When a change cannot be read (somebody's edit broke it, the disk fails), the last good
content goes on counting, and the log says so every minute: a slip must not lock everybody out. When the file is gone,
nobody passes until it is back, and callers hear 503, not that their keys are wrong: who takes the file away means to
shut the door, and a mount that is late opens it again. The last good content is forgotten then.

A function is asked once for requests that come together, and its answers count for a while. Bounds: the number of
answers kept, of questions at once, and the time for each. Keys that do not exist are remembered apart, so a flood of
them drives no good key out.
"""

import asyncio
import contextvars
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from agentrun_middleware.authentication import VerifierUnavailableError
from agentrun_middleware.key_file import KeyFile, KeyFileError, KeyFileMissingError, KeyFileState
from agentrun_middleware.key_record import KeyRecord

__all__ = ["AskedKeys", "FileKeys", "KeyFunction", "KeyStore"]

logger = logging.getLogger("agentrun_middleware.key_store")

KeyFunction: TypeAlias = Callable[[str], KeyRecord | Awaitable[KeyRecord | None] | None]
"""From a key's id to its record, None when there is none. One that is not ``async`` runs in a thread."""

_LOOK_EVERY = 1.0
_COMPLAIN_EVERY = 60.0

_MAX_KEPT = 1024
_MAX_ASKED = 64
_MAX_TTL = 3600.0
_UNKNOWN_TTL = 5.0
"""A key that was created counts after this long, though somebody tried it before."""


class KeyStore(Protocol):
    """Finds the records of keys."""

    async def find(self, key_id: str) -> KeyRecord | None:
        """Return the record of the key `key_id`, None when there is no such key.

        Raises:
            VerifierUnavailableError: that cannot be known now.
        """
        ...

    async def aclose(self) -> None:
        """End what is still being asked."""
        ...


class FileKeys:
    """The keys of a file, as they are now.

    Raises:
        KeyFileError: the file is missing, has another pepper, or something in it is wrong. Later, with other content,
            that is no error: see the module's text.
    """

    def __init__(self, file: KeyFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._records: Mapping[str, KeyRecord] | None = None
        self._seen: tuple[int, ...] = ()
        self._complaint: tuple[str, float] | None = None
        self._look_at = clock() + _LOOK_EVERY
        self._take(file.verified())

    async def find(self, key_id: str) -> KeyRecord | None:
        """Return the record of the key `key_id`, None when there is no such key."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            self._look(now)
        if self._records is None:
            raise VerifierUnavailableError("the key file is missing")
        return self._records.get(key_id)

    async def aclose(self) -> None:
        """Do nothing."""

    def _look(self, now: float) -> None:
        try:
            if _signature(self._file.path.stat()) == self._seen:
                return
            self._take(self._file.verified())
        except (FileNotFoundError, KeyFileMissingError):
            self._records = None
            self._complain(now, "the key file is missing: nobody with an API key can pass", str(self._file.path))
        except (OSError, KeyFileError) as exc:
            self._complain(now, "the key file cannot be used: its last good content goes on counting", str(exc))

    def _take(self, state: KeyFileState) -> None:
        assert state.stat is not None
        self._records = state.records
        self._seen = _signature(state.stat)
        self._complaint = None
        logger.info("key file read", extra={"path": str(self._file.path), "keys": len(state.records)})
        if state.too_open:
            logger.warning("the key file may be read or changed by others", extra={"path": str(self._file.path)})

    def _complain(self, now: float, message: str, reason: str) -> None:
        self._seen = ()  # read it again, even if it looks the same: the disk may have failed, not the content
        if self._complaint is None or self._complaint[0] != message or now >= self._complaint[1] + _COMPLAIN_EVERY:
            self._complaint = message, now
            logger.error(message, extra={"reason": reason})


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class AskedKeys:
    """The keys that a function knows.

    Args:
        function: finds records.
        ttl: seconds that a record counts after it was asked for: how long a revoked key may live on. 0: requests ask
            each time, but for those that come while the same question is open.
        timeout: seconds that a question may take.

    Raises:
        ValueError: `ttl` is less than 0 or endless, or `timeout` is not more than 0.
    """

    def __init__(
        self,
        function: KeyFunction,
        *,
        ttl: float = 30.0,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= ttl <= _MAX_TTL:
            raise ValueError(f"the ttl of keys is between 0 and {_MAX_TTL:g} seconds")
        if not 0 < timeout < math.inf:
            raise ValueError("the timeout of a key store is more than 0 seconds")
        self._function = function
        self._is_async = _is_async(function)
        self._timeout = timeout
        self._clock = clock
        self._known = _Kept(ttl)
        self._unknown = _Kept(min(ttl, _UNKNOWN_TTL))
        self._questions: dict[str, asyncio.Task[KeyRecord | None]] = {}
        self._threads = 0

    async def find(self, key_id: str) -> KeyRecord | None:
        """Return the record of the key `key_id`, None when there is no such key."""
        now = self._clock()
        kept = self._known.get(key_id, now) or self._unknown.get(key_id, now)
        if kept is not None:
            return kept.record
        question = self._questions.get(key_id)
        if question is None:
            # Threads that were given up count too, until their function returns.
            if max(len(self._questions), self._threads) >= _MAX_ASKED:
                raise VerifierUnavailableError("too many questions to the key store are open")
            question = asyncio.create_task(self._ask(key_id, now))
            question.add_done_callback(partial(self._close, key_id))
            self._questions[key_id] = question
        return await asyncio.shield(question)  # a caller who leaves must not take the answer from the others

    async def aclose(self) -> None:
        """Give up what is still being asked."""
        questions = list(self._questions.values())
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    def _close(self, key_id: str, question: asyncio.Task[KeyRecord | None]) -> None:
        del self._questions[key_id]
        if not question.cancelled():
            question.exception()  # looked at, or asyncio complains when every caller has left

    async def _ask(self, key_id: str, now: float) -> KeyRecord | None:
        try:
            async with asyncio.timeout(self._timeout):
                record = await self._call(key_id)
        except TimeoutError:
            raise VerifierUnavailableError(f"the key store did not answer within {self._timeout:g} s") from None
        except Exception as exc:
            logger.warning("key store failed", exc_info=True)
            raise VerifierUnavailableError(f"the key store failed: {type(exc).__name__}") from exc
        if record is not None and (not isinstance(record, KeyRecord) or record.id != key_id):
            raise VerifierUnavailableError("the key store answered with something else than the record asked for")
        (self._unknown if record is None else self._known).put(key_id, record, now)
        return record

    async def _call(self, key_id: str) -> KeyRecord | None:
        answer = self._function(key_id) if self._is_async else await self._call_in_thread(key_id)
        return await answer if inspect.isawaitable(answer) else answer

    async def _call_in_thread(self, key_id: str) -> KeyRecord | Awaitable[KeyRecord | None] | None:
        """Call the function where it may block. Nothing can end it there; a daemon thread at least holds up no exit."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        answer: KeyRecord | Awaitable[KeyRecord | None] | None = None
        error: BaseException | None = None

        def finish() -> None:
            self._threads -= 1
            if not done.done():
                done.set_result(None)

        def work() -> None:
            nonlocal answer, error
            try:
                answer = self._function(key_id)
            except BaseException as exc:
                error = exc
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(finish)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="key store", daemon=True).start()
        self._threads += 1
        await done
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError("the function ended its thread") from error
        return answer


@dataclass(frozen=True, slots=True)
class _Answer:
    record: KeyRecord | None
    until: float


class _Kept:
    """Answers that count for `ttl` seconds; of too many, the oldest go."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._answers: dict[str, _Answer] = {}

    def get(self, key_id: str, now: float) -> _Answer | None:
        answer = self._answers.get(key_id)
        return answer if answer is not None and now < answer.until else None

    def put(self, key_id: str, record: KeyRecord | None, now: float) -> None:
        self._answers.pop(key_id, None)
        if self._ttl > 0:
            self._answers[key_id] = _Answer(record, now + self._ttl)
        if len(self._answers) > _MAX_KEPT:
            del self._answers[next(iter(self._answers))]


def _is_async(function: KeyFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
