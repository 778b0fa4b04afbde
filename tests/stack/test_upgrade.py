"""The volumes of the last release under this version: nothing is lost, and the stack goes on working."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from infra.testing.stack import (
    LAST_RELEASE,
    LAST_VERSION,
    PORTS,
    Stack,
    copy_checkout,
    copy_last_release,
    has_last_release,
)
from infra.testing.waiting import wait_until
from trainyard.contract import Record, ServingPath

MODEL = "rain-tomorrow"


@dataclass
class Upgrade:
    """A stack after the upgrade, and what the last release had recorded before it."""

    stack: Stack
    before: dict[str, Any]


def serving(stack: Stack) -> httpx.Client:
    """Return a client of serving with the key of `make env`."""
    variables = stack.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    return httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30)


def predict(stack: Stack) -> dict[str, Any] | None:
    """Return the champion's answer for its own example, or None while none is served."""
    with serving(stack) as client:
        champion = client.get(ServingPath.MODELS).raise_for_status().json()["models"].get(MODEL)
        if champion is None:
            return None
        answer = client.post(ServingPath.of_model(MODEL, "predict"), json=champion["example"])
        prediction: dict[str, Any] = answer.raise_for_status().json()
        return prediction


def recorded_predictions(stack: Stack) -> list[dict[str, Any]]:
    with serving(stack) as client:
        answer = client.get(ServingPath.of_model(MODEL, "predictions")).raise_for_status()
    records: list[dict[str, Any]] = answer.json()["predictions"]
    added = {"shadow", Record.PREDICTION_ID, Record.CLASSES, Record.LABELS}  # since 0.3.0
    return [{name: value for name, value in record.items() if name not in added} for record in records]


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


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Upgrade]:
    """Train and predict with the last release, stop it, and start this version on its volumes."""
    if not has_last_release():
        missing = f"The commit {LAST_RELEASE} of version {LAST_VERSION} is not in this clone"
        if os.environ.get("TRAINYARD_REQUIRE_DOCKER"):
            pytest.fail(f"{missing}, and TRAINYARD_REQUIRE_DOCKER requires it.")
        pytest.skip(missing)
    old_home, home = tmp_path_factory.mktemp("last-release"), tmp_path_factory.mktemp("checkout")
    copy_last_release(old_home)
    copy_checkout(home)
    stack = Stack(home)
    installation = {name: stack.environment[name] for name in ("COMPOSE_PROJECT_NAME", *PORTS)}
    last = Stack.of_last_release(old_home, **installation)
    try:
        last.up("worker", "serving")  # and what they depend on
        last.wait_for_first_run()
        wait_until(lambda: predict(last), 60, "the champion to be served", every=1)
        wait_until(lambda: recorded_predictions(last), 30, "the recorded prediction", every=0.5)
        before = read_installation(last)
        last.shell("docker compose down")
        stack.up()
        yield Upgrade(stack, before)
    finally:
        if request.session.testsfailed:
            print(stack.logs("60"))
        stack.remove()


def test_nothing_is_lost(upgrade: Upgrade) -> None:
    after = read_installation(upgrade.stack)

    assert {**after, "deployments": None} == {**upgrade.before, "deployments": None}
    assert after["deployments"].items() >= upgrade.before["deployments"].items()


def test_the_champion_of_the_last_release_is_served(upgrade: Upgrade) -> None:
    prediction = wait_until(lambda: predict(upgrade.stack), 60, "the champion to be served", every=1)

    assert str(prediction["version"]) == upgrade.before["aliases"]["champion"]
    assert prediction["predictions"]


def test_a_new_run_completes(upgrade: Upgrade) -> None:
    output = upgrade.stack.shell("make run DEPLOYMENT=weather-pipeline").stdout

    assert "Completed" in output.splitlines()[-1]
    assert "on the same holdout" in output, "the champion of the last release is compared"
    assert len(upgrade.stack.flow_runs("weather-pipeline")) == len(upgrade.before["runs"]) + 1
