"""The samples of a run: kept, written as JSON, looked up for the report."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.stats import Summary, ratios, summarise

__all__ = ["Record", "Results"]


@dataclass(frozen=True)
class Record:
    """One sample: a workload against a freshly started peer in one round; or why there is none."""

    round: int
    workload: str
    peer: str
    sample: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    core_speed: float = 0.0
    """Speed of the server's core just before, see `machine.speed`: tells how much the machine swings."""


@dataclass
class Results:
    """Everything one run brought."""

    rounds: int
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def measured_rounds(self) -> int:
        """Return the number of rounds that were begun."""
        return max((record.round + 1 for record in self.records), default=0)

    def values(self, workload: str, peer: str, metric: str) -> list[float | None]:
        """Return the metric of each round, None where there is none."""
        found: list[float | None] = [None] * self.rounds
        for record in self.records:
            if (record.workload, record.peer) == (workload, peer):
                value = record.sample.get(metric)
                found[record.round] = None if value is None or math.isnan(value) else value
        return found

    def summary(self, workload: str, peer: str, metric: str) -> Summary | None:
        return summarise(self.values(workload, peer, metric))

    def ratio(self, workload: str, peer: str, base: str, metric: str) -> Summary | None:
        """Return the ratio to `base`, taken within each round."""
        return summarise(ratios(self.values(workload, peer, metric), self.values(workload, base, metric)))

    def failures(self) -> list[str]:
        """Return a sentence for each sample that is missing or holds wrong answers."""
        lines = [
            f"({record.workload}) {record.peer}, round {record.round + 1}: {record.failure}"
            for record in self.records
            if record.failure
        ]
        lines += [
            f"({record.workload}) {record.peer}, round {record.round + 1}: {errors:.0f} wrong answers"
            for record in self.records
            if (errors := record.sample.get("errors", 0))
        ]
        return lines

    def swing(self) -> Summary | None:
        """Return how fast the server's core was over the run."""
        return summarise(record.core_speed for record in self.records if record.core_speed)

    def others_busy(self) -> Summary | None:
        """Return the share of the server's core that went to other processes while servers were measured."""
        return summarise(record.sample.get("others_busy") for record in self.records)

    def peers(self) -> list[str]:
        return list(dict.fromkeys(record.peer for record in sorted(self.records, key=lambda record: record.round)))

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(record.workload for record in self.records))

    def write(self, path: Path) -> None:
        """Write everything as JSON; what is not a number becomes null."""
        data = asdict(self)
        for record in data["records"]:
            record["sample"] = {
                key: None if math.isnan(value) else round(value, 6) for key, value in record["sample"].items()
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        records = []
        for record in data.pop("records"):
            sample = {key: value for key, value in record.pop("sample").items() if value is not None}
            records.append(Record(sample=sample, **record))
        return cls(records=records, **data)
