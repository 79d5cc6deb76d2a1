"""The little arithmetic the report needs: medians, percentiles, and ratios taken within one round."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Summary", "percentile", "ratios", "summarise"]


@dataclass(frozen=True)
class Summary:
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Return the summary of the values that are there; None when none is."""
    present = sorted(value for value in values if value is not None)
    if not present:
        return None
    return Summary(statistics.median(present), present[0], present[-1], len(present))


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` (0 to 1) of the values lie, interpolated; None without values."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share}")
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def ratios(values: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Divide round by round; a round in which either side is missing, or the base is zero, is left out."""
    return [value / other for value, other in zip(values, base, strict=True) if value is not None and other]
