"""The weather flows, against real Prefect and MLflow servers and a stand-in for Open-Meteo."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from flows.weather import model
from flows.weather.ingest import fetch_weather
from flows.weather.pipeline import train, weather_pipeline
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from trainyard import registry
from trainyard.candidates import Candidate, Score
from trainyard.outcome import Outcome

MODEL = "rain-tomorrow"
OSLO = "rain-tomorrow-oslo-oslo-county-norway"
QUICK: dict[str, Any] = {"years": 2, "families": ["logistic-regression"], "folds": 3}

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "open_meteo")


@pytest.fixture(autouse=True)
def storage(tmp_path: Path) -> Iterator[None]:
    """Each test has a cache of its own."""
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield


@pytest.fixture(autouse=True)
def _no_models(tracking: MlflowClient) -> Iterator[None]:
    yield
    for registered in tracking.search_registered_models():
        tracking.delete_registered_model(registered.name)


def versions(tracking: MlflowClient, model: str = MODEL) -> int:
    return len(tracking.search_model_versions(f"name = '{model}'"))


def failure(state: State[Any]) -> str:
    """Return the one line that a person sees on the failed run's page."""
    assert state.is_failed(), state
    assert state.message is not None
    return state.message


def run(**parameters: Any) -> Outcome:
    """Run the pipeline for one place."""
    (outcome,) = weather_pipeline(**QUICK | parameters)
    return outcome


def task_states(prefect: SyncPrefectClient, flow_run_id: UUID | None) -> dict[str, Counter[str]]:
    """Count the states of the task runs below a flow run, by the task's name."""
    found: dict[str, Counter[str]] = {}
    waiting = [flow_run_id]
    while waiting:
        parent = {"flow_run_id": {"any_": [waiting.pop()]}}
        for each in prefect.read_task_runs(task_run_filter=TaskRunFilter.model_validate(parent), limit=200):
            found.setdefault(each.task_key.split("-")[0], Counter())[each.state_name or ""] += 1
        below = {"parent_flow_run_id": {"any_": [parent["flow_run_id"]["any_"][0]]}}
        children = prefect.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(below))
        waiting += [child.id for child in children]
    return found


def candidates_of(tracking: MlflowClient, outcome: Outcome) -> Counter[str]:
    """Count the states of the runs beneath a training's."""
    parent = f"tags.`mlflow.parentRunId` = '{outcome.registered.run_id}'"
    return Counter(run.info.status for run in tracking.search_runs([outcome.registered.experiment_id], parent))


@pytest.fixture
def outcome() -> Outcome:
    return run()


def test_registers_a_model_that_beats_the_baselines(outcome: Outcome, tracking: MlflowClient) -> None:
    for metric in ("brier", "log_loss"):
        baselines = [outcome.metrics[f"{who}_{metric}"] for who in ("persistence", "climatology")]
        assert outcome.metrics[f"model_{metric}"] < min(baselines)

    assert outcome.registered.model == MODEL
    version = tracking.get_model_version(MODEL, str(outcome.registered.version))
    assert version.tags["data_source"] == "open-meteo"
    assert version.tags["place"] == "Seattle, Washington, United States"
    assert version.tags["gate.decision"] == "promoted"
    found = tracking.get_run(str(version.run_id))
    assert found.info.status == "FINISHED"
    assert found.data.metrics == pytest.approx(outcome.metrics)
    assert found.data.params["place"] == "Seattle, Washington, United States"
    assert found.data.params["family"] == "logistic-regression"
    assert len(found.data.tags["code"]) == 12
    assert found.inputs is not None
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.name == "open-meteo"
    assert "latitude=47.60621" in data.dataset.source
    files = {file.path for file in tracking.list_artifacts(found.info.run_id)}
    assert {"calibration.png", "roc.png", "precision_recall.png", "importance.png", "forecast.png"} <= files


def test_each_candidate_is_a_run_beneath(tracking: MlflowClient) -> None:
    outcome = run(families=["logistic-regression", "random-forest", "hist-gradient-boosting"], folds=2)
    parent = f"tags.`mlflow.parentRunId` = '{outcome.registered.run_id}'"
    children = tracking.search_runs([outcome.registered.experiment_id], parent)
    assert Counter(child.data.params["family"] for child in children) == {
        "logistic-regression": 3,
        "random-forest": 3,
        "hist-gradient-boosting": 3,
    }
    assert all(child.data.metrics["cv_log_loss"] > 0 for child in children)
    assert {child.info.status for child in children} == {"FINISHED"}


def test_the_model_loads_in_a_safe_format_and_answers_its_input_example(outcome: Outcome) -> None:
    uri = f"models:/{MODEL}/{outcome.registered.version}"
    info = mlflow.models.get_model_info(uri)
    assert info.flavors["sklearn"]["serialization_format"] == "skops"
    assert info.signature is not None
    example = mlflow.models.Model.load(uri).load_input_example(uri)
    probability = mlflow.sklearn.load_model(uri).predict_proba(example)
    assert np.isfinite(probability).all()
    assert probability.sum(axis=1) == pytest.approx(1)


def test_prefect_and_mlflow_link_to_each_other(tracking: MlflowClient, prefect: SyncPrefectClient) -> None:
    state = weather_pipeline(places=["47.6,-122.3"], **QUICK, return_state=True)
    flow_run_id, (outcome,) = state.state_details.flow_run_id, state.result()

    assert outcome.registered.model == "rain-tomorrow-47.6--122.3"
    version = tracking.get_model_version(outcome.registered.model, str(outcome.registered.version))
    run = tracking.get_run(str(version.run_id))
    link = f"http://prefect.test:4200/runs/flow-run/{flow_run_id}"
    assert run.data.tags["prefect.flow_run_id"] == str(flow_run_id)
    assert run.data.tags["prefect.flow_run_url"] == link
    assert link in run.data.tags["mlflow.note.content"]

    run_url = f"http://mlflow.test:5001/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert outcome.registered.run_url == run_url
    (page,) = prefect.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate({"flow_run_id": {"any_": [flow_run_id]}})
    )
    assert run_url in str(page.data)
    children = prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [flow_run_id]}})
    )
    names = {prefect.read_flow(child.flow_id).name: child.id for child in children}
    assert set(names) == {"preprocess", "train"}
    (report,) = prefect.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate({"flow_run_id": {"any_": [names["train"]]}})
    )
    assert "| brier |" in str(report.data)
    assert "**open-meteo**" in str(report.data)
    assert run_url in str(report.data)


def test_an_unchanged_re_run_takes_every_step_from_the_cache(
    outcome: Outcome, tracking: MlflowClient, prefect: SyncPrefectClient, open_meteo: OpenMeteoServer
) -> None:
    asked = dict(open_meteo.counts)
    state = weather_pipeline(**QUICK, return_state=True)
    (again,) = state.result()

    assert again.reused
    assert again.registered == outcome.registered
    assert again.metrics == outcome.metrics
    assert again.is_champion
    assert versions(tracking) == 1
    assert open_meteo.counts == asked
    last = tracking.get_run(again.registered.run_id).data.tags["prefect.last_flow_run_id"]
    assert last == str(state.state_details.flow_run_id)

    cached = {"find_place", "fetch_archive", "build_features", "search_candidates", "fit", "log_run"}

    def states() -> dict[str, Counter[str]] | None:
        found = task_states(prefect, state.state_details.flow_run_id)
        return found if cached <= found.keys() else None  # the server takes them from events

    seen = wait_until(states, 20, "the task runs")
    assert {name: list(seen[name]) for name in cached} == {name: ["Cached"] for name in cached}
    assert "cross_validate" not in seen, "the search is one step"


def test_only_the_candidates_that_failed_are_judged_again(
    tracking: MlflowClient, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, *others = model.make_candidates(["logistic-regression"])
    judge = model.cross_validate

    def judge_all_but_one(days: pd.DataFrame, candidate: Candidate, folds: int) -> Score:
        if candidate == broken:
            raise MemoryError("too little for this one")
        return judge(days, candidate, folds)

    with monkeypatch.context() as patched:
        patched.setattr(model, "cross_validate", judge_all_but_one)
        first = run()
    assert candidates_of(tracking, first) == Counter(FAILED=1, FINISHED=len(others))

    state = weather_pipeline(**QUICK, return_state=True)
    (again,) = state.result()
    assert candidates_of(tracking, again) == Counter(FINISHED=1 + len(others))

    def judged() -> Counter[str] | None:
        found = task_states(prefect, state.state_details.flow_run_id).get("cross_validate", Counter())
        return found if found.total() == 1 + len(others) else None

    assert wait_until(judged, 20, "the task runs") == Counter(Completed=1, Cached=len(others))


def test_a_changed_parameter_is_computed_and_refresh_computes_all(outcome: Outcome, tracking: MlflowClient) -> None:
    changed = run(holdout_fraction=0.25)
    assert not changed.reused
    assert versions(tracking) == 2
    refreshed = run(refresh=True)
    assert not refreshed.reused
    assert refreshed.metrics == outcome.metrics, "the same data gives the same model"
    assert versions(tracking) == 3
    assert run().registered == refreshed.registered


def test_what_was_deleted_from_mlflow_is_logged_anew(outcome: Outcome, tracking: MlflowClient) -> None:
    tracking.delete_registered_model(MODEL)
    again = run()
    assert not again.reused
    assert again.is_champion
    assert again.registered.run_id != outcome.registered.run_id


def test_a_training_whose_run_is_in_the_bin_is_logged_anew(outcome: Outcome, tracking: MlflowClient) -> None:
    tracking.delete_run(outcome.registered.run_id)
    again = run()
    assert not again.reused
    assert again.registered.run_id != outcome.registered.run_id


def test_a_candidate_that_is_not_better_is_challenger(outcome: Outcome, tracking: MlflowClient) -> None:
    again = run(refresh=True)
    assert not again.is_champion
    aliases = tracking.get_registered_model(MODEL).aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {
        "champion": outcome.registered.version,
        "challenger": again.registered.version,
    }
    tags = tracking.get_model_version(MODEL, str(again.registered.version)).tags
    assert tags["gate.decision"] == "challenger"
    assert "on the same holdout" in tags["gate.reason"]


def test_a_better_one_becomes_champion_and_the_old_one_previous(tracking: MlflowClient) -> None:
    first = run(families=["random-forest"], folds=2, gate={"min_skill": -1})
    better = run(families=["logistic-regression"], gate={"min_improvement": 0})
    better = better if better.is_champion else run(families=["hist-gradient-boosting"], gate={"min_improvement": 0})
    assert better.is_champion
    aliases = {alias: int(version) for alias, version in tracking.get_registered_model(MODEL).aliases.items()}
    assert aliases["champion"] == better.registered.version
    assert aliases["previous"] == first.registered.version


def test_a_threshold_that_nobody_reaches(tracking: MlflowClient) -> None:
    outcome = run(gate={"min_skill": 0.9})
    assert not outcome.is_champion
    assert "does not reach" in outcome.decision.reason
    assert set(tracking.get_registered_model(MODEL).aliases) == {"challenger"}


def test_recorded_data_does_not_replace_a_champion_of_live_data(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, tracking: MlflowClient
) -> None:
    monkeypatch.setenv("WEATHER_ARCHIVE_URL", f"http://127.0.0.1:{free_port()}/v1/archive")
    offline = run(allow_recorded=True, years=3)
    assert not offline.is_champion
    assert "Recorded observations" in offline.decision.reason


class TestPlaces:
    """Several places at once."""

    def test_one_bad_place_fails_alone(self, tracking: MlflowClient) -> None:
        state = weather_pipeline(places=["Seattle", "Atlantis", "Oslo", "Gapville"], **QUICK, return_state=True)
        message = failure(state)
        assert "2 of 4 places failed, the others are done" in message
        assert "knows no place called 'Atlantis'" in message
        assert "not consecutive" in message
        assert (versions(tracking), versions(tracking, OSLO)) == (1, 1)
        assert {each.name for each in tracking.search_registered_models()} == {MODEL, OSLO}

    def test_each_has_its_own_champion(self, tracking: MlflowClient) -> None:
        outcomes = weather_pipeline(places=["Seattle", "Oslo", "Seattle"], **QUICK)
        assert [each.registered.model for each in outcomes] == [MODEL, OSLO]
        assert all(each.is_champion for each in outcomes)

    def test_a_second_run_of_a_place_waits_or_is_skipped(self, tracking: MlflowClient) -> None:
        with ThreadPoolExecutor(1) as pool:
            with registry.lock("weather-seattle"):
                assert weather_pipeline(**QUICK, overlap="skip") == []
                waiting = pool.submit(copy_context().run, lambda: weather_pipeline(**QUICK, return_state=True))
                assert weather_pipeline(places=["Oslo"], **QUICK, overlap="skip")[0].is_champion
                assert not waiting.done()
                assert versions(tracking) == 0
            assert waiting.result().is_completed()

    def test_two_runs_at_once_leave_one_champion(self, tracking: MlflowClient) -> None:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(copy_context().run, lambda: run()) for _ in range(2)]
            one, other = (future.result() for future in futures)
        assert one.registered == other.registered, "the second takes the first one's from the cache"
        assert set(tracking.get_registered_model(MODEL).aliases) == {"champion"}


def test_candidates_fan_out_over_a_dask_cluster(tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        assert run().is_champion
        with Client(cluster.scheduler_address) as client:  # type: ignore[no-untyped-call]
            events = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.transition_log))
        assert events >= 3


def test_a_source_that_fails_twice_is_asked_again(open_meteo: OpenMeteoServer) -> None:
    open_meteo.fail_first = 2
    state = fetch_weather(place="Oslo", years=1, return_state=True)
    assert state.is_completed()
    assert open_meteo.counts == {"/v1/search": 3, "/v1/archive": 3}


def test_too_many_requests_are_tried_again(open_meteo: OpenMeteoServer) -> None:
    open_meteo.fail_first, open_meteo.fail_status = 1, 429
    assert fetch_weather(place="Oslo", years=1, return_state=True).is_completed()


def drop_column(answer: dict[str, Any]) -> None:
    del answer["daily"]["precipitation_sum"]


def drop_days(answer: dict[str, Any]) -> None:
    for column in answer["daily"].values():
        del column[100:110]


@pytest.mark.parametrize(
    ("place", "switches", "message", "archive_requests"),
    [
        ("Nowhereville", {}, "knows no place called 'Nowhereville'", 0),
        ("91,0", {}, "not on Earth", 0),
        ("Arica", {}, "nothing to learn", 1),
        ("Seattle", {"truncate": True}, "no valid JSON", 0),
        ("47.6,-122.3", {"truncate": True}, "no valid JSON", 1),
        ("Seattle", {"change": drop_column}, "the column 'precipitation_sum' is missing", 1),
        ("Seattle", {"change": drop_days}, "not consecutive", 1),
        ("47.6,-122.3", {"fail_first": 9, "fail_status": 400}, "refused the request (status 400): told", 1),
    ],
)
def test_bad_input_fails_with_one_message_and_registers_nothing(
    tracking: MlflowClient,
    open_meteo: OpenMeteoServer,
    place: str,
    switches: dict[str, Any],
    message: str,
    archive_requests: int,
) -> None:
    for name, value in switches.items():
        setattr(open_meteo, name, value)
    before = versions(tracking)
    state = weather_pipeline(places=[place], **QUICK, allow_recorded=True, return_state=True)
    assert message in failure(state)
    assert open_meteo.counts["/v1/archive"] == archive_requests
    assert versions(tracking) == before


def test_too_few_observations(tracking: MlflowClient) -> None:
    before = versions(tracking)
    state = weather_pipeline(places=["Oslo"], years=1, min_observations=1000, return_state=True)
    assert "fewer than the 1000 needed" in failure(state)
    assert versions(tracking) == before


def test_nonsense_parameters_are_refused_before_anything_is_fetched(open_meteo: OpenMeteoServer) -> None:
    state = weather_pipeline(years=0, holdout_fraction=2, return_state=True)
    assert "years" in failure(state)
    assert not open_meteo.counts


class TestUnreachable:
    """No answer from Open-Meteo: recorded observations, if allowed and if the place is Seattle."""

    @pytest.fixture(autouse=True)
    def _nobody_there(self, open_meteo: OpenMeteoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not open_meteo.counts  # set up first; its addresses are replaced here
        nobody = f"http://127.0.0.1:{free_port()}/v1"
        monkeypatch.setenv("WEATHER_ARCHIVE_URL", f"{nobody}/archive")
        monkeypatch.setenv("WEATHER_GEOCODING_URL", f"{nobody}/search")

    def test_recorded_observations_when_allowed(self, tracking: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
        (outcome,) = weather_pipeline(allow_recorded=True)
        warnings = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
        assert any("USING RECORDED OBSERVATIONS" in line for line in warnings)
        assert outcome.metrics["model_brier"] < outcome.metrics["persistence_brier"]
        version = tracking.get_model_version(MODEL, str(outcome.registered.version))
        assert version.tags["data_source"] == "vega-datasets-recorded"
        run = tracking.get_run(str(version.run_id))
        assert run.data.tags["data_source"] == "vega-datasets-recorded"
        assert (run.data.params["first_day"], run.data.params["last_day"]) == ("2012-01-30", "2015-12-30")

    @pytest.mark.parametrize(("place", "allowed"), [("Seattle", False), ("Oslo", True), ("59.9,10.7", True)])
    def test_a_clear_failure_otherwise(self, tracking: MlflowClient, place: str, allowed: bool) -> None:
        before = versions(tracking)
        message = failure(weather_pipeline(places=[place], allow_recorded=allowed, return_state=True))
        assert "cannot be reached" in message
        assert "allow_recorded=true" in message
        assert versions(tracking) == before


def test_a_stalled_source_counts_as_unreachable(open_meteo: OpenMeteoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_TIMEOUT_SECONDS", "0.5")
    open_meteo.stalled = True
    message = failure(fetch_weather(place="Oslo", years=1, return_state=True))
    assert "ReadTimeout" in message
    assert open_meteo.counts["/v1/search"] == 5


def test_mlflow_out_of_reach_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert "MLflow does not answer" in failure(train(return_state=True))


def test_a_training_that_fails_midway_leaves_a_failed_run_and_no_version(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions(tracking)
    monkeypatch.setattr("trainyard.tracking.SERVING_PACKAGES", ("no-such-package",))
    assert "no-such-package" in failure(weather_pipeline(**QUICK, return_state=True))

    experiment = tracking.get_experiment_by_name("weather")
    assert experiment is not None
    (last,) = tracking.search_runs([experiment.experiment_id], "params.place != ''", max_results=1)
    assert last.info.status == "FAILED"
    assert versions(tracking) == before
