"""A client of Open-Meteo's daily values.

The archive joins reanalysis (ERA5 and others) with recent analyses; its newest days may be blank. The forecast has the
same values in the same form. No key is needed. https://open-meteo.com/en/docs/historical-weather-api
"""

from datetime import date
from typing import Any

import httpx
import pandas as pd

from flows.weather.observations import Observations, Origin, Place
from flows.weather.validation import GapLimits, make_problem, validate_days
from trainyard.errors import DataError
from trainyard.http import get_json

DAILY = {
    "precipitation_sum": ("precipitation_mm", "mm"),
    "temperature_2m_max": ("temp_max_c", "°C"),
    "temperature_2m_min": ("temp_min_c", "°C"),
    "wind_speed_10m_max": ("wind_ms", "m/s"),
}
"""By Open-Meteo's name of a daily value: our column, and the requested unit."""


def observe(
    url: str, place: Place, first: date, last: date, timeout_seconds: float, limits: GapLimits | None = None
) -> Observations:
    """Return the validated observations of a place from `first` to `last` by one request to the archive at `url`.

    Raises:
        SourceError: The archive did not deliver, as in `trainyard.http.get_json`.
        DataError: The answer has another form than documented, or breaks a rule of `flows.weather.validation`.
    """
    days = parse_archive(get_json(url, archive_query(place, first, last), timeout_seconds))
    return validate(days, url, place, first, last, limits)


def validate(
    days: pd.DataFrame, url: str, place: Place, first: date, last: date, limits: GapLimits | None = None
) -> Observations:
    """Return the validated observations of a place from `first` to `last` from the archive at `url`.

    Args:
        days: As `parse_archive` returns them, of one or several answers.
        url: The archive's address.
        place: The place.
        first: The first day that was requested.
        last: The last one.
        limits: How much may be missing.

    Raises:
        DataError: The days break a rule of `flows.weather.validation`.
    """
    origin = Origin(place=place, source="open-meteo", url=str(httpx.URL(url, params=archive_query(place, first, last))))
    return validate_days(days, origin, limits, requested=(first, last))


def daily_query(place: Place) -> dict[str, str]:
    """Return the parameters that requests for daily values share: place, columns, units, and local days."""
    return {
        "latitude": str(place.latitude),
        "longitude": str(place.longitude),
        "daily": ",".join(DAILY),
        "timezone": "auto",
        "temperature_unit": "celsius",
        "wind_speed_unit": "ms",
        "precipitation_unit": "mm",
    }


def archive_query(place: Place, first: date, last: date) -> dict[str, str]:
    """Return the parameters of an archive request for the local days from `first` to `last`."""
    return daily_query(place) | {"start_date": first.isoformat(), "end_date": last.isoformat()}


def parse_archive(answer: Any) -> pd.DataFrame:
    """Return the days of an answer of the archive or the forecast, as they were sent.

    Days may be missing, blank or repeated and values impossible: `validate_days` looks for those.

    Returns:
        A frame with an index `date` and WEATHER_COLUMNS in float64.

    Raises:
        DataError: A column is missing, has another length or unit, or holds something other than numbers.
    """
    daily, units = _get_object(answer, "daily"), _get_object(answer, "daily_units")
    days = _get_column(daily, "time")
    columns = {}
    for name, (column, unit) in DAILY.items():
        values = _get_column(daily, name)
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


def _get_object(parent: Any, name: str) -> dict[str, Any]:
    member = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(member, dict):
        raise _unexpected(name, f"it has no object {name!r}")
    return member


def _get_column(daily: dict[str, Any], name: str) -> list[Any]:
    column = daily.get(name)
    if not isinstance(column, list):
        raise _unexpected(name, f"the column {name!r} is missing")
    return column


def _unexpected(column: str, reason: str) -> DataError:
    return DataError(
        f"The weather service's answer is not as documented: {reason}. "
        "Check WEATHER_ARCHIVE_URL and WEATHER_FORECAST_URL; if they are Open-Meteo's, its format has changed.",
        [make_problem(column, reason)],
    )
