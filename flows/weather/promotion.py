"""The comparison of a candidate with the champion: on which days, and when the two cannot be compared."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from flows.weather.features import TARGET, Examples
from flows.weather.model import BASELINES, FittedModel, predict
from flows.weather.places import place_key, place_of
from trainyard.contract import Column
from trainyard.gate import FIRST_USE, Decision, Reuse, Thresholds, decide
from trainyard.metrics import brier_losses

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
        "refit_last_day": f"{fitted.holdout.index.max():%F}",
    }


def describe_data(examples: Examples) -> str:
    """Return the paragraph of the model card on the data."""
    origin = examples.origin
    days = f"{examples.frame.index.min():%F} to {examples.frame.index.max():%F}"
    return f"Rain tomorrow (at least {examples.wet_day_mm:g} mm) in {origin.place.name}; {origin.source}, {days}."


def compare_with_champion(
    tags: Mapping[str, str],
    fitted: FittedModel,
    champion_tags: Mapping[str, str] | None,
    champion: Any,
    gate: Thresholds,
    reuse: Reuse = FIRST_USE,
) -> Decision:
    """Decide whether a candidate replaces the champion.

    Both are scored on the part of the candidate's holdout that the champion was not fitted on. Baselines come first: also
    where the champion cannot be compared, a candidate has to beat them.

    Args:
        tags: `describe_model` of the candidate.
        fitted: The candidate.
        champion_tags: `describe_model` of the champion; None without a champion.
        champion: The champion's estimator, fitted until its tag `train_last_day`; None without a champion.
        gate: How much better the candidate must be.
        reuse: How often the champion has been compared already.
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
    losses = {
        name: brier_losses(holdout[TARGET], probability[is_unseen.to_numpy()])
        for name, probability in fitted.predictions.items()
    }
    champion_losses, exception = None, None
    if champion_tags is not None:
        try:
            champion_losses = brier_losses(holdout[TARGET], predict(champion, holdout))
        except ValueError as error:  # scikit-learn's error where columns differ
            exception = Decision(promote=True, reason=f"The champion does not know today's features ({error}).")
    baselines = {name: losses[name] for name in BASELINES}
    return decide(
        METRIC, losses[Column.MODEL], baselines, champion_losses, gate, reuse, is_series=True, exception=exception
    )


def why_not_comparable(tags: Mapping[str, str], champion_tags: Mapping[str, str]) -> str | None:
    """Return the reason why a candidate cannot be compared with the champion, or None."""
    place, champion_place = place_of(tags), place_of(champion_tags)
    are_observed = tags["data_source"] == champion_tags.get("data_source") == "open-meteo"
    if place and champion_place and are_observed and place_key(place) != place_key(champion_place):
        return f"It is a model of {place.name}, and the champion one of {champion_place.name}, which lies elsewhere."
    wet_day_mm, champion_wet_day_mm = tags["wet_day_mm"], champion_tags.get("wet_day_mm", tags["wet_day_mm"])
    if wet_day_mm != champion_wet_day_mm:
        return f"It predicts days of at least {wet_day_mm} mm, and the champion days of {champion_wet_day_mm} mm."
    if tags["data_source"] != "open-meteo" and champion_tags.get("data_source") == "open-meteo":
        return "Recorded observations of past years do not replace a champion that was fitted on current ones."
    return None
