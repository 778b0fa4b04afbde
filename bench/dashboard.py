"""What a person waits for the dashboard, with 500 flow runs in Prefect and 60 trainings in MLflow, and what it costs.

The stack's own containers, and a real browser; the first visit is that of a browser that has kept nothing.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from playwright.sync_api import Browser

from bench.report import save, summary
from bench.stack import plain_stack
from infra.testing.browser import chromium
from infra.testing.stack import Stack
from infra.testing.waiting import wait_until

FLOW_RUNS, TRAININGS, VISITS = 500, 60, 10
MODEL = "rain-tomorrow"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
WHOLE = "html[data-ready=true] main:not([data-pending])"


def fill(stack: Stack) -> None:
    """Bring Prefect's flow runs and MLflow's trainings to their numbers, as pipelines would have left them."""
    with stack.prefect() as prefect, stack.mlflow() as mlflow, ThreadPoolExecutor(4) as pool:
        flow = prefect.post("/flows/", json={"name": "weather-pipeline"}).raise_for_status().json()["id"]
        list(pool.map(lambda n: add_flow_run(prefect, flow, n), range(FLOW_RUNS)))
        experiment = mlflow.get("/experiments/get-by-name", params={"experiment_name": "weather"}).raise_for_status()
        id_ = experiment.json()["experiment"]["experiment_id"]
        list(pool.map(lambda n: add_training(mlflow, id_, n), range(TRAININGS)))


def add_flow_run(prefect: httpx.Client, flow: str, number: int) -> None:
    """Make a flow run with two components; all have completed."""
    run = {"flow_id": flow, "name": f"bench-{number}", "state": {"type": "RUNNING", "name": "Running"}}
    top = prefect.post("/flow_runs/", json=run).raise_for_status().json()["id"]
    made = [top]
    for part in ("preprocess", "train"):
        task = {"flow_run_id": top, "name": part, "task_key": part, "dynamic_key": "0"}
        parent = prefect.post("/task_runs/", json=task).raise_for_status().json()["id"]
        component = {**run, "name": part, "parent_task_run_id": parent}
        made.append(prefect.post("/flow_runs/", json=component).raise_for_status().json()["id"])
    for each in reversed(made):
        completed = {"state": {"type": "COMPLETED", "name": "Completed"}, "force": True}
        prefect.post(f"/flow_runs/{each}/set_state", json=completed).raise_for_status()


def add_training(mlflow: httpx.Client, experiment: str, number: int) -> None:
    """Log a training and register its version."""
    at = int(time.time() * 1000) - number * 86_400_000
    body = {"experiment_id": experiment, "start_time": at, "tags": [{"key": "model", "value": MODEL}]}
    run = mlflow.post("/runs/create", json=body).raise_for_status().json()["run"]["info"]["run_id"]
    scores = {"model_brier": 0.16, "climatology_brier": 0.21, "persistence_brier": 0.3, "model_log_loss": 0.5}
    metrics = [{"key": name, "value": value, "timestamp": at, "step": 0} for name, value in scores.items()]
    mlflow.post("/runs/log-batch", json={"run_id": run, "metrics": metrics}).raise_for_status()
    mlflow.post("/runs/update", json={"run_id": run, "status": "FINISHED", "end_time": at}).raise_for_status()
    version = {"name": MODEL, "source": f"runs:/{run}/model", "run_id": run}
    mlflow.post("/model-versions/create", json=version).raise_for_status()


def visit(browser: Browser, account: tuple[str, str, str]) -> tuple[float, float, float]:
    """Return seconds to the first paint and to the whole page of a first visit, and to the first paint of the next.

    The readings have all aged, so the page waits for newer ones as long as it ever does.
    """
    address, user, password = account
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.request.post(f"{address}/login", form={"user": user, "password": password}, headers={"Origin": address})
        context.request.post(f"{address}/refresh", headers={"Origin": address}, max_redirects=0)
        with context.new_page() as page:
            found = []
            for query in (f"model={MODEL}", f"model={MODEL}&page=2"):
                page.goto(f"{address}/?{query}")
                page.locator(WHOLE).wait_for(timeout=60_000)
                whole = page.evaluate("performance.now()")
                found += [wait_until(lambda: page.evaluate(PAINT), 60, "the first paint") / 1000, whole / 1000]
    return found[0], found[1], found[2]


def main() -> None:
    """Measure on a stack of its own."""
    with plain_stack() as stack, chromium() as browser:
        stack.shell("docker compose up -d --wait", timeout=600)
        stack.wait_for_first_run()
        empty = stack.pss_mib("dashboard")
        fill(stack)
        account = stack.dashboard()
        stack.shell("docker compose restart dashboard")
        wait_until(lambda: answers(account[0]), 60, "the dashboard")
        cold = visit(browser, account)
        visits = [visit(browser, account) for _ in range(VISITS)]
        names = ("first_paint_seconds", "whole_page_seconds", "next_first_paint_seconds")
        results = {name: summary(values) for name, values in zip(names, zip(*visits, strict=True), strict=True)}
        after_restart = {name: round(value, 3) for name, value in zip(names[:2], cold, strict=False)}
        memory = {
            "before_a_visit": round(empty, 1),
            "after_visits": round(statistics.median(stack.pss_mib("dashboard") for _ in range(3)), 1),
        }
    save(
        "dashboard",
        {
            "flow_runs": FLOW_RUNS,
            "trainings": TRAININGS,
            **results,
            "after_a_restart": after_restart,
            "memory_mib": memory,
        },
    )


def answers(address: str) -> bool:
    """Tell whether the service answers."""
    try:
        return httpx.get(f"{address}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
