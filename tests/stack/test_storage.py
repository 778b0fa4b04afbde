"""Retention in the stack, on Postgres and the object store; `make storage` as a person reads it; a disk that fills up."""

from typing import Any
from uuid import uuid4

import httpx

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import Resource, State

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


def log_deleted_run(stack: Stack) -> tuple[str, str]:
    """Log a run with a file as a person does, and have it deleted long ago; return its id and the path of its folder."""
    with stack.mlflow() as api:
        experiment = api.post("/experiments/create", json={"name": f"of-a-person-{uuid4().hex[:8]}"}).json()[
            "experiment_id"
        ]
        run = api.post("/runs/create", json={"experiment_id": experiment}).json()["run"]["info"]["run_id"]
        address = str(api.base_url).split("/api/")[0]
        file = f"{address}{ARTIFACTS}/{experiment}/{run}/artifacts/file.txt"
        httpx.put(file, content=b"x" * 3_000_000, auth=api.auth, timeout=30).raise_for_status()
        api.post("/runs/delete", json={"run_id": run}).raise_for_status()
    query = f"UPDATE runs SET deleted_time = 1 WHERE run_uuid = '{run}'"
    stack.exec("postgres", "psql", "--username=postgres", "--dbname=mlflow", "--quiet", "--command", query)
    return run, f"{experiment}/{run}"


def list_files(stack: Stack, path: str) -> list[Any]:
    """Return what the artifact store has in a folder of a run."""
    with stack.mlflow() as api:
        address = str(api.base_url).split("/api/")[0]
        found = httpx.get(
            f"{address}{ARTIFACTS}", params={"path": f"{path}/artifacts"}, auth=api.auth, timeout=30
        ).raise_for_status()
    files: list[Any] = found.json().get("files", [])
    return files


def test_make_storage_says_what_is_removed_and_reconcile_removes_it(stack: Stack) -> None:
    stack.wait_for_first_run()
    run, folder = log_deleted_run(stack)

    before = stack.shell("make storage").stdout
    reconciled = stack.shell(f"make run DEPLOYMENT={Resource.RECONCILE}").stdout
    after = stack.shell("make storage").stdout

    assert before.startswith("The disk with the data is ")
    assert f" A mail is sent at {stack.environment['DISK_ALERT_PERCENT']} %." in before
    for part in ("Databases", "prefect: events", "Objects", "mlflow: models", "results: snapshots of training data",
                 "Volumes", "postgres", "Images", "postgres:17-trixie", "0 flow runs of Prefect",
                 "1 deleted run, 0 models of MLflow                    3.0 MB", "0 old trials"):  # fmt: skip
        assert part in before, before
    assert "Removed for good what was deleted in MLflow: runs 1, models 0." in reconciled
    assert "0 deleted runs, 0 models of MLflow" in after
    assert list_files(stack, folder) == []
    with stack.mlflow() as api:
        assert api.get("/runs/get", params={"run_id": run}).status_code == 404
    assert stack.model_versions(), "the champion is there"
    with stack.prefect() as api:
        server = api.get("/admin/settings").raise_for_status().json()["server"]
    assert sorted(server["services"]["db_vacuum"]["enabled"]) == ["events", "flow_runs"]
    assert server["services"]["db_vacuum"]["retention_period"] == "P90D"
    assert server["events"]["retention_period"] == "P7D"


def test_a_disk_that_fills_up_is_mailed(stack: Stack, mailbox: httpx.Client) -> None:
    output = stack.shell(
        f"""make run DEPLOYMENT={Resource.RECONCILE} PARAMETERS='{{"disk_alert_percent": 0}}'"""
    ).stdout
    run = stack.flow_runs(Resource.RECONCILE)[0]
    assert run["state"]["name"] == State.ALERT

    def mails() -> list[dict[str, Any]]:
        listed = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
        return [mail for mail in listed if mail["Subject"].endswith(f"ended as {State.ALERT}: {run['name']}")]

    (mail,) = wait_until(mails, 180, "the mail about the disk", every=0.5)
    text = mailbox.get(f"/message/{mail['ID']}").raise_for_status().json()["Text"]

    assert " % full: " in output
    assert " % full: " in text
    assert "`make storage` shows what uses it." in text
