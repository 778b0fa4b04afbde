"""Runs wait for servers that are away; locks survive a server that is killed, and nothing holds one for ever."""

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import State, Tag

LEASE_SECONDS = 60


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Prefect's API."""
    with stack.prefect() as api:
        yield api


@pytest.fixture
def lock(api: httpx.Client) -> str:
    """A concurrency limit of one slot."""
    name = f"lock-{uuid4().hex[:8]}"
    api.post("/v2/concurrency_limits/", json={"name": name, "limit": 1}).raise_for_status()
    return name


@pytest.fixture
def run(api: httpx.Client) -> Iterator[str]:
    """A running flow run."""
    flow = api.post("/flows/", json={"name": "holds-a-lock"}).raise_for_status().json()["id"]
    run = api.post("/flow_runs/", json={"flow_id": flow, "state": {"type": "RUNNING"}}).raise_for_status().json()["id"]
    yield run
    end(api, run)


def end(api: httpx.Client, run: str) -> None:
    """Set a run to Crashed, as the worker does when its process was killed."""
    body = {"state": {"type": "CRASHED"}, "force": True}
    api.post(f"/flow_runs/{run}/set_state", json=body).raise_for_status()


def acquire(api: httpx.Client, lock: str, run: str) -> httpx.Response:
    """Ask for the slot of a lock."""
    holder = {"type": "flow_run", "id": run}
    body = {"names": [lock], "slots": 1, "lease_duration": LEASE_SECONDS, "holder": holder}
    return api.post("/v2/concurrency_limits/increment-with-lease", json=body)


def kill_server(stack: Stack, api: httpx.Client) -> None:
    """Kill the Prefect server's process; return once Docker has restarted it."""
    started = stack.containers()["prefect"]["State"]["StartedAt"]
    stack.exec("prefect", "bash", "-c", "kill -9 $(< /proc/1/task/1/children)", check=False)

    def is_back() -> bool:
        try:
            return stack.containers()["prefect"]["State"]["StartedAt"] != started and api.get("/ready").is_success
        except httpx.TransportError:
            return False

    wait_until(is_back, 60, "the server's restart")


def test_a_killed_server_remembers_who_holds_a_lock(stack: Stack, api: httpx.Client, lock: str, run: str) -> None:
    lease = acquire(api, lock, run).raise_for_status().json()["lease_id"]
    kill_server(stack, api)

    assert acquire(api, lock, run).status_code == httpx.codes.LOCKED
    renewal = api.post(f"/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": LEASE_SECONDS})
    assert renewal.status_code == httpx.codes.NO_CONTENT
    released = api.post("/v2/concurrency_limits/decrement-with-lease", json={"lease_id": lease})
    assert released.status_code == httpx.codes.NO_CONTENT
    assert acquire(api, lock, run).is_success


def test_a_lock_is_free_again_after_its_holder_and_the_server_were_killed(
    stack: Stack, api: httpx.Client, lock: str, run: str
) -> None:
    acquire(api, lock, run).raise_for_status()
    kill_server(stack, api)
    end(api, run)

    wait_until(lambda: acquire(api, lock, str(uuid4())).is_success, 40, "the lock", every=1)


def test_a_slot_that_was_taken_without_a_lease_is_freed(stack: Stack, api: httpx.Client, lock: str, run: str) -> None:
    statement = f"UPDATE concurrency_limit_v2 SET active_slots = 1 WHERE name = '{lock}'"
    stack.exec("postgres", "psql", "-qd", "prefect", "-c", statement)
    refused = acquire(api, lock, run)

    assert refused.status_code == httpx.codes.LOCKED
    wait_until(lambda: acquire(api, lock, str(uuid4())).is_success, 60, "the lock", every=1)


def test_a_run_waits_out_the_absence_of_every_server(stack: Stack, api: httpx.Client) -> None:
    stack.wait_for_first_run()
    deployment = find_deployment(api, "weather-pipeline")["id"]
    # A recipe of its own, which is logged although it is not promoted.
    recipe = {"families": ["logistic-regression"], "years": 2, "holdout_fraction": 0.22}
    parameters = {**recipe, "refresh": True, "gate": {"min_improvement": 1}}
    run = api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters}).json()["id"]
    wait_until(lambda: api.get(f"/flow_runs/{run}").json()["state_type"] == "RUNNING", 30, "the run", every=0.1)
    servers = " ".join(f"{stack.project}-{name}-1" for name in ("prefect", "mlflow", "postgres", "minio", "mail"))
    # On a busy machine the kernel may not stop all of a container's processes in the time that Docker gives it.
    pause = f"for name in {servers}; do for _ in {{1..20}}; do docker pause $name && break; sleep 0.5; done; done"
    stack.shell(f"{pause}; sleep 45; docker unpause {servers}")
    stack.wait_until_healthy()

    def has_ended() -> bool:
        return api.get(f"/flow_runs/{run}").json()["state_type"] in State.FINAL_TYPES

    wait_until(has_ended, 120, "the run's end", every=0.5)
    ended = api.get(f"/flow_runs/{run}").json()
    with stack.mlflow() as mlflow:
        experiment = mlflow.get("/experiments/get-by-name", params={"experiment_name": "weather"}).json()["experiment"]
        query = {"experiment_ids": [experiment["experiment_id"]], "filter": f"tags.`{Tag.FLOW_RUN_ID}` = '{run}'"}
        trainings = mlflow.post("/runs/search", json=query).raise_for_status().json()["runs"]

    assert (ended["state_type"], ended["run_count"]) == ("COMPLETED", 1), ended["state"]
    assert [training["info"]["status"] for training in trainings] == ["FINISHED"]
