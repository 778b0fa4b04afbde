"""Registered models for the service that answers with champions, and a client's wait for them."""

from typing import Any

import httpx
import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator

from infra.testing.waiting import wait_until

KEY = "a-key-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def register(
    name: str,
    estimator: BaseEstimator,
    inputs: pd.DataFrame,
    target: Any,
    *,
    types: list[str] | None = None,
    form: str = "skops",
    champion: bool = True,
    tags: dict[str, str] | None = None,
) -> int:
    """Fit, log and register an estimator; return its version."""
    fitted = estimator.fit(inputs, target)
    arguments = {"skops_trusted_types": types or ["numpy.dtype"]} if form == "skops" else {}
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            fitted,
            name="model",
            signature=infer_signature(inputs, fitted.predict(inputs)),
            input_example=inputs.head(3),
            serialization_format=form,
            pip_requirements=["scikit-learn"],
            **arguments,
        )
    version = int(mlflow.register_model(logged.model_uri, name, tags=tags).version)
    if champion:
        crown(name, version)
    return version


def crown(name: str, version: int) -> None:
    """Give a version the alias."""
    MlflowClient().set_registered_model_alias(name, "champion", str(version))


def wait_for(api: httpx.Client, name: str, version: int) -> None:
    """Wait until a version answers."""

    def answers() -> bool:
        found = api.get("/models").json()["models"].get(name)
        return bool(found and found["version"] == version)

    wait_until(answers, 30, f"{name} version {version}")
