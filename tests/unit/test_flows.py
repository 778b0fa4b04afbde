"""The example flows as Prefect sees them: their names, and the forms of their parameters."""

import sys

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from flows.cat_facts import cat_facts
from flows.weather.ingest import fetch_weather, preprocess
from flows.weather.pipeline import train, weather_pipeline
from flows.weather.settings import WeatherSettings
from flows.wine.pipeline import load_wine, train_wine, wine_pipeline
from trainyard.tracking import TrackingSettings

FLOWS = [cat_facts, fetch_weather, preprocess, train, weather_pipeline, load_wine, train_wine, wine_pipeline]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_has_a_default_a_description_and_a_field_in_the_form(flow: Flow[..., object]) -> None:
    for name, field in flow.parameters.properties.items():
        assert "default" in field, name
        if field.get("type") != "object" and name not in ("data", "examples"):  # data frames have no field
            assert field["description"], name
            assert "$ref" in field or field["type"] in {"string", "integer", "number", "boolean", "array"}, name


def test_limits_reach_the_form() -> None:
    years, folds = (
        flow.parameters.properties[name] for flow, name in ((weather_pipeline, "years"), (train_wine, "folds"))
    )

    assert (years["minimum"], years["maximum"]) == (1, 50)
    assert (folds["minimum"], folds["maximum"]) == (2, 20)


def test_settings_come_from_variables_and_empty_ones_leave_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_ARCHIVE_URL", "")
    monkeypatch.setenv("MLFLOW_UI_URL", "http://mlflow.example")

    assert WeatherSettings().weather_archive_url == "https://archive-api.open-meteo.com/v1/archive"
    assert TrackingSettings().mlflow_ui_url == "http://mlflow.example"


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("flows/cat_facts.py:cat_facts", "cat-facts"),
        ("flows/weather/pipeline.py:weather_pipeline", "weather-pipeline"),
        ("flows/wine/pipeline.py:wine_pipeline", "wine-pipeline"),
    ],
)
def test_a_worker_can_load_them_by_path(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, entrypoint: str, name: str
) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.setattr(sys, "path", list(sys.path))  # Prefect adds the file's folder

    assert load_flow_from_entrypoint(entrypoint).name == name
