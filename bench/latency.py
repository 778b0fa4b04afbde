"""Measure a run's latency from the trigger to Running and to Completed.

Prefect's process worker with its default poll interval and with one second, and the warm worker, take turns on one
server. One flow imports nothing; the other imports pandas, scikit-learn and mlflow.
"""

import random
from threading import Event

import httpx

from bench.report import save, summary
from bench.stack import FLOWS, POOLS, run_once, stack_with_peers
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

RUNS = 20


def measure(stack: Stack, api: httpx.Client) -> None:  # noqa: ARG001 - as the other measurements
    """Run the measurements and save the results."""
    order = random.Random(0)
    cases = [(flow, worker) for flow in FLOWS for worker in POOLS]
    deployments = {(f, w): find_deployment(api, f"{f}-{POOLS[w]}")["id"] for f, w in cases}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {case: [] for case in cases}
    for turn in range(RUNS + 1):
        order.shuffle(cases)
        for case in cases:
            Event().wait(order.uniform(0.2, 1.2))  # at a random phase of the poll interval
            result = run_once(api, deployments[case])
            if turn:  # the first warms the caches
                times[case].append(result)
    save(
        "latency",
        {
            flow: {
                worker: {
                    "to_running_seconds": summary([running for running, _ in times[flow, worker]]),
                    "to_completed_seconds": summary([completed for _, completed in times[flow, worker]]),
                }
                for worker in POOLS
            }
            for flow in FLOWS
        },
    )


def main() -> None:
    """Measure on a stack of its own."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
