"""What a candidate for tomorrow's rain must show against the champion: which days count, and when none do."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from sklearn.metrics import brier_score_loss

from flows.weather.features import TARGET, Examples
from flows.weather.model import BASELINES, FittedModel, forecast
from trainyard.gate import Decision, Thresholds, decide

METRIC = "brier"
MIN_DAYS = 30


def describe_question(examples: Examples, training: FittedModel) -> dict[str, str]:
    """Return the tags by which others see what the model answers: a later candidate, and who asks for a forecast."""
    place = examples.origin.place
    return {
        "data_source": examples.origin.source,
        "place": place.name,
        "latitude": f"{place.latitude}",
        "longitude": f"{place.longitude}",
        "wet_day_mm": f"{examples.wet_day_mm:g}",
        "train_last_day": f"{training.train.index.max():%F}",
    }


def compare_with_champion(
    question: Mapping[str, str],
    training: FittedModel,
    reigning: Mapping[str, str] | None,
    champion: Any,
    gate: Thresholds,
) -> Decision:
    """Return whether the candidate takes the champion's place.

    Both are scored on the candidate's holdout, from the first day that the champion was not fitted on.

    Args:
        question: The candidate's `describe_question`.
        training: The candidate.
        reigning: The champion's `describe_question`; None where there is none.
        champion: The champion's estimator.
        gate: By how much the candidate must be better.
    """
    days = pd.Series(data=True, index=training.holdout.index)
    if reigning is not None:
        if reason := why_not_comparable(question, reigning):
            return Decision(promote=False, reason=reason)
        days &= training.holdout.index > pd.Timestamp(reigning.get("train_last_day", "1900-01-01"))
    holdout = training.holdout.loc[days]
    if len(holdout) < MIN_DAYS or holdout[TARGET].nunique() < 2:
        reason = (
            f"There are only {len(holdout)} days that neither it nor the champion was fitted on; {MIN_DAYS} are needed."
        )
        return Decision(promote=False, reason=reason)
    scores = {
        name: float(brier_score_loss(holdout[TARGET], probability[days.to_numpy()]))
        for name, probability in training.forecasts.items()
    }
    champions = None
    if reigning is not None:
        try:
            champions = float(brier_score_loss(holdout[TARGET], forecast(champion, holdout)))
        except ValueError as error:  # scikit-learn's answer to other columns
            return Decision(promote=True, reason=f"The champion does not know today's features ({error}).")
    return decide(METRIC, scores["model"], min(scores[name] for name in BASELINES), champions, gate)


def why_not_comparable(question: Mapping[str, str], reigning: Mapping[str, str]) -> str | None:
    """Return why two models do not answer the same question, or None."""
    ours, theirs = question["wet_day_mm"], reigning.get("wet_day_mm", question["wet_day_mm"])
    if ours != theirs:
        return f"It answers another question: a wet day has {ours} mm, and {theirs} mm to the champion."
    if question["data_source"] != "open-meteo" and reigning.get("data_source") == "open-meteo":
        return "Recorded observations of years ago do not replace a champion that was fitted on live ones."
    return None
