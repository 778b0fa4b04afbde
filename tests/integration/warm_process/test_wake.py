"""How a worker learns of runs: by events, by polling when those are cut, and each run once."""

import time
from collections import Counter
from pathlib import Path

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Proxy, Server, read_note, worker


def test_the_event_stream_is_cut_and_restored(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    proxy = Proxy(orchestrator.address)
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "3", "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "2"}
    try:
        with worker(orchestrator, pool, tmp_path, api=proxy.address, **settings) as found:
            deployment = orchestrator.deploy(pool, "trivial")
            orchestrator.expect(orchestrator.trigger(deployment), "Completed", seconds=10)

            proxy.cut_events()
            found.wait_for_text("The event stream is cut, polling goes on")
            run = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(note))
            read_note(note)
            orchestrator.cancel(run)
            orchestrator.expect(run, "Cancelled", seconds=15)

            proxy.restore_events()
            began = time.monotonic()

            def quick() -> bool:
                started = time.monotonic()
                orchestrator.wait_for_end(orchestrator.trigger(deployment))
                return time.monotonic() - started < 2.0

            assert wait_until(quick, 60, "runs to start at once again"), time.monotonic() - began
    finally:
        proxy.close()


def test_two_workers_share_a_pool(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    first = worker(orchestrator, pool, tmp_path / "first", limit=4, WORKER_NAME="first")
    second = worker(orchestrator, pool, tmp_path / "second", limit=4, WORKER_NAME="second")
    with first, second:
        deployment = orchestrator.deploy(pool, "trivial")
        runs = [orchestrator.trigger(deployment) for _ in range(12)]
        for run in runs:
            orchestrator.expect(run, "Completed", seconds=90)
        for run in runs:
            names = Counter(orchestrator.names(run))
            assert names["Pending"] == names["Running"] == names["Completed"] == 1, names


def test_a_hundred_runs_at_once(orchestrator: Server, shared_pool: str) -> None:
    deployment = orchestrator.deploy(shared_pool, "trivial")
    runs = [orchestrator.trigger(deployment) for _ in range(100)]

    def ends() -> Counter[str] | None:
        query = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "limit": 200}
        states = [found["state"] for found in orchestrator.call("POST", "/flow_runs/filter", json=query)]
        if not all(state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for state in states):
            return None
        return Counter(s["name"] if s["name"] == "Completed" else f"{s['name']}: {s['message']}" for s in states)

    assert wait_until(ends, 300, "100 runs to end", every=0.5) == {"Completed": len(runs)}
    for run in runs[::7]:
        names = Counter(orchestrator.names(run))
        assert names["Running"] == names["Completed"] == 1, names
