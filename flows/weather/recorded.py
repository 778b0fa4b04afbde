"""Recorded observations for runs without a network: Seattle, 2012 to 2015.

Daily values of NOAA's station at Seattle-Tacoma airport, which the `vega_datasets` package ships
(https://github.com/vega/vega-datasets); public domain. Their wind is the day's mean, Open-Meteo's the day's maximum,
so a model is fitted on one source and never on both.
"""

import pandas as pd
from vega_datasets import local_data

from flows.weather.observations import Observations, Origin, Place
from flows.weather.places import SEATTLE, is_home, place_key
from flows.weather.validation import GapLimits, validate_days

COLUMNS = {
    "precipitation": "precipitation_mm",
    "temp_max": "temp_max_c",
    "temp_min": "temp_min_c",
    "wind": "wind_ms",
}


def has_recordings(place: Place | str) -> bool:
    """Return whether a place or the name of one is Seattle, the one place with recordings.

    The station lies 18 km from the coordinates of the city.
    """
    return is_home(place) if isinstance(place, str) else place_key(place) == place_key(SEATTLE)


def read_recorded(years: int, limits: GapLimits | None = None) -> Observations:
    """Return the last `years` years of the recordings, at most all four.

    Raises:
        DataError: They break a rule of `flows.weather.validation`.
    """
    days = local_data.seattle_weather().rename(columns=COLUMNS).set_index("date").drop(columns="weather")
    after = days.index.max() - pd.DateOffset(years=years)
    origin = Origin(place=SEATTLE, source="vega-datasets-recorded", url=local_data.seattle_weather.url)
    return validate_days(days.loc[days.index > after], origin, limits)
