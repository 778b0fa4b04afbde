"""Score predictions against the ground truth: losses beside those of a baseline, for each kind of problem.

A model version is compared with itself on its holdout, so live rows and the holdout's rows get the same form first. The
baselines know nothing but the target: its frequency or mean by season (`skill.Climatology`), or the shares of the classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from trainyard.contract import Column, Problem
from trainyard.skill import (
    BASELINE_LOSS,
    DAY,
    MIN_PROBABILITY,
    SEED,
    Climatology,
    ControlChart,
    Floats,
    clipped_losses,
    daily_excess,
    loss_table,
    measure_skill,
    parse_days,
)

OUTPUT, CLASSES, PROBABILITIES = "trainyard.output", "trainyard.classes", "trainyard.probabilities"
"""Columns of live rows, which no feature has: the predicted class or value, and of a classifier, else None, the classes
and their probabilities."""
MIN_CHART_DAYS = 20
"""Groups of rows that a holdout without times is cut into at least."""


class Scorer(ABC):
    """Scores the predictions of a model version; rows have the columns TIME, OBSERVED and MODEL.

    Args:
        holdout: The rows of its `holdout_table` that can be scored.
    """

    problem: str
    """A value of `contract.Problem`."""
    baseline: str
    """What the baseline is called in a sentence."""

    max_rise = np.inf
    """The rise of the loss that is looked for at most; without it, that of all skill."""

    def __init__(self, holdout: pd.DataFrame) -> None:
        self.holdout = holdout
        self.loss_chart = lru_cache(4)(self._loss_chart)

    @abstractmethod
    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the live rows that can be scored, in the form of the holdout, under their own index.

        Args:
            rows: With OBSERVED, which is a class or a number or missing, and the columns of
                `monitoring.rows_from_records`.
        """

    @abstractmethod
    def measure_losses(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Return the losses of the model and of the baseline for each row."""

    @abstractmethod
    def score(self, table: pd.DataFrame) -> dict[str, float]:
        """Return the scores of some rows."""

    def true_probability(self, table: pd.DataFrame) -> Floats:
        """Return the probability of each row's true class; NaN where the model gives none."""
        return np.full(len(table), np.nan)

    def losses(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the losses of some rows by their days (`DAY`, `MODEL_LOSS`, `BASELINE_LOSS`)."""
        return loss_table(table[Column.TIME], *self.measure_losses(table))

    @cached_property
    def holdout_scores(self) -> dict[str, float]:
        """The scores on the holdout, with the skill."""
        return {**self.score(self.holdout), "skill": measure_skill(self.losses(self.holdout)).value}

    def charted_losses(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the losses of some rows as the control chart takes them: beside those of the baseline."""
        return self.losses(table)

    def _loss_chart(self, rows_a_day: int, min_rise: float) -> ControlChart:
        """Return the control chart of the loss for days with so many rows."""
        table = self.charted_losses(self.holdout)
        if table[DAY].is_unique and rows_a_day > 1:  # rows without times: any of them could be of one day
            size = max(1, min(rows_a_day, len(table) // MIN_CHART_DAYS))
            table[DAY] = np.random.default_rng(SEED).permutation(len(table)) // size
        return ControlChart.fit(daily_excess(table, rows_a_day), min_rise, self.max_rise)


class BinaryScorer(Scorer):
    """Scores probabilities of a target of 0 or 1 by the log loss against climatology."""

    problem = Problem.BINARY
    baseline = "climatology"

    def __init__(self, holdout: pd.DataFrame) -> None:
        super().__init__(binary_outcomes(holdout))
        times = parse_days(self.holdout[Column.TIME])
        self._climatology = Climatology.fit(times, self.holdout[Column.OBSERVED].to_numpy(dtype=float))

    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with an outcome of 0 or 1, or with the class that stands for it."""
        observed = [as_binary(*each) for each in zip(rows[Column.OBSERVED], rows[CLASSES], strict=True)]
        truth = pd.Series(observed, index=rows.index, dtype=object)
        return binary_outcomes(rows.assign(**{Column.OBSERVED: truth, Column.MODEL: rows[Column.PREDICTION]}))

    def measure_losses(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Return the log losses."""
        observed, probability = (table[name].to_numpy(dtype=float) for name in (Column.OBSERVED, Column.MODEL))
        baseline = self._climatology.predict(parse_days(table[Column.TIME]))
        return clipped_losses(observed, probability), clipped_losses(observed, baseline)

    def true_probability(self, table: pd.DataFrame) -> Floats:
        """Return the probability of each row's true class."""
        return np.where(table[Column.OBSERVED] == 1, table[Column.MODEL], 1 - table[Column.MODEL]).astype(float)

    def score(self, table: pd.DataFrame) -> dict[str, float]:
        """Return the Brier score, the log loss and the accuracy."""
        observed, probability = table[Column.OBSERVED].astype(int), table[Column.MODEL]
        return {
            "brier": float(brier_score_loss(observed, probability, labels=[0, 1])),
            "log_loss": float(log_loss(observed, probability, labels=[0, 1])),
            "accuracy": float(accuracy_score(observed, probability >= 0.5)),
        }


class MulticlassScorer(Scorer):
    """Scores probabilities of classes by the log loss against the shares of the classes in the holdout."""

    problem = Problem.MULTICLASS
    baseline = "the classes' shares"

    def __init__(self, holdout: pd.DataFrame) -> None:
        known = holdout[holdout[Column.OBSERVED].notna() & holdout[Column.MODEL].notna()]
        super().__init__(known.assign(**{Column.OBSERVED: known[Column.OBSERVED].map(class_name)}))
        self._shares = self.holdout[Column.OBSERVED].value_counts(normalize=True)

    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with a ground truth, and the probability of it in the column MODEL."""
        # Records from before 0.3.0 do not tell the classes.
        known = rows[rows[Column.OBSERVED].notna() & rows[PROBABILITIES].notna() & rows[CLASSES].notna()]
        probability = [
            true_class_probability(*each)
            for each in zip(known[Column.OBSERVED], known[CLASSES], known[PROBABILITIES], strict=True)
        ]
        names = {
            Column.OBSERVED: known[Column.OBSERVED].map(class_name),
            Column.PREDICTION: known[OUTPUT].map(class_name),
        }
        return known.assign(**names, **{Column.MODEL: np.array(probability, dtype=float)})

    def measure_losses(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Return the log losses."""
        shares = np.asarray(table[Column.OBSERVED].map(self._shares).fillna(0.0), dtype=np.float64)
        ones: Floats = np.ones(len(table), dtype=np.float64)
        return clipped_losses(ones, self.true_probability(table)), clipped_losses(ones, shares)

    def true_probability(self, table: pd.DataFrame) -> Floats:
        """Return the probability of each row's true class."""
        return table[Column.MODEL].to_numpy(dtype=float)

    def score(self, table: pd.DataFrame) -> dict[str, float]:
        """Return the log loss, and the accuracy where the predicted classes are known."""
        probability = table[Column.MODEL].to_numpy(dtype=float)
        scores = {"log_loss": float(-np.log(np.clip(probability, MIN_PROBABILITY, 1)).mean())}
        if Column.PREDICTION in table:
            scores["accuracy"] = float((table[Column.PREDICTION] == table[Column.OBSERVED]).mean())
        return scores


class ClassScorer(Scorer):
    """Scores predicted classes without probabilities by the share of errors against the holdout's most frequent class."""

    problem = Problem.CLASSES
    baseline = "the most frequent class"

    def __init__(self, holdout: pd.DataFrame) -> None:
        known = holdout[holdout[Column.OBSERVED].notna() & holdout[Column.MODEL].notna()]
        names = {name: known[name].map(class_name) for name in (Column.OBSERVED, Column.MODEL)}
        super().__init__(known.assign(**names))
        self._frequent = self.holdout[Column.OBSERVED].mode().iloc[0]

    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with a ground truth."""
        known = rows[rows[Column.OBSERVED].notna()]
        observed, predicted = (known[name].map(class_name) for name in (Column.OBSERVED, OUTPUT))
        return known.assign(**{Column.OBSERVED: observed, Column.MODEL: predicted, Column.PREDICTION: predicted})

    def measure_losses(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Return 1 for each error, and for each hit as little as for a certain probability, so that no sum is 0."""
        observed = table[Column.OBSERVED]
        errors = observed != table[Column.MODEL], observed != self._frequent
        model, baseline = (np.where(each, 1.0, MIN_PROBABILITY) for each in errors)
        return model, baseline

    def score(self, table: pd.DataFrame) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((table[Column.OBSERVED] == table[Column.MODEL]).mean())}


class RegressionScorer(Scorer):
    """Scores numbers by the squared error against the mean by season.

    Losses are in units of the baseline's on the holdout, so that a rise of the loss means the same for any target.
    """

    problem = Problem.REGRESSION
    baseline = "the seasonal mean"

    def __init__(self, holdout: pd.DataFrame) -> None:
        super().__init__(numeric_outcomes(holdout))
        times, observed = parse_days(self.holdout[Column.TIME]), self.holdout[Column.OBSERVED].to_numpy(dtype=float)
        self._climatology = Climatology.fit(times, observed)
        self._unit = float(np.mean((observed - self._climatology.mean(times)) ** 2))
        # A regression may have so much skill that its error is far from usable long before all of it is lost.
        self.max_rise = float(self.measure_losses(self.holdout)[0].mean())

    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows with a ground truth that is a number."""
        return numeric_outcomes(rows.assign(**{Column.MODEL: rows[Column.PREDICTION]}))

    def measure_losses(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Return the squared errors, in units of the baseline's mean squared error on the holdout."""
        observed, predicted = (table[name].to_numpy(dtype=float) for name in (Column.OBSERVED, Column.MODEL))
        baseline = self._climatology.mean(parse_days(table[Column.TIME]))
        return (predicted - observed) ** 2 / self._unit, (baseline - observed) ** 2 / self._unit

    def charted_losses(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the losses of some rows beside the baseline's mean loss on the holdout.

        The baseline's error varies with the target far more than that of a model with much skill, and would hide a rise.
        """
        return self.losses(table).assign(**{BASELINE_LOSS: 1.0})

    def score(self, table: pd.DataFrame) -> dict[str, float]:
        """Return the root mean squared error, the mean absolute error and the bias, in units of the target."""
        errors = (table[Column.MODEL] - table[Column.OBSERVED]).to_numpy(dtype=float)
        return {
            "rmse": float(np.sqrt((errors**2).mean())),
            "mae": float(np.abs(errors).mean()),
            "bias": float(errors.mean()),
        }


def make_scorer(holdout: pd.DataFrame, classes: Sequence[Any] | None, has_probabilities: bool) -> Scorer | None:
    """Return what scores a model version's predictions, or None where its holdout has nothing to compare them with.

    Args:
        holdout: Its `holdout_table`.
        classes: A classifier's, as its records tell; None for a regressor, and where the records do not tell.
        has_probabilities: Whether the records have probabilities.
    """
    known = holdout[holdout[Column.OBSERVED].notna() & holdout[Column.MODEL].notna()]
    if known.empty:
        return None
    if (classes is None or len(classes) == 2) and not binary_outcomes(known).empty:
        # A regressor's numbers may all lie between 0 and 1, but its target is not 0 or 1.
        return BinaryScorer(holdout)
    predicted = pd.to_numeric(known[Column.MODEL], errors="coerce")
    is_probability = bool(predicted.between(0, 1).all())
    observed = pd.to_numeric(known[Column.OBSERVED], errors="coerce")
    if classes is None and observed.notna().all() and predicted.notna().all():
        is_constant = float(observed.std(ddof=0)) == 0.0
        return None if is_constant else RegressionScorer(holdout)
    if has_probabilities:
        return MulticlassScorer(holdout) if is_probability else None
    return ClassScorer(holdout) if classes is not None else None


def binary_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a known outcome, 0 or 1, and a probability; none if any is something else."""
    known = numeric_outcomes(table, drop=False)
    is_binary = known[Column.OBSERVED].isin([0, 1]) & known[Column.MODEL].between(0, 1)
    return known if is_binary.all() else known.head(0)


def numeric_outcomes(table: pd.DataFrame, *, drop: bool = True) -> pd.DataFrame:
    """Return the rows with a known outcome; outcome and prediction as finite numbers, or NaN if they are kept."""
    known = table[table[Column.OBSERVED].notna()].copy()
    for name in (Column.OBSERVED, Column.MODEL):
        known[name] = pd.to_numeric(known[name], errors="coerce").astype(float)
    is_finite = np.isfinite(known[Column.OBSERVED]) & np.isfinite(known[Column.MODEL])
    return known.loc[is_finite] if drop else known


def class_name(value: Any) -> str:
    """Return a class as text: JSON, CSV and MLflow's tables may each have turned a whole number into another type."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def true_class_probability(observed: Any, classes: Sequence[Any], probabilities: Sequence[float]) -> float:
    """Return the probability that a row's true class was given; 0 for a class that the model does not know."""
    names = [class_name(each) for each in classes]
    return float(probabilities[names.index(class_name(observed))]) if class_name(observed) in names else 0.0


def as_binary(observed: Any, classes: Sequence[Any] | None) -> Any:
    """Return 0 or 1 for one of two classes; other values as they are, such as those of a hook."""
    if classes is None or len(classes) != 2:
        return observed
    names = [class_name(each) for each in classes]
    return names.index(class_name(observed)) if class_name(observed) in names else observed
