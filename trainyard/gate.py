"""The promotion gate: whether a candidate replaces the champion.

The two are compared by their losses on the same rows of a holdout, which neither was fitted on. A candidate is promoted
if its mean loss is lower by what matters and by more than chance explains: the improvement reaches `min_improvement`, and
its one-sided confidence bound excludes zero.
For independent rows the bound is that of Student's paired t-test, for a series that of the test of Diebold and Mariano
(Comparing Predictive Accuracy, JBES 13, 1995) with the Newey-West variance and the correction for short series of
Harvey, Leybourne and Newbold (Testing the Equality of Prediction Mean Squared Errors, IJF 13, 1997).

A holdout that is used again and again promotes noise sooner or later, so that each use costs significance
(`significance_of`), a form of alpha spending (Lan and DeMets, Biometrika 70, 1983). What people change deliberately, a
new recipe, is given the benefit of the doubt; the daily retraining of the champion's own recipe is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import t as student_t

EPSILON = 1e-9
"""A smaller difference between two scores is none: a candidate that is only as good is never promoted."""
COMPARISONS_AT_ONE_LEVEL = 7
"""A week of daily comparisons shares nearly all rows, so that they are tested at one level."""


class Thresholds(BaseModel):
    """What a candidate must reach on the holdout; Prefect's UI shows them as a form."""

    model_config = ConfigDict(frozen=True)

    min_improvement: Annotated[float, Field(ge=0, le=1)] = 0.001
    """How much better than the champion's score it must be, in the loss's own unit, besides being significant."""

    min_skill: Annotated[float, Field(ge=-1, lt=1)] = 0.0
    """How much better than the baseline's score it must be, as a share of it; a negative share lets it be worse."""

    significance: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """The level of the test of a new recipe: the chance that one which is only as good is promoted."""

    retrained_significance: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """The level of the test of the champion's own recipe, fitted again."""

    force: bool = False
    """Promote whatever beats the baselines, also an equal model: for drills, and after a correction of the data."""


@dataclass(frozen=True)
class Reuse:
    """How often holdouts have been used against one champion, the comparison at hand included."""

    comparisons: int = 1
    """Of candidates of this recipe."""
    recipes: int = 1
    """Recipes compared so far, in the order of their first comparison, up to this one."""
    is_champions_recipe: bool = False


FIRST_USE = Reuse()


class Decision(BaseModel):
    """The gate's decision, with its reason in one sentence."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reason: str


@dataclass(frozen=True)
class Improvement:
    """The mean of paired differences of losses, champion minus candidate, and its standard error."""

    mean: float
    standard_error: float
    rows: int

    def lower_bound(self, significance: float) -> float:
        """Return the one-sided confidence bound: the improvement exceeds it with probability 1 - significance."""
        return self.mean - float(student_t.isf(significance, self.rows - 1)) * self.standard_error


def significance_of(thresholds: Thresholds, reuse: Reuse) -> float:
    """Return the level at which a comparison is tested.

    The n-th new recipe against one champion is tested at `significance` / n. The champion's own recipe is tested at
    `retrained_significance`. In the w-th week of comparisons of a recipe the level is divided by w squared, so that the
    levels of all weeks add up to less than twice the first (pi squared / 6).
    """
    level = thresholds.retrained_significance if reuse.is_champions_recipe else thresholds.significance / reuse.recipes
    return level / ceil(reuse.comparisons / COMPARISONS_AT_ONE_LEVEL) ** 2


def measure_improvement(candidate: ArrayLike, champion: ArrayLike, *, is_series: bool = False) -> Improvement:
    """Return the improvement of a candidate over the champion.

    Args:
        candidate: The candidate's loss for each row, in the order of time for a series.
        champion: The champion's, for the same rows.
        is_series: Whether neighbouring rows depend on each other.

    Raises:
        ValueError: There are fewer than two rows, or the losses are not of the same rows.
    """
    difference: NDArray[np.float64] = np.asarray(champion, dtype=float) - np.asarray(candidate, dtype=float)
    rows = len(difference)
    if rows < 2 or difference.ndim != 1:
        raise ValueError(f"A comparison needs a list of at least two losses, not an array of shape {difference.shape}.")
    mean = float(difference.mean())
    if not is_series:
        return Improvement(mean, float(difference.std(ddof=1)) / sqrt(rows), rows)
    lags = min(int(4 * (rows / 100) ** (2 / 9)), rows - 1)  # Newey and West, Econometrica 55, 1987
    return Improvement(mean, sqrt(_long_run_variance(difference - mean, lags) / rows) / _correction(rows, lags), rows)


def _long_run_variance(centred: NDArray[np.float64], lags: int) -> float:
    """Return the variance of a series' mean times its length, with Bartlett's weights, which keep it positive."""
    rows = len(centred)
    covariances = [float(centred[lag:] @ centred[: rows - lag]) / rows for lag in range(lags + 1)]
    weighted = sum((1 - lag / (lags + 1)) * covariance for lag, covariance in enumerate(covariances) if lag)
    return max(covariances[0] + 2 * weighted, 0.0)


def _correction(rows: int, lags: int) -> float:
    """Return the factor by which Harvey, Leybourne and Newbold shrink the statistic of a short series."""
    horizon = lags + 1
    return sqrt(max(rows + 1 - 2 * horizon + horizon * (horizon - 1) / rows, 1) / rows)


def decide(
    metric: str,
    candidate: ArrayLike,
    baselines: Mapping[str, ArrayLike],
    champion: ArrayLike | None,
    thresholds: Thresholds,
    reuse: Reuse = FIRST_USE,
    *,
    is_series: bool = False,
    exception: Decision | None = None,
) -> Decision:
    """Decide whether a candidate becomes the champion.

    Args:
        metric: The name of the mean loss, such as `brier`.
        candidate: The candidate's loss for each row of the holdout; lower is better.
        baselines: The baselines' losses for the same rows, by name; the best of them counts.
        champion: The current champion's losses for the same rows; None without a champion, or with an exception.
        thresholds: What the candidate must reach.
        reuse: How often the champion has been compared already.
        is_series: Whether neighbouring rows depend on each other, as those of consecutive days do.
        exception: The decision where the champion cannot be compared; a candidate that does not beat the baselines is
            refused nevertheless.
    """
    score, (baseline_name, baseline) = _mean(candidate), _best(baselines)
    floor = baseline - thresholds.min_skill * abs(baseline)
    shown = f"{metric} {score:.4f}"
    if not score <= floor:
        reason = f"{shown} does not reach {floor:.4f} (baseline {baseline_name} {baseline:.4f})."
        return Decision(promote=False, reason=reason)
    if thresholds.force:
        return Decision(promote=True, reason=f"{shown}; promoted without a comparison, because the run forces it.")
    if exception is not None:
        return exception
    if champion is None:
        return Decision(promote=True, reason=f"{shown}; the baseline has {baseline:.4f}, and there was no champion.")
    improvement = measure_improvement(candidate, champion, is_series=is_series)
    significance = significance_of(thresholds, reuse)
    bound, required = improvement.lower_bound(significance), max(thresholds.min_improvement, EPSILON)
    is_better = isfinite(bound) and bound > 0 and improvement.mean >= required
    comparison = f"{shown} against the champion's {_mean(champion):.4f} on the same holdout"
    measured = (
        f"an improvement of {improvement.mean:.4f}, at least {bound:.4f} with {_percent(1 - significance)} confidence"
    )
    if is_better:
        return Decision(promote=True, reason=f"{comparison}: {measured}.")
    missing = f"it must be better by {thresholds.min_improvement:g}, and by more than 0 with that confidence"
    return Decision(promote=False, reason=f"{comparison}: {measured}; {missing}.")


def _mean(losses: ArrayLike) -> float:
    return float(np.mean(np.asarray(losses, dtype=float)))


def _best(baselines: Mapping[str, Any]) -> tuple[str, float]:
    means = {name: _mean(losses) for name, losses in baselines.items()}
    # Not a number is the best of all: nothing reaches it.
    best = min(means, key=lambda name: means[name] if isfinite(means[name]) else -np.inf)
    return best, means[best]


def _percent(share: float) -> str:
    return f"{100 * share:.4f}".rstrip("0").rstrip(".") + " %"
