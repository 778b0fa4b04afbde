"""Registered models for tests of serving, and waiting until one is served."""

from typing import Any

import httpx
import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator

from infra.testing.waiting import wait_until
from trainyard.contract import Alias

KEY = "a-key-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
DAY = {"wind": 0.5, "rain": 1.0}
"""A row of the models that record their predictions."""


def client(address: str) -> httpx.Client:
    """Return a client of the service, with the key."""
    return httpx.Client(base_url=address, headers=HEADERS, timeout=30)


def predict(api: httpx.Client, name: str, rows: Any = DAY) -> dict[str, Any]:
    """Return the answer to rows."""
    answer = api.post(f"/models/{name}/predict", json=rows)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


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
        set_champion(name, version)
    return version


def set_champion(name: str, version: int) -> None:
    """Set the alias on a version."""
    MlflowClient().set_registered_model_alias(name, Alias.CHAMPION, str(version))


def wait_for(api: httpx.Client, name: str, version: int) -> None:
    """Wait until a version is served."""

    def is_served() -> bool:
        found = api.get("/models").json()["models"].get(name)
        return bool(found and found["version"] == version)

    wait_until(is_served, 30, f"{name} version {version}")
