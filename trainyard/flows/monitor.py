"""Are the champions still right? Recent predictions beside the training data, and forecasts beside what happened."""

from collections import deque
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.weather import truth
from flows.weather.ingest import fetch_archive
from flows.weather.settings import WeatherSettings
from flows.weather.validation import GapLimits
from trainyard import registry, tracking
from trainyard.errors import DataError, RefusedError, SourceUnreachableError
from trainyard.evaluation import HOLDOUT, SAMPLE, as_table, from_table
from trainyard.http import get_json
from trainyard.monitoring import DAY, AlertThresholds, Verdict, assess, drift_table, rows_of
from trainyard.retries import is_transient

EXPERIMENT = "monitoring"
ALERT = "Alert"
PAGE, MOST_RECORDS = 1000, 10_000
DAYS_AHEAD = 7
TIMEOUT_SECONDS = 30.0
DRIFT, FORECASTS = "monitoring/drift.json", "monitoring/forecasts.json"
ModelName = Annotated[str, Field(min_length=1, max_length=250)]
WindowDays = Annotated[int, Field(ge=1, le=365)]
FETCHING: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(0.3),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
    "persist_result": False,
}


class MonitorSettings(BaseSettings):
    """Settings of the monitor."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    serving_url: str = "http://localhost:8000"
    serving_api_key: SecretStr = SecretStr("")
    monitor_retrain: bool = False
    """Whether an alert retrains the model."""


def ask_serving(path: str, **query: str) -> Any:
    """Return what the serving API answers to a GET request; its key goes with it."""
    settings = MonitorSettings()
    headers = {"Authorization": f"Bearer {settings.serving_api_key.get_secret_value()}"}
    return get_json(f"{settings.serving_url.rstrip('/')}{path}", query, TIMEOUT_SECONDS, headers=headers)


@task(name="served-models", **FETCHING)
def served_models() -> list[str]:
    """Return the names of the models that the serving API answers with."""
    return sorted(ask_serving("/models")["models"])


@task(name="ask-for-forecast", task_run_name="{model}", **FETCHING)
def ask_for_forecast(model: str) -> None:
    """Have the coming days' forecasts made, so that there is one of each day to measure."""
    said, *_ = ask_serving(f"/models/{quote(model, safe='')}/forecast", days=str(DAYS_AHEAD))["forecasts"]
    print(f"{model}: rain on {said['day']} with probability {said['probability']:.2f}")


@task(name="fetch-predictions", task_run_name="{model}", **FETCHING)
def fetch_predictions(model: str, begin: datetime) -> pd.DataFrame:
    """Return the predictions that were recorded since a moment, a row each (trainyard.monitoring).

    All forecasts, and of the other requests the newest MOST_RECORDS: a busy model has millions.
    """
    forecasts: list[Mapping[str, Any]] = []
    others: deque[Mapping[str, Any]] = deque(maxlen=MOST_RECORDS)
    after: int | None = 0
    path, period = f"/models/{quote(model, safe='')}/predictions", {"since": begin.isoformat(), "limit": str(PAGE)}
    while after is not None:
        page = ask_serving(path, after=str(after), **period)
        for record in page["predictions"]:
            (forecasts if record["about"] else others).append(record)
        after = page["next"]
    return rows_of([*forecasts, *others])


@task(name="observe", persist_result=False)
def observe(tags: Mapping[str, str], days: list[str]) -> dict[tuple[str, str], bool]:
    """Return whether it rained on days that are long enough ago to be known, by place and day."""
    newest = datetime.now(UTC).date() - timedelta(days=2)
    known = sorted(day for day in map(date.fromisoformat, days) if day <= newest)
    if not known:
        return {}
    place = truth.place_of(tags)
    # As many days for few forecasts as for many: the cache then has them for all runs of a day.
    first = min(known[0], newest - timedelta(days=90))
    observed = fetch_archive(
        WeatherSettings().weather_archive_url, place, first, newest, GapLimits(max_gap_days=5, max_filled_share=0.2)
    )
    return {(place.name, day): wet for day, wet in truth.was_wet(observed, float(tags["wet_day_mm"])).items()}


@task(name="log-check", task_run_name="{version.name}", persist_result=False)
def log_check(version: ModelVersion, verdict: Verdict) -> str:
    """Log what a check came to as a run in MLflow; return the run's address."""
    experiment = mlflow.set_experiment(EXPERIMENT)
    tags = {
        "model": version.name,
        "model_version": str(version.version),
        "verdict": verdict.word,
        "reasons": verdict.text,
        **tracking.flow_run_tags(),
    }
    with mlflow.start_run(run_name=f"{version.name} v{version.version}", tags=tags) as run:
        mlflow.log_metrics(dict(verdict.metrics))
        mlflow.log_dict(as_table(drift_table(verdict.shifts)), DRIFT)
        mlflow.log_dict(as_table(verdict.forecasts), FORECASTS)
    return f"{tracking.TrackingSettings().mlflow_ui_url.rstrip('/')}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"


@task(name="retrain", task_run_name="{version.name}", persist_result=False)
def retrain(version: ModelVersion) -> str:
    """Run once more what trained a version, on the data of now, once for each version; return what was done."""
    trained_by = MlflowClient().get_run(str(version.run_id)).data.tags.get("prefect.flow_run_id")
    with get_client(sync_client=True) as client:
        try:
            origin = client.read_flow_run(UUID(trained_by or ""))
        except (ObjectNotFound, ValueError):
            return f"{version.name} is not trained again: the run that trained it is no longer there."
        if origin.deployment_id is None:
            return f"{version.name} is not trained again: no deployment trained it."
        run = client.create_flow_run_from_deployment(
            origin.deployment_id,
            parameters=origin.parameters,
            name=f"{origin.name}-again",
            tags=["retraining"],
            idempotency_key=f"retrain {version.name} {version.version}",
        )
    return f"{version.name} is trained again by the run {run.name}."


def training_tables(version: ModelVersion) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the sample of the training data and the holdout that a version left in MLflow.

    Raises:
        DataError: It left none.
    """
    run = f"runs:/{version.run_id}"
    try:
        sample, holdout = (from_table(mlflow.artifacts.load_dict(f"{run}/{name}")) for name in (SAMPLE, HOLDOUT))
    except (MlflowException, OSError, ValueError) as error:
        raise DataError(
            f"{version.name} version {version.version} left no {SAMPLE} and {HOLDOUT} to compare with: train it again."
        ) from error
    return sample, holdout


@task(name="check", task_run_name="{model}", persist_result=False)
def check_model(model: str, window_days: int, limits: AlertThresholds) -> tuple[ModelVersion, Verdict, str]:
    """Check one model's champion; return it, the verdict and the address of the run in MLflow that holds it."""
    version = registry.champion(model)
    if version is None:
        raise DataError(f"{model} has no champion to check.")
    sample, holdout = training_tables(version)
    forecasts_rain = "wet_day_mm" in version.tags
    if forecasts_rain:
        try:
            ask_for_forecast(model)
        except (SourceUnreachableError, RefusedError) as error:
            get_run_logger().warning("There is no forecast of %s today. %s", model, error)
    rows = fetch_predictions(model, datetime.now(UTC) - timedelta(days=window_days))
    known: dict[tuple[str, str], bool] = {}
    if forecasts_rain and (days := sorted(set(rows[DAY]) - {""})):
        try:
            known = observe(version.tags, days)
        except (SourceUnreachableError, DataError) as error:
            get_run_logger().warning("It is not known whether the forecasts of %s came true. %s", model, error)
    verdict = assess(rows, sample, holdout, known, limits)
    return version, verdict, log_check(version, verdict)


def report(checks: Mapping[str, tuple[ModelVersion, Verdict, str]]) -> None:
    """Tell the run's page and its log what was found."""
    lines = []
    for model, (version, verdict, url) in checks.items():
        lines.append(f"- [{model} version {version.version}]({url}): **{verdict.word}**. {verdict.text}")
        print(f"{model} version {version.version}: {verdict.word}. {verdict.text}")
    create_markdown_artifact("# Are the champions still right?\n\n" + "\n".join(lines), key="monitoring-report")


@flow(name="monitor", log_prints=True, persist_result=False)
def monitor(
    models: list[ModelName] = [],  # noqa: B006 - a form's default
    window_days: WindowDays = 30,
    limits: AlertThresholds = AlertThresholds(),
    retrain_on_alert: bool | None = None,
) -> State[None]:
    """Compare recent predictions with the training data, and forecasts with what happened since.

    A run that has something to tell ends in the state Alert, which is mailed.

    Args:
        models: Names of registered models; without any, all that the serving API answers with.
        window_days: How many days back predictions count.
        limits: When to raise an alert.
        retrain_on_alert: Whether an alert has the model trained again; unset, MONITOR_RETRAIN says.
    """
    tracking.require_server()
    names = models or served_models()
    futures = check_model.map(names, unmapped(window_days), unmapped(limits))
    futures.wait()
    results = {name: future.state.result(raise_on_failure=False) for name, future in zip(names, futures, strict=True)}
    checks = {name: result for name, result in results.items() if isinstance(result, tuple)}
    failed = {name: result for name, result in results.items() if not isinstance(result, tuple)}
    if checks:
        report(checks)
    alerts = {name: found for name, found in checks.items() if found[1].word == "alert"}
    told = [f"{name} version {version.version}: {verdict.text}" for name, (version, verdict, _) in alerts.items()]
    if MonitorSettings().monitor_retrain if retrain_on_alert is None else retrain_on_alert:
        told += [retrain(version) for version, _, _ in alerts.values()]
    if failed:
        told += [f"{name}: {error}" for name, error in failed.items()]
        return Failed(message=" ".join(told))
    if alerts:
        return Completed(name=ALERT, message=" ".join(told))
    return Completed(message=f"{len(checks)} models checked." if checks else "No model is served yet.")
