"""What a fault left behind is found and mended, and nothing else is touched."""

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelling, Completed, Crashed, Pending, Running

from trainyard.contract import Tag
from trainyard.flows.reconcile import reconcile

pytestmark = pytest.mark.usefixtures("prefect", "tracking")


@flow
def pipeline() -> None:
    """A flow to create runs of."""


@pytest.fixture(autouse=True)
def _disk_that_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISK_ALERT_PERCENT", "100")


@pytest.fixture
def experiment(tracking: MlflowClient) -> Iterator[str]:
    """An experiment of the test's own."""
    experiment = tracking.create_experiment(f"reconcile-{uuid4().hex[:8]}")
    yield experiment
    for run in tracking.search_runs([experiment]):
        tracking.set_terminated(run.info.run_id)


def run_in(prefect: SyncPrefectClient, state: State) -> FlowRun:
    """Create a flow run in a state."""
    run = prefect.create_flow_run(pipeline)
    prefect.set_flow_run_state(run.id, state, force=True)
    return run


def open_run(tracking: MlflowClient, experiment: str, flow_run: FlowRun) -> str:
    """Create an MLflow run as a training does; return its id."""
    return tracking.create_run(experiment, tags={Tag.FLOW_RUN_ID: str(flow_run.id)}).info.run_id


@pytest.mark.parametrize(
    ("state", "status"),
    [(Crashed(), "FAILED"), (Completed(), "FINISHED"), (Running(), "RUNNING")],
    ids=["crashed", "completed", "running"],
)
def test_an_open_run_ends_as_its_flow_run_did(
    prefect: SyncPrefectClient, tracking: MlflowClient, experiment: str, state: State, status: str
) -> None:
    parent = open_run(tracking, experiment, run_in(prefect, state))
    trial = tracking.create_run(experiment, tags={Tag.PARENT_RUN_ID: parent, Tag.CANDIDATE: "forest"}).info.run_id

    reconcile(stuck_minutes=60)

    assert [tracking.get_run(run).info.status for run in (parent, trial)] == [status, status]


def test_an_open_trial_ends_although_its_training_has_ended(
    prefect: SyncPrefectClient, tracking: MlflowClient, experiment: str
) -> None:
    parent = open_run(tracking, experiment, run_in(prefect, Crashed()))
    trial = tracking.create_run(experiment, tags={Tag.PARENT_RUN_ID: parent, Tag.CANDIDATE: "forest"}).info.run_id
    tracking.set_terminated(parent, "FAILED")

    reconcile(stuck_minutes=60)

    assert tracking.get_run(trial).info.status == "FAILED"


@pytest.mark.parametrize(
    ("state", "ended"),
    [(Pending(), StateType.SCHEDULED), (Cancelling(), StateType.CANCELLED), (Running(), StateType.RUNNING)],
    ids=["pending", "cancelling", "running"],
)
def test_a_stuck_run_is_settled(prefect: SyncPrefectClient, state: State, ended: StateType) -> None:
    run = run_in(prefect, state)
    reconcile(stuck_minutes=60)
    early = prefect.read_flow_run(run.id).state_type
    reconcile(stuck_minutes=0)

    assert early == state.type
    assert prefect.read_flow_run(run.id).state_type == ended
    prefect.delete_flow_run(run.id)


def test_files_of_nothing_are_deleted_and_others_stay(
    tracking: MlflowClient, mlflow_address: str, experiment: str
) -> None:
    run = tracking.create_run(experiment).info.run_id
    tracking.log_text(run, "kept", "kept.txt")
    orphan = f"{experiment}/{uuid4().hex}/artifacts/lost.txt"
    address = f"{mlflow_address}/api/2.0/mlflow-artifacts/artifacts"
    httpx.put(f"{address}/{orphan}", content=b"lost").raise_for_status()

    reconcile(mend=False)
    reported_only = httpx.get(f"{address}/{orphan}").status_code
    reconcile()

    assert reported_only == httpx.codes.OK
    assert httpx.get(f"{address}/{orphan}").is_error
    assert [file.path for file in tracking.list_artifacts(run)] == ["kept.txt"]


def test_a_model_whose_upload_was_cut_off_is_marked(tracking: MlflowClient, experiment: str) -> None:
    model = tracking.create_logged_model(experiment, name="model").model_id
    reconcile(stuck_minutes=60)
    early = tracking.get_logged_model(model).status
    reconcile(stuck_minutes=0)

    assert early == LoggedModelStatus.PENDING
    assert tracking.get_logged_model(model).status == LoggedModelStatus.FAILED


def test_it_says_what_it_found_and_then_finds_nothing(
    prefect: SyncPrefectClient, tracking: MlflowClient, experiment: str
) -> None:
    open_run(tracking, experiment, run_in(prefect, Crashed()))

    messages = [reconcile(stuck_minutes=60, return_state=True).message for _ in range(2)]

    assert messages == ["Mended 1 leftover of faults.", "Nothing was left behind."]
