"""Time the stack's start, and what it costs while it does nothing.

A stack of its own (project name, ports, volumes) from a copy of the checkout, with the images built before:

- first: `docker compose up -d --wait` on empty volumes, to its return
- second: the same after `docker compose down`, on the volumes of the first
- again: the same with everything running
- idle: memory by service as `docker stats` counts it, and CPU seconds a minute, after the first run has ended
- trivial: a trivial flow, triggered through the API, until Running and until Completed, by the server's clock
"""

import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx

from bench.report import save, summary
from infra.provision.follow import FINAL, find_deployment
from tests.stack.stack import Stack, copy_checkout

ROUNDS, RUNS = 3, 20
TRIVIAL = "from prefect import flow\n\n\n@flow\ndef trivial():\n    return None\n"
ENTRY = "\n  - name: trivial\n    entrypoint: flows/trivial.py:trivial\n    work_pool: *training\n"


def timed(stack: Stack, command: str) -> float:
    """Return how long a command took, in seconds."""
    start = time.monotonic()
    stack.shell(command)
    return time.monotonic() - start


def memory(stack: Stack) -> dict[str, float]:
    """Return each service's memory in MiB, without the page cache that the kernel can take back."""
    lines = stack.shell("docker compose stats --no-stream --format json").stdout.splitlines()
    units = {"MiB": 1.0, "GiB": 1024.0, "KiB": 1 / 1024, "B": 2**-20}

    def mebibytes(text: str) -> float:
        unit = next(unit for unit in units if text.endswith(unit))
        return round(float(text.removesuffix(unit)) * units[unit], 1)

    rows = [json.loads(line) for line in lines]
    services = {row["Name"].removeprefix(f"{stack.project}-").rsplit("-", 1)[0]: row for row in rows}
    used = {service: mebibytes(row["MemUsage"].split(" / ")[0]) for service, row in sorted(services.items())}
    used.pop("upstream", None)
    return {**used, "all": round(sum(used.values()), 1)}


def cpu_seconds(stack: Stack) -> float:
    """Return the CPU seconds that the services' containers have used so far."""
    total = 0.0
    for service, container in stack.containers().items():
        if container["State"]["Running"] and service != "upstream":
            stat = Path(f"/sys/fs/cgroup/system.slice/docker-{container['Id']}.scope/cpu.stat")
            stat = stat if stat.exists() else Path(f"/sys/fs/cgroup/docker/{container['Id']}/cpu.stat")
            if stat.exists():
                total += int(stat.read_text().split()[1]) / 1e6
            else:  # cgroup v1
                usage = Path(f"/sys/fs/cgroup/cpuacct/docker/{container['Id']}/cpuacct.usage")
                total += int(usage.read_text()) / 1e9
    return total


def run_once(api: httpx.Client, deployment_id: str) -> tuple[float, float]:
    """Trigger a run; return the seconds until Running and until Completed."""
    triggered = time.time()
    run = api.post(f"/deployments/{deployment_id}/create_flow_run", json={}).raise_for_status().json()
    state = run["state"]
    while state["type"] not in FINAL:
        Event().wait(0.05)
        state = api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state"]
    assert state["type"] == "COMPLETED", state
    states = api.get("/flow_run_states/", params={"flow_run_id": run["id"]}).raise_for_status().json()
    times = {state["type"]: datetime.fromisoformat(state["timestamp"]).timestamp() for state in states}
    return times["RUNNING"] - triggered, times["COMPLETED"] - triggered


def measure(stack: Stack) -> dict[str, Any]:
    """Start and stop the stack a few times; then leave it alone, and then use it."""
    starts: dict[str, list[float]] = {"first": [], "second": [], "again": []}
    up = "docker compose up -d --wait"
    stack.shell("docker compose build")
    for _ in range(ROUNDS):
        stack.remove()
        starts["first"].append(timed(stack, up))
        stack.wait_for_first_run()
        stack.shell("docker compose down")
        starts["second"].append(timed(stack, up))
        starts["again"].append(timed(stack, up))
    Event().wait(30)  # until the start itself has cooled down
    used, before = memory(stack), cpu_seconds(stack)
    Event().wait(60)
    idle = {"memory_mib": used, "cpu_seconds_a_minute": round(cpu_seconds(stack) - before, 2)}

    (stack.home / "flows/trivial.py").write_text(TRIVIAL)
    with (stack.home / "prefect.yaml").open("a") as project:
        project.write(ENTRY)
    stack.shell("make deploy")
    with stack.prefect() as api:
        deployment = find_deployment(api, "trivial")["id"]
        times = [run_once(api, deployment) for _ in range(RUNS + 1)][1:]
    return {
        "up_seconds": {name: summary(values) for name, values in starts.items()},
        "idle": idle,
        "trivial_flow_seconds": {
            "to_running": summary([running for running, _ in times]),
            "to_completed": summary([completed for _, completed in times]),
        },
    }


def main() -> None:
    """Measure and save."""
    with tempfile.TemporaryDirectory() as home:
        copy_checkout(Path(home))
        stack = Stack(Path(home))
        try:
            save("start", measure(stack))
        finally:
            stack.remove()


if __name__ == "__main__":
    main()
