"""What is old is removed, and nothing that a registered version needs, on MLflow's and Prefect's servers as in the stack."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge

from infra.testing.servers import mlflow_server, prefect_client, prefect_server
from infra.testing.waiting import wait_until
from trainyard import retention
from trainyard.cache import keep
from trainyard.contract import RETENTION_PATH, Account, Alias, Tag
from trainyard.contract import State as StateName
from trainyard.flows.reconcile import reconcile
from trainyard.problem import Problem
from trainyard.provenance import DATA, KEPT_DAYS, recall_data, snapshot_paths
from trainyard.reproduction import reproduce
from trainyard.splits import RandomSplit
from trainyard.training import Outcome, train

ADMIN = ("admin", "password-of-the-admin")
PASSWORDS = {Account.WORKER: "password-of-the-worker", "ada": "password-of-a-person"}
DAY = 86_400
LONG_AGO_DAYS = 1000
FRAME = pd.DataFrame({"size": np.arange(120.0), "sold": np.arange(120.0) * 2 + np.tile([0.0, 1.0], 60)})


@dataclass(frozen=True)
class Platform:
    """MLflow's server with accounts, and where its data lies."""

    address: str
    folder: Path
    results: Path

    @property
    def artifacts(self) -> Path:
        """The folder of the artifact store."""
        return self.folder / "artifacts"

    def age(self) -> None:
        """Have everything that was deleted, ended or stored until now be of long ago."""
        milliseconds = LONG_AGO_DAYS * DAY * 1000
        with sqlite3.connect(self.folder / "mlflow.db", timeout=30) as database:
            database.execute(
                "UPDATE runs SET deleted_time = deleted_time - ?, end_time = end_time - ?", (milliseconds,) * 2
            )
            database.execute(
                "UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - ?", (milliseconds,)
            )
        database.close()
        written = time.time() - LONG_AGO_DAYS * DAY
        for file in (each for each in self.results.rglob("*") if each.is_file()):
            if "days" not in file.parts[-3] or float(file.parts[-3].removesuffix("-days")) > LONG_AGO_DAYS:
                os.utime(file, (written, written))

    def ask(self, method: str, login: tuple[str, str]) -> httpx.Response:
        """Send a request for what the server removes."""
        return httpx.request(method, f"{self.address}{RETENTION_PATH}", auth=login, timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of the server, and its folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(folder, admin=ADMIN, RETENTION_TRIAL_DAYS="60") as address:
        for name, password in PASSWORDS.items():
            account = {"username": name, "password": password}
            httpx.post(f"{address}/api/2.0/mlflow/users/create", json=account, auth=ADMIN).raise_for_status()
        yield address, folder


@pytest.fixture
def platform(
    server: tuple[str, Path], prefect: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """The platform as its worker sees it, with an empty result storage."""
    address, folder = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", Account.WORKER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[Account.WORKER])
    monkeypatch.setenv("MLFLOW_UI_URL", "http://mlflow.test:5001")
    monkeypatch.setenv("DISK_ALERT_PERCENT", "100")
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield Platform(address, folder, tmp_path / "results")


@pytest.fixture
def client(platform: Platform) -> MlflowClient:
    """The worker's client of MLflow."""
    return MlflowClient()


@pytest.fixture
def experiment(client: MlflowClient) -> str:
    """An experiment of the test's own, which the worker made."""
    return client.create_experiment(f"retention-{uuid4().hex[:8]}")


def train_version(name: str, estimator: BaseEstimator, rows: int) -> Outcome:
    """Train a recipe of its own, which gets a version whether it is promoted or not."""
    problem = Problem(name, "sold", {"model": estimator}, kind="regression", split=RandomSplit(seed=1))

    @flow(name="sales-pipeline", persist_result=False, timeout_seconds=600)
    def pipeline() -> Outcome:
        return train(problem, FRAME.head(rows))

    return pipeline()


def log_run_with_model(client: MlflowClient, platform: Platform, experiment: str) -> tuple[str, str]:
    """Log a run with a file, and a model of it with a file; return their ids."""
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "a file", "file.txt")
    model = client.create_logged_model(experiment, name="model", source_run_id=run).model_id
    login = (Account.WORKER, PASSWORDS[Account.WORKER])
    path = f"api/2.0/mlflow-artifacts/artifacts/{experiment}/models/{model}/artifacts/MLmodel"
    httpx.put(f"{platform.address}/{path}", content=b"a model", auth=login).raise_for_status()
    client.finalize_logged_model(model, LoggedModelStatus.READY)
    client.set_terminated(run)
    return run, model


def exists(client: MlflowClient, run: str) -> bool:
    """Return whether there is a run, deleted or not."""
    try:
        client.get_run(run)
    except MlflowException:
        return False
    return True


def test_nothing_that_a_version_needs_is_removed_although_people_deleted_it_in_mlflow(
    platform: Platform, client: MlflowClient
) -> None:
    model = f"sales-{uuid4().hex[:8]}"
    outcomes = [
        train_version(model, estimator, rows)
        for estimator, rows in ((Ridge(), 120), (DummyRegressor(), 119), (Ridge(alpha=1e6), 118))
    ]
    versions = [str(outcome.registered.version) for outcome in outcomes]
    before = [mlflow.sklearn.load_model(f"models:/{model}/{version}").predict(FRAME[["size"]]) for version in versions]
    for outcome in outcomes:
        run = outcome.registered.run_id
        for logged in client.search_logged_models([outcome.registered.experiment_id], f"source_run_id = '{run}'"):
            client.delete_logged_model(logged.model_id)
        client.delete_run(run)
    platform.age()

    reconcile(stuck_minutes=60)

    after = [mlflow.sklearn.load_model(f"models:/{model}/{version}").predict(FRAME[["size"]]) for version in versions]
    aliases = client.get_registered_model(model).aliases
    assert versions == ["1", "2", "3"]
    assert set(aliases.values()) < set(versions), "one of them is neither champion nor challenger"
    assert [list(each) for each in after] == [list(each) for each in before]
    for version in versions:
        assert reproduce(model, int(version)).is_equal
    for evaluated in (client.get_model_version(model, version).tags[Tag.EVALUATED_MODEL] for version in versions):
        assert next((platform.artifacts).rglob(f"{evaluated.removeprefix('models:/')}/artifacts/MLmodel"))


def test_what_was_deleted_long_ago_is_removed_with_its_files(
    platform: Platform, client: MlflowClient, experiment: str
) -> None:
    run, model = log_run_with_model(client, platform, experiment)
    other, deleted_model = log_run_with_model(client, platform, experiment)
    client.delete_run(run)
    client.delete_logged_model(deleted_model)
    platform.age()
    recent, _ = log_run_with_model(client, platform, experiment)
    _, recent_model = log_run_with_model(client, platform, experiment)
    client.delete_run(recent)
    client.delete_logged_model(recent_model)

    reconcile(stuck_minutes=60)

    folder = platform.artifacts / experiment
    files = {file.relative_to(folder).parts[-3] for file in folder.rglob("*") if file.is_file()}
    assert [exists(client, each) for each in (run, other, recent)] == [False, True, True]
    assert files.isdisjoint({run, model, deleted_model})
    assert files >= {other, recent, recent_model}, "what people may restore has its files"


def test_a_run_whose_model_was_registered_by_hand_is_kept(
    platform: Platform, client: MlflowClient, experiment: str
) -> None:
    run, model = log_run_with_model(client, platform, experiment)
    name = f"by-hand-{uuid4().hex[:8]}"
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{model}", model_id=model)
    client.delete_run(run)
    platform.age()
    reconcile(stuck_minutes=60)
    kept = exists(client, run)

    client.delete_registered_model(name)
    reconcile(stuck_minutes=60)

    assert kept
    assert not exists(client, run)


def test_a_run_whose_file_was_registered_is_kept(platform: Platform, client: MlflowClient, experiment: str) -> None:
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "a model", "model/MLmodel")
    client.set_terminated(run)
    name = f"by-run-{uuid4().hex[:8]}"
    client.create_registered_model(name)
    client.create_model_version(name, f"runs:/{run}/model", run)
    client.delete_run(run)
    platform.age()

    reconcile(stuck_minutes=60)

    assert exists(client, run)
    assert (platform.artifacts / experiment / run / "artifacts" / "model" / "MLmodel").exists()


def test_the_files_of_a_copied_version_are_kept_when_the_first_one_is_gone(
    platform: Platform, client: MlflowClient, experiment: str
) -> None:
    run, model = log_run_with_model(client, platform, experiment)
    first, copy = f"first-{uuid4().hex[:8]}", f"copy-{uuid4().hex[:8]}"
    client.create_registered_model(first)
    client.create_model_version(first, f"models:/{model}", run, model_id=model)
    client.copy_model_version(f"models:/{first}/1", copy)
    client.delete_registered_model(first)
    client.delete_logged_model(model)
    client.delete_run(run)
    platform.age()

    reconcile(stuck_minutes=60)

    assert (platform.artifacts / experiment / "models" / model / "artifacts" / "MLmodel").exists()
    assert exists(client, run)


def test_trials_of_old_versions_go_to_the_trash(platform: Platform, client: MlflowClient) -> None:
    model = f"trials-{uuid4().hex[:8]}"
    runs = {}
    for version, (estimator, rows) in enumerate(
        ((Ridge(), 120), (DummyRegressor(), 119), (Ridge(alpha=1e6), 118)), start=1
    ):
        registered = train_version(model, estimator, rows).registered
        trials = client.search_runs([registered.experiment_id], f"tags.`{Tag.PARENT_RUN_ID}` = '{registered.run_id}'")
        runs[version] = [trial.info.run_id for trial in trials]
    aliases = client.get_registered_model(model).aliases
    young = [client.get_run(trial).info.lifecycle_stage for trials in runs.values() for trial in trials]
    reconcile(stuck_minutes=60)
    platform.age()

    reconcile(stuck_minutes=60)

    stages = {
        version: {client.get_run(trial).info.lifecycle_stage for trial in trials} for version, trials in runs.items()
    }
    kept = {int(version) for alias, version in aliases.items() if alias in (Alias.CHAMPION, Alias.CHALLENGER)}
    assert set(young) == {"active"}
    assert stages == {version: {"active" if version in kept else "deleted"} for version in runs}
    assert len(kept) == 2


def test_training_data_without_a_version_is_removed_and_that_of_a_version_is_not(
    platform: Platform, client: MlflowClient
) -> None:
    model = f"snapshots-{uuid4().hex[:8]}"
    registered = train_version(model, Ridge(), 120).registered
    digest = client.get_run(registered.run_id).data.tags[Tag.DATA_DIGEST]

    @flow(name="keep", persist_result=False)
    def keep_without_version() -> None:
        keep(DATA, "a digest of no version", FRAME, KEPT_DAYS)

    keep_without_version()
    (lost,) = [path for path in snapshot_paths("a digest of no version") if (platform.results / path).exists()]
    reconcile(stuck_minutes=60)
    young = (platform.results / lost).exists()
    platform.age()
    (platform.results / uuid4().hex).write_text("a result of a run")
    old_result = platform.results / uuid4().hex
    old_result.write_text("an old result of a run")
    os.utime(old_result, (0, 0))

    reconcile(stuck_minutes=60)

    assert young
    assert not (platform.results / lost).exists()
    assert not old_result.exists()
    assert len([file for file in platform.results.iterdir() if file.is_file()]) == 1
    assert len(recall_data(digest)[0]) + len(recall_data(digest)[1]) == 120


def test_models_in_the_trash_and_folders_of_mlflow_s_own_keep_their_files(
    platform: Platform, client: MlflowClient, experiment: str
) -> None:
    _, model = log_run_with_model(client, platform, experiment)
    client.delete_logged_model(model)
    trace = platform.artifacts / experiment / "traces" / "tr-1" / "artifacts" / "traces.json"
    trace.parent.mkdir(parents=True)
    trace.write_text("{}")
    lost = platform.artifacts / experiment / "models" / f"m-{uuid4().hex}" / "artifacts" / "MLmodel"
    lost.parent.mkdir(parents=True)
    lost.write_text("of nothing")

    reconcile(stuck_minutes=60)

    assert (platform.artifacts / experiment / "models" / model / "artifacts" / "MLmodel").exists()
    assert trace.exists()
    assert not lost.exists()


def test_what_belongs_to_a_person_is_left_to_the_person(platform: Platform, client: MlflowClient) -> None:
    login = ("ada", PASSWORDS["ada"])
    with httpx.Client(base_url=f"{platform.address}/api/2.0", auth=login, timeout=30) as ada:
        created = ada.post("/mlflow/experiments/create", json={"name": f"of-ada-{uuid4().hex[:8]}"}).raise_for_status()
        experiment = created.json()["experiment_id"]
        body = {"experiment_id": experiment, "name": "cut-off"}
        model = ada.post("/mlflow/logged-models", json=body).raise_for_status().json()["model"]["info"]["model_id"]
        lost = f"{experiment}/{uuid4().hex}/artifacts/file.txt"
        ada.put(f"/mlflow-artifacts/artifacts/{lost}", content=b"of no run").raise_for_status()

    state = reconcile(stuck_minutes=0, return_state=True)

    assert state.is_completed()
    assert client.get_logged_model(model).status == LoggedModelStatus.PENDING
    assert (platform.artifacts / lost).exists()


def test_without_mending_it_only_looks(platform: Platform, client: MlflowClient, experiment: str) -> None:
    run, _ = log_run_with_model(client, platform, experiment)
    client.delete_run(run)
    platform.age()
    planned = retention.describe_storage()["mlflow"]

    reconcile(stuck_minutes=60, mend=False)

    assert run in planned["runs"]
    assert exists(client, run)


@pytest.mark.parametrize(
    ("login", "looks", "removes"),
    [(ADMIN, 200, 200), ((Account.WORKER, PASSWORDS[Account.WORKER]), 200, 200), (("ada", PASSWORDS["ada"]), 200, 403),
     (("ada", "another-password"), 401, 401)],
    ids=["admin", "worker", "person", "stranger"],
)  # fmt: skip
def test_only_the_worker_and_admins_have_the_server_remove_something(
    platform: Platform, login: tuple[str, str], looks: int, removes: int
) -> None:
    assert platform.ask("GET", login).status_code == looks
    assert platform.ask("POST", login).status_code == removes


def test_a_disk_that_fills_up_is_announced_once_a_day(
    platform: Platform, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISK_ALERT_PERCENT", "0.001")
    states = [reconcile(stuck_minutes=60, return_state=True) for _ in range(2)]
    quiet = reconcile(stuck_minutes=60, disk_alert_percent=100, return_state=True)

    assert [state.name for state in states] == [StateName.ALERT, StateName.ALERT_PERSISTS]
    assert "% full: " in str(states[0].message)
    assert "`make storage` shows" in str(states[0].message)
    assert quiet.name == "Completed"


def test_prefect_deletes_runs_after_the_days_of_the_setting_with_their_logs(tmp_path: Path) -> None:
    admin, reader = ("admin", "password-of-the-admin"), "dashboard:password-of-the-reader"
    with (
        prefect_server(
            tmp_path,
            admin=":".join(admin),
            reader=reader,
            RETENTION_FLOW_RUN_DAYS="20",
            PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS="1",
        ) as address,
        prefect_client(address, admin) as api,
    ):
        flow_id = api.post("/flows/", json={"name": "old"}).raise_for_status().json()["id"]

        def run_that_ended(days: float) -> str:
            ended = (datetime.now(UTC) - timedelta(days=days)).isoformat()
            run = {"flow_id": flow_id, "state": {"type": "RUNNING"}}
            run_id: str = api.post("/flow_runs/", json=run).raise_for_status().json()["id"]
            log = {"flow_run_id": run_id, "level": 20, "name": "a", "message": f"{days}", "timestamp": ended}
            api.post("/logs/", json=[log]).raise_for_status()
            with sqlite3.connect(tmp_path / "prefect.db", timeout=30) as database:
                database.execute(
                    "UPDATE flow_run SET end_time = ?, state_type = 'COMPLETED' WHERE id = ?",
                    (ended.replace("T", " ").removesuffix("+00:00"), run_id),
                )
            database.close()
            return run_id

        recent, old = run_that_ended(19), run_that_ended(21)
        wait_until(lambda: api.get(f"/flow_runs/{old}").status_code == 404, 60, "the deletion of the old run")
        messages = wait_until(
            lambda: len(found := api.post("/logs/filter", json={}).raise_for_status().json()) == 1 and found,
            30,
            "its logs'",
        )

        assert api.get(f"/flow_runs/{recent}").status_code == 200
        assert [log["message"] for log in messages] == ["19"]


def test_the_plan_is_printed_for_make_storage(platform: Platform, prefect: SyncPrefectClient) -> None:
    described = json.loads(json.dumps(retention.describe_storage()))

    assert described["disk"]["text"].startswith("The disk with the data is ")
    assert described["mlflow"]["deleted_days"] == 30
    assert described["mlflow"]["trial_days"] == 60
    assert described["flow_runs"] == 0
