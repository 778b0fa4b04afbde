"""Measure how long `docker compose up -d --wait` takes with built images.

- first: with empty volumes
- second: after `docker compose down`, with the volumes of the first
- again: with everything running
"""

import time

from bench.report import save, summary
from bench.stack import plain_stack
from infra.testing.stack import Stack

ROUNDS = 3


def timed_up(stack: Stack) -> float:
    """Run it; return the duration in seconds."""
    start = time.monotonic()
    stack.shell("docker compose up -d --wait")
    return time.monotonic() - start


def main() -> None:
    """Measure and save."""
    starts: dict[str, list[float]] = {"first": [], "second": [], "again": []}
    with plain_stack() as stack:
        stack.environment["COMPOSE_FILE"] = "docker-compose.yml"
        for _ in range(ROUNDS):
            stack.shell("docker compose down --volumes")
            stack.forget_credentials()
            starts["first"].append(timed_up(stack))
            stack.wait_for_first_run()
            stack.shell("docker compose down")
            starts["second"].append(timed_up(stack))
            starts["again"].append(timed_up(stack))
    save("start", {f"{name}_seconds": summary(values) for name, values in starts.items()})


if __name__ == "__main__":
    main()
