"""Metrics of a model and its baselines as one flat set of MLflow metrics."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def brier_losses(observed: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """Return the squared error of each row's probability of the positive class; their mean is the Brier score."""
    losses: NDArray[np.float64] = (np.asarray(probability, dtype=float) - np.asarray(observed, dtype=float)) ** 2
    return losses


def log_losses(true_class_probability: ArrayLike) -> NDArray[np.float64]:
    """Return the negative logarithm of the probability of each row's true class; their mean is the log loss.

    Probabilities are clipped as in `sklearn.metrics.log_loss`.
    """
    probability = np.asarray(true_class_probability, dtype=float)
    smallest = np.finfo(probability.dtype).eps
    losses: NDArray[np.float64] = -np.log(np.clip(probability, smallest, 1 - smallest))
    return losses


def flatten_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores under one name each: `log_loss` of `model` becomes `model_log_loss`."""
    return {f"{owner}_{name}": value for owner, metrics in scores.items() for name, value in metrics.items()}


def scores_table(metrics: Mapping[str, float], owners: Sequence[str]) -> str:
    """Return flattened scores as a Markdown table: a row for each metric, a column for each owner.

    Args:
        metrics: The result of `flatten_scores`.
        owners: The model and its baselines, in the order of the columns; all have the metrics of the first.
    """
    names = [name.removeprefix(f"{owners[0]}_") for name in metrics if name.startswith(f"{owners[0]}_")]
    rows = [" | ".join([name, *(f"{metrics[f'{owner}_{name}']:.4f}" for owner in owners)]) for name in names]
    header = " | ".join(["metric", *owners])
    return "\n".join([f"| {header} |", "|---" * (len(owners) + 1) + "|", *(f"| {row} |" for row in rows)])
