"""Measure the skill of predictions against a baseline on the same rows, and watch the loss from day to day.

Daily scores are not independent, and a champion is looked at every day. Intervals therefore come from a circular block
bootstrap (Politis and Romano, A circular block-resampling procedure for stationary data, in Exploring the Limits of
Bootstrap, 1992), and alerts from a cumulative sum (Page, Continuous inspection schemes, Biometrika 41, 1954) with a
control limit that the same bootstrap finds for all looks together (Chatterjee and Qiu, Distribution-free cumulative sum
control charts using bootstrap-based control limits, Annals of Applied Statistics 3, 2009).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainyard.contract import Column
from trainyard.metrics import log_losses

Floats = NDArray[np.float64]

MIN_PROBABILITY = 0.01
"""Probabilities are clipped to it and its complement, so that no single day decides."""
MIN_SEASON_DAYS = 300
"""Days of the year that a holdout must cover for a climatology by season."""
LOOKS = 90
"""Daily looks for which the false alarm rate is derived."""
FALSE_ALARM_RATE = 0.05
"""Probability of an alert in `LOOKS` looks at a champion that is as good as on its holdout."""
REPLICATES = 1000
SEED = 0
DAY, MODEL_LOSS, BASELINE_LOSS = "day", "model_loss", Column.BASELINE_LOSS


@dataclass(frozen=True)
class Skill:
    """A skill score, 1 - loss / baseline's loss, with an interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Climatology:
    """The mean of the target by season, with one annual harmonic, or one for the whole year.

    Of a target that is 0 or 1, it is the frequency of the positive class.
    """

    coefficients: Floats
    """Of 1, sin and cos of the season; or of 1 alone."""

    @classmethod
    def fit(cls, days: pd.DatetimeIndex, observed: Floats) -> "Climatology":
        """Return the climatology of some days; days without a time (NaT) have no season."""
        if days.isna().any() or days.day_of_year.nunique() < MIN_SEASON_DAYS:
            return cls(np.array([float(observed.mean())]))
        coefficients = np.linalg.lstsq(_harmonic(days), observed, rcond=None)[0]
        return cls(np.asarray(coefficients, dtype=np.float64))

    def mean(self, days: pd.DatetimeIndex) -> Floats:
        """Return the mean of the target on each day; on one without a time (NaT), that of the year."""
        if len(self.coefficients) == 1:
            return np.full(len(days), self.coefficients[0])
        return np.nan_to_num(_harmonic(days)) @ self.coefficients

    def predict(self, days: pd.DatetimeIndex) -> Floats:
        """Return the probability of the positive class on each day."""
        return np.clip(self.mean(days), MIN_PROBABILITY, 1 - MIN_PROBABILITY)


def clipped_losses(observed: Floats, probability: Floats) -> Floats:
    """Return the log loss of each row, of probabilities that are clipped to `MIN_PROBABILITY`."""
    clipped = np.clip(probability, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return log_losses(np.where(observed == 1, clipped, 1 - clipped))


def loss_table(time: pd.Series, model: Floats, baseline: Floats) -> pd.DataFrame:
    """Return the losses of rows with their days (`DAY`, `MODEL_LOSS`, `BASELINE_LOSS`).

    Args:
        time: What the rows are about (ISO 8601); if a row has no time, each has a day of its own.
        model: The model's loss of each row.
        baseline: The baseline's.
    """
    days = parse_days(time)
    return pd.DataFrame(
        {
            DAY: days if not days.isna().any() else np.arange(len(days)),
            MODEL_LOSS: model,
            BASELINE_LOSS: baseline,
        }
    )


def parse_days(time: pd.Series) -> pd.DatetimeIndex:
    """Return the days (UTC) of moments in ISO 8601; NaT where a row has none."""
    return pd.DatetimeIndex(pd.to_datetime(time, errors="coerce", format="ISO8601", utc=True)).normalize()


def measure_skill(table: pd.DataFrame, confidence: float = 0.95) -> Skill:
    """Return the skill of the rows of `loss_table`, with an interval by a circular block bootstrap of whole days."""
    days = table.groupby(DAY)[[MODEL_LOSS, BASELINE_LOSS]].sum()
    model, baseline = days[MODEL_LOSS].to_numpy(), days[BASELINE_LOSS].to_numpy()
    drawn = draw_blocks(len(days), len(days), np.random.default_rng(SEED))
    replicates = 1 - model[drawn].sum(axis=1) / baseline[drawn].sum(axis=1)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Skill(float(1 - model.sum() / baseline.sum()), float(low), float(high))


def daily_excess(table: pd.DataFrame, max_rows_a_day: int | None = None) -> Floats:
    """Return by how much the model's mean loss exceeds the baseline's, for each day in order.

    Args:
        table: The rows of `loss_table`.
        max_rows_a_day: A sample of so many rows of each day; the mean of fewer rows varies more.
    """
    if max_rows_a_day is not None:
        table = table.sample(frac=1, random_state=SEED).groupby(DAY).head(max_rows_a_day)
    days = table.groupby(DAY)[[MODEL_LOSS, BASELINE_LOSS]].mean()
    excess: Floats = (days[MODEL_LOSS] - days[BASELINE_LOSS]).to_numpy()
    return excess


@dataclass(frozen=True)
class ControlChart:
    """A cumulative sum for a rise of the daily excess loss from its mean on the holdout."""

    reference: float
    """The daily excess from which on the sum grows: half of the rise that is looked for."""
    limit: float
    """The sum that a champion as good as on its holdout exceeds within `LOOKS` looks with `FALSE_ALARM_RATE`."""

    @classmethod
    def fit(cls, holdout: Floats, min_rise: float, max_rise: float = np.inf) -> "ControlChart":
        """Return the chart of a model.

        It looks for the loss of all skill, but for a rise by `min_rise` at least and by `max_rise` at most. Each replicate
        draws the holdout again too, so that the limit covers the error of its mean.

        Args:
            holdout: The daily excess on the holdout, in order.
            min_rise: In units of the loss.
            max_rise: In units of the loss.
        """
        random = np.random.default_rng(SEED)
        again = holdout[draw_blocks(len(holdout), len(holdout), random)].mean(axis=1)
        live = holdout[draw_blocks(len(holdout), LOOKS, random)]
        references = again + np.maximum(np.minimum(-again, max_rise), min_rise) / 2
        highest = cusum(live - references[:, None]).max(axis=1)
        mean = float(holdout.mean())
        return cls(mean + max(min(-mean, max_rise), min_rise) / 2, float(np.quantile(highest, 1 - FALSE_ALARM_RATE)))

    def sum(self, live: Floats) -> float:
        """Return the cumulative sum after the last day."""
        return float(cusum(live - self.reference)[-1]) if len(live) else 0.0


def cusum(steps: Floats) -> Floats:
    """Return the cumulative sums that never fall below 0, along the last axis."""
    sums, total = np.empty_like(steps), np.zeros(steps.shape[:-1])
    for number in range(steps.shape[-1]):
        total = np.maximum(0.0, total + steps[..., number])
        sums[..., number] = total
    return sums


def draw_blocks(length: int, size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return indices of a series of `length` for `REPLICATES` series of `size` (rows), as blocks that wrap around.

    A block has the cube root of the length (Hall, Horowitz and Jing, On blocking rules for the bootstrap with dependent
    data, Biometrika 82, 1995).
    """
    block = max(1, round(length ** (1 / 3)))
    starts = random.integers(0, length, (REPLICATES, -(-size // block)))
    drawn: NDArray[np.int64] = (starts[:, :, None] + np.arange(block)).reshape(REPLICATES, -1)[:, :size] % length
    return drawn


def _harmonic(days: pd.DatetimeIndex) -> Floats:
    angle = 2 * np.pi * days.day_of_year.to_numpy() / 365.25
    return np.column_stack([np.ones(len(days)), np.sin(angle), np.cos(angle)])
