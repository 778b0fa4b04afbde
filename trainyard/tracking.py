"""What a training leaves in MLflow: a run with its candidates beneath it, and a registered model version."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from time import time
from typing import Any

import httpx
import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.pandas_dataset import PandasDataset, from_pandas
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from prefect import runtime
from prefect.utilities.urls import url_for
from pydantic_settings import BaseSettings, SettingsConfigDict
from sklearn.base import BaseEstimator

from trainyard.errors import TrackingUnreachableError
from trainyard.evaluation import as_table

# The newest flow run that ended in this training, and its component; an unchanged re-run trains nothing anew.
LAST_RUN, LAST_COMPONENT = "prefect.last_flow_run_id", "prefect.last_subflow_run_id"
SERVING_PACKAGES = ("scikit-learn", "skops", "pandas", "numpy")


class TrackingSettings(BaseSettings):
    """Settings of tracking; MLflow's client reads its own (MLFLOW_TRACKING_URI and so on)."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    mlflow_ui_url: str = "http://localhost:5001"
    """MLflow's address in a person's browser."""


@dataclass(frozen=True)
class Trial:
    """A candidate of a search: what it was, and how it did; a candidate that failed has an error."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The data of a training: features and target in one frame, and where they come from."""

    name: str
    source: str
    """An address, or a file's path, or the function that makes the data."""
    frame: pd.DataFrame
    target: str


@dataclass(frozen=True)
class TrainingRecord:
    """What is to be logged of a training."""

    experiment: str
    model: str
    estimator: BaseEstimator
    inputs: pd.DataFrame
    """Some rows of features: the input example, from which the signature is taken."""
    dataset: Dataset
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By file name; trainyard.evaluation makes those that the dashboard and the monitor look for."""
    trials: Sequence[Trial] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the run and of the registered version."""
    trusted_types: Sequence[str] = ()
    """Types beyond skops's own that the model's file may hold, each of them reviewed."""


@dataclass(frozen=True)
class Registered:
    """A training as MLflow knows it."""

    model: str
    version: int
    experiment_id: str
    run_id: str

    @property
    def run_url(self) -> str:
        """The run's page."""
        return f"{_ui()}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    @property
    def version_url(self) -> str:
        """The version's page."""
        return f"{_ui()}/#/models/{self.model}/versions/{self.version}"


def _ui() -> str:
    return TrackingSettings().mlflow_ui_url.rstrip("/")


def require_server(timeout_seconds: float = 5.0) -> None:
    """Raise TrackingUnreachableError at once where MLflow's client would try for minutes."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        # Without certificates where none is asked for: reading them takes longer than the request.
        transport = httpx.HTTPTransport(retries=2, verify=uri.startswith("https"))
        with httpx.Client(transport=transport, timeout=timeout_seconds) as client:
            client.get(f"{uri.rstrip('/')}/health").raise_for_status()
    except httpx.HTTPError as error:
        raise TrackingUnreachableError(
            f"MLflow does not answer at {uri} ({error}). Start it, or set MLFLOW_TRACKING_URI to where it is."
        ) from error


def log_training(training: TrainingRecord) -> Registered:
    """Log a run with its candidates and register its model; call it in a flow run, to which it links.

    The model is registered last, so that a failure before leaves a failed run and no version.
    """
    experiment = mlflow.set_experiment(training.experiment)
    tags = {**training.tags, "model": training.model}
    with mlflow.start_run(run_name=runtime.flow_run.name, tags=tags | flow_run_tags()) as run:
        mlflow.log_params(dict(training.params))
        mlflow.log_metrics(dict(training.metrics))
        mlflow.log_input(describe(training.dataset), "training")
        log_trials(training.trials, run.info.run_id, experiment.experiment_id, training.tags)
        for name, figure in training.figures.items():
            mlflow.log_figure(figure, name)
        for name, table in training.tables.items():
            mlflow.log_dict(as_table(table), name)
        model = mlflow.sklearn.log_model(
            training.estimator,
            name="model",
            signature=infer_signature(training.inputs, training.estimator.predict(training.inputs)),
            input_example=training.inputs,
            serialization_format="skops",
            skops_trusted_types=list(training.trusted_types),
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
        )
        registered = mlflow.register_model(model.model_uri, training.model, tags=tags)
        mlflow.set_tag("model_version", registered.version)
    return Registered(training.model, int(registered.version), experiment.experiment_id, run.info.run_id)


def describe(dataset: Dataset) -> PandasDataset:
    """Return MLflow's description of a data set: source, schema and digest."""
    source: DatasetSource
    if dataset.source.startswith(("http://", "https://")):
        source = HTTPDatasetSource(dataset.source)  # type: ignore[no-untyped-call]
    else:
        source = CodeDatasetSource(tags={"source": dataset.source})
    return from_pandas(dataset.frame, source=source, targets=dataset.target, name=dataset.name)


def flow_run_tags() -> dict[str, str]:
    """Return the tags that lead from a run to the flow run that somebody started, and to its component."""
    root = runtime.flow_run.root_flow_run_id
    if root is None:
        return {}
    url = url_for("flow-run", root) or ""
    return {
        "prefect.flow_run_id": root,
        "prefect.flow_run_url": url,
        LAST_RUN: root,
        LAST_COMPONENT: str(runtime.flow_run.id),
        "mlflow.note.content": f"Made by [this Prefect run]({url}).",
    }


def log_trials(trials: Sequence[Trial], parent: str, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Log each candidate as a run beneath the parent run."""
    client = MlflowClient()

    def log(trial: Trial) -> None:
        child = client.create_run(
            experiment_id, run_name=trial.name, tags={**tags, "mlflow.parentRunId": parent, "candidate": trial.name}
        )
        now = int(time() * 1000)
        client.log_batch(
            child.info.run_id,
            metrics=[Metric(name, value, now, 0) for name, value in trial.metrics.items()],
            params=[Param(name, str(value)) for name, value in trial.params.items()],
        )
        if trial.error:
            client.set_tag(child.info.run_id, "error", trial.error)
        client.set_terminated(child.info.run_id, "FAILED" if trial.error else "FINISHED")

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(log, trials))


def mark_reused(registered: Registered) -> bool:
    """Let this flow run stand for an earlier one, of which nothing has changed; False if it was deleted since."""
    client = MlflowClient()
    try:
        client.get_model_version(registered.model, str(registered.version))
        newest = [RunTag(tag, value) for tag, value in flow_run_tags().items() if tag in (LAST_RUN, LAST_COMPONENT)]
        client.log_batch(registered.run_id, tags=newest)
        return True
    except MlflowException as error:
        # The latter is its word for a run in the bin: nothing else about these tags could be wrong.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
