"""Ingestion: the tasks and flows that fetch and validate observations and turn them into examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn

import pandas as pd
from prefect import Flow, flow, get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact

from flows.weather import features, history, places, quota, recorded
from flows.weather.features import Examples
from flows.weather.observations import Observations, Place
from flows.weather.parameters import DATA, Data, DataParameters, PlaceOrName
from flows.weather.settings import WeatherSettings
from flows.weather.validation import GapLimits
from trainyard.cache import cached
from trainyard.errors import DataError, RateLimitedError, SourceError, SourceUnreachableError, WaitTooLongError
from trainyard.retries import RETRIES

MAX_TABLE_ROWS = 100
MAX_LISTED_DAYS = 10
HOUR = 3600.0
NOT_NOW = (SourceUnreachableError, RateLimitedError, WaitTooLongError)
"""The source does not deliver at the moment; where they are allowed, recorded observations replace its own."""


@task(name="find-place", **RETRIES, **cached(days=30))
def find_place(name: str, url: str) -> Place:
    """Return the place of a name from the geocoding service at `url`."""
    return places.parse_geocoding(quota.get_json(url, places.geocoding_query(name)), name)


@task(name="fetch-archive", **RETRIES, **cached(days=0.25))  # the archive corrects its newest days
def fetch_archive(url: str, place: Place, first: date, last: date, limits: GapLimits) -> Observations:
    """Return the validated observations of a place from `first` to `last` from the archive at `url`."""
    return history.fetch(url, place, first, last, limits)


@task(name="build-features", **cached())
def build_features(observations: Observations, wet_day_mm: float, min_observations: int) -> Examples:
    """Return the examples of the observations."""
    return features.build_examples(observations, wet_day_mm, min_observations)


def name_run(component: Flow[..., Any], name: str | None) -> Any:
    """Return a flow whose runs have a name; without one, Prefect chooses it."""
    if name is None:
        return component
    return component.with_options(flow_run_name=name.replace("{", "{{").replace("}", "}}"))


def locate(place: str | Place, data: DataParameters) -> Place:
    """Return the place of a name or of "latitude,longitude".

    Raises:
        UnknownSubjectError: There is no such place.
        SourceError: The geocoding service did not deliver.
    """
    if isinstance(place, Place):
        return place
    try:
        return places.parse_coordinates(place) or find_place(place, WeatherSettings().weather_geocoding_url)
    except NOT_NOW as error:
        if data.allow_recorded and recorded.has_recordings(place):
            return places.SEATTLE
        _raise_with_advice(error)


def _raise_with_advice(error: SourceError) -> NoReturn:
    if not isinstance(error, SourceUnreachableError):
        raise error
    raise SourceUnreachableError(
        f"{error} Check the network and WEATHER_ARCHIVE_URL and WEATHER_GEOCODING_URL, or run with "
        "place=Seattle and allow_recorded=true to train on recorded observations (2012 to 2015)."
    ) from error


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
    """Print what was fetched, and log a warning if days were filled or rows dropped."""
    days, origin, filled = observations.frame.index, observations.origin, observations.filled
    print(f"{origin.place.name}: {len(days)} days from {days.min():%F} to {days.max():%F} ({origin.source})")
    counts = f"{len(filled)} days filled with earlier values, {observations.dropped_duplicates} repeated rows dropped"
    if not (filled or observations.dropped_duplicates):
        print(f"{origin.place.name}: {counts}")
        return
    listed = ", ".join(map(str, filled[:MAX_LISTED_DAYS])) + (", ..." if len(filled) > MAX_LISTED_DAYS else "")
    get_run_logger().warning("%s: %s%s", origin.place.name, counts, f" ({listed})" if filled else "")


# Longer than a request waits for Open-Meteo's limits, twice: for the name and for the days.
@flow(name="fetch-weather", log_prints=True, persist_result=False, timeout_seconds=2.5 * HOUR)
def fetch_weather(place: PlaceOrName = "Seattle", data: Data = DATA) -> Observations:
    """Fetch daily observations of a place, validate them and fill small gaps.

    Raises:
        UnknownSubjectError: There is no such place.
        SourceError: The source did not deliver, and recorded observations are not allowed or not of this place.
        DataError: The observations are not valid; the run's page has a table of all problems.
    """
    settings, limits = WeatherSettings(), GapLimits(data.max_gap_days, data.max_filled_share)
    with problems_on_run_page():
        point = locate(place, data)
        try:
            observations = fetch_archive(settings.weather_archive_url, point, *choose_period(data.years), limits)
        except NOT_NOW as error:
            if not (data.allow_recorded and recorded.has_recordings(point)):
                _raise_with_advice(error)
            get_run_logger().warning("%s USING RECORDED OBSERVATIONS of Seattle, 2012 to 2015.", error)
            observations = recorded.read_recorded(data.years, limits)
    log_observations(observations)
    return observations


@flow(name="preprocess", log_prints=True, persist_result=False, timeout_seconds=3 * HOUR)
def preprocess(place: PlaceOrName = "Seattle", data: Data = DATA) -> Examples:
    """Fetch the observations of a place and turn them into examples.

    Raises:
        UnknownSubjectError: There is no such place.
        SourceError: As in `fetch_weather`.
        DataError: The observations are not valid, too few, or all wet or all dry.
    """
    observations = name_run(fetch_weather, runtime.flow_run.name)(place, data)
    with problems_on_run_page():
        examples = build_features(observations, data.wet_day_mm, data.min_observations)
    share = examples.frame[features.TARGET].mean()
    print(f"{len(examples.frame)} examples with {examples.frame.shape[1] - 1} features; {share:.0%} of days wet")
    return examples
