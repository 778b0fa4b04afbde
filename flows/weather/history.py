"""The archive's days of a place, of which only those are fetched that are not kept from an earlier run.

The archive corrects a day for some months: the reanalysis ERA5 replaces its preliminary values after two to three months
(https://confluence.ecmwf.int/display/CKB/ERA5%3A+data+documentation). A year is kept once its last day is older than that.
"""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import pandas as pd

from flows.weather import open_meteo, quota
from flows.weather.observations import Observations, Place
from flows.weather.validation import GapLimits
from trainyard import cache
from trainyard.fingerprint import code_fingerprint

SETTLED_AFTER = timedelta(days=90)
KEPT_DAYS = 90.0
MAX_DAYS_OF_A_REQUEST = 3653
"""Ten years, about 104 calls: a request must not count as more than a limit by the minute has."""
DAY = timedelta(days=1)

Period = tuple[date, date]
Years = dict[int, pd.DataFrame]


def fetch(url: str, place: Place, first: date, last: date, limits: GapLimits) -> Observations:
    """Return the validated observations of a place from `first` to `last`.

    Raises:
        SourceError: The archive did not deliver, as in `flows.weather.quota.get_json`.
        DataError: As in `flows.weather.open_meteo.validate`.
    """
    kept = recall_years(url, place, first, last)
    fetched = [fetch_period(url, place, *period) for period in missing_periods(first, last, kept)]
    days = pd.concat([*kept.values(), *fetched])
    observations = open_meteo.validate(days, url, place, first, last, limits)
    keep_years(url, place, first, last, kept, days)
    print(f"{place.name}: {len(kept)} years kept from earlier runs, {sum(map(len, fetched))} days fetched")
    return observations


def fetch_period(url: str, place: Place, first: date, last: date) -> pd.DataFrame:
    """Return the days of a period as the archive sent them."""
    query = open_meteo.archive_query(place, first, last)
    return open_meteo.parse_archive(quota.get_json(url, query, quota.count_calls(first, last)))


def years_of(first: date, last: date) -> dict[int, Period]:
    """Return the part of each year that a period covers."""
    years = range(first.year, last.year + 1)
    return {year: (max(first, date(year, 1, 1)), min(last, date(year, 12, 31))) for year in years}


def missing_periods(first: date, last: date, kept: Mapping[int, Any]) -> list[Period]:
    """Return the periods of the years that are not kept: consecutive years together, up to the days of one request."""
    missing = [period for year, period in years_of(first, last).items() if year not in kept]
    breaks = [0, *(at for at, (one, other) in enumerate(pairwise(missing), 1) if other[0] - one[1] > DAY), len(missing)]
    together = [(missing[one][0], missing[other - 1][1]) for one, other in pairwise(breaks) if one < other]
    return [part for period in together for part in _split(*period)]


def recall_years(url: str, place: Place, first: date, last: date) -> Years:
    """Return the years of a period of which all days that it covers are kept."""
    found = {}
    for year, (begins, ends) in years_of(first, last).items():
        if last - date(year, 12, 31) >= SETTLED_AFTER:
            days = cache.recall("weather-year", _identity(url, place, year), KEPT_DAYS)
            if days is not None and days.index[0] <= pd.Timestamp(begins) and days.index[-1] >= pd.Timestamp(ends):
                found[year] = days.loc[pd.Timestamp(begins) : pd.Timestamp(ends)]
    return found


def keep_years(url: str, place: Place, first: date, last: date, kept: Years, days: pd.DataFrame) -> None:
    """Keep the years that the archive does not correct any more, if it sent all of their days once and complete."""
    days = days.sort_index()
    for year, (begins, ends) in years_of(first, last).items():
        part = days.loc[pd.Timestamp(begins) : pd.Timestamp(ends)]
        is_complete = part.index.equals(pd.date_range(begins, ends)) and part.notna().to_numpy().all()
        if year not in kept and is_complete and last - date(year, 12, 31) >= SETTLED_AFTER:
            cache.keep("weather-year", _identity(url, place, year), part, KEPT_DAYS)


def _identity(url: str, place: Place, year: int) -> list[Any]:
    code = code_fingerprint(open_meteo.parse_archive, open_meteo.daily_query)
    return [url, place.latitude, place.longitude, year, code]


def _split(first: date, last: date) -> Iterator[Period]:
    while first <= last:
        ends = min(last, first + timedelta(days=MAX_DAYS_OF_A_REQUEST - 1))
        yield first, ends
        first = ends + DAY
