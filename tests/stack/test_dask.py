"""infra/compose/dask.yml: tasks and searches on a cluster whose members know each other by TLS, and may join or die."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack, add_flows, copy_checkout
from infra.testing.waiting import wait_until
from trainyard.contract import State

pytestmark = pytest.mark.slow

COMPOSE_FILE = "docker-compose.yml:infra/compose/dask.yml"
SCHEDULER = "tls://dask-scheduler:8786"
PROBES = '''
import socket
import time
from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd
from prefect import flow, get_run_logger, task
from sklearn.linear_model import SGDClassifier

from trainyard.cluster import cluster, task_runner
from trainyard.large import boost, fit_in_parts

ADDED = 100


@dataclass
class Answer:
    value: int
    host: str


@task
def square(number: int, seconds: float) -> Answer:
    get_run_logger().info("squaring %s", number)
    time.sleep(seconds)
    return Answer(number * number + ADDED, socket.gethostname())


@flow(log_prints=True, task_runner=task_runner())
def squares(count: int, seconds: float = 0.1):
    """Map a task over numbers, and log what it returned and where it ran."""
    answers = square.map(range(count), seconds).result()
    assert all(isinstance(answer, Answer) for answer in answers)
    mlflow.set_experiment("squares")
    with mlflow.start_run():
        mlflow.log_metric("sum", sum(answer.value for answer in answers))
    print("here is", socket.gethostname())
    print("hosts", *sorted({answer.host for answer in answers}))
    print("values", *(answer.value for answer in answers))


def make_part(number: int, rows: int) -> pd.DataFrame:
    random = np.random.default_rng(number)
    return pd.DataFrame(random.normal(size=(rows, 10)), columns=list("abcdefghij"))


def prepare(part: pd.DataFrame) -> pd.DataFrame:
    return part.assign(label=(part["a"] + part["b"] > 0).astype(int))


@flow(log_prints=True)
def learn(parts: int, rows: int, whole: bool = False):
    """Learn from a frame that does not fit the run's memory."""
    import dask.dataframe as dd

    with cluster():
        frame = dd.from_map(make_part, range(parts), rows=rows).map_partitions(prepare)
        if whole:
            print("whole", len(pd.concat([part.compute() for part in frame.partitions])))
        model = fit_in_parts(SGDClassifier(random_state=0), frame, "label", classes=[0, 1])
        booster = boost(frame, "label", {"objective": "binary:logistic", "max_depth": 3}, rounds=20)
    test = prepare(make_part(1000, 10_000))
    features = test.drop(columns="label")
    print("parts", round(model.score(features, test["label"]), 3))
    print("trees", round(float(np.mean((booster.inplace_predict(features) > 0.5) == test["label"])), 3))
'''
DEPLOYMENTS = """
  - {name: squares, entrypoint: "flows/probes.py:squares", work_pool: {name: training}}
  - name: learn
    entrypoint: flows/probes.py:learn
    work_pool: {name: training, job_variables: {memory_mib: 512, reruns_after_crash: 0}}
"""
PARTS, ROWS = 32, 250_000  # 20 MB each, 640 MB in all
COUNT_TASKS = f"""
from distributed import Client
with Client("{SCHEDULER}", timeout=20) as client:
    print(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.transition_log)))
"""
CONNECT = """
import sys
from distributed import Client
from distributed.security import Security
address, certificate, key = sys.argv[1:]
names = [f"tls_{who}_{what}" for who in ("client", "worker", "scheduler") for what in ("cert", "key")]
given = {name: key if name.endswith("key") else certificate for name in names}
security = Security(require_encryption=False, tls_ca_file="/run/secrets/dask.pem", **(given if certificate else {}))
Client(address, timeout=5, security=security)
"""

Boot = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Stack]:
    """The worker, and a cluster of two."""
    home = tmp_path_factory.mktemp("clustered")
    copy_checkout(home)
    add_flows(home, PROBES, DEPLOYMENTS)
    files = f"{COMPOSE_FILE}:infra/testing/compose.yml"
    stack = Stack(home, COMPOSE_FILE=files, FIRST_RUN="", SCHEDULES_ACTIVE="false")
    with boot(stack, lambda stack: stack.up("worker", "dask-worker", "upstream")):
        yield stack


@pytest.fixture
def api(clustered: Stack) -> Iterator[httpx.Client]:
    with clustered.prefect() as api:
        yield api


def trigger(api: httpx.Client, name: str, **parameters: Any) -> str:
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    answer = api.post(f"/deployments/{find_deployment(api, name)['id']}/create_flow_run", json=body)
    return answer.raise_for_status().json()["id"]


def lines(api: httpx.Client, run: str) -> list[str]:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    return [log["message"] for log in api.post("/logs/filter", json=query).raise_for_status().json()]


def state_of(api: httpx.Client, run: str) -> dict[str, Any]:
    return api.get(f"/flow_runs/{run}").raise_for_status().json()["state"]


def wait_for(api: httpx.Client, run: str, seconds: float = 180, last: str = "values") -> dict[str, list[str]]:
    """Return what a completed run printed, by the first word; lines may come after the run's end, the last of them is named."""

    def ended() -> str | None:
        found: str = state_of(api, run)["type"]
        return found if found in State.FINAL_TYPES else None

    assert wait_until(ended, seconds, "the run's end", every=0.5) == "COMPLETED", "\n".join(lines(api, run))

    def read() -> dict[str, list[str]] | None:
        words = [line.split() for line in lines(api, run)]
        found = {name: rest for name, *rest in filter(None, words)}
        return found if last in found else None

    return wait_until(read, 20, f"the line {last}", every=0.5)


def members(stack: Stack) -> set[str]:
    """Return the host names of the cluster's workers."""
    containers = stack.shell("docker compose ps --quiet dask-worker").stdout.split()
    return {container[:12] for container in containers}


def values(count: int, added: int = 100) -> list[str]:
    return [str(number * number + added) for number in range(count)]


def test_mapped_tasks_run_on_the_cluster_s_workers_and_log_to_their_run(clustered: Stack, api: httpx.Client) -> None:
    run = trigger(api, "squares", count=12)
    printed = wait_for(api, run)

    assert printed["values"] == values(12)
    assert set(printed["hosts"]) == members(clustered)
    assert printed["here"][-1] not in members(clustered)
    assert {f"squaring {number}" for number in range(12)} <= set(lines(api, run))


def test_an_edit_of_a_flow_is_what_the_workers_run(clustered: Stack, api: httpx.Client) -> None:
    probes = clustered.home / "flows/probes.py"
    probes.write_text(PROBES.replace("ADDED = 100", "ADDED = 1000"))
    try:
        printed = wait_for(api, trigger(api, "squares", count=6))
    finally:
        probes.write_text(PROBES)

    assert printed["values"] == values(6, added=1000)


def test_a_search_runs_on_the_cluster(clustered: Stack, api: httpx.Client) -> None:
    before = int(clustered.python("worker", COUNT_TASKS).stdout)
    recipe = {"families": ["logistic-regression"], "years": 2, "refresh": True}
    wait_for(api, trigger(api, "weather-pipeline", **recipe), 300, last="Finished")

    assert int(clustered.python("worker", COUNT_TASKS).stdout) > before


def test_a_worker_that_joins_is_used_and_one_that_dies_is_survived(clustered: Stack, api: httpx.Client) -> None:
    before = members(clustered)
    run = trigger(api, "squares", count=40, seconds=2)
    wait_until(lambda: any("squaring" in line for line in lines(api, run)), 60, "the first task", every=0.5)
    clustered.shell("DASK_WORKERS=3 docker compose up --detach --no-deps --no-recreate --wait dask-worker")
    (joined,) = members(clustered) - before
    clustered.shell(f"docker kill {min(before)}")
    try:
        printed = wait_for(api, run, 240)
    finally:
        clustered.shell("docker compose up --detach --no-deps --wait dask-worker")

    assert printed["values"] == values(40)
    assert joined in printed["hosts"]


def test_data_that_do_not_fit_the_run_s_memory_are_learned_from(clustered: Stack, api: httpx.Client) -> None:
    whole = trigger(api, "learn", parts=PARTS, rows=ROWS, whole=True)
    wait_until(lambda: state_of(api, whole)["type"] in State.FINAL_TYPES, 180, "the run with all in memory", every=0.5)
    printed = wait_for(api, trigger(api, "learn", parts=PARTS, rows=ROWS), 300, last="trees")

    assert state_of(api, whole)["name"] == "Crashed"
    assert "memory" in state_of(api, whole)["message"]
    assert float(printed["parts"][0]) > 0.95
    assert float(printed["trees"][0]) > 0.85


@pytest.mark.parametrize(
    ("address", "certificate", "key"),
    [
        ("tcp://dask-scheduler:8786", "", ""),
        (SCHEDULER, "", ""),
        (SCHEDULER, "/tmp/foreign.pem", "/tmp/foreign-key.pem"),
    ],
)
def test_who_lacks_the_key_cannot_connect(clustered: Stack, address: str, certificate: str, key: str) -> None:
    make = "openssl req -x509 -newkey ed25519 -nodes -subj /CN=dask -out /tmp/foreign.pem -keyout /tmp/foreign-key.pem"
    clustered.exec("worker", *shlex.split(make))
    connect = ("env", "-u", "DASK_CONFIG", "python", "-c", CONNECT)  # else the settings fill in what is not given
    refused = clustered.exec("worker", *connect, address, certificate, key, check=False)
    own = ("/run/secrets/dask.pem", "/run/secrets/dask-key.pem")

    assert refused.returncode
    assert "Error" in refused.stderr
    clustered.exec("worker", *connect, SCHEDULER, *own)


def test_the_key_is_the_same_after_a_start_and_another_one_after_its_rotation(clustered: Stack) -> None:
    def key() -> str:
        return clustered.exec("dask-scheduler", "cat", "/run/secrets/dask-key.pem").stdout

    before = key()
    clustered.shell("docker compose run --rm --no-deps --no-TTY secrets")
    kept = key()
    said = clustered.shell("make -s rotate NAME=DASK_SECRET").stdout

    assert kept == before
    assert key() != before
    assert all(service in said for service in ("worker", "dask-worker", "dask-scheduler"))
    clustered.forget_credentials()
    with clustered.prefect() as api:
        assert wait_for(api, trigger(api, "squares", count=4))["values"] == values(4)
