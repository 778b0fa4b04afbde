"""Measure whether the stack fits a small machine: all its containers share one control group with that much memory, no swap.

It starts, trains both examples, is backed up and examined, and stays up. Needs root, and Docker with the driver cgroupfs.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import yaml

from bench.report import save
from bench.stack import plain_stack
from infra.testing.stack import Stack

GROUP = "trainyard-small"
MIB = 1 << 20
SYSTEM_MIB = 600
"""What kernel, system and Docker keep of a machine's memory."""
IDLE_SECONDS = 180


class Group:
    """A control group with a limit of memory, of version 1 or 2."""

    def __init__(self, limit: int) -> None:
        self._is_first = Path("/sys/fs/cgroup/memory").exists()
        self.folder = Path("/sys/fs/cgroup/memory" if self._is_first else "/sys/fs/cgroup", GROUP)
        self.folder.mkdir()
        if self._is_first:
            (self.folder / "memory.use_hierarchy").write_text("1")
        self._file("memory.limit_in_bytes", "memory.max").write_text(str(limit))
        swap = self._file("memory.memsw.limit_in_bytes", "memory.swap.max")
        if swap.exists():
            swap.write_text(str(limit) if self._is_first else "0")

    def _file(self, first: str, second: str) -> Path:
        return self.folder / (first if self._is_first else second)

    def needed(self) -> int:
        """Return the bytes that the kernel cannot take back: no page cache."""
        text = (self.folder / "memory.stat").read_text()
        names = ("total_rss", "total_shmem") if self._is_first else ("anon", "shmem")
        return sum(int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE) if name in names)

    def kills(self) -> int:
        """Return how many processes were killed for lack of memory."""
        # Version 1 counts those of each group beneath by itself.
        name = "memory.oom_control" if self._is_first else "memory.events"
        files = self.folder.rglob(name) if self._is_first else [self.folder / name]
        return sum(
            int(count) for file in files for count in re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        )


@contextmanager
def sampled_peak(group: Group) -> Iterator[list[int]]:
    """Yield a list whose only item is the largest need so far, in bytes."""
    peak, over = [0], Event()

    def sample() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], group.needed())

    thread = Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def confine(stack: Stack) -> None:
    """Put all services of a stack into the group, by an override."""
    services = stack.shell("docker compose config --services").stdout.split()
    override = {"services": {name: {"cgroup_parent": f"/{GROUP}"} for name in services}}
    (stack.home / "small.yml").write_text(yaml.safe_dump(override))
    stack.environment["COMPOSE_FILE"] += ":small.yml"


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine-mib", type=int, default=4096)
    limit = (parser.parse_args().machine_mib - SYSTEM_MIB) * MIB
    driver = subprocess.run(["docker", "info", "--format", "{{.CgroupDriver}}"], capture_output=True, text=True).stdout
    if driver.strip() != "cgroupfs":
        sys.exit("This needs Docker with native.cgroupdriver=cgroupfs.")
    group = Group(limit)
    try:
        with plain_stack() as stack, sampled_peak(group) as peak:
            confine(stack)
            results = observe(stack, group, peak)
    finally:
        group.folder.rmdir()
    save("small", {"limit_mib": limit // MIB, **results})


def observe(stack: Stack, group: Group, peak: list[int]) -> dict[str, float]:
    """Start the stack and use it; return figures."""
    results: dict[str, float] = {"up_seconds": round(stack.up(), 1)}
    start = time.monotonic()
    assert stack.wait_for_first_run()["state"]["type"] == "COMPLETED"
    results["first_run_seconds"] = round(time.monotonic() - start, 1)
    results["training_mib"] = peak[0] // MIB
    stack.shell("make run DEPLOYMENT=wine-pipeline")
    stack.shell("make backup")
    report = stack.shell("make doctor", check=False).stdout
    print(report)
    results["peak_mib"] = peak[0] // MIB
    Event().wait(IDLE_SECONDS)
    results["idle_mib"] = group.needed() // MIB
    stack.wait_until_healthy(seconds=30)
    containers = stack.containers().values()
    results["restarts"] = sum(container["RestartCount"] for container in containers)
    results["kills"] = group.kills()
    return results


if __name__ == "__main__":
    main()
