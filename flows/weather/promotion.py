"""The comparison of a candidate with the champion: on which days, and when the two cannot be compared."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from sklearn.metrics import brier_score_loss

from flows.weather.features import TARGET, Examples
from flows.weather.model import BASELINES, FittedModel, predict
from trainyard.contract import Column
from trainyard.gate import Decision, Thresholds, decide

METRIC = "brier"
MIN_DAYS = 30


def describe_model(examples: Examples, fitted: FittedModel) -> dict[str, str]:
    """Return the tags that say what a model predicts, for later candidates and for the hooks."""
    place = examples.origin.place
    return {
        "data_source": examples.origin.source,
        "place": place.name,
        "latitude": f"{place.latitude}",
        "longitude": f"{place.longitude}",
        "wet_day_mm": f"{examples.wet_day_mm:g}",
        "train_last_day": f"{fitted.train.index.max():%F}",
    }


def compare_with_champion(
    tags: Mapping[str, str],
    fitted: FittedModel,
    champion_tags: Mapping[str, str] | None,
    champion: Any,
    gate: Thresholds,
) -> Decision:
    """Decide whether a candidate replaces the champion.

    Both are scored on the part of the candidate's holdout that the champion was not fitted on.

    Args:
        tags: `describe_model` of the candidate.
        fitted: The candidate.
        champion_tags: `describe_model` of the champion; None without a champion.
        champion: The champion's estimator; None without a champion.
        gate: How much better the candidate must be.
    """
    is_unseen = pd.Series(data=True, index=fitted.holdout.index)
    if champion_tags is not None:
        if reason := why_not_comparable(tags, champion_tags):
            return Decision(promote=False, reason=reason)
        is_unseen &= fitted.holdout.index > pd.Timestamp(champion_tags.get("train_last_day", "1900-01-01"))
    holdout = fitted.holdout.loc[is_unseen]
    if len(holdout) < MIN_DAYS or holdout[TARGET].nunique() < 2:
        reason = (
            f"There are only {len(holdout)} days that neither it nor the champion was fitted on; {MIN_DAYS} are needed."
        )
        return Decision(promote=False, reason=reason)
    scores = {
        name: float(brier_score_loss(holdout[TARGET], probability[is_unseen.to_numpy()]))
        for name, probability in fitted.predictions.items()
    }
    champion_score = None
    if champion_tags is not None:
        try:
            champion_score = float(brier_score_loss(holdout[TARGET], predict(champion, holdout)))
        except ValueError as error:  # scikit-learn's error where columns differ
            return Decision(promote=True, reason=f"The champion does not know today's features ({error}).")
    baseline = min(scores[name] for name in BASELINES)
    return decide(METRIC, scores[Column.MODEL], baseline, champion_score, gate)


def why_not_comparable(tags: Mapping[str, str], champion_tags: Mapping[str, str]) -> str | None:
    """Return the reason why a candidate cannot be compared with the champion, or None."""
    wet_day_mm, champion_wet_day_mm = tags["wet_day_mm"], champion_tags.get("wet_day_mm", tags["wet_day_mm"])
    if wet_day_mm != champion_wet_day_mm:
        return f"It predicts days of at least {wet_day_mm} mm, and the champion days of {champion_wet_day_mm} mm."
    if tags["data_source"] != "open-meteo" and champion_tags.get("data_source") == "open-meteo":
        return "Recorded observations of past years do not replace a champion that was fitted on current ones."
    return None
