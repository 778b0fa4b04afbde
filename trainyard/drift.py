"""Compare recent rows with the rows that a model was fitted on.

A column has drifted if the difference is both large and significant: the population stability index (PSI) is at least
`MIN_PSI`, and a two-sample test (Kolmogorov-Smirnov for numbers, chi-squared for categories) rejects at `SIGNIFICANCE`
with Bonferroni's correction for the number of columns. PSI alone is large by chance in small samples, and a test alone
rejects negligible differences in large ones.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy.stats import chi2_contingency, ks_2samp

MIN_PSI = 0.2
"""A significant shift according to Siddiqi, Credit Risk Scorecards, 2006."""
SIGNIFICANCE = 0.01
BINS = 10
SEASON_HALF_WIDTHS_DAYS = (7, 15, 30, 60)
MIN_SEASON_ROWS = 100


@dataclass(frozen=True)
class Shift:
    """The drift of a column; the fields are `contract.DRIFT_COLUMNS`."""

    column: str
    psi: float
    statistic: float
    """Of the two-sample test, as `p_value`."""
    p_value: float
    training_mean: float | None
    """None for categories, as `recent_mean`."""
    recent_mean: float | None
    drifted: bool


def compare(training: pd.DataFrame, recent: pd.DataFrame) -> list[Shift]:
    """Return the shift of each column that both frames have, largest PSI first.

    Raises:
        ValueError: The frames share no column, or one has no rows.
    """
    shared = [name for name in training.columns if name in recent.columns]
    if not shared or training.empty or recent.empty:
        raise ValueError("There is nothing to compare: the frames need rows and a column in common.")
    shifts = [_shift(name, training[name], recent[name], SIGNIFICANCE / len(shared)) for name in shared]
    return sorted(shifts, key=lambda shift: -shift.psi)


def psi(training: pd.Series, recent: pd.Series) -> float:
    """Return the population stability index: sum of (recent - training) * ln(recent / training) over bins.

    Numbers are binned by deciles of the training rows; each category is a bin of its own. Half a row is added to each
    bin, so that an empty bin does not make the sum infinite.
    """
    smoothed = [np.asarray(counts, dtype=float) + 0.5 for counts in _bin_counts(training, recent)]
    expected, actual = (counts / counts.sum() for counts in smoothed)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def same_season(training: pd.DataFrame, time: str, recent: pd.DatetimeIndex) -> pd.DataFrame:
    """Return the training rows of the same time of the year as recent rows.

    A month of rows would differ from whole years by the season alone. The season is the narrowest with at least
    `MIN_SEASON_ROWS` rows. All rows are returned if there is none, or if a row has no time.

    Args:
        training: Rows with a column of times (ISO 8601, may be empty).
        time: The column's name.
        recent: The times that the recent rows are about.
    """
    moments = pd.to_datetime(training[time], errors="coerce", format="ISO8601", utc=True)
    if moments.isna().any() or not len(recent):
        return training
    offsets = np.abs(moments.dt.day_of_year.to_numpy()[:, None] - np.unique(recent.day_of_year.to_numpy())[None, :])
    distance = np.minimum(offsets, 366 - offsets).min(axis=1)
    seasons = (training[distance <= half_width] for half_width in SEASON_HALF_WIDTHS_DAYS)
    return next((season for season in seasons if len(season) >= MIN_SEASON_ROWS), training)


def _shift(name: str, training: pd.Series, recent: pd.Series, significance: float) -> Shift:
    index = psi(training, recent)
    training_mean = recent_mean = None
    if _are_numbers(training, recent):
        test = ks_2samp(training.astype(float), recent.astype(float))
        statistic, p_value = float(test.statistic), float(test.pvalue)
        training_mean, recent_mean = float(training.mean()), float(recent.mean())
    else:
        counts = np.asarray(_bin_counts(training, recent))
        # The test needs two categories.
        contingency = chi2_contingency(counts) if counts.shape[1] > 1 else None
        statistic, p_value = (float(contingency.statistic), float(contingency.pvalue)) if contingency else (0.0, 1.0)
    drifted = index >= MIN_PSI and p_value < significance
    return Shift(name, index, statistic, p_value, training_mean, recent_mean, drifted)


def _are_numbers(*columns: pd.Series) -> bool:
    return all(is_numeric_dtype(column) or is_bool_dtype(column) for column in columns)


def _bin_counts(training: pd.Series, recent: pd.Series) -> tuple[list[float], list[float]]:
    """Return the number of rows in each bin, of both frames."""
    if _are_numbers(training, recent) and training.nunique() > BINS:
        edges = np.unique(np.quantile(training.astype(float), np.linspace(0, 1, BINS + 1)[1:-1]))
        bins = [np.searchsorted(edges, column.astype(float), side="right") for column in (training, recent)]
        counts = [np.bincount(each, minlength=len(edges) + 1).astype(float).tolist() for each in bins]
    else:
        categories = sorted(set(training) | set(recent), key=str)
        counts = [
            column.value_counts().reindex(categories, fill_value=0).astype(float).tolist()
            for column in (training, recent)
        ]
    return counts[0], counts[1]
