"""Time the weather pipeline on the stack against the same functions in a plain script, in turns, on the same data."""

import json

import httpx

from bench.report import save, summary
from bench.stack import run_once, stack_with_peers
from infra.provision.follow import find_deployment
from tests.stack.stack import Stack

RUNS = 20


def measure(stack: Stack, api: httpx.Client) -> None:
    """Measure and save."""
    pipeline, plain = [], []
    deployment = find_deployment(api, "weather-pipeline")["id"]
    for turn in range(RUNS + 1):
        _, completed = run_once(api, deployment)
        script = json.loads(stack.python("plain", "import runpy; runpy.run_module('bench.plain_weather')").stdout)
        if turn:
            pipeline.append(completed)
            plain.append(script)
    whole = summary([script["all"] for script in plain])
    work = summary([script["all"] - script["imports"] for script in plain])
    mine = summary(pipeline)
    save(
        "pipeline",
        {
            "pipeline_trigger_to_completed_seconds": mine,
            "plain_script_seconds": whole,
            "plain_script_without_imports_seconds": work,
            "plain_script_mlflow_seconds": summary([script["mlflow"] for script in plain]),
            "ratio_to_plain_script": round(mine["median"] / whole["median"], 2),
            "ratio_to_plain_script_without_imports": round(mine["median"] / work["median"], 2),
        },
    )


def main() -> None:
    """Measure on a stack of its own."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
