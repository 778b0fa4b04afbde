"""Whether recent rows look like those that a model was fitted on.

A column has drifted if the difference is both large and not chance: the population stability index (PSI)
is at least `PSI_LIMIT`, and a two-sample test (Kolmogorov-Smirnov for numbers, chi-squared for the rest)
rejects at `SIGNIFICANCE`, shared out over the columns (Bonferroni). The index alone is large by chance where
rows are few, and the test alone finds every trifle where they are many.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy.stats import chi2_contingency, ks_2samp

PSI_LIMIT = 0.2
"""From which the literature calls a shift significant (Siddiqi, Credit Risk Scorecards, 2006)."""
SIGNIFICANCE = 0.01
BINS = 10
HALF_SEASONS_DAYS = (7, 15, 30, 60)
SEASON_ROWS = 100


@dataclass(frozen=True)
class Shift:
    """How a column has moved; `statistic` and `p_value` are of the test, means are of numbers only."""

    column: str
    psi: float
    statistic: float
    p_value: float
    training_mean: float | None
    recent_mean: float | None
    drifted: bool


def compare(training: pd.DataFrame, recent: pd.DataFrame) -> list[Shift]:
    """Return a shift for each column that both frames have, the largest PSI first.

    Raises:
        ValueError: They share no column, or one has no rows.
    """
    shared = [name for name in training.columns if name in recent.columns]
    if not shared or training.empty or recent.empty:
        raise ValueError("There is nothing to compare: the frames need rows and a column that both have.")
    shifts = [_shift(name, training[name], recent[name], SIGNIFICANCE / len(shared)) for name in shared]
    return sorted(shifts, key=lambda shift: -shift.psi)


def psi(training: pd.Series, recent: pd.Series) -> float:
    """Return the population stability index: sum of (recent - training) * ln(recent / training) over bins.

    Numbers are binned by deciles of the training rows, other values stand for themselves. Half a row more
    in each bin keeps an empty one from making the sum infinite.
    """
    counts = [np.asarray(side, dtype=float) + 0.5 for side in _counts(training, recent)]
    expected, found = (side / side.sum() for side in counts)
    return float(((found - expected) * np.log(found / expected)).sum())


def same_season(training: pd.DataFrame, time: str, days: pd.DatetimeIndex) -> pd.DataFrame:
    """Return the training rows from the same time of the year as some days.

    A month of rows compared with whole years would differ by the season alone. The season is as narrow as
    leaves SEASON_ROWS rows; all are returned where that is not enough, or they do not say their days.

    Args:
        training: Rows with a column that holds dates, or nothing.
        time: The column's name.
        days: The days that recent rows are about.
    """
    moments = pd.to_datetime(training[time], errors="coerce")
    if moments.isna().any() or not len(days):
        return training
    distance = np.abs(moments.dt.day_of_year.to_numpy()[:, None] - np.unique(days.day_of_year.to_numpy())[None, :])
    away = np.minimum(distance, 366 - distance).min(axis=1)
    narrow = (training[away <= half] for half in HALF_SEASONS_DAYS)
    return next((near for near in narrow if len(near) >= SEASON_ROWS), training)


def _shift(name: str, training: pd.Series, recent: pd.Series, significance: float) -> Shift:
    index = psi(training, recent)
    if numbers := _are_numbers(training, recent):
        test = ks_2samp(training.astype(float), recent.astype(float))
        statistic, p_value = float(test.statistic), float(test.pvalue)
    else:
        table = np.asarray(_counts(training, recent))
        found = chi2_contingency(table) if table.shape[1] > 1 else None
        statistic, p_value = (float(found.statistic), float(found.pvalue)) if found else (0.0, 1.0)
    before, now = (float(training.mean()), float(recent.mean())) if numbers else (None, None)
    return Shift(name, index, statistic, p_value, before, now, index >= PSI_LIMIT and p_value < significance)


def _are_numbers(*columns: pd.Series) -> bool:
    return all(is_numeric_dtype(column) or is_bool_dtype(column) for column in columns)


def _counts(training: pd.Series, recent: pd.Series) -> tuple[list[float], list[float]]:
    """Return how many rows of each side fall into each bin."""
    if _are_numbers(training, recent) and training.nunique() > BINS:
        edges = np.unique(np.quantile(training.astype(float), np.linspace(0, 1, BINS + 1)[1:-1]))
        places = (np.searchsorted(edges, side.astype(float), side="right") for side in (training, recent))
        binned = [np.bincount(place, minlength=len(edges) + 1).astype(float).tolist() for place in places]
        return binned[0], binned[1]
    values = sorted(set(training) | set(recent), key=str)
    counted = [side.value_counts().reindex(values, fill_value=0).astype(float).tolist() for side in (training, recent)]
    return counted[0], counted[1]
