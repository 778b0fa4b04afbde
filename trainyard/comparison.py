"""The comparison of a candidate with the champion, on holdout rows that neither of them was fitted on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainyard.contract import Column
from trainyard.fitting import Evaluation, losses_of
from trainyard.gate import FIRST_USE, Decision, Thresholds, decide
from trainyard.problem import MIN_HOLDOUT_ROWS, Parts, Problem
from trainyard.registry import Champion, Compare
from trainyard.scoring import Predictions, predict
from trainyard.splits import Mask


def make_comparison(
    problem: Problem, parts: Parts, evaluation: Evaluation, tags: Mapping[str, str], gate: Thresholds
) -> Compare:
    """Return what decides about a candidate under the registry's lock.

    Baselines come first: also where the champion cannot be compared, a candidate has to beat them.

    Args:
        problem: The problem.
        parts: The data.
        evaluation: The candidate.
        tags: The tags of the candidate's version.
        gate: The thresholds.
    """

    def compare(champion: Champion | None) -> Decision:
        rows, predicted, exception = None, None, None
        if champion is not None:
            rows, exception = _find_rows(problem, parts, tags, champion)
        if champion is not None and exception is None:
            predicted, exception = _predict_champion(problem, parts, champion)
        losses = {name: losses_of(problem, parts, each, rows) for name, each in evaluation.predictions.items()}
        return decide(
            problem.loss.name,
            losses.pop(Column.MODEL),
            losses,
            None if predicted is None else losses_of(problem, parts, predicted, rows),
            gate,
            champion.reuse if champion else FIRST_USE,
            is_series=problem.split.is_series,
            exception=exception,
        )

    return compare


def _find_rows(
    problem: Problem, parts: Parts, tags: Mapping[str, str], champion: Champion
) -> tuple[Mask | None, Decision | None]:
    """Return the rows to compare on, or the decision where there are none."""
    if problem.why_not_comparable and (reason := problem.why_not_comparable(tags, champion.tags)):
        return None, Decision(promote=False, reason=reason)
    name = f"The champion, version {champion.version},"
    rows = problem.split.find_unseen(parts.holdout, tags, champion.tags)
    if isinstance(rows, str):
        return None, Decision(promote=False, reason=f"{name} cannot be compared: {rows}. Compare them by hand.")
    observed = parts.holdout[problem.target][rows]
    if len(observed) < MIN_HOLDOUT_ROWS or (problem.is_classification and observed.nunique() < 2):
        few = f"{len(observed)} rows of the holdout, which are too few or of one class"
        return None, Decision(promote=False, reason=f"{name} was not fitted on {few}; it stays.")
    return (None if bool(np.all(rows)) else rows), None


def _predict_champion(problem: Problem, parts: Parts, champion: Champion) -> tuple[Predictions | None, Decision | None]:
    """Return the champion's predictions for the holdout, or the decision where it cannot make any."""
    estimator: Any = champion.load_estimator()
    try:
        return predict(estimator, problem.select_features(parts.holdout), parts.classes), None
    except (ValueError, KeyError) as error:  # scikit-learn's, where columns differ
        reason = f"The champion does not know these features ({error})."
        return None, Decision(promote=True, reason=reason)
