"""The workloads: what is sent, how it is measured, what a sample holds.

A sample is a dict of numbers: one run of one workload against one freshly started server.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks import agents, machine, payloads
from benchmarks.http_client import Expected, Load, http_request
from benchmarks.peers import Peer, jwt_peer
from benchmarks.process import Server, running, start
from benchmarks.stats import percentile
from benchmarks.tokens import make_token

__all__ = ["SYNC_IDEAL", "WORKLOADS", "Sample", "Settings", "Workload"]

Sample = dict[str, float]
Run = Callable[[Coroutine[Any, Any, Sample]], Sample]
"""Runs a coroutine on the load generator's event loop."""
Drive = Callable[["Server", "Settings"], Coroutine[Any, Any, Sample]]


@dataclass(frozen=True)
class Settings:
    """How long and how large."""

    cores: machine.Cores
    seconds: float = 3.0
    warmup: float = 0.5
    open_streams: int = 1000
    settle: float = agents.SLOW_INTERVAL * 1.5
    """How long the open streams of d run before their memory is read."""
    starts: int = 3
    log: str | None = None


@dataclass(frozen=True)
class Workload:
    """One letter of the table.

    Either `drive` measures a running server, or `whole` starts servers itself.
    """

    key: str
    title: str
    body: bytes
    drive: Drive | None = None
    whole: Callable[[Peer, Settings, Run], Sample] | None = None
    only: frozenset[str] = frozenset()
    """Peers this workload is for; empty for all."""

    def measure(self, peer: Peer, settings: Settings, run: Run) -> Sample:
        """Measure `peer` once."""
        if self.whole is not None:
            return self.whole(peer, settings, run)
        assert self.drive is not None
        with running(peer, settings.cores.server, self.body, self.key, log=settings.log) as server:
            return run(self.drive(server, settings))


def _fixed(server: Server, body: bytes) -> Callable[[], bytes]:
    request = http_request(server.peer.path, body, server.port)
    return lambda: request


@dataclass(frozen=True)
class _Window:
    """What the measured window saw, and the server's CPU time in it."""

    load: Load
    wall: float
    cpu: float
    client_cpu: float
    core_busy: float

    def common(self) -> Sample:
        """What every sample of a load holds."""
        return {
            "wall_s": self.wall,
            "cpu_s": self.cpu,
            "server_busy": self.cpu / self.wall,
            "client_busy": self.client_cpu / self.wall,
            "others_busy": max(0.0, self.core_busy - self.cpu) / self.wall,
            "errors": float(self.load.seen.errors),
        }


async def _window(
    server: Server,
    load: Load,
    settings: Settings,
    connections: int,
    *,
    spread: float = 0.0,
    warmup: float | None = None,
) -> _Window:
    """Open `connections`, let them warm up, measure, and stop."""
    try:
        await load.open(connections, spread=spread)
        await load.run_for(settings.warmup if warmup is None else warmup)
        load.open_window()
        cpu, busy = server.cpu_seconds(), machine.core_busy_seconds(settings.cores.server)
        client = time.process_time()
        started = time.perf_counter()
        await load.run_for(settings.seconds)
        return _Window(
            load,
            wall=time.perf_counter() - started,
            cpu=server.cpu_seconds() - cpu,
            client_cpu=time.process_time() - client,
            core_busy=machine.core_busy_seconds(settings.cores.server) - busy,
        )
    finally:
        await load.stop()


def _milliseconds(values: list[float], share: float) -> float:
    value = percentile(values, share)
    return float("nan") if value is None else value * 1000


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else float("nan")


def _requests(connections: int, body: bytes) -> Drive:
    """Workloads a and e: requests per CPU-second."""

    async def drive(server: Server, settings: Settings) -> Sample:
        expected = Expected(text=payloads.ECHO_TEXT.encode())
        load = Load(port=server.port, next_request=_fixed(server, body), expected=expected)
        window = await _window(server, load, settings, connections)
        seen = load.seen
        return {
            **window.common(),
            "completed": float(seen.completed),
            "per_cpu_s": _rate(seen.completed, window.cpu),
            "per_wall_s": _rate(seen.completed, window.wall),
            "latency_p50_ms": _milliseconds(seen.latency, 0.5),
            "latency_p99_ms": _milliseconds(seen.latency, 0.99),
        }

    return drive


def _tokens(model: str, connections: int, tokens: int) -> Drive:
    """Workloads b, b0 and f: tokens per CPU-second, streams per second, time to the first token."""

    async def drive(server: Server, settings: Settings) -> Sample:
        body = payloads.stream_body(model)
        load = Load(port=server.port, next_request=_fixed(server, body), expected=Expected(tokens=tokens), timing=True)
        window = await _window(server, load, settings, connections)
        seen = load.seen
        return {
            **window.common(),
            "completed": float(seen.completed),
            "per_cpu_s": _rate(seen.tokens, window.cpu),
            "per_wall_s": _rate(seen.tokens, window.wall),
            "streams_per_s": _rate(seen.tokens / tokens, window.wall),
            "cpu_us_token": _rate(window.cpu * 1e6, seen.tokens),
            "ttft_p50_ms": _milliseconds(seen.ttft, 0.5),
            "ttft_p99_ms": _milliseconds(seen.ttft, 0.99),
        }

    return drive


PACED_STREAMS = 200
_PACED_IDEAL = (agents.PACED_TOKENS - 1) * agents.PACED_INTERVAL


async def _paced(server: Server, settings: Settings) -> Sample:
    """Workload c. The streams start evenly spread over the length of one; each starts again when it ends."""
    load = Load(
        port=server.port,
        next_request=_fixed(server, payloads.stream_body("paced")),
        expected=Expected(tokens=agents.PACED_TOKENS),
        timing=True,
    )
    window = await _window(
        server,
        load,
        settings,
        PACED_STREAMS,
        spread=_PACED_IDEAL,
        warmup=_PACED_IDEAL * 1.3 + settings.warmup,
    )
    seen = load.seen
    return {
        **window.common(),
        "completed": float(seen.completed),
        "cpu_us_token": _rate(window.cpu * 1e6, seen.tokens),
        "per_cpu_s": _rate(seen.tokens, window.cpu),
        "per_wall_s": _rate(seen.tokens, window.wall),
        "tokens_of_ideal": _rate(seen.tokens, window.wall * PACED_STREAMS * agents.PACED_TOKENS / _PACED_IDEAL),
        "ttft_p50_ms": _milliseconds(seen.ttft, 0.5),
        "ttft_p99_ms": _milliseconds(seen.ttft, 0.99),
        "gap_p50_ms": _milliseconds(seen.gaps, 0.5),
        "gap_p99_ms": _milliseconds(seen.gaps, 0.99),
        "total_of_ideal": (percentile(seen.totals, 0.5) or float("nan")) / _PACED_IDEAL,
    }


async def _open_streams(server: Server, settings: Settings) -> Sample:
    """Workload d: resident memory before and with many open streams."""

    def new_load() -> Load:
        return Load(
            port=server.port,
            next_request=_fixed(server, payloads.stream_body("slow")),
            expected=Expected(tokens=agents.SLOW_TOKENS),
        )

    fresh = server.resident_kb()
    warm = new_load()
    try:  # what is loaded with the first requests is not the price of a stream
        await warm.open(16)
        await _started(warm, 16)
    finally:
        await warm.stop()
    await asyncio.sleep(0.5)
    idle = server.resident_kb()
    load = new_load()
    try:
        for opened in range(0, settings.open_streams, 50):
            await load.open(min(50, settings.open_streams - opened))
            await _started(load, min(opened + 50, settings.open_streams))
        await load.run_for(settings.settle)
        loaded = server.resident_kb()
        files = machine.open_files(server.pids())
    finally:
        await load.stop()
    await asyncio.sleep(1.0)
    return {
        "fresh_mb": fresh / 1024,
        "idle_mb": idle / 1024,
        "kb_per_stream": (loaded - idle) / settings.open_streams,
        "open_files": float(files),
        "after_mb": server.resident_kb() / 1024,
        "files_after": float(machine.open_files(server.pids())),
        "errors": float(load.seen.errors),
    }


async def _started(load: Load, count: int) -> None:
    """Return when `count` streams have had their first token."""
    async with asyncio.timeout(60):
        while load.started < count:
            await load.run_for(0.01)


def _cold_start(peer: Peer, settings: Settings, _run: Run) -> Sample:
    """Workload g: from starting the process to the first 200, and the time of its import."""
    first: list[float] = []
    imports: list[float] = []
    code = f"import time; started = time.perf_counter(); {peer.imports}; print(time.perf_counter() - started)"
    for number in range(settings.starts + 1):
        begun = time.perf_counter()
        server = start(peer, settings.cores.server, "g", log=settings.log)
        try:
            server.wait_ready(payloads.echo_body(), poll=0.002)
            elapsed = time.perf_counter() - begun
        finally:
            server.stop()
        with machine.on_core(settings.cores.server):
            output = subprocess.run(
                [peer.command(0)[0], "-c", code],
                capture_output=True,
                check=True,
                text=True,
                timeout=120,
                env=peer.environ(),
            ).stdout
        if number:  # the first run warms the disk cache and writes .pyc files
            first.append(elapsed)
            imports.append(float(output.split()[-1]))
    return {
        "first_200_ms": _milliseconds(first, 0.5),
        "import_ms": _milliseconds(imports, 0.5),
    }


_JWT_FIRST_SIGHT = 40_000


def _jwt(peer: Peer, settings: Settings, run: Run) -> Sample:
    """Workload h: a, without authentication, with one token all the time, and with a new token each time."""
    body = payloads.echo_body()
    guarded = jwt_peer()
    fresh = iter([make_token(f"user-{number}") for number in range(_JWT_FIRST_SIGHT)])
    token = make_token("user")

    def bearer(server: Server, token: str) -> bytes:
        return http_request(server.peer.path, body, server.port, (("authorization", f"Bearer {token}"),))

    async def drive(server: Server, next_request: Callable[[], bytes]) -> Sample:
        expected = Expected(text=payloads.ECHO_TEXT.encode())
        load = Load(port=server.port, next_request=next_request, expected=expected)
        window = await _window(server, load, settings, 32)
        return {"per_cpu_s": _rate(load.seen.completed, window.cpu), "errors": float(load.seen.errors)}

    core = settings.cores.server
    with running(peer, core, body, "h", log=settings.log) as server:
        without = run(drive(server, _fixed(server, body)))
    headers = (("authorization", f"Bearer {token}"),)
    with running(guarded, core, body, "h", headers=headers, log=settings.log) as server:
        request = bearer(server, token)
        cached = run(drive(server, lambda: request))
        first_sight = run(drive(server, lambda: bearer(server, next(fresh))))
    return {
        "cached_of_open": cached["per_cpu_s"] / without["per_cpu_s"],
        "first_sight_of_open": first_sight["per_cpu_s"] / without["per_cpu_s"],
        "open_per_cpu_s": without["per_cpu_s"],
        "errors": without["errors"] + cached["errors"] + first_sight["errors"],
    }


_A = payloads.echo_body()
_E = payloads.history_body()
_EU = payloads.history_body(ascii_only=False)

WORKLOADS: dict[str, Workload] = {
    workload.key: workload
    for workload in (
        Workload("a", "non-stream echo, 32 connections, 600 B in, 200 characters out", _A, drive=_requests(32, _A)),
        Workload(
            "b",
            "burst of 200 tokens from an async generator, 16 connections",
            payloads.stream_body("burst"),
            drive=_tokens("burst", 16, agents.BURST_TOKENS),
        ),
        Workload(
            "b0",
            "200 tokens, each after a suspension: nothing to join, 16 connections",
            payloads.stream_body("trickle"),
            drive=_tokens("trickle", 16, agents.BURST_TOKENS),
        ),
        Workload("c", "50 tokens at 20 ms, 200 streams at once", payloads.stream_body("paced"), drive=_paced),
        Workload("d", "1000 open slow streams, memory", payloads.stream_body("burst"), drive=_open_streams),
        Workload("e", "1 MB history of 400 messages, 4 connections", _E, drive=_requests(4, _E)),
        Workload("eu", "the same with some Chinese in it", _EU, drive=_requests(4, _EU)),
        Workload(
            "f",
            "sync generator, 20 tokens at 10 ms, 100 connections",
            payloads.stream_body("sync"),
            drive=_tokens("sync", 100, agents.SYNC_TOKENS),
        ),
        Workload("g", "process start to first 200, and import", _A, whole=_cold_start),
        Workload("h", "JWT on every request", _A, whole=_jwt, only=frozenset({"ours"})),
    )
}
SYNC_IDEAL = 100 / ((agents.SYNC_TOKENS - 1) * agents.SYNC_INTERVAL)
"""Streams per second that 100 connections can get from an agent that blocks that long."""
