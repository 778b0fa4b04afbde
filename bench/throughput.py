"""Time many trivial runs triggered at once, by Prefect's own worker and by the warm one, at several limits of the pool.

The stock worker polls each second here: its best. A hundred runs are given to it at the highest limit alone, since it
needs minutes for them at the others.
"""

from bench.report import save, summary
from bench.stack import POOLS, burst, stack_with_peers
from infra.provision.follow import find_deployment

LIMITS = (1, 2, 4, 8)
ROUNDS = 3


def main() -> None:
    """Measure and save."""
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with stack_with_peers() as stack, stack.prefect() as api:
        stack.shell("docker compose stop stock")
        for limit in LIMITS:
            for number in (30, 100):
                for worker in ("stock, 1 s poll", "warm"):
                    stock = worker != "warm"
                    if stock and number == 100 and limit != LIMITS[-1]:
                        continue
                    pool = POOLS[worker]
                    api.patch(f"/work_pools/{pool}", json={"concurrency_limit": limit}).raise_for_status()
                    deployment = find_deployment(api, f"trivial-{pool}")["id"]
                    seconds = [burst(api, deployment, number) for _ in range(1 if stock else ROUNDS)]
                    case = results.setdefault(f"{number} runs", {}).setdefault(f"limit {limit}", {})
                    case[worker] = summary(seconds)
                    print(number, limit, worker, seconds, flush=True)
    save("throughput", results)


if __name__ == "__main__":
    main()
