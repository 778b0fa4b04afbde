"""The weather project's hooks, called as serving calls them, over a stand-in for Open-Meteo."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from flows.weather import live, places
from flows.weather.features import build_features
from flows.weather.observations import Place
from flows.weather.outlook import look_ahead
from infra.testing.open_meteo_server import OpenMeteoServer
from trainyard.errors import (
    DataError,
    HookError,
    QueryError,
    RefusedError,
    SourceUnreachableError,
    TrainyardError,
    UnknownSubjectError,
    WaitTooLongError,
)
from trainyard.hooks import LiveRows, ModelInfo, hooks_of, read_hooks

SEATTLE = Place(name=places.HOME, latitude=47.60621, longitude=-122.33207)
TAGS = {"place": SEATTLE.name, "latitude": "47.60621", "longitude": "-122.33207", "wet_day_mm": "1"}
MODEL = ModelInfo(places.MODEL, 1, TAGS)


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenMeteoServer]:
    """Open-Meteo's stand-in, which the hooks ask."""
    with OpenMeteoServer() as server:
        monkeypatch.setenv("WEATHER_FORECAST_URL", f"{server.url}/v1/forecast")
        monkeypatch.setenv("WEATHER_GEOCODING_URL", f"{server.url}/v1/search")
        monkeypatch.setenv("WEATHER_TIMEOUT_SECONDS", "2")
        live._geocode.cache_clear()
        yield server


def today() -> date:
    return datetime.now(UTC).date()


def expected_features(weather: OpenMeteoServer, days: int) -> pd.DataFrame:
    """Return the features of the coming days as the pipeline's own functions make them."""
    outlook = look_ahead(f"{weather.url}/v1/forecast", SEATTLE, 10, 0)
    return build_features(outlook.observations.frame).loc[pd.Timestamp(outlook.today) :].head(days)


def test_the_project_declares_its_hooks_for_all_places() -> None:
    hooks = hooks_of(places.model_name(Place(name="Oslo, Norway", latitude=0, longitude=0)), read_hooks())

    assert hooks is not None
    assert hooks.load("live_features") is live.live_features
    assert hooks.load("choose_model") is live.choose_model


def test_tomorrow_is_predicted_from_the_newest_day(weather: OpenMeteoServer) -> None:
    rows = live.live_features(MODEL, {})

    assert rows.subject == places.HOME
    assert rows.times == [str(today() + timedelta(days=1))]
    assert rows.details == {
        "latitude": 47.60621,
        "longitude": -122.33207,
        "source": "open-meteo",
        "observed_until": str(today() - timedelta(days=1)),
    }
    pd.testing.assert_frame_equal(rows.features, expected_features(weather, 1))


def test_a_week_is_predicted_from_expected_weather(weather: OpenMeteoServer) -> None:
    rows = live.live_features(MODEL, {"days": "7"})

    assert rows.times == [str(today() + timedelta(days=n)) for n in range(1, 8)]
    pd.testing.assert_frame_equal(rows.features, expected_features(weather, 7))


@pytest.mark.parametrize("hours", [-11, 13])
def test_tomorrow_is_in_the_time_zone_of_the_place(weather: OpenMeteoServer, hours: int) -> None:
    there = datetime.now(UTC) + timedelta(hours=hours)
    shift = there.date() - datetime.now(UTC).date()

    def move(answer: dict[str, Any]) -> None:
        days = [date.fromisoformat(day) + shift for day in answer["daily"]["time"]]
        answer.update(utc_offset_seconds=hours * 3600)
        answer["daily"]["time"] = [str(day) for day in days]

    weather.change = move

    rows = live.live_features(MODEL, {})

    assert rows.times == [str(there.date() + timedelta(days=1))]


@pytest.mark.parametrize(
    ("place", "model"),
    [
        ("Seattle", places.MODEL),
        ("Oslo", "rain-tomorrow-59.91n-10.75e"),
        ("10.0, 0.0", "rain-tomorrow-10.00n-0.00e"),
    ],
)
def test_a_place_has_a_model_of_its_own(weather: OpenMeteoServer, place: str, model: str) -> None:
    assert live.choose_model({"place": place}) == model


def test_a_place_is_looked_up_once(weather: OpenMeteoServer) -> None:
    for _ in range(3):
        live.choose_model({"place": "Oslo"})

    assert weather.counts == {"/v1/search": 1}


def test_a_version_without_a_place_takes_that_of_the_query(weather: OpenMeteoServer) -> None:
    model = ModelInfo("rain-tomorrow-10.00n-0.00e", 1, {"wet_day_mm": "1"})

    rows = live.live_features(model, {"place": "10,0"})

    assert rows.subject == "10.0,0.0"


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ({}, QueryError, "'place' is a name"),
        ({"place": "x"}, QueryError, "'place' is a name"),
        ({"place": "x" * 101}, QueryError, "'place' is a name"),
        ({"place": "Os\nlo"}, QueryError, "'place' is a name"),
        ({"place": "Atlantis"}, UnknownSubjectError, "Atlantis"),
        ({"place": "95,0"}, UnknownSubjectError, "not on Earth"),
    ],
)
def test_a_wrong_place_is_refused(
    weather: OpenMeteoServer, query: dict[str, str], error: type[TrainyardError], message: str
) -> None:
    with pytest.raises(error, match=message):
        live.choose_model(query)


@pytest.mark.parametrize(
    ("tags", "query", "error", "message"),
    [
        (TAGS, {"days": "0"}, QueryError, "'days' is a number from 1 to 7"),
        (TAGS, {"days": "8"}, QueryError, "'days' is a number from 1 to 7"),
        (TAGS, {"days": "two"}, QueryError, "'days' is a number from 1 to 7"),
        (TAGS, {"place": "Oslo"}, QueryError, "rain-tomorrow-59.91n"),
        ({"wet_day_mm": "1"}, {}, QueryError, "'place' is a name"),
        (TAGS | {"wet_day_mm": "much"}, {}, HookError, "wet_day_mm"),
    ],
)
def test_a_query_that_the_model_cannot_answer_is_refused(
    weather: OpenMeteoServer, tags: dict[str, str], query: dict[str, str], error: type[TrainyardError], message: str
) -> None:
    with pytest.raises(error, match=message):
        live.live_features(ModelInfo(places.MODEL, 1, tags), query)


def test_a_place_without_data_is_refused_by_the_source(weather: OpenMeteoServer) -> None:
    model = places.model_name(live.find_place({"place": "Refuseville"}))

    with pytest.raises(RefusedError, match="No data is available"):
        live.live_features(ModelInfo(model, 1, {"wet_day_mm": "1"}), {"place": "Refuseville"})


def test_impossible_weather_is_refused(weather: OpenMeteoServer) -> None:
    weather.change = lambda answer: answer["daily"]["precipitation_sum"].__setitem__(5, -3.0)

    with pytest.raises(DataError, match="precipitation_mm"):
        live.live_features(MODEL, {})


def test_only_days_with_data_are_predicted(weather: OpenMeteoServer) -> None:
    def shorten(answer: dict[str, Any]) -> None:
        for column in answer["daily"].values():
            del column[-3:]

    weather.change = shorten

    rows = live.live_features(MODEL, {"days": "2"})

    assert isinstance(rows, LiveRows)
    with pytest.raises(DataError, match="sent no values"):
        live.live_features(MODEL, {"days": "7"})


def test_a_source_that_asks_for_a_long_pause_fails_the_call_at_once(weather: OpenMeteoServer) -> None:
    weather.fail_first, weather.fail_status, weather.retry_after = 1, 429, "3600"

    with pytest.raises(WaitTooLongError, match="3600 s"):
        live.live_features(MODEL, {})


def test_a_source_that_does_not_answer_is_a_transient_error(weather: OpenMeteoServer) -> None:
    weather.stalled = True

    with pytest.raises(SourceUnreachableError) as raised:
        live.live_features(MODEL, {})

    assert raised.value.transient
