"""The flow `send-mail`: send a mail about a run that has ended.

The automations `mail-run-events` and `mail-alerts` start it for runs with their tags.
"""

from datetime import UTC, datetime, timedelta
from itertools import chain, count, takewhile
from uuid import UUID

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from trainyard import tracking
from trainyard.contract import MLflowPage, Resource, RunTag, Tag
from trainyard.errors import TrackingUnreachableError
from trainyard.mail import message, smtp
from trainyard.mail.settings import MailSettings, describe_errors

DEPLOYMENT = f"{Resource.SEND_MAIL}/{Resource.SEND_MAIL}"
RETRY_DELAYS = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=12),
)
"""Before the second attempt, the third and so on: after a day a mail is no longer news."""
MAX_MLFLOW_RUNS = 5
PAGE_SIZE = 200
# A run that was reused because nothing had changed belongs to the newest flow run as well.
PIPELINE_TAGS = (Tag.FLOW_RUN_ID, Tag.LAST_FLOW_RUN_ID)
SUBFLOW_TAGS = (Tag.SUBFLOW_RUN_ID, Tag.LAST_SUBFLOW_RUN_ID)


@flow(name=Resource.SEND_MAIL, log_prints=True, persist_result=False, timeout_seconds=1800)
def send_mail(flow_run_id: UUID, attempt: int = 1, recipients: list[str] | None = None) -> State[None]:
    """Send the mail about a run that has ended.

    After a temporary failure another run of this flow is scheduled for the next attempt. A mail that cannot be
    delivered leaves a failed run of this flow.

    Args:
        flow_run_id: The run that the mail is about.
        attempt: Number of this attempt, from 1.
        recipients: The addresses that have not received the mail yet; without them, all of MAIL_TO.
    """
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run_id)
            flow_name = client.read_flow(run.flow_id).name
        except ObjectNotFound:
            return complete(f"No mail: the run {flow_run_id} was deleted.")
        title = f"{flow_name} {run.name}"
        if run.state is None or not run.state.is_final():
            return complete(f"No mail yet: {title} was restarted; a mail is sent when it ends.")
        if flow_name == Resource.SEND_MAIL:
            return complete("No mail: this flow sends none about itself.")
        try:
            settings = MailSettings()
        except ValidationError as error:
            return fail(f"The mail about {title} is not sent: {describe_errors(error)}")
        summary = summarize(client, run, run.state, flow_name)
    to = recipients or settings.mail_to
    mail = message.compose(summary, settings.mail_from, to)
    undelivered = smtp.send(mail, settings.mail_from, to, settings.server)
    return finish(undelivered, flow_run_id, f"the mail about {title}", to, attempt)


def finish(
    undelivered: list[smtp.Undelivered], flow_run_id: UUID, mail: str, recipients: list[str], attempt: int
) -> State[None]:
    """Schedule the next attempt for temporary failures; return the final state of this one."""
    failures, retried = [], list[str]()
    for failure in undelivered:
        addresses = ", ".join(failure.recipients)
        if failure.temporary and attempt <= len(RETRY_DELAYS):
            at = schedule_retry(flow_run_id, list(failure.recipients), attempt)
            print(f"Attempt {attempt + 1} to send {mail} to {addresses} is at {at:%F %T} UTC: {failure.reason}.")
            retried += failure.recipients
        else:
            attempts = f" after {attempt} attempts" if attempt > 1 else ""
            failures.append(f"Could not send {mail} to {addresses}{attempts}: {failure.reason}.")
    if failures:
        return fail(" ".join(failures))
    sent = [address for address in recipients if address not in retried]
    outcomes = [f"Sent {mail} to {', '.join(sent)}."] if sent else []
    outcomes += [f"Scheduled another attempt to send {mail} to {', '.join(retried)}."] if retried else []
    return complete(" ".join(outcomes))


def schedule_retry(flow_run_id: UUID, recipients: list[str], attempt: int) -> datetime:
    """Schedule the attempt after this one; return its time."""
    at = datetime.now(UTC) + RETRY_DELAYS[attempt - 1]
    run_deployment(
        DEPLOYMENT,
        parameters={"flow_run_id": str(flow_run_id), "attempt": attempt + 1, "recipients": recipients},
        scheduled_time=at,
        timeout=0,
        # Of this run, not of the one that the mail is about: that one can be restarted and end again.
        idempotency_key=f"after {runtime.flow_run.id}",
        as_subflow=False,
    )
    return at


def complete(reason: str) -> State[None]:
    """Print the reason; return a completed state."""
    print(reason)
    return Completed(message=reason)


def fail(reason: str) -> State[None]:
    """Log the reason as an error; return a failed state."""
    get_run_logger().error(reason)
    return Failed(message=reason)


def summarize(client: SyncPrefectClient, run: FlowRun, state: State, flow_name: str) -> message.RunSummary:
    """Collect what the mail says about a run; without MLflow, it says why the metrics are missing."""
    pipeline, mlflow_runs, mlflow_error = find_pipeline(client, run), [], ""
    try:
        mlflow_runs = find_mlflow_runs(run.id, SUBFLOW_TAGS if pipeline else PIPELINE_TAGS)
    except (TrackingUnreachableError, MlflowException) as error:
        mlflow_error = str(error)
    return message.RunSummary(
        id=str(run.id),
        flow=flow_name,
        name=run.name,
        url=url_for("flow-run", run.id) or "",
        state=state.name or state.type.value.capitalize(),
        message=state.message or "",
        is_completed=state.is_completed(),
        started=run.start_time,
        ended=state.timestamp,
        pipeline=pipeline,
        parameters=run.parameters,
        report="" if state.is_completed() else read_newest_artifact(client, run.id),
        mlflow_runs=mlflow_runs,
        components=find_components(client, run) if RunTag.MAIL in run.tags else [],
        mlflow_error=mlflow_error,
        mlflow_url=tracking.TrackingSettings().mlflow_ui_url,
    )


def find_pipeline(client: SyncPrefectClient, run: FlowRun) -> message.Pipeline | None:
    """Return the top-level run of a subflow's run; None for a top-level run."""
    top = run
    try:
        while top.parent_task_run_id:
            task_run = client.read_task_run(top.parent_task_run_id)
            if task_run.flow_run_id is None:
                break
            top = client.read_flow_run(task_run.flow_run_id)
        return None if top is run else message.Pipeline(client.read_flow(top.flow_id).name, top.name)
    except ObjectNotFound:
        return None


def find_components(client: SyncPrefectClient, run: FlowRun) -> list[message.Component]:
    """Return the ended subflow runs of a run that have no mail of their own, and theirs, in the order of their start."""
    found: list[FlowRun] = []
    parents = [run.id]
    while parents:
        query = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": parents}})
        pages = (
            client.read_flow_runs(flow_run_filter=query, sort=FlowRunSort.ID_DESC, limit=PAGE_SIZE, offset=offset)
            for offset in count(0, PAGE_SIZE)
        )
        children = list(chain.from_iterable(takewhile(bool, pages)))
        found += children
        parents = [child.id for child in children]
    flows = {flow_id: client.read_flow(flow_id).name for flow_id in {each.flow_id for each in found}}
    silent = [each for each in found if RunTag.MAIL not in each.tags and each.state and each.state.is_final()]
    return [
        message.Component(
            flows[each.flow_id],
            each.name,
            each.state.name or each.state.type.value.capitalize(),
            "" if each.state.is_completed() else message.last_line(each.state.message or ""),
        )
        for each in sorted(silent, key=lambda each: str(each.start_time or each.created))
        if each.state
    ]


def read_newest_artifact(client: SyncPrefectClient, flow_run_id: UUID) -> str:
    """Return the newest Markdown or table artifact of a run as text, or an empty string."""
    query = {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": ["markdown", "table"]}}
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate(query), sort=ArtifactSort.CREATED_DESC, limit=1
    )
    if not artifacts:
        return ""
    (artifact,) = artifacts
    text = message.format_table(str(artifact.data)) if artifact.type == "table" else str(artifact.data)
    return f"{artifact.description}\n\n{text}" if artifact.description else text


def find_mlflow_runs(flow_run_id: UUID, tags: tuple[str, ...]) -> list[message.MlflowRun]:
    """Return the runs in MLflow that belong to a flow run, newest first.

    Args:
        flow_run_id: The flow run.
        tags: The tags that may hold its id.

    Raises:
        TrackingUnreachableError: MLflow does not answer.
        MlflowException: MLflow refused a request.
    """
    tracking.require_server(wait_seconds=0)  # a mail says rather that it is incomplete
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {
        run.info.run_id: run
        for tag in tags
        for run in client.search_runs(experiments, f"tags.`{tag}` = '{flow_run_id}'")
        if Tag.PARENT_RUN_ID not in run.data.tags  # a child run is a candidate of a search
    }
    newest = sorted(found.values(), key=lambda run: run.info.start_time, reverse=True)
    return [summarize_mlflow_run(run) for run in newest[:MAX_MLFLOW_RUNS]]


def summarize_mlflow_run(run: Run) -> message.MlflowRun:
    """Return what the mail says about a run in MLflow."""
    tags = run.data.tags
    url = MLflowPage.run(tracking.TrackingSettings().mlflow_ui_url.rstrip("/"), run.info.experiment_id, run.info.run_id)
    version = f" version {tags[Tag.MODEL_VERSION]}" if Tag.MODEL_VERSION in tags else ""
    return message.MlflowRun(url, run.data.metrics, f"{tags[Tag.MODEL]}{version}" if Tag.MODEL in tags else "")
