"""Mail about a run that has ended. The automation `mail-run-events` starts it for each run with the tag `mail`."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from trainyard import tracking
from trainyard.mail import message, smtp
from trainyard.mail.settings import MailSettings, problems

NAME = "send-mail"
DEPLOYMENT = f"{NAME}/{NAME}"
# Before the second attempt, the third and so on. What a server did not take within a day is old news.
DELAYS = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=12),
)
MOST_TRACKED = 5
# The tags of MLflow's runs that name the run that somebody started, and those that name its component: who logged it,
# and who took it over because nothing has changed since.
OF_ROOT = ("prefect.flow_run_id", tracking.LAST_RUN)
OF_COMPONENT = ("prefect.subflow_run_id", tracking.LAST_COMPONENT)


@flow(name=NAME, log_prints=True, persist_result=False)
def send_mail(flow_run_id: UUID, attempt: int = 1, recipients: list[str] | None = None) -> State[None]:
    """Send the mail about a run that has ended.

    Where the mail server cannot take it now, a later run of this flow tries again; this one does not wait for
    it. Of a mail that is lost a failed run of this flow remains, which says so.

    Args:
        flow_run_id: The run that the mail is about.
        attempt: Which try this is.
        recipients: Those who have not got it yet; without them, all of MAIL_TO.
    """
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run_id)
            flow_name = client.read_flow(run.flow_id).name
        except ObjectNotFound:
            return done(f"No mail: the run {flow_run_id} has been deleted.")
        about = f"the mail about {flow_name} {run.name}"
        if run.state is None or not run.state.is_final():
            return done(f"No mail yet: {flow_name} {run.name} was started again, and is mailed when it ends.")
        if flow_name == NAME:
            return done("No mail: this flow does not write about itself.")
        try:
            settings = MailSettings()
        except ValidationError as error:
            return lost(f"Lost {about}: {problems(error)}")
        facts = gather(client, run, run.state, flow_name)
    to = recipients or settings.mail_to
    mail = message.compose(facts, settings.mail_from, to)
    return settle(smtp.send(mail, settings.mail_from, to, settings.server), flow_run_id, about, to, attempt)


def settle(
    undelivered: list[smtp.Undelivered], flow_run_id: UUID, about: str, to: list[str], attempt: int
) -> State[None]:
    """Schedule another attempt where one is worth it; return how this one ended."""
    losses = []
    for failure in undelivered:
        names = ", ".join(failure.recipients)
        if failure.temporary and attempt <= len(DELAYS):
            at = send_later(flow_run_id, list(failure.recipients), attempt)
            waiting = f"{about} to {names} waits until {at:%F %T} UTC (attempt {attempt + 1}): {failure.reason}."
            print(waiting[0].upper() + waiting[1:])
        else:
            tries = f" after {attempt} attempts" if attempt > 1 else ""
            losses.append(f"Lost {about} to {names}{tries}: {failure.reason}.")
    if losses:
        return lost(" ".join(losses))
    waits = [name for failure in undelivered for name in failure.recipients]
    sent = [name for name in to if name not in waits]
    return done(
        f"Sent {about} to {', '.join(sent) or 'nobody yet'}."
        + (f" It waits for the mail server to take it for {', '.join(waits)}." if waits else "")
    )


def send_later(flow_run_id: UUID, recipients: list[str], attempt: int) -> datetime:
    """Schedule the next attempt; return when it will be."""
    at = datetime.now(UTC) + DELAYS[attempt - 1]
    run_deployment(
        DEPLOYMENT,
        parameters={"flow_run_id": str(flow_run_id), "attempt": attempt + 1, "recipients": recipients},
        scheduled_time=at,
        timeout=0,
        # Of this run and not of the one that it is about: that may end a second time, when somebody runs it again.
        idempotency_key=f"after {runtime.flow_run.id}",
        as_subflow=False,
    )
    return at


def done(message: str) -> State[None]:
    """Return the state of a run that needs nobody's attention."""
    print(message)
    return Completed(message=message)


def lost(message: str) -> State[None]:
    """Return the state that keeps the loss on record."""
    get_run_logger().error(message)
    return Failed(message=message)


def gather(client: SyncPrefectClient, run: FlowRun, state: State, flow_name: str) -> message.Facts:
    """Collect what the mail says of a run; MLflow may be away."""
    root, tracked, problem = root_of(client, run), [], ""
    try:
        tracked = tracked_runs(run.id, OF_COMPONENT if root else OF_ROOT)
    except (tracking.TrackingUnreachableError, MlflowException) as error:
        problem = str(error)
    return message.Facts(
        id=str(run.id),
        flow=flow_name,
        name=run.name,
        url=url_for("flow-run", run.id) or "",
        state=state.name or state.type.value.capitalize(),
        message=state.message or "",
        good=state.is_completed(),
        started=run.start_time,
        ended=state.timestamp,
        root=root,
        parameters=run.parameters,
        report="" if state.is_completed() else latest_report(client, run.id),
        tracked=tracked,
        tracking_problem=problem,
        tracking_url=tracking.TrackingSettings().mlflow_ui_url,
    )


def root_of(client: SyncPrefectClient, run: FlowRun) -> message.Root | None:
    """Return the run of which this one is a component; None where somebody started it by itself."""
    top = run
    try:
        while top.parent_task_run_id:
            task_run = client.read_task_run(top.parent_task_run_id)
            if task_run.flow_run_id is None:
                break
            top = client.read_flow_run(task_run.flow_run_id)
        return None if top is run else message.Root(client.read_flow(top.flow_id).name, top.name)
    except ObjectNotFound:
        return None


def latest_report(client: SyncPrefectClient, flow_run_id: UUID) -> str:
    """Return the newest Markdown or table among a run's artifacts as text, or nothing."""
    wanted = {"flow_run_id": {"any_": [flow_run_id]}, "type": {"any_": ["markdown", "table"]}}
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter.model_validate(wanted), sort=ArtifactSort.CREATED_DESC, limit=1
    )
    if not found:
        return ""
    text = message.table_text(str(found[0].data)) if found[0].type == "table" else str(found[0].data)
    return f"{found[0].description}\n\n{text}" if found[0].description else text


def tracked_runs(flow_run_id: UUID, tags: tuple[str, ...]) -> list[message.Tracked]:
    """Return the runs in MLflow that belong to a flow run, the newest first.

    Args:
        flow_run_id: The flow run.
        tags: The tags that may hold its id.

    Raises:
        TrackingUnreachableError: MLflow does not answer.
        MlflowException: MLflow refused.
    """
    tracking.require_server()
    client = MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {
        run.info.run_id: run
        for tag in tags
        for run in client.search_runs(experiments, f"tags.`{tag}` = '{flow_run_id}'")
        if "mlflow.parentRunId" not in run.data.tags  # those beneath another are its candidates
    }
    newest = sorted(found.values(), key=lambda run: run.info.start_time, reverse=True)
    return [described(run) for run in newest[:MOST_TRACKED]]


def described(run: Run) -> message.Tracked:
    """Return what the mail says of a run in MLflow."""
    ui, tags = tracking.TrackingSettings().mlflow_ui_url.rstrip("/"), run.data.tags
    url = f"{ui}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    version = f" version {tags['model_version']}" if "model_version" in tags else ""
    return message.Tracked(url, run.data.metrics, f"{tags['model']}{version}" if "model" in tags else "")
