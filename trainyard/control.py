"""Control charts of daily inputs: whether recent days are unlike any days that the model was fitted on.

The rows of consecutive days depend on each other, more so where a feature is a rolling mean, so that no test of
independent rows keeps its false alarm rate. The training sample itself says how far the mean of a week or a month
strays: each of its weeks and months is charted like the recent one, and a recent mean must exceed all of them by a margin.

A column is charted twice: after its season, and after its season and the other columns of the same row, which shows a
change that the season's spread would hide (Hawkins, Multivariate quality control based on regression-adjusted
variables, Technometrics 33, 1991). What moves slowly, such as a share of the last 30 days, strays far in any week; a fault shows
in its change from one day to the next, which is charted too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from trainyard.contract import Column

Floats = NDArray[np.float64]

WINDOWS_DAYS = (7, 30)
MIN_DAYS = 5
"""Fewer recent days are not charted."""
MIN_TRAINING_DAYS = 200
MIN_SEASON_DAYS = 300
MIN_DEVIATION = 4.2
"""Standard deviations of a window's mean that no column may need less than: for 60 charts in 90 daily looks, a
probability of 0.05 in all under a normal distribution."""
LIMIT_MARGIN = 1.1
"""By how much a recent mean must exceed both: the largest of a few years is an estimate, and the means of skewed columns have
heavier tails than a normal distribution. Simulated in `bench/monitor.py`."""
JUMP_MARGIN = 2.0
"""The same for the change from one day to the next: live inputs are made of forecasts that the next day may correct."""
MIN_SPREAD = 0.05
"""In standard deviations of the column: a smaller spread of the means counts as this one, so that no negligible change
of a column that depends on others exactly is drift."""
MAX_CATEGORIES = 20
SECONDS_OF_A_DAY = 86_400
SEED = 0


@dataclass(frozen=True)
class Deviation:
    """How far the recent mean of a column is from its training days; of all its charts, the one nearest to its limit."""

    value: float
    """In standard deviations of the mean of as many days."""
    limit: float
    p_value: float
    """Share of the training's windows that stray as far."""

    @property
    def share_of_limit(self) -> float:
        """The value in units of its limit."""
        return self.value / self.limit

    @property
    def is_out_of_control(self) -> bool:
        """Whether it exceeds its limit."""
        return self.value > self.limit


def can_chart(training_days: pd.DatetimeIndex, recent_days: pd.DatetimeIndex) -> bool:
    """Return whether there are enough days; rows without a day (NaT) cannot be charted."""
    if training_days.hasnans or recent_days.hasnans:
        return False
    return training_days.nunique() >= MIN_TRAINING_DAYS and recent_days.nunique() >= MIN_DAYS


class InputCharts:
    """The charts of all columns that vary in training.

    Missing values count as the training mean; they are another check's.
    """

    def __init__(self, training: pd.DataFrame, days: pd.DatetimeIndex, rows_a_day: int) -> None:
        """Fit the charts.

        Args:
            training: The rows that the model was fitted on.
            days: Their days.
            rows_a_day: How many rows a recent day has.
        """
        chosen = _limit_rows(days, rows_a_day)
        days = days[chosen]
        self._has_season = days.day_of_year.nunique() >= MIN_SEASON_DAYS
        self._encoder = Encoder.fit(training.iloc[chosen])
        numbers, owners = self._encoder.encode(training.iloc[chosen]), self._encoder.owners
        self._charts: list[tuple[str, int, list[int], Floats, Windows]] = []
        """Owner, number, regressors, their weights, and the windows of the errors in training."""
        self._jumps: list[tuple[str, int, Jumps]] = []
        """Owner, number, and the changes from day to day in training."""
        design, day_means = _season(days, self._has_season), DayMeans(days)
        for number, owner in enumerate(owners):
            # A prediction depends on the inputs by the model itself.
            others = [n for n, name in enumerate(owners) if name != owner and Column.PREDICTION not in (name, owner)]
            changes = day_means.changes(numbers[:, number])
            if len(changes) >= MIN_TRAINING_DAYS:
                self._jumps.append((owner, number, Jumps(changes)))
            for regressors in [[], others] if others else [[]]:
                x = np.hstack([design, numbers[:, regressors]])
                weights = np.asarray(np.linalg.lstsq(x, numbers[:, number], rcond=1e-8)[0], dtype=np.float64)
                errors = day_means.of(numbers[:, number] - x @ weights)
                self._charts.append((owner, number, regressors, weights, Windows(errors)))

    def deviations(self, recent: pd.DataFrame, days: pd.DatetimeIndex) -> dict[str, Deviation]:
        """Return the deviation of each column from the training's days.

        Args:
            recent: Recent rows with the same columns.
            days: Their days.
        """
        numbers, design, day_means = self._encoder.encode(recent), _season(days, self._has_season), DayMeans(days)
        deviations = [
            (
                owner,
                windows.deviation(day_means.of(numbers[:, number] - np.hstack([design, numbers[:, others]]) @ weights)),
            )
            for owner, number, others, weights, windows in self._charts
        ]
        for owner, number, jumps in self._jumps:
            changes = day_means.changes(numbers[:, number])[-min(WINDOWS_DAYS) :]
            if len(changes) and recent[owner].notna().all():
                deviations.append((owner, jumps.deviation(changes)))
        found: dict[str, Deviation] = {}
        for owner, deviation in deviations:
            if owner not in found or deviation.share_of_limit > found[owner].share_of_limit:
                found[owner] = deviation
        return found


class Windows:
    """How far the means of consecutive days of training stray from 0."""

    def __init__(self, training: Floats) -> None:
        self._sums = np.concatenate([[0.0], np.cumsum(training)])
        self._means: dict[int, tuple[Floats, float]] = {}
        """By the number of days: the means' distances from 0 in order, and their spread."""

    def deviation(self, recent: Floats) -> Deviation:
        """Return the deviation of the last days' mean, of all windows the one nearest to its limit."""
        found = []
        for size in {min(days, len(recent)) for days in WINDOWS_DAYS}:
            if size not in self._means:
                means = (self._sums[size:] - self._sums[:-size]) / size
                self._means[size] = np.sort(np.abs(means)), max(float(means.std()), MIN_SPREAD)
            distances, spread = self._means[size]
            mean = float(abs(recent[-size:].mean()))
            p_value = (1 + len(distances) - int(np.searchsorted(distances, mean))) / (1 + len(distances))
            limit = LIMIT_MARGIN * max(MIN_DEVIATION, float(distances[-1]) / spread)
            found.append(Deviation(mean / spread, limit, p_value))
        return max(found, key=lambda deviation: deviation.share_of_limit)


class Jumps:
    """How much a day's mean changes to the next in training."""

    def __init__(self, training: Floats) -> None:
        self._distances, self._spread = np.sort(np.abs(training)), max(float(training.std()), MIN_SPREAD)

    def deviation(self, recent: Floats) -> Deviation:
        """Return the deviation of the largest of some changes."""
        jump = float(np.abs(recent).max())
        larger = len(self._distances) - int(np.searchsorted(self._distances, jump))
        limit = max(MIN_DEVIATION, JUMP_MARGIN * float(self._distances[-1]) / self._spread)
        return Deviation(jump / self._spread, limit, (1 + larger) / (1 + len(self._distances)))


class DayMeans:
    """Means of rows by their days, in order."""

    def __init__(self, days: pd.DatetimeIndex) -> None:
        numbers, self._codes = np.unique(days.normalize().as_unit("s").asi8, return_inverse=True)
        self._counts = np.bincount(self._codes)
        self._follows = np.diff(numbers) == SECONDS_OF_A_DAY
        """For each day but the first, whether the one before it is there."""

    def changes(self, values: Floats) -> Floats:
        """Return by how much the mean changes from each day to the next, without those beside a gap."""
        changes: Floats = np.diff(self.of(values))[self._follows]
        return changes

    def of(self, values: Floats) -> Floats:
        """Return the mean of each day."""
        means: Floats = np.bincount(self._codes, values) / self._counts
        return means


def _limit_rows(days: pd.DatetimeIndex, rows_a_day: int) -> NDArray[np.int64]:
    """Return the positions of at most so many rows of each day: the mean of fewer rows varies more."""
    shuffled = pd.Series(np.arange(len(days))).sample(frac=1, random_state=SEED)
    kept = shuffled.groupby(np.asarray(days)[shuffled.to_numpy()]).head(rows_a_day)
    positions: NDArray[np.int64] = np.sort(kept.to_numpy())
    return positions


@dataclass(frozen=True)
class Encoder:
    """Turns columns into standardized numbers; frequent categories have an indicator each."""

    parts: tuple[tuple[str, Any, float, float, bool], ...]
    """Column, category or None, mean, standard deviation, and whether the square is taken."""

    @classmethod
    def fit(cls, training: pd.DataFrame) -> "Encoder":
        """Return the encoder of the columns that vary."""
        parts: list[tuple[str, Any, float, float, bool]] = []
        for name in training.columns:
            column = training[name]
            is_number = is_numeric_dtype(column) or is_bool_dtype(column)
            for category in [None] if is_number else column.value_counts().index[:MAX_CATEGORIES]:
                known = _as_numbers(column, category)
                known = known[~np.isnan(known)]
                if len(known) and known.std() > 0:
                    parts.append((name, category, float(known.mean()), float(known.std()), False))
                    if name == Column.PREDICTION:  # a model that no longer tells days apart keeps its mean
                        parts.append((name, category, float(known.mean()), float(known.std()), True))
        return cls(tuple(parts))

    @property
    def owners(self) -> list[str]:
        """The column of each number."""
        return [name for name, *_ in self.parts]

    def encode(self, frame: pd.DataFrame) -> Floats:
        """Return an array with a row for each row, and a column for each number."""
        numbers = np.empty((len(frame), len(self.parts)))
        for number, (name, category, mean, spread, squared) in enumerate(self.parts):
            values = np.nan_to_num((_as_numbers(frame[name], category) - mean) / spread)
            numbers[:, number] = values**2 - 1 if squared else values
        return numbers


def _as_numbers(column: pd.Series, category: Any) -> Floats:
    values = pd.to_numeric(column, errors="coerce") if category is None else column == category
    return np.asarray(values, dtype=np.float64)


def _season(days: pd.DatetimeIndex, season: bool) -> Floats:
    """Return 1, and two annual harmonics."""
    angle = 2 * np.pi * days.day_of_year.to_numpy() / 365.25
    waves = [wave(n * angle) for n in (1, 2) for wave in (np.sin, np.cos)] if season else []
    return np.column_stack([np.ones(len(days)), *waves])
