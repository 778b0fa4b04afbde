"""Time the weather pipeline on the stack against the same functions in a plain script, in turns, on the same data."""

import json

import httpx

from bench.report import save, summary
from bench.stack import run_once, stack_with_peers, wait_until_idle
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

RUNS = 20


def measure(stack: Stack, api: httpx.Client) -> None:
    """Measure and save; the first turn, which warms everything up, does not count."""
    anew, unchanged, plain = [], [], []
    deployment = find_deployment(api, "weather-pipeline")["id"]

    def timed(**parameters: bool) -> float:
        wait_until_idle(api)  # the mails about the run before belong to that one
        return run_once(api, deployment, **parameters)[1]

    for turn in range(RUNS + 1):
        times = timed(refresh=True), timed()
        wait_until_idle(api)
        script = json.loads(stack.python("plain", "import runpy; runpy.run_module('bench.plain_weather')").stdout)
        if turn:
            anew.append(times[0])
            unchanged.append(times[1])
            plain.append(script)
    whole = summary([script["all"] for script in plain])
    work = summary([script["work"] for script in plain])
    tracked = summary([script["mlflow"] for script in plain])
    without_imports = summary([script["all"] - script["imports"] for script in plain])
    mine = summary(anew)
    save(
        "pipeline",
        {
            "pipeline_trigger_to_completed_seconds": mine,
            "unchanged_trigger_to_completed_seconds": summary(unchanged),
            "plain_script_seconds": whole,
            "plain_script_without_imports_seconds": without_imports,
            "plain_script_work_seconds": work,
            "plain_script_mlflow_seconds": tracked,
            "ratio_to_plain_script": round(mine["median"] / whole["median"], 2),
            "ratio_to_plain_script_without_imports": round(mine["median"] / without_imports["median"], 2),
            "ratio_of_an_unchanged_run": round(summary(unchanged)["median"] / mine["median"], 2),
            # What the run takes beyond the plain script's work and its calls of MLflow is Prefect's.
            "share_mlflow": round(tracked["median"] / mine["median"], 2),
            "share_prefect": round(1 - (work["median"] + tracked["median"]) / mine["median"], 2),
        },
    )


def main() -> None:
    """Measure on a stack of its own."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
