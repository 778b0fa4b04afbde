"""Monitoring in the stack: recorded predictions against the training data and the ground truth."""

import json
import random
import shlex
from typing import Any

import httpx

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import (
    MONITORING_EXPERIMENT,
    Record,
    Resource,
    RunTag,
    ServingPath,
    State,
    Tag,
    Verdict,
)

MODEL = "rain-tomorrow"
DRIFTED_ROWS = 60
TOO_FEW = {"min_predictions": 10_000, "min_scored": 1000}
# Copies the newest forecast to each of ten past days: real forecasts of past days would take as many days.
PAST_FORECASTS = f"""
INSERT INTO predictions (at, model, version, inputs, outputs, about)
SELECT at, model, version,
    json_build_object('columns', inputs->'columns', 'data', json_build_array(inputs->'data'->0)),
    json_build_object('columns', outputs->'columns', 'data', json_build_array(outputs->'data'->0)),
    json_build_object(
        '{Record.SUBJECT}', about->'{Record.SUBJECT}', '{Record.TIMES}', json_build_array(to_char(day, 'YYYY-MM-DD'))
    )
FROM
    (SELECT * FROM predictions WHERE model = '{MODEL}' AND about IS NOT NULL ORDER BY id DESC LIMIT 1) AS newest,
    generate_series(current_date - 19, current_date - 10, interval '1 day') AS day
"""


def run_monitor(stack: Stack, **parameters: Any) -> dict[str, Any]:
    """Run the monitor for the model with `make run`; return the flow run."""
    arguments = shlex.quote(json.dumps({"models": [MODEL], **parameters}))
    stack.shell(f"make run DEPLOYMENT={Resource.MONITOR} PARAMETERS={arguments}", check=False)
    return stack.flow_runs(Resource.MONITOR)[0]


def list_checks(api: httpx.Client) -> list[dict[str, Any]]:
    """Return the monitor's runs in MLflow, the newest first."""
    found = api.get("/experiments/get-by-name", params={"experiment_name": MONITORING_EXPERIMENT}).raise_for_status()
    query = {"experiment_ids": [found.json()["experiment"]["experiment_id"]]}
    runs: list[dict[str, Any]] = api.post("/runs/search", json=query).raise_for_status().json()["runs"]
    return runs


def newest_check(stack: Stack) -> dict[str, Any]:
    """Return the tags and the metrics of the monitor's newest run in MLflow."""
    with stack.mlflow() as api:
        run, *_ = list_checks(api)
    return {kind: {item["key"]: item["value"] for item in run["data"][kind]} for kind in ("tags", "metrics")}


def forget_checks(stack: Stack) -> None:
    """Delete the monitor's runs in MLflow, so that an alert is a new one."""
    with stack.mlflow() as api:
        for run in list_checks(api):
            api.post("/runs/delete", json={"run_id": run["info"]["run_id"]}).raise_for_status()


def insert_past_forecasts(stack: Stack) -> None:
    """Record forecasts about ten past days."""
    options = ("--username=postgres", "--dbname=serving", "--quiet", "--set=ON_ERROR_STOP=1")
    stack.exec("postgres", "psql", *options, "--command", PAST_FORECASTS)


def test_the_monitor_requests_the_champions_forecasts(stack: Stack, served: httpx.Client) -> None:
    run = run_monitor(stack, limits=TOO_FEW)
    check = newest_check(stack)

    def forecasts() -> list[dict[str, Any]]:
        path = ServingPath.of_model(MODEL, "predictions")
        records = served.get(path, params={"limit": "1000"}).raise_for_status().json()["predictions"]
        return [record for record in records if record[Record.ABOUT]]

    assert run["state"]["name"] == "Completed", run["state"]
    assert check["tags"][Tag.VERDICT] == Verdict.TOO_FEW
    assert check["tags"][Tag.FLOW_RUN_ID] == run["id"]
    assert len(wait_until(forecasts, 30, "the record of the forecasts")[0][Record.ABOUT][Record.TIMES]) == 7


def test_forecasts_are_scored_when_the_ground_truth_is_known(stack: Stack, served: httpx.Client) -> None:
    insert_past_forecasts(stack)
    run_monitor(stack, limits=TOO_FEW)
    metrics = newest_check(stack)["metrics"]

    assert metrics["scored"] == 10
    assert 0 < metrics["live_brier"] < 1
    assert 0 < metrics["holdout_brier"] < 0.3


def test_drift_raises_an_alert_sends_a_mail_and_retrains_once(
    stack: Stack, served: httpx.Client, mailbox: httpx.Client
) -> None:
    example: Any = served.get(ServingPath.MODELS).json()["models"][MODEL]["example"]
    row = example if isinstance(example, dict) else example[0]
    noise = random.Random(1)
    rows = [{name: float(value) * 5 + 30 + noise.random() for name, value in row.items()} for _ in range(DRIFTED_ROWS)]
    served.post(ServingPath.of_model(MODEL, "predict"), json=rows).raise_for_status()
    forget_checks(stack)

    def alert() -> dict[str, Any] | None:
        run = run_monitor(stack, retrain_on_alert=True)  # serving writes its records after the response
        return run if run["state"]["name"] == State.ALERT else None

    def mail(run: dict[str, Any]) -> dict[str, Any] | None:
        listed = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
        found = [mail for mail in listed if mail["Subject"].endswith(f"monitor ended as {State.ALERT}: {run['name']}")]
        return mailbox.get(f"/message/{found[0]['ID']}").raise_for_status().json() if found else None

    run = wait_until(alert, 60, "the alert")
    text = wait_until(lambda: mail(run), 60, "the mail about the alert", every=0.5)["Text"]
    check = newest_check(stack)
    again = run_monitor(stack, retrain_on_alert=True)
    (retraining,) = [run for run in stack.flow_runs("weather-pipeline") if RunTag.RETRAINING in run["tags"]]

    assert run["state"]["type"] == "COMPLETED"
    assert again["state"]["name"] == State.ALERT_PERSISTS
    assert "of the inputs have drifted" in run["state"]["message"]
    assert f"is retrained by the run {retraining['name']}." in run["state"]["message"]
    assert check["tags"][Tag.VERDICT] == Verdict.ALERT
    assert "of the inputs have drifted" in text
    assert "drifted_share" in text
    assert RunTag.MAIL in retraining["tags"]
