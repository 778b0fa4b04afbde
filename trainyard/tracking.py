"""Logs a training to MLflow: a run with a child run for each candidate, and a registered model version."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from time import monotonic, sleep, time
from typing import Any

import httpx
import mlflow
import pandas as pd
import skops.io
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.pandas_dataset import PandasDataset, from_pandas
from mlflow.entities import Experiment, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from prefect import runtime
from prefect.utilities.urls import url_for
from pydantic_settings import BaseSettings, SettingsConfigDict
from sklearn.base import BaseEstimator

from trainyard.contract import MLflowPage, ModelMetadata, Tag
from trainyard.errors import TrackingUnreachableError, UnsafeModelError
from trainyard.evaluation import as_table
from trainyard.reviewed_types import PACKAGES, REVIEWED_TYPES, modules_of

POLL_SECONDS = 0.5
DUPLICATE_ROW = ("UniqueViolation", "UNIQUE constraint failed")
"""How MLflow's error names a row that Postgres or SQLite has already."""


class TrackingSettings(BaseSettings):
    """Settings of tracking; MLflow's client reads its own variables (MLFLOW_TRACKING_URI and others)."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    mlflow_ui_url: str = "http://localhost:5001"
    """MLflow's address in a person's browser."""
    mlflow_wait_seconds: float = 90.0
    """How long a run waits for a server that does not answer, such as one that restarts."""


@dataclass(frozen=True)
class Trial:
    """The evaluation of a candidate: its parameters and its metrics, or the error with which it failed."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    error: str | None = None
    is_pruned: bool = False
    """Whether it was given up after some folds, of which the metrics are; its run in MLflow is KILLED."""


@dataclass(frozen=True)
class Dataset:
    """The data of a training: features and target in one frame, and their source."""

    name: str
    source: str
    """A URL, a file's path, or the name of the function that makes the data."""
    frame: pd.DataFrame
    target: str


@dataclass(frozen=True)
class TrainingRecord:
    """A training as it is logged to MLflow."""

    experiment: str
    model: str
    estimator: BaseEstimator
    inputs: pd.DataFrame
    """Some rows of features: the input example, from which the model's signature is inferred."""
    dataset: Dataset
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By artifact path; `trainyard.evaluation` makes those of `contract.Artifact`."""
    trials: Sequence[Trial] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run and of the registered version."""
    trusted_types: Sequence[str] = ()
    """Types that the model's file contains beyond those of `trainyard.reviewed_types`; list only types that you reviewed.
    Serving needs them in its setting SERVING_TRUSTED_TYPES."""
    evaluated: BaseEstimator | None = None
    """The estimator that the metrics are of, where `estimator` was fitted again on all rows; later candidates are compared
    with it."""
    description: str = ""
    """What people should know about the version: Markdown."""
    question: str = ""
    """What the model answers, for the page of the model; one that somebody wrote there stays."""


@dataclass(frozen=True)
class Registered:
    """A logged training and the model version that it registered."""

    model: str
    version: int | None
    """None where the training taught nothing new and so registered no version."""
    experiment_id: str
    run_id: str

    @property
    def run_url(self) -> str:
        """The address of the run's page in MLflow."""
        return MLflowPage.run(_ui_address(), self.experiment_id, self.run_id)

    @property
    def version_url(self) -> str:
        """The address of the version's page in MLflow."""
        if self.version is None:
            return MLflowPage.model(_ui_address(), self.model)
        return MLflowPage.version(_ui_address(), self.model, self.version)


def _ui_address() -> str:
    return TrackingSettings().mlflow_ui_url.rstrip("/")


def require_server(wait_seconds: float | None = None) -> None:
    """Wait until MLflow answers: its client would retry each request for minutes, and say nothing meanwhile.

    Args:
        wait_seconds: How long; without it the setting `mlflow_wait_seconds`.

    Raises:
        TrackingUnreachableError: It does not answer in time.
    """
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    seconds = TrackingSettings().mlflow_wait_seconds if wait_seconds is None else wait_seconds
    deadline, said = monotonic() + seconds, False
    # Loading the certificates takes longer than the request, so they are loaded for HTTPS only.
    with httpx.Client(verify=uri.startswith("https"), timeout=5) as client:
        while True:
            try:
                client.get(f"{uri.rstrip('/')}/health").raise_for_status()
                return
            except httpx.HTTPError as error:
                reason = f"MLflow does not answer at {uri} ({error})."
                if monotonic() > deadline:
                    advice = "Start it, or set MLFLOW_TRACKING_URI to its address."
                    raise TrackingUnreachableError(f"{reason} {advice}") from error
            if not said:
                print(f"{reason} Waiting for it, for {seconds:.0f} s at most.")
                said = True
            sleep(POLL_SECONDS)


def log_training(training: TrainingRecord, *, register: bool = True) -> Registered:
    """Log a run with its candidates and register its model; inside a flow run, the run links to it.

    The model is registered last, so that a failure leaves a failed run and no version. Where the process was killed after
    that, the next attempt of the flow run finds the version and does not register it again.

    Args:
        training: The training.
        register: Without it the run has parameters, metrics and tags only: no candidates, no files and no version.
    """
    experiment = use_experiment(training.experiment)
    if register and (found := _find_registered(training, experiment.experiment_id)):
        return found
    try:
        return _log_run(training, experiment, register=register)
    except MlflowException as error:
        # MLflow's client repeats a request whose answer was lost, and its server refuses to store a run's output twice.
        if not any(text in str(error) for text in DUPLICATE_ROW):
            raise
        found = _find_registered(training, experiment.experiment_id) if register else None
        return found or _log_run(training, experiment, register=register)


def use_experiment(name: str) -> Experiment:
    """Make an experiment the current one, and have MLflow's UI open it on its runs.

    Without the tag the UI guesses, and opens an experiment on its traces of language models.
    """
    experiment = mlflow.set_experiment(name)
    if Tag.EXPERIMENT_KIND not in experiment.tags:
        MlflowClient().set_experiment_tag(experiment.experiment_id, Tag.EXPERIMENT_KIND, "custom_model_development")
    return experiment


def _log_run(training: TrainingRecord, experiment: Experiment, *, register: bool) -> Registered:
    tags = {**training.tags, Tag.MODEL: training.model}
    with mlflow.start_run(run_name=runtime.flow_run.name, tags=tags | flow_run_tags()) as run:
        mlflow.log_params(dict(training.params))
        mlflow.log_metrics(dict(training.metrics))
        mlflow.log_input(_mlflow_dataset(training.dataset), "training")
        if not register:
            return Registered(training.model, None, experiment.experiment_id, run.info.run_id)
        _log_trials(training.trials, run.info.run_id, experiment.experiment_id, training.tags)
        for name, figure in training.figures.items():
            mlflow.log_figure(figure, name)
        for name, table in training.tables.items():
            mlflow.log_dict(as_table(table), name)
        if training.evaluated is not None:
            tags[Tag.EVALUATED_MODEL] = _log_model(training, training.evaluated, "evaluated")
        registered = mlflow.register_model(_log_model(training, training.estimator, "model"), training.model, tags=tags)
        client = MlflowClient()
        if description := _describe(training):
            client.update_model_version(training.model, registered.version, description)
        if training.question and not client.get_registered_model(training.model).description:
            client.update_registered_model(training.model, training.question)
        mlflow.set_tag(Tag.MODEL_VERSION, registered.version)
    return Registered(training.model, int(registered.version), experiment.experiment_id, run.info.run_id)


def _log_model(training: TrainingRecord, estimator: BaseEstimator, name: str) -> str:
    """Log an estimator of a training with the active run; return its URI."""
    described = describe_model(estimator, training.inputs, training.dataset.frame, training.trusted_types)
    logged = mlflow.sklearn.log_model(estimator, name=name, **described)
    return str(logged.model_uri)


def _describe(training: TrainingRecord) -> str:
    refitted = (
        "The model was fitted again on all rows after its evaluation. Metrics, plots and holdout predictions are those of "
        f"the same estimator fitted without the holdout, which the tag `{Tag.EVALUATED_MODEL}` names."
    )
    return "\n\n".join(filter(None, [training.description, refitted if training.evaluated is not None else ""]))


def find_registered(model: str, version: int) -> Registered | None:
    """Return the training of a version, or None where its run was deleted."""
    client = MlflowClient()
    try:
        run = client.get_run(str(client.get_model_version(model, str(version)).run_id))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return Registered(model, version, run.info.experiment_id, run.info.run_id)


def _find_registered(training: TrainingRecord, experiment_id: str) -> Registered | None:
    """Return the version that an earlier attempt of the current flow run has registered of the same training, if any."""
    root = runtime.flow_run.root_flow_run_id
    if root is None:
        return None
    client, params = MlflowClient(), {name: str(value) for name, value in training.params.items()}
    condition = f"tags.`{Tag.FLOW_RUN_ID}` = '{root}' AND tags.`{Tag.MODEL}` = '{training.model}'"
    for run in client.search_runs([experiment_id], condition):
        if (run.data.params, run.data.metrics) != (params, dict(training.metrics)):
            continue
        for found in client.search_model_versions(f"run_id = '{run.info.run_id}'"):
            client.set_tag(run.info.run_id, Tag.MODEL_VERSION, found.version)
            client.set_terminated(run.info.run_id)  # whoever settled the attempt has ended it as failed
            return Registered(training.model, int(found.version), experiment_id, run.info.run_id)
    return None


def describe_model(
    estimator: BaseEstimator, inputs: pd.DataFrame, frame: pd.DataFrame, trusted_types: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what MLflow's `sklearn.log_model` and `sklearn.save_model` are told of a fitted estimator.

    Estimators of XGBoost and LightGBM are logged in the same way: alone, they are files of the same format as in a pipeline.

    Args:
        estimator: Predicts from frames like `inputs`.
        inputs: Some rows of features.
        frame: All rows.
        trusted_types: Types in the estimator's file beyond the reviewed ones.

    Raises:
        UnsafeModelError: The estimator cannot be saved without code, or with a type that nobody has reviewed.
    """
    types = types_of(estimator)
    if unknown := types - REVIEWED_TYPES.keys() - {*trusted_types}:
        raise UnsafeModelError(
            f"The model holds types that are not reviewed: {', '.join(sorted(unknown))}. Use others, or review these, pass "
            "them as trusted_types, and set SERVING_TRUSTED_TYPES."
        )
    return {
        # Of all rows: a column is required if none of them lacks it.
        "signature": infer_signature(frame[list(inputs.columns)], estimator.predict(inputs)),
        "input_example": inputs,
        "serialization_format": "skops",
        "skops_trusted_types": sorted(types),
        "pip_requirements": requirements_of(types),
        "metadata": describe_types(inputs, frame),
    }


def types_of(estimator: BaseEstimator) -> set[str]:
    """Return the types in an estimator's file that skops does not trust by itself.

    Raises:
        UnsafeModelError: skops cannot save the estimator.
    """
    try:
        return set(skops.io.get_untrusted_types(data=skops.io.dumps(estimator)))
    except Exception as error:
        raise UnsafeModelError(
            f"The model cannot be saved in a format that runs no code ({type(error).__name__}: {error}). It may hold a "
            "function or class that no module has."
        ) from error


def requirements_of(types: Iterable[str]) -> list[str]:
    """Return the packages that a model needs, pinned to the installed versions.

    Args:
        types: Types in its file that skops does not trust by itself.
    """
    modules = {"sklearn", "skops", "numpy", "scipy", "pandas"} | (modules_of(types) & PACKAGES.keys())
    return [_pin(PACKAGES.get(module, (module,))) for module in sorted(modules)]


def _pin(distributions: Sequence[str]) -> str:
    """Return the requirement of the installed one of some distributions of the same module."""
    for name in distributions:
        with suppress(PackageNotFoundError):
            return f"{name}=={version(name)}"
    raise PackageNotFoundError(distributions[0])


def describe_types(inputs: pd.DataFrame, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what a signature does not tell of the columns: pandas' types, and how a missing value is written.

    Args:
        inputs: Some rows of features.
        frame: All rows, in which missing values are looked for; it may have other columns too.
    """
    by_object = [name for name in inputs if inputs[name].dtype == object]
    seen = {name: pd.concat([part[name] for part in (inputs, frame) if name in part]) for name in by_object}
    with_nan = [str(name) for name, values in seen.items() if any(isinstance(v, float) for v in values[values.isna()])]
    dtypes = {str(name): str(dtype) for name, dtype in inputs.dtypes.items()}
    return {ModelMetadata.DTYPES: dtypes, ModelMetadata.MISSING_NAN: with_nan}


def _mlflow_dataset(dataset: Dataset) -> PandasDataset:
    """Return MLflow's record of a data set: source, schema and digest."""
    source: DatasetSource
    if dataset.source.startswith(("http://", "https://")):
        source = HTTPDatasetSource(dataset.source)  # type: ignore[no-untyped-call]
    else:
        source = CodeDatasetSource(tags={"source": dataset.source})
    return from_pandas(dataset.frame, source=source, targets=dataset.target, name=dataset.name)


def flow_run_tags() -> dict[str, str]:
    """Return the tags that link an MLflow run to the current top-level flow run and subflow; none outside a flow."""
    root = runtime.flow_run.root_flow_run_id
    if root is None:
        return {}
    url = url_for("flow-run", root) or ""
    return {
        Tag.FLOW_RUN_ID: root,
        Tag.FLOW_RUN_URL: url,
        Tag.SUBFLOW_RUN_ID: str(runtime.flow_run.id),
        Tag.LAST_FLOW_RUN_ID: root,
        Tag.LAST_SUBFLOW_RUN_ID: str(runtime.flow_run.id),
        Tag.NOTE: f"Made by [this Prefect run]({url}).",
    }


def _log_trials(trials: Sequence[Trial], parent: str, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Log each trial as a child of the run `parent`."""
    client = MlflowClient()

    def log(trial: Trial) -> None:
        child = client.create_run(
            experiment_id, run_name=trial.name, tags={**tags, Tag.PARENT_RUN_ID: parent, Tag.CANDIDATE: trial.name}
        )
        now = int(time() * 1000)
        client.log_batch(
            child.info.run_id,
            metrics=[Metric(name, value, now, 0) for name, value in trial.metrics.items()],
            params=[Param(name, str(value)) for name, value in trial.params.items()],
        )
        if trial.error:
            client.set_tag(child.info.run_id, Tag.ERROR, trial.error)
        status = "FAILED" if trial.error else "KILLED" if trial.is_pruned else "FINISHED"
        client.set_terminated(child.info.run_id, status)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(log, trials))


def mark_reused(registered: Registered) -> bool:
    """Mark an existing training as reused by the current flow run; return False if its run or version was deleted."""
    client, last = MlflowClient(), (Tag.LAST_FLOW_RUN_ID, Tag.LAST_SUBFLOW_RUN_ID)
    try:
        if registered.version is not None:
            client.get_model_version(registered.model, str(registered.version))
        tags = [RunTag(tag, value) for tag, value in flow_run_tags().items() if tag in last]
        client.log_batch(registered.run_id, tags=tags)
        return True
    except MlflowException as error:
        # MLflow raises INVALID_PARAMETER_VALUE for a deleted run.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
