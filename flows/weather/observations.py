"""Daily observations of one place: the form that every source delivers and every later step relies on."""

from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from trainyard.errors import DataError
from trainyard.frames import Frame

WEATHER_COLUMNS = ("precipitation_mm", "temp_max_c", "temp_min_c", "wind_ms")
DAY = pd.Timedelta(days=1)
RUN_AGAIN = "Run again later, or choose fewer years or another place."
NO_COMPLETE_DAY = "The source sent no complete day. Choose another place or more years."

Problem = dict[str, str | int]
"""A row of a table of problems: column, check, first_day, last_day, count (of days), example."""


class Place(BaseModel):
    """A point on Earth, in degrees (WGS 84), and its name."""

    model_config = ConfigDict(frozen=True)

    name: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


class Origin(BaseModel):
    """The source of observations, logged with every model."""

    model_config = ConfigDict(frozen=True)

    place: Place
    source: Literal["open-meteo", "vega-datasets-recorded"]
    url: str


class Observations(BaseModel):
    """One row for each day, oldest first: an index `date` without gaps, and WEATHER_COLUMNS without blanks.

    precipitation_mm is the day's sum, temp_max_c and temp_min_c are its extremes in degrees Celsius, and
    wind_ms is a wind speed in metres per second.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    origin: Origin
    frame: Frame
    filled: tuple[date, ...] = ()
    """Days of which at least one value was missing and is filled with the newest earlier one."""
    dropped_duplicates: int = 0
    """Number of identical rows that were dropped."""


def require_complete(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame unchanged.

    Raises:
        DataError: It is empty, or a day is missing, repeated or has a blank; the message names the first.
    """
    if frame.empty:
        raise DataError(NO_COMPLETE_DAY)
    days = frame.index.to_series()
    steps = days.diff().iloc[1:]
    wrong = steps[steps != DAY]
    if not wrong.empty:
        day = pd.Timestamp(wrong.index[0])
        raise DataError(f"The days are not consecutive: {day - wrong.iloc[0]:%F} is followed by {day:%F}. {RUN_AGAIN}")
    blank = frame.isna().to_numpy()
    if blank.any():
        row, column = np.argwhere(blank)[0]
        raise DataError(f"No value for {frame.columns[column]} on {frame.index[row]:%F}. {RUN_AGAIN}")
    return frame
