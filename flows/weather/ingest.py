"""Ingestion: the tasks and flows that fetch and validate observations and turn them into examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact

from flows.weather import features, open_meteo, places, recorded
from flows.weather.features import Examples
from flows.weather.observations import Observations, Place
from flows.weather.parameters import DATA, Data, PlaceName
from flows.weather.settings import WeatherSettings
from flows.weather.validation import GapLimits
from trainyard import http
from trainyard.cache import cached
from trainyard.errors import DataError, SourceUnreachableError
from trainyard.retries import RETRIES

MAX_TABLE_ROWS = 100
MAX_LISTED_DAYS = 10
HOUR = 3600.0


@task(name="find-place", **RETRIES, **cached(places, http, days=30))
def find_place(name: str, url: str) -> Place:
    """Return the place of a name from the geocoding service at `url`."""
    answer = http.get_json(url, places.geocoding_query(name), WeatherSettings().weather_timeout_seconds)
    return places.parse_geocoding(answer, name)


@task(name="fetch-archive", **RETRIES, **cached(open_meteo, days=0.25))  # the archive corrects its newest days
def fetch_archive(url: str, place: Place, first: date, last: date, limits: GapLimits) -> Observations:
    """Return the validated observations of a place from `first` to `last` from the archive at `url`."""
    return open_meteo.observe(url, place, first, last, WeatherSettings().weather_timeout_seconds, limits)


@task(name="build-features", **cached(features))
def build_features(observations: Observations, wet_day_mm: float, min_observations: int) -> Examples:
    """Return the examples of the observations."""
    return features.build_examples(observations, wet_day_mm, min_observations)


def choose_period(years: int) -> tuple[date, date]:
    """Return the first and the last of the days to fetch: the last `years` years."""
    # Two days back: yesterday is not over yet everywhere on Earth.
    last = datetime.now(UTC).date() - timedelta(days=2)
    return (pd.Timestamp(last) - pd.DateOffset(years=years)).date(), last


@contextmanager
def problems_on_run_page() -> Iterator[None]:
    """Show the problems of a DataError as a table on the run's page before it is raised further."""
    try:
        yield
    except DataError as error:
        if total := len(error.problems):
            rows = [dict(problem) for problem in error.problems[:MAX_TABLE_ROWS]]
            shown = f"the first {len(rows)} of {total} problems" if total > len(rows) else "all problems"
            create_table_artifact(rows, key="data-problems", description=f"{error}\n\nBelow: {shown}.")
        raise


def log_observations(observations: Observations) -> None:
    """Print what was fetched, and log a warning if days were interpolated or rows dropped."""
    days, origin, filled = observations.frame.index, observations.origin, observations.filled
    print(f"{origin.place.name}: {len(days)} days from {days.min():%F} to {days.max():%F} ({origin.source})")
    counts = f"{len(filled)} days filled by interpolation, {observations.dropped_duplicates} repeated rows dropped"
    if not (filled or observations.dropped_duplicates):
        print(f"{origin.place.name}: {counts}")
        return
    listed = ", ".join(map(str, filled[:MAX_LISTED_DAYS])) + (", ..." if len(filled) > MAX_LISTED_DAYS else "")
    get_run_logger().warning("%s: %s%s", origin.place.name, counts, f" ({listed})" if filled else "")


@flow(name="fetch-weather", log_prints=True, persist_result=False, timeout_seconds=HOUR)
def fetch_weather(place: PlaceName = "Seattle", data: Data = DATA) -> Observations:
    """Fetch daily observations of a place, validate them and interpolate small gaps.

    Raises:
        UnknownSubjectError: There is no such place.
        SourceError: The source did not deliver, and recorded observations are not allowed or not of this place.
        DataError: The observations are not valid; the run's page has a table of all problems.
    """
    settings, limits = WeatherSettings(), GapLimits(data.max_gap_days, data.max_filled_share)
    with problems_on_run_page():
        try:
            point = places.parse_coordinates(place) or find_place(place, settings.weather_geocoding_url)
            observations = fetch_archive(settings.weather_archive_url, point, *choose_period(data.years), limits)
        except SourceUnreachableError as error:
            if not (data.allow_recorded and recorded.has_recordings(place)):
                raise SourceUnreachableError(
                    f"{error} Check the network and WEATHER_ARCHIVE_URL and WEATHER_GEOCODING_URL, or run with "
                    "place=Seattle and allow_recorded=true to train on recorded observations (2012 to 2015)."
                ) from error
            get_run_logger().warning("%s USING RECORDED OBSERVATIONS of Seattle, 2012 to 2015.", error)
            observations = recorded.read_recorded(data.years, limits)
    log_observations(observations)
    return observations


@flow(name="preprocess", log_prints=True, persist_result=False, timeout_seconds=1.5 * HOUR)
def preprocess(place: PlaceName = "Seattle", data: Data = DATA) -> Examples:
    """Fetch the observations of a place and turn them into examples.

    Raises:
        UnknownSubjectError: There is no such place.
        SourceError: As in `fetch_weather`.
        DataError: The observations are not valid, too few, or all wet or all dry.
    """
    observations = fetch_weather(place, data)
    with problems_on_run_page():
        examples = build_features(observations, data.wet_day_mm, data.min_observations)
    share = examples.frame[features.TARGET].mean()
    print(f"{len(examples.frame)} examples with {examples.frame.shape[1] - 1} features; {share:.0%} of days wet")
    return examples
