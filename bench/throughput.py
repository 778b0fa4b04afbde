"""Measure the throughput of Prefect's process worker and of the warm worker, at several concurrency limits of the pool.

The stock worker polls every second, its fastest setting. It gets a hundred runs at the highest limit only, because it
needs minutes at the others.
"""

from itertools import product

import httpx

from bench.report import save, summary
from bench.stack import POOLS, run_burst, stack_with_peers
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

LIMITS = (1, 2, 4, 8)
ROUNDS = 3


def measure(stack: Stack, api: httpx.Client) -> None:
    """Run the measurements and save the results."""
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    stack.shell("docker compose stop stock")
    for number, limit, worker in product((30, 100), LIMITS, ("stock, 1 s poll", "warm")):
        stock = worker != "warm"
        if stock and number == 100 and limit != LIMITS[-1]:
            continue
        pool = POOLS[worker]
        api.patch(f"/work_pools/{pool}", json={"concurrency_limit": limit}).raise_for_status()
        deployment = find_deployment(api, f"trivial-{pool}")["id"]
        seconds = [run_burst(api, deployment, number) for _ in range(1 if stock or number == 100 else ROUNDS)]
        results.setdefault(f"{number} runs", {}).setdefault(f"limit {limit}", {})[worker] = summary(seconds)
        save("throughput", results)


def main() -> None:
    """Measure on a stack of its own."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
