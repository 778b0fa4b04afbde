"""Daily observations of one place: what every source delivers and every later step relies on."""

from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from trainyard.errors import DataError
from trainyard.frames import Frame

WEATHER_COLUMNS = ("precipitation_mm", "temp_max_c", "temp_min_c", "wind_ms")

Problem = dict[str, str | int]
"""One row of a table of what is wrong: column, check, first_day, last_day, count (of days), example."""


class Place(BaseModel):
    """A point on Earth, in degrees (WGS 84), and its name."""

    model_config = ConfigDict(frozen=True)

    name: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


class Origin(BaseModel):
    """Where observations come from; logged with every model."""

    model_config = ConfigDict(frozen=True)

    place: Place
    source: Literal["open-meteo", "vega-datasets-recorded"]
    url: str


class Observations(BaseModel):
    """One row a day, oldest first: an index `date` without gaps and WEATHER_COLUMNS without blanks.

    precipitation_mm is the day's sum, temp_max_c and temp_min_c its extremes in degrees Celsius,
    wind_ms a wind speed in metres a second. `filled` are the days that the source left out or blank, in
    whole or in part, and whose values are interpolated; `dropped_duplicates` counts rows sent again.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    origin: Origin
    frame: Frame
    filled: tuple[date, ...] = ()
    dropped_duplicates: int = 0


def check_observations(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame, or raise DataError naming its first missing, repeated or blank day."""
    if frame.empty:
        raise DataError("The source sent no complete day. Ask for another place or more years.")
    days = frame.index.to_series()
    steps = days.diff().iloc[1:]
    wrong = steps[steps != pd.Timedelta(days=1)]
    if not wrong.empty:
        day = pd.Timestamp(wrong.index[0])
        raise DataError(
            f"The days are not consecutive: {day - wrong.iloc[0]:%Y-%m-%d} is followed by {day:%Y-%m-%d}. "
            "Run again later, or choose fewer years or another place."
        )
    blank = frame.isna()
    if blank.to_numpy().any():
        row, column = np.argwhere(blank.to_numpy())[0]
        raise DataError(
            f"No value for {frame.columns[column]} on {frame.index[row]:%Y-%m-%d}. "
            "Run again later, or choose fewer years or another place."
        )
    return frame
