"""Ask Open-Meteo for past days and read its answer.

The archive joins reanalysis (ERA5 and others) with recent analyses; its newest days may be blank.
No key is needed. https://open-meteo.com/en/docs/historical-weather-api
"""

from datetime import date
from typing import Any

import httpx
import pandas as pd

from flows.weather.observations import Observations, Origin, Place
from flows.weather.validation import GapLimits, check_days, make_problem
from trainyard.errors import DataError
from trainyard.http import get_json

# Open-Meteo's name of each daily value: our column and the unit asked for.
DAILY = {
    "precipitation_sum": ("precipitation_mm", "mm"),
    "temperature_2m_max": ("temp_max_c", "°C"),
    "temperature_2m_min": ("temp_min_c", "°C"),
    "wind_speed_10m_max": ("wind_ms", "m/s"),
}


def observe(
    url: str, place: Place, first: date, last: date, timeout_seconds: float, limits: GapLimits | None = None
) -> Observations:
    """Return the checked observations of a place from `first` to `last` from the archive at `url`.

    Raises what `get_json` of `trainyard.http` raises, and DataError if the answer has another
    form than documented or breaks a rule of `flows.weather.validation`.
    """
    query = archive_query(place, first, last)
    days = parse_archive(get_json(url, query, timeout_seconds))
    checked = check_days(days, place.latitude, limits, asked=(first, last))
    origin = Origin(place=place, source="open-meteo", url=str(httpx.URL(url, params=query)))
    return Observations(
        origin=origin, frame=checked.frame, filled=checked.filled, dropped_duplicates=checked.dropped_duplicates
    )


def archive_query(place: Place, first: date, last: date) -> dict[str, str]:
    """Return the request's parameters for the days from `first` to `last`, by the place's own clock."""
    return {
        "latitude": str(place.latitude),
        "longitude": str(place.longitude),
        "start_date": first.isoformat(),
        "end_date": last.isoformat(),
        "daily": ",".join(DAILY),
        "timezone": "auto",
        "temperature_unit": "celsius",
        "wind_speed_unit": "ms",
        "precipitation_unit": "mm",
    }


def parse_archive(answer: Any) -> pd.DataFrame:
    """Return the answer's days as they were sent: an index `date` and WEATHER_COLUMNS in float64.

    Raises DataError if a column is missing, has another length or unit or holds something else
    than numbers. Days may be missing, blank or repeated, and values impossible: `check_days` looks there.
    """
    daily, units = _member(answer, "daily"), _member(answer, "daily_units")
    days = _column(daily, "time")
    columns = {}
    for name, (column, unit) in DAILY.items():
        values = _column(daily, name)
        if len(values) != len(days):
            raise _unexpected(name, f"{name!r} has {len(values)} values for {len(days)} days")
        if units.get(name) != unit:
            raise _unexpected(name, f"{name!r} is in {units.get(name)!r}, not in {unit!r}")
        columns[column] = values
    try:
        index = pd.DatetimeIndex(pd.to_datetime(days, format="%Y-%m-%d"), name="date")
        frame = pd.DataFrame(columns, index=index).astype(float)
    except (TypeError, ValueError) as error:
        raise _unexpected("daily", f"a value is neither a number nor a date ({error})") from error
    if index.hasnans:
        raise _unexpected("time", "a day has no date")
    return frame


def _member(parent: Any, name: str) -> dict[str, Any]:
    member = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(member, dict):
        raise _unexpected(name, f"it has no object {name!r}")
    return member


def _column(daily: dict[str, Any], name: str) -> list[Any]:
    column = daily.get(name)
    if not isinstance(column, list):
        raise _unexpected(name, f"the column {name!r} is missing")
    return column


def _unexpected(column: str, what: str) -> DataError:
    return DataError(
        f"The weather service's answer is not as documented: {what}. "
        "Check WEATHER_ARCHIVE_URL and WEATHER_FORECAST_URL; if they are Open-Meteo's, its format has changed.",
        [make_problem(column, what)],
    )
