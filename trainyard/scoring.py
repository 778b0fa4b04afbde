"""Predictions and their scores: by row for the gate, and in all for people.

The predictions of a classification are a frame with the probability of each class, in the order of the classes; those of a
regression are a series of values. A binary classification is one with two classes, of which the second is the positive one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, r2_score, roc_auc_score

from trainyard.errors import DataError
from trainyard.metrics import brier_losses, log_losses

Kind = Literal["classification", "regression"]
Predictions = pd.DataFrame | pd.Series
Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A loss, by which candidates are chosen and models compared; lower is better."""

    name: str
    of_rows: Callable[[pd.Series, Any], Losses]
    """Returns the loss of each row, of the target and the predictions; the metric is their mean."""

    def mean(self, observed: pd.Series, predicted: Predictions) -> float:
        """Return the mean loss."""
        return float(np.mean(self.of_rows(observed, predicted)))


def true_class_probability(observed: pd.Series, predicted: pd.DataFrame) -> NDArray[np.float64]:
    """Return the probability of each row's true class; 0 for a class without predictions."""
    columns = predicted.columns.get_indexer(pd.Index(observed))
    probability: NDArray[np.float64] = predicted.to_numpy()[np.arange(len(predicted)), columns]
    known: NDArray[np.float64] = np.where(columns < 0, 0.0, probability)
    return known


def positive_probability(predicted: pd.DataFrame) -> NDArray[np.float64]:
    """Return the probability of the positive class of a binary classification."""
    probability: NDArray[np.float64] = predicted.iloc[:, 1].to_numpy(dtype=float)
    return probability


def _log_losses(observed: pd.Series, predicted: pd.DataFrame) -> Losses:
    return log_losses(true_class_probability(observed, predicted))


def _brier_losses(observed: pd.Series, predicted: pd.DataFrame) -> Losses:
    """Return half the squared distance of the probabilities from the true class: of two classes, the usual Brier score."""
    losses = [brier_losses(observed == name, predicted[name]) for name in predicted]
    halved: Losses = np.asarray(np.sum(losses, axis=0) / 2)
    return halved


def _squared_errors(observed: pd.Series, predicted: pd.Series) -> Losses:
    errors: Losses = np.square(np.asarray(predicted - observed, dtype=float))
    return errors


def _absolute_errors(observed: pd.Series, predicted: pd.Series) -> Losses:
    errors: Losses = np.abs(np.asarray(predicted - observed, dtype=float))
    return errors


METRICS: dict[str, tuple[Kind, Metric]] = {
    "log_loss": ("classification", Metric("log_loss", _log_losses)),
    "brier": ("classification", Metric("brier", _brier_losses)),
    "mse": ("regression", Metric("mse", _squared_errors)),
    "mae": ("regression", Metric("mae", _absolute_errors)),
}
DEFAULT_METRIC: dict[Kind, str] = {"classification": "log_loss", "regression": "mse"}


def predict(estimator: Any, features: pd.DataFrame, classes: pd.Index | None) -> Predictions:
    """Return a fitted estimator's predictions.

    Args:
        estimator: Fitted.
        features: The rows.
        classes: All classes of a classification; one that the estimator does not know has the probability 0.

    Raises:
        DataError: The estimator of a classification has no probabilities.
    """
    if classes is None:
        return pd.Series(np.asarray(estimator.predict(features), dtype=float), index=features.index)
    if not hasattr(estimator, "predict_proba"):
        name = type(estimator).__name__
        raise DataError(f"{name} predicts no probabilities: wrap it in sklearn.calibration.CalibratedClassifierCV.")
    probabilities = pd.DataFrame(estimator.predict_proba(features), index=features.index, columns=estimator.classes_)
    return (
        probabilities
        if probabilities.columns.equals(classes)
        else probabilities.reindex(columns=classes, fill_value=0.0)
    )


def score(observed: pd.Series, predicted: Predictions) -> dict[str, float]:
    """Return the usual scores of predictions.

    Of a binary classification log_loss, brier and calibration_error (lower is better), roc_auc, average_precision and
    accuracy (higher is better), the areas not a number where all rows are of one class; of more classes log_loss, accuracy
    and macro_f1; of a regression mse, mae and rmse (lower is better) and r2.
    """
    if isinstance(predicted, pd.Series):
        squared_error = float(np.mean(_squared_errors(observed, predicted)))
        return {
            "mse": squared_error,
            "mae": float(np.mean(_absolute_errors(observed, predicted))),
            "rmse": squared_error**0.5,
            "r2": float(r2_score(observed, predicted)),
        }
    log_loss = {"log_loss": float(np.mean(_log_losses(observed, predicted)))}
    likeliest = predicted.columns.to_numpy()[predicted.to_numpy().argmax(axis=1)]
    if len(predicted.columns) > 2:
        return {
            **log_loss,
            "accuracy": float(accuracy_score(observed, likeliest)),
            "macro_f1": float(f1_score(observed, likeliest, average="macro", zero_division=0)),
        }
    is_positive, probability = (observed == predicted.columns[1]).to_numpy(), positive_probability(predicted)
    areas = {"roc_auc": nan, "average_precision": nan}
    if 0 < np.sum(is_positive) < len(is_positive):
        areas["roc_auc"] = float(roc_auc_score(is_positive, probability))
        areas["average_precision"] = float(average_precision_score(is_positive, probability))
    return {
        **log_loss,
        "brier": float(np.mean(_brier_losses(observed, predicted))),
        "calibration_error": calibration_error(is_positive, probability),
        **areas,
        "accuracy": float(np.mean(is_positive == (probability >= 0.5))),
    }


def calibration_error(is_positive: Any, probability: NDArray[np.float64], bins: int = 10) -> float:
    """Return the expected calibration error, 0 to 1, over bins of equal width.

    It is the mean distance between predicted probability and observed frequency, weighted by the bins' rows. Guo et
    al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    rows = pd.DataFrame({"observed": np.asarray(is_positive, dtype=float), "predicted": probability})
    groups = rows.groupby(np.minimum((probability * bins).astype(int), bins - 1))
    gap = (groups["predicted"].mean() - groups["observed"].mean()).abs()
    return float((gap * groups.size()).sum() / len(rows))


def find_metric(metric: str | Metric, kind: Kind) -> Metric:
    """Return a metric by its name; that of the kind for an empty name.

    Raises:
        ValueError: There is no such metric of this kind.
    """
    if isinstance(metric, Metric):
        return metric
    known: Mapping[str, Metric] = {name: found for name, (of_kind, found) in METRICS.items() if of_kind == kind}
    if (found := known.get(metric or DEFAULT_METRIC[kind])) is None:
        raise ValueError(f"There is no metric {metric!r} of a {kind}: choose {', '.join(known)}, or give a Metric.")
    return found
