"""Results as markdown: the table of ratios, the absolute numbers behind it, and the targets."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import PEERS
from benchmarks.results import Results
from benchmarks.stats import Summary
from benchmarks.workloads import SYNC_IDEAL, WORKLOADS

__all__ = ["TARGETS", "Target", "missed_floors", "report"]

BASE = "raw"
MISSING = "-"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return MISSING
    if summary.count == 1:
        return _number(summary.median)
    return f"{_number(summary.median)} ({_number(summary.low)}..{_number(summary.high)})"


def _median(summary: Summary | None) -> str:
    return MISSING if summary is None else _number(summary.median)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


Column = Callable[[Results, str], str]


def _ratio(workload: str) -> Column:
    return lambda results, peer: _cell(results.ratio(workload, peer, BASE, "per_cpu_s"))


def _value(workload: str, metric: str) -> Column:
    return lambda results, peer: _cell(results.summary(workload, peer, metric))


def _medians(workload: str, *metrics: str) -> Column:
    return lambda results, peer: ", ".join(_median(results.summary(workload, peer, metric)) for metric in metrics)


COLUMNS: dict[str, list[tuple[str, Column]]] = {
    "a": [("(a) of raw", _ratio("a"))],
    "b": [("(b) of raw", _ratio("b")), ("(b) TTFT p50, p99 ms", _medians("b", "ttft_p50_ms", "ttft_p99_ms"))],
    "b0": [("(b0) of raw", _ratio("b0"))],
    "c": [
        ("(c) CPU µs/token", _value("c", "cpu_us_token")),
        ("(c) TTFT p50, p99 ms", _medians("c", "ttft_p50_ms", "ttft_p99_ms")),
        ("(c) gap p99 ms", _value("c", "gap_p99_ms")),
        ("(c) total of ideal", _medians("c", "total_of_ideal")),
    ],
    "d": [("(d) KB a stream", _value("d", "kb_per_stream")), ("(d) idle MB", _value("d", "idle_mb"))],
    "e": [("(e) of raw", _ratio("e"))],
    "eu": [("(eu) of raw", _ratio("eu"))],
    "f": [
        (f"(f) streams/s of {SYNC_IDEAL:.0f}", _value("f", "streams_per_s")),
        ("(f) CPU µs/token", _value("f", "cpu_us_token")),
    ],
    "g": [("(g) first 200 ms", _value("g", "first_200_ms")), ("(g) import ms", _value("g", "import_ms"))],
    "h": [
        ("(h) cached token, of no auth", _value("h", "cached_of_open")),
        ("(h) new token, of no auth", _value("h", "first_sight_of_open")),
    ],
}

_ABSOLUTE: dict[str, list[tuple[str, Column]]] = {
    key: [
        (f"({key}) {unit} per CPU-s", _value(key, "per_cpu_s")),
        (f"({key}) {unit} per s", _medians(key, "per_wall_s")),
        (f"({key}) busy server, client", _medians(key, "server_busy", "client_busy")),
    ]
    for key, unit in (
        ("a", "requests"),
        ("b", "tokens"),
        ("b0", "tokens"),
        ("c", "tokens"),
        ("e", "requests"),
    )
}


@dataclass(frozen=True)
class Target:
    """What this project wants to reach: the floor is guarded, the goal is aimed at."""

    workload: str
    text: str
    measure: Callable[[Results, str], Summary | None]
    floor: float
    goal: float
    at_least: bool = True
    """Whether more is better."""

    def verdict(self, value: float) -> str:
        """Return ``goal``, ``floor`` or ``missed``."""
        if self._holds(value, self.goal):
            return "goal"
        return "floor" if self._holds(value, self.floor) else "missed"

    def _holds(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit


def _of(base: str, workload: str, metric: str = "per_cpu_s") -> Callable[[Results, str], Summary | None]:
    return lambda results, peer: results.ratio(workload, peer, base, metric)


def _metric(workload: str, metric: str) -> Callable[[Results, str], Summary | None]:
    return lambda results, peer: results.summary(workload, peer, metric)


TARGETS: tuple[Target, ...] = (
    Target("a", "of raw", _of("raw", "a"), 0.45, 0.65),
    Target("a", "of FastAPI", _of("fastapi", "a"), 2.5, 3.5),
    Target("a", "of agentrun-sdk as shipped", _of("agentrun_sdk", "a"), 4, 6),
    Target("a", "of agentrun-sdk tuned", _of("agentrun_sdk-tuned", "a"), 2.5, 2.5),
    Target("b", "of raw", _of("raw", "b"), 3, 4),
    Target("b", "of FastAPI", _of("fastapi", "b"), 8, 10),
    Target("b", "of agentrun-sdk as shipped", _of("agentrun_sdk", "b"), 12, 20),
    Target("b0", "of raw", _of("raw", "b0"), 0.8, 0.95),
    Target("c", "CPU/token of raw", _of("raw", "c", "cpu_us_token"), 1.35, 1.15, at_least=False),
    Target("c", "CPU/token of agentrun-sdk", _of("agentrun_sdk", "c", "cpu_us_token"), 0.5, 0.5, at_least=False),
    Target("c", "TTFT p99 ms", _metric("c", "ttft_p99_ms"), 5, 2, at_least=False),
    Target("c", "gap p99 ms", _metric("c", "gap_p99_ms"), 23, 22, at_least=False),
    Target("c", "total of ideal", _metric("c", "total_of_ideal"), 1.03, 1.03, at_least=False),
    Target("d", "KB a stream", _metric("d", "kb_per_stream"), 22, 15, at_least=False),
    Target("d", "idle MB", _metric("d", "idle_mb"), 60, 40, at_least=False),
    Target("e", "of raw", _of("raw", "e"), 0.45, 0.6),
    Target("e", "of agentrun-sdk as shipped", _of("agentrun_sdk", "e"), 2.3, 3.5),
    Target("f", "streams/s", _metric("f", "streams_per_s"), 0.95 * SYNC_IDEAL, 0.95 * SYNC_IDEAL),
    Target("f", "CPU µs/token", _metric("f", "cpu_us_token"), float("inf"), 60, at_least=False),
    Target("f", "of FastAPI", _of("fastapi", "f", "streams_per_s"), 2.5, 2.5),
    Target("f", "of agentrun-sdk as shipped", _of("agentrun_sdk", "f", "streams_per_s"), 13, 13),
    Target("g", "first 200 ms", _metric("g", "first_200_ms"), 1100, 600, at_least=False),
    Target("g", "import ms", _metric("g", "import_ms"), 900, 350, at_least=False),
    Target("h", "cached token, of no auth", _metric("h", "cached_of_open"), 0.9, 0.95),
    Target("h", "new token, of no auth", _metric("h", "first_sight_of_open"), 0.4, 0.4),
)


def missed_floors(results: Results, peer: str = "ours") -> list[str]:
    """Return a sentence for each target whose floor the median does not reach."""
    lines = []
    for target in TARGETS:
        summary = target.measure(results, peer)
        if summary is not None and target.verdict(summary.median) == "missed":
            lines.append(f"({target.workload}) {target.text}: {_number(summary.median)}, floor {_number(target.floor)}")
    return lines


def _limit(target: Target, limit: float) -> str:
    if limit == float("inf"):
        return MISSING
    return f"{'≥' if target.at_least else '≤'} {_number(limit)}"


def _target_rows(results: Results, peer: str) -> list[list[str]]:
    rows = []
    for target in TARGETS:
        summary = target.measure(results, peer)
        if summary is None:
            continue
        limits = [_limit(target, target.floor), _limit(target, target.goal)]
        rows.append([f"({target.workload}) {target.text}", _cell(summary), *limits, target.verdict(summary.median)])
    return rows


def _columns(results: Results, columns: dict[str, list[tuple[str, Column]]]) -> list[tuple[str, Column]]:
    return [column for key in results.workloads() for column in columns.get(key, [])]


def _title(peer: str) -> str:
    return PEERS[peer].title if peer in PEERS else peer


def _peer_table(results: Results, columns: list[tuple[str, Column]]) -> list[str]:
    order = [peer for peer in PEERS if peer in results.peers()]
    rows = [[_title(peer), *(column(results, peer) for _, column in columns)] for peer in order]
    return _table(["server", *(head for head, _ in columns)], rows)


def report(results: Results, peer: str = "ours") -> str:
    """Return the whole report."""
    lines = [
        f"Medians of {results.rounds} rounds, lowest and highest in brackets. Throughput is per CPU-second.",
        "",
    ]
    lines += _peer_table(results, _columns(results, COLUMNS))
    absolute = _columns(results, _ABSOLUTE)
    if absolute:
        lines += ["", "Absolute numbers (they depend on the machine and on what else it was doing):", ""]
        lines += _peer_table(results, absolute)
    rows = _target_rows(results, peer)
    if rows:
        lines += ["", f"Targets of {_title(peer)}:", ""]
        lines += _table(["target", "measured", "floor", "goal", "reached"], rows)
    lines += ["", *(f"* ({key}) {WORKLOADS[key].title}" for key in results.workloads() if key in WORKLOADS)]
    swing = results.swing()
    if swing is not None:
        low, high = swing.low / swing.median, swing.high / swing.median
        lines += ["", f"Speed of the server's core over the run: {low:.2f}..{high:.2f} of its median."]
    others = results.others_busy()
    if others is not None:
        lines += [f"Other processes took {others.median:.0%} of it (at most {others.high:.0%})."]
    failures = results.failures()
    if failures:
        lines += ["", "Not measured, or measured with errors:", "", *(f"* {line}" for line in failures)]
    return "\n".join(lines) + "\n"
