"""Recorded observations for runs without a network: Seattle, 2012 to 2015.

Daily values of NOAA's station at Seattle-Tacoma airport, which the `vega_datasets` package ships
(https://github.com/vega/vega-datasets); public domain. Their wind is the day's mean, Open-Meteo's the
day's maximum: a model is fitted on one source and never on a mixture.
"""

import pandas as pd
from vega_datasets import local_data

from flows.weather.observations import Observations, Origin, Place
from flows.weather.validation import GapLimits, check_days

SEATTLE = Place(name="Seattle, Washington, United States", latitude=47.4444, longitude=-122.3139)


def covers(place: str) -> bool:
    """Say whether the text names the one place there are recordings of."""
    return place.split(",")[0].strip().casefold() == "seattle"


def read_recorded(years: int, limits: GapLimits | None = None) -> Observations:
    """Return the last `years` years of the recordings, or all four if that is less.

    They are checked as an answer of Open-Meteo is, but may be old. Raises DataError.
    """
    days = local_data.seattle_weather()
    days = days.rename(
        columns={
            "precipitation": "precipitation_mm",
            "temp_max": "temp_max_c",
            "temp_min": "temp_min_c",
            "wind": "wind_ms",
        }
    )
    days = days.set_index("date").drop(columns="weather")
    after = days.index.max() - pd.DateOffset(years=years)
    checked = check_days(days.loc[days.index > after], SEATTLE.latitude, limits)
    origin = Origin(place=SEATTLE, source="vega-datasets-recorded", url=local_data.seattle_weather.url)
    return Observations(
        origin=origin, frame=checked.frame, filled=checked.filled, dropped_duplicates=checked.dropped_duplicates
    )
