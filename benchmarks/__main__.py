"""``python -m benchmarks``: interleaved rounds of every workload against every peer; see README.md here."""

import argparse
import asyncio
import datetime as dt
import gc
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import machine
from benchmarks.peers import PEERS, Peer, UnavailableError, resolve, versions
from benchmarks.process import ServerError
from benchmarks.report import missed_floors, report
from benchmarks.results import Record, Results
from benchmarks.setup_peers import ENVIRONMENTS, make
from benchmarks.workloads import WORKLOADS, Sample, Settings, Workload

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_WORKLOADS = "a,b,b0,c,d,e,f,g"
DEFAULT_PEERS = "raw,ours,fastapi,agentrun_sdk,agentrun_sdk-tuned,litserve"
SAMPLE_SECONDS = 300.0
"""No sample takes longer; the slowest peers need some time to start."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    parser.add_argument("--only", default=DEFAULT_WORKLOADS, help=f"of {','.join(WORKLOADS)}; default %(default)s")
    parser.add_argument("--peers", default=DEFAULT_PEERS, help=f"of {','.join(PEERS)}; default %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of a sample; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, measures nothing")
    parser.add_argument("--check", action="store_true", help="fail when a floor is missed")
    parser.add_argument("--setup", action="store_true", help="first make the environments that are missing")
    parser.add_argument("--output", type=Path, help="where to write the JSON; the report goes beside it")
    parser.add_argument("--add-to", type=Path, help="add the rounds to those of this JSON file")
    parser.add_argument("--server-log", help="append what the servers print to this file")
    parser.add_argument("--report", type=Path, help="only print the report of this JSON file")
    return parser.parse_args(argv)


def _run(coroutine: Coroutine[Any, Any, Sample]) -> Sample:
    """Run on a loop of its own, without garbage collections of ours in the measured window."""

    async def bounded() -> Sample:
        async with asyncio.timeout(SAMPLE_SECONDS):
            return await coroutine

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(bounded())
    finally:
        gc.enable()


def _measure(number: int, workload: Workload, peer: Peer, settings: Settings) -> Record:
    speed = machine.speed(settings.cores.server)
    try:
        sample = workload.measure(peer, settings, _run)
    except (UnavailableError, ServerError) as exc:
        return Record(number, workload.key, peer.name, failure=str(exc), core_speed=speed)
    except Exception as exc:  # one peer that breaks must not lose the run of the others
        return Record(number, workload.key, peer.name, failure=f"{type(exc).__name__}: {exc}", core_speed=speed)
    return Record(number, workload.key, peer.name, sample=sample, core_speed=speed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _round(number: int, workloads: list[Workload], peers: list[Peer], settings: Settings, results: Results) -> None:
    """Measure everything once. Each round begins with another peer, so that none always runs first."""
    for workload in workloads:
        turn = number % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            if workload.only and peer.name not in workload.only:
                continue
            record = _measure(number, workload, peer, settings)
            results.records.append(record)
            told = record.failure or _headline(record.sample)
            _say(f"round {number + 1} ({workload.key}) {peer.name}: {told}")


def _headline(sample: Sample) -> str:
    wanted = (
        "per_cpu_s",
        "cpu_us_token",
        "ttft_p99_ms",
        "gap_p99_ms",
        "kb_per_stream",
        "streams_per_s",
        "first_200_ms",
    )
    told = [f"{key}={sample[key]:.4g}" for key in wanted if key in sample]
    return " ".join(told or [f"{key}={value:.4g}" for key, value in sample.items()])


def _settings(options: argparse.Namespace, cores: machine.Cores) -> Settings:
    if options.quick:
        return Settings(cores, seconds=0.4, warmup=0.1, open_streams=50, settle=0.2, starts=1, log=options.server_log)
    return Settings(cores, seconds=options.seconds, log=options.server_log)


def _available(peers: list[Peer]) -> dict[str, dict[str, str]]:
    found = {}
    for peer in peers:
        try:
            found[peer.name] = versions(peer)
        except UnavailableError as exc:
            _say(f"{peer.name} is left out: {exc}")
    return found


def _chosen(options: argparse.Namespace) -> tuple[list[Workload], list[Peer]]:
    keys = [key for key in options.only.split(",") if key]
    unknown = [key for key in keys if key not in WORKLOADS]
    if unknown:
        raise UnavailableError(f"unknown workload {', '.join(unknown)}; known: {', '.join(WORKLOADS)}")
    return [WORKLOADS[key] for key in keys], resolve([name for name in options.peers.split(",") if name])


def _prepare(options: argparse.Namespace, peers: list[Peer], settings: Settings) -> Results:
    """Make what is missing, and return results to add to."""
    if options.setup:
        for name in ENVIRONMENTS:
            if any(peer.name.startswith(name) for peer in peers):
                make(name)
    found = _available(peers)
    if options.add_to is not None:
        results = Results.read(options.add_to)
        results.versions |= found
        return results
    told = {"seconds": settings.seconds, "warmup": settings.warmup, "open_streams": settings.open_streams}
    return Results(rounds=0, environment=machine.describe(), settings=told, versions=found)


def _measure_all(options: argparse.Namespace) -> Results:
    workloads, peers = _chosen(options)
    cores = machine.Cores()
    if cores.shared:
        _say("only one core: the load generator takes time from the servers, ratios are too close to 1")
    machine.raise_file_limit()
    settings = _settings(options, cores)
    results = _prepare(options, peers, settings)
    peers = [peer for peer in peers if peer.name in results.versions]
    first = results.measured_rounds()
    results.rounds = first + (1 if options.quick else options.rounds)
    path = _output(options)
    try:
        with machine.on_core(cores.client):
            for number in range(first, results.rounds):
                _round(number, workloads, peers, settings, results)
                results.write(path)
    except KeyboardInterrupt:
        _say("interrupted: what was measured so far is kept")
    results.rounds = results.measured_rounds()
    results.write(path)
    path.with_suffix(".md").write_text(report(results), encoding="utf-8")
    return results


def _output(options: argparse.Namespace) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    path: Path = options.output or options.add_to or RESULTS / f"{stamp}{'-quick' if options.quick else ''}.json"
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks; return the exit status."""
    options = _arguments(argv)
    if options.report is not None:
        print(report(Results.read(options.report)), end="")
        return 0
    try:
        results = _measure_all(options)
    except UnavailableError as exc:
        _say(str(exc))
        return 2
    print(report(results), end="")
    missed = missed_floors(results) if options.check else []
    for line in missed:
        _say(f"floor missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the servers, keep the results
    sys.exit(main())
