"""Faults at full length.

::

    python -m tests.runs.faults                              # everything: about half an hour
    python -m tests.runs.faults kills --kills 200 --seed 7   # kills at random alone
    python -m tests.runs.faults points resume --postgres     # also on a PostgreSQL that is started for it

Each fault prints what it has found, with figures. The exit code is 1 when one of them has found something wrong.
"""

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from tests.runs.faults import attempts, cancelling, duplicating, leases, outages, restarting, resuming, turns
from tests.runs.faults.clients import Place
from tests.runs.faults.kills import Kills
from tests.runs.faults.server import FAIL_POINTS
from tests.support.postgres_server import PostgresServer, postgres_server

_REAL_LEASE = 30.0
_REAL_GRACE = 15.0
_START = 2.0
"""Seconds in which a server with 100 MB must answer after a kill."""


class Faults:
    """What can be asked for. Each method yields lines of what it found, and raises what it found wrong."""

    def __init__(self, options: argparse.Namespace, folder: Path, postgres: PostgresServer | None) -> None:
        self.options = options
        self._folder = folder
        self._postgres = postgres
        self._places = itertools.count()

    async def place(self) -> Place:
        """Return a place that nobody has used."""
        name = f"place{next(self._places)}"
        url = await self._postgres.database(name) if self._postgres is not None else ""
        return Place(self._folder / name, url)

    async def kills(self) -> AsyncIterator[str]:
        """Kill a server that is in use at random moments."""
        kills = Kills(await self.place(), self.options.seed)
        for _ in range(self.options.kills):
            await kills.at_random()
            if kills.kills % 20 == 0:
                yield f"… {kills}"
        yield f"at random: {kills}"
        assert not kills.wrong, "\n".join(kills.wrong)

    async def points(self) -> AsyncIterator[str]:
        """Kill a server at named points."""
        kills = Kills(await self.place(), self.options.seed)
        for round_ in range(self.options.rounds):
            for point in FAIL_POINTS:
                await kills.at(point)
            yield f"{len(FAIL_POINTS)} fail points, {round_ + 1} times: {kills}"
        assert not kills.wrong, "\n".join(kills.wrong)

    async def running(self) -> AsyncIterator[str]:
        """Kill a server with a hundred runs: with a short lease, and with the one that servers have."""
        yield await leases.kill_while_running(await self.place(), 100, lease=1, grace=_REAL_GRACE)
        yield await leases.kill_while_running(await self.place(), 100, lease=_REAL_LEASE, grace=_REAL_GRACE)

    async def still(self) -> AsyncIterator[str]:
        """Let a server stand still for longer than its lease."""
        for _ in range(5):
            yield await leases.check_stand_still(await self.place(), lease=1)

    async def attempts(self) -> AsyncIterator[str]:
        """Count how often agents are run when their servers die or leave."""
        yield await attempts.check_attempts(await self.place())
        yield await attempts.check_handover(await self.place(), lease=_REAL_LEASE, drain=20)

    async def resume(self) -> AsyncIterator[str]:
        """Cut streams at every event index."""
        yield str(await resuming.cut_everywhere(await self.place(), pieces=25, pause=0.05))

    async def cancels(self) -> AsyncIterator[str]:
        """Cancel runs about when they end."""
        count = self.options.cancels
        yield str(await cancelling.race(await self.place(), here=count, elsewhere=count // 5, seed=self.options.seed))

    async def duplicates(self) -> AsyncIterator[str]:
        """Ask for the same a hundred times at once."""
        place = await self.place()
        async with place.serve() as one:
            yield await duplicating.duplicate(place, [one], 100)
            async with place.serve() as two:
                yield await duplicating.duplicate(place, [one, two], 100)
        yield await duplicating.kill_between(await self.place(), 20)
        yield await duplicating.check_owners(await self.place())

    async def turns(self) -> AsyncIterator[str]:
        """Take turns of one conversation at once."""
        yield await turns.check_turns(await self.place(), lease=1)

    async def outages(self) -> AsyncIterator[str]:
        """Take the store away for a while."""
        if self._postgres is not None:
            yield "of SQLite alone"
            return
        broken = outages.broken_sync(self._folder)
        for outage in (outages.FULL, outages.LOCKED, broken):
            if outage is None:
                yield "a disk that reports errors: not tried, there is no gcc"
                continue
            for lease, patience in ((1.5, 1.5), (_REAL_LEASE, 1.5), (_REAL_LEASE, None)):
                yield await outages.check_outage(await self.place(), outage, lease=lease, patience=patience)

    async def restart(self) -> AsyncIterator[str]:
        """Start a server with a large store."""
        if self._postgres is not None:
            yield "of SQLite alone"
            return
        yield await restarting.restart(await self.place(), megabytes=self.options.megabytes, times=5, limit=_START)


_ALL: Mapping[str, Callable[[Faults], AsyncIterator[str]]] = {
    name: fault for name, fault in vars(Faults).items() if name not in ("__init__", "place") and callable(fault)
}


async def main(options: argparse.Namespace) -> int:
    """Run what was asked for; return the exit code."""
    task = asyncio.current_task()
    assert task is not None, "it runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        postgres_server() if options.postgres else nullcontext() as server,
    ):
        faults = Faults(options, Path(folder), server)
        for name in options.faults or _ALL:
            began = time.monotonic()
            try:
                async for line in _ALL[name](faults):
                    print(f"{name}: {line}", flush=True)
            except Exception:
                failed.append(name)
                traceback.print_exc()
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"wrong: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.runs.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "faults", nargs="*", metavar="fault", choices=[*_ALL, []], help=f"of {', '.join(_ALL)}; all when left out"
    )
    parser.add_argument("--kills", type=int, default=200, help="at random moments")
    parser.add_argument("--rounds", type=int, default=2, help="through all fail points")
    parser.add_argument("--cancels", type=int, default=1000, help="on one server; a fifth as many from another")
    parser.add_argument("--megabytes", type=int, default=100, help="in the store that is started with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL, in place of SQLite")
    sys.exit(asyncio.run(main(parser.parse_args())))
