"""What is settled while the server is out of reach, and by the next worker."""

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, proxy, read_note, worker


def kill_everything(found: Worker, *pids: int) -> None:
    """Kill a worker and all of its processes as when a container is killed: none reacts to another's end."""
    victims = (found.warm_pid, found.process.pid, *pids)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for victim in victims:
            os.kill(victim, number)
    found.process.wait()


@pytest.mark.slow
def test_what_a_stopping_worker_cannot_settle_is_left_to_the_next(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    with proxy(orchestrator) as relay:
        with worker(orchestrator, pool, tmp_path / "home", api=relay.address) as found:
            run = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(note))
            orchestrator.wait_for(run, "Running")
            pid = read_note(note)["pid"]
            relay.cut_everything()
            os.kill(pid, signal.SIGKILL)
            found.stop(seconds=60)
        relay.restore()
        assert orchestrator.state(run) == "Running"

        with worker(orchestrator, pool, tmp_path / "home", api=relay.address):
            orchestrator.expect(run, "Crashed")


def test_the_next_worker_waits_for_the_server_and_settles_every_run(
    orchestrator: Server, pool: str, tmp_path: Path
) -> None:
    with proxy(orchestrator) as relay:
        with worker(orchestrator, pool, tmp_path / "home", api=relay.address) as found:
            deployment = orchestrator.deploy(pool, "wait")
            notes = [tmp_path / f"{number}.json" for number in range(3)]
            runs = [orchestrator.trigger(deployment, path=str(note)) for note in notes]
            for run in runs:
                orchestrator.wait_for(run, "Running")
            kill_everything(found, *(read_note(note)["pid"] for note in notes))
        orchestrator.call("DELETE", f"/flow_runs/{runs[0]}")
        relay.cut_everything()
        with worker(orchestrator, pool, tmp_path / "home", api=relay.address) as found:
            found.wait_for_text("Unable to reach the Prefect API")
            relay.restore()

            for run in runs[1:]:
                orchestrator.expect(run, "Crashed", seconds=90)
            left = (tmp_path / "home/warm-process").rglob("*.run")
            wait_until(lambda: not list(left), 10, "the ledger to be empty")


def test_a_worker_that_dies_between_claim_and_start_returns_the_run(
    orchestrator: Server, pool: str, tmp_path: Path
) -> None:
    (tmp_path / "slow_preload.py").write_text("import time\ntime.sleep(60)\n")
    slow = {"PYTHONPATH": str(tmp_path), "WARM_PROCESS_PRELOAD": "slow_preload", "ready": "started!"}
    with worker(orchestrator, pool, tmp_path / "home", **slow) as found:
        run = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))
        cancelled = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))
        for claimed in (run, cancelled):
            orchestrator.wait_for(claimed, "Submitting")
        found.process.kill()
        found.process.wait()
    orchestrator.cancel(cancelled)

    with worker(orchestrator, pool, tmp_path / "home", WORKER_NAME=str(uuid4())):
        orchestrator.expect(run, "Completed")
        orchestrator.expect(cancelled, "Cancelled")
