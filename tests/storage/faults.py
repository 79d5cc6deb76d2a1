"""Kills of a process that writes to a store, again and again, and what is found afterwards.

::

    python -m tests.storage.faults --kills 200          # at random moments, and at every fail point
    python -m tests.storage.faults --restart 100        # how long a store with so many MB takes to open
    python -m tests.storage.faults --throughput 5       # commits like a stored response, for so many seconds

The exit code is 1 when an acknowledged commit is lost, a commit is there in part, or the file is damaged. Times are
printed, not judged. The suite has a short version in `tests/storage/test_sqlite.py`.
"""

import argparse
import asyncio
import os
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from agentrun_server.storage.sqlite import SQLiteStore
from tests.storage.contract import Backend, SQLiteBackend, run_process
from tests.storage.worker import acknowledged, changes, is_whole, is_whole_or_absent

__all__ = ["FAIL_POINTS", "Kills", "throughput"]

FAIL_POINTS = [
    f"{when}:{statement}"
    for statement in (
        "BEGIN:2",
        "SAVEPOINT:3",
        "INSERT INTO records:7",
        "INSERT INTO events:2",
        "RELEASE:3",
        "COMMIT:2",
        "COMMIT:5",
        "DELETE:2",
        "PRAGMA wal_checkpoint:1",
        "PRAGMA wal_checkpoint:2",
        "CREATE:1",
        "PRAGMA user_version =:1",
        "PRAGMA journal_mode:1",
    )
    for when in ("before", "after")
]
"""Where a process is killed: before or after the n-th statement that begins so; see `tests.storage.worker`."""

LONGEST = 0.15
"""Seconds that a process writes at most before a kill at random."""


class Kills:
    """Kills writers of one store, and looks whether all they were told is there."""

    def __init__(self, backend: Backend, seed: int = 0) -> None:
        self.backend = backend
        self.random = random.Random(seed)
        self.kills = 0
        self.commits = 0
        self.lost: list[str] = []
        self.partial: list[str] = []

    async def at_random(self) -> None:
        """Kill a writer some time after it has begun."""
        await self._kill("")

    async def at(self, point: str) -> None:
        """Kill a writer at a fail point."""
        await self._kill(point)

    async def _kill(self, point: str) -> None:
        name = f"w{self.kills}"
        self.kills += 1
        options = ["--deleting", "--kill-at", point] if point else ["--deleting"]
        async with run_process(self.backend, name, *options) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            output = await process.stdout.readline()
            if output:  # else it was killed while it opened the store
                process.stdin.write(b"\n")
                if not point:
                    await asyncio.sleep(self.random.uniform(0, LONGEST))
                    process.kill()
            async with asyncio.timeout(60):
                output += await process.stdout.read()
                code = await process.wait()
            assert code == -9, f"{point or 'at random'}: the writer ended with {code}"
        await self._look(name, acknowledged(output))

    async def _look(self, name: str, numbers: list[int]) -> None:
        self.commits += len(numbers)
        store = await self.backend.open()
        for number in range(max(numbers, default=0) + 20):
            if number in numbers and not await is_whole(store, name, number):
                self.lost.append(f"{name}-{number}")
            elif not await is_whole_or_absent(store, name, number):
                self.partial.append(f"{name}-{number}")
        await store.aclose()

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.commits} commits acknowledged,"
            f" {len(self.lost)} lost, {len(self.partial)} there in part"
        )


def damage(path: Path) -> str:
    """Return what SQLite finds wrong with a file that this process has not open; ``ok`` when nothing is."""
    connection = sqlite3.connect(path)
    try:
        return "\n".join(text for (text,) in connection.execute("PRAGMA integrity_check"))
    finally:
        connection.close()


async def kill_often(folder: Path, count: int, seed: int) -> bool:
    """Kill `count` writers of one file at random, and two at each fail point; tell whether all is well."""
    backend = SQLiteBackend(folder)
    kills = Kills(backend, seed)
    for _ in range(count):
        await kills.at_random()
        if (found := damage(backend.path)) != "ok":
            print(f"damaged after kill {kills.kills}: {found}")
            return False
    print(f"at random: {kills}")
    good = not kills.lost and not kills.partial
    for point in FAIL_POINTS:
        for time_at_it in ("1", "2"):
            fresh = SQLiteBackend(folder / point.replace(" ", "_") / time_at_it)
            kills = Kills(fresh)
            await kills.at(point)
            found = damage(fresh.path)
            print(f"{point}: {kills}, {found}")
            good = good and not kills.lost and not kills.partial and found == "ok"
    return good


async def restart(folder: Path, megabytes: int) -> None:
    """Print how soon a store answers whose writer was killed, with so much in it."""
    backend = SQLiteBackend(folder)
    store = await backend.open()
    number = 0
    while await store.size() < megabytes * 1_000_000:
        await asyncio.gather(*(store.commit(changes("filler", number + n, 30_000)) for n in range(50)))
        number += 50
    await store.aclose()
    for name in ("a", "b", "c"):
        async with run_process(backend, name) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdout.readline()
            process.stdin.write(b"\n")
            await asyncio.sleep(2)
            process.kill()
            await process.stdout.read()
        log = os.stat(f"{backend.path}-wal").st_size  # noqa: PTH116 - nothing else runs here
        began = time.perf_counter()
        store = SQLiteStore(backend.path)
        await store.get("response", "filler-0", None)
        opened = time.perf_counter() - began
        await store.commit(changes(f"after-{name}", 0))
        written = time.perf_counter() - began
        size = await store.size()
        print(
            f"{size / 1e6:.0f} MB, of which {log / 1e6:.1f} in the log: first read after {opened:.3f} s,"
            f" first write after {written:.3f} s"
        )
        await store.aclose()


async def throughput(folder: Path, seconds: float, concurrency: int) -> float:
    """Return how many commits like a stored response (itself, two items, its events) are made in a second."""
    store = SQLiteStore(folder / "throughput.db")
    numbers = 0
    deadline = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal numbers
        while time.perf_counter() < deadline:
            numbers += 1
            await store.commit(changes("t", numbers))

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    rate = numbers / (time.perf_counter() - began)
    await store.aclose()
    return rate


async def main(options: argparse.Namespace) -> int:
    """Run what was asked for; return the exit code."""
    good = True
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if options.kills:
            good = await kill_often(Path(folder, "kills"), options.kills, options.seed)
        if options.restart:
            await restart(Path(folder, "restart"), options.restart)
        if options.throughput:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads that start from now on
            for concurrency in (1, 8, 64):
                place = Path(folder, f"throughput-{concurrency}")
                rate = await throughput(place, options.throughput, concurrency)
                print(f"{concurrency} at once, on one core: {rate:.0f} commits/s")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.storage.faults")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", type=int, default=0, metavar="MB")
    parser.add_argument("--throughput", type=float, default=0, metavar="SECONDS")
    sys.exit(asyncio.run(main(parser.parse_args())))
