"""Runs on the composed stack are forked, and get true final states whatever is killed."""

import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import pytest

from infra.provision.follow import find_deployment
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from trainyard.contract import Resource, State, Tag

FLOWS = '''
import os, signal, subprocess, time
from pathlib import Path

import mlflow
from prefect import flow, runtime

from trainyard.contract import Tag


@flow(log_prints=True)
def linger(seconds: float = 300):
    """Run with a child process and an open MLflow run until stopped."""
    mlflow.set_experiment("linger")
    mlflow.start_run(tags={Tag.FLOW_RUN_ID: runtime.flow_run.id})
    subprocess.Popen(["sleep", "12345"])
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("\\0", " ")
    print(f"lingering as {os.getpid()} of {parent}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)


@flow
def devour(pause: float):
    """Allocate more memory than the limit, 16 MiB at a time."""
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * (16 << 20)))
        time.sleep(pause)


@flow
def end(how: str):
    """End this process in the middle of the run."""
    if how == "exit":
        os._exit(0)
    if how == "exit 9":
        os._exit(9)
    os.kill(os.getpid(), signal.SIGSEGV)


@flow
def nothing():
    pass
'''
NAMES = ("linger", "devour", "end", "nothing")


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Prefect's API, with this module's flows deployed."""
    stack.wait_for_first_run()
    (stack.home / "flows/probes.py").write_text(FLOWS)
    with (stack.home / "prefect.yaml").open("a") as project:
        for name in NAMES:
            project.write(
                f"\n  - name: {name}\n    entrypoint: flows/probes.py:{name}\n"
                "    work_pool: {name: training, job_variables: {reruns_after_crash: 0}}\n"
            )
        project.write(
            "\n  - name: one-at-a-time\n    entrypoint: flows/probes.py:linger\n    work_pool: {name: training}\n"
            "    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}\n"
            "\n  - name: in-another-queue\n    entrypoint: flows/probes.py:nothing\n"
            "    work_pool: {name: training, work_queue_name: mail}\n"
        )
    stack.shell("make deploy")
    with stack.prefect() as api:
        yield api


@pytest.fixture(scope="module")
def lost_run(stack: Stack, api: httpx.Client) -> str:
    """A run whose worker was killed on another host: of another pool, so that no worker here settles what it left."""
    container, pool = f"{stack.project}-elsewhere", "elsewhere"
    # As the admin: the worker's own account is for its work pool.
    login = shlex.quote(stack.variables()["PREFECT_API_AUTH_STRING"])
    start = f"prefect worker start --pool {pool} --type {Resource.WORK_POOL_TYPE}"
    worker = f"env PREFECT_API_AUTH_STRING={login} {start}"
    stack.shell(f"docker compose run --detach --rm --no-deps --name {container} worker {worker}")
    try:
        wait_until(lambda: api.get(f"/work_pools/{pool}").is_success, 60, "the worker's pool", every=0.3)
        there = {"name": f"linger-{pool}", "work_pool_name": pool}
        here = find_deployment(api, "linger")
        copied = {field: here[field] for field in ("flow_id", "entrypoint", "path", "pull_steps")}
        api.post("/deployments/", json=copied | there).raise_for_status()
        run, _ = wait_until_lingering(api, there["name"])
    finally:
        stack.shell(f"docker kill {container}")
    return run


def trigger(api: httpx.Client, name: str, reruns: int = 0, **parameters: Any) -> str:
    deployment = find_deployment(api, name)["id"]
    body = {"parameters": parameters, "job_variables": {"reruns_after_crash": reruns}}
    response = api.post(f"/deployments/{deployment}/create_flow_run", json=body)
    return response.raise_for_status().json()["id"]


def cancel(api: httpx.Client, run: str) -> None:
    """Cancel a run as the UI does."""
    api.post(f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()


def state_of(api: httpx.Client, run: str) -> dict[str, Any]:
    return api.get(f"/flow_runs/{run}").raise_for_status().json()["state"]


def log_of(api: httpx.Client, run: str) -> str:
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    return "\n".join(log["message"] for log in api.post("/logs/filter", json=query).raise_for_status().json())


def wait_until_lingering(api: httpx.Client, deployment: str = "linger", **options: Any) -> tuple[str, int]:
    """Start `linger`; return its run and its pid in the worker's container once it has its child process and MLflow run."""
    run = trigger(api, deployment, **options)
    wait_until(lambda: "lingering as " in log_of(api, run), 60, "the run to linger", every=0.3)
    return run, int(log_of(api, run).split("lingering as ")[1].split()[0])


def expect_end(stack: Stack, api: httpx.Client, run: str, name: str, seconds: float = 90) -> str:
    """Wait until a run has ended in the named state; return the state's message."""
    wait_until(lambda: state_of(api, run)["type"] in State.FINAL_TYPES, seconds, f"the run to be {name}", every=0.3)
    state = state_of(api, run)
    assert state["name"] == name, state
    return state["message"]


def expect_nothing_left(stack: Stack, run: str, status: str) -> None:
    """Check that a run of `linger` has left neither a process nor an open MLflow run."""
    with stack.mlflow() as mlflow:
        experiment = mlflow.get("/experiments/get-by-name", params={"experiment_name": "linger"}).json()
        query = {
            "experiment_ids": [experiment["experiment"]["experiment_id"]],
            "filter": f"tags.`{Tag.FLOW_RUN_ID}` = '{run}'",
        }

        def ended() -> bool:
            (logged,) = mlflow.post("/runs/search", json=query).raise_for_status().json()["runs"]
            return logged["info"]["status"] == status

        wait_until(ended, 20, f"the MLflow run to be {status}", every=0.3)
    processes = "import pathlib; print(*(p.read_text() for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')))"
    wait_until(lambda: "12345" not in stack.python("worker", processes).stdout, 10, "its processes to end", every=0.5)


def start_workers(stack: Stack, number: int = 1) -> None:
    """Start or remove containers of the worker until there are as many; leave everything else as it is."""
    stack.shell(f"docker compose up --detach --wait --no-deps --no-recreate --scale worker={number} worker")


def count_warm_processes(stack: Stack) -> int:
    """Return how many of the running workers have a warm process that is ready."""
    containers = stack.shell("docker compose ps --quiet worker").stdout.split()
    logs = [stack.shell(f"docker logs {container} 2>&1").stdout for container in containers]
    return sum("The warm process (PID" in log for log in logs)


def warm_pid(stack: Stack) -> int:
    program = (
        "import pathlib; print(next(p.parent.name for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')"
        " if 'warm_process.zygote' in p.read_text()))"
    )
    return int(stack.python("worker", program).stdout)


def test_a_run_is_forked_and_a_cancelled_one_leaves_nothing(stack: Stack, api: httpx.Client) -> None:
    run, _ = wait_until_lingering(api)
    log = log_of(api, run)
    cancel(api, run)

    assert "warm_process.zygote" in log
    assert "Cold start" not in log
    expect_end(stack, api, run, "Cancelled")
    expect_nothing_left(stack, run, "KILLED")


def test_a_cancel_at_any_moment_before_running_cancels(stack: Stack, api: httpx.Client) -> None:
    runs = []
    for moment in range(0, 650, 50):
        run = trigger(api, "linger")
        Event().wait(moment / 1000)  # waits for nothing: the moment is what is tested
        cancel(api, run)
        runs.append(run)

    for run in runs:
        expect_end(stack, api, run, "Cancelled")


@pytest.mark.parametrize(
    ("how", "reason"),
    [("exit", "code 0 in the middle of the run"), ("exit 9", "code 9"), ("fault", "signal 11 (SIGSEGV)")],
)
def test_a_process_that_ends_by_itself_is_crashed(stack: Stack, api: httpx.Client, how: str, reason: str) -> None:
    assert reason in expect_end(stack, api, trigger(api, "end", how=how), "Crashed")


def test_the_worker_finds_runs_after_a_restart_of_the_server(stack: Stack, api: httpx.Client) -> None:
    stack.shell("docker compose restart prefect")

    def is_ready() -> bool:
        try:
            return api.get("/ready").is_success
        except httpx.TransportError:
            return False

    wait_until(is_ready, 60, "the server to be ready", every=0.5)
    expect_end(stack, api, trigger(api, "nothing"), "Completed", seconds=60)


def test_a_run_on_another_host_is_not_settled_here(api: httpx.Client, lost_run: str) -> None:
    assert state_of(api, lost_run)["type"] == "RUNNING"


def test_a_killed_process_is_crashed_with_the_reason(stack: Stack, api: httpx.Client) -> None:
    run, pid = wait_until_lingering(api)
    stack.exec("worker", "python", "-c", f"import os; os.kill({pid}, 9)")

    assert "killed by signal 9" in expect_end(stack, api, run, "Crashed")
    expect_nothing_left(stack, run, "FAILED")


@pytest.mark.parametrize(
    ("pause", "reasons"),
    [
        # With what the worker and other runs use, the container may be full first.
        (0.05, r"more than its limit of 512 MiB \(the default where|the worker's memory of 1 GiB was exhausted"),
        # Too fast for the worker to see it in each case; the kernel is there then.
        pytest.param(
            0.0,
            r"more than its limit of 512 MiB|memory of 1 GiB was exhausted|out of memory, limit 1 GiB",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_out_of_memory_is_the_reason_and_the_worker_survives(
    stack: Stack, api: httpx.Client, pause: float, reasons: str
) -> None:
    before = stack.containers()["worker"]["State"]["StartedAt"]
    run = trigger(api, "devour", pause=pause)
    message = expect_end(stack, api, run, "Crashed", seconds=120)

    assert re.search(reasons, message), message
    assert stack.containers()["worker"]["State"]["StartedAt"] == before
    expect_end(stack, api, trigger(api, "nothing"), "Completed")


def test_the_runs_of_a_killed_warm_process_are_settled(stack: Stack, api: httpx.Client) -> None:
    run, _ = wait_until_lingering(api)
    stack.exec("worker", "python", "-c", f"import os; os.kill({warm_pid(stack)}, 9)")

    expect_end(stack, api, run, "Crashed")
    expect_nothing_left(stack, run, "FAILED")
    expect_end(stack, api, trigger(api, "nothing"), "Completed")


def test_a_stopped_worker_settles_the_runs_that_do_not_finish(stack: Stack, api: httpx.Client) -> None:
    once, _ = wait_until_lingering(api)
    repeated, _ = wait_until_lingering(api, reruns=2)
    stack.shell("docker compose stop worker")
    given_back = state_of(api, repeated)

    expect_end(stack, api, once, "Crashed", seconds=1)
    assert given_back["type"] == "SCHEDULED"
    assert "the worker that ran it was stopped" in given_back["message"]
    start_workers(stack)
    wait_until(lambda: state_of(api, repeated)["type"] == "RUNNING", 60, "the run to run again", every=0.3)
    cancel(api, repeated)
    expect_end(stack, api, repeated, "Cancelled")
    expect_nothing_left(stack, once, "KILLED")  # by its own process, which was told to end


def test_a_stopped_worker_lets_runs_finish(stack: Stack, api: httpx.Client) -> None:
    run = trigger(api, "linger", seconds=5)
    wait_until(lambda: "lingering as " in log_of(api, run), 60, "the run to linger", every=0.3)
    stack.shell("docker compose stop worker")

    expect_end(stack, api, run, "Completed", seconds=1)
    start_workers(stack)


def test_the_next_worker_settles_what_a_killed_container_left(stack: Stack, api: httpx.Client) -> None:
    run, _ = wait_until_lingering(api)
    stack.shell("docker compose kill worker")
    assert state_of(api, run)["type"] == "RUNNING"
    start_workers(stack)

    assert "the worker that ran it was killed" in expect_end(stack, api, run, "Crashed")
    expect_nothing_left(stack, run, "FAILED")


def test_two_workers_start_each_of_many_runs_once(stack: Stack, api: httpx.Client) -> None:
    start_workers(stack, 2)
    try:
        # Else one of them may take all runs while the other one is not ready.
        wait_until(lambda: count_warm_processes(stack) == 2, 120, "the workers' warm processes", every=0.5)
        with ThreadPoolExecutor(8) as callers:
            runs = list(callers.map(lambda _: trigger(api, "nothing"), range(24)))
        query = {"flow_runs": {"id": {"any_": runs}, "state": {"type": {"any_": ["COMPLETED"]}}}}

        def completed() -> bool:
            return api.post("/flow_runs/count", json=query).raise_for_status().json() == len(runs)

        wait_until(completed, 240, "the runs to complete", every=1)
    finally:
        start_workers(stack)

    workers = set()
    for run in runs:
        states = api.get("/flow_run_states/", params={"flow_run_id": run}).raise_for_status().json()
        assert [state["type"] for state in states].count("RUNNING") == 1
        workers.add(api.get(f"/flow_runs/{run}").raise_for_status().json()["labels"]["prefect.worker.name"])
    assert len(workers) == 2


@pytest.mark.slow
def test_runs_that_wait_for_a_slot_keep_no_other_waiting(stack: Stack, api: httpx.Client) -> None:
    first = trigger(api, "one-at-a-time")
    with ThreadPoolExecutor(8) as callers:
        waiting = list(callers.map(lambda _: trigger(api, "one-at-a-time"), range(205)))  # more than a page
    for other in ("nothing", "in-another-queue"):
        expect_end(stack, api, trigger(api, other), "Completed")
    is_running = state_of(api, first)["type"] == "RUNNING"
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda run: api.delete(f"/flow_runs/{run}"), waiting))
    cancel(api, first)

    assert is_running


def test_a_run_whose_worker_never_comes_back_is_crashed_by_the_server(
    stack: Stack, api: httpx.Client, lost_run: str
) -> None:
    assert "it sent no heartbeat for 120 seconds" in expect_end(stack, api, lost_run, "Crashed", seconds=210)
