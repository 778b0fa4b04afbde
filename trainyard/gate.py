"""The promotion gate: whether a candidate replaces the champion."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EPSILON = 1e-9
"""A smaller difference between two scores is none: a candidate that is only as good is never promoted."""


class Thresholds(BaseModel):
    """What a candidate must reach on the holdout; Prefect's UI shows them as a form."""

    model_config = ConfigDict(frozen=True)

    min_improvement: Annotated[float, Field(ge=0, le=1)] = 0.001
    """How much better than the champion's score it must be, in the metric's own unit."""

    min_skill: Annotated[float, Field(ge=-1, lt=1)] = 0.0
    """How much better than the baseline's score it must be, as a share of it; a negative share lets it be worse."""


class Decision(BaseModel):
    """The gate's decision, with its reason in one sentence."""

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
    """Decide whether a candidate becomes the champion.

    Args:
        metric: The name of the score.
        candidate: The candidate's score on the holdout.
        baseline: The best baseline's score on the same holdout.
        champion: The current champion's score on the same holdout; None without a champion.
        thresholds: How much better the candidate must be.
        greater_is_better: Whether a higher score is better, as for accuracy; a lower one is for losses.
    """
    sign = 1 if greater_is_better else -1
    floor = baseline + sign * thresholds.min_skill * abs(baseline)
    shown = f"{metric} {candidate:.4f}"
    if not sign * candidate >= sign * floor:
        return Decision(promote=False, reason=f"{shown} does not reach {floor:.4f} (baseline {baseline:.4f}).")
    if champion is None:
        return Decision(promote=True, reason=f"{shown}; the baseline has {baseline:.4f}, and there was no champion.")
    target = champion + sign * max(thresholds.min_improvement, EPSILON)
    comparison = f"{shown} against the champion's {champion:.4f} on the same holdout"
    if sign * candidate >= sign * target:
        return Decision(promote=True, reason=f"{comparison}.")
    reason = f"{comparison}; it must be better by {thresholds.min_improvement:g}."
    return Decision(promote=False, reason=reason)
