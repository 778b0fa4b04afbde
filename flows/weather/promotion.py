"""What is said of a model, and when a candidate cannot be compared with the champion."""

from collections.abc import Mapping

from flows.weather.features import Examples
from flows.weather.places import place_key, place_of


def describe_model(examples: Examples) -> dict[str, str]:
    """Return the tags that say what a model predicts, for later candidates and for the hooks."""
    place = examples.origin.place
    return {
        "data_source": examples.origin.source,
        "place": place.name,
        "latitude": f"{place.latitude}",
        "longitude": f"{place.longitude}",
        "wet_day_mm": f"{examples.wet_day_mm:g}",
        "refit_last_day": f"{examples.frame.index.max():%F}",
    }


def describe_data(examples: Examples) -> str:
    """Return the paragraph of the model card and the report on the data."""
    origin = examples.origin
    days = f"{examples.frame.index.min():%F} to {examples.frame.index.max():%F}"
    return f"Rain tomorrow (at least {examples.wet_day_mm:g} mm) in {origin.place.name}; **{origin.source}**, {days}."


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
