"""Compare recent rows with the rows that a model was fitted on.

A column has drifted for one of three reasons, each of which must be both large and unlikely to be chance:

- Missing: recent rows have more nulls than training rows.
- Outside: recent values lie beyond the training range, or are categories that training rows do not have.
- Distribution: days are charted where rows are about days (`trainyard.control`); other rows are taken as independent, and
  the population stability index (PSI) must be at least `MIN_PSI` and a two-sample test (Kolmogorov-Smirnov for numbers,
  chi-squared for categories) reject.

A champion is looked at every day, so the significance of a test is divided by the columns and the looks of a season.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from scipy.stats import binom, chi2_contingency, ks_2samp

from trainyard.control import Deviation
from trainyard.skill import FALSE_ALARM_RATE, LOOKS

MIN_PSI = 0.2
"""A significant shift according to Siddiqi, Credit Risk Scorecards, 2006."""
SIGNIFICANCE = FALSE_ALARM_RATE / LOOKS
"""Of all columns in one look."""
MIN_SHARE_RISE = 0.2
"""By how much the share of nulls, or of values outside, must exceed that of the training rows."""
RANGE_MARGIN = 0.1
"""Share of the training range by which values must be beyond it."""
MIN_TESTED_ROWS = 5
BINS = 10
SEASON_HALF_WIDTHS_DAYS = (7, 15, 30, 60)
MIN_SEASON_ROWS = 100


NULLS, OUTSIDE, DISTRIBUTION = "nulls", "outside", "distribution"


@dataclass(frozen=True)
class Shift:
    """The drift of a column; the fields but the last are `contract.DRIFT_COLUMNS`."""

    column: str
    psi: float
    statistic: float
    """Of the test, as `p_value`."""
    p_value: float
    training_mean: float | None
    """None for categories, as `recent_mean`."""
    recent_mean: float | None
    drifted: bool
    training_nulls: float = 0.0
    """A share of the rows, as `recent_nulls` and `outside`."""
    recent_nulls: float = 0.0
    outside: float = 0.0
    """Recent values beyond the training range, or in categories that training rows do not have."""
    test: str = ""
    """`Kolmogorov-Smirnov`, `chi-squared` or `control chart`."""
    reason: str = ""
    """Why the column has drifted, or empty."""
    kinds: tuple[str, ...] = ()
    """The same by `NULLS`, `OUTSIDE` and `DISTRIBUTION`."""


def compare(
    training: pd.DataFrame,
    recent: pd.DataFrame,
    *,
    sample: pd.DataFrame | None = None,
    deviations: Mapping[str, Deviation] | None = None,
) -> list[Shift]:
    """Return the shift of each column that both frames have, drifted ones and the largest PSI first.

    Args:
        training: The rows whose distribution is compared, such as those of the same season.
        recent: Recent rows.
        sample: All rows of the training, for nulls and ranges; without it, `training`.
        deviations: The columns' control charts, in place of two-sample tests.

    Raises:
        ValueError: The frames share no column, or one has no rows.
    """
    shared = [name for name in training.columns if name in recent.columns]
    if not shared or training.empty or recent.empty:
        raise ValueError("There is nothing to compare: the frames need rows and a column in common.")
    everything = training if sample is None else sample
    shifts = [
        _shift(name, training[name], recent[name], everything[name], SIGNIFICANCE / len(shared), deviations)
        for name in shared
    ]
    return sorted(shifts, key=lambda shift: (not shift.drifted, -shift.psi))


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


def _shift(
    name: str,
    training: pd.Series,
    recent: pd.Series,
    sample: pd.Series,
    significance: float,
    deviations: Mapping[str, Deviation] | None,
) -> Shift:
    nulls, recent_nulls = float(sample.isna().mean()), float(recent.isna().mean())
    known, now = sample.dropna(), recent.dropna()
    outside = float(_is_outside(known, now).mean()) if len(known) and len(now) else 0.0
    reasons: dict[str, str] = {}
    if _is_rise(int(sample.isna().sum()), len(sample), int(recent.isna().sum()), len(recent), significance):
        reasons[NULLS] = f"{recent_nulls:.0%} null, in training {nulls:.0%}"
    if _is_rise(0, len(known), round(outside * len(now)), len(now), significance):
        what = "outside the training range" if _are_numbers(known, now) else "unseen"
        reasons[OUTSIDE] = f"{outside:.0%} {what}"
    training, index = training.dropna(), 0.0
    means: tuple[float | None, float | None] = (None, None)
    test, statistic, p_value = "", 0.0, 1.0
    if len(training) and len(now):
        index = psi(training, now)
        if _are_numbers(training, now):
            means = float(training.mean()), float(now.mean())
        if deviations is None and len(now) >= MIN_TESTED_ROWS:
            test, statistic, p_value = _test(training, now)
            if index >= MIN_PSI and p_value < significance:
                reasons[DISTRIBUTION] = "another distribution"
    if deviation := (deviations or {}).get(name):
        test, statistic, p_value = "control chart", deviation.value, deviation.p_value
        if deviation.is_out_of_control and recent_nulls < 1:
            allowed = f"{deviation.limit:.1f} allowed"
            reasons[DISTRIBUTION] = f"{deviation.value:.1f} standard deviations from training, {allowed}"
    return Shift(
        name,
        index,
        statistic,
        p_value,
        *means,
        drifted=bool(reasons),
        training_nulls=nulls,
        recent_nulls=recent_nulls,
        outside=outside,
        test=test,
        reason="; ".join(reasons.values()),
        kinds=tuple(reasons),
    )


def _is_rise(training: int, training_rows: int, recent: int, recent_rows: int, significance: float) -> bool:
    """Return whether a share has risen: a binomial test against the training's share, with one event added to it."""
    if not recent or not training_rows or recent / recent_rows < training / training_rows + MIN_SHARE_RISE:
        return False
    return float(binom.sf(recent - 1, recent_rows, (training + 1) / (training_rows + 2))) < significance


def _is_outside(training: pd.Series, recent: pd.Series) -> pd.Series:
    """Return which recent values no training row is near; both have no nulls."""
    if not _are_numbers(training, recent) or training.nunique() <= BINS:
        return ~recent.isin(training.unique())
    low, high = float(training.min()), float(training.max())
    margin = RANGE_MARGIN * (high - low)
    return ~recent.astype(float).between(low - margin, high + margin)


def _test(training: pd.Series, recent: pd.Series) -> tuple[str, float, float]:
    """Return the name, the statistic and the p-value of the two-sample test."""
    if _are_numbers(training, recent):
        test = ks_2samp(training.astype(float), recent.astype(float))
        return "Kolmogorov-Smirnov", float(test.statistic), float(test.pvalue)
    counts = np.asarray(_bin_counts(training, recent))
    # The test needs two categories.
    contingency = chi2_contingency(counts) if counts.shape[1] > 1 else None
    statistic, p_value = (float(contingency.statistic), float(contingency.pvalue)) if contingency else (0.0, 1.0)
    return "chi-squared", statistic, p_value


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
