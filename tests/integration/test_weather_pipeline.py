"""The weather flows, against real Prefect and MLflow servers and a stand-in for Open-Meteo."""

from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import State

from flows.weather.pipeline import Outcome, fetch_weather, train, weather_pipeline
from tests.support.open_meteo_server import OpenMeteoServer
from tests.support.servers import free_port

MODEL = "rain-tomorrow"

pytestmark = pytest.mark.usefixtures("prefect", "tracking", "open_meteo")


def versions(tracking: MlflowClient) -> int:
    return len(tracking.search_model_versions(f"name = '{MODEL}'"))


def failure(state: State[Any]) -> str:
    """Return the one line that a person sees on the failed run's page."""
    assert state.is_failed(), state
    assert state.message is not None
    return state.message


@pytest.fixture
def outcome() -> Outcome:
    return weather_pipeline(place="Seattle", years=2)


def test_registers_a_model_that_beats_persistence(outcome: Outcome, tracking: MlflowClient) -> None:
    assert outcome.data_source == "open-meteo"
    assert outcome.metrics["model_brier"] < outcome.metrics["baseline_brier"]
    assert outcome.metrics["model_log_loss"] < outcome.metrics["baseline_log_loss"]

    version = tracking.get_model_version(MODEL, str(outcome.version))
    assert version.tags["data_source"] == "open-meteo"
    assert version.tags["place"] == "Seattle, Washington, United States"
    run = tracking.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(outcome.metrics)
    assert run.data.params["place"] == "Seattle, Washington, United States"
    assert run.inputs is not None
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "open-meteo"
    assert "latitude=47.60621" in data.dataset.source
    files = {file.path for file in tracking.list_artifacts(run.info.run_id)}
    assert {"calibration.png", "roc.png"} <= files


def test_the_model_loads_in_a_safe_format_and_answers_its_input_example(outcome: Outcome) -> None:
    uri = f"models:/{MODEL}/{outcome.version}"
    info = mlflow.models.get_model_info(uri)
    assert info.flavors["sklearn"]["serialization_format"] == "skops"
    assert info.signature is not None
    example = mlflow.models.Model.load(uri).load_input_example(uri)
    probability = mlflow.sklearn.load_model(uri).predict_proba(example)
    assert np.isfinite(probability).all()
    assert probability.sum(axis=1) == pytest.approx(1)


def test_prefect_and_mlflow_link_to_each_other(tracking: MlflowClient, prefect: SyncPrefectClient) -> None:
    state = weather_pipeline(place="47.6,-122.3", years=2, return_state=True)
    flow_run_id, outcome = state.state_details.flow_run_id, state.result()

    version = tracking.get_model_version(MODEL, str(outcome.version))
    run = tracking.get_run(str(version.run_id))
    link = f"http://prefect.test:4200/runs/flow-run/{flow_run_id}"
    assert run.data.tags["prefect.flow_run_id"] == str(flow_run_id)
    assert run.data.tags["prefect.flow_run_url"] == link
    assert link in run.data.tags["mlflow.note.content"]

    run_url = f"http://mlflow.test:5001/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert outcome.mlflow_run_url == run_url
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


def test_the_same_data_gives_the_same_metrics_and_the_champion_stays(outcome: Outcome, tracking: MlflowClient) -> None:
    champion = tracking.get_model_version_by_alias(MODEL, "champion").version
    again = weather_pipeline(place="Seattle", years=2)

    assert again.metrics == outcome.metrics
    assert not again.is_champion
    assert tracking.get_model_version_by_alias(MODEL, "champion").version == champion


def test_a_better_model_becomes_champion(tracking: MlflowClient, open_meteo: OpenMeteoServer) -> None:
    def settled_weather(answer: dict[str, Any]) -> None:
        rain = answer["daily"]["precipitation_sum"]
        answer["daily"]["precipitation_sum"] = [
            None if old is None else 5.0 * (number // 10 % 2) for number, old in enumerate(rain)
        ]

    weather_pipeline(place="Seattle", years=2)
    open_meteo.change = settled_weather
    better = weather_pipeline(place="Oslo", years=2)
    assert better.is_champion
    assert tracking.get_model_version_by_alias(MODEL, "champion").version == str(better.version)
    tracking.delete_registered_model(MODEL)


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


def drop_day(answer: dict[str, Any]) -> None:
    for column in answer["daily"].values():
        del column[100]


@pytest.mark.parametrize(
    ("place", "switches", "message", "archive_requests"),
    [
        ("Nowhereville", {}, "knows no place called 'Nowhereville'", 0),
        ("91,0", {}, "not on Earth", 0),
        ("Arica", {}, "nothing to learn", 1),
        ("Seattle", {"truncate": True}, "no valid JSON", 0),
        ("47.6,-122.3", {"truncate": True}, "no valid JSON", 1),
        ("Seattle", {"change": drop_column}, "the column 'precipitation_sum' is missing", 1),
        ("Seattle", {"change": drop_day}, "not consecutive", 1),
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
    state = weather_pipeline(place=place, years=2, allow_recorded=True, return_state=True)
    assert message in failure(state)
    assert open_meteo.counts["/v1/archive"] == archive_requests
    assert versions(tracking) == before


def test_too_few_observations(tracking: MlflowClient) -> None:
    before = versions(tracking)
    state = weather_pipeline(place="Oslo", years=1, min_observations=1000, return_state=True)
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
        outcome = weather_pipeline(allow_recorded=True)
        warnings = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
        assert any("USING RECORDED OBSERVATIONS" in line for line in warnings)
        assert outcome.data_source == "vega-datasets-recorded"
        assert outcome.metrics["model_brier"] < outcome.metrics["baseline_brier"]
        version = tracking.get_model_version(MODEL, str(outcome.version))
        assert version.tags["data_source"] == "vega-datasets-recorded"
        run = tracking.get_run(str(version.run_id))
        assert run.data.tags["data_source"] == "vega-datasets-recorded"
        assert (run.data.params["first_day"], run.data.params["last_day"]) == ("2012-01-30", "2015-12-30")

    @pytest.mark.parametrize(("place", "allowed"), [("Seattle", False), ("Oslo", True), ("59.9,10.7", True)])
    def test_a_clear_failure_otherwise(self, tracking: MlflowClient, place: str, allowed: bool) -> None:
        before = versions(tracking)
        message = failure(weather_pipeline(place=place, allow_recorded=allowed, return_state=True))
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
    monkeypatch.setattr("flows.weather.tracking.SERVING_PACKAGES", ("no-such-package",))
    assert "no-such-package" in failure(weather_pipeline(years=2, return_state=True))

    experiment = tracking.get_experiment_by_name("weather")
    assert experiment is not None
    (last,) = tracking.search_runs([experiment.experiment_id], max_results=1)
    assert last.info.status == "FAILED"
    assert versions(tracking) == before
