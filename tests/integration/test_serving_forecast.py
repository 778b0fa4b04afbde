"""Tomorrow's rain from serving: the pipeline's features of the newest weather, asked of a place's champion."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from schemathesis import GenerationMode
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from flows.weather import places
from flows.weather.features import TARGET, build_examples, build_features
from flows.weather.observations import Place
from flows.weather.open_meteo import observe
from flows.weather.outlook import look_ahead
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.postgres import postgres_server
from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import HEADERS, KEY, register, wait_for
from tests.support.fuzzing import fuzz

SEATTLE = Place(name=places.HOME, latitude=47.60621, longitude=-122.33207)
OSLO = places.model_name(Place(name="Oslo, Oslo County, Norway", latitude=0, longitude=0))
BARE, OTHER = (places.model_name(Place(name=f"{n}.0,0.0", latitude=n, longitude=0)) for n in (10, 11))


def scaled() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression())


@pytest.fixture(scope="module", autouse=True)
def fitted(mlflow_address: str) -> Iterator[Pipeline]:
    """The champion of Seattle, and others that /forecast must refuse."""
    last = datetime.now(UTC).date() - timedelta(days=10)
    with OpenMeteoServer() as weather, pytest.MonkeyPatch.context() as patch:
        observations = observe(f"{weather.url}/v1/archive", SEATTLE, last - timedelta(days=730), last, 10)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("serving")
        examples = build_examples(observations).frame
        inputs, wet = examples.drop(columns=TARGET), examples[TARGET]
        estimator = scaled()
        of_place = {"place": SEATTLE.name, "latitude": str(SEATTLE.latitude), "longitude": str(SEATTLE.longitude)}
        register(places.MODEL, estimator, inputs, wet, tags={"wet_day_mm": "1", **of_place})
        register(BARE, scaled(), inputs, wet)
        register(OTHER, scaled(), inputs[["rain_today"]], wet, tags={"wet_day_mm": "1"})
        register(OSLO, scaled(), inputs, wet, tags={"wet_day_mm": "1"}, champion=False)
        yield estimator


@pytest.fixture
def weather() -> Iterator[OpenMeteoServer]:
    """Open-Meteo's stand-in."""
    with OpenMeteoServer() as server:
        yield server


@contextmanager
def serving(weather: OpenMeteoServer, registry: str, folder: Path, **settings: str) -> Iterator[httpx.Client]:
    """Run a service that asks the stand-in; yields its client once the champions answer."""
    urls = {"WEATHER_FORECAST_URL": f"{weather.url}/v1/forecast", "WEATHER_GEOCODING_URL": f"{weather.url}/v1/search"}
    started = serving_server(folder, registry, SERVING_API_KEY=KEY, WEATHER_TIMEOUT_SECONDS="2", **urls, **settings)
    with started as address, httpx.Client(base_url=address, headers=HEADERS, timeout=30) as api:
        for name in (places.MODEL, BARE, OTHER):
            wait_for(api, name, 1)
        wait_until(lambda: OSLO in api.get("/models").json()["without_champion"], 30, OSLO)
        yield api


@pytest.fixture
def api(weather: OpenMeteoServer, mlflow_address: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a service that asks the stand-in."""
    with serving(weather, mlflow_address, tmp_path) as api:
        yield api


@pytest.fixture(scope="module")
def steady(mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service whose source behaves, one for all."""
    with OpenMeteoServer() as weather, serving(weather, mlflow_address, tmp_path_factory.mktemp("serving")) as api:
        yield api


def ask(api: httpx.Client, place: str = "Seattle", **query: Any) -> httpx.Response:
    return api.get("/forecast", params={"place": place, **query})


def expected(fitted: Pipeline, weather: OpenMeteoServer, days: int) -> list[float]:
    """Return the probabilities of a week as the pipeline's parts make them from the stand-in's answer."""
    outlook = look_ahead(f"{weather.url}/v1/forecast", SEATTLE, 10, 0)
    features = build_features(outlook.observations.frame).loc[pd.Timestamp(outlook.today) :].head(days)
    return [float(share) for share in fitted.predict_proba(features)[:, 1]]


def test_tomorrow_is_forecast_from_the_newest_day(
    api: httpx.Client, weather: OpenMeteoServer, fitted: Pipeline
) -> None:
    answer = ask(api)
    assert answer.status_code == 200, answer.text
    body, today = answer.json(), datetime.now(UTC).date()
    (forecast,) = body.pop("forecasts")
    assert body == {
        "place": {"name": places.HOME, "latitude": 47.60621, "longitude": -122.33207},
        "model": places.MODEL,
        "version": 1,
        "source": "open-meteo",
        "observed_until": str(today - timedelta(days=1)),
    }
    assert (forecast["from_day"], forecast["day"]) == (str(today), str(today + timedelta(days=1)))
    assert forecast["probability"] == pytest.approx(expected(fitted, weather, 1)[0])
    assert forecast["wet"] == (forecast["probability"] > 0.5)


def test_a_week_is_forecast_from_what_open_meteo_expects(
    api: httpx.Client, weather: OpenMeteoServer, fitted: Pipeline
) -> None:
    forecasts = ask(api, days=7).json()["forecasts"]
    today = datetime.now(UTC).date()
    assert [each["day"] for each in forecasts] == [str(today + timedelta(days=n)) for n in range(1, 8)]
    assert [each["probability"] for each in forecasts] == pytest.approx(expected(fitted, weather, 7))


@pytest.mark.parametrize("hours", [-11, 13])
def test_tomorrow_is_that_of_the_places_own_clock(api: httpx.Client, weather: OpenMeteoServer, hours: int) -> None:
    there = datetime.now(UTC) + timedelta(hours=hours)
    shift = there.date() - datetime.now(UTC).date()

    def move(answer: dict[str, Any]) -> None:
        days = [date.fromisoformat(day) + shift for day in answer["daily"]["time"]]
        answer.update(utc_offset_seconds=hours * 3600)
        answer["daily"]["time"] = [str(day) for day in days]

    weather.change = move
    (forecast,) = ask(api).json()["forecasts"]
    assert forecast["from_day"] == str(there.date())


def test_a_burst_asks_open_meteo_once_and_so_do_the_next_minutes(api: httpx.Client, weather: OpenMeteoServer) -> None:
    weather.fail_first = 1
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: ask(api, days=2), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    ask(api, " sEATTLE ")
    assert weather.counts == {"/v1/search": 2, "/v1/forecast": 2}


def test_a_source_that_is_down_is_said_once_and_not_asked_at_each_request(
    api: httpx.Client, weather: OpenMeteoServer
) -> None:
    weather.fail_first = 100
    for _ in range(5):
        answer = ask(api)
        assert (answer.status_code, answer.json()["code"]) == (503, "weather-down")
    assert weather.counts == {"/v1/search": 3}
    weather.fail_first = 0
    wait_until(lambda: ask(api).status_code == 200, 60, "the source's return", every=1)


def test_a_source_that_asks_for_a_long_pause_is_left_alone(api: httpx.Client, weather: OpenMeteoServer) -> None:
    weather.fail_first, weather.fail_status, weather.retry_after = 1, 429, "3600"
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (503, "weather-down")
    assert "3600 s" in answer.json()["message"]
    assert weather.counts == {"/v1/search": 1}


def test_nobody_listening_and_no_answer_in_time(api: httpx.Client, weather: OpenMeteoServer) -> None:
    weather.stalled = True
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (503, "weather-down")


def test_weather_that_cannot_be_is_refused(api: httpx.Client, weather: OpenMeteoServer) -> None:
    weather.change = lambda answer: answer["daily"]["precipitation_sum"].__setitem__(5, -3.0)
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (502, "weather-data")
    assert "precipitation_mm" in answer.json()["message"]


def test_days_that_are_not_there_are_said(api: httpx.Client, weather: OpenMeteoServer) -> None:
    def shorten(answer: dict[str, Any]) -> None:
        for column in answer["daily"].values():
            del column[-3:]

    weather.change = shorten
    assert ask(api, days=2).status_code == 200
    answer = ask(api, days=7)
    assert (answer.status_code, answer.json()["code"]) == (502, "weather-data")


@pytest.mark.parametrize(
    ("place", "status", "code", "says"),
    [
        ("Atlantis", 404, "unknown-place", "Atlantis"),
        ("95,0", 404, "unknown-place", "not on Earth"),
        ("Arica", 404, "unknown-model", "Arica y Parinacota, Chile"),
        ("Oslo", 503, "no-champion", OSLO),
        ("10,0", 503, "features-unfit", "wet_day_mm"),
        ("11,0", 503, "features-unfit", "temp_today"),
        ("Refuseville", 502, "weather-data", "No data is available"),
    ],
)
def test_places_without_a_forecast(steady: httpx.Client, place: str, status: int, code: str, says: str) -> None:
    answer = ask(steady, place)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert says in answer.json()["message"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "place"),
        ({"place": "x"}, "place"),
        ({"place": "x" * 101}, "place"),
        ({"place": "Oslo\n"}, None),
        ({"place": "Os\nlo"}, "place"),
        ({"place": "Seattle", "days": "0"}, "days"),
        ({"place": "Seattle", "days": "8"}, "days"),
        ({"place": "Seattle", "days": "two"}, "days"),
    ],
)
def test_a_wrong_parameter_is_named(steady: httpx.Client, query: dict[str, str], field: str | None) -> None:
    answer = steady.get("/forecast", params=query)
    if field:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-query")
        assert answer.json()["problems"][0]["field"] == field
    else:
        assert answer.json()["code"] == "no-champion"


def test_a_model_is_asked_for_its_own_place(steady: httpx.Client) -> None:
    of_place, of_model = ask(steady, days=2), steady.get(f"/models/{places.MODEL}/forecast", params={"days": "2"})
    assert of_model.status_code == 200
    assert of_model.json() == of_place.json()
    refused = steady.get(f"/models/{BARE}/forecast")
    assert (refused.status_code, refused.json()["code"]) == (404, "no-forecast")
    unknown = steady.get("/models/unheard-of/forecast")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-model")
    wrong = steady.get(f"/models/{places.MODEL}/forecast", params={"days": "9"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid-query")


def test_forecasts_want_the_key_and_are_counted(steady: httpx.Client) -> None:
    assert httpx.get(f"{steady.base_url}/forecast?place=Seattle").status_code == 401
    assert ask(steady).status_code == 200
    text = steady.get("/metrics").text
    assert f'serving_requests_total{{model="{places.MODEL}",status="200"}}' in text


@pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning")
def test_whatever_is_asked_is_answered_as_documented(steady: httpx.Client) -> None:
    address = str(steady.base_url).rstrip("/")
    fuzz(address, "/forecast", GenerationMode.POSITIVE, lambda status: status in (200, 404, 422))
    fuzz(address, "/forecast", GenerationMode.NEGATIVE, lambda status: status < 500)


def test_a_forecast_is_recorded_with_place_and_days(
    weather: OpenMeteoServer, mlflow_address: str, tmp_path: Path
) -> None:
    with (
        postgres_server() as database,
        serving(weather, mlflow_address, tmp_path, SERVING_DATABASE_URL=database) as api,
    ):
        forecasts = ask(api, days=3).json()["forecasts"]

        def recorded() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = api.get(f"/models/{places.MODEL}/predictions").json()["predictions"]
            return found

        (record,) = wait_until(recorded, 30, "the record")
        days = [each["day"] for each in forecasts]
        assert record["about"] == {"place": places.HOME, "latitude": 47.60621, "longitude": -122.33207, "days": days}
        assert len(record["inputs"]["data"]) == 3
        at = record["outputs"]["columns"].index("probability_1")
        assert [row[at] for row in record["outputs"]["data"]] == [each["probability"] for each in forecasts]
