"""Requests to Open-Meteo that respect its limits across all runs of the installation.

Without a key it allows 600 calls a minute, 5,000 an hour and 10,000 a day to an address (https://open-meteo.com/en/terms).
A request for many days or variables counts as several calls (https://open-meteo.com/en/pricing).
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from typing import Any

from flows.weather.open_meteo import DAILY
from flows.weather.settings import WeatherSettings
from trainyard import http, rate_limits
from trainyard.errors import RateLimitedError

# A tenth is left to serving and to others behind the same address.
LIMIT = rate_limits.RateLimit("open-meteo.com", per_minute=540, per_hour=4500, per_day=9000)
MAX_WAIT_SECONDS = 4000.0
"""How long a request waits for the limits at most: longer than an hour, after which those by minute and hour are over."""
CONCURRENCY_SECONDS = 5.0


def get_json(url: str, query: Mapping[str, str], calls: float = 1.0) -> Any:
    """Send a request when the limits allow it, and return the JSON of the answer.

    Where Open-Meteo refuses it nevertheless (429), all runs of the installation wait until the limit that it names is over.

    Args:
        url: The address without a query.
        query: The query's parameters.
        calls: How many calls the request counts as.

    Raises:
        WaitTooLongError: The limits allow the request only after `MAX_WAIT_SECONDS`; the message says when.
        SourceError: As in `trainyard.http.get_json`.
    """
    deadline = monotonic() + MAX_WAIT_SECONDS
    while True:
        rate_limits.acquire(LIMIT, calls, deadline - monotonic())
        try:
            return http.get_json(url, query, WeatherSettings().weather_timeout_seconds)
        except RateLimitedError as error:
            seconds = seconds_until_reset(error.reason, datetime.now(UTC))
            if seconds is None:
                raise
            rate_limits.pause(LIMIT, seconds)
            http.check_wait(LIMIT.name, seconds, deadline - monotonic())


def count_calls(first: date, last: date) -> float:
    """Return how many calls a request for the daily values from `first` to `last` counts as.

    Ten variables of 14 days are one call, more of either count in proportion, and none counts as less: `calculateQueryWeight`
    in https://github.com/open-meteo/open-meteo.
    """
    variables = len(DAILY) / 10
    return max(1.0, variables, variables * ((last - first).days + 1) / 14)


def seconds_until_reset(reason: str, now: datetime) -> float | None:
    """Return the seconds until the limit is over that a refusal names; None if it names none.

    The counts of a minute, an hour and a day are reset within a minute after it ends, by UTC: `RateLimiter` in
    https://github.com/open-meteo/open-meteo.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    ends = {
        "minutely": now,
        "hourly": now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1),
        "daily": midnight + timedelta(days=1),
    }
    period = reason.partition(" ")[0].lower()
    if period in ends:
        return (ends[period] - now).total_seconds() + rate_limits.RESET_MARGIN_SECONDS
    return CONCURRENCY_SECONDS if "concurrent" in reason else None
