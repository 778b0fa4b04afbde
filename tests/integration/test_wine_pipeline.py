"""The wine pipeline against real Prefect and MLflow servers: what is shared works for data of another kind."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prefect import tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.wine import model
from flows.wine.pipeline import train_wine, wine_pipeline
from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from trainyard.candidates import Candidate
from trainyard.data import check
from trainyard.errors import SearchError
from trainyard.gate import Thresholds
from trainyard.outcome import Outcome

MODEL = "wine-cultivar"
CACHEABLE = {"judge": len(model.CANDIDATES), "fit": 1, "log_run": 1}
COMPUTED = {name: {"Completed": count} for name, count in (CACHEABLE | {"promote": 1}).items()}
TAKEN = {name: {"Cached": count} for name, count in CACHEABLE.items()} | {"promote": {"Completed": 1}}

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "own_cache_and_registry")


@pytest.fixture
def own_cache_and_registry(tracking: MlflowClient, tmp_path: Path) -> Iterator[None]:
    """Nothing is cached yet, and there is no champion."""
    with suppress(MlflowException):
        tracking.delete_registered_model(MODEL)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield


def run(**parameters: Any) -> tuple[Outcome, UUID]:
    """Run the pipeline; return what came out, and the flow run's id."""
    state: State[Outcome] = wine_pipeline(**parameters, return_state=True)
    assert state.state_details.flow_run_id is not None
    return state.result(), state.state_details.flow_run_id


def components(prefect: SyncPrefectClient, flow_run_id: UUID) -> dict[str, FlowRun]:
    """Return the subflow runs by the names of their flows."""
    parent = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [flow_run_id]}})
    return {prefect.read_flow(child.flow_id).name: child for child in prefect.read_flow_runs(flow_run_filter=parent)}


def task_states(prefect: SyncPrefectClient, flow_run_id: UUID) -> dict[str, dict[str, int]]:
    """Return how many task runs of the training ended in which state, by the task's function."""
    training = components(prefect, flow_run_id)["train-wine"].id
    of_training = FlowRunFilter.model_validate({"id": {"any_": [training]}})

    def all_there() -> list[TaskRun] | None:
        found = prefect.read_task_runs(flow_run_filter=of_training)
        ended = [task_run for task_run in found if task_run.state and task_run.state.is_final()]
        return ended if len(ended) == len(model.CANDIDATES) + 3 else None

    counts: dict[str, Counter[str]] = {}
    for task_run in wait_until(all_there, 20, "all task runs, which the server notes after they have ended"):
        counts.setdefault(task_run.task_key.rpartition("-")[0], Counter())[str(task_run.state_name)] += 1
    return {name: dict(of_one) for name, of_one in counts.items()}


def versions(tracking: MlflowClient) -> int:
    return len(tracking.search_model_versions(f"name = '{MODEL}'"))


def alias(tracking: MlflowClient, name: str) -> int | None:
    return int(found) if (found := tracking.get_registered_model(MODEL).aliases.get(name)) else None


def candidates_of(tracking: MlflowClient, run: Run) -> list[Run]:
    return list(tracking.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"))


def test_a_champion_that_beats_the_baseline(tracking: MlflowClient, prefect: SyncPrefectClient) -> None:
    outcome, flow_run_id = run()
    assert outcome.is_champion
    assert not outcome.reused
    assert outcome.metrics["model_log_loss"] < outcome.metrics["baseline_log_loss"] / 2
    assert alias(tracking, "champion") == outcome.registered.version

    version = tracking.get_model_version(MODEL, str(outcome.registered.version))
    assert "there was no champion" in version.tags["gate.reason"]
    logged = tracking.get_run(str(version.run_id))
    assert tracking.get_experiment(logged.info.experiment_id).name == "wine"
    assert logged.data.metrics == pytest.approx(outcome.metrics)
    assert logged.data.tags["train_rows"] == version.tags["train_rows"]
    assert logged.data.tags["prefect.flow_run_id"] == str(flow_run_id)
    assert len(candidates_of(tracking, logged)) == len(model.CANDIDATES)

    uri = f"models:/{MODEL}@champion"
    example = mlflow.models.Model.load(uri).load_input_example(uri)
    assert set(mlflow.sklearn.load_model(uri).predict(example)) <= set(model.CULTIVARS)

    training = components(prefect, flow_run_id)["train-wine"]
    of_training = ArtifactFilter.model_validate({"flow_run_id": {"any_": [training.id]}})
    (report,) = prefect.read_artifacts(artifact_filter=of_training)
    assert "| metric | model | baseline |" in str(report.data)
    assert outcome.registered.run_url in str(report.data)


def test_the_second_run_is_taken_from_the_cache_and_the_champion_stays(
    tracking: MlflowClient, prefect: SyncPrefectClient
) -> None:
    first, flow_run_id = run()
    assert task_states(prefect, flow_run_id) == COMPUTED
    second, flow_run_id = run()
    assert task_states(prefect, flow_run_id) == TAKEN
    assert second.reused
    assert second.registered == first.registered
    assert second.decision.reason == "It is the champion."
    assert versions(tracking) == 1


def test_refresh_computes_anew_and_the_same_model_is_no_better(
    tracking: MlflowClient, prefect: SyncPrefectClient
) -> None:
    first, _ = run()
    second, flow_run_id = run(refresh=True)
    assert task_states(prefect, flow_run_id) == COMPUTED
    assert second.metrics == first.metrics
    assert second.registered.version != first.registered.version
    assert not second.is_champion
    assert alias(tracking, "champion") == first.registered.version
    assert alias(tracking, "challenger") == second.registered.version


def test_other_parameters_compute_only_what_depends_on_them(prefect: SyncPrefectClient) -> None:
    run()
    _, flow_run_id = run(folds=4)
    states = task_states(prefect, flow_run_id)
    assert states["judge"] == {"Completed": len(model.CANDIDATES)}
    assert states["log_run"] == {"Completed": 1}


def test_a_threshold_nobody_reaches_leaves_a_challenger(tracking: MlflowClient, prefect: SyncPrefectClient) -> None:
    outcome, _ = run(gate=Thresholds(min_skill=0.999))
    assert not outcome.is_champion
    assert alias(tracking, "champion") is None
    assert alias(tracking, "challenger") == outcome.registered.version
    version = tracking.get_model_version(MODEL, str(outcome.registered.version))
    assert "does not reach" in version.tags["gate.reason"]
    assert version.tags["gate.reason"] == outcome.decision.reason

    # The thresholds are asked anew each time, and need no new training.
    lenient, flow_run_id = run()
    assert lenient.reused
    assert lenient.is_champion
    assert alias(tracking, "champion") == outcome.registered.version
    assert task_states(prefect, flow_run_id)["fit"] == {"Cached": 1}


def test_a_champion_of_other_wines_is_not_compared_with(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, _ = run()
    wines = model.read_wines()
    monkeypatch.setattr(model, "read_wines", lambda: wines.iloc[3:])
    other, _ = run()
    assert not other.is_champion
    assert "fitted on other wines" in other.decision.reason
    assert alias(tracking, "champion") == champion.registered.version


def test_a_version_that_was_deleted_is_logged_anew(tracking: MlflowClient) -> None:
    first, _ = run()
    tracking.delete_registered_model(MODEL)
    second, _ = run()
    assert not second.reused
    assert second.registered.run_id != first.registered.run_id
    assert alias(tracking, "champion") == second.registered.version


def test_the_components_carry_the_tags_of_the_pipeline(prefect: SyncPrefectClient) -> None:
    with tags("mail", "example"):
        _, flow_run_id = run()
    found = components(prefect, flow_run_id)
    assert {name: set(child.tags) for name, child in found.items()} == {
        "load-wine": {"mail", "example"},
        "train-wine": {"mail", "example"},
    }


def test_the_training_runs_by_itself() -> None:
    assert train_wine(folds=3).is_champion


def test_a_candidate_that_fails_is_left_out(tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Candidate("random-forest", (("no_such_parameter", 1.0),))
    monkeypatch.setattr(model, "CANDIDATES", (*model.CANDIDATES[:2], broken))
    outcome, _ = run()
    found = candidates_of(tracking, tracking.get_run(outcome.registered.run_id))
    assert sorted(run.info.status for run in found) == ["FAILED", "FINISHED", "FINISHED"]

    monkeypatch.setattr(model, "CANDIDATES", (broken,))
    with pytest.raises(SearchError, match="no_such_parameter"):
        run()


@pytest.mark.parametrize("parameters", [{"folds": 1}, {"gate": {"min_skill": 2}}])
def test_nonsense_is_refused_and_registers_nothing(tracking: MlflowClient, parameters: dict[str, Any]) -> None:
    assert wine_pipeline(**parameters, return_state=True).is_failed()
    assert versions(tracking) == 0


def test_wrong_data_fails_with_its_reason(tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_strong(wines: pd.DataFrame, schema: Any) -> pd.DataFrame:
        return check(wines.assign(alcohol=wines["alcohol"] * 100), schema)

    monkeypatch.setattr("flows.wine.model.check", too_strong)
    state: State[Any] = wine_pipeline(return_state=True)
    assert state.is_failed()
    assert "alcohol: in_range(5, 25)" in str(state.message)
    assert versions(tracking) == 0


def test_mlflow_out_of_reach_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert "MLflow does not answer" in str(train_wine(return_state=True).message)
