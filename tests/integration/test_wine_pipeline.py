"""The wine pipeline against real Prefect and MLflow servers."""

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
from trainyard.contract import Alias, Tag
from trainyard.contract import State as StateName
from trainyard.data import validate_frame
from trainyard.errors import SearchError
from trainyard.gate import Thresholds
from trainyard.outcome import Outcome

MODEL = "wine-cultivar"
CANDIDATES = model.CANDIDATES[2:5]  # the unit tests fit all of them
CACHEABLE = {"search_candidates": 1, "fit": 1}
SEARCHED = {"cross_validate": {"Completed": len(CANDIDATES)}}
LOGGED = {name: {"Completed": 1} for name in ("refit", "keep_data", "keep_problem", "log_run")}
PROMOTE = {"propose": {"Completed": 1}, "promote": {"Completed": 1}}
COMPUTED = {name: {"Completed": count} for name, count in CACHEABLE.items()} | SEARCHED | PROMOTE
FROM_CACHE = {name: {StateName.CACHED: count} for name, count in CACHEABLE.items()} | PROMOTE

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "own_cache_and_registry")


@pytest.fixture
def own_cache_and_registry(tracking: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with an empty cache and no champion, and search few candidates."""
    monkeypatch.setattr(model, "CANDIDATES", CANDIDATES)
    with suppress(MlflowException):
        tracking.delete_registered_model(MODEL)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield


def run(**parameters: Any) -> tuple[Outcome, UUID]:
    """Run the pipeline; return its outcome and the flow run's id."""
    state: State[Outcome] = wine_pipeline(**parameters, return_state=True)
    assert state.state_details.flow_run_id is not None
    return state.result(), state.state_details.flow_run_id


def components(prefect: SyncPrefectClient, flow_run_id: UUID) -> dict[str, FlowRun]:
    """Return the subflow runs, by the names of their flows."""
    parent = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [flow_run_id]}})
    return {prefect.read_flow(child.flow_id).name: child for child in prefect.read_flow_runs(flow_run_filter=parent)}


def task_states(
    prefect: SyncPrefectClient, flow_run_id: UUID, tasks: int = len(CANDIDATES) + 4
) -> dict[str, dict[str, int]]:
    """Return the number of the training's task runs by the task's function and the name of their state."""
    training = components(prefect, flow_run_id)["train-wine"].id
    of_training = FlowRunFilter.model_validate({"id": {"any_": [training]}})

    def all_there() -> list[TaskRun] | None:
        found = prefect.read_task_runs(flow_run_filter=of_training)
        ended = [task_run for task_run in found if task_run.state and task_run.state.is_final()]
        return ended if len(ended) == tasks else None

    counts: dict[str, Counter[str]] = {}
    for task_run in wait_until(all_there, 20, "all task runs, which reach the server after they have ended"):
        counts.setdefault(task_run.task_key.rpartition("-")[0], Counter())[str(task_run.state_name)] += 1
    return {name: dict(of_one) for name, of_one in counts.items()}


def versions(tracking: MlflowClient) -> int:
    return len(tracking.search_model_versions(f"name = '{MODEL}'"))


def alias(tracking: MlflowClient, name: str) -> int | None:
    return int(found) if (found := tracking.get_registered_model(MODEL).aliases.get(name)) else None


def candidates_of(tracking: MlflowClient, run: Run) -> list[Run]:
    return list(tracking.search_runs([run.info.experiment_id], f"tags.`{Tag.PARENT_RUN_ID}` = '{run.info.run_id}'"))


def test_the_first_run_makes_a_champion(tracking: MlflowClient, prefect: SyncPrefectClient) -> None:
    with tags("mail", "example"):
        outcome, flow_run_id = run()
    subflows = components(prefect, flow_run_id)
    version = tracking.get_model_version(MODEL, str(outcome.registered.version))
    logged = tracking.get_run(str(version.run_id))
    uri = f"models:/{MODEL}@{Alias.CHAMPION}"
    example = mlflow.models.Model.load(uri).load_input_example(uri)
    in_training = ArtifactFilter.model_validate({"flow_run_id": {"any_": [subflows["train-wine"].id]}})
    (report,) = prefect.read_artifacts(artifact_filter=in_training)

    assert outcome.is_champion
    assert not outcome.reused
    assert alias(tracking, Alias.CHAMPION) == outcome.registered.version
    assert "there was no champion" in version.tags[Tag.GATE_REASON]
    assert {name: set(subflow.tags) for name, subflow in subflows.items()} == {
        "load-wine": {"mail", "example"},
        "train-wine": {"mail", "example"},
    }
    assert tracking.get_experiment(logged.info.experiment_id).name == "wine"
    assert logged.data.metrics == pytest.approx(outcome.metrics)
    assert logged.data.tags["train_rows"] == version.tags["train_rows"]
    assert logged.data.tags[Tag.FLOW_RUN_ID] == str(flow_run_id)
    assert logged.data.tags[Tag.SUBFLOW_RUN_ID] == str(subflows["train-wine"].id)
    assert len(candidates_of(tracking, logged)) == len(CANDIDATES)
    assert set(mlflow.sklearn.load_model(uri).predict(example)) <= set(model.CULTIVARS)
    assert "| metric | model | baseline |" in str(report.data)
    assert outcome.registered.run_url in str(report.data)


def test_an_unchanged_run_is_taken_from_the_cache_and_the_champion_stays(
    tracking: MlflowClient, prefect: SyncPrefectClient
) -> None:
    first, first_id = run()
    second, second_id = run()
    logged = tracking.get_run(first.registered.run_id).data.tags

    assert task_states(prefect, first_id, len(CANDIDATES) + 8) == COMPUTED | LOGGED
    assert task_states(prefect, second_id, 4) == FROM_CACHE
    assert second.reused
    assert second.registered == first.registered
    assert second.decision.reason == "It is the champion."
    assert versions(tracking) == 1
    assert (logged[Tag.FLOW_RUN_ID], logged[Tag.LAST_FLOW_RUN_ID]) == (str(first_id), str(second_id))


def test_a_refresh_recomputes_everything_and_an_equal_model_is_no_new_version(
    tracking: MlflowClient, prefect: SyncPrefectClient
) -> None:
    first, _ = run()
    second, flow_run_id = run(refresh=True)

    assert task_states(prefect, flow_run_id) == COMPUTED
    assert second.metrics == first.metrics
    assert second.registered == first.registered
    assert alias(tracking, Alias.CHAMPION) == first.registered.version
    assert versions(tracking) == 1


def test_another_parameter_recomputes_only_what_depends_on_it(prefect: SyncPrefectClient) -> None:
    run()
    _, flow_run_id = run(folds=4)
    states = task_states(prefect, flow_run_id)

    assert states["cross_validate"] == {"Completed": len(CANDIDATES)}
    assert states["fit"] == {StateName.CACHED: 1}, "the same candidate is the best"


def test_a_model_below_the_threshold_is_a_challenger_until_a_lower_one_promotes_it_without_a_training(
    tracking: MlflowClient, prefect: SyncPrefectClient
) -> None:
    strict, _ = run(gate=Thresholds(min_skill=0.999))
    before = alias(tracking, Alias.CHAMPION), alias(tracking, Alias.CHALLENGER)
    reason = tracking.get_model_version(MODEL, str(strict.registered.version)).tags[Tag.GATE_REASON]
    lenient, flow_run_id = run()

    assert not strict.is_champion
    assert before == (None, strict.registered.version)
    assert "does not reach" in reason
    assert reason == strict.decision.reason
    assert lenient.is_champion
    assert alias(tracking, Alias.CHAMPION) == strict.registered.version
    assert task_states(prefect, flow_run_id, 4)["fit"] == {StateName.CACHED: 1}


def test_a_champion_of_other_wines_is_not_compared_with(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, _ = run()
    wines = model.read_wines()
    monkeypatch.setattr(model, "read_wines", lambda: wines.iloc[3:])
    other, _ = run()

    assert not other.is_champion
    assert "fitted on other rows" in other.decision.reason
    assert alias(tracking, Alias.CHAMPION) == champion.registered.version


def test_a_deleted_version_is_logged_again(tracking: MlflowClient) -> None:
    first, _ = run()
    tracking.delete_registered_model(MODEL)
    second, _ = run()

    assert not second.reused
    assert second.registered.run_id != first.registered.run_id
    assert alias(tracking, Alias.CHAMPION) == second.registered.version


def test_the_training_runs_without_the_pipeline() -> None:
    assert train_wine(folds=3).is_champion


BROKEN = Candidate("random-forest", (("no_such_parameter", 1.0),))


def test_a_failed_candidate_is_logged_and_the_others_are_searched(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "CANDIDATES", (*CANDIDATES[:2], BROKEN))
    outcome, _ = run()
    candidates = candidates_of(tracking, tracking.get_run(outcome.registered.run_id))

    assert sorted(run.info.status for run in candidates) == ["FAILED", "FINISHED", "FINISHED"]
    assert any("no_such_parameter" in run.data.tags.get(Tag.ERROR, "") for run in candidates)


def test_a_search_without_any_score_fails_with_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CANDIDATES", (BROKEN,))

    with pytest.raises(SearchError, match="no_such_parameter"):
        run()


@pytest.mark.parametrize("parameters", [{"folds": 1}, {"gate": {"min_skill": 2}}])
def test_invalid_parameters_are_refused_and_register_nothing(
    tracking: MlflowClient, parameters: dict[str, Any]
) -> None:
    assert wine_pipeline(**parameters, return_state=True).is_failed()
    assert versions(tracking) == 0


def test_invalid_data_fails_with_its_reason(tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_strong(wines: pd.DataFrame, schema: Any) -> pd.DataFrame:
        return validate_frame(wines.assign(alcohol=wines["alcohol"] * 100), schema)

    monkeypatch.setattr("flows.wine.model.validate_frame", too_strong)
    state: State[Any] = wine_pipeline(return_state=True)

    assert state.is_failed()
    assert "alcohol: in_range(5, 25)" in str(state.message)
    assert versions(tracking) == 0


def test_an_unreachable_mlflow_fails_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_WAIT_SECONDS", "2")

    assert "MLflow does not answer" in str(train_wine(return_state=True).message)
