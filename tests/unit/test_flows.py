"""The flows as Prefect sees them: names and the forms of their parameters."""

import sys

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from flows.cat_facts import cat_facts
from flows.weather.ingest import fetch_weather, preprocess
from flows.weather.pipeline import train, weather_pipeline
from flows.weather.settings import WeatherSettings as Settings


def test_names() -> None:
    names = [flow.name for flow in (cat_facts, fetch_weather, preprocess, train, weather_pipeline)]
    assert names == ["cat-facts", "fetch-weather", "preprocess", "train", "weather-pipeline"]


@pytest.mark.parametrize("flow", [cat_facts, fetch_weather, preprocess, train, weather_pipeline])
def test_a_form_can_be_drawn_for_every_parameter(flow: Flow[..., object]) -> None:
    for name, field in flow.parameters.properties.items():
        assert "default" in field, name
        if name != "examples":
            if name not in {"gate", "data", "training"}:  # a form within the form
                assert field["type"] in {"string", "integer", "number", "boolean", "array"}, name
            assert field["description"], name


def test_limits_reach_the_form() -> None:
    years = weather_pipeline.parameters.properties["years"]
    assert (years["minimum"], years["maximum"]) == (1, 50)


def test_an_empty_variable_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_ARCHIVE_URL", "")
    monkeypatch.setenv("MLFLOW_UI_URL", "http://mlflow.example")
    settings = Settings()
    assert settings.weather_archive_url == "https://archive-api.open-meteo.com/v1/archive"
    assert settings.mlflow_ui_url == "http://mlflow.example"


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("flows/cat_facts.py:cat_facts", "cat-facts"),
        ("flows/weather/pipeline.py:weather_pipeline", "weather-pipeline"),
        ("flows/weather/pipeline.py:train", "train"),
    ],
)
def test_a_worker_can_load_them_by_path(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, entrypoint: str, name: str
) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setattr(sys, "path", list(sys.path))  # Prefect adds the file's folder
    assert load_flow_from_entrypoint(entrypoint).name == name
