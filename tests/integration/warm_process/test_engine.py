"""Prefect's engine works in a fork as it does in a new interpreter."""

from pathlib import Path

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker


@pytest.mark.parametrize("flow", ["with_subflow", "with_threads", "with_processes", "asynchronous"])
def test_flows_of_every_kind(orchestrator: Server, shared_pool: str, flow: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, flow))
    orchestrator.expect(run, "Completed", seconds=60)


def test_a_failing_flow_is_failed_and_not_crashed(orchestrator: Server, shared_pool: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "end"), how="raise")

    orchestrator.expect(run, "Failed")
    assert "deliberate" in orchestrator.message(run)


def test_retries(orchestrator: Server, shared_pool: str, tmp_path: Path) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "fails_once"), path=str(tmp_path / "tried"))

    orchestrator.expect(run, "Completed")
    assert "AwaitingRetry" in orchestrator.names(run)
    assert orchestrator.flow_run(run)["run_count"] == 2


def test_pause_and_resume(orchestrator: Server, shared_pool: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "pauses"))
    orchestrator.wait_for(run, "Paused")
    orchestrator.call("POST", f"/flow_runs/{run}/resume")
    orchestrator.expect(run, "Completed")


def test_suspend_and_resume(orchestrator: Server, shared_pool: str, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "suspends"), path=str(attempts))
    orchestrator.wait_for(run, "Suspended")
    orchestrator.call("POST", f"/flow_runs/{run}/resume")

    orchestrator.expect(run, "Completed")
    assert attempts.read_text() == "attempt\nattempt\n"
    assert "Crashed" not in orchestrator.names(run)


def test_the_log_of_a_run_reaches_the_server(orchestrator: Server, shared_pool: str, shared_worker: Worker) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "speaks"), words="spoken aloud")
    orchestrator.expect(run, "Completed")
    wait_until(lambda: "spoken aloud" in orchestrator.logs(run), 10, "the log to arrive")
    wait_until(lambda: any("Finished in state" in line for line in orchestrator.logs(run)), 10, "its end to arrive")
    assert "whispered" not in orchestrator.logs(run)
    shared_worker.wait_for_text("spoken aloud")
    shared_worker.wait_for_text("printed")
