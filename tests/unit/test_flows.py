"""The example flows as Prefect sees them: their names, and the forms of their parameters."""

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow, Task
from prefect.flows import load_flow_from_entrypoint

import flows
import trainyard.flows
from flows.cat_facts import cat_facts
from flows.weather.ingest import fetch_weather, preprocess
from flows.weather.pipeline import train, weather_pipeline
from flows.weather.settings import WeatherSettings
from flows.wine.pipeline import load_wine, train_wine, wine_pipeline
from trainyard import training
from trainyard.tracking import TrackingSettings

# They run in threads, where Prefect cannot interrupt a request and warns of a timeout. Each of their requests has a deadline
# (trainyard.http, MLflow's client, trainyard.data), and the flow has a timeout.
BOUNDED_BY_THEIR_REQUESTS = {
    "read",
    "find-place",
    "fetch-archive",
    "request-forecasts",
    "fetch-predictions",
    "fetch-ground-truth",
    "compare",
    "promote",
}
FLOWS: list[Flow[..., Any]] = [
    cat_facts,
    fetch_weather,
    preprocess,
    train,
    weather_pipeline,
    load_wine,
    train_wine,
    wine_pipeline,
]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_has_a_default_a_description_and_a_field_in_the_form(flow: Flow[..., object]) -> None:
    for name, field in flow.parameters.properties.items():
        assert "default" in field, name
        if field.get("type") != "object" and name not in ("data", "examples"):  # data frames have no field
            assert field["description"], name
            assert "$ref" in field or field["type"] in {"string", "integer", "number", "boolean", "array"}, name


def test_an_outage_fails_the_scheduled_run_and_not_the_first_one() -> None:
    deployments = yaml.safe_load((Path(flows.__path__[0]).parent / "prefect.yaml").read_text())["deployments"]
    (weather,) = [each for each in deployments if each["name"] == "weather-pipeline"]
    (schedule,) = weather["schedules"]

    first = weather_pipeline.validate_parameters(weather["parameters"])
    scheduled = weather_pipeline.validate_parameters(weather["parameters"] | schedule["parameters"])

    assert first["allow_recorded"]
    assert not scheduled["allow_recorded"]


def defined(kind: type) -> list[Any]:
    """Return the flows or the tasks of the project and the platform."""
    names = [
        training.__name__,
        *(
            module.name
            for package in (flows, trainyard.flows)
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        ),
    ]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    return list({id(member): member for member in members if isinstance(member, kind)}.values())


def test_every_flow_has_a_timeout() -> None:
    found = defined(Flow)

    assert {flow.name for flow in FLOWS} < {flow.name for flow in found}
    assert [flow.name for flow in found if not flow.timeout_seconds] == []


def test_every_task_that_fetches_has_a_timeout_or_bounded_requests() -> None:
    fetching = [task for task in defined(Task) if task.retries]  # who talks to a server retries

    assert {task.name for task in fetching} > BOUNDED_BY_THEIR_REQUESTS
    assert {task.name for task in fetching if not task.timeout_seconds} == BOUNDED_BY_THEIR_REQUESTS


def test_a_flow_ends_after_those_that_it_calls() -> None:
    seconds = {flow.name: flow.timeout_seconds for flow in defined(Flow)}

    for outer, inner in [
        ("cat-facts", ["collect-facts"]),
        ("preprocess", ["fetch-weather"]),
        ("weather-pipeline", ["preprocess", "train"]),
        ("wine-pipeline", ["load-wine", "train-wine"]),
    ]:
        assert seconds[outer] > sum(seconds[name] for name in inner)


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
