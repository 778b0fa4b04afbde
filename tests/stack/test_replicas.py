"""infra/compose/replicas.yml: two Prefect servers, the background services and Redis, each of which may die while runs go on."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack, add_flows, copy_checkout
from infra.testing.waiting import wait_until
from trainyard.contract import State

pytestmark = pytest.mark.slow

COMPOSE_FILE = "docker-compose.yml:infra/compose/replicas.yml"
REPLICAS = ("prefect-api-1", "prefect-api-2")
SHARING = (*REPLICAS, "prefect-services", "redis")
RUNS = 50
PROBES = '''
import time

from prefect import flow, task


@task
def double(number: int) -> int:
    return 2 * number


@flow(log_prints=True)
def linger(number: int):
    """Take some time between two lines, with a task."""
    print(f"begun with {number}")
    time.sleep(2)
    print(f"ended with {double(number)}")


@flow
def fail():
    raise ValueError("on purpose")
'''
DEPLOYMENTS = """
  - {name: linger, entrypoint: "flows/probes.py:linger", work_pool: {name: training}}
  - {name: fail, entrypoint: "flows/probes.py:fail", work_pool: {name: training}, tags: [mail]}
"""

Boot = Callable[..., AbstractContextManager[Stack]]


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Stack]:
    """The servers with their balancer, and what runs need."""
    home = tmp_path_factory.mktemp("replicated")
    copy_checkout(home)
    add_flows(home, PROBES, DEPLOYMENTS)
    stack = Stack(home, COMPOSE_FILE=COMPOSE_FILE, FIRST_RUN="", SCHEDULES_ACTIVE="false")
    with boot(stack, lambda stack: stack.up("worker", "mail")):
        yield stack


@pytest.fixture
def api(replicated: Stack) -> Iterator[httpx.Client]:
    with replicated.prefect() as api:
        yield api


def kill(stack: Stack, service: str) -> None:
    """Kill a service's process, which Docker then starts again."""
    stack.exec(service, "bash", "-c", "kill -9 $(< /proc/1/task/1/children)", check=False)


def read(api: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """Ask until there is an answer: a server may be killed while it works on one."""
    answers: list[Any] = []

    def answered() -> bool:
        try:
            answer = api.request(method, path, **options)
        except httpx.TransportError:
            return False
        if answer.is_success:
            answers.append(answer.json())
        return answer.is_success

    wait_until(answered, 60, f"an answer of {path}", every=0.2)
    return answers[0]


def trigger(api: httpx.Client, name: str, **parameters: Any) -> str:
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    answer = api.post(f"/deployments/{find_deployment(api, name)['id']}/create_flow_run", json=body)
    return answer.raise_for_status().json()["id"]


def count(api: httpx.Client, runs: list[str], *types: str) -> int:
    query = {"flow_runs": {"id": {"any_": runs}, "state": {"type": {"any_": types}}}}
    return int(read(api, "POST", "/flow_runs/count", json=query))


def names_of(api: httpx.Client, run: str) -> list[str]:
    states = read(api, "GET", "/flow_run_states/", params={"flow_run_id": run})
    return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]


def lines_of(api: httpx.Client, run: str) -> list[str]:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
    return [log["message"] for log in read(api, "POST", "/logs/filter", json=query)]


def stored_completions(stack: Stack) -> set[str]:
    """Return the runs whose completion is an event in the database, where people and monitoring read it."""
    query = "SELECT resource_id FROM events WHERE event = 'prefect.flow-run.Completed'"
    found = stack.exec("postgres", "psql", "-qtAd", "prefect", "-c", query).stdout.split()
    return {name.removeprefix("prefect.flow-run.") for name in found}


def wait_for_completed(api: httpx.Client, runs: list[str], number: int) -> None:
    wait_until(lambda: count(api, runs, "COMPLETED") >= number, 180, f"{number} runs", every=0.2)


def wait_for_mail(stack: Stack, api: httpx.Client, run: str) -> None:
    """Wait for the mail about a run: an automation of the services reads its event, and lets a run send the mail."""
    name = read(api, "GET", f"/flow_runs/{run}")["name"]

    def arrived() -> bool:
        found = mailbox.get("/messages", params={"limit": 200}).raise_for_status().json()["messages"]
        return sum(mail["Subject"].endswith(f": {name}") for mail in found) == 1

    with stack.mailbox() as mailbox:
        wait_until(arrived, 60, f"the mail about {name}", every=1)


def test_nothing_new_is_published_and_redis_is_for_the_servers_alone(replicated: Stack) -> None:
    containers = replicated.containers()
    unnamed = replicated.exec("redis", "redis-cli", "ping")

    assert not any(containers[service]["NetworkSettings"]["Ports"].get("4200/tcp") for service in REPLICAS)
    assert set(containers["redis"]["NetworkSettings"]["Networks"]) == {f"{replicated.project}_messages"}
    assert set(containers["prefect"]["NetworkSettings"]["Networks"]) == {f"{replicated.project}_platform"}
    assert unnamed.stdout.startswith("NOAUTH")
    assert replicated.exec("redis", "cat", "/run/secrets/password").stdout not in json.dumps(containers)


def test_a_server_then_redis_then_the_services_are_killed_during_fifty_runs_and_nothing_is_lost(
    replicated: Stack, api: httpx.Client
) -> None:
    with ThreadPoolExecutor(8) as callers:
        runs = list(callers.map(lambda number: trigger(api, "linger", number=number), range(RUNS)))
    failing = []
    for completed, victim in ((5, REPLICAS[0]), (20, "redis"), (35, "prefect-services")):
        wait_for_completed(api, runs, completed)
        failing.append(trigger(api, "fail"))
        kill(replicated, victim)
    wait_until(lambda: count(api, runs, *State.FINAL_TYPES) == RUNS, 300, "the runs to end", every=1)

    histories = [names_of(api, run) for run in runs]
    assert {history[-1] for history in histories} == {"Completed"}
    assert {history.count("Running") for history in histories} == {1}
    for number, run in enumerate(runs):
        lines = lines_of(api, run)
        assert f"begun with {number}" in lines
        assert f"ended with {2 * number}" in lines
    wait_until(lambda: stored_completions(replicated) >= set(runs), 60, "the events of their completion", every=1)
    for run in failing:
        wait_for_mail(replicated, api, run)
    replicated.wait_until_healthy(services=SHARING)


def test_requests_are_answered_while_one_server_is_away(replicated: Stack, api: httpx.Client) -> None:
    for away in REPLICAS:
        replicated.shell(f"docker compose stop {away}")
        # Until the balancer has noticed; older versions of Caddy answer 502 meanwhile where a request has a body.
        wait_until(lambda: api.post("/deployments/count", json={}).is_success, 5, "an answer", every=0.1)
        statuses = [api.post("/deployments/count", json={}).status_code for _ in range(20)]
        replicated.shell(f"docker compose up --detach --wait --no-deps {away}")

        assert set(statuses) == {200}


def test_a_new_password_of_redis_is_that_of_all_who_use_it(replicated: Stack) -> None:
    before = replicated.exec("redis", "cat", "/run/secrets/password").stdout
    said = replicated.shell("make -s rotate NAME=REDIS_PASSWORD").stdout
    replicated.forget_credentials()

    assert replicated.exec("redis", "cat", "/run/secrets/password").stdout != before
    assert all(service in said for service in SHARING)
    with replicated.prefect() as api:
        run = trigger(api, "linger", number=1)
        wait_until(lambda: count(api, [run], "COMPLETED") == 1, 60, "the run", every=0.5)


def test_doctor_finds_nothing_wrong(replicated: Stack) -> None:
    assert replicated.shell("make -s doctor", check=False).stdout.endswith("Nothing is wrong.\n")
