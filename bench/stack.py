"""The composed stack for benchmarks: with Prefect's own process worker as a peer, and flows that do nothing."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx

from infra.provision.follow import FINAL
from infra.testing.stack import Stack, copy_checkout

POOLS = {"stock": "stock", "stock, 1 s poll": "stock-1s", "warm": "training"}
FLOWS = ("trivial", "heavy")


@contextmanager
def plain_stack() -> Iterator[Stack]:
    """Build the default stack under its own project name and ports, without starting it; remove it at the end."""
    with tempfile.TemporaryDirectory() as home:
        copy_checkout(Path(home))
        stack = Stack(Path(home))
        try:
            stack.shell("docker compose build", timeout=1800)
            yield stack
        finally:
            stack.remove()


@contextmanager
def stack_with_peers() -> Iterator[Stack]:
    """Start a stack with the peers' workers, and a deployment of each flow on each pool."""
    with plain_stack() as stack:
        stack.environment["COMPOSE_FILE"] += ":bench/compose.yml"
        entries = ""
        for flow in FLOWS:
            shutil.copy(stack.home / f"bench/flows/bench_{flow}.py", stack.home / "flows")
            for pool in POOLS.values():
                entries += f"\n  - name: {flow}-{pool}\n    entrypoint: flows/bench_{flow}.py:{flow}\n"
                entries += f"    work_pool: {{name: {pool}}}\n"
        project = stack.home / "prefect.yaml"
        before = project.read_text()
        stack.shell("docker compose up -d --wait", timeout=600)
        stack.wait_for_first_run()
        project.write_text(before + entries)  # after the start: the stock workers create their pools
        stack.shell("make deploy")
        yield stack


def trigger(api: httpx.Client, deployment_id: str, **parameters: Any) -> str:
    """Create a flow run; return its id."""
    answer = api.post(f"/deployments/{deployment_id}/create_flow_run", json={"parameters": parameters})
    return str(answer.raise_for_status().json()["id"])


def run_once(api: httpx.Client, deployment_id: str, timeout: float = 120, **parameters: Any) -> tuple[float, float]:
    """Trigger a run; return the seconds until Running and until Completed, on the server's clock."""
    triggered = time.time()
    run_id = trigger(api, deployment_id, **parameters)
    (run,) = wait_for_all(api, [run_id], timeout)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    states = api.get("/flow_run_states/", params={"flow_run_id": run_id}).raise_for_status().json()
    times = {state["type"]: datetime.fromisoformat(state["timestamp"]).timestamp() for state in states}
    return times["RUNNING"] - triggered, times["COMPLETED"] - triggered


def run_burst(api: httpx.Client, deployment_id: str, number: int, timeout: float = 900) -> float:
    """Trigger many runs at once; return the seconds from the first trigger to the last run's end."""
    start = time.time()
    with ThreadPoolExecutor(8) as callers:
        run_ids = list(callers.map(lambda _: trigger(api, deployment_id), range(number)))
    runs = wait_for_all(api, run_ids, timeout, every=0.5)
    assert {run["state"]["type"] for run in runs} == {"COMPLETED"}
    return max(datetime.fromisoformat(run["end_time"]).timestamp() for run in runs) - start


def wait_until_idle(api: httpx.Client, seconds: float = 2, timeout: float = 300) -> None:
    """Wait until no run has been due or active for some seconds."""
    deadline = time.monotonic() + timeout
    idle_since = None
    while idle_since is None or time.monotonic() < idle_since + seconds:
        assert time.monotonic() < deadline, "the stack is not idle"
        active = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        due = {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "expected_start_time": {"before_": datetime.now(UTC).isoformat()},
        }
        queries = [{"flow_runs": selected} for selected in (active, due)]
        if any(api.post("/flow_runs/count", json=query).raise_for_status().json() for query in queries):
            idle_since = None
        elif idle_since is None:
            idle_since = time.monotonic()
        Event().wait(0.2)


def wait_for_all(api: httpx.Client, run_ids: Sequence[str], timeout: float, every: float = 0.1) -> list[dict[str, Any]]:
    """Wait until all runs have ended; return them."""
    deadline = time.monotonic() + timeout
    query = {"flow_runs": {"id": {"any_": list(run_ids)}}, "limit": 200}
    while True:
        runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=query).raise_for_status().json()
        if len(runs) == len(run_ids) and all(run["state"]["type"] in FINAL for run in runs):
            return runs
        assert time.monotonic() < deadline, "the runs did not end in time"
        Event().wait(every)
