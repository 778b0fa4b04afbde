"""The flow `reconcile`: find what a fault left behind in Prefect, MLflow and the artifact store, and mend it.

It also cleans up what is not kept any more (`trainyard.retention`), and tells people when the disk fills up.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import httpx
import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Scheduled
from pydantic import Field

from trainyard import cache_storage, retention, tracking
from trainyard.contract import Resource, Tag
from trainyard.contract import State as StateName
from trainyard.retries import RETRIES

PAGE_SIZE = 200
TASK_TIMEOUT_SECONDS = 1200.0
# By the type of a flow run's final state, the status of the MLflow run that it left open.
STATUSES = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "FAILED", "CANCELLED": "KILLED"}
MODELS = "models"
"""The folder of an experiment's models, beside those of its runs."""
OWNER = re.compile(r"(m-)?[0-9a-f]{32}")
"""The folder of a run or a model; others, such as that of traces, are MLflow's to remove."""
ALERT_PAUSE = timedelta(hours=23)
"""For which people are not told again that the disk is full."""
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
Minutes = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


@flow(name=Resource.RECONCILE, log_prints=True, persist_result=False, timeout_seconds=3600)
def reconcile(stuck_minutes: Minutes = 10, mend: bool = True, disk_alert_percent: Percent | None = None) -> State[Any]:
    """Compare what Prefect, MLflow and the artifact store say, mend what a fault left behind, and clean up.

    It ends in the state `Alert` when the disk is nearly full, once a day.

    Args:
        stuck_minutes: How long a run may be Pending or Cancelling, and a model's files incomplete.
        mend: Whether to mend what is found and to clean up; otherwise it is only reported.
        disk_alert_percent: How full the disk may be; without it the setting DISK_ALERT_PERCENT.
    """
    tracking.require_server()
    found = [*settle_stuck_runs(stuck_minutes, mend), *end_open_runs(mend), *remove_leftovers(stuck_minutes, mend)]
    for line in found:
        print(line)
    if found:
        create_table_artifact([{"found": line} for line in found], key="reconciliation")
    if mend:
        clean_up_mlflow()
        clean_up_results()
    verb = "Mended" if mend else "Found"
    count = "1 leftover" if len(found) == 1 else f"{len(found)} leftovers"
    message = f"{verb} {count} of faults." if found else "Nothing was left behind."
    if (warning := check_disk(disk_alert_percent)) is None:
        return Completed(message=message)
    name = StateName.ALERT_PERSISTS if was_announced() else StateName.ALERT
    return Completed(name=name, message=f"{warning} {message}")


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
    rows: set[str] = set()
    for experiment_id in files:
        models = {model.model_id: model for model in _models(client, experiment_id)}
        rows |= models.keys() | _run_ids(client, experiment_id)
        found += _fail_incomplete(client, models, stuck_minutes, mend)
    # Models in MLflow's trash are in no search: a version may need them, and people may restore them.
    known = retention.ask_mlflow("GET")
    rows.update(known["kept"] if known else ())
    for owner, path in (each for owners in files.values() for each in owners.items()):
        is_known = owner in rows or (known is None and owner.startswith("m-"))
        if not OWNER.fullmatch(owner) or is_known or not _holds_files(path):
            continue
        if not mend or _is_permitted(partial(_artifacts, "DELETE", path), f"delete the files {path}"):
            found.append(f"The files {path} belonged to nothing: deleted.")
    return found


@task(name="clean-up-mlflow", timeout_seconds=TASK_TIMEOUT_SECONDS, persist_result=False, **RETRIES)
def clean_up_mlflow() -> None:
    """Remove what was deleted in MLflow long ago, and the trials of old versions."""
    removed = retention.clean_mlflow()
    if any(removed.values()):
        print(
            f"Removed for good what was deleted in MLflow: runs {removed['runs']}, models {removed['models']}. "
            f"Moved to its trash: old trials {removed['trials']}."
        )


@task(name="clean-up-results", timeout_seconds=TASK_TIMEOUT_SECONDS, persist_result=False, **RETRIES)
def clean_up_results() -> None:
    """Delete expired cache entries, old results of runs, and training data that no version needs."""
    removed = cache_storage.remove(retention.current_retention().is_removable)
    for kind, found in retention.summarize(removed).items():
        print(f"Deleted {found['count']} {kind}, {found['bytes'] / 1e6:,.1f} MB.")


def check_disk(alert_percent: float | None) -> str | None:
    """Return a warning if the disk with the data is fuller than it should be; print it."""
    settings = retention.RetentionSettings()
    disk = retention.measure_disk(settings.warm_process_state_dir)
    if disk.percent < (settings.disk_alert_percent if alert_percent is None else alert_percent):
        return None
    warning = f"{disk.describe()} `make storage` shows what uses it."
    get_run_logger().warning(warning)
    return warning


def was_announced() -> bool:
    """Return whether a run of this flow ended in the state `Alert` within the last day."""
    runs = FlowRunFilter.model_validate(
        {
            "state": {"name": {"any_": [StateName.ALERT]}},
            "end_time": {"after_": (datetime.now(UTC) - ALERT_PAUSE).isoformat()},
        }
    )
    flows = FlowFilter.model_validate({"name": {"any_": [Resource.RECONCILE]}})
    with get_client(sync_client=True) as prefect:
        return bool(prefect.read_flow_runs(flow_filter=flows, flow_run_filter=runs, limit=1))


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
            what = f"the model {model.name} ({model.model_id})"
            fail = partial(client.finalize_logged_model, model.model_id, LoggedModelStatus.FAILED)
            if not mend or _is_permitted(fail, f"mark {what} as failed"):
                yield f"The upload of {what} was cut off: failed."


def _is_permitted(change: Callable[[], object], what: str) -> bool:
    """Make a change; return False where MLflow refuses it to the worker, because somebody else owns the experiment."""
    try:
        change()
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.FORBIDDEN:
            raise
    except MlflowException as error:
        if error.get_http_status_code() != httpx.codes.FORBIDDEN:  # type: ignore[no-untyped-call]
            raise
    else:
        return True
    get_run_logger().warning(f"The worker may not {what}: that is left to the experiment's owner.")
    return False


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
    return [_last_part(each["path"]) for each in answer.get("files", []) if each.get("is_dir")]


def _holds_files(path: str) -> bool:
    """Return whether a folder has a file; some object stores go on listing a folder whose files were deleted."""
    found = _artifacts("GET", "", params={"path": path}).json().get("files", [])
    return any(not each.get("is_dir") or _holds_files(f"{path}/{_last_part(each['path'])}") for each in found)


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def _artifacts(method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request to the artifact store behind MLflow's server, with the account of MLflow's client."""
    credentials = read_mlflow_creds()
    login = (credentials.username or "", credentials.password or "") if credentials.username else None
    address = f"{mlflow.get_tracking_uri().rstrip('/')}{ARTIFACTS}"
    return httpx.request(
        method, f"{address}/{path}" if path else address, auth=login, timeout=30, **options
    ).raise_for_status()
