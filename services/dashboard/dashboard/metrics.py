"""Metrics of MLflow runs: their names on the page, and scores by metric and predictor."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dashboard.conversions import to_number
from trainyard.contract import Column, ScoreName


class Metric(NamedTuple):
    """How the page describes a metric."""

    label: str
    unit: str = ""
    """With the range; empty if not known."""
    better: str = ""
    """`lower`, `higher`, or nothing if not known."""


METRICS = {
    "brier": Metric("Brier score", "mean squared error of the probability, 0 to 1", "lower"),
    "log_loss": Metric("Log loss", "nats", "lower"),
    "calibration_error": Metric("Calibration error", "mean gap between probability and frequency, 0 to 1", "lower"),
    "roc_auc": Metric("ROC AUC", "0.5 is chance, 1 is perfect", "higher"),
    "average_precision": Metric("Average precision", "0 to 1", "higher"),
    "rmse": Metric("Root mean squared error", "unit of the target", "lower"),
    "mae": Metric("Mean absolute error", "unit of the target", "lower"),
    "bias": Metric("Bias", "mean of prediction minus ground truth, unit of the target"),
    "skill": Metric("Skill", "share of the baseline's loss that the model saves, 1 is perfect", "higher"),
    "accuracy": Metric("Accuracy", "fraction of correct predictions, 0 to 1", "higher"),
    "macro_f1": Metric("F1, mean of the classes", "0 to 1", "higher"),
}
"""In the order of the page."""


def describe_metric(name: str) -> Metric:
    """Return a metric's description; one that is not in METRICS is known by its name."""
    return METRICS.get(name) or Metric(name.replace("_", " "))


def sort_metrics(names: Iterable[str]) -> list[str]:
    """Return the distinct names in the order of METRICS, unknown ones last."""
    distinct = dict.fromkeys(names)
    return [name for name in METRICS if name in distinct] + [name for name in distinct if name not in METRICS]


def run_metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's metrics that are finite numbers."""
    metrics = {metric["key"]: to_number(metric.get("value")) for metric in run["data"].get("metrics", [])}
    return {name: value for name, value in metrics.items() if value is not None}


def scores_by_metric(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return a training's scores by metric and predictor, the model first: {"brier": {"model": 0.16, ...}}."""
    names = [name.removeprefix(ScoreName.MODEL_PREFIX) for name in metrics if name.startswith(ScoreName.MODEL_PREFIX)]
    scores = {}
    for metric in sort_metrics(sorted(names)):
        of_metric = {
            key.removesuffix(f"_{metric}"): metrics[key] for key in sorted(metrics) if key.endswith(f"_{metric}")
        }
        baselines = {name: value for name, value in of_metric.items() if name != Column.MODEL and "_" not in name}
        scores[metric] = {Column.MODEL: of_metric[Column.MODEL], **baselines}
    return scores


def sort_predictors(names: Iterable[str]) -> list[str]:
    """Return the distinct names of predictors, the model or its live predictions first."""
    return sorted(set(names), key=lambda name: (name not in (Column.MODEL, "live"), name))
