"""The estimator, the baseline beside it, and how both are judged on days they were not fitted on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.calibration import CalibrationDisplay
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    RocCurveDisplay,
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    roc_auc_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from flows.weather.features import TARGET, WET_TODAY
from flows.weather.observations import WeatherDataError


@dataclass(frozen=True)
class Training:
    """A fitted estimator, its metrics, and its holdout days with both forecasts."""

    estimator: Pipeline
    metrics: dict[str, float]
    train: pd.DataFrame
    holdout: pd.DataFrame
    forecasts: dict[str, NDArray[np.float64]]
    """By name, `model` and `baseline`: the probability of rain after each holdout day."""


def make_estimator(regularization: float = 1.0) -> Pipeline:
    """Return the estimator, not fitted: logistic regression gives calibrated probabilities."""
    classifier = LogisticRegression(C=1 / regularization, max_iter=1000, random_state=0)
    return Pipeline([("scale", StandardScaler()), ("classify", classifier)])


def split_by_time(examples: pd.DataFrame, holdout_fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the days to fit on and, after them, the days to judge on (the newest `holdout_fraction`).

    Raises WeatherDataError unless both parts have wet and dry days.
    """
    cut = len(examples) - max(1, round(len(examples) * holdout_fraction))
    train, holdout = examples.iloc[:cut], examples.iloc[cut:]
    for name, part in {"training": train, "holdout": holdout}.items():
        if part[TARGET].nunique() < 2:
            raise WeatherDataError(
                f"The {name} part ({len(part)} of {len(examples)} days) does not have both wet and dry "
                "days. Ask for more years, or change holdout_fraction or wet_day_mm."
            )
    return train, holdout


def persistence(train: pd.DataFrame, holdout: pd.DataFrame) -> NDArray[np.float64]:
    """Return the baseline's probability of rain: how often a wet day followed such a day as today.

    Two rates, after wet and after dry days, counted in the training part; (wet + 1) / (days + 2), the
    rule of succession, keeps them off 0 and 1.
    """
    followers = train.groupby(WET_TODAY)[TARGET].agg(["sum", "count"]).reindex([0.0, 1.0], fill_value=0)
    rates = (followers["sum"] + 1) / (followers["count"] + 2)
    return holdout[WET_TODAY].map(rates).to_numpy(dtype=np.float64)


def score(wet: pd.Series, probability: NDArray[np.float64], says_wet: NDArray[np.bool_]) -> dict[str, float]:
    """Return the metrics of one forecast; lower is better for log_loss and brier, higher for the rest."""
    return {
        "log_loss": float(log_loss(wet, probability)),
        "brier": float(brier_score_loss(wet, probability)),
        "roc_auc": float(roc_auc_score(wet, probability)),
        "accuracy": float(accuracy_score(wet, says_wet)),
        "f1": float(f1_score(wet, says_wet)),
    }


def fit_and_score(examples: pd.DataFrame, holdout_fraction: float = 0.2, regularization: float = 1.0) -> Training:
    """Fit on the older days and judge on the newer ones, beside the persistence baseline.

    The metrics are those of `score` with the prefixes `model_` and `baseline_`. The model says "wet"
    from a probability of one half; the baseline says that tomorrow is as today.
    """
    train, holdout = split_by_time(examples, holdout_fraction)
    estimator = make_estimator(regularization).fit(train.drop(columns=TARGET), train[TARGET])
    model = estimator.predict_proba(holdout.drop(columns=TARGET))[:, 1]
    baseline = persistence(train, holdout)
    wet_today = holdout[WET_TODAY].to_numpy(dtype=np.bool_)
    scores = {
        "model": score(holdout[TARGET], model, model >= 0.5),
        "baseline": score(holdout[TARGET], baseline, wet_today),
    }
    metrics = {f"{who}_{name}": value for who, each in scores.items() for name, value in each.items()}
    return Training(estimator, metrics, train, holdout, {"model": model, "baseline": baseline})


def draw(training: Training) -> dict[str, Figure]:
    """Return the plots by file name: calibration and ROC curve of model and baseline."""
    calibration, roc = Figure(figsize=(6, 6), layout="tight"), Figure(figsize=(6, 6), layout="tight")
    left, right = calibration.subplots(), roc.subplots()
    for name, probability in training.forecasts.items():
        CalibrationDisplay.from_predictions(training.holdout[TARGET], probability, n_bins=10, name=name, ax=left)
        RocCurveDisplay.from_predictions(training.holdout[TARGET], probability, name=name, ax=right)
    left.set(
        title="Of the days given a chance of rain, how many were wet?",
        xlabel="Forecast probability of a wet day",
        ylabel="Share of days that were wet",
    )
    right.set(
        title="Wet days found against false alarms",
        xlabel="Share of dry days called wet",
        ylabel="Share of wet days called wet",
    )
    return {"calibration.png": calibration, "roc.png": roc}


def compare(metrics: dict[str, float]) -> str:
    """Return the metrics as a Markdown table, the model's beside the baseline's."""
    names = [name.removeprefix("model_") for name in metrics if name.startswith("model_")]
    rows = [f"| {n} | {metrics[f'model_{n}']:.4f} | {metrics[f'baseline_{n}']:.4f} |" for n in names]
    return "\n".join(["| metric | model | baseline |", "|---|---|---|", *rows])
