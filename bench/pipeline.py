"""Time the weather pipeline on the stack and the same functions in a plain script, alternately, on the same data."""

import json
from typing import Any

import httpx

from bench.report import save, summary
from bench.stack import run_once, stack_with_peers, wait_until_idle
from infra.provision.follow import find_deployment
from infra.testing.stack import Stack

RUNS = 20


def measure(stack: Stack, api: httpx.Client) -> None:
    """Measure and save; the first round is a warm-up and does not count."""
    computed, unchanged, plain = [], [], []
    deployment = find_deployment(api, "weather-pipeline")["id"]

    def timed(**parameters: Any) -> float:
        wait_until_idle(api)  # the mails of the run before belong to it
        return run_once(api, deployment, **parameters)[1]

    for round_ in range(RUNS + 1):
        times = timed(refresh=True, gate={"force": True}), timed()
        wait_until_idle(api)
        script = json.loads(stack.python("plain", "import runpy; runpy.run_module('bench.plain_weather')").stdout)
        if round_:
            computed.append(times[0])
            unchanged.append(times[1])
            plain.append(script)
    whole = summary([script["all"] for script in plain])
    work = summary([script["work"] for script in plain])
    tracked = summary([script["mlflow"] for script in plain])
    without_imports = summary([script["all"] - script["imports"] for script in plain])
    pipeline = summary(computed)
    save(
        "pipeline",
        {
            "pipeline_trigger_to_completed_seconds": pipeline,
            "unchanged_trigger_to_completed_seconds": summary(unchanged),
            "plain_script_seconds": whole,
            "plain_script_without_imports_seconds": without_imports,
            "plain_script_work_seconds": work,
            "plain_script_mlflow_seconds": tracked,
            "ratio_to_plain_script": round(pipeline["median"] / whole["median"], 2),
            "ratio_to_plain_script_without_imports": round(pipeline["median"] / without_imports["median"], 2),
            "ratio_of_an_unchanged_run": round(summary(unchanged)["median"] / pipeline["median"], 2),
            # The rest of the run's time, beyond the plain script's work and its calls of MLflow, is Prefect's.
            "share_mlflow": round(tracked["median"] / pipeline["median"], 2),
            "share_prefect": round(1 - (work["median"] + tracked["median"]) / pipeline["median"], 2),
        },
    )


def main() -> None:
    """Measure on a separate stack."""
    with stack_with_peers() as stack, stack.prefect() as api:
        measure(stack, api)


if __name__ == "__main__":
    main()
