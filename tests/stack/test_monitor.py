"""Monitoring in the stack: what serving recorded, beside the training data and beside what happened."""

import json
import random
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

MODEL = "rain-tomorrow"
DRIFTED = 60


@pytest.fixture(scope="module")
def served(stack: Stack) -> Iterator[httpx.Client]:
    """The serving API, once the first run's champion answers."""
    stack.wait_for_first_run()
    variables = stack.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    with httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30) as client:
        wait_until(lambda: MODEL in client.get("/models").json()["models"], 30, "the champion")
        yield client


def monitor(stack: Stack, **parameters: Any) -> dict[str, Any]:
    """Run the monitor for the model as a person does; return the run."""
    arguments = shlex.quote(json.dumps({"models": [MODEL], **parameters}))
    stack.shell(f"make run DEPLOYMENT=monitor PARAMETERS={arguments}", check=False)
    return stack.flow_runs("monitor")[0]


def newest_check(stack: Stack) -> dict[str, Any]:
    """Return tags and metrics of the newest run in MLflow's experiment `monitoring`."""
    with stack.mlflow() as api:
        found = api.get("/experiments/get-by-name", params={"experiment_name": "monitoring"}).raise_for_status()
        query = {"experiment_ids": [found.json()["experiment"]["experiment_id"]], "max_results": 1}
        (run,) = api.post("/runs/search", json=query).raise_for_status().json()["runs"]
    data = run["data"]
    return {kind: {one["key"]: one["value"] for one in data[kind]} for kind in ("tags", "metrics")}


def remember(stack: Stack, model: str, days: list[str]) -> None:
    """Let forecasts of past days be on record, as if they had been made then: only time makes real ones."""
    first_row = "json_build_object('columns', {0}->'columns', 'data', json_build_array({0}->'data'->0))"
    inputs, outputs = first_row.format("inputs"), first_row.format("outputs")
    for day in days:
        about = json.dumps({"place": "Seattle, Washington, United States", "days": [day]})
        stack.exec(
            "postgres", "psql", "--username=postgres", "--dbname=serving", "--quiet", "--set=ON_ERROR_STOP=1", "--command",
            f"INSERT INTO predictions (at, model, version, inputs, outputs, about) SELECT at, model, version,"
            f" {inputs}, {outputs}, '{about}' FROM predictions WHERE model = '{model}' AND about IS NOT NULL ORDER BY id LIMIT 1",
        )  # fmt: skip


def test_a_champion_without_predictions_gets_its_forecast_and_no_verdict(stack: Stack, served: httpx.Client) -> None:
    run = monitor(stack, limits={"min_predictions": 10_000, "min_scored": 1000})
    assert run["state"]["name"] == "Completed", run["state"]
    check = newest_check(stack)
    assert check["tags"]["verdict"] == "too-few"
    assert check["tags"]["prefect.flow_run_id"] == run["id"]

    def forecast() -> list[dict[str, Any]]:
        page = served.get(f"/models/{MODEL}/predictions", params={"limit": "1000"}).raise_for_status().json()
        return [record for record in page["predictions"] if record["about"]]

    assert wait_until(forecast, 30, "the forecast's record")


def test_forecasts_are_scored_when_the_truth_is_known(stack: Stack, served: httpx.Client) -> None:
    today = datetime.now(UTC).date()
    remember(stack, MODEL, [(today - timedelta(days=back)).isoformat() for back in range(10, 20)])
    monitor(stack, limits={"min_predictions": 10_000, "min_scored": 1000})
    metrics = newest_check(stack)["metrics"]
    assert metrics["scored"] == 10
    assert 0 < metrics["live_brier"] < 1
    assert 0 < metrics["holdout_brier"] < 0.3


def test_drift_is_an_alert_a_mail_and_another_training(
    stack: Stack, served: httpx.Client, mailbox: httpx.Client
) -> None:
    example: Any = served.get("/models").json()["models"][MODEL]["example"]
    row = example if isinstance(example, dict) else example[0]
    chance = random.Random(1)
    rows = [{name: float(value) * 5 + 30 + chance.random() for name, value in row.items()} for _ in range(DRIFTED)]
    served.post(f"/models/{MODEL}/predict", json=rows).raise_for_status()

    def alerted() -> dict[str, Any] | None:
        run = monitor(stack, retrain_on_alert=True)  # the records are written just behind the answer
        return run if run["state"]["name"] == "Alert" else None

    run = wait_until(alerted, 60, "the alert")
    assert run["state"]["type"] == "COMPLETED"
    assert "of the inputs have drifted" in run["state"]["message"]
    assert newest_check(stack)["tags"]["verdict"] == "alert"

    def mail() -> dict[str, Any] | None:
        listed = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
        found = [mail for mail in listed if mail["Subject"].endswith(f"monitor ended as Alert: {run['name']}")]
        return mailbox.get(f"/message/{found[0]['ID']}").raise_for_status().json() if found else None

    text = wait_until(mail, 60, "the mail about the alert", every=0.5)["Text"]
    assert "of the inputs have drifted" in text
    assert "drifted_share" in text

    monitor(stack, retrain_on_alert=True)
    again = [one for one in stack.flow_runs("weather-pipeline") if "retraining" in one["tags"]]
    assert len(again) == 1, "once for each version"
    assert f"is trained again by the run {again[0]['name']}." in run["state"]["message"]
    assert "mail" in again[0]["tags"]
