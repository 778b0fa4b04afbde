"""Predictions with their ground truth, as the newest check scored them: errors over time, residuals, and confusions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from statistics import fmean
from typing import Any

from dashboard.conversions import to_number, to_timestamp
from dashboard.registry import tag_values
from trainyard.contract import Column, Problem, Tag

MAX_POINTS = 1000
"""Of a chart of single predictions; of more, every n-th is drawn."""
MAX_CLASSES = 12
"""Of a table of confusions."""
MODEL, BASELINE = "model", "baseline"

LOSSES = {
    Problem.BINARY: "log loss (nats)",
    Problem.MULTICLASS: "log loss (nats)",
    Problem.CLASSES: "share of errors",
    Problem.REGRESSION: "squared error (1 is the baseline's on the holdout)",
}
"""What the loss of each kind of problem is called."""


def summarize_outcomes(runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the outcomes of the newest check, or None if it scored none.

    Args:
        runs: The checks, newest first.
        rows: The rows of `Artifact.OUTCOMES` of the newest.
    """
    if not runs or not rows:
        return None
    problem = tag_values(runs[0]["data"]).get(Tag.PROBLEM, "")
    is_regression = problem == Problem.REGRESSION
    return {
        "problem": problem,
        "rows": len(rows),
        "loss": LOSSES.get(problem, Column.LOSS),
        "losses": daily_losses(rows),
        "residuals": residuals(rows, Column.PREDICTION) if is_regression else [],
        "confusions": confusions(rows) if problem in (Problem.MULTICLASS, Problem.CLASSES) else None,
    }


def daily_losses(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean losses of the model and of the baseline by day (UTC), for a chart."""
    dated = []
    for row in rows:
        at = to_timestamp(row.get(Column.TIME))
        loss, baseline = (to_number(row.get(name)) for name in (Column.LOSS, Column.BASELINE_LOSS))
        if at is not None and loss is not None and baseline is not None:
            dated.append((f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}", loss, baseline))
    points: list[dict[str, Any]] = []
    for day, members in groupby(sorted(dated), key=lambda each: each[0]):
        of_day = list(members)
        for number, predictor in enumerate((MODEL, BASELINE), start=1):
            mean = fmean(float(each[number]) for each in of_day)
            points.append({"day": day, "value": mean, "predictor": predictor, "rows": len(of_day)})
    return points


def residuals(rows: Iterable[Mapping[str, Any]], predicted: str) -> list[dict[str, Any]]:
    """Return observed minus predicted for a sample of a regression's rows, in their order.

    Args:
        rows: The rows of `Artifact.OUTCOMES` or of `Artifact.HOLDOUT`.
        predicted: The column of the predictions.
    """
    points = []
    for row in rows:
        prediction, observed = to_number(row.get(predicted)), to_number(row.get(Column.OBSERVED))
        if prediction is not None and observed is not None:
            time = str(row.get(Column.TIME) or "")
            point = {"prediction": prediction, "observed": observed, "residual": observed - prediction, "time": time}
            points.append(point)
    step = -(-len(points) // MAX_POINTS) or 1
    return points[::step]


def confusions(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how often each class was predicted for each true class, for the most frequent classes."""
    pairs = Counter((str(row.get(Column.OBSERVED)), str(row.get(Column.PREDICTION))) for row in rows)
    frequency = Counter[str]()
    for (observed, predicted), number in pairs.items():
        frequency[observed] += number
        frequency[predicted] += number
    names = sorted(name for name, _ in frequency.most_common(MAX_CLASSES))
    counts = [{"observed": one, "counts": [pairs[one, other] for other in names]} for one in names]
    return {"classes": names, "rows": counts, "left_out": len(frequency) - len(names)}


def holdout_residuals(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the residuals of the rows of `Artifact.HOLDOUT`; none where its predictions are no numbers of a regression.

    A holdout of classes has text as its ground truth, or predictions that all are probabilities of 0 and 1, or of the true
    one of whole numbers. Predicted classes that are whole numbers are told by a check only.

    Args:
        rows: The holdout.
        runs: The checks, newest first.
    """
    problems = {tag_values(run["data"]).get(Tag.PROBLEM, "") for run in runs} - {""}
    found = residuals(rows, Column.MODEL) if problems <= {Problem.REGRESSION} else []
    is_probability = all(0 <= point["prediction"] <= 1 for point in found)
    is_class = all(point["observed"].is_integer() for point in found)
    return [] if is_probability and is_class else found
