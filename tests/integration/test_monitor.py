"""The flow `monitor`, against real Prefect and MLflow servers and stand-ins for serving and Open-Meteo."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.weather.pipeline import weather_pipeline
from flows.wine.pipeline import wine_pipeline
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import free_port
from tests.support.serving_server import KEY, ServingServer
from trainyard.evaluation import SAMPLE, from_table
from trainyard.flows import monitor as module
from trainyard.flows.monitor import DRIFT, FORECASTS, monitor

MODEL, WINE = "rain-tomorrow", "wine-cultivar"
SEATTLE = "Seattle, Washington, United States"
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _champion(
    prefect: SyncPrefectClient,
    tracking: MlflowClient,
    open_meteo: OpenMeteoServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.getbasetemp() / "monitored"}):
        weather_pipeline(years=2, families=["logistic-regression"], folds=3)
        yield
    for registered in tracking.search_registered_models():
        tracking.delete_registered_model(registered.name)


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingServer]:
    with ServingServer() as server:
        monkeypatch.setenv("SERVING_URL", server.url)
        monkeypatch.setenv("SERVING_API_KEY", KEY)
        yield server


def training_rows(tracking: MlflowClient) -> pd.DataFrame:
    """Return rows as the champion was fitted on."""
    run_id = tracking.get_model_version_by_alias(MODEL, "champion").run_id
    return from_table(mlflow.artifacts.load_dict(f"runs:/{run_id}/{SAMPLE}")).drop(columns=["time", "prediction"])


def record(number: int, inputs: pd.DataFrame, probability: float = 0.5, **about: Any) -> dict[str, Any]:
    said = [[probability >= 0.5, 1 - probability, probability]] * len(inputs)
    return {
        "id": number,
        "at": (NOW - timedelta(minutes=100 - number)).isoformat(),
        "version": 1,
        "inputs": {"columns": list(inputs.columns), "data": inputs.to_numpy().tolist()},
        "outputs": {"columns": ["prediction", "probability_False", "probability_True"], "data": said},
        "about": about or None,
    }


def newest_check(tracking: MlflowClient, model: str = MODEL) -> Run:
    """Return what the newest check of a model left; other modules leave some of models of their own."""
    experiment = tracking.get_experiment_by_name("monitoring")
    assert experiment is not None
    (run, *_) = tracking.search_runs([experiment.experiment_id], f"tags.model = '{model}'")
    return run


def table(run: Run, name: str) -> pd.DataFrame:
    return from_table(mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{name}"))


def ended(**parameters: Any) -> State[Any]:
    return monitor(return_state=True, **parameters)


def test_predictions_like_the_training_data_are_ok(
    serving: ServingServer, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_rows(tracking).sample(80, random_state=1)
    serving.records[MODEL] = [record(number, rows.iloc[[number]]) for number in range(1, 80)]
    serving.failures = 2
    monkeypatch.setattr(module, "PAGE", 7)
    state = ended()
    assert (state.name, state.message) == ("Completed", "1 models checked.")
    run = newest_check(tracking)
    assert run.data.tags["verdict"] == "ok"
    assert run.data.tags["model_version"] == "1"
    assert run.data.tags["prefect.flow_run_id"] == str(state.state_details.flow_run_id)
    assert run.data.metrics["predictions"] == 79, "from all pages"
    assert run.data.metrics["drifted_share"] == 0
    assert "wet_today" in set(table(run, DRIFT)["column"])


def test_of_many_requests_the_newest_count_and_every_forecast(
    serving: ServingServer, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_rows(tracking)
    first = record(1, rows.head(1), place=SEATTLE, days=[(NOW - timedelta(days=9)).date().isoformat()])
    serving.records[MODEL] = [first, *(record(number, rows.iloc[[number]]) for number in range(2, 60))]
    monkeypatch.setattr(module, "MOST_RECORDS", 20)
    ended()
    metrics = newest_check(tracking).data.metrics
    assert (metrics["predictions"], metrics["scored"]) == (21, 1)


def test_drift_ends_as_an_alert(serving: ServingServer, tracking: MlflowClient) -> None:
    rows = training_rows(tracking).head(60)
    serving.records[MODEL] = [record(1, rows * 3 + 20)]
    state = ended(retrain_on_alert=True)
    assert (state.type, state.name) == ("COMPLETED", "Alert")
    assert "of the inputs have drifted" in str(state.message)
    assert "is not trained again: no deployment trained it" in str(state.message)
    assert newest_check(tracking).data.tags["verdict"] == "alert"


def test_forecasts_are_scored_once_the_truth_is_known(serving: ServingServer, tracking: MlflowClient) -> None:
    rows = training_rows(tracking).head(1)
    days = [(NOW - timedelta(days=back)).date().isoformat() for back in range(25, 0, -1)]
    serving.records[MODEL] = [
        record(number, rows, 0.5, place=SEATTLE, days=[day]) for number, day in enumerate(days, start=1)
    ]
    tomorrow = (NOW + timedelta(days=1)).date().isoformat()
    serving.forecasts[MODEL] = {"forecasts": [{"day": tomorrow, "probability": 0.4, "wet": False}]}
    assert ended().is_completed()
    assert f"/models/{MODEL}/forecast" in serving.asked
    run = newest_check(tracking)
    forecasts = table(run, FORECASTS)
    assert forecasts["day"].tolist() == days
    known = forecasts["observed"].notna()
    assert known.sum() == run.data.metrics["scored"]
    assert known.tolist() == [True] * 21 + [False] * 4, "the archive lags"
    assert run.data.metrics["live_brier"] == pytest.approx(0.25)
    assert run.data.metrics["holdout_brier"] < 0.25


def test_each_model_is_checked_and_one_that_cannot_be_fails_alone(
    serving: ServingServer, tracking: MlflowClient
) -> None:
    wine_pipeline(folds=2)
    serving.records = {MODEL: [], WINE: [], "gone": []}
    state = ended()
    assert state.is_failed()
    assert "gone: gone has no champion to check." in str(state.message)
    assert newest_check(tracking).data.tags["verdict"] == "too-few"
    assert newest_check(tracking, WINE).data.tags["verdict"] == "too-few"


def test_no_model_is_served_yet(serving: ServingServer) -> None:
    assert ended().message == "No model is served yet."
    assert serving.asked == ["/models"]


def test_serving_out_of_reach_or_with_another_key(serving: ServingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "another")
    state = ended()
    assert state.is_failed()
    assert "refused the request (status 401)" in str(state.message)
    monkeypatch.setenv("SERVING_URL", f"http://127.0.0.1:{free_port()}")
    state = ended()
    assert state.is_failed()
    assert "cannot be reached" in str(state.message)
