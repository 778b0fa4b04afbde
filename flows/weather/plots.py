"""The plots of a training: quality of the predictions, feature importance, and the newest predictions."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.inspection import permutation_importance
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from flows.weather.features import TARGET
from flows.weather.model import SEED, FittedModel
from flows.weather.observations import DAY
from trainyard.contract import Column

MAX_PLOTTED_DAYS = 60


def draw(fitted: FittedModel) -> dict[str, Figure]:
    """Return the plots by file name; all are about the holdout."""
    return {
        "roc.png": draw_display(
            fitted,
            RocCurveDisplay,
            title="ROC curve of wet days",
            xlabel="False positive rate: share of dry days predicted as wet",
            ylabel="True positive rate: share of wet days predicted as wet",
        ),
        "precision_recall.png": draw_display(
            fitted,
            PrecisionRecallDisplay,
            title="Precision and recall of wet days",
            xlabel="Recall: share of wet days predicted as wet",
            ylabel="Precision: share of days predicted as wet that were",
        ),
        "calibration.png": draw_display(
            fitted,
            CalibrationDisplay,
            n_bins=10,
            title="Calibration: predicted probability and observed frequency",
            xlabel="Predicted probability of a wet day",
            ylabel="Observed frequency of wet days",
        ),
        "importance.png": draw_importance(fitted),
        "forecast.png": draw_forecast(fitted),
    }


def draw_display(fitted: FittedModel, display: Any, title: str, xlabel: str, ylabel: str, **options: Any) -> Figure:
    """Return a figure of one of scikit-learn's displays, with a curve for the model and each baseline."""
    figure = Figure(figsize=(6, 6), layout="tight")
    axes = figure.subplots()
    for name, probability in fitted.predictions.items():
        display.from_predictions(fitted.holdout[TARGET], probability, name=name, ax=axes, **options)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


def draw_importance(fitted: FittedModel, repeats: int = 3) -> Figure:
    """Return a plot of the features' permutation importance: the rise of the log loss when one is shuffled.

    Breiman, Random Forests, Machine Learning 45 (2001); here on the holdout.
    """
    features = fitted.holdout.drop(columns=TARGET)
    found = permutation_importance(
        fitted.estimator,
        features,
        fitted.holdout[TARGET],
        scoring="neg_log_loss",
        n_repeats=repeats,
        random_state=SEED,
    )
    columns = {"mean": found.importances_mean, "deviation": found.importances_std}
    importance = pd.DataFrame(columns, index=features.columns).sort_values("mean")
    figure = Figure(figsize=(7, 5), layout="tight")
    axes = figure.subplots()
    axes.barh(importance.index, importance["mean"], xerr=importance["deviation"])
    axes.set(title="Permutation importance of the features", xlabel="Rise of the log loss when the feature is shuffled")
    return figure


def draw_forecast(fitted: FittedModel) -> Figure:
    """Return a plot of the newest predictions and the observations."""
    figure = Figure(figsize=(10, 4), layout="tight")
    axes = figure.subplots()
    newest = fitted.holdout.tail(MAX_PLOTTED_DAYS)
    days = pd.DatetimeIndex(newest.index) + DAY
    axes.bar(days, newest[TARGET].astype(float), width=1.0, color="lightsteelblue", label="observed: wet")
    axes.plot(days, fitted.predictions[Column.MODEL][-len(newest) :], marker=".", color="black", label="predicted")
    axes.set(title=f"The last {len(newest)} days: prediction and observation", ylabel="Probability of a wet day")
    axes.legend(loc="upper left")
    figure.autofmt_xdate()
    return figure
