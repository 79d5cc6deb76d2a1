"""A process that writes like a server: responses with two items and their events, eight at a time.

::

    python -m tests.storage.worker sqlite:/tmp/store.db name --commits 100 --kill-at after:COMMIT:3

It prints ``ready``, waits for a line, and then prints the number of each commit when it is acknowledged. `--kill-at`
kills it, as `kill -9` does, before or after the n-th statement of SQLite that begins so.
"""

import argparse
import asyncio
import functools
import itertools
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from agentrun_server.storage.contracts import AppendEvents, Change, Create, Delete, Event, Record, Store

__all__ = ["EVENTS", "changes", "is_whole", "is_whole_or_absent"]

CONCURRENCY = 8
EVENTS = [b'{"type":"response.created"}' * 8, b"", b"\x00\xff" * 50]


def changes(name: str, number: int, size: int = 1500) -> Sequence[Change]:
    """Return what a finished response writes: itself, two parts, its events."""
    run = f"{name}-{number}"
    text = f"{run} " * (size // len(run) // 3)
    response = Record(kind="response", id=run, owner=name, body={"output": text}, status="completed")
    parts = [
        Record(kind="part", id=f"{run}-{index}", owner=name, parent=run, body={"text": text}) for index in range(2)
    ]
    return [Create(response), *map(Create, parts), AppendEvents(run=run, first=0, data=EVENTS)]


async def is_whole(store: Store, name: str, number: int) -> bool:
    """Tell whether all of a commit is there."""
    return await _parts(store, name, number) == (True, 2, [Event(at, data) for at, data in enumerate(EVENTS)])


async def is_whole_or_absent(store: Store, name: str, number: int) -> bool:
    """Tell whether all of a commit is there, or nothing."""
    parts = await _parts(store, name, number)
    return parts == (False, 0, []) or await is_whole(store, name, number)


async def _parts(store: Store, name: str, number: int) -> tuple[bool, int, Sequence[Event]]:
    run = f"{name}-{number}"
    parts = await store.get_many("part", [f"{run}-0", f"{run}-1"], name)
    return await store.get("response", run, name) is not None, len(parts), await store.events(run)


def acknowledged(output: bytes) -> list[int]:
    """Return the numbers that a worker printed; a line that is cut off was not acknowledged to anybody."""
    lines = output.split(b"\n")[:-1]
    return [int(line) for line in lines if line.isdigit()]


async def work(store: Store, name: str, numbers: Iterator[int], deleting: bool) -> None:
    """Commit one after the other."""
    for number in numbers:
        await store.commit(changes(name, number))
        os.write(1, b"%d\n" % number)
        if deleting and number % 5 == 4:
            # A deletion empties the log, while others write.
            doomed = f"{name}-doomed-{number}"
            await store.commit([Create(Record(kind="response", id=doomed, owner=name, body={}))])
            await store.commit([Delete("response", doomed)])


class MortalConnection(sqlite3.Connection):
    """A connection that kills its process at a statement."""

    when: str
    word: str
    left: int

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a statement, unless it is the last."""
        cls = type(self)
        hit = statement.lstrip().startswith(cls.word)
        cls.left -= hit
        if hit and cls.left == 0 and cls.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = super().execute(statement, *parameters)
        if hit and cls.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


async def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.storage.worker")
    parser.add_argument("address")
    parser.add_argument("name")
    parser.add_argument("--commits", type=int, default=0, help="0: until it is killed")
    parser.add_argument("--first", type=int, default=0, help="number of the first commit")
    parser.add_argument("--kill-at", default="", help="before:COMMIT:3")
    parser.add_argument("--deleting", action="store_true", help="delete now and then")
    options = parser.parse_args(arguments)
    scheme, _, place = options.address.partition(":")
    store: Any
    if options.kill_at:
        MortalConnection.when, MortalConnection.word, left = options.kill_at.split(":")
        MortalConnection.left = int(left)
        sqlite3.connect = functools.partial(sqlite3.connect, factory=MortalConnection)  # type: ignore[assignment]
    if scheme == "sqlite":
        from agentrun_server.storage.sqlite import SQLiteStore

        store = SQLiteStore(place)
    else:
        from agentrun_server.storage.postgres import PostgresStore

        url, _, schema = place.rpartition("#")
        store = await PostgresStore.open(url, schema=schema)
    os.write(1, b"ready\n")
    sys.stdin.readline()
    first = options.first
    numbers = itertools.count(first) if not options.commits else iter(range(first, first + options.commits))
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work(store, options.name, numbers, options.deleting))
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
