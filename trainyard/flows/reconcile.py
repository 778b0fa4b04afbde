"""The flow `reconcile`: find what a fault left behind in Prefect, MLflow and the artifact store, and mend it.

It also deletes the cache entries that have expired, which nobody reads any more.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import httpx
import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run, ViewType
from mlflow.utils.credentials import read_mlflow_creds
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Scheduled
from pydantic import Field

from trainyard import cache_storage, tracking
from trainyard.contract import Resource, Tag
from trainyard.retries import RETRIES

PAGE_SIZE = 200
TASK_TIMEOUT_SECONDS = 1200.0
# By the type of a flow run's final state, the status of the MLflow run that it left open.
STATUSES = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "FAILED", "CANCELLED": "KILLED"}
MODELS = "models"
"""The folder of an experiment's models, beside those of its runs."""
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
Minutes = Annotated[float, Field(ge=0)]


@flow(name=Resource.RECONCILE, log_prints=True, persist_result=False, timeout_seconds=3600)
def reconcile(stuck_minutes: Minutes = 10, mend: bool = True) -> State[Any]:
    """Compare what Prefect, MLflow and the artifact store say, and mend what a fault left behind.

    Args:
        stuck_minutes: How long a run may be Pending or Cancelling, and a model's files incomplete.
        mend: Whether to mend what is found; otherwise it is only reported.
    """
    tracking.require_server()
    found = [*settle_stuck_runs(stuck_minutes, mend), *end_open_runs(mend), *remove_leftovers(stuck_minutes, mend)]
    for line in found:
        print(line)
    if found:
        create_table_artifact([{"found": line} for line in found], key="reconciliation")
    if mend:
        print(f"{remove_expired_entries()} expired cache entries were deleted.")
    verb = "Mended" if mend else "Found"
    count = "1 leftover" if len(found) == 1 else f"{len(found)} leftovers"
    return Completed(message=f"{verb} {count} of faults." if found else "Nothing was left behind.")


@task(name="settle-stuck-runs", timeout_seconds=TASK_TIMEOUT_SECONDS, **RETRIES)
def settle_stuck_runs(stuck_minutes: float, mend: bool) -> list[str]:
    """Schedule runs again that have been Pending for too long, and cancel those that have been Cancelling."""
    found = []
    with get_client(sync_client=True) as prefect:
        for run in _stuck_runs(prefect, stuck_minutes):
            assert run.state
            is_pending = run.state.is_pending()
            what = "scheduled again" if is_pending else "cancelled"
            message = f"It was {run.state.name} for more than {stuck_minutes:g} minutes."
            if mend:
                state: State[Any] = Scheduled(message=message) if is_pending else Cancelled(message=message)
                prefect.set_flow_run_state(run.id, state, force=True)
            found.append(f"The flow run {run.name} ({run.id}) was stuck in {run.state.name}: {what}.")
    return found


def _stuck_runs(prefect: SyncPrefectClient, minutes: float) -> list[FlowRun]:
    before = datetime.now(UTC) - timedelta(minutes=minutes)
    states = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "CANCELLING"]}}})
    runs = prefect.read_flow_runs(flow_run_filter=states, limit=PAGE_SIZE)
    return [run for run in runs if run.state and run.state.timestamp < before]


@task(name="end-open-runs", timeout_seconds=TASK_TIMEOUT_SECONDS, **RETRIES)
def end_open_runs(mend: bool) -> list[str]:
    """End MLflow's runs that are still running although the flow run that logged them has ended."""
    client, found = MlflowClient(), []
    with get_client(sync_client=True) as prefect:
        for run, status in _open_runs(client, prefect):
            if mend:
                client.set_terminated(run.info.run_id, status)
            name = f"{run.info.run_name} ({run.info.run_id})"
            found.append(f"MLflow's run {name} was open although its flow run has ended: {status}.")
    return found


def _open_runs(client: MlflowClient, prefect: SyncPrefectClient) -> Iterator[tuple[Run, str]]:
    """Yield the open runs of ended flow runs, each with the status that it should have."""
    experiments = [each.experiment_id for each in client.search_experiments(view_type=ViewType.ALL)]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    for run in running:
        parent = run.data.tags.get(Tag.PARENT_RUN_ID)  # a trial, which does not name its flow run
        owner = client.get_run(parent) if parent else run
        flow_run = owner.data.tags.get(Tag.SUBFLOW_RUN_ID) or owner.data.tags.get(Tag.FLOW_RUN_ID)
        if flow_run and (status := _final_status(prefect, flow_run)):
            yield run, status


def _final_status(prefect: SyncPrefectClient, flow_run_id: str) -> str | None:
    """Return the status for a run of this flow run, or None while it goes on."""
    try:
        state = prefect.read_flow_run(UUID(flow_run_id)).state
    except (ObjectNotFound, ValueError):
        return "FAILED"  # it was deleted
    return STATUSES.get(state.type.value) if state else None


@task(name="remove-leftovers", timeout_seconds=TASK_TIMEOUT_SECONDS, **RETRIES)
def remove_leftovers(stuck_minutes: float, mend: bool) -> list[str]:
    """Mark models whose upload was cut off as failed, and delete files that belong to no run or model."""
    client = MlflowClient()
    # Files first: the row of a file that is found is older than the file.
    files = {each.experiment_id: _owners_of_files(each.experiment_id) for each in client.search_experiments()}
    found: list[str] = []
    for experiment_id, owners in files.items():
        models = {model.model_id: model for model in _models(client, experiment_id)}
        rows = models.keys() | _run_ids(client, experiment_id)
        found += _fail_incomplete(client, models, stuck_minutes, mend)
        for owner, path in owners.items():
            if owner not in rows:
                if mend:
                    _artifacts("DELETE", path)
                found.append(f"The files {path} belonged to nothing: deleted.")
    return found


@task(name="remove-expired-entries", timeout_seconds=TASK_TIMEOUT_SECONDS, persist_result=False, **RETRIES)
def remove_expired_entries() -> int:
    """Delete the cache entries that have expired; return their number."""
    return cache_storage.remove_expired()


def _models(client: MlflowClient, experiment_id: str) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = client.search_logged_models([experiment_id], max_results=100, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _fail_incomplete(
    client: MlflowClient, models: Mapping[str, LoggedModel], stuck_minutes: float, mend: bool
) -> Iterator[str]:
    before = (datetime.now(UTC) - timedelta(minutes=stuck_minutes)).timestamp() * 1000
    for model in models.values():
        if model.status == LoggedModelStatus.PENDING and model.creation_timestamp < before:
            if mend:
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
            yield f"The upload of the model {model.name} ({model.model_id}) was cut off: failed."


def _run_ids(client: MlflowClient, experiment_id: str) -> set[str]:
    """Return all runs of an experiment, deleted ones too: their files are MLflow's to remove."""
    found: set[str] = set()
    token = None
    while True:
        page = client.search_runs([experiment_id], run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        found |= {run.info.run_id for run in page}
        if not (token := page.token):
            return found


def _owners_of_files(experiment_id: str) -> dict[str, str]:
    """Return the paths of an experiment's folders by the run or model that each belongs to."""
    folders = dict.fromkeys(_folders(experiment_id), experiment_id)
    if folders.pop(MODELS, None):
        above = f"{experiment_id}/{MODELS}"
        folders |= dict.fromkeys(_folders(above), above)
    return {name: f"{above}/{name}" for name, above in folders.items()}


def _folders(path: str) -> list[str]:
    answer = _artifacts("GET", "", params={"path": path}).json()
    return [each["path"].rpartition("/")[2] for each in answer.get("files", []) if each.get("is_dir")]


def _artifacts(method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request to the artifact store behind MLflow's server, with the account of MLflow's client."""
    credentials = read_mlflow_creds()
    login = (credentials.username or "", credentials.password or "") if credentials.username else None
    address = f"{mlflow.get_tracking_uri().rstrip('/')}{ARTIFACTS}"
    return httpx.request(
        method, f"{address}/{path}" if path else address, auth=login, timeout=30, **options
    ).raise_for_status()
