"""Candidates, baselines, and how both are judged on days that no candidate was fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import TimeSeriesSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from flows.weather.features import TARGET, WET_TODAY
from trainyard.candidates import Candidate, Score
from trainyard.errors import DataError
from trainyard.evaluation import HOLDOUT, SAMPLE, holdout_table, training_sample
from trainyard.metrics import flatten_scores, scores_table

Probabilities = NDArray[np.float64]
Family = Literal["logistic-regression", "random-forest", "hist-gradient-boosting"]
FAMILIES: tuple[Family, ...] = ("logistic-regression", "random-forest", "hist-gradient-boosting")
SEED = 0

# What skops asks about in the files of these estimators. Reviewed: trees of plain arrays, the table of bin
# edges, a loss without state of its own, and numpy's types.
TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn._loss._loss.CyHalfBinomialLoss",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


@dataclass(frozen=True)
class FittedModel:
    """A fitted estimator, its metrics, and its holdout days with all forecasts."""

    candidate: Candidate
    estimator: Pipeline
    metrics: dict[str, float]
    train: pd.DataFrame
    holdout: pd.DataFrame
    forecasts: dict[str, Probabilities]
    """By name, `model` and the baselines: the probability of rain after each holdout day."""


GRID: dict[Family, Sequence[Mapping[str, float]]] = {
    "logistic-regression": [{"C": 0.01}, {"C": 0.1}, {"C": 1.0}],
    "random-forest": [{"min_samples_leaf": leaf} for leaf in (5, 20, 50)],
    "hist-gradient-boosting": [
        {"learning_rate": 0.03, "max_leaf_nodes": 7},
        {"learning_rate": 0.03, "max_leaf_nodes": 15},
        {"learning_rate": 0.1, "max_leaf_nodes": 7},
    ],
}


def make_candidates(families: Sequence[Family] = FAMILIES) -> list[Candidate]:
    """Return the candidates of the families, each with its grid of main parameters."""
    return [Candidate(family, tuple(sorted(params.items()))) for family in families for params in GRID[family]]


def make_estimator(candidate: Candidate) -> Pipeline:
    """Return the estimator, not fitted; the same data always gives the same model."""
    params: dict[str, Any] = dict(candidate.params)
    if candidate.family == "logistic-regression":
        return Pipeline(
            [("scale", StandardScaler()), ("classify", LogisticRegression(max_iter=1000, random_state=SEED, **params))]
        )
    if candidate.family == "random-forest":
        return Pipeline([("classify", RandomForestClassifier(n_estimators=150, random_state=SEED, **params))])
    boosting = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=SEED, **params)
    return Pipeline([("classify", boosting)])


def split_by_time(examples: pd.DataFrame, holdout_fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the days to fit on and, after them, the days to judge on (the newest `holdout_fraction`).

    Raises DataError unless both parts have wet and dry days.
    """
    cut = len(examples) - max(1, round(len(examples) * holdout_fraction))
    train, holdout = examples.iloc[:cut], examples.iloc[cut:]
    for name, part in {"training": train, "holdout": holdout}.items():
        if part[TARGET].nunique() < 2:
            raise DataError(
                f"The {name} part ({len(part)} of {len(examples)} days) does not have both wet and dry "
                "days. Ask for more years, or change holdout_fraction or wet_day_mm."
            )
    return train, holdout


def cross_validate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Return a candidate's mean scores over folds of time: each is judged on days after those it was fitted on.

    Raises DataError if no fold has wet and dry days to fit on.
    """
    features, target = train.drop(columns=TARGET), train[TARGET]
    losses, briers = [], []
    for fit, judge in TimeSeriesSplit(n_splits=folds).split(features):
        if target.iloc[fit].nunique() < 2:
            continue
        estimator = make_estimator(candidate).fit(features.iloc[fit], target.iloc[fit])
        probability = estimator.predict_proba(features.iloc[judge])[:, 1]
        losses.append(log_loss(target.iloc[judge], probability, labels=[False, True]))
        briers.append(brier_score_loss(target.iloc[judge], probability))
    if not losses:
        raise DataError(f"None of {folds} folds has both wet and dry days to learn from. Ask for more years.")
    return Score(candidate, {"cv_log_loss": float(np.mean(losses)), "cv_brier": float(np.mean(briers))})


def choose(scores: Sequence[Score]) -> Score:
    """Return the score with the lowest log loss; the first of equals."""
    return min(scores, key=lambda score: score.metrics["cv_log_loss"])


def persistence(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Return the baseline "tomorrow as today": how often a wet day followed such a day.

    Two rates, after wet and after dry days, counted in the training part; (wet + 1) / (days + 2), the
    rule of succession, keeps them off 0 and 1.
    """
    followers = train.groupby(WET_TODAY)[TARGET].agg(["sum", "count"]).reindex([0.0, 1.0], fill_value=0)
    rates = (followers["sum"] + 1) / (followers["count"] + 2)
    return holdout[WET_TODAY].map(rates).to_numpy(dtype=np.float64)


def climatology(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Return the baseline "as at this time of the year": the share of wet days in each month of the past.

    Counted in the training part by the rule of succession; a month that it lacks has the year's share.
    """
    followers = train.groupby(_month_of_tomorrow(train))[TARGET].agg(["sum", "count"])
    rates = (followers["sum"] + 1) / (followers["count"] + 2)
    return _month_of_tomorrow(holdout).map(rates).fillna(train[TARGET].mean()).to_numpy(dtype=np.float64)


def _month_of_tomorrow(examples: pd.DataFrame) -> pd.Series:
    return pd.Series(_tomorrow(examples).month, index=examples.index, name="month")


def _tomorrow(examples: pd.DataFrame) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(examples.index) + pd.Timedelta(days=1)


BASELINES = {"persistence": persistence, "climatology": climatology}


def score(wet: pd.Series, probability: Probabilities) -> dict[str, float]:
    """Return the metrics of one forecast.

    Lower is better for log_loss, brier and calibration_error, higher for roc_auc, average_precision and
    accuracy, which says "wet" from a probability of one half.
    """
    return {
        "log_loss": float(log_loss(wet, probability, labels=[False, True])),
        "brier": float(brier_score_loss(wet, probability)),
        "calibration_error": calibration_error(wet, probability),
        "roc_auc": float(roc_auc_score(wet, probability)),
        "average_precision": float(average_precision_score(wet, probability)),
        "accuracy": float(accuracy_score(wet, probability >= 0.5)),
    }


def calibration_error(wet: pd.Series, probability: Probabilities, bins: int = 10) -> float:
    """Return the expected calibration error, 0 to 1: forecast minus frequency, over bins of equal width.

    Each bin counts by its share of the days. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    each = pd.DataFrame({"wet": np.asarray(wet, dtype=float), "said": probability})
    groups = each.groupby(np.minimum((probability * bins).astype(int), bins - 1))
    gap = (groups["said"].mean() - groups["wet"].mean()).abs()
    return float((gap * groups.size()).sum() / len(each))


def forecast(estimator: Any, examples: pd.DataFrame) -> Probabilities:
    """Return the estimator's probability of rain after each day."""
    probability: Probabilities = estimator.predict_proba(examples.drop(columns=TARGET))[:, 1]
    return probability


def fit_and_score(train: pd.DataFrame, holdout: pd.DataFrame, candidate: Candidate) -> FittedModel:
    """Fit a candidate on the older days and judge it on the newer ones, beside the baselines.

    The metrics are those of `score` with the prefixes `model_`, `persistence_` and `climatology_`.
    """
    estimator = make_estimator(candidate).fit(train.drop(columns=TARGET), train[TARGET])
    forecasts = {"model": forecast(estimator, holdout)}
    forecasts |= {name: baseline(train, holdout) for name, baseline in BASELINES.items()}
    metrics = flatten_scores({who: score(holdout[TARGET], probability) for who, probability in forecasts.items()})
    return FittedModel(candidate, estimator, metrics, train, holdout, forecasts)


def tables(training: FittedModel) -> dict[str, pd.DataFrame]:
    """Return the holdout's forecasts and a sample of the training days; each row is about the day it forecasts."""
    inputs = training.train.drop(columns=TARGET)
    wet = training.holdout[TARGET].astype(int)
    return {
        HOLDOUT: holdout_table(wet, training.forecasts, _tomorrow(training.holdout)),
        SAMPLE: training_sample(inputs, training.estimator.predict_proba(inputs)[:, 1], _tomorrow(inputs)),
    }


def compare(metrics: Mapping[str, float]) -> str:
    """Return the metrics as a Markdown table, the model's beside the baselines'."""
    return scores_table(metrics, ["model", *BASELINES])
