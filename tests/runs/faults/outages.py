"""A store that cannot be written for a while: what is refused, what goes on, and what is left when it is over."""

import asyncio
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.runs.faults.clients import (
    RESPONSES,
    Place,
    Replica,
    Stream,
    ask,
    body_of,
    create,
    get,
    poll,
    resume,
    stream,
    text_of,
    wait_until,
)
from tests.runs.faults.server import question
from tests.storage.contract import other_process_writes

__all__ = ["FULL", "LOCKED", "Outage", "broken_sync", "check_outage"]

SOON = 5.0
"""Seconds within which a request is refused that cannot be stored."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A way in which a store is away."""

    name: str
    begin: Callable[[Place, Replica], AbstractContextManager[None]]
    """Takes it away until the context is left."""
    preload: str = ""
    """A library that stands in front of the system's."""


def _locked(place: Place, _: Replica) -> AbstractContextManager[None]:
    return other_process_writes(place.database)


LOCKED = Outage("another process writes all the time", _locked)


@contextmanager
def _full(_: Place, replica: Replica) -> Iterator[None]:
    """Let no file of the server grow."""
    limits = resource.prlimit(replica.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(replica.pid, resource.RLIMIT_FSIZE, limits)


FULL = Outage("no file may grow", _full)

_SYNC: Final = r"""
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
static int broken(void) { const char *name = getenv("FAULTS_BROKEN_SYNC"); return name && !access(name, F_OK); }
int fsync(int fd) { if (broken()) { errno = EIO; return -1; } return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { if (broken()) { errno = EIO; return -1; } return syscall(SYS_fdatasync, fd); }
"""
"""What stands in front of the system's: the disk reports an error while a file is there."""


def broken_sync(folder: Path) -> Outage | None:
    """Return the outage in which the disk reports errors; None without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    source, library, sign = folder / "sync.c", folder / "sync.so", folder / "broken"
    source.write_text(_SYNC, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)

    @contextmanager
    def begin(_: Place, __: Replica) -> Iterator[None]:
        sign.touch()
        try:
            yield
        finally:
            sign.unlink()

    return Outage("the disk reports errors", begin, str(library))


async def check_outage(
    place: Place, outage: Outage, *, lease: float, patience: float | None = None, pieces: int = 600
) -> str:
    """Take the store away while it is used, and give it back; streams of so many pieces last longer than that.

    With `patience` for longer than a run waits for its store, which is given up then; without, runs wait for it.
    """
    async with place.serve(
        worker_lease=lease, store_patience=patience or lease, counted=False, preload=outage.preload
    ) as replica:
        port = replica.port
        before = await create(port, input=question("before", 3, 0))
        conversation = (await ask(port, "POST", "/v1/conversations", {})).json()["id"]
        count = 100_000 if patience else pieces
        background = (await create(port, input=question("b", count, 0.01), background=True)).json()["id"]
        shown, unstored, chat = Stream(), Stream(), Stream()
        long = {"model": "speaker", "stream": True}
        running = [
            asyncio.create_task(stream(port, "POST", path, {**long, **more}, seen=seen))
            for path, more, seen in (
                (RESPONSES, {"input": question("s", count, 0.01)}, shown),
                (RESPONSES, {"input": question("u", pieces, 0.01), "store": False}, unstored),
                ("/v1/chat/completions", {"messages": [_user("c", pieces, 0.01)]}, chat),
            )
        ]
        await wait_until(lambda: _all_begun(shown, unstored, chat), 10, "all streams have begun")
        away = time.monotonic()
        with outage.begin(place, replica):
            refusals = [
                {"background": True},
                {"background": True, "stream": True},
                {"conversation": conversation},
                {},
                {"stream": True},
            ]
            waited = await asyncio.gather(*(_refused(port, fields) for fields in refusals), _refused(port, {}, key="k"))
            known = await get(port, before.json()["id"])
            assert known == before.json(), "what is there can be read"
            if patience:
                await running[0]  # cannot be written any more
            unstored_answer = await create(port, input=question("x", 2, 0), store=False)
            assert unstored_answer.status == 200, unstored_answer
        over = time.monotonic()
        await asyncio.gather(*running)
        assert unstored.is_done
        assert chat.is_done
        recovered = await wait_until(lambda: _is_stored(port), 30, "it stores again")
        ends = {}
        for identity, tag in ((background, "b"), (shown.id, "s")):
            ended = await poll(port, identity, 60, 0.1)
            ends[identity] = time.monotonic() - over
            log = (await resume(port, identity)).events
            numbers = [body_of(event)["sequence_number"] for event in log[:-1]]
            assert numbers == list(range(len(numbers)))
            if patience:
                assert ended["status"] == "failed", ended
            else:
                assert ended["status"] == "completed", ended
                assert text_of(ended) == "".join(f"{tag}:{number} " for number in range(count)), "all of it, once"
        last = next((at for at, event in enumerate(shown.events) if event.startswith(b"event: error")), None)
        assert (last is not None) == bool(patience), shown.events[-3:]
        assert shown.events[:last] == log[:last], "what was shown is in the log"
        assert shown.is_done, shown.events[-2:]
    return (
        f"{outage.name}, for {over - away:.1f} s: refused within {max(waited):.1f} s, streams that are not stored went"
        f" on, stored again {recovered:.1f} s and all runs {'failed' if patience else 'completed'}"
        f" {max(ends.values()):.1f} s after it was over"
    )


def _user(tag: str, pieces: int, pause: float) -> dict[str, str]:
    return {"role": "user", "content": question(tag, pieces, pause)}


async def _all_begun(*streams: Stream) -> bool:
    return all(len(seen.events) > 5 for seen in streams)


async def _is_stored(port: int) -> bool:
    answer = await create(port, input=question("after", 1, 0), background=True)
    return answer.status == 200 and (await poll(port, answer.json()["id"], 10))["status"] == "completed"


async def _refused(port: int, fields: dict[str, Any], key: str = "") -> float:
    """Make a request that cannot be stored; return how many seconds the answer took."""
    began = time.monotonic()
    headers = [("idempotency-key", key)] if key else []
    body = {"model": "speaker", "input": question("r", 2, 0), **fields}
    answer = await stream(port, "POST", RESPONSES, body, headers)
    took = time.monotonic() - began
    if answer.error is not None:
        assert (answer.status, answer.error["error"]["code"]) == (503, "storage_unavailable"), (fields, answer)
        # Where the agent has run, another try would run it again.
        ran = not (key or fields.get("background") or fields.get("conversation"))
        assert ("retry-after" in answer.headers) != ran, (fields, answer)
        assert (answer.headers.get("x-should-retry") == "false") == ran, (fields, answer)
    else:
        codes = [body_of(event).get("code") for event in answer.events if event.startswith(b"event: error")]
        assert codes == ["storage_unavailable"], (fields, answer)
    assert took < SOON + 0.5, f"{fields}: {took:.1f} s"
    return took
