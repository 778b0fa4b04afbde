"""A place's last weeks and the coming days, from Open-Meteo's forecast API.

The archive that models are fitted on lags some days behind. The forecast API has the same daily values up to today and
beyond, in the place's time zone; those of today are partly forecasts. https://open-meteo.com/en/docs
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import httpx
import pandas as pd

from flows.weather.features import LONGEST_WINDOW, build_features
from flows.weather.observations import Observations, Origin, Place
from flows.weather.open_meteo import daily_query, parse_archive
from flows.weather.validation import GapLimits, validate_days
from trainyard.errors import DataError
from trainyard.http import get_json

PAST_DAYS = LONGEST_WINDOW + 10
AHEAD_DAYS = 8
"""Today and a week: one day more than is predicted, for requests around midnight."""
LIMITS = GapLimits(max_gap_days=2, max_filled_share=0.1, max_age_days=5)


@dataclass(frozen=True)
class Outlook:
    """Daily values from some weeks ago to a week ahead, and the offset of the place's time zone from UTC."""

    observations: Observations
    utc_offset: timedelta

    @property
    def place(self) -> Place:
        """The place."""
        return self.observations.origin.place

    @property
    def today(self) -> date:
        """The date in the place's time zone."""
        return (datetime.now(UTC) + self.utc_offset).date()

    def features(self, wet_day_mm: float, days: int) -> pd.DataFrame:
        """Return the features at the end of today and of the days after it.

        Args:
            wet_day_mm: From how many mm of precipitation on a day counts as wet.
            days: The number of rows.

        Raises:
            DataError: The values of a day are missing.
        """
        features = build_features(self.observations.frame, wet_day_mm)
        wanted = pd.date_range(self.today, periods=days, name="date")
        missing = wanted.difference(pd.DatetimeIndex(features.index))
        if not missing.empty:
            raise DataError(f"The weather service sent no values for {missing[0]:%F}. Try again later.")
        return features.loc[wanted]


def look_ahead(url: str, place: Place, timeout_seconds: float, max_wait_seconds: float) -> Outlook:
    """Return the outlook of a place from the forecast service at `url`.

    Args:
        url: Open-Meteo's forecast API.
        place: The place.
        timeout_seconds: Timeout of the request.
        max_wait_seconds: How many seconds to wait where the service asks for a pause.

    Raises:
        SourceError: The service did not deliver (`trainyard.http.get_json`).
        DataError: The answer is not as documented, or breaks a rule of `flows.weather.validation`.
    """
    query = outlook_query(place)
    answer = get_json(url, query, timeout_seconds, max_wait_seconds=max_wait_seconds)
    days = parse_archive(answer)
    seconds = answer.get("utc_offset_seconds")
    if not isinstance(seconds, int) or abs(seconds) > 86400:
        raise DataError(f"The weather service's answer has the UTC offset {seconds!r}. Check its address.")
    offset = timedelta(seconds=seconds)
    today = (datetime.now(UTC) + offset).date()
    requested = (
        today - timedelta(days=PAST_DAYS + 1),
        today + timedelta(days=AHEAD_DAYS),
    )  # the date may change during the request
    origin = Origin(place=place, source="open-meteo", url=str(httpx.URL(url, params=query)))
    return Outlook(validate_days(days, origin, LIMITS, requested), offset)


def outlook_query(place: Place) -> dict[str, str]:
    """Return the request's parameters: some weeks, today and a week ahead, in the place's time zone."""
    return daily_query(place) | {"past_days": str(PAST_DAYS), "forecast_days": str(AHEAD_DAYS)}
