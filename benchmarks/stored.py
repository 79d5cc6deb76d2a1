"""What storing costs: ``python -m benchmarks.stored``.

The server has one core, the load the other; each sample is a freshly started server with a store of its own on this
machine's disk, synced with every commit. What is compared runs in turns, and ratios are those of neighbours.

* ``whole``: responses that are answered as one object, stored and not, from 64 connections and from one.
* ``first event``: from the request for a stream to its first event, stored and not, one at a time.
* ``chat``: workloads b and c of ``python -m benchmarks``, which store nothing, with a store and without one.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvloop

from benchmarks import machine, payloads
from benchmarks.http_client import Expected, Load, http_request
from benchmarks.peers import PEERS, Peer
from benchmarks.process import Server, running
from benchmarks.stats import percentile
from benchmarks.workloads import WORKLOADS, Settings

PATH = "/v1/responses"
OURS = PEERS["ours"]


@dataclass(frozen=True)
class Options:
    """How long and how often."""

    rounds: int
    seconds: float
    cores: machine.Cores


def body(model: str, *, store: bool, stream: bool) -> bytes:
    """Return a request for a response."""
    fields = {"model": model, "input": payloads.ECHO_TEXT, "stream": stream, "store": store}
    return json.dumps(fields, separators=(",", ":")).encode()


def kept_by(peer: Peer, store_url: str) -> Peer:
    """Return `peer` with a store."""
    return replace(peer, environment={**peer.environment, "AGENTRUN_STORE_URL": store_url})


@contextmanager
def server(options: Options, store_url: str) -> Iterator[Server]:
    """Run our server with a store."""
    with running(kept_by(OURS, store_url), options.cores.server, payloads.echo_body()) as started:
        yield started


@contextmanager
def server_on_sqlite(options: Options) -> Iterator[Server]:
    """Run our server with a new file for its store."""
    with tempfile.TemporaryDirectory() as folder, server(options, f"sqlite:///{folder}/agentrun.db") as started:
        yield started


async def per_second(running_server: Server, request_body: bytes, connections: int, seconds: float) -> float:
    """Return right answers a second."""
    request = http_request(PATH, request_body, running_server.port)
    load = Load(
        port=running_server.port,
        next_request=lambda: request,
        expected=Expected(text=payloads.ECHO_TEXT.encode()),
    )
    try:
        await load.open(connections)
        await load.run_for(0.5)
        load.open_window()
        begun = time.perf_counter()
        await load.run_for(seconds)
        taken = time.perf_counter() - begun
        if load.seen.errors:
            raise SystemExit(f"wrong answers: {load.error_sample}")
        return load.seen.completed / taken
    finally:
        await load.stop()


async def first_event(running_server: Server, request_body: bytes) -> float:
    """Return the seconds from a request on a kept connection to the first bytes of its stream's body."""
    request = http_request(PATH, request_body, running_server.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", running_server.port)
    try:
        begun = time.perf_counter()
        writer.write(request)
        await reader.readuntil(b"event: response.created")
        taken = time.perf_counter() - begun
        await reader.readuntil(b"[DONE]")
        return taken
    finally:
        writer.close()


async def first_events(running_server: Server, times: int) -> tuple[list[float], list[float]]:
    """Measure stored and unstored streams in turns; return the seconds of each."""
    bodies = {store: body("trickle", store=store, stream=True) for store in (True, False)}
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(times + times // 10):
        for store in (True, False) if number % 2 else (False, True):
            taken = await first_event(running_server, bodies[store])
            if number >= times // 10:  # the first ones warm up
                found[store].append(taken)
    return found[True], found[False]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` on an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _whole(options: Options) -> None:
    print("\n| whole responses a second | stored | not stored | ratio |\n|---|---|---|---|")
    for connections in (64, 8, 1):
        stored: list[float] = []
        plain: list[float] = []
        for _ in range(options.rounds):
            with server_on_sqlite(options) as started:
                for found, store in ((stored, True), (plain, False)):
                    request = body("echo", store=store, stream=False)
                    found.append(run(per_second(started, request, connections, options.seconds)))
        ratio = statistics.median(a / b for a, b in zip(stored, plain, strict=True))
        print(
            f"| {connections} connections | {statistics.median(stored):.0f} ({min(stored):.0f}..{max(stored):.0f}) "
            f"| {statistics.median(plain):.0f} | {ratio:.2f} |",
            flush=True,
        )


def _first(options: Options, times: int) -> None:
    with server_on_sqlite(options) as started:
        stored, plain = run(first_events(started, times))
    added = statistics.median(a - b for a, b in zip(stored, plain, strict=True))
    print("\n| first event, milliseconds | p50 | p99 |\n|---|---|---|")
    for name, values in (("stored", stored), ("not stored", plain)):
        print(f"| {name} | {statistics.median(values) * 1000:.2f} | {(percentile(values, 0.99) or 0) * 1000:.2f} |")
    print(f"\nadded by storing: {added * 1000:+.2f} ms (median of the differences of neighbours, {times} times)")


def _chat(options: Options) -> None:
    settings = Settings(cores=options.cores, seconds=options.seconds)
    print("\n| chat that stores nothing, per CPU second | with a store | without | ratio |\n|---|---|---|---|")
    for key in ("b", "c"):
        workload = WORKLOADS[key]
        found: dict[str, list[float]] = {"sqlite": [], "none": []}
        for number in range(options.rounds):
            for store in ("sqlite", "none") if number % 2 else ("none", "sqlite"):
                with tempfile.TemporaryDirectory() as folder:
                    url = f"sqlite:///{folder}/agentrun.db" if store == "sqlite" else "none"
                    peer = kept_by(OURS, url)
                    if store == "sqlite":
                        _fill(peer, options)
                    found[store].append(workload.measure(peer, settings, run)["per_cpu_s"])
        ratios = [a / b for a, b in zip(found["sqlite"], found["none"], strict=True)]
        print(
            f"| {key} | {statistics.median(found['sqlite']):.0f} | {statistics.median(found['none']):.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |",
            flush=True,
        )


def _fill(peer: Peer, options: Options) -> None:
    """Put something into the store, so that the next server opens it when it starts."""
    with running(peer, options.cores.server, payloads.echo_body()) as started:
        run(per_second(started, body("echo", store=True, stream=False), 8, 0.2))


def main(argv: list[str] | None = None) -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stored", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each kind; default %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of a sample; default %(default)s")
    parser.add_argument("--times", type=int, default=300, help="streams of each kind; default %(default)s")
    parser.add_argument("--only", default="whole,first,chat", help="default %(default)s")
    arguments = parser.parse_args(argv)
    cores = machine.Cores()
    options = Options(arguments.rounds, arguments.seconds, cores)
    only = arguments.only.split(",")
    with machine.on_core(cores.client):
        if "whole" in only:
            _whole(options)
        if "first" in only:
            _first(options, arguments.times)
        if "chat" in only:
            _chat(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
