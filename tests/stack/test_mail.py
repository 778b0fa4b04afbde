"""Runs with the tag `mail` are told by mail, which the stack's own mail server shows; its absence holds nothing up."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from infra.provision.follow import FINAL, find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

FLOWS = '''
import os

import mlflow
from prefect import flow, runtime


@flow(name="depart", persist_result=False)
def depart(how: str = "on time"):
    """Complete with a metric, fail or crash."""
    if how == "fail":
        raise ValueError("the signal is red:\\nno train leaves")
    if how == "crash":
        os._exit(9)
    mlflow.set_experiment("depart")
    with mlflow.start_run(tags={"prefect.flow_run_id": runtime.flow_run.id}):
        mlflow.log_metric("delay_minutes", 0.123456)
'''
ENTRY = """
  - name: depart
    entrypoint: flows/departures.py:depart
    tags: [mail]
    work_pool: *training

  - name: depart-quietly
    entrypoint: flows/departures.py:depart
    work_pool: *training
"""


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Prefect's API, with this module's flow deployed."""
    stack.wait_for_first_run()
    (stack.home / "flows/departures.py").write_text(FLOWS)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(ENTRY)
    stack.shell("make deploy")
    with stack.prefect() as api:
        yield api


def run(api: httpx.Client, name: str, how: str = "on time") -> tuple[dict[str, Any], float]:
    """Run a deployment to its end; return the run and the seconds that it took from its creation."""
    deployment, start = find_deployment(api, name)["id"], time.monotonic()
    body = {"parameters": {"how": how}}
    run_id = api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        return found if found["state_type"] in FINAL else None

    return wait_until(ended, 60, f"the end of {name}", every=0.2), time.monotonic() - start


def find(mailbox: httpx.Client, name: str) -> dict[str, Any] | None:
    """Return the mail about the run of this name."""
    try:
        listed = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
    except httpx.TransportError:
        return None  # it has only just been started again
    found = [mail["ID"] for mail in listed if mail["Subject"].endswith(f": {name}")]
    assert len(found) <= 1, "mailed more than once"
    return mailbox.get(f"/message/{found[0]}").raise_for_status().json() if found else None


def expect_mail(mailbox: httpx.Client, run: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    return wait_until(lambda: find(mailbox, run["name"]), seconds, f"the mail about {run['name']}", every=0.5)


@pytest.mark.parametrize(
    ("how", "ending", "line"),
    [
        ("on time", "completed", "delay_minutes  0.1235"),
        ("fail", "failed", "Error       no train leaves"),
        ("crash", "crashed", "Error       "),
    ],
)
def test_a_tagged_run_is_mailed(
    stack: Stack, api: httpx.Client, mailbox: httpx.Client, how: str, ending: str, line: str
) -> None:
    about, _ = run(api, "depart", how)
    mail = expect_mail(mailbox, about)
    assert mail["Subject"] == f"[Trainyard] depart {ending}: {about['name']}"
    assert mail["From"]["Address"] == "trainyard@localhost"
    assert [to["Address"] for to in mail["To"]] == ["team@localhost"]
    for text in (mail["Text"], mail["HTML"]):
        assert f"depart {ending} after " in text
        assert line.split()[-1] in text
        assert f"http://localhost:{stack.ports['PREFECT_PORT']}/runs/flow-run/{about['id']}" in text
        assert f"http://localhost:{stack.ports['MLFLOW_PORT']}" in text
    assert line in mail["Text"]


def test_the_first_run_was_mailed_and_a_run_without_the_tag_is_not(
    stack: Stack, api: httpx.Client, mailbox: httpx.Client
) -> None:
    expect_mail(mailbox, stack.wait_for_first_run())
    quiet, _ = run(api, "depart-quietly")
    loud, _ = run(api, "depart")
    expect_mail(mailbox, loud)
    assert find(mailbox, quiet["name"]) is None


def test_a_mail_server_that_is_down_holds_nothing_up_and_gets_the_mail_later(
    stack: Stack, api: httpx.Client, mailbox: httpx.Client
) -> None:
    _, usual = run(api, "depart")
    stack.shell("docker compose stop mail")
    try:
        about, took = run(api, "depart")
        assert about["state_type"] == "COMPLETED"
        assert took < usual + 5

        def attempts() -> dict[int, dict[str, Any]]:
            runs = stack.flow_runs("send-mail")
            mine = [run for run in runs if run["parameters"]["flow_run_id"] == about["id"]]
            return {run["parameters"].get("attempt", 1): run for run in mine}

        wait_until(lambda: 2 in attempts(), 60, "the second attempt to be scheduled", every=0.5)
        assert attempts()[2]["state_type"] == "SCHEDULED"
        wait_until(lambda: attempts()[1]["state_type"] == "COMPLETED", 30, "the first attempt's end", every=0.5)
        first, second = (attempts()[number] for number in (1, 2))
        # It gave its place back and waited for nothing.
        assert first["total_run_time"] < 15
        assert "It waits for the mail server to take it for team@localhost." in first["state"]["message"]
        wait = datetime.fromisoformat(second["expected_start_time"]) - datetime.fromisoformat(first["start_time"])
        assert 55 < wait.total_seconds() < 80
    finally:
        stack.shell("docker compose start mail")
    mail = expect_mail(mailbox, about, seconds=120)
    assert mail["Subject"] == f"[Trainyard] depart completed: {about['name']}"
