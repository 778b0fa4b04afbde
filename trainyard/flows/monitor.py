"""The flow `monitor`: assess the champions by their recent predictions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainyard import contract, registry, tracking
from trainyard.contract import (
    MONITORING_EXPERIMENT,
    Artifact,
    Column,
    MLflowPage,
    Resource,
    RunTag,
    ServingPath,
    Tag,
    Verdict,
)
from trainyard.errors import DataError, HookError, SourceError
from trainyard.evaluation import as_table, from_table
from trainyard.hooks import Hooks, ModelInfo, hooks_of, read_hooks
from trainyard.http import get_json
from trainyard.monitoring import (
    ALERT_PAUSE,
    SAMPLED,
    AlertThresholds,
    Assessment,
    Reference,
    assess,
    drift_table,
    new_alerts,
    rows_from_records,
)
from trainyard.retries import RETRIES

MAX_RECORDS = 1000
"""Of forecasts, and of other requests: serving spreads a sample of so many over the window."""
RETRAINING_PAUSE = timedelta(days=7)
"""Time after a retraining, whose model may have lost, before the same alert retrains again."""
TIMEOUT_SECONDS = 30.0
ModelName = Annotated[str, Field(min_length=1, max_length=250)]
WindowDays = Annotated[int, Field(ge=1, le=365)]


class MonitorSettings(BaseSettings):
    """Settings of the monitor."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    serving_url: str = "http://localhost:8000"
    serving_api_key: SecretStr = SecretStr("")
    monitor_retrain: bool = False
    """Whether an alert retrains the model."""


@dataclass(frozen=True)
class Check:
    """A check of one model that was logged."""

    version: ModelVersion
    assessment: Assessment
    url: str
    """The page of its run in MLflow."""
    hook_error: str
    """Why the project's hook failed, or empty; without the ground truth, only drift is assessed."""
    news: list[str]
    """What its alert is about, without what those of the last days were about."""

    @property
    def summary(self) -> str:
        """The model version and the reasons as one line."""
        return f"{self.version.name} version {self.version.version}: {self.assessment.summary}"


def get_from_serving(path: str, query: Mapping[str, str] | None = None) -> Any:
    """Return the JSON that the serving API answers a GET request with.

    Raises:
        SourceError: It cannot be reached or refuses the request.
    """
    settings = MonitorSettings()
    headers = {"Authorization": f"Bearer {settings.serving_api_key.get_secret_value()}"}
    return get_json(f"{settings.serving_url.rstrip('/')}{path}", query or {}, TIMEOUT_SECONDS, headers=headers)


@task(name="served-models", persist_result=False, timeout_seconds=600, **RETRIES)
def fetch_served_models() -> list[str]:
    """Return the names of the served models."""
    return sorted(get_from_serving(ServingPath.MODELS)["models"])


@task(name="request-forecasts", task_run_name="{model}", persist_result=False, **RETRIES)
def request_forecasts(model: str, query: Mapping[str, str]) -> None:
    """Have serving predict from live features and record it, so that there are daily forecasts to score."""
    answer = get_from_serving(ServingPath.of_model(model, "forecast"), query)
    print(f"{model}: {len(answer['predictions'])} forecasts about {answer['subject']}")


@task(name="fetch-predictions", task_run_name="{model}", persist_result=False, **RETRIES)
def fetch_predictions(model: str, version: int, since: datetime) -> pd.DataFrame:
    """Return the recorded predictions since a moment, as `rows_from_records` does.

    They hold the forecasts of all versions, for the dashboard, and of the requests that one version answered a sample of
    all, and those with labels; of each at most `MAX_RECORDS`, spread over the period. Who posts labels may choose the rows,
    so only the sample of all is compared with the training data.
    """
    path, own = ServingPath.of_model(model, "predictions"), {"version": str(version)}
    query = {"since": since.isoformat(), "limit": str(MAX_RECORDS), "sample": "true"}
    sampled = [
        *get_from_serving(path, query | {"about": "true"})["predictions"],
        *get_from_serving(path, query | own | {"about": "false"})["predictions"],
    ]
    labeled = get_from_serving(path, query | own | {"labeled": "true"})["predictions"]
    known = {record["id"] for record in sampled}
    return rows_from_records(
        [*sampled, *(record | {SAMPLED: False} for record in labeled if record["id"] not in known)]
    )


@task(name="fetch-ground-truth", task_run_name="{model.name}", persist_result=False, **RETRIES)
def fetch_ground_truth(hooks: Hooks, model: ModelInfo, times: Sequence[str]) -> dict[tuple[str, str], float | str]:
    """Return what the project's hook observed, by subject and time.

    Raises:
        SourceError: A source of the hook does not deliver.
        DataError: The hook cannot use the data.
        HookError: The hook cannot be imported, fails otherwise, or returns something else.
    """
    hook = hooks.load("ground_truth")
    try:
        observed = hook(model, times)
        return {
            (str(subject), str(time)): value if isinstance(value, str) else float(value)
            for (subject, time), value in observed.items()
        }
    except (SourceError, DataError):
        raise
    except Exception as error:
        reference = f"ground_truth = {hooks.ground_truth!r}"
        raise HookError(f"{hooks.file}: {reference} fails ({type(error).__name__}: {error}).") from error


def fetch_former_alerts(version: ModelVersion) -> list[list[str]]:
    """Return what the alerts of a version's checks in the last `ALERT_PAUSE` were about."""
    client, since = MlflowClient(), datetime.now(UTC) - ALERT_PAUSE
    experiment = client.get_experiment_by_name(MONITORING_EXPERIMENT)
    if experiment is None:
        return []
    recent = (
        f"tags.{Tag.MODEL_VERSION} = '{version.version}' AND attributes.start_time >= {since.timestamp() * 1000:.0f}"
    )
    own = tracking.flow_run_tags()[Tag.FLOW_RUN_ID]  # after a crash its former attempt has told nobody
    return [
        json.loads(tags.get(Tag.ALERTS, "[]"))
        for tags in (run.data.tags for run in client.search_runs([experiment.experiment_id], recent))
        if tags[Tag.MODEL] == version.name and tags.get(Tag.FLOW_RUN_ID) != own
    ]


@task(name="log-check", task_run_name="{version.name}", persist_result=False)
def log_check(version: ModelVersion, assessment: Assessment) -> str:
    """Log an assessment as a run in MLflow; return the address of its page."""
    experiment = tracking.use_experiment(MONITORING_EXPERIMENT)
    tags = {
        Tag.MODEL: version.name,
        Tag.MODEL_VERSION: str(version.version),
        Tag.VERDICT: assessment.verdict,
        Tag.REASONS: assessment.summary,
        Tag.ALERTS: json.dumps(assessment.alerts),
        Tag.PROBLEM: assessment.problem,
        **tracking.flow_run_tags(),
    }
    with mlflow.start_run(run_name=f"{version.name} v{version.version}", tags=tags) as run:
        mlflow.log_metrics(dict(assessment.metrics))
        mlflow.log_dict(as_table(drift_table(assessment.shifts)), Artifact.DRIFT)
        mlflow.log_dict(as_table(assessment.forecasts), Artifact.FORECASTS)
        mlflow.log_dict(as_table(assessment.outcomes), Artifact.OUTCOMES)
    ui = tracking.TrackingSettings().mlflow_ui_url.rstrip("/")
    return MLflowPage.run(ui, experiment.experiment_id, run.info.run_id)


@task(name="retrain", task_run_name="{version.name}", persist_result=False)
def retrain(version: ModelVersion) -> str:
    """Run the deployment that trained a version again; return what was done.

    While a retraining is under way there is no other, nor for `RETRAINING_PAUSE` after one that completed without a new
    champion. One that failed, crashed or was cancelled does not keep the next check from another.
    """
    trained_by = MlflowClient().get_run(str(version.run_id)).data.tags.get(Tag.FLOW_RUN_ID)
    of_model = f"{RunTag.RETRAINING}: {version.name}"
    with get_client(sync_client=True) as client:
        try:
            training = client.read_flow_run(UUID(trained_by or ""))
        except (ObjectNotFound, ValueError):
            return f"{version.name} is not retrained: the run that trained it was deleted."
        if training.deployment_id is None:
            return f"{version.name} is not retrained: it was not trained by a deployment."
        former = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[of_model])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        if reason := reason_to_wait(former, datetime.now(UTC)):
            return f"{version.name} is not retrained: {reason}"
        run = client.create_flow_run_from_deployment(
            training.deployment_id,
            parameters=training.parameters,
            name=f"{training.name}-again",
            tags=[RunTag.RETRAINING, of_model],
            idempotency_key=f"retrain {version.name} {version.version} {len(former)}",
        )
    return f"{version.name} is retrained by the run {run.name}."


def reason_to_wait(former: Sequence[FlowRun], now: datetime) -> str:
    """Return why a model's retrainings, newest first, forbid another one now, or an empty string."""
    for run in former:
        if run.state is None or not run.state.is_final():
            return f"its retraining {run.name} is under way."
        if run.state.is_completed() and now < run.state.timestamp + RETRAINING_PAUSE:
            return f"its retraining {run.name} completed less than {RETRAINING_PAUSE.days} days ago."
    return ""


def load_reference(version: ModelVersion) -> Reference:
    """Return the training sample and the holdout of a model version.

    Raises:
        DataError: Its training logged none.
    """
    paths = (Artifact.TRAINING_SAMPLE, Artifact.HOLDOUT)
    try:
        sample, holdout = (from_table(mlflow.artifacts.load_dict(f"runs:/{version.run_id}/{path}")) for path in paths)
    except (MlflowException, OSError, ValueError) as error:
        raise DataError(
            f"{version.name} version {version.version} has no {' and '.join(paths)} to compare with: train it again."
        ) from error
    return Reference(sample, holdout)


@task(name="check", task_run_name="{model}", persist_result=False)
def check_model(model: str, window_days: int, thresholds: AlertThresholds, declared: Sequence[Hooks]) -> Check:
    """Assess the champion of a model and log the result.

    A source of data that does not deliver is a warning: the check goes on without it.

    Raises:
        DataError: The model has no champion, or its training left no tables.
        SourceError: Serving does not list the predictions.
    """
    version, hooks, warn = registry.champion(model), hooks_of(model, declared), get_run_logger().warning
    if version is None:
        raise DataError(f"{model} has no champion to check.")
    reference = load_reference(version)
    if hooks and hooks.live_features:
        try:
            request_forecasts(model, hooks.monitor_query)
        except (SourceError, DataError) as error:
            warn("%s has no new forecasts today. %s", model, error)
    rows = fetch_predictions(model, int(version.version), datetime.now(UTC) - timedelta(days=window_days))
    times = sorted(set(rows[Column.TIME]) - {""})
    observed: dict[tuple[str, str], float | str] = {}
    hook_error = ""
    if hooks and hooks.ground_truth and times:
        try:
            observed = fetch_ground_truth(hooks, ModelInfo(model, int(version.version), version.tags), times)
        except (SourceError, DataError) as error:
            warn("The ground truth for %s is missing. %s", model, error)
        except HookError as error:
            hook_error = f"{model}: {error}"
    assessment = assess(rows, reference, observed, thresholds, int(version.version))
    news = new_alerts(assessment.alerts, fetch_former_alerts(version))
    return Check(version, assessment, log_check(version, assessment), hook_error, news)


def report(checks: Sequence[Check]) -> None:
    """Print the results and write them to an artifact of the run."""
    lines = []
    for check in checks:
        version, assessment = check.version, check.assessment
        title = f"{version.name} version {version.version}"
        lines.append(f"- [{title}]({check.url}): **{assessment.verdict}**. {assessment.summary}")
        print(f"{title}: {assessment.verdict}. {assessment.summary}")
    create_markdown_artifact("# Checks of the champions\n\n" + "\n".join(lines), key="monitoring-report")


@flow(name=Resource.MONITOR, log_prints=True, persist_result=False, timeout_seconds=7200)
def monitor(
    models: list[ModelName] = [],  # noqa: B006 - a form's default
    window_days: WindowDays = 30,
    limits: AlertThresholds = AlertThresholds(),
    retrain_on_alert: bool | None = None,
) -> State[None]:
    """Compare recent predictions with the training data and with the ground truth.

    A run that raises an alert ends in the state Alert, which is mailed; one that finds only what alerts of the last seven days
    were about ends in the state AlertPersists.

    Args:
        models: Names of registered models; without any, all served models.
        window_days: Age in days up to which predictions count.
        limits: When to raise an alert.
        retrain_on_alert: Whether an alert retrains the model; without it, MONITOR_RETRAIN decides.
    """
    tracking.require_server()
    names = models or fetch_served_models()
    errors, declared = [], list[Hooks]()
    try:
        declared = read_hooks()
    except HookError as error:
        errors.append(str(error))
    futures = check_model.map(names, unmapped(window_days), unmapped(limits), unmapped(declared))
    futures.wait()
    results = [future.state.result(raise_on_failure=False) for future in futures]
    checks = [result for result in results if isinstance(result, Check)]
    errors += [check.hook_error for check in checks if check.hook_error]
    errors += [f"{name}: {r}" for name, r in zip(names, results, strict=True) if not isinstance(r, Check)]
    if checks:
        report(checks)
    alerts = [check for check in checks if check.assessment.verdict == Verdict.ALERT]
    messages = [check.summary for check in alerts]
    if MonitorSettings().monitor_retrain if retrain_on_alert is None else retrain_on_alert:
        messages += [retrain(check.version) for check in alerts]
    if errors:
        return Failed(message=" ".join([*messages, *errors]))
    if alerts:
        is_new = any(check.news for check in alerts)
        return Completed(
            name=contract.State.ALERT if is_new else contract.State.ALERT_PERSISTS, message=" ".join(messages)
        )
    return Completed(message=f"Models checked: {len(checks)}." if checks else "No model is served yet.")
