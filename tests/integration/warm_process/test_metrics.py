"""The worker's metrics for Prometheus."""

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from infra.testing.servers import free_port
from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, read_note, worker

Samples = dict[tuple[str, str], float]


def scrape(port: int) -> Samples:
    """Return the worker's own metrics by name and label."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for sample in samples
        if sample.name.startswith("worker_") and not sample.name.endswith("_created")
    }


def test_runs_are_counted_by_start_and_end(orchestrator: Server, pool: str, note: Path, tmp_path: Path) -> None:
    port = free_port()
    with worker(orchestrator, pool, tmp_path, limit=3, WARM_PROCESS_METRICS_PORT=str(port)):
        before = scrape(port)
        deployments = {flow: orchestrator.deploy(pool, flow) for flow in ("trivial", "end", "wait")}
        runs = [
            orchestrator.trigger(deployments["trivial"]),
            orchestrator.trigger(deployments["trivial"], {"command": "python -m prefect.engine"}),
            orchestrator.trigger(deployments["end"], how="SIGKILL"),
        ]
        for run, state in zip(runs, ("Completed", "Completed", "Crashed"), strict=True):
            orchestrator.expect(run, state)
        waiting = orchestrator.trigger(deployments["wait"], path=str(note))
        read_note(note)
        assert scrape(port)["worker_runs", ""] >= 1
        orchestrator.cancel(waiting)
        orchestrator.expect(waiting, "Cancelled")
        wait_until(lambda: scrape(port)[("worker_runs", "")] == 0, 15, "no run")
        after = scrape(port)

    assert before["worker_slots", ""] == 3
    assert {label: after["worker_runs_started_total", label] for label in ("forked", "cold")} == {
        "forked": 3,
        "cold": 1,
    }
    ends = ("reported", "cancelled", "limit", "stopped", "died")
    assert {label: before["worker_runs_ended_total", label] for label in ends} == dict.fromkeys(ends, 0)
    assert [after["worker_runs_ended_total", label] for label in ends] == [2, 1, 0, 0, 1]
