"""Clients that leave, thousands of times: how soon their runs are cancelled, and what is left behind.

::

    python -m tests.soak                                  # 10 000 cycles over every kind of agent
    python -m tests.soak --cycles 100000 --kinds "sync generator" --http plain

A cycle is one connection: a stream is begun, zero to three pieces are read, and the client leaves with a FIN or a RST
while the agent waits. The suite has a short version of it in `tests/server/test_disconnect.py`. The exit code is 1 when
a task, thread, file or place is left, when memory grew by more than the limit, or when a run was cancelled too late.
"""

import argparse
import asyncio
import gc
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.support.agents import ASYNC_STREAMS, FUNCTIONS, SYNC_STREAMS, Witness
from tests.support.serve import Served, owned, serve

KINDS = {**ASYNC_STREAMS, **SYNC_STREAMS, **FUNCTIONS}
WARM_UP = 200


class Soak:
    """Runs cycles against one server. `delays` are the seconds from a client's leaving to the agent's hearing of it."""

    def __init__(self, kinds: list[str]) -> None:
        self.kinds = kinds
        self.delays: list[float] = []
        self._witnesses: dict[str, Witness] = {}
        config = ServerConfig(access_log=False, max_queued_runs=10_000)
        self.server = AgentRunServer({kind: self._agent(kind) for kind in kinds}, config=config)

    def _agent(self, kind: str) -> Any:
        def agent(request: AgentRequest) -> Any:
            name = request.messages[0].text
            return KINDS[kind](self._witnesses[name], int(name.partition(":")[2]))(request)

        async def on_loop(request: AgentRequest) -> Any:
            return agent(request)

        return on_loop if kind in ASYNC_STREAMS else agent

    async def cycle(self, number: int, served: Served) -> None:
        """Let one client come and leave."""
        kind = self.kinds[number % len(self.kinds)]
        index = 0 if kind in FUNCTIONS else number // len(self.kinds) % 4
        name = f"{number}:{index}"
        witness = self._witnesses[name] = Witness()
        async with served.client() as client:
            await client.chat(text=name, model=kind)
            read = ""
            while len(read) < 2 * index:
                read += await client.piece()
            await witness.saw("waiting")
            left = time.monotonic()
            client.leave("rst" if number % 2 else "fin")
            self.delays.append(await witness.saw("cancelled") - left)
            await witness.saw("ended")
        del self._witnesses[name]

    async def cycles(self, count: int, concurrency: int, served: Served) -> None:
        """Run `count` cycles, `concurrency` at a time."""
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await self.cycle(number, served)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())


def resident() -> int:
    """Return the memory of this process, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


async def run(options: argparse.Namespace) -> int:
    """Soak and report; return the exit code."""
    soak = Soak(options.kinds)
    async with serve(soak.server, http=options.http) as served:
        await soak.cycles(WARM_UP, options.concurrency, served)
        await served.nothing_left()
        soak.delays.clear()
        before, memory, began = owned(), resident(), time.monotonic()
        await soak.cycles(options.cycles, options.concurrency, served)
        seconds = time.monotonic() - began
        await served.nothing_left()
        grown = resident() - memory
        left = [thing for kind, things in owned().items() for thing in things - before[kind]]
    delays = sorted(soak.delays)
    late = delays[int(len(delays) * 0.99)]
    server = soak.server
    print(f"{options.cycles} cycles in {seconds:.1f} s, {options.concurrency} at a time, {options.http} HTTP")
    print(f"cancelled after: median {statistics.median(delays) * 1000:.2f} ms, p99 {late * 1000:.2f} ms,", end=" ")
    print(f"max {delays[-1] * 1000:.2f} ms")
    print(f"left behind: {len(left)} tasks, threads and files; {server._admission.running} places;", end=" ")
    print(f"{server._threads.running} threads of agents; {grown / 2**20:+.1f} MiB")
    leaked = left or server._sweeper.active or server._admission.running or server._threads.running
    return 1 if leaked or grown > options.max_growth * 2**20 or late > options.max_delay else 0


def main() -> int:
    """Read the options and soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--http", choices=["plain", "guarded"], default="guarded")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--max-growth", type=float, default=20.0, help="MiB")
    parser.add_argument("--max-delay", type=float, default=0.1, help="seconds, of the 99th percentile")
    return uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
