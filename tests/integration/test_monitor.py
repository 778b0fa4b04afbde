"""The flow `monitor`, against real Prefect and MLflow servers and a stand-in for serving."""

import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.postgres import postgres_server
from infra.testing.servers import free_port, serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import wait_for
from tests.support.serving_server import KEY, ServingServer
from trainyard import contract, registry
from trainyard.contract import (
    HOOKS_FILE,
    MONITORING_EXPERIMENT,
    Alias,
    Artifact,
    Column,
    Problem,
    Record,
    ServingPath,
    Tag,
    Verdict,
    table_rows,
)
from trainyard.evaluation import holdout_table, training_sample
from trainyard.flows import monitor as module
from trainyard.flows.monitor import monitor
from trainyard.tracking import Dataset, TrainingRecord, flow_run_tags, log_training

MODEL, OTHER, RAIN = "parcel-late", "parcel-lost", "rain-tomorrow"
DEPOT = "Depot North"
SEATTLE = {
    "place": "Seattle, Washington, United States",
    "latitude": "47.60621",
    "longitude": "-122.33207",
    "wet_day_mm": "1.0",
}
NOW = datetime.now(UTC)
random = np.random.default_rng(1)
PARCELS = pd.DataFrame(random.normal(size=(400, 2)), columns=["weight", "distance"])
LATE = pd.Series((PARCELS["weight"] + random.normal(size=400) > 0).astype(int), name="late")
ESTIMATOR = LogisticRegression().fit(PARCELS, LATE)
HOOKS = """
from collections import Counter

from trainyard import errors

calls = Counter()


def ground_truth(model, times):
    calls[model.name] += 1
    {body}
"""


@flow(name="train-parcels", persist_result=False)
def train_parcels(model: str, tags: dict[str, str]) -> None:
    """Train a model and make it the champion."""
    probability = ESTIMATOR.predict_proba(PARCELS)[:, 1]
    training = TrainingRecord(
        experiment="parcels",
        model=model,
        estimator=ESTIMATOR,
        inputs=PARCELS.head(3),
        dataset=Dataset("parcels", "tests", PARCELS.assign(late=LATE), "late"),
        params={},
        metrics={},
        tables={
            Artifact.HOLDOUT: holdout_table(LATE, {Column.MODEL: probability}),
            Artifact.TRAINING_SAMPLE: training_sample(PARCELS, probability),
        },
        tags=tags,
        trusted_types=["numpy.dtype"],
    )
    version = log_training(training).version
    MlflowClient().set_registered_model_alias(model, Alias.CHAMPION, str(version))


@pytest.fixture(scope="module", autouse=True)
def _champions(prefect: SyncPrefectClient, mlflow_address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        for model, tags in {MODEL: {}, OTHER: {}, RAIN: SEATTLE}.items():
            train_parcels(model, tags)


@pytest.fixture(autouse=True)
def _environment(tracking: MlflowClient) -> None:
    """All tests use MLflow."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingServer]:
    with ServingServer() as server:
        monkeypatch.setenv("SERVING_URL", server.url)
        monkeypatch.setenv("SERVING_API_KEY", KEY)
        yield server


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installation without projects."""
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parcel_hooks", raising=False)
    return tmp_path


def declare_hooks(
    project: Path,
    body: str = "return {}",
    model: str = MODEL,
    reference: str = "parcel_hooks:ground_truth",
    extra: str = "",
) -> None:
    """Add a project to the installation, whose hook for the ground truth has a body."""
    (project / "parcel_hooks.py").write_text(HOOKS.format(body=body))
    declaration = f'[[models]]\nname = "{model}"\nground_truth = "{reference}"\n{extra}\n'
    write_declaration(project, declaration)


def write_declaration(project: Path, text: str) -> None:
    folder = project / "flows" / "parcels"
    folder.mkdir(parents=True)
    (folder / HOOKS_FILE).write_text(text)


def record(number: int, inputs: pd.DataFrame, *times: str, subject: str = DEPOT) -> dict[str, Any]:
    """Return a recorded request that the model answered; with times, it is a forecast of the noon before the first."""
    probabilities = ESTIMATOR.predict_proba(inputs)
    minute = NOW - timedelta(minutes=100 - number)
    noon_before = [datetime.fromisoformat(f"{time}T12:00Z") - timedelta(days=1) for time in times[:1]]
    return {
        "id": number,
        "at": (noon_before or [minute])[0].isoformat(),
        "version": 1,
        "inputs": {"columns": list(inputs.columns), "data": inputs.to_numpy().tolist()},
        "outputs": {
            "columns": ["prediction", "probability_0", "probability_1"],
            "data": [[int(second > 0.5), first, second] for first, second in probabilities.tolist()],
        },
        "about": {Record.SUBJECT: subject, Record.TIMES: list(times)} if times else None,
    }


def record_forecasts(days: int, subject: str = DEPOT) -> list[dict[str, Any]]:
    """Return a record about each of the past days, yesterday last."""
    return [
        record(number, PARCELS.iloc[[number]], past_day(days + 1 - number), subject=subject)
        for number in range(1, days + 1)
    ]


def past_day(days: int) -> str:
    return (NOW.date() - timedelta(days=days)).isoformat()


def run_monitor(**parameters: Any) -> State[Any]:
    return monitor(return_state=True, **{"window_days": 40} | parameters)


def newest_check(tracking: MlflowClient, model: str = MODEL) -> Run:
    experiment = tracking.get_experiment_by_name(MONITORING_EXPERIMENT)
    assert experiment is not None
    (run, *_) = tracking.search_runs([experiment.experiment_id], f"tags.model = '{model}'")
    return run


def read_table(run: Run, artifact: str) -> pd.DataFrame:
    """Return a table as its consumers read it."""
    return pd.DataFrame(table_rows(mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{artifact}"), artifact))


def test_predictions_like_the_training_data_are_ok(serving: ServingServer, tracking: MlflowClient) -> None:
    serving.records[MODEL] = [record(number, PARCELS.iloc[[number]]) for number in range(1, 80)]
    serving.failures = 2
    state = run_monitor()
    run = newest_check(tracking)

    assert (state.name, state.message) == ("Completed", "Models checked: 1.")
    assert run.data.tags[Tag.VERDICT] == Verdict.OK
    assert run.data.tags[Tag.MODEL_VERSION] == "1"
    assert run.data.tags[Tag.FLOW_RUN_ID] == str(state.state_details.flow_run_id)
    assert run.data.metrics["predictions"] == 79
    assert run.data.metrics["drifted_share"] == 0
    assert set(read_table(run, Artifact.DRIFT)["column"]) == {"weight", "distance", Column.PREDICTION}


def test_a_bounded_number_of_records_is_fetched(
    serving: ServingServer, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = record(1, PARCELS.head(1), past_day(9))
    serving.records[MODEL] = [forecast, *(record(number, PARCELS.iloc[[number]]) for number in range(2, 60))]
    monkeypatch.setattr(module, "MAX_RECORDS", 20)
    run_monitor()

    assert newest_check(tracking).data.metrics["predictions"] == 21


def test_the_champion_is_judged_by_its_own_predictions(serving: ServingServer, tracking: MlflowClient) -> None:
    former = [record(number, PARCELS.iloc[[number]] * 3 + 20) | {"version": 9} for number in range(60)]
    serving.records[MODEL] = [*former, *(record(number, PARCELS.iloc[[number]]) for number in range(60, 99))]
    run_monitor()
    run = newest_check(tracking)

    assert (run.data.tags[Tag.VERDICT], run.data.metrics["predictions"]) == (Verdict.OK, 39)


def test_labels_are_scored_without_a_project(serving: ServingServer, tracking: MlflowClient) -> None:
    labeled = [
        record(number, PARCELS.iloc[[number]]) | {Record.LABELS: [int(LATE[number])], Record.CLASSES: [0, 1]}
        for number in range(1, 41)
    ]
    serving.records[MODEL] = [*labeled, *(record(number, PARCELS.iloc[[number]]) for number in range(41, 60))]
    run_monitor()
    run = newest_check(tracking)
    outcomes = read_table(run, Artifact.OUTCOMES)

    assert (run.data.tags[Tag.VERDICT], run.data.tags[Tag.PROBLEM]) == (Verdict.OK, Problem.BINARY)
    assert run.data.metrics["predictions"] == 59, "a labeled record of the sample counts once"
    assert run.data.metrics["scored"] == 40
    expected = brier_score_loss(LATE[1:41], ESTIMATOR.predict_proba(PARCELS)[1:41, 1])
    assert run.data.metrics["live_brier"] == pytest.approx(expected)
    assert sorted(outcomes[Column.OBSERVED]) == sorted(LATE[1:41])


def test_drift_ends_in_the_state_alert(serving: ServingServer, tracking: MlflowClient) -> None:
    serving.records[MODEL] = [record(1, PARCELS.head(60) * 3 + 20)]
    state = run_monitor(retrain_on_alert=True)

    assert (state.type, state.name) == ("COMPLETED", contract.State.ALERT)
    assert "100% of the inputs have drifted" in str(state.message)
    assert f"{MODEL} is not retrained: it was not trained by a deployment." in str(state.message)
    assert newest_check(tracking).data.tags[Tag.VERDICT] == Verdict.ALERT


def forget_checks(tracking: MlflowClient) -> str:
    """Delete the checks of other tests; return the experiment's id."""
    experiment_id = mlflow.set_experiment(MONITORING_EXPERIMENT).experiment_id
    for run in tracking.search_runs([experiment_id]):
        tracking.delete_run(run.info.run_id)
    return experiment_id


def test_an_alert_is_raised_once_until_it_is_about_something_else(
    serving: ServingServer, tracking: MlflowClient
) -> None:
    forget_checks(tracking)

    def check(**changed: float) -> State[None]:
        serving.records[MODEL] = [record(1, PARCELS.head(60).assign(**changed))]
        return run_monitor()

    first, again, other = check(weight=99.0), check(weight=99.0), check(weight=99.0, distance=99.0)

    assert [state.name for state in (first, again, other)] == [
        contract.State.ALERT,
        contract.State.ALERT_PERSISTS,
        contract.State.ALERT,
    ]
    assert again.type == "COMPLETED"
    assert again.message == first.message


@pytest.mark.parametrize(("days", "name"), [(6, contract.State.ALERT_PERSISTS), (8, contract.State.ALERT)])
def test_an_alert_is_a_new_one_when_seven_days_have_passed_without_it(
    serving: ServingServer, tracking: MlflowClient, days: int, name: str
) -> None:
    serving.records[MODEL] = [record(1, PARCELS.head(60).assign(weight=99.0))]
    run_monitor()
    tags = newest_check(tracking).data.tags
    past = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000)
    tracking.create_run(
        forget_checks(tracking), past, {key: tags[key] for key in (Tag.MODEL, Tag.MODEL_VERSION, Tag.ALERTS)}
    )

    assert run_monitor().name == name


def test_what_a_run_found_before_it_crashed_is_new_to_its_next_attempt(tracking: MlflowClient) -> None:
    experiment_id, version = forget_checks(tracking), registry.champion(MODEL)
    assert version is not None

    @flow(persist_result=False)
    def attempt(own: bool) -> list[list[str]]:
        tags = {Tag.MODEL: MODEL, Tag.MODEL_VERSION: str(version.version), Tag.ALERTS: '["skill"]'}
        tracking.create_run(experiment_id, tags=tags | (flow_run_tags() if own else {}))
        return module.fetch_former_alerts(version)

    assert not attempt(own=True)
    assert attempt(own=False) == [["skill"], ["skill"]]


def test_forecasts_are_requested_and_scored_against_the_ground_truth(
    serving: ServingServer, tracking: MlflowClient, project: Path
) -> None:
    declare_hooks(
        project,
        f"return {{({DEPOT!r}, time): True for time in times if time < {past_day(3)!r}}}",
        extra='live_features = "parcel_hooks:live_features"\nmonitor_query = {days = "7"}',
    )
    serving.records[MODEL] = record_forecasts(25)
    serving.forecasts[MODEL] = {"model": MODEL, "version": 1, "subject": DEPOT, "details": {}, "predictions": []}
    state = run_monitor()
    run = newest_check(tracking)
    forecasts = read_table(run, Artifact.FORECASTS)

    assert state.is_completed(), state.message
    assert (ServingPath.of_model(MODEL, "forecast"), {"days": "7"}) in serving.requests
    assert forecasts[Column.TIME].tolist() == [past_day(days) for days in range(25, 0, -1)]
    assert forecasts[Column.OBSERVED].notna().tolist() == [True] * 22 + [False] * 3
    assert run.data.metrics["scored"] == 22
    of_late = ESTIMATOR.predict_proba(PARCELS.iloc[1:23])[:, 1]
    assert run.data.metrics["live_brier"] == pytest.approx(np.mean((1 - of_late) ** 2))
    assert run.data.metrics["holdout_brier"] == pytest.approx(
        brier_score_loss(LATE, ESTIMATOR.predict_proba(PARCELS)[:, 1])
    )


@pytest.mark.parametrize(
    "error",
    [
        "SourceUnreachableError",
        "RateLimitedError",
        "WaitTooLongError",
        "RefusedError",
        "BadAnswerError",
        "DataError",
    ],
)
def test_a_source_of_ground_truth_that_does_not_deliver_is_a_warning(
    serving: ServingServer,
    tracking: MlflowClient,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: str,
) -> None:
    monkeypatch.setattr(module, "fetch_ground_truth", module.fetch_ground_truth.with_options(retries=0))
    declare_hooks(project, f'raise errors.{error}("The depot is closed.")')
    serving.records[MODEL] = record_forecasts(30)
    state = run_monitor()
    run = newest_check(tracking)

    assert state.is_completed(), state.message
    assert run.data.tags[Tag.VERDICT] == Verdict.OK
    assert run.data.metrics["scored"] == 0
    assert f"The ground truth for {MODEL} is missing. The depot is closed." in caplog.text


def test_a_transient_error_of_a_hook_is_retried(serving: ServingServer, tracking: MlflowClient, project: Path) -> None:
    declare_hooks(
        project,
        f"""if calls[model.name] < 2:
        raise errors.SourceUnreachableError("The depot does not answer.")
    return {{({DEPOT!r}, time): 1 for time in times}}""",
    )
    serving.records[MODEL] = record_forecasts(25)
    run_monitor()

    assert newest_check(tracking).data.metrics["scored"] == 25


@pytest.mark.parametrize(
    ("reference", "body", "reason"),
    [
        ("parcel_hooks:ground_truth", "return 1 / 0", "fails (ZeroDivisionError: division by zero)."),
        ("parcel_hooks:ground_truth", "return None", "fails (AttributeError: 'NoneType' object has no attribute"),
        (
            "parcel_hooks:ground_truth",
            "raise errors.UnknownSubjectError('Where?')",
            "fails (UnknownSubjectError: Where?).",
        ),
        ("parcel_hooks:calls", "", "is not a function."),
        ("parcel_hooks:missing", "", "cannot be imported (AttributeError: module 'parcel_hooks' has no attribute"),
        ("no_such_module:ground_truth", "", "cannot be imported (ModuleNotFoundError: No module named"),
    ],
)
def test_a_hook_that_fails_is_reported_for_its_model_alone(
    serving: ServingServer, tracking: MlflowClient, project: Path, reference: str, body: str, reason: str
) -> None:
    declare_hooks(project, body or "pass", reference=reference)
    serving.records = {MODEL: record_forecasts(30), OTHER: record_forecasts(30)}
    state = run_monitor()
    checks = [newest_check(tracking, model) for model in (MODEL, OTHER)]

    assert state.is_failed()
    assert str(state.message).startswith(f"{MODEL}: {project / 'flows' / 'parcels' / HOOKS_FILE}: ")
    assert f"ground_truth = {reference!r} {reason}" in str(state.message)
    assert OTHER not in str(state.message)
    assert [check.data.tags[Tag.VERDICT] for check in checks] == [Verdict.OK] * 2
    assert {check.data.tags[Tag.FLOW_RUN_ID] for check in checks} == {str(state.state_details.flow_run_id)}


def test_declarations_that_cannot_be_read_are_reported_once_and_drift_is_assessed(
    serving: ServingServer, tracking: MlflowClient, project: Path
) -> None:
    write_declaration(project, "[[models")
    serving.records = {MODEL: record_forecasts(30), OTHER: []}
    state = run_monitor()

    assert state.is_failed()
    assert str(state.message).count("cannot be read as TOML") == 1
    assert newest_check(tracking).data.tags[Tag.VERDICT] == Verdict.OK


@pytest.mark.parametrize("answer", [None, b"no JSON"])
def test_forecasts_that_serving_does_not_make_are_a_warning(
    serving: ServingServer,
    tracking: MlflowClient,
    project: Path,
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
) -> None:
    declare_hooks(project, extra='live_features = "parcel_hooks:live_features"')
    serving.records[MODEL] = [record(1, PARCELS.head(50))]
    serving.forecasts = {MODEL: answer} if answer else {}
    state = run_monitor()

    assert state.is_completed(), state.message
    assert newest_check(tracking).data.tags[Tag.VERDICT] == Verdict.OK
    assert f"{MODEL} has no new forecasts today." in caplog.text


def test_a_model_that_cannot_be_checked_fails_alone(serving: ServingServer, tracking: MlflowClient) -> None:
    serving.records = {MODEL: [], OTHER: [], "gone": []}
    state = run_monitor()

    assert state.is_failed()
    assert state.message == "gone: gone has no champion to check."
    assert newest_check(tracking).data.tags[Tag.VERDICT] == Verdict.TOO_FEW
    assert newest_check(tracking, OTHER).data.tags[Tag.VERDICT] == Verdict.TOO_FEW


def test_without_served_models_there_is_nothing_to_check(serving: ServingServer) -> None:
    state = run_monitor()

    assert state.message == "No model is served yet."
    assert [path for path, _ in serving.requests] == [ServingPath.MODELS]


def test_another_api_key_is_an_error(serving: ServingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "another")
    state = run_monitor()

    assert state.is_failed()
    assert "refused the request (status 401)" in str(state.message)


def test_serving_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(module, "fetch_served_models", module.fetch_served_models.with_options(retries=0))
    state = run_monitor()

    assert state.is_failed()
    assert "cannot be reached" in str(state.message)


def test_the_records_of_serving_are_assessed(
    mlflow_address: str, tracking: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"SERVING_API_KEY": KEY, "TRAINYARD_HOME": str(tmp_path)}
    with (
        postgres_server() as database,
        serving_server(tmp_path, mlflow_address, SERVING_DATABASE_URL=database, **settings) as address,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as api,
    ):
        wait_for(api, MODEL, 1)
        api.post(ServingPath.of_model(MODEL, "predict"), json=PARCELS.head(50).to_dict("records")).raise_for_status()
        records = ServingPath.of_model(MODEL, "predictions")
        wait_until(lambda: api.get(records).raise_for_status().json()["predictions"], 30, "the record")
        monkeypatch.setenv("SERVING_URL", address)
        monkeypatch.setenv("SERVING_API_KEY", KEY)
        state = run_monitor(models=[MODEL])
    run = newest_check(tracking)

    assert state.is_completed(), state.message
    assert run.data.tags[Tag.VERDICT] == Verdict.OK
    assert run.data.metrics["predictions"] == 50
    assert run.data.metrics["prediction_psi"] < 0.2


def test_the_weather_models_are_scored_against_the_archive(
    serving: ServingServer, tracking: MlflowClient, project: Path, open_meteo: OpenMeteoServer
) -> None:
    declare_hooks(project, model="rain-*", reference="flows.weather.truth:ground_truth")
    serving.records[RAIN] = record_forecasts(25, subject=SEATTLE["place"])
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: project / "results"}):
        states = [run_monitor(), run_monitor()]
    run = newest_check(tracking, RAIN)
    forecasts = read_table(run, Artifact.FORECASTS)

    assert all(state.is_completed() for state in states), states[0].message
    assert open_meteo.counts["/v1/archive"] == 1, "the second run finds it in the cache"
    assert run.data.metrics["scored"] == 21, "the archive lags four days behind"
    assert set(forecasts[Column.OBSERVED].dropna()) == {0.0, 1.0}
    ((_, query),) = open_meteo.queries
    window = date.fromisoformat(query["end_date"]) - date.fromisoformat(query["start_date"])
    assert window == timedelta(days=90)
