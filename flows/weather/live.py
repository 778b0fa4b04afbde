"""The hooks that serving calls: a place's newest weather as a model's features, and the model of a place.

Serving imports this module, whose image has neither Prefect nor MLflow.
"""

from datetime import timedelta
from functools import lru_cache

import pandas as pd

from flows.weather.observations import Place
from flows.weather.outlook import look_ahead
from flows.weather.places import geocoding_query, model_name, parse_coordinates, parse_geocoding, place_of
from flows.weather.settings import WeatherSettings
from flows.weather.truth import wet_day_of
from trainyard.errors import DataError, HookError, QueryError
from trainyard.hooks import LiveRows, ModelInfo, Query
from trainyard.http import get_json

MAX_DAYS = 7
MAX_TIMEOUT_SECONDS, MAX_WAIT_SECONDS = 5.0, 2.0
"""A caller waits for the answer: shorter than what a pipeline's run waits."""


def choose_model(query: Query) -> str:
    """Return the registered model of the place that a query names.

    Args:
        query: `place` is a name, or "latitude,longitude".

    Raises:
        QueryError: There is no `place`, or it is not text of 2 to 100 characters.
        UnknownSubjectError: There is no such place.
        SourceError: The geocoding service did not deliver.
        DataError: Its answer is not as documented.
    """
    return model_name(find_place(query))


def live_features(model: ModelInfo, query: Query) -> LiveRows:
    """Return the features at the end of today and of the days after it, from the newest observations and forecasts.

    Args:
        model: Its tags name the place, and from how many mm of precipitation on a day counts as wet.
        query: `days` is how many days to predict, from tomorrow on; `place` is needed only for a version without one.

    Raises:
        QueryError: `days` is not a number from 1 to 7, or `place` is that of another model.
        UnknownSubjectError: There is no such place.
        SourceError: The weather or geocoding service did not deliver.
        DataError: Its answer cannot be used, or lacks a day.
        HookError: The version has no tag `wet_day_mm`.
    """
    days = parse_days(query)
    place = place_of(model.tags)
    if place is None or "place" in query:
        requested = find_place(query)
        if model_name(requested) != model.name:
            raise QueryError("place", f"is that of the model {model_name(requested)}")
        place = place or requested
    try:
        wet_day_mm = wet_day_of(model.tags)
    except DataError as error:
        raise HookError(f"{model.name} version {model.version}: {error}") from error
    settings = WeatherSettings()
    outlook = look_ahead(
        settings.weather_forecast_url,
        place,
        min(settings.weather_timeout_seconds, MAX_TIMEOUT_SECONDS),
        MAX_WAIT_SECONDS,
    )
    features = outlook.features(wet_day_mm, days)
    known = pd.DatetimeIndex(features.index)
    details = {
        "latitude": place.latitude,
        "longitude": place.longitude,
        "source": outlook.observations.origin.source,
        "observed_until": f"{known[0] - timedelta(days=1):%F}",
    }
    return LiveRows(features, place.name, [f"{day:%F}" for day in known + timedelta(days=1)], details)


def parse_days(query: Query) -> int:
    """Return for how many days a query asks; without `days`, for one.

    Raises:
        QueryError: It is not a number from 1 to 7.
    """
    days = query.get("days", "1")
    if days not in {str(number) for number in range(1, MAX_DAYS + 1)}:
        raise QueryError("days", f"is a number from 1 to {MAX_DAYS}")
    return int(days)


def find_place(query: Query) -> Place:
    """Return the place that a query names.

    Raises:
        QueryError: There is no `place`, or it is not text of 2 to 100 characters.
        UnknownSubjectError: There is no such place.
        SourceError: The geocoding service did not deliver.
        DataError: Its answer is not as documented.
    """
    text = query.get("place", "").strip()
    if not 2 <= len(text) <= 100 or not text.isprintable():
        raise QueryError("place", "is a name of 2 to 100 characters, or latitude,longitude")
    return parse_coordinates(text) or _geocode(text)


@lru_cache(256)
def _geocode(name: str) -> Place:
    settings = WeatherSettings()
    timeout_seconds = min(settings.weather_timeout_seconds, MAX_TIMEOUT_SECONDS)
    answer = get_json(
        settings.weather_geocoding_url, geocoding_query(name), timeout_seconds, max_wait_seconds=MAX_WAIT_SECONDS
    )
    return parse_geocoding(answer, name)
