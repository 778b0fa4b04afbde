"""The plots of a training: the quality of the predictions, and the newest ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from flows.weather.features import TARGET
from flows.weather.observations import DAY
from trainyard.contract import Column
from trainyard.fitting import Evaluation
from trainyard.problem import Parts

Probabilities = NDArray[np.float64]
MAX_PLOTTED_DAYS = 60


def draw(evaluation: Evaluation, parts: Parts) -> dict[str, Figure]:
    """Return the plots by file name; all are about the holdout."""
    wet, probabilities = parts.holdout[TARGET], evaluation.positive_probabilities
    return {
        "roc.png": draw_display(
            wet,
            probabilities,
            RocCurveDisplay,
            title="ROC curve of wet days",
            xlabel="False positive rate: share of dry days predicted as wet",
            ylabel="True positive rate: share of wet days predicted as wet",
        ),
        "precision_recall.png": draw_display(
            wet,
            probabilities,
            PrecisionRecallDisplay,
            title="Precision and recall of wet days",
            xlabel="Recall: share of wet days predicted as wet",
            ylabel="Precision: share of days predicted as wet that were",
        ),
        "calibration.png": draw_display(
            wet,
            probabilities,
            CalibrationDisplay,
            n_bins=10,
            title="Calibration: predicted probability and observed frequency",
            xlabel="Predicted probability of a wet day",
            ylabel="Observed frequency of wet days",
        ),
        "forecast.png": draw_forecast(wet, probabilities[Column.MODEL]),
    }


def draw_display(
    wet: pd.Series,
    probabilities: Mapping[str, Probabilities],
    display: Any,
    title: str,
    xlabel: str,
    ylabel: str,
    **options: Any,
) -> Figure:
    """Return a figure of one of scikit-learn's displays, with a curve for the model and each baseline."""
    figure = Figure(figsize=(6, 6), layout="tight")
    axes = figure.subplots()
    for name, probability in probabilities.items():
        display.from_predictions(wet, probability, name=name, ax=axes, **options)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


def draw_forecast(wet: pd.Series, probability: Probabilities) -> Figure:
    """Return a plot of the newest predictions and the observations."""
    figure = Figure(figsize=(10, 4), layout="tight")
    axes = figure.subplots()
    newest = wet.tail(MAX_PLOTTED_DAYS)
    days = pd.DatetimeIndex(newest.index) + DAY
    axes.bar(days, newest.astype(float), width=1.0, color="lightsteelblue", label="observed: wet")
    axes.plot(days, probability[-len(newest) :], marker=".", color="black", label="predicted")
    axes.set(title=f"The last {len(newest)} days: prediction and observation", ylabel="Probability of a wet day")
    axes.legend(loc="upper left")
    figure.autofmt_xdate()
    return figure
