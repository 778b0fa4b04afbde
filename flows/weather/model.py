"""Candidates and baselines, and their evaluation on a holdout of later days, as functions that need no server."""

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
from flows.weather.observations import DAY
from trainyard.candidates import Candidate, Score
from trainyard.contract import Artifact, Column
from trainyard.errors import DataError
from trainyard.evaluation import holdout_table, training_sample
from trainyard.metrics import flatten_scores, scores_table

Probabilities = NDArray[np.float64]
Family = Literal["logistic-regression", "random-forest", "hist-gradient-boosting"]
FAMILIES: tuple[Family, ...] = ("logistic-regression", "random-forest", "hist-gradient-boosting")
SEED = 0


@dataclass(frozen=True)
class FittedModel:
    """A fitted estimator, and its evaluation on the holdout."""

    candidate: Candidate
    estimator: Pipeline
    metrics: dict[str, float]
    """Those of `score` for the model and each baseline, such as `model_brier` and `persistence_brier`."""
    train: pd.DataFrame
    holdout: pd.DataFrame
    predictions: dict[str, Probabilities]
    """Of the model (`Column.MODEL`) and each baseline: the probability of rain on the day after each holdout day."""


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
    """Return the candidates of the families: each family's grid of parameters."""
    return [Candidate(family, tuple(sorted(params.items()))) for family in families for params in GRID[family]]


def make_estimator(candidate: Candidate) -> Pipeline:
    """Return the candidate's estimator, not fitted; fitting it is deterministic."""
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
    """Split the examples into a training set and a holdout, the newest `holdout_fraction` of the days.

    Raises:
        DataError: One of them has only wet or only dry days.
    """
    cut = len(examples) - max(1, round(len(examples) * holdout_fraction))
    train, holdout = examples.iloc[:cut], examples.iloc[cut:]
    for name, part in {"training": train, "holdout": holdout}.items():
        if part[TARGET].nunique() < 2:
            raise DataError(
                f"The {name} part ({len(part)} of {len(examples)} days) does not have both wet and dry "
                "days. Choose more years, or change holdout_fraction or wet_day_mm."
            )
    return train, holdout


def cross_validate(train: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
    """Return a candidate's mean scores over time-series folds, each validated on days after its training days.

    Folds without both wet and dry training days are skipped.

    Raises:
        DataError: All folds are skipped.
    """
    features, target = train.drop(columns=TARGET), train[TARGET]
    losses, briers = [], []
    for fit, validate in TimeSeriesSplit(n_splits=folds).split(features):
        if target.iloc[fit].nunique() < 2:
            continue
        estimator = make_estimator(candidate).fit(features.iloc[fit], target.iloc[fit])
        probability = estimator.predict_proba(features.iloc[validate])[:, 1]
        losses.append(log_loss(target.iloc[validate], probability, labels=[False, True]))
        briers.append(brier_score_loss(target.iloc[validate], probability))
    if not losses:
        raise DataError(f"None of {folds} folds has both wet and dry days to learn from. Choose more years.")
    return Score(candidate, {"cv_log_loss": float(np.mean(losses)), "cv_brier": float(np.mean(briers))})


def choose_best(scores: Sequence[Score]) -> Candidate:
    """Return the candidate with the lowest log loss; on a tie, the first."""
    return min(scores, key=lambda score: score.metrics["cv_log_loss"]).candidate


def persistence(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Predict tomorrow from today alone: the frequency of rain after wet days, and that after dry days.

    The frequencies are those of the training set, (wet + 1) / (days + 2): the rule of succession, which keeps them off
    0 and 1.
    """
    counts = train.groupby(WET_TODAY)[TARGET].agg(["sum", "count"]).reindex([0.0, 1.0], fill_value=0)
    return holdout[WET_TODAY].map(_rule_of_succession(counts)).to_numpy(dtype=np.float64)


def climatology(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Predict tomorrow from its month alone: the frequency of rain in that month of the training set.

    The frequencies follow the rule of succession; a month without training days gets the overall frequency.
    """
    counts = train.groupby(_month_of_tomorrow(train))[TARGET].agg(["sum", "count"])
    months = _month_of_tomorrow(holdout).map(_rule_of_succession(counts))
    return months.fillna(train[TARGET].mean()).to_numpy(dtype=np.float64)


def _rule_of_succession(counts: pd.DataFrame) -> pd.Series:
    return (counts["sum"] + 1) / (counts["count"] + 2)


def _month_of_tomorrow(examples: pd.DataFrame) -> pd.Series:
    return pd.Series(_tomorrow(examples).month, index=examples.index, name="month")


def _tomorrow(examples: pd.DataFrame) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(examples.index) + DAY


BASELINES = {"persistence": persistence, "climatology": climatology}


def score(wet: pd.Series, probability: Probabilities) -> dict[str, float]:
    """Return the metrics of probabilities of rain.

    Lower is better for log_loss, brier and calibration_error, higher for roc_auc, average_precision and accuracy (at a
    threshold of 0.5).
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
    """Return the expected calibration error, 0 to 1, over bins of equal width.

    It is the mean distance between predicted probability and observed frequency, weighted by the bins' days. Guo et
    al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    days = pd.DataFrame({"observed": np.asarray(wet, dtype=float), "predicted": probability})
    groups = days.groupby(np.minimum((probability * bins).astype(int), bins - 1))
    gap = (groups["predicted"].mean() - groups["observed"].mean()).abs()
    return float((gap * groups.size()).sum() / len(days))


def predict(estimator: Any, examples: pd.DataFrame) -> Probabilities:
    """Return a fitted estimator's probability of rain on the day after each example."""
    probability: Probabilities = estimator.predict_proba(examples.drop(columns=TARGET))[:, 1]
    return probability


def fit_and_score(train: pd.DataFrame, holdout: pd.DataFrame, candidate: Candidate) -> FittedModel:
    """Fit a candidate on the training set, and evaluate it and the baselines on the holdout."""
    estimator = make_estimator(candidate).fit(train.drop(columns=TARGET), train[TARGET])
    predictions = {Column.MODEL: predict(estimator, holdout)}
    predictions |= {name: baseline(train, holdout) for name, baseline in BASELINES.items()}
    scores = {name: score(holdout[TARGET], probability) for name, probability in predictions.items()}
    return FittedModel(candidate, estimator, flatten_scores(scores), train, holdout, predictions)


def refit(fitted: FittedModel) -> Pipeline:
    """Return the estimator fitted again on all days, so that the model that is served knows the newest ones."""
    examples = pd.concat([fitted.train, fitted.holdout])
    return make_estimator(fitted.candidate).fit(examples.drop(columns=TARGET), examples[TARGET])


def evaluation_tables(fitted: FittedModel, refitted: Pipeline) -> dict[str, pd.DataFrame]:
    """Return the holdout's predictions for the dashboard, and a sample of the training data for the monitor.

    The time of a row is the day that it predicts.

    Args:
        fitted: What the holdout was evaluated with.
        refitted: What is served, fitted on all days.
    """
    examples = pd.concat([fitted.train, fitted.holdout])
    features = examples.drop(columns=TARGET)
    observed = fitted.holdout[TARGET].astype(int)
    prediction = predict(refitted, examples)
    return {
        Artifact.HOLDOUT: holdout_table(observed, fitted.predictions, _tomorrow(fitted.holdout)),
        Artifact.TRAINING_SAMPLE: training_sample(features, prediction, _tomorrow(features)),
    }


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Return the metrics of the model and the baselines side by side as a Markdown table."""
    return scores_table(metrics, [Column.MODEL, *BASELINES])
