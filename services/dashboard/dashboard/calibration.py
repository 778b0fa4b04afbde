"""Whether probabilities mean what they say: how often rain came when so much was said."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.tables import number

BINS = 10
Z95 = 1.959964


@dataclass(frozen=True)
class Calibration:
    """What a holdout says of a model's probabilities."""

    rows: int
    binary: bool
    """Whether the outcome is yes or no; with more classes there is the probability of the right one alone."""
    bins: list[dict[str, Any]]
    brier: float | None
    mean_right: dict[str, float]
    """With more classes: the mean probability that each contestant gave to the right one."""


def calibration(rows: Sequence[Mapping[str, Any]]) -> Calibration | None:
    """Judge the rows of `evaluation/holdout.json`; None where there are none to judge."""
    scored = [(row, number(row.get("model"))) for row in rows]
    usable = [(row, said) for row, said in scored if said is not None and row.get("observed") is not None]
    if not usable:
        return None
    outcomes = [number(row["observed"]) for row, _ in usable]
    contestants = [name for name in rows[0] if name not in ("time", "observed")]
    if set(outcomes) <= {0.0, 1.0} and len(set(outcomes)) == 2:
        pairs = [(said, outcome or 0.0) for (_, said), outcome in zip(usable, outcomes, strict=True)]
        brier = sum((said - outcome) ** 2 for said, outcome in pairs) / len(pairs)
        return Calibration(len(pairs), True, reliability(pairs), brier, {})
    right = {name: [number(row.get(name)) for row, _ in usable] for name in contestants}
    means = {name: _mean(value for value in values if value is not None) for name, values in right.items()}
    return Calibration(len(usable), False, histogram([said for _, said in usable]), None, means)


def reliability(pairs: Iterable[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return bins of equal width: the mean probability said, how often it came, and the 95 % interval of that."""
    grouped: dict[int, list[tuple[float, float]]] = {}
    for said, came in pairs:
        grouped.setdefault(bin_of(said), []).append((said, came))
    found = []
    for index, members in sorted(grouped.items()):
        came = sum(outcome for _, outcome in members)
        low, high = wilson(came, len(members))
        found.append(
            {
                "said": _mean(said for said, _ in members),
                "came": came / len(members),
                "low": low,
                "high": high,
                "rows": len(members),
                "from": index / BINS,
                "to": (index + 1) / BINS,
            }
        )
    return found


def histogram(values: Iterable[float]) -> list[dict[str, Any]]:
    """Return how many values fall into each of the bins of equal width."""
    counts = [0] * BINS
    for value in values:
        counts[bin_of(value)] += 1
    return [{"from": n / BINS, "to": (n + 1) / BINS, "rows": count} for n, count in enumerate(counts)]


def bin_of(value: float) -> int:
    """Return the bin of a probability; 1 belongs to the last."""
    return min(max(int(value * BINS), 0), BINS - 1)


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (E. B. Wilson, 1927)."""
    share, z2 = successes / trials, Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def _mean(values: Iterable[float]) -> float:
    all_values = list(values)
    return sum(all_values) / len(all_values) if all_values else math.nan
