"""Recorded observations for runs without a network: Seattle, 2012 to 2015.

Daily values of NOAA's station at Seattle-Tacoma airport, which the `vega_datasets` package ships
(https://github.com/vega/vega-datasets); public domain. Their wind is the day's mean, Open-Meteo's the day's maximum,
so a model is fitted on one source and never on both.
"""

import pandas as pd
from vega_datasets import local_data

from flows.weather.observations import Observations, Origin, Place
from flows.weather.validation import GapLimits, validate_days

SEATTLE = Place(name="Seattle, Washington, United States", latitude=47.4444, longitude=-122.3139)
COLUMNS = {
    "precipitation": "precipitation_mm",
    "temp_max": "temp_max_c",
    "temp_min": "temp_min_c",
    "wind": "wind_ms",
}


def has_recordings(place: str) -> bool:
    """Return whether the text names Seattle, the one place with recordings."""
    return place.split(",")[0].strip().casefold() == "seattle"


def read_recorded(years: int, limits: GapLimits | None = None) -> Observations:
    """Return the last `years` years of the recordings, at most all four.

    Raises:
        DataError: They break a rule of `flows.weather.validation`.
    """
    days = local_data.seattle_weather().rename(columns=COLUMNS).set_index("date").drop(columns="weather")
    after = days.index.max() - pd.DateOffset(years=years)
    origin = Origin(place=SEATTLE, source="vega-datasets-recorded", url=local_data.seattle_weather.url)
    return validate_days(days.loc[days.index > after], origin, limits)
