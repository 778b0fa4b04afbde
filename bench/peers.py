"""Run all comparisons with Prefect's process worker on one stack."""

from bench import idle, latency, pipeline, throughput
from bench.stack import stack_with_peers


def main() -> None:
    """Measure and save."""
    with stack_with_peers() as stack, stack.prefect() as api:
        for benchmark in (latency, idle, pipeline, throughput):
            benchmark.measure(stack, api)


if __name__ == "__main__":
    main()
