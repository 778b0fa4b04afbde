"""Data in: the tasks and flows that fetch observations, check them and turn them into examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.tasks import exponential_backoff
from pydantic import Field

from flows.weather import features, open_meteo, places, recorded
from flows.weather.features import Examples
from flows.weather.observations import Observations, Place
from flows.weather.settings import WeatherSettings
from flows.weather.validation import GapLimits
from trainyard import http
from trainyard.cache import cached
from trainyard.errors import DataError, SourceUnreachableError
from trainyard.retries import is_transient

PlaceName = Annotated[str, Field(min_length=2, max_length=100)]
Years = Annotated[int, Field(ge=1, le=50)]
Millimetres = Annotated[float, Field(gt=0, le=100)]
Days = Annotated[int, Field(ge=60)]
GapDays = Annotated[int, Field(ge=0, le=30)]
FilledShare = Annotated[float, Field(ge=0, le=0.2)]

MOST_ROWS = 100


@task(
    name="find-place",
    retries=4,
    retry_delay_seconds=exponential_backoff(0.3),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
    **cached(places, http, days=30),
)
def find_place(name: str, url: str) -> Place:
    """Return the place that the geocoding service at an address finds for a name."""
    answer = http.get_json(url, places.geocoding_query(name), WeatherSettings().weather_timeout_seconds)
    return places.parse_geocoding(answer, name)


@task(
    name="fetch-archive",
    retries=4,
    retry_delay_seconds=exponential_backoff(0.3),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
    **cached(open_meteo, days=0.25),  # the archive mends its newest days
)
def fetch_archive(url: str, place: Place, first: date, last: date, limits: GapLimits) -> Observations:
    """Return the checked daily observations from `first` to `last` from the archive at an address."""
    return open_meteo.observe(url, place, first, last, WeatherSettings().weather_timeout_seconds, limits)


@task(name="build-features", **cached(features))
def build_features(observations: Observations, wet_day_mm: float, min_observations: int) -> Examples:
    """Return the examples to learn from."""
    return features.build_examples(observations, wet_day_mm, min_observations)


def days_to_ask_for(years: int) -> tuple[date, date]:
    """Return the first and the last day of the last `years` years."""
    # Two days back: yesterday is not over yet everywhere on Earth.
    last = datetime.now(UTC).date() - timedelta(days=2)
    return (pd.Timestamp(last) - pd.DateOffset(years=years)).date(), last


@contextmanager
def problems_as_table() -> Iterator[None]:
    """Put what was wrong with the data on the run's page, before it fails."""
    try:
        yield
    except DataError as error:
        if total := len(error.problems):
            shown = f"the first {MOST_ROWS} of {total} problems" if total > MOST_ROWS else "all problems"
            create_table_artifact(
                error.problems[:MOST_ROWS], key="data-problems", description=f"{error}\n\nBelow: {shown}."
            )
        raise


def tell(observations: Observations) -> None:
    """Say what was fetched, and warn of what had to be mended."""
    days, origin, filled = observations.frame.index, observations.origin, observations.filled
    print(f"{origin.place.name}: {len(days)} days from {days.min():%F} to {days.max():%F} ({origin.source})")
    counts = f"{len(filled)} days filled by interpolation, {observations.dropped_duplicates} repeated rows dropped"
    if not (filled or observations.dropped_duplicates):
        print(f"{origin.place.name}: {counts}")
        return
    days_filled = f" ({', '.join(map(str, filled[:10]))}{', ...' if len(filled) > 10 else ''})" if filled else ""
    get_run_logger().warning("%s: %s%s", origin.place.name, counts, days_filled)


@flow(name="fetch-weather", log_prints=True, persist_result=False)
def fetch_weather(
    place: PlaceName = "Seattle",
    years: Years = 5,
    allow_recorded: bool = False,
    max_gap_days: GapDays = 3,
    max_filled_share: FilledShare = 0.02,
) -> Observations:
    """Fetch daily observations of a place, check them and fill small gaps.

    Args:
        place: A name ("Seattle", "Springfield, Illinois") or "latitude,longitude".
        years: How many years back from now.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
        max_gap_days: Most days in a row, missing or blank, that are filled; beyond it the run fails.
        max_filled_share: Largest share of all days that is filled; beyond it the run fails.
    """
    settings, limits = WeatherSettings(), GapLimits(max_gap_days, max_filled_share)
    with problems_as_table():
        try:
            point = places.parse_coordinates(place) or find_place(place, settings.weather_geocoding_url)
            observations = fetch_archive(settings.weather_archive_url, point, *days_to_ask_for(years), limits)
        except SourceUnreachableError as error:
            if not (allow_recorded and recorded.covers(place)):
                raise SourceUnreachableError(
                    f"{error} Check the network and WEATHER_ARCHIVE_URL and WEATHER_GEOCODING_URL, or run with "
                    "place=Seattle and allow_recorded=true to train on recorded observations (2012 to 2015)."
                ) from error
            get_run_logger().warning("%s USING RECORDED OBSERVATIONS of Seattle, 2012 to 2015.", error)
            observations = recorded.read_recorded(years, limits)
    tell(observations)
    return observations


@flow(name="preprocess", log_prints=True, persist_result=False)
def preprocess(
    place: PlaceName = "Seattle",
    years: Years = 5,
    wet_day_mm: Millimetres = 1.0,
    min_observations: Days = 365,
    allow_recorded: bool = False,
    max_gap_days: GapDays = 3,
    max_filled_share: FilledShare = 0.02,
) -> Examples:
    """Fetch observations and turn them into examples: a day's features, and whether the next was wet.

    Args:
        place: A name ("Seattle", "Springfield, Illinois") or "latitude,longitude".
        years: How many years back from now.
        wet_day_mm: Precipitation from which a day counts as wet, in mm.
        min_observations: Fewest days to learn from; with fewer the run fails.
        allow_recorded: Where Open-Meteo cannot be reached, take recorded observations (Seattle only).
        max_gap_days: Most days in a row, missing or blank, that are filled; beyond it the run fails.
        max_filled_share: Largest share of all days that is filled; beyond it the run fails.
    """
    observations = fetch_weather(place, years, allow_recorded, max_gap_days, max_filled_share)
    with problems_as_table():
        examples = build_features(observations, wet_day_mm, min_observations)
    share = examples.frame[features.TARGET].mean()
    print(f"{len(examples.frame)} examples with {examples.frame.shape[1] - 1} features; {share:.0%} of days wet")
    return examples
