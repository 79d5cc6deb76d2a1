"""What nginx in front costs: ``python -m benchmarks.nginx``.

The shipped configurations (`deploy/`) in front of a server that checks tokens, on the loopback, over TLS; and the same
server asked directly, without TLS. Client and server share this process, so that both clocks are one; nginx has its
own. Direct and through are measured in turns, and what nginx adds is the median of the differences of neighbours.

* ``first byte``: from the request to the first word of the stream, on a kept connection and on a new one, which for
  nginx begins with the TLS handshake.
* ``event``: from the word that the agent says to the word that the client reads, each one alone.
* ``leaving``: from the client's reset to the agent's cancellation, while it is silent.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from agentrun_server import AgentRequest
from benchmarks.stats import percentile
from tests.deploy.nginx.behind import bearer, guarded
from tests.support.clock import within
from tests.support.nginx import APP_AUTH_CONF, CONF, Nginx, make_certificate, nginx
from tests.support.raw_client import RawClient
from tests.support.serve import Served, serve

Front = Served | Nginx
Measure = Callable[[Front], Awaitable[float]]

UNLIMITED = {"limit_req zone=requests burst=100 nodelay;": ""}
"""The one thing that is changed: a benchmark asks more often than one address may."""


class Agent:
    """Says a word, and then one each time it is told to; notes when it was cancelled."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.cancelled_at = 0.0

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        try:
            yield "word"
            while request.messages[0].text == "more":
                await self.go_on.wait()
                self.go_on.clear()
                yield "word"
        except asyncio.CancelledError:
            self.cancelled_at = time.perf_counter()
            self.cancelled.set()
            raise


class Bench:
    """The measurements. Each returns seconds."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.agent = Agent()
        self._stack = stack
        self._kept: dict[Front, RawClient] = {}
        self._headers = bearer()

    async def first_byte(self, front: Front) -> float:
        if front not in self._kept:
            self._kept[front] = await self._stack.enter_async_context(front.client())
        client = self._kept[front]
        client.answer = None  # to read the head of the next one
        begun = time.perf_counter()
        await client.chat(headers=self._headers)
        await client.piece()
        taken = time.perf_counter() - begun
        await client.rest()
        return taken

    async def first_byte_of_new_connection(self, front: Front) -> float:
        begun = time.perf_counter()
        async with front.client() as client:
            await client.chat(headers=self._headers)
            await client.piece()
            taken = time.perf_counter() - begun
            await client.rest()
        return taken

    async def event(self, front: Front) -> float:
        async with front.client() as client:
            await client.chat(headers=self._headers, text="more")
            await client.piece()
            begun = time.perf_counter()
            self.agent.go_on.set()
            await client.piece()
            taken = time.perf_counter() - begun
            await self._leave(client)
        return taken

    async def leaving(self, front: Front) -> float:
        async with front.client() as client:
            await client.chat(headers=self._headers, text="more")
            await client.piece()
            return await self._leave(client)

    async def _leave(self, client: RawClient) -> float:
        self.agent.cancelled.clear()
        begun = time.perf_counter()
        client.rst()
        await within(self.agent.cancelled.wait())
        return self.agent.cancelled_at - begun


def _row(name: str, direct: list[float], through: list[float]) -> str:
    def cell(values: list[float]) -> str:
        return f"{statistics.median(values) * 1000:.2f}, {(percentile(values, 0.99) or 0) * 1000:.2f}"

    added = statistics.median(after - before for before, after in zip(direct, through, strict=True))
    return f"| {name} | {cell(direct)} | {cell(through)} | {added * 1000:+.2f} |"


async def _measure(measure: Measure, direct: Front, through: Front, times: int) -> tuple[list[float], list[float]]:
    found: dict[Front, list[float]] = {direct: [], through: []}
    for number in range(times + times // 10):
        for front in (direct, through) if number % 2 else (through, direct):
            taken = await measure(front)
            if number >= times // 10:  # the first ones warm up
                found[front].append(taken)
    return found[direct], found[through]


async def _run(conf: Path, folder: Path, certificate: Path, times: int) -> None:
    async with AsyncExitStack() as stack:
        bench = Bench(stack)
        direct = await stack.enter_async_context(serve(guarded(bench.agent, access_log=False)))
        through = await stack.enter_async_context(nginx(folder, certificate, direct.port, conf=conf, edits=UNLIMITED))
        print(f"\n{conf.name}, {times} times each, milliseconds:\n")
        print("| | direct p50, p99 | through nginx p50, p99 | added |")
        print("|---|---|---|---|")
        rows: dict[str, Measure] = {
            "first byte": bench.first_byte,
            "first byte of a new connection": bench.first_byte_of_new_connection,
            "event": bench.event,
            "leaving": bench.leaving,
        }
        for name, measure in rows.items():
            print(_row(name, *await _measure(measure, direct, through, times)), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nginx", description=__doc__)
    parser.add_argument("--times", type=int, default=500, help="measurements of each kind; default %(default)s")
    options = parser.parse_args(argv)
    gc.disable()
    with tempfile.TemporaryDirectory() as scratch:
        certificate = make_certificate(Path(scratch, "tls"))
        for conf in (CONF, APP_AUTH_CONF):
            folder = Path(scratch, conf.stem)
            folder.mkdir()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(conf, folder, certificate, options.times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
