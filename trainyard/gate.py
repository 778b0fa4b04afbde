"""The promotion gate: may this candidate take the champion's place?"""

from typing import Annotated

from mlflow import validate_evaluation_results
from mlflow.models import MetricThreshold
from mlflow.models.evaluation.base import EvaluationResult
from mlflow.models.evaluation.validation import ModelValidationFailedException
from pydantic import BaseModel, ConfigDict, Field

Metrics = dict[str, float]


class Thresholds(BaseModel):
    """What a candidate must reach on the holdout; Prefect's UI makes a form of it."""

    model_config = ConfigDict(frozen=True)

    min_improvement: Annotated[float, Field(ge=0, le=1)] = 0.001
    """How much better than the champion's its score must be, in the metric's own unit."""

    min_skill: Annotated[float, Field(ge=-1, lt=1)] = 0.0
    """By which share of the baseline's score it must be better than the baseline; negative: it may be worse."""


class Decision(BaseModel):
    """What the gate says, and why in one sentence."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reason: str


def decide(
    metric: str,
    candidate: float,
    baseline: float,
    champion: float | None,
    thresholds: Thresholds,
    *,
    greater_is_better: bool = False,
) -> Decision:
    """Return whether a candidate becomes champion.

    Args:
        metric: The name of the score.
        candidate: The candidate's score on the holdout.
        baseline: The best baseline's score on the same holdout.
        champion: The reigning champion's score on the same holdout; None where there is none.
        thresholds: By how much the candidate must be better.
        greater_is_better: Whether a high score is a good one.
    """
    sign = 1 if greater_is_better else -1
    floor = baseline + sign * thresholds.min_skill * abs(baseline)
    shown = f"{metric} {candidate:.4f}"
    if not _passes(metric, candidate, None, greater_is_better, threshold=floor):
        return Decision(promote=False, reason=f"{shown} does not reach {floor:.4f} (baseline {baseline:.4f}).")
    if champion is None:
        return Decision(promote=True, reason=f"{shown}; the baseline has {baseline:.4f}, and there was no champion.")
    against = f"against the champion's {champion:.4f} on the same holdout"
    # MLflow asks for a change above zero: a candidate that is only as good never takes over.
    step = max(thresholds.min_improvement, 1e-9)
    if _passes(metric, candidate, champion, greater_is_better, min_absolute_change=step):
        return Decision(promote=True, reason=f"{shown} {against}.")
    needed = f"it must be better by {thresholds.min_improvement:g}"
    return Decision(promote=False, reason=f"{shown} {against}; {needed}.")


def _passes(metric: str, candidate: float, champion: float | None, greater_is_better: bool, **limit: float) -> bool:
    threshold = MetricThreshold(greater_is_better=greater_is_better, **limit)  # type: ignore[no-untyped-call]
    try:
        validate_evaluation_results(
            {metric: threshold}, _result(metric, candidate), None if champion is None else _result(metric, champion)
        )
    except ModelValidationFailedException:
        return False
    return True


def _result(metric: str, value: float) -> EvaluationResult:
    return EvaluationResult(metrics={metric: value}, artifacts={})  # type: ignore[no-untyped-call]
