"""Provisioning, `make run` and the demo's report, while each of their requests fails before it succeeds."""

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from mlflow import MlflowClient

from infra.embedded.scores import print_scores
from infra.provision.api import find_deployments, http_client
from infra.provision.automations import find_automations
from infra.provision.deployments import job_variables_files
from infra.testing.servers import prefect_client, prefect_server
from infra.testing.waiting import wait_until
from tests.support.flaky_proxy import FlakyProxy
from trainyard.contract import Account, Resource, RunTag, Tag

CHECKOUT = Path(__file__).parents[2]
FLOW = """
from prefect import flow


@flow
def greet(name: str = "world"):
    print(f"Hello, {name}")
"""
PROJECT = """
pull:
  - prefect.deployments.steps.set_working_directory: {directory: /nowhere}
deployments:
  - name: greet
    entrypoint: flows/greet.py:greet
    tags: [first-run]
    work_pool: {name: training}
"""
ADMIN = ("admin", "password-of-the-admin")


class Accounts:
    """MLflow's API of accounts: as much of it as provisioning uses. Creating an account twice is an error."""

    def __init__(self) -> None:
        self.passwords = dict([ADMIN])
        self.created: Counter[str] = Counter()
        accounts = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def login(self) -> str | None:
                user, _, password = b64decode(self.headers["authorization"].split()[1]).decode().partition(":")
                return user if accounts.passwords.get(user) == password else None

            def do_GET(self) -> None:
                (name,) = parse_qs(urlsplit(self.path).query)["username"]
                known = 200 if name in accounts.passwords else 404
                self.respond(known if self.login() in ("admin", name) else 401)

            def write(self) -> None:
                account = json.loads(self.rfile.read(int(self.headers["content-length"])))
                name = account["username"]
                if self.login() != "admin":
                    return self.respond(401)
                if self.command == "POST":
                    accounts.created[name] += 1
                    if name in accounts.passwords:
                        return self.respond(400)
                accounts.passwords[name] = account["password"]
                return self.respond(200)

            do_POST = do_PATCH = write

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def accounts() -> Iterator[Accounts]:
    """A stand-in for MLflow's accounts."""
    accounts = Accounts()
    Thread(target=accounts.server.serve_forever, daemon=True).start()
    yield accounts
    accounts.server.shutdown()
    accounts.server.server_close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The API of a real Prefect server of this module's own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as address, prefect_client(address) as api:
        yield api


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one flow, which has the tag `first-run`."""
    home = tmp_path_factory.mktemp("project")
    (home / "flows").mkdir()
    (home / "flows/greet.py").write_text(FLOW)
    (home / "prefect.yaml").write_text(PROJECT)
    return home


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without a project: the platform is provisioned from there, as in its container."""
    return tmp_path_factory.mktemp("nowhere")


def provision(
    project: Path, prefect: str, mlflow: str, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the provisioning program as its container does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = clean | {
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(project)]),
        "TRAINYARD_HOME": str(project),
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_API_URL": f"{prefect}/api",
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_TRACKING_USERNAME": ADMIN[0],
        "MLFLOW_TRACKING_PASSWORD": ADMIN[1],
        "MLFLOW_WORKER_PASSWORD": "password-of-worker",
        "MLFLOW_SERVING_PASSWORD": "password-of-serving",
        "MLFLOW_DASHBOARD_PASSWORD": "password-of-dashboard",
        "SCHEDULES_ACTIVE": "false",
        "FIRST_RUN": RunTag.FIRST_RUN,
        **settings,
    }
    command = [sys.executable, "-m", "infra.provision", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=180)


def runs_of(api: httpx.Client, flow: str) -> list[dict[str, Any]]:
    query = {"flows": {"name": {"any_": [flow]}}}
    runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=query).raise_for_status().json()
    return runs


@dataclass(frozen=True)
class Provisioned:
    """An installation that was provisioned through flaky proxies."""

    api: httpx.Client
    server: str
    ended: list[subprocess.CompletedProcess[str]]
    prefect_failures: Counter[str]
    mlflow_failures: Counter[str]


@pytest.fixture(scope="module")
def provisioned(nowhere: Path, project: Path, api: httpx.Client, accounts: Accounts) -> Provisioned:
    """Provision platform and project while each of their requests fails before it succeeds."""
    server = str(api.base_url).removesuffix("/api/")
    # Side by side, as their containers are: each waits for a part of the other's.
    with FlakyProxy(server) as prefect, FlakyProxy(accounts.url) as mlflow, ThreadPoolExecutor() as threads:
        platform = threads.submit(provision, nowhere, prefect.url, mlflow.url, "platform")
        deployed = threads.submit(provision, project, prefect.url, mlflow.url, "project")
        ended = [platform.result(), deployed.result()]
    return Provisioned(api, server, ended, prefect.failures, mlflow.failures)


def test_provisioning_creates_everything_once_although_every_request_fails_twice(
    provisioned: Provisioned, accounts: Accounts
) -> None:
    deployments = provisioned.api.post("/deployments/filter", json={}).raise_for_status().json()
    automations = provisioned.api.post("/automations/filter", json={}).raise_for_status().json()

    for ended in provisioned.ended:
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert provisioned.prefect_failures["refused"] > 20
    assert provisioned.prefect_failures["dropped"] > 10
    assert provisioned.mlflow_failures["dropped"] > 3
    assert sorted(deployment["name"] for deployment in deployments) == sorted(
        ["greet", Resource.MONITOR, Resource.RECONCILE, Resource.SEND_MAIL]
    )
    assert sorted(automation["name"] for automation in automations) == sorted(
        [
            Resource.CRASH_LOST_RUNS,
            Resource.CRASH_UNSTARTED_RUNS,
            Resource.CANCEL_LOST_RUNS,
            Resource.MAIL_ALERTS,
            Resource.MAIL_RUN_EVENTS,
        ]
    )
    assert [run["state_type"] for run in runs_of(provisioned.api, "greet")] == ["SCHEDULED"]
    assert accounts.created == {Account.WORKER: 1, Account.SERVING: 1, Account.DASHBOARD: 1}


def test_provisioning_again_changes_nothing(
    nowhere: Path, project: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    api = provisioned.api
    before = api.post("/deployments/filter", json={}).raise_for_status().json()

    platform = provision(nowhere, provisioned.server, accounts.url, "platform")
    deployed = provision(project, provisioned.server, accounts.url, "project")

    for ended in (platform, deployed):
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Deployed" not in ended.stdout
    assert api.post("/deployments/filter", json={}).raise_for_status().json() == before
    assert len(runs_of(api, "greet")) == 1


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another project, whose flow and deployment have names of their own."""
    home = tmp_path_factory.mktemp("second")
    (home / "flows").mkdir()
    (home / "flows/greet.py").write_text(FLOW.replace("def greet", "def part"))
    (home / "prefect.yaml").write_text(PROJECT.replace("name: greet", "name: part").replace(":greet", ":part"))
    return home


def test_a_second_project_has_a_work_queue_of_its_own(
    project: Path, second: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    api = provisioned.api
    before = api.post("/deployments/filter", json={}).raise_for_status().json()

    for attempt in range(2):
        ended = provision(second, provisioned.server, accounts.url, "project", WORK_QUEUE="second")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ("Deployed part" in ended.stdout) == (attempt == 0), "the second time there is nothing to do"

    after = api.post("/deployments/filter", json={}).raise_for_status().json()
    (part,) = [each for each in after if each["name"] == "part"]
    (queue,) = [each["work_queue_id"] for each in runs_of(api, "part")]
    assert (part["work_pool_name"], part["work_queue_name"]) == (Resource.WORK_POOL, "second")
    assert queue == part["work_queue_id"]
    assert [each for each in after if each["name"] != "part"] == before
    again = provision(project, provisioned.server, accounts.url, "project")
    assert "Deployed" not in again.stdout, "the first project's deployments are current as before"
    api.delete(f"/deployments/{part['id']}").raise_for_status()


def test_what_is_missing_is_made_again_by_the_half_that_made_it(
    nowhere: Path, project: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    api = provisioned.api
    (send_mail,) = find_deployments(api, Resource.SEND_MAIL)
    api.delete(f"/deployments/{send_mail['id']}").raise_for_status()

    for folder, half in ((project, "deploy"), (nowhere, "platform")):
        ended = provision(folder, provisioned.server, accounts.url, half)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    (again,) = find_deployments(api, Resource.SEND_MAIL)
    (alerts,) = find_automations(api, Resource.MAIL_ALERTS)
    assert again["id"] != send_mail["id"]
    assert alerts["actions"][0]["deployment_id"] == again["id"]


def test_a_project_is_not_deployed_before_the_platform(project: Path, tmp_path: Path, accounts: Accounts) -> None:
    with prefect_server(tmp_path) as address:
        refused = provision(project, address.removesuffix("/api"), accounts.url, "deploy")

    assert refused.returncode == 1
    assert refused.stderr.strip() == "There is no work pool training of this version: `make up` creates it."


def test_a_second_project_cannot_replace_the_first_one_s_deployment(
    project: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    refused = provision(project, provisioned.server, accounts.url, "project", WORK_QUEUE="second")

    assert refused.returncode == 1
    assert "The deployment greet/greet exists already, on the work queue default" in refused.stderr


def test_the_job_variables_of_the_worker_type_are_part_of_what_is_provisioned() -> None:
    (file,) = job_variables_files()

    assert "class WarmProcessVariables" in file.read_text()


def test_make_run_starts_one_run_and_follows_it_although_every_request_fails_twice(
    project: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    api = provisioned.api
    before = {run["id"] for run in runs_of(api, "greet")}

    def new_runs() -> list[dict[str, Any]]:
        return [run for run in runs_of(api, "greet") if run["id"] not in before]

    def complete_the_run() -> None:
        """Do what a worker would."""
        run = wait_until(new_runs, 60, "the run", every=0.2)[0]
        log = {"flow_run_id": run["id"], "level": 20, "name": "prefect.flow_runs", "timestamp": run["created"]}
        lines = [log | {"message": text} for text in ("Hello, Ada", "Finished in state Completed()")]
        api.post("/logs/", json=lines).raise_for_status()
        state = {"state": {"type": "COMPLETED"}, "force": True}
        api.post(f"/flow_runs/{run['id']}/set_state", json=state).raise_for_status()

    worker = Thread(target=complete_the_run)
    worker.start()
    with FlakyProxy(provisioned.server) as prefect:
        ended = provision(project, prefect.url, accounts.url, "run", "greet", '{"name": "Ada"}')
    worker.join()

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("Hello, Ada") == 1
    (run,) = new_runs()
    assert run["parameters"] == {"name": "Ada"}
    assert prefect.failures["dropped"] > 3


def test_a_request_that_is_not_idempotent_is_sent_once(api: httpx.Client) -> None:
    variable = {"name": "created_once", "value": "1"}
    with FlakyProxy(str(api.base_url).removesuffix("/api/")) as proxy, http_client(f"{proxy.url}/api") as client:
        refused = client.post("/variables/", json=variable)
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/variables/", json=variable)

    assert refused.status_code == 503
    assert proxy.failures == {"refused": 1, "dropped": 1}


@pytest.mark.parametrize(
    ("first_run", "runs", "message"),
    [("", 0, ""), ("greet/greet", 1, ""), ("greet/unknown", 0, "There is no deployment greet/unknown")],
)
def test_the_setting_names_the_first_run(
    project: Path, provisioned: Provisioned, accounts: Accounts, first_run: str, runs: int, message: str
) -> None:
    api = provisioned.api
    for run in runs_of(api, "greet"):
        api.delete(f"/flow_runs/{run['id']}").raise_for_status()
    api.delete(f"/variables/name/{Resource.FIRST_RUNS}")  # there is none where no run was to be started

    ended = provision(project, provisioned.server, accounts.url, "project", FIRST_RUN=first_run)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(runs_of(api, "greet")) == runs
    assert message in ended.stdout


def test_a_first_run_that_prefect_has_deleted_is_not_repeated(
    project: Path, provisioned: Provisioned, accounts: Accounts
) -> None:
    api = provisioned.api
    provision(project, provisioned.server, accounts.url, "project")
    first = len(runs_of(api, "greet"))
    for run in runs_of(api, "greet"):
        api.delete(f"/flow_runs/{run['id']}").raise_for_status()

    provision(project, provisioned.server, accounts.url, "project")

    assert first == 1
    assert runs_of(api, "greet") == []


def test_the_demos_report_survives_failing_requests(
    tracking: MlflowClient, mlflow_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tracking.create_experiment("report")
    run = tracking.create_run(experiment, tags={Tag.LAST_FLOW_RUN_ID: "some-flow-run"})
    scores = {"model_brier": 0.1, "climatology_brier": 0.2, "model_log_loss": 0.3, "climatology_log_loss": 0.5}
    for name, value in {**scores, "persistence_brier": 0.25, "rows": 100}.items():
        tracking.log_metric(run.info.run_id, name, value)
    tracking.create_registered_model("reported")
    tracking.create_model_version("reported", run.info.artifact_uri, run.info.run_id)

    with FlakyProxy(mlflow_address) as proxy:
        print_scores(proxy.url, "some-flow-run")
        print_scores(proxy.url, "another-flow-run")

    assert [line.split() for line in capsys.readouterr().out.splitlines() if line] == [
        ["reported", "version", "1"],
        ["metric", "model", "climatology", "persistence"],
        ["brier", "0.100", "0.200", "0.250"],
        ["log_loss", "0.300", "0.500"],
        ["The", "run", "registered", "no", "model."],
    ]
