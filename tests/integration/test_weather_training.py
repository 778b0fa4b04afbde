"""One training of the weather pipeline, its unchanged rerun and its refresh, with real Prefect and MLflow servers."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.weather.pipeline import weather_pipeline
from flows.weather.places import HOME, MODEL
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.waiting import wait_until
from trainyard.contract import Alias, Artifact, Column, GateDecision, MLflowPage, PrefectPage, State, Tag
from trainyard.evaluation import from_table
from trainyard.outcome import Outcome

CACHED_TASKS = {"find_place", "fetch_archive", "build_features", "search_candidates", "fit"}
MLFLOW_UI, PREFECT_UI = "http://mlflow.test:5001", "http://prefect.test:4200"


@dataclass(frozen=True)
class PipelineRun:
    """A finished run of the pipeline for one place."""

    flow_run_id: UUID
    outcome: Outcome
    requests: Counter[str]
    """Requests to Open-Meteo, by path."""


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def tracking(mlflow_address: str, environment: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the MLflow server, which the flows use too."""
    environment.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    environment.setenv("MLFLOW_UI_URL", MLFLOW_UI)
    return MlflowClient()


@pytest.fixture(scope="module")
def open_meteo(environment: pytest.MonkeyPatch) -> Iterator[OpenMeteoServer]:
    """A server with Open-Meteo's API and synthetic weather, from which the flows fetch."""
    with OpenMeteoServer() as server:
        environment.setenv("WEATHER_ARCHIVE_URL", f"{server.url}/v1/archive")
        environment.setenv("WEATHER_FORECAST_URL", f"{server.url}/v1/forecast")
        environment.setenv("WEATHER_GEOCODING_URL", f"{server.url}/v1/search")
        yield server


def run_pipeline(open_meteo: OpenMeteoServer, *, refresh: bool = False) -> PipelineRun:
    """Run the pipeline for Seattle, with all families of estimators."""
    open_meteo.counts.clear()
    state = weather_pipeline(years=2, folds=2, refresh=refresh, return_state=True)
    (outcome,) = state.result()
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    return PipelineRun(flow_run_id, outcome, Counter(open_meteo.counts))


@pytest.fixture(scope="module")
def training(
    prefect: SyncPrefectClient,
    tracking: MlflowClient,
    open_meteo: OpenMeteoServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PipelineRun]:
    """The first run, which finds an empty cache and an empty registry."""
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("storage")}):
        yield run_pipeline(open_meteo)


@pytest.fixture(scope="module")
def rerun(training: PipelineRun, open_meteo: OpenMeteoServer) -> PipelineRun:
    """The run after it, of which nothing has changed."""
    return run_pipeline(open_meteo)


@pytest.fixture(scope="module")
def refreshed(rerun: PipelineRun, open_meteo: OpenMeteoServer) -> PipelineRun:
    """A third run, which ignores the cache."""
    return run_pipeline(open_meteo, refresh=True)


@pytest.fixture
def mlflow_run(training: PipelineRun, tracking: MlflowClient) -> Run:
    """The first run's run in MLflow."""
    return tracking.get_run(training.outcome.registered.run_id)


def version_tags(tracking: MlflowClient, run: PipelineRun) -> dict[str, str]:
    tags: dict[str, str] = tracking.get_model_version(MODEL, str(run.outcome.registered.version)).tags
    return tags


def artifacts_of(prefect: SyncPrefectClient, flow_run_id: UUID) -> str:
    """Return the content of the only artifact on a flow run's page."""
    flow_run = ArtifactFilter.model_validate({"flow_run_id": {"any_": [flow_run_id]}})
    (artifact,) = prefect.read_artifacts(artifact_filter=flow_run)
    return str(artifact.data)


def subflows_of(prefect: SyncPrefectClient, flow_run_id: UUID) -> dict[str, UUID]:
    """Return the ids of a flow run's subflow runs by the flow's name."""
    parent = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [flow_run_id]}})
    return {prefect.read_flow(child.flow_id).name: child.id for child in prefect.read_flow_runs(flow_run_filter=parent)}


def task_states(prefect: SyncPrefectClient, flow_run_id: UUID) -> dict[str, list[str | None]]:
    """Return the states of the task runs of a flow run and of its subflow runs, by the task's name."""
    states: dict[str, list[str | None]] = {}
    remaining = [flow_run_id]
    while remaining:
        parent = remaining.pop()
        of_parent = TaskRunFilter.model_validate({"flow_run_id": {"any_": [parent]}})
        for task_run in prefect.read_task_runs(task_run_filter=of_parent, limit=200):
            states.setdefault(task_run.task_key.split("-")[0], []).append(task_run.state_name)
        remaining += subflows_of(prefect, parent).values()
    return states


class TestTraining:
    def test_the_model_beats_the_baselines(self, training: PipelineRun) -> None:
        metrics = training.outcome.metrics

        for name in ("brier", "log_loss"):
            assert metrics[f"model_{name}"] < min(metrics[f"persistence_{name}"], metrics[f"climatology_{name}"])

    def test_the_version_is_champion_and_tagged_with_its_data(
        self, training: PipelineRun, tracking: MlflowClient
    ) -> None:
        tags = version_tags(tracking, training)

        assert training.outcome.registered.model == MODEL
        assert training.outcome.is_champion
        assert (tags["data_source"], tags["place"]) == ("open-meteo", HOME)
        assert tags[Tag.GATE_DECISION] == GateDecision.PROMOTED
        assert len(tags[Tag.CODE]) == 12

    def test_the_mlflow_run_has_metrics_parameters_and_dataset(self, training: PipelineRun, mlflow_run: Run) -> None:
        inputs = mlflow_run.inputs

        assert mlflow_run.info.status == "FINISHED"
        assert mlflow_run.data.metrics == pytest.approx(training.outcome.metrics)
        assert mlflow_run.data.params["place"] == HOME
        assert mlflow_run.data.params["candidates"] == "9"
        assert mlflow_run.data.params["wet_day_mm"] == "1.0"
        assert inputs is not None
        (dataset,) = [each.dataset for each in inputs.dataset_inputs]
        assert dataset.name == "open-meteo"
        assert "latitude=47.61" in dataset.source

    @pytest.mark.parametrize(
        ("folder", "expected"),
        [
            ("", {"calibration.png", "roc.png", "precision_recall.png", "importance.png", "forecast.png"}),
            ("evaluation", {Artifact.HOLDOUT, Artifact.TRAINING_SAMPLE}),
        ],
    )
    def test_the_mlflow_run_has_plots_and_tables(
        self, mlflow_run: Run, tracking: MlflowClient, folder: str, expected: set[str]
    ) -> None:
        paths = {file.path for file in tracking.list_artifacts(mlflow_run.info.run_id, folder)}

        assert expected <= paths

    def test_each_candidate_is_a_child_run(self, mlflow_run: Run, tracking: MlflowClient) -> None:
        parent = f"tags.`{Tag.PARENT_RUN_ID}` = '{mlflow_run.info.run_id}'"

        children = tracking.search_runs([mlflow_run.info.experiment_id], parent)

        families = Counter(child.data.params["family"] for child in children)
        assert families == {"logistic-regression": 3, "random-forest": 3, "hist-gradient-boosting": 3}
        assert all(child.data.metrics["cv_log_loss"] > 0 for child in children)
        assert {child.info.status for child in children} == {"FINISHED"}

    def test_the_model_loads_from_a_safe_format_and_predicts_its_input_example(self, training: PipelineRun) -> None:
        uri = f"models:/{MODEL}/{training.outcome.registered.version}"
        info = mlflow.models.get_model_info(uri)

        example = mlflow.models.Model.load(uri).load_input_example(uri)
        probability = mlflow.sklearn.load_model(uri).predict_proba(example)

        assert info.flavors["sklearn"]["serialization_format"] == "skops"
        assert info.signature is not None
        assert np.isfinite(probability).all()
        assert probability.sum(axis=1) == pytest.approx(1)

    def test_the_served_model_is_fitted_on_all_days_and_the_evaluated_one_is_kept(
        self, training: PipelineRun, tracking: MlflowClient
    ) -> None:
        version = tracking.get_model_version(MODEL, str(training.outcome.registered.version))
        served, evaluated = (
            mlflow.sklearn.load_model(uri)
            for uri in (f"models:/{MODEL}/{version.version}", version.tags[Tag.EVALUATED_MODEL])
        )
        holdout = tracking.download_artifacts(training.outcome.registered.run_id, Artifact.HOLDOUT)
        table = from_table(json.loads(Path(holdout).read_text()))
        rows = mlflow.models.Model.load(version.tags[Tag.EVALUATED_MODEL]).load_input_example(
            version.tags[Tag.EVALUATED_MODEL]
        )

        assert version.tags[Tag.TRAIN_LAST_TIME] < version.tags["refit_last_day"]
        assert evaluated.predict_proba(rows)[:, 1] == pytest.approx(table[Column.MODEL].head(5).to_numpy())
        assert served.predict_proba(rows)[:, 1] != pytest.approx(table[Column.MODEL].head(5).to_numpy())
        assert "fitted again on all rows" in str(version.description)

    def test_the_model_card_has_the_data_and_what_the_live_source_does_to_the_score(
        self, training: PipelineRun, tracking: MlflowClient
    ) -> None:
        card = str(tracking.get_model_version(MODEL, str(training.outcome.registered.version)).description)

        assert f"Rain tomorrow (at least 1 mm) in {HOME}; **open-meteo**" in card
        assert "with the archive's features and" in card


class TestLinks:
    def test_the_mlflow_run_links_to_the_flow_run(self, training: PipelineRun, mlflow_run: Run) -> None:
        tags, page = mlflow_run.data.tags, PrefectPage.flow_run(PREFECT_UI, str(training.flow_run_id))

        assert tags[Tag.FLOW_RUN_ID] == str(training.flow_run_id)
        assert tags[Tag.FLOW_RUN_URL] == page
        assert page in tags[Tag.NOTE]

    def test_the_flow_run_links_to_the_mlflow_run(
        self, training: PipelineRun, mlflow_run: Run, prefect: SyncPrefectClient
    ) -> None:
        page = MLflowPage.run(MLFLOW_UI, mlflow_run.info.experiment_id, mlflow_run.info.run_id)

        assert training.outcome.registered.run_url == page
        assert page in artifacts_of(prefect, training.flow_run_id)

    def test_the_training_subflow_has_a_report(self, training: PipelineRun, prefect: SyncPrefectClient) -> None:
        subflows = subflows_of(prefect, training.flow_run_id)

        report = artifacts_of(prefect, subflows["train"])

        assert set(subflows) == {"preprocess", "train"}
        assert "| brier |" in report
        assert "**open-meteo**" in report
        assert training.outcome.registered.run_url in report


class TestRerun:
    def test_an_unchanged_rerun_reuses_the_version(self, training: PipelineRun, rerun: PipelineRun) -> None:
        assert rerun.outcome.reused
        assert rerun.outcome.registered == training.outcome.registered
        assert rerun.outcome.metrics == training.outcome.metrics
        assert rerun.outcome.is_champion

    def test_it_takes_every_step_from_the_cache(self, rerun: PipelineRun, prefect: SyncPrefectClient) -> None:
        def recorded_states() -> dict[str, list[str | None]] | None:
            states = task_states(prefect, rerun.flow_run_id)
            return states if states.keys() >= CACHED_TASKS else None  # the server records task runs with a delay

        states = wait_until(recorded_states, 20, "the task runs")

        assert {name: states[name] for name in CACHED_TASKS} == {name: [State.CACHED] for name in CACHED_TASKS}
        assert "cross_validate" not in states, "the search is one cached task"
        assert not {"refit", "log_run"} & states.keys()
        assert not rerun.requests

    def test_the_mlflow_run_names_the_rerun_as_its_last_flow_run(self, rerun: PipelineRun, mlflow_run: Run) -> None:
        assert mlflow_run.data.tags[Tag.LAST_FLOW_RUN_ID] == str(rerun.flow_run_id)


class TestRefresh:
    def test_a_refresh_recomputes_everything_with_the_same_result(
        self, training: PipelineRun, refreshed: PipelineRun
    ) -> None:
        assert refreshed.outcome.reused, "nothing new was learned"
        assert refreshed.outcome.registered == training.outcome.registered
        assert refreshed.outcome.metrics == training.outcome.metrics
        assert refreshed.requests == {"/v1/search": 1, "/v1/archive": 1}

    def test_the_model_stays_the_champion(
        self, training: PipelineRun, refreshed: PipelineRun, tracking: MlflowClient
    ) -> None:
        aliases = tracking.get_registered_model(MODEL).aliases

        assert refreshed.outcome.is_champion
        assert {alias: int(version) for alias, version in aliases.items()} == {
            Alias.CHAMPION: training.outcome.registered.version
        }
