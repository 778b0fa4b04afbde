"""The weather pipeline's failures, places, locks and promotions, with real Prefect and MLflow servers."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from threading import Barrier, Event, get_ident
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from flows.weather.features import TARGET, build_examples
from flows.weather.ingest import fetch_archive, find_place
from flows.weather.model import CANDIDATES, EXPERIMENT
from flows.weather.pipeline import LOCK_TIMEOUT_SECONDS, MAX_PARALLEL_PLACES, weather_pipeline
from flows.weather.places import MODEL
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from tests.support.champions import register
from tests.unit.weather import make_observations
from trainyard import contract
from trainyard.contract import Alias, RunTag, Tag
from trainyard.flows.mail import find_components
from trainyard.locks import lock
from trainyard.outcome import Outcome

OSLO = "rain-tomorrow-59.91n-10.75e"
REFUSED_KEY = "47.06n-30.00w"
"""Of Refuseville, whose run ends soon after it has the lock."""
QUICK: dict[str, Any] = {"years": 2, "families": ["logistic-regression"], "folds": 3}

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "open_meteo")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path) -> Iterator[None]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield


@pytest.fixture(autouse=True)
def _empty_registry(tracking: MlflowClient) -> Iterator[None]:
    yield
    for registered in tracking.search_registered_models():
        tracking.delete_registered_model(registered.name)


@pytest.fixture
def unreachable(open_meteo: OpenMeteoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server at Open-Meteo's addresses, and short delays between retries."""
    address = f"http://127.0.0.1:{free_port()}/v1"
    monkeypatch.setenv("WEATHER_ARCHIVE_URL", f"{address}/archive")
    monkeypatch.setenv("WEATHER_GEOCODING_URL", f"{address}/search")
    for task in (find_place, fetch_archive):
        monkeypatch.setattr(task, "retry_delay_seconds", 0.01)


@pytest.fixture
def weak_champion(tracking: MlflowClient) -> int:
    """The version of a champion of live data that predicts the overall frequency of rain."""
    examples = build_examples(make_observations()).frame
    features, target = examples.drop(columns=TARGET), examples[TARGET]
    tags = {"data_source": "open-meteo", "wet_day_mm": "1", "train_last_day": "2000-01-01"}
    return register(MODEL, DummyClassifier(strategy="prior"), features, target, tags=tags)


def run(**parameters: Any) -> Outcome:
    """Run the pipeline for one place."""
    (outcome,) = weather_pipeline(**QUICK | parameters)
    return outcome


def run_with_mail(prefect: SyncPrefectClient, names: list[str]) -> FlowRun:
    """Run the pipeline as a worker runs it for a deployment that is tagged for mails; return its run."""
    parameters = QUICK | {"places": names}
    pipeline = prefect.create_flow_run(weather_pipeline, parameters=parameters, tags=[RunTag.MAIL])
    run_flow(weather_pipeline, pipeline, parameters, return_type="state")
    return pipeline


def failure_message(state: State[Any]) -> str:
    """Return the message that the failed run's page shows."""
    assert state.is_failed(), state
    assert state.message is not None
    return state.message


def count_versions(tracking: MlflowClient, name: str = MODEL) -> int:
    return len(tracking.search_model_versions(f"name = '{name}'"))


def aliases_of(tracking: MlflowClient, name: str = MODEL) -> dict[str, int]:
    aliases = tracking.get_registered_model(name).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def child_run_states(tracking: MlflowClient, outcome: Outcome) -> Counter[str]:
    """Count the states of a training's child runs, one for each candidate."""
    parent = f"tags.`{Tag.PARENT_RUN_ID}` = '{outcome.registered.run_id}'"
    return Counter(child.info.status for child in tracking.search_runs([outcome.registered.experiment_id], parent))


class TestCandidates:
    @pytest.fixture
    def partly_failed(self, monkeypatch: pytest.MonkeyPatch) -> Outcome:
        """A training of which the first of three candidates failed."""
        broken, *_ = CANDIDATES
        fit = LogisticRegression.fit

        def fail_for_one(estimator: LogisticRegression, *arguments: Any, **options: Any) -> LogisticRegression:
            if dict(broken.params) == {"C": estimator.C}:
                raise MemoryError("too little for this candidate")
            return fit(estimator, *arguments, **options)

        with monkeypatch.context() as patch:  # in an installed package, whose code does not count for the cache
            patch.setattr(LogisticRegression, "fit", fail_for_one)
            return run()

    def test_a_candidate_that_fails_is_a_failed_child_run_and_the_rerun_evaluates_it_alone(
        self, partly_failed: Outcome, tracking: MlflowClient, prefect: SyncPrefectClient
    ) -> None:
        rerun = run()

        def evaluations() -> Counter[str] | None:
            (child, *_) = tracking.search_runs(
                [rerun.registered.experiment_id], f"run_id = '{rerun.registered.run_id}'"
            )
            subflow = {"flow_run_id": {"any_": [child.data.tags[Tag.LAST_SUBFLOW_RUN_ID]]}}
            task_runs = prefect.read_task_runs(task_run_filter=TaskRunFilter.model_validate(subflow), limit=200)
            states = Counter(each.state_name or "" for each in task_runs if each.task_key.startswith("cross_validate"))
            return states if states.total() == 3 else None  # the server records task runs with a delay

        assert child_run_states(tracking, partly_failed) == {"FAILED": 1, "FINISHED": 2}
        assert rerun.registered == partly_failed.registered, "the best candidate is the same"
        assert wait_until(evaluations, 20, "the task runs") == {"Completed": 1, "Cached": 2}

    def test_they_are_evaluated_on_a_dask_cluster_where_one_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from distributed import Client, LocalCluster

        with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)

            outcome = run()

            with Client(cluster.scheduler_address) as client:
                transitions = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.transition_log))
        assert outcome.is_champion
        assert transitions >= 3


class TestPromotion:
    def test_a_better_model_becomes_champion_and_the_old_one_previous(
        self, weak_champion: int, tracking: MlflowClient
    ) -> None:
        outcome = run()

        assert aliases_of(tracking) == {Alias.CHAMPION: outcome.registered.version, Alias.PREVIOUS: weak_champion}

    def test_the_gate_is_a_parameter(self, weak_champion: int, tracking: MlflowClient) -> None:
        outcome = run(gate={"min_skill": 0.9})

        assert "does not reach" in outcome.decision.reason
        assert aliases_of(tracking) == {Alias.CHAMPION: weak_champion, Alias.CHALLENGER: outcome.registered.version}

    def test_a_retraining_that_is_not_better_costs_one_run_and_no_version(self, tracking: MlflowClient) -> None:
        champion = run()
        later = run(years=3)
        (comparison,) = tracking.search_runs([later.registered.experiment_id], f"run_id = '{later.registered.run_id}'")

        assert later.registered.version is None
        assert later.registered.run_id != champion.registered.run_id
        assert child_run_states(tracking, later) == {}
        assert comparison.data.metrics == pytest.approx(later.metrics)
        assert comparison.data.tags[Tag.GATE_REASON] == later.decision.reason
        assert aliases_of(tracking) == {Alias.CHAMPION: 1}
        assert count_versions(tracking) == 1
        assert tracking.get_model_version(MODEL, "1").tags[Tag.GATE_LAST_REASON] == later.decision.reason

    def test_another_threshold_of_rain_is_another_recipe_and_cannot_be_compared(self, tracking: MlflowClient) -> None:
        run()
        outcome = run(wet_day_mm=2)

        assert outcome.decision.reason == "It predicts days of at least 2 mm, and the champion days of 1 mm."
        assert aliases_of(tracking) == {Alias.CHAMPION: 1, Alias.CHALLENGER: 2}

    def test_a_forced_run_promotes_an_equal_model(self, tracking: MlflowClient) -> None:
        run()
        forced = run(refresh=True, gate={"force": True})

        assert forced.is_champion
        assert aliases_of(tracking) == {Alias.CHAMPION: 2, Alias.PREVIOUS: 1}

    def test_a_retraining_that_fails_leaves_the_champion(
        self, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        champion = run()
        monkeypatch.setattr(LogisticRegression, "fit", lambda *_: None)
        state = weather_pipeline(**QUICK, refresh=True, return_state=True)

        assert "All candidates failed" in failure_message(state)
        assert aliases_of(tracking) == {Alias.CHAMPION: champion.registered.version}
        assert count_versions(tracking) == 1

    @pytest.mark.usefixtures("unreachable")
    def test_a_model_of_recorded_data_does_not_replace_a_champion_of_live_data(
        self, weak_champion: int, tracking: MlflowClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        outcome = run(allow_recorded=True, years=5)

        warnings = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
        version = tracking.get_model_version(MODEL, str(outcome.registered.version))
        params = tracking.get_run(str(version.run_id)).data.params
        assert any("USING RECORDED OBSERVATIONS" in line for line in warnings)
        assert version.tags["data_source"] == "vega-datasets-recorded"
        assert "recorded observations of a station" in str(version.description)
        assert (params["first_day"], params["last_day"]) == ("2012-01-30", "2015-12-30")
        assert outcome.metrics["model_brier"] < outcome.metrics["persistence_brier"]
        assert "Recorded observations" in outcome.decision.reason
        assert aliases_of(tracking)[Alias.CHAMPION] == weak_champion


class TestPlaces:
    def test_places_that_fail_do_not_affect_the_others(self, tracking: MlflowClient) -> None:
        places = ["Seattle", "Atlantis", "Oslo", "Gapville", "Seattle"]

        state = weather_pipeline(places=places, **QUICK, return_state=True)

        message = failure_message(state)
        assert "2 of 4 places failed, the others are done" in message
        assert "knows no place called 'Atlantis'" in message
        assert "not consecutive" in message
        assert {each.name for each in tracking.search_registered_models()} == {MODEL, OSLO}
        assert aliases_of(tracking) == aliases_of(tracking, OSLO) == {Alias.CHAMPION: 1}

    def test_only_the_pipeline_of_many_places_has_a_mail_and_it_lists_their_components(
        self, prefect: SyncPrefectClient
    ) -> None:
        pipeline = run_with_mail(prefect, ["Gapville", "Atlantis", "Refuseville"])

        def components() -> dict[tuple[str, str], str] | None:
            found = {(each.name, each.flow): each.state for each in find_components(prefect, pipeline)}
            return found if len(found) == 4 else None  # the server records task runs, which link them, with a delay

        places = {f"{place} {pipeline.name}" for place in ("Gapville", "Refuseville")}  # Atlantis is not found
        expected = {(place, flow): "Failed" for place in places for flow in ("preprocess", "fetch-weather")}
        assert wait_until(components, 60, "the components") == expected

    def test_the_components_of_a_single_place_have_mails_of_their_own(self, prefect: SyncPrefectClient) -> None:
        pipeline = run_with_mail(prefect, ["Gapville"])
        children = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [pipeline.id]}})
        found = wait_until(lambda: prefect.read_flow_runs(flow_run_filter=children), 60, "the components")

        assert [RunTag.MAIL in each.tags for each in found] == [True]
        assert find_components(prefect, pipeline) == []

    def test_places_run_in_a_bounded_number_of_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arrived: list[int] = []
        together, exceeded, is_over = Barrier(MAX_PARALLEL_PLACES), Event(), Event()

        def hold(*_: Any) -> Any:
            arrived.append(get_ident())
            if len(arrived) <= MAX_PARALLEL_PLACES:
                together.wait(60)  # until so many run at once
                exceeded.wait(5)  # and another one, if it could
                is_over.set()
            elif not is_over.is_set():
                exceeded.set()
            raise LookupError("no such place")

        monkeypatch.setattr("flows.weather.pipeline.name_run", hold)
        places = [f"{latitude},0" for latitude in range(2 * MAX_PARALLEL_PLACES)]
        weather_pipeline(places=places, **QUICK, return_state=True)

        assert len(arrived) == len(places)
        assert not together.broken
        assert not exceeded.is_set()

    @pytest.mark.parametrize(("place", "message"), [("Nowhereville", "knows no place"), ("Arica", "nothing to learn")])
    def test_a_single_place_fails_with_its_own_error_and_registers_nothing(
        self, tracking: MlflowClient, place: str, message: str
    ) -> None:
        state = weather_pipeline(places=[place], **QUICK, allow_recorded=True, return_state=True)

        assert message in failure_message(state)
        assert tracking.search_registered_models() == []


class TestOverlap:
    def test_skip_leaves_out_a_place_with_another_active_run(self) -> None:
        with lock("weather-47.61n-122.33w"):
            places = ["Seattle", "47.60621,-122.33207", "Atlantis"]
            state = weather_pipeline(places=places, **QUICK, overlap="skip", return_state=True)

        assert "1 of 3 places failed, the others are done. Atlantis" in failure_message(state)

    def test_wait_fails_when_the_other_run_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(LOCK_TIMEOUT_SECONDS, "wait", 0.5)
        with lock(f"weather-{REFUSED_KEY}"):
            state = weather_pipeline(["Refuseville"], return_state=True)

        assert f"weather-{REFUSED_KEY} is locked by another run" in failure_message(state)

    def test_wait_starts_when_the_other_run_ends(self, prefect: SyncPrefectClient, open_meteo: OpenMeteoServer) -> None:
        def waiting_runs() -> list[FlowRun]:
            state = FlowRunFilter.model_validate({"state": {"name": {"any_": [contract.State.WAITING]}}})
            return prefect.read_flow_runs(flow_run_filter=state)

        with ThreadPoolExecutor(1) as pool:
            with lock(f"weather-{REFUSED_KEY}"):
                waiting = pool.submit(copy_context().run, lambda: weather_pipeline(["Refuseville"], return_state=True))
                (run,) = wait_until(waiting_runs, 20, "the waiting run")
                ended_early = waiting.done()
            state = waiting.result()
        states = [(each.name, each.message) for each in prefect.read_flow_run_states(run.id)]

        assert not ended_early
        assert (contract.State.WAITING, f"Waiting for the lock weather-{REFUSED_KEY}, held by another run.") in states
        assert [name for name, _ in states][-3:] == [contract.State.WAITING, "Running", "Failed"]
        assert "No data is available" in failure_message(state), "it ran after the lock was released"

    def test_two_runs_at_once_register_one_version(self, tracking: MlflowClient) -> None:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(copy_context().run, lambda: run()) for _ in range(2)]
            first, second = (future.result() for future in futures)

        assert first.registered == second.registered, "the second run takes the first one's from the cache"
        assert aliases_of(tracking) == {Alias.CHAMPION: 1}


class TestLogging:
    def test_a_live_source_that_does_not_answer_is_a_sentence_of_the_model_card(
        self, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WEATHER_FORECAST_URL", f"http://127.0.0.1:{free_port()}/v1/forecast")

        version = run().registered.version

        assert "the difference was not measured" in str(tracking.get_model_version(MODEL, str(version)).description)

    def test_a_training_whose_mlflow_run_was_deleted_is_logged_again(self, tracking: MlflowClient) -> None:
        first = run()
        tracking.delete_run(first.registered.run_id)

        second = run()

        assert not second.reused
        assert second.registered.run_id != first.registered.run_id

    def test_a_failure_while_logging_leaves_a_failed_run_and_no_version(
        self, tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainyard.tracking.PACKAGES", {"numpy": ("no-such-package",)})

        state = weather_pipeline(**QUICK, return_state=True)

        experiment = tracking.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        (newest,) = tracking.search_runs([experiment.experiment_id], "params.place != ''", max_results=1)
        assert "no-such-package" in failure_message(state)
        assert newest.info.status == "FAILED"
        assert tracking.search_registered_models() == []

    def test_what_a_failed_run_has_computed_is_not_computed_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("trainyard.tracking.PACKAGES", {"numpy": ("no-such-package",)})
            failed = weather_pipeline(**QUICK, return_state=True)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("An estimator is fitted again.")

        monkeypatch.setattr(LogisticRegression, "fit", refuse)

        assert failed.is_failed()
        assert run().is_champion


def test_invalid_parameters_are_refused_before_anything_is_fetched(open_meteo: OpenMeteoServer) -> None:
    state = weather_pipeline(years=0, holdout_fraction=2, return_state=True)

    assert "years" in failure_message(state)
    assert not open_meteo.counts
