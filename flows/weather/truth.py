"""Whether it rained: what forecasts of tomorrow's rain are measured by."""

from collections.abc import Mapping

import pandas as pd

from flows.weather.observations import Observations, Place
from trainyard.errors import DataError


def place_of(tags: Mapping[str, str]) -> Place:
    """Return the place that a model's version answers for.

    Raises:
        DataError: Its tags do not say.
    """
    try:
        return Place(name=tags["place"], latitude=float(tags["latitude"]), longitude=float(tags["longitude"]))
    except (KeyError, ValueError) as error:
        raise DataError("The model's version does not say for which place it is. Train it again.") from error


def was_wet(observations: Observations, wet_day_mm: float) -> dict[str, bool]:
    """Return by day (ISO 8601) whether it had at least `wet_day_mm` of precipitation; a filled day says nothing."""
    rain, filled = observations.frame["precipitation_mm"], set(observations.filled)
    days = [day.date() for day in pd.DatetimeIndex(rain.index)]
    return {day.isoformat(): bool(mm >= wet_day_mm) for day, mm in zip(days, rain, strict=True) if day not in filled}
