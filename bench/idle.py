"""Measure memory and CPU of each service while idle, with the warm worker and with Prefect's process worker."""

import json
from collections.abc import Collection
from pathlib import Path
from threading import Event
from typing import Any

import httpx

from bench.report import save
from bench.stack import stack_with_peers
from infra.testing.stack import Stack

SERVICES = ("prefect", "mlflow", "postgres", "minio", "mail", "worker", "stock", "stock-1s")
SECONDS = 60
UNITS = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0, "B": 2**-20}


def memory_mib(stack: Stack) -> dict[str, float]:
    """Return each running service's memory in MiB according to `docker stats`, which leaves out the page cache."""
    rows = map(json.loads, stack.shell("docker compose stats --no-stream --format json").stdout.splitlines())
    used = {}
    for row in rows:
        service = row["Name"].removeprefix(f"{stack.project}-").rsplit("-", 1)[0]
        text = row["MemUsage"].split(" / ")[0]
        unit = next(unit for unit in UNITS if text.endswith(unit))
        used[service] = round(float(text.removesuffix(unit)) * UNITS[unit], 1)
    return {service: used[service] for service in SERVICES if service in used}


def cpu_seconds(stack: Stack, services: Collection[str] = SERVICES) -> dict[str, float]:
    """Return the CPU seconds used so far by each of these services that runs, from its control group (v1 or v2)."""
    used = {}
    for service, container in stack.containers().items():
        if service not in services or not container["State"]["Running"]:
            continue
        group = container["Id"]
        version_2 = (
            f"/sys/fs/cgroup/system.slice/docker-{group}.scope/cpu.stat",
            f"/sys/fs/cgroup/docker/{group}/cpu.stat",
        )
        for file in map(Path, version_2):
            if file.exists():
                used[service] = int(file.read_text().split()[1]) / 1e6
        if service not in used:
            used[service] = int(Path(f"/sys/fs/cgroup/cpuacct/docker/{group}/cpuacct.usage").read_text()) / 1e9
    return used


def observe(stack: Stack) -> dict[str, Any]:
    """Return memory, and CPU seconds per minute, of an idle period."""
    Event().wait(SECONDS / 2)  # let starts and stops settle
    before = cpu_seconds(stack)
    Event().wait(SECONDS)
    after = cpu_seconds(stack)
    cpu = {service: round((after[service] - before[service]) * 60 / SECONDS, 2) for service in after}
    used = memory_mib(stack)
    return {
        "memory_mib": used | {"all": round(sum(used.values()), 1)},
        "cpu_seconds_a_minute": cpu | {"all": round(sum(cpu.values()), 2)},
    }


def measure(stack: Stack, api: httpx.Client) -> None:  # noqa: ARG001 - as the other measurements
    """Run the measurements and save the results."""
    results = {}
    for name, worker in (("warm", "worker"), ("stock", "stock"), ("stock, 1 s poll", "stock-1s")):
        stack.shell("docker compose stop worker stock stock-1s plain")
        stack.shell(f"docker compose start {worker}")
        results[name] = observe(stack)
    stack.shell("docker compose start worker stock stock-1s plain")
    save("idle", results)


def main() -> None:
    """Measure on a stack of its own."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
