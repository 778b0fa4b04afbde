"""What goes to MLflow: one run for each training, its model, and the alias `champion`."""

from dataclasses import dataclass
from importlib.metadata import version

import httpx
import mlflow
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.pandas_dataset import from_pandas
from mlflow.models import infer_signature

from flows.weather.features import TARGET, Examples
from flows.weather.model import Training, draw

EXPERIMENT = "weather"
MODEL = "rain-tomorrow"
CHAMPION = "champion"
SERVING_PACKAGES = ("scikit-learn", "skops", "pandas", "numpy")


class TrackingUnreachableError(ConnectionError):
    """MLflow does not answer; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class Registered:
    """A training as MLflow knows it."""

    experiment_id: str
    run_id: str
    version: int
    is_champion: bool


def require_server(timeout_seconds: float = 5.0) -> None:
    """Raise TrackingUnreachableError at once where MLflow's client would try for minutes."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=2), timeout=timeout_seconds) as client:
            client.get(f"{uri.rstrip('/')}/health").raise_for_status()
    except httpx.HTTPError as error:
        raise TrackingUnreachableError(
            f"MLflow does not answer at {uri} ({error}). Start it, or set MLFLOW_TRACKING_URI to where it is."
        ) from error


def log_training(
    examples: Examples,
    training: Training,
    settings: dict[str, float],
    run_name: str,
    flow_run: dict[str, str],
) -> Registered:
    """Log a run, register its model and let it become champion if it is better.

    `settings` become parameters of the run, `flow_run` its tags (id and url of the Prefect run). The
    model is registered last, so that a failure before leaves a failed run and no version.
    """
    origin, frame = examples.origin, examples.frame
    experiment = mlflow.set_experiment(EXPERIMENT)
    tags = {"data_source": origin.source, "place": origin.place.name}
    links = {f"prefect.flow_run_{key}": value for key, value in flow_run.items()}
    note = f"Trained by the Prefect run [{run_name}]({flow_run['url']})."
    with mlflow.start_run(run_name=run_name, tags=tags | links, description=note) as run:
        mlflow.log_params(describe(examples, training) | settings)
        mlflow.log_metrics(training.metrics)
        source = HTTPDatasetSource(origin.url)  # type: ignore[no-untyped-call]
        mlflow.log_input(from_pandas(frame, source=source, targets=TARGET, name=origin.source), "training")
        for name, figure in draw(training).items():
            mlflow.log_figure(figure, name)
        inputs = training.holdout.drop(columns=TARGET).head(5)
        model = mlflow.sklearn.log_model(
            training.estimator,
            name="model",
            signature=infer_signature(inputs, training.estimator.predict(inputs)),
            input_example=inputs,
            serialization_format="skops",
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
        )
        registered = mlflow.register_model(model.model_uri, MODEL, tags=tags)
        is_champion = promote_if_better(int(registered.version), training.metrics["model_brier"])
    return Registered(experiment.experiment_id, run.info.run_id, int(registered.version), is_champion)


def describe(examples: Examples, training: Training) -> dict[str, str | float]:
    """Return what the model was fitted on, as parameters of its run."""
    place, frame = examples.origin.place, examples.frame
    return {
        "place": place.name,
        "latitude": place.latitude,
        "longitude": place.longitude,
        "wet_day_mm": examples.wet_day_mm,
        "first_day": str(frame.index.min().date()),
        "last_day": str(frame.index.max().date()),
        "train_days": len(training.train),
        "holdout_days": len(training.holdout),
        "holdout_wet_share": round(float(training.holdout[TARGET].mean()), 4),
        "features": len(frame.columns) - 1,
    }


def promote_if_better(candidate: int, brier: float) -> bool:
    """Make the version champion if there is none or its Brier score is lower than the champion's.

    Each score comes from its own run's holdout, so versions of different places or periods compare
    only roughly.
    """
    client = MlflowClient()
    reigning = client.get_registered_model(MODEL).aliases.get(CHAMPION)
    if reigning is not None:
        run = client.get_run(str(client.get_model_version(MODEL, reigning).run_id))
        if brier >= run.data.metrics["model_brier"]:
            return False
    client.set_registered_model_alias(MODEL, CHAMPION, str(candidate))
    return True
