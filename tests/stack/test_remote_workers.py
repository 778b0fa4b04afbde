"""Workers on other hosts (infra/compose/worker.yml): each from that one file, an address and a token, on a network of its own."""

import base64
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.servers import free_port
from infra.testing.stack import Stack, add_flows, copy_checkout
from infra.testing.waiting import wait_until
from trainyard.contract import Resource, State

pytestmark = pytest.mark.slow

COMPOSE_FILE = "docker-compose.yml:infra/compose/tls.yml:infra/compose/remote-workers.yml:infra/compose/baked-flows.yml"
NAME = "ml.test"
RUNS = 300
PROBES = '''
import time

import mlflow
from prefect import flow, task, runtime

from trainyard.cache import cached


@flow
def nothing():
    pass


@flow(log_prints=True)
def linger(seconds: float):
    """Take some time, and say so."""
    print("lingering")
    time.sleep(seconds)


@task(**cached())
def double(number: int) -> int:
    print("computed")
    return 2 * number


@flow
def halve(number: int) -> int:
    return number // 2


@flow(log_prints=True)
def exchange(number: int, payload: str):
    """Use results and artifacts of whichever worker ran it before."""
    assert halve(double(number)) == number
    mlflow.set_experiment("exchange")
    with mlflow.start_run(run_name=runtime.flow_run.name):
        mlflow.log_text(payload, "payload.txt")
    for run in mlflow.search_runs(experiment_names=["exchange"], output_format="list"):
        print("read", mlflow.artifacts.load_text(run.info.artifact_uri + "/payload.txt"))
'''
FLOWS = ("nothing", "linger", "exchange")

Boot = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="module")
def bridge() -> str:
    """The address of this machine in every container's network."""
    probe = Stack(Path.cwd())
    return probe.shell("docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}'").stdout.strip()


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory, boot: Boot, bridge: str) -> Iterator[Stack]:
    """The installation, with its flows in the image, as a registry would bring it to another host."""
    home = tmp_path_factory.mktemp("central")
    copy_checkout(home)
    entry = "\n  - {{name: {0}, entrypoint: 'flows/probes.py:{0}', work_pool: {{name: training}}}}\n"
    add_flows(home, PROBES, "".join(entry.format(name) for name in FLOWS))
    ports = {name: str(free_port()) for name in ("HTTP_PORT", "HTTPS_PORT")}
    stack = Stack(
        home,
        COMPOSE_FILE=COMPOSE_FILE,
        PUBLIC_HOST=NAME,
        BIND_ADDRESS=bridge,
        FIRST_RUN="",
        SCHEDULES_ACTIVE="false",
        TRAINYARD_VERSION="remote",
        **ports,
    )
    try:
        with boot(stack, lambda stack: stack.up("proxy", "worker")):
            yield stack
    finally:
        stack.remove_images()


@pytest.fixture(scope="module")
def token(central: Stack) -> str:
    return central.shell("make -s worker-token").stdout.strip()


def make_remote(home: Path, central: Stack, bridge: str, **settings: str) -> Stack:
    """Return a worker's stack in a folder that has nothing but the one file."""
    home.mkdir(exist_ok=True)
    shutil.copy(central.home / "infra/compose/worker.yml", home)
    # In place of a record in the DNS.
    (home / "hosts.yml").write_text(f'services: {{gateway: {{extra_hosts: ["workers.{NAME}:{bridge}"]}}}}\n')
    return Stack(
        home,
        COMPOSE_FILE="worker.yml:hosts.yml",
        TRAINYARD_ADDRESS=f"https://workers.{NAME}:{central.environment['HTTPS_PORT']}",
        WORKER_IMAGE=f"{central.project}-worker-baked:remote",
        **settings,
    )


@pytest.fixture(scope="module")
def remote(
    tmp_path_factory: pytest.TempPathFactory, boot: Boot, central: Stack, bridge: str, token: str
) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("remote")
    with boot(make_remote(home, central, bridge, WORKER_TOKEN=token, WORKER_NAME="remote")) as stack:
        yield stack


@pytest.fixture(scope="module")
def api(central: Stack, bridge: str) -> Iterator[httpx.Client]:
    """Prefect's API as people reach it."""
    lookup = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **named: Any) -> Any:
        return lookup(bridge if host.endswith(NAME) else host, *rest, **named)

    variables = central.variables()
    trust = ssl.create_default_context(cadata=central.shell("make -s ca").stdout)
    user, password = variables["PREFECT_API_AUTH_STRING"].split(":", 1)
    options: dict[str, Any] = {"auth": (user, password), "verify": trust, "timeout": 60}
    with (
        pytest.MonkeyPatch.context() as patch,
        httpx.Client(base_url=variables["PREFECT_API_URL"], **options) as client,
    ):
        patch.setattr("socket.getaddrinfo", resolve)
        yield client


@pytest.fixture
def central_stopped(central: Stack) -> Iterator[None]:
    """Only the remote worker is left."""
    central.shell("docker compose stop worker")
    yield
    central.shell("docker compose up --detach --wait --no-deps worker")


def trigger(api: httpx.Client, name: str, **parameters: Any) -> str:
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    answer = api.post(f"/deployments/{find_deployment(api, name)['id']}/create_flow_run", json=body)
    return answer.raise_for_status().json()["id"]


def read(api: httpx.Client, run: str) -> dict[str, Any]:
    return api.get(f"/flow_runs/{run}").raise_for_status().json()


def wait_for_state(api: httpx.Client, run: str, name: str, seconds: float) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = read(api, run)
        return found if found["state"]["name"] == name else None

    try:
        return wait_until(reached, seconds, f"a run to be {name}", every=0.5)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it is {read(api, run)['state']}\n{log_of(api, run)}") from None


def log_of(api: httpx.Client, run: str) -> str:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    return "\n".join(log["message"] for log in api.post("/logs/filter", json=query).raise_for_status().json())


def worker_of(api: httpx.Client, run: str) -> str:
    return read(api, run)["labels"]["prefect.worker.name"]


def names_of(api: httpx.Client, run: str) -> list[str]:
    states = api.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
    return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]


def test_the_token_has_what_runs_need_and_no_more(central: Stack, token: str) -> None:
    lines = dict(line.split("=", 1) for line in base64.b64decode(token).decode().splitlines())
    variables = central.variables()

    assert lines.pop("PREFECT_API_AUTH_STRING").startswith("worker:")
    assert lines.pop("MLFLOW_TRACKING_USERNAME") == "worker"
    assert "BEGIN CERTIFICATE" in base64.b64decode(lines.pop("authority")).decode()
    assert lines.pop("PREFECT_UI_URL") == variables["PREFECT_API_URL"].removesuffix("/api")
    assert lines.pop("MLFLOW_UI_URL") == variables["MLFLOW_TRACKING_URI"]
    assert set(lines) == {"MLFLOW_TRACKING_PASSWORD", "CACHE_SIGNING_KEY"}
    passwords = (variables["MLFLOW_TRACKING_PASSWORD"], variables["PREFECT_API_AUTH_STRING"].split(":", 1)[1])
    assert not any(password in base64.b64decode(token).decode() for password in passwords)


def test_nothing_of_the_token_is_in_a_container_s_configuration(remote: Stack, token: str) -> None:
    secret = dict(line.split("=", 1) for line in base64.b64decode(token).decode().splitlines())[
        "PREFECT_API_AUTH_STRING"
    ]
    shown = str(remote.containers())

    assert remote.project in shown
    assert token not in shown
    assert secret.removeprefix("worker:") not in shown


@pytest.mark.usefixtures("central_stopped")
def test_a_remote_worker_runs_flows_and_leaves_the_host_s_own_to_its_workers(remote: Stack, api: httpx.Client) -> None:
    reconcile = trigger(api, Resource.RECONCILE)
    run = trigger(api, "exchange", number=21, payload="from the remote worker")
    wait_for_state(api, run, "Completed", 180)

    assert worker_of(api, run) == "remote"
    assert "Cold start" not in log_of(api, run)
    assert "computed" in log_of(api, run)
    assert "read from the remote worker" in log_of(api, run)
    assert read(api, reconcile)["state"]["type"] == "SCHEDULED"


def test_results_and_artifacts_of_a_remote_worker_are_used_here(
    central: Stack, remote: Stack, api: httpx.Client
) -> None:
    remote.shell("docker compose stop worker")
    try:
        run = trigger(api, "exchange", number=21, payload="from here")
        wait_for_state(api, run, "Completed", 180)
    finally:
        remote.shell("docker compose up --detach --wait worker")

    assert worker_of(api, run) != "remote"
    assert "computed" not in log_of(api, run)
    assert "read from the remote worker" in log_of(api, run)


def test_many_runs_at_once_over_three_workers_run_once_each(central: Stack, remote: Stack, api: httpx.Client) -> None:
    central.shell("WORKERS=2 docker compose up --detach --wait --no-deps --no-recreate worker")
    try:
        deployment = find_deployment(api, "nothing")["id"]

        def start(_: int) -> str:
            answer = api.post(f"/deployments/{deployment}/create_flow_run", json={"state": {"type": "SCHEDULED"}})
            return answer.raise_for_status().json()["id"]

        with ThreadPoolExecutor(16) as callers:
            runs = list(callers.map(start, range(RUNS)))

        def completed() -> bool:
            # By ids in parts: a request has at most 200 of them, and a filter by state counts other runs too.
            parts = [runs[at : at + 100] for at in range(0, RUNS, 100)]
            queries = [
                {"flow_runs": {"id": {"any_": part}, "state": {"type": {"any_": ["COMPLETED"]}}}} for part in parts
            ]
            return sum(api.post("/flow_runs/count", json=query).raise_for_status().json() for query in queries) == RUNS

        wait_until(completed, 900, "the runs to complete", every=2)
    finally:
        central.shell("docker compose up --detach --wait --no-deps --no-recreate worker")

    with ThreadPoolExecutor(8) as callers:
        histories = list(callers.map(lambda run: names_of(api, run), runs))
        workers = set(callers.map(lambda run: worker_of(api, run), runs))
    assert {history.count("Running") for history in histories} == {1}
    assert len(workers) == 3
    assert "remote" in workers


def test_a_run_whose_host_is_gone_is_settled_and_run_again_elsewhere(
    central: Stack, remote: Stack, api: httpx.Client
) -> None:
    central.shell("docker compose stop worker")
    run = trigger(api, "linger", seconds=20)
    wait_until(lambda: "lingering" in log_of(api, run), 120, "the run to linger", every=0.5)
    remote.shell("docker compose kill")
    central.shell("docker compose up --detach --wait --no-deps worker")
    try:
        wait_for_state(api, run, "Completed", 600)
    finally:
        remote.up()

    names = names_of(api, run)
    assert (names.count("Running"), names.count("Crashed"), names.count(State.AWAITING_RERUN)) == (2, 1, 1)
    assert worker_of(api, run) != "remote"


def test_what_is_wrong_is_said(
    tmp_path: Path, boot: Boot, central: Stack, bridge: str, token: str, remote: Stack
) -> None:
    broken = make_remote(tmp_path / "broken", central, bridge, WORKER_TOKEN="not a token")
    with boot(broken, lambda _: None):
        said = broken.shell("docker compose run --rm --no-TTY secrets", check=False)
        refused = broken.shell("WORKER_TOKEN= TRAINYARD_ADDRESS= docker compose up --detach", check=False)
        elsewhere = broken.shell(
            f"WORKER_TOKEN={token} TRAINYARD_ADDRESS=https://workers.{NAME}:1 docker compose up -d --wait", check=False
        )
        log = broken.shell("docker compose logs gateway").stdout
    without = central.shell("COMPOSE_FILE=docker-compose.yml make -s worker-token", check=False)

    assert "WORKER_TOKEN is no token: copy the whole line that `make worker-token` prints." in said.stderr
    assert refused.returncode
    assert "the address of the installation's workers" in refused.stderr
    assert elsewhere.returncode
    assert "gateway" in elsewhere.stderr
    assert "connection refused" in log
    assert without.stderr.startswith("Workers on other hosts need infra/compose/remote-workers.yml: docs/scaling.md.")
