"""What of an installation must survive: an upgrade, a backup and its restore."""

from typing import Any

from infra.testing.stack import Stack
from trainyard.contract import Record, ServingPath

MODEL = "rain-tomorrow"


def predict(stack: Stack) -> dict[str, Any] | None:
    """Return the champion's answer for its own example, or None while none is served."""
    with stack.serving() as client:
        champion = client.get(ServingPath.MODELS).raise_for_status().json()["models"].get(MODEL)
        if champion is None:
            return None
        answer = client.post(ServingPath.of_model(MODEL, "predict"), json=champion["example"])
        prediction: dict[str, Any] = answer.raise_for_status().json()
        return prediction


def recorded_predictions(stack: Stack) -> list[dict[str, Any]]:
    """Return the recorded predictions, as the last release would show them."""
    with stack.serving() as client:
        answer = client.get(ServingPath.of_model(MODEL, "predictions")).raise_for_status()
    records: list[dict[str, Any]] = answer.json()["predictions"]
    added = {"shadow", Record.PREDICTION_ID, Record.CLASSES, Record.LABELS}  # since 0.3.0
    return [{name: value for name, value in record.items() if name not in added} for record in records]


def assert_survived(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Assert that an installation has all that another one had, which may have gone on meanwhile."""
    assert after["runs"].items() >= before["runs"].items()
    assert after["deployments"].items() >= before["deployments"].items()
    assert after["versions"] == before["versions"]
    assert after["aliases"] == before["aliases"]
    assert all(record in after["predictions"] for record in before["predictions"])


def read_installation(stack: Stack) -> dict[str, Any]:
    """Return everything of an installation that must survive."""
    with stack.prefect() as api:
        deployments = api.post("/deployments/filter", json={}).raise_for_status().json()
    with stack.mlflow() as api:
        model = api.get("/registered-models/get", params={"name": MODEL}).raise_for_status().json()["registered_model"]
    return {
        "runs": {run["id"]: run["state"]["type"] for run in stack.flow_runs("weather-pipeline")},
        "deployments": {deployment["name"]: deployment["id"] for deployment in deployments},
        "versions": {version["version"]: version["run_id"] for version in stack.model_versions()},
        "aliases": {alias["alias"]: alias["version"] for alias in model["aliases"]},
        "accounts": stack.variables(),
        "predictions": recorded_predictions(stack),
    }
