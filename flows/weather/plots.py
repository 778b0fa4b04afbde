"""The plots of a training: how good the forecasts are, what they rest on, and what then happened."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.inspection import permutation_importance
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from flows.weather.features import TARGET
from flows.weather.model import SEED, FittedModel

SHOWN_DAYS = 60


def draw(training: FittedModel) -> dict[str, Figure]:
    """Return the plots by file name; all are of the holdout days."""
    return {
        "roc.png": compare(
            training,
            RocCurveDisplay,
            title="Wet days found against false alarms",
            xlabel="Share of dry days called wet",
            ylabel="Share of wet days called wet",
        ),
        "precision_recall.png": compare(
            training,
            PrecisionRecallDisplay,
            title="How many of the days called wet were wet?",
            xlabel="Share of wet days called wet (recall)",
            ylabel="Share of days called wet that were (precision)",
        ),
        "calibration.png": compare(
            training,
            CalibrationDisplay,
            n_bins=10,
            title="Of the days given a chance of rain, how many were wet?",
            xlabel="Forecast probability of a wet day",
            ylabel="Share of days that were wet",
        ),
        "importance.png": draw_importance(training),
        "forecast.png": draw_forecast(training),
    }


def compare(training: FittedModel, display: Any, title: str, xlabel: str, ylabel: str, **options: Any) -> Figure:
    """Return one of scikit-learn's displays of model and baselines in one figure."""
    figure = Figure(figsize=(6, 6), layout="tight")
    axes = figure.subplots()
    for name, probability in training.forecasts.items():
        display.from_predictions(training.holdout[TARGET], probability, name=name, ax=axes, **options)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


def draw_importance(training: FittedModel, repeats: int = 3) -> Figure:
    """Return the permutation importance of each feature: the log loss that the model gains without it.

    Breiman, Random Forests, Machine Learning 45 (2001), here on the holdout.
    """
    features = training.holdout.drop(columns=TARGET)
    found = permutation_importance(
        training.estimator,
        features,
        training.holdout[TARGET],
        scoring="neg_log_loss",
        n_repeats=repeats,
        random_state=SEED,
    )
    columns = {"mean": found.importances_mean, "deviation": found.importances_std}
    importance = pd.DataFrame(columns, index=features.columns).sort_values("mean")
    figure = Figure(figsize=(7, 5), layout="tight")
    axes = figure.subplots()
    axes.barh(importance.index, importance["mean"], xerr=importance["deviation"])
    axes.set(title="What the forecast rests on", xlabel="Rise of the log loss when the feature is shuffled")
    return figure


def draw_forecast(training: FittedModel) -> Figure:
    """Return the newest forecasts beside what happened."""
    figure = Figure(figsize=(10, 4), layout="tight")
    axes = figure.subplots()
    newest = training.holdout.tail(SHOWN_DAYS)
    days = pd.DatetimeIndex(newest.index) + pd.Timedelta(days=1)
    axes.bar(days, newest[TARGET].astype(float), width=1.0, color="lightsteelblue", label="was wet")
    axes.plot(days, training.forecasts["model"][-len(newest) :], marker=".", color="black", label="forecast")
    axes.set(title=f"The last {len(newest)} days: forecast and what happened", ylabel="Probability of a wet day")
    axes.legend(loc="upper left")
    figure.autofmt_xdate()
    return figure
