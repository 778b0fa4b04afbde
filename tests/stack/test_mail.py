"""Mail about tagged runs, as the stack's mail server receives it, and a mail server that is down."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import PrefectPage, Resource, State

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
    """A client of Prefect's API; this module's flow is deployed."""
    stack.wait_for_first_run()
    (stack.home / "flows/departures.py").write_text(FLOWS)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(ENTRY)
    stack.shell("make deploy")
    with stack.prefect() as api:
        yield api


def run(api: httpx.Client, name: str, how: str = "on time") -> tuple[dict[str, Any], float]:
    """Run a deployment; return the ended run and the seconds from its creation to its end."""
    deployment, start = find_deployment(api, name)["id"], time.monotonic()
    body = {"parameters": {"how": how}}
    run_id = api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        return found if found["state_type"] in State.FINAL_TYPES else None

    return wait_until(ended, 60, f"the end of {name}", every=0.2), time.monotonic() - start


def find_mail(mailbox: httpx.Client, name: str) -> dict[str, Any] | None:
    """Return the mail about the run of a name, if there is one."""
    try:
        listed = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
    except httpx.TransportError:
        return None  # it is starting
    found = [mail["ID"] for mail in listed if mail["Subject"].endswith(f": {name}")]
    assert len(found) <= 1, "mailed more than once"
    return mailbox.get(f"/message/{found[0]}").raise_for_status().json() if found else None


def wait_for_mail(mailbox: httpx.Client, run: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    """Return the mail about a run once it has arrived."""
    return wait_until(lambda: find_mail(mailbox, run["name"]), seconds, f"the mail about {run['name']}", every=0.5)


@dataclass(frozen=True)
class Outage:
    """A run that ended while the mail server was down, and the first two attempts to send its mail.

    Attributes:
        run: The run.
        seconds: From its creation to its end.
        usual_seconds: The same of a run before the outage.
        first: The attempt during the outage.
        second: The attempt after it, as it was scheduled.
    """

    run: dict[str, Any]
    seconds: float
    usual_seconds: float
    first: dict[str, Any]
    second: dict[str, Any]


@pytest.fixture(scope="module")
def outage(stack: Stack, api: httpx.Client) -> Outage:
    """Stop the mail server until the mail about a run has been put off; its next attempt is a minute later."""
    _, usual_seconds = run(api, "depart")
    stack.shell("docker compose stop mail")
    try:
        about, seconds = run(api, "depart")

        def attempts() -> dict[int, dict[str, Any]]:
            runs = stack.flow_runs(Resource.SEND_MAIL)
            mine = [run for run in runs if run["parameters"]["flow_run_id"] == about["id"]]
            return {run["parameters"].get("attempt", 1): run for run in mine}

        wait_until(lambda: 2 in attempts(), 60, "the second attempt to be scheduled", every=0.5)
        second = attempts()[2]
        wait_until(lambda: attempts()[1]["state_type"] == "COMPLETED", 30, "the first attempt's end", every=0.5)
        return Outage(about, seconds, usual_seconds, attempts()[1], second)
    finally:
        stack.shell("docker compose up --detach --wait --no-recreate mail")


def test_runs_do_not_wait_for_a_mail_server_that_is_down(outage: Outage) -> None:
    wait = datetime.fromisoformat(outage.second["expected_start_time"]) - datetime.fromisoformat(
        outage.first["start_time"]
    )

    assert outage.run["state_type"] == "COMPLETED"
    assert outage.seconds < outage.usual_seconds + 5
    assert outage.first["total_run_time"] < 15, "the first attempt ended at once and freed its slot"
    assert "Scheduled another attempt to send the mail about depart" in outage.first["state"]["message"]
    assert outage.second["state_type"] == "SCHEDULED"
    assert 55 < wait.total_seconds() < 80


@pytest.mark.parametrize(
    ("how", "ending", "line"),
    [
        ("on time", "completed", "delay_minutes  0.1235"),
        ("fail", "failed", "Error       no train leaves"),
        ("crash", "crashed", "Error       "),
    ],
)
def test_mail_is_sent_about_a_tagged_run(
    stack: Stack, api: httpx.Client, mailbox: httpx.Client, how: str, ending: str, line: str
) -> None:
    about, _ = run(api, "depart", how)
    mail = wait_for_mail(mailbox, about)

    assert mail["Subject"] == f"[Trainyard] depart {ending}: {about['name']}"
    assert mail["From"]["Address"] == "trainyard@localhost"
    assert [to["Address"] for to in mail["To"]] == ["team@localhost"]
    for text in (mail["Text"], mail["HTML"]):
        assert f"depart {ending} after " in text
        assert line.split()[-1] in text
        assert PrefectPage.flow_run(f"http://localhost:{stack.ports['PREFECT_PORT']}", about["id"]) in text
        assert f"http://localhost:{stack.ports['MLFLOW_PORT']}" in text
    assert line in mail["Text"]


def test_mail_is_sent_about_the_first_run_and_not_about_a_run_without_the_tag(
    stack: Stack, api: httpx.Client, mailbox: httpx.Client
) -> None:
    wait_for_mail(mailbox, stack.wait_for_first_run())
    untagged, _ = run(api, "depart-quietly")
    tagged, _ = run(api, "depart")
    wait_for_mail(mailbox, tagged)

    assert find_mail(mailbox, untagged["name"]) is None


def test_the_mail_of_the_outage_arrives_later(mailbox: httpx.Client, outage: Outage) -> None:
    mail = wait_for_mail(mailbox, outage.run, seconds=120)

    assert mail["Subject"] == f"[Trainyard] depart completed: {outage.run['name']}"
