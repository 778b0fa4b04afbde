"""Calibration on the holdout: the observed frequency in bins of the predicted probability."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.conversions import to_number
from trainyard.contract import Column

BINS = 10
Z95 = 1.959964


@dataclass(frozen=True)
class Calibration:
    """A model's probabilities compared with the ground truth."""

    rows: int
    is_binary: bool
    """Whether the target is 0 or 1; with more classes, the predictions are the true class's probability."""
    bins: list[dict[str, Any]]
    mean_probability: dict[str, float]
    """With more classes: the mean probability of the true class, by predictor."""


def calibrate(rows: Sequence[Mapping[str, Any]]) -> Calibration | None:
    """Compare the probabilities of `Artifact.HOLDOUT` with the ground truth; None if it has no probabilities."""
    complete = [
        (row, prediction, to_number(row[Column.OBSERVED]))
        for row in rows
        if (prediction := to_number(row.get(Column.MODEL))) is not None and row.get(Column.OBSERVED) is not None
    ]
    if not complete or not all(0 <= prediction <= 1 for _, prediction, _ in complete):
        return None
    if any(observed is not None and not observed.is_integer() for _, _, observed in complete):
        return None  # a regression's target
    if {observed for _, _, observed in complete} == {0.0, 1.0}:
        pairs = [(prediction, observed or 0.0) for _, prediction, observed in complete]
        return Calibration(len(pairs), True, reliability_bins(pairs), {})
    predictors = [name for name in rows[0] if name not in (Column.TIME, Column.OBSERVED)]
    values = {name: [to_number(row.get(name)) for row, _, _ in complete] for name in predictors}
    means = {name: _mean(value for value in column if value is not None) for name, column in values.items()}
    return Calibration(len(complete), False, histogram(prediction for _, prediction, _ in complete), means)


def reliability_bins(pairs: Iterable[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return the bins of equal width that hold rows: mean probability, observed frequency and its 95 % interval.

    Args:
        pairs: Predicted probability, and 1 for the positive class or 0.
    """
    grouped: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        grouped.setdefault(bin_index(pair[0]), []).append(pair)
    bins = []
    for index, members in sorted(grouped.items()):
        positives = sum(observed for _, observed in members)
        low, high = wilson_interval(positives, len(members))
        bins.append(
            {
                "predicted": _mean(probability for probability, _ in members),
                "observed": positives / len(members),
                "low": low,
                "high": high,
                "rows": len(members),
                "from": index / BINS,
                "to": (index + 1) / BINS,
            }
        )
    return bins


def histogram(probabilities: Iterable[float]) -> list[dict[str, Any]]:
    """Return the count of probabilities in each bin of equal width."""
    counts = [0] * BINS
    for probability in probabilities:
        counts[bin_index(probability)] += 1
    return [{"from": n / BINS, "to": (n + 1) / BINS, "rows": count} for n, count in enumerate(counts)]


def bin_index(probability: float) -> int:
    """Return the bin of a probability; 1 belongs to the last."""
    return min(int(probability * BINS), BINS - 1)


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (E. B. Wilson, 1927)."""
    proportion, z2 = successes / trials, Z95**2
    center = (proportion + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = Z95 * math.sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, center - spread), min(1.0, center + spread)


def _mean(values: Iterable[float]) -> float:
    all_values = list(values)
    return sum(all_values) / len(all_values) if all_values else math.nan
