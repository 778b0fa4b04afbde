"""Ask Open-Meteo for past days and check its answer.

The archive joins reanalysis (ERA5 and others) with recent analyses; its newest days may be blank.
No key is needed. https://open-meteo.com/en/docs/historical-weather-api
"""

from datetime import date
from typing import Any

import httpx
import pandas as pd

from flows.weather.observations import (
    Place,
    RateLimitedError,
    SourceUnreachableError,
    WeatherDataError,
    check_observations,
)

# Open-Meteo's name of each daily value: our column and the unit asked for.
DAILY = {
    "precipitation_sum": ("precipitation_mm", "mm"),
    "temperature_2m_max": ("temp_max_c", "°C"),
    "temperature_2m_min": ("temp_min_c", "°C"),
    "wind_speed_10m_max": ("wind_ms", "m/s"),
}


def get_json(url: str, query: dict[str, str], timeout_seconds: float) -> Any:
    """Return the JSON that a GET request answers with.

    Raises SourceUnreachableError (no connection, no answer in time, 5xx) and RateLimitedError (429),
    which are worth another try, and WeatherDataError (refused, or not JSON), which is not.
    """
    timeout = httpx.Timeout(timeout_seconds, connect=timeout_seconds / 5)
    try:
        answer = httpx.get(url, params=query, timeout=timeout)
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise SourceUnreachableError(f"{url} cannot be reached ({reason}).") from error
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise RateLimitedError(f"{url} asks for fewer requests (429). Run again in some minutes.")
    if answer.is_server_error:
        raise SourceUnreachableError(f"{url} answers with status {answer.status_code}.")
    try:
        content = answer.json()
    except ValueError as error:
        raise WeatherDataError(
            f"{url} sent no valid JSON ({error}; status {answer.status_code}, {len(answer.content)} bytes). "
            "Run again later; if it stays so, check the address."
        ) from error
    if not answer.is_success or (isinstance(content, dict) and content.get("error")):
        reason = content.get("reason", content) if isinstance(content, dict) else content
        raise WeatherDataError(
            f"{url} refused the request (status {answer.status_code}): {reason} Check the run's parameters."
        )
    return content


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
    """Return the answer's days as a frame in the form of `Observations`.

    Newest days that are not complete yet are dropped. Raises WeatherDataError if a column is missing,
    has another length or unit or holds something else than numbers, or if days are missing or blank.
    """
    daily, units = _member(answer, "daily"), _member(answer, "daily_units")
    days = _column(daily, "time")
    columns = {}
    for name, (column, unit) in DAILY.items():
        values = _column(daily, name)
        if len(values) != len(days):
            raise _unexpected(f"{name!r} has {len(values)} values for {len(days)} days")
        if units.get(name) != unit:
            raise _unexpected(f"{name!r} is in {units.get(name)!r}, not in {unit!r}")
        columns[column] = values
    try:
        index = pd.DatetimeIndex(pd.to_datetime(days, format="%Y-%m-%d"), name="date")
        frame = pd.DataFrame(columns, index=index).astype(float)
    except (TypeError, ValueError) as error:
        raise _unexpected(f"a value is neither a number nor a date ({error})") from error
    complete = frame.notna().all(axis="columns")
    return check_observations(frame.loc[: complete[complete].index.max()] if complete.any() else frame[:0])


def _member(parent: Any, name: str) -> dict[str, Any]:
    member = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(member, dict):
        raise _unexpected(f"it has no object {name!r}")
    return member


def _column(daily: dict[str, Any], name: str) -> list[Any]:
    column = daily.get(name)
    if not isinstance(column, list):
        raise _unexpected(f"the column {name!r} is missing")
    return column


def _unexpected(what: str) -> WeatherDataError:
    return WeatherDataError(
        f"The weather archive's answer is not as documented: {what}. "
        "Check WEATHER_ARCHIVE_URL; if it is Open-Meteo's, its format has changed."
    )
