"""Measure `docker compose up -d --wait` with built images: how long it takes, what it computes, and what it reads.

- first: with empty volumes
- second: after `docker compose down`, with the volumes of the first
- cold: the same with an empty page cache, as after the host's start; only root can empty it
- again: with everything running
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.idle import cpu_seconds
from bench.report import save, summary
from bench.stack import plain_stack
from infra.testing.stack import RUNNING, Stack

ROUNDS = 3


@dataclass
class Starts:
    """Measurements of one kind of start."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of the whole machine, Docker's among it."""
    read_mib: list[float] = field(default_factory=list)
    """Read from disks."""
    services: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of each service until `up` returned."""

    def measure(self, stack: Stack) -> None:
        """Run it once."""
        start, busy, read = time.monotonic(), busy_seconds(), read_mib()
        stack.shell("docker compose up -d --wait")
        self.seconds.append(time.monotonic() - start)
        self.cpu_seconds.append(busy_seconds() - busy)
        self.read_mib.append(read_mib() - read)
        for service, used in cpu_seconds(stack, RUNNING).items():
            self.services.setdefault(service, []).append(used)

    def summarize(self) -> dict[str, object]:
        """Return the summaries of all."""
        return {
            "seconds": summary(self.seconds),
            "cpu_seconds": summary(self.cpu_seconds),
            "read_mib": summary(self.read_mib),
            "services_cpu_seconds": {service: summary(used) for service, used in sorted(self.services.items())},
        }


def busy_seconds() -> float:
    """Return the CPU time that the machine has spent since its start, over all cores."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def read_mib() -> float:
    """Return what the machine has read from disks since its start."""
    rows = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(rows["pgpgin"]) / 1024


def main() -> None:
    """Measure and save."""
    starts = {name: Starts() for name in ("first", "second", "cold", "again")}
    with plain_stack() as stack:
        stack.environment["COMPOSE_FILE"] = "docker-compose.yml"
        for _ in range(ROUNDS):
            stack.shell("docker compose down --volumes")
            stack.forget_credentials()
            starts["first"].measure(stack)
            stack.wait_for_first_run()
            stack.shell("docker compose down")
            starts["second"].measure(stack)
            starts["again"].measure(stack)
            if os.geteuid() == 0:
                stack.shell("docker compose down && sync && echo 3 >/proc/sys/vm/drop_caches")
                starts["cold"].measure(stack)
    save("start", {name: measured.summarize() for name, measured in starts.items() if measured.seconds})


if __name__ == "__main__":
    main()
