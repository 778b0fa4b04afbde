"""Ground truth: whether the days that a model predicted were wet."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pandas as pd

from flows.weather.observations import Observations
from flows.weather.places import place_of
from flows.weather.settings import WeatherSettings
from flows.weather.validation import GapLimits
from trainyard.errors import DataError
from trainyard.hooks import ModelInfo

MIN_WINDOW = timedelta(days=90)
"""Shortest period that is fetched: all models of a place then share one cached answer, however few days each asks for."""
MAX_LAG = timedelta(days=2)
"""Yesterday is not over everywhere on Earth."""
GAPS = GapLimits(max_gap_days=5, max_filled_share=0.2)
"""A filled day counts as not observed, so that more of them may be missing than in a training."""


def ground_truth(model: ModelInfo, times: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return 1 for wet and 0 for dry days, by place and day; days that are not observed yet are left out.

    Args:
        model: A version with the tags `place`, `latitude`, `longitude` and `wet_day_mm`.
        times: Days, as ISO 8601 dates.

    Raises:
        SourceError: The archive did not deliver.
        DataError: The tags do not name a place, or the archive's answer cannot be used.
    """
    from flows.weather.ingest import fetch_archive  # needs Prefect, which serving's image lacks; `live` imports this

    newest = datetime.now(UTC).date() - MAX_LAG
    past = [day for day in map(date.fromisoformat, times) if day <= newest]
    if not past:
        return {}
    place, wet_day_mm = place_of(model.tags), wet_day_of(model.tags)
    if place is None:
        raise DataError("The tags of the model version do not name its place. Train the model again.")
    first = min(*past, newest - MIN_WINDOW)
    # The monitor retries the hook as a whole.
    fetch = fetch_archive.with_options(retries=0)
    observations = fetch(WeatherSettings().weather_archive_url, place, first, newest, GAPS)
    return {(place.name, day): float(is_wet) for day, is_wet in find_wet_days(observations, wet_day_mm).items()}


def wet_day_of(tags: Mapping[str, str]) -> float:
    """Return the precipitation (mm) from which a model version counts a day as wet.

    Raises:
        DataError: Its tag `wet_day_mm` is missing or not a number.
    """
    try:
        return float(tags["wet_day_mm"])
    except (KeyError, ValueError) as error:
        raise DataError("The model version has no tag wet_day_mm. Train the model again.") from error


def find_wet_days(observations: Observations, wet_day_mm: float) -> dict[str, bool]:
    """Return by day (ISO 8601) whether it had at least `wet_day_mm` of precipitation, without filled days."""
    rain, filled = observations.frame["precipitation_mm"], set(observations.filled)
    days = [day.date() for day in pd.DatetimeIndex(rain.index)]
    return {day.isoformat(): bool(mm >= wet_day_mm) for day, mm in zip(days, rain, strict=True) if day not in filled}
