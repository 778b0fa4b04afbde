"""Cancelling a run, at every moment of its life."""

import time
from pathlib import Path

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, gone, read_note


def test_a_running_run(orchestrator: Server, shared_pool: str, note: Path) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "wait"), path=str(note))
    orchestrator.wait_for(run, "Running")
    seen = read_note(note)
    orchestrator.cancel(run)
    orchestrator.expect(run, "Cancelled", seconds=10)
    gone(seen["pid"], seen["grandchild"])
    assert "Crashed" not in orchestrator.names(run)


def test_the_hooks_run(orchestrator: Server, shared_pool: str, note: Path, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    env = {"HOOK_FILE": str(hook)}
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "with_hooks"), {"env": env}, path=str(note))
    read_note(note)
    orchestrator.cancel(run)
    orchestrator.expect(run, "Cancelled", seconds=15)
    assert hook.read_text() == "cancelled Cancelling"
    wait_until(lambda: any("on_cancel" in line for line in orchestrator.logs(run)), 10, "the hook's log")


def test_subflow_runs(orchestrator: Server, shared_pool: str, note: Path) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "parent_flow"), path=str(note))
    read_note(note)
    orchestrator.cancel(run)
    orchestrator.expect(run, "Cancelled", seconds=15)
    wait_until(
        lambda: {child["state"]["name"] for child in orchestrator.subflow_runs(run)} == {"Cancelled"},
        10,
        "the subflow run to be Cancelled",
    )


@pytest.mark.parametrize("command", [None, "python -m prefect.engine"])
def test_a_run_that_started_the_stock_way(
    orchestrator: Server, shared_pool: str, note: Path, command: str | None
) -> None:
    variables = {"command": command} if command else {"env": {"OMP_NUM_THREADS": "2"}}
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "wait"), variables, path=str(note))
    seen = read_note(note, seconds=60)
    orchestrator.cancel(run)
    orchestrator.expect(run, "Cancelled", seconds=20)
    gone(seen["pid"], seen["grandchild"])


def test_at_every_moment_before_running(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, tmp_path: Path
) -> None:
    deployment = orchestrator.deploy(shared_pool, "wait")
    ends, runs = {}, []
    for delay in range(0, 900, 50):
        run = orchestrator.trigger(deployment, path=str(tmp_path / f"{delay}.json"))
        runs.append(run)
        time.sleep(delay / 1000)  # not to wait for anything: the moment is what is tested
        orchestrator.cancel(run)
        try:
            end = orchestrator.wait_for_end(run, seconds=10)
        except TimeoutError:
            end = "stuck"
        ends[delay] = (end, orchestrator.names(run))
    assert {end for end, _ in ends.values()} == {"Cancelled"}, ends
    assert all("Crashed" not in names for _, names in ends.values()), ends
    wait_until(lambda: not shared_worker.runs(), 15, "every process to be gone")
    for left in tmp_path.glob("*.json"):
        seen = read_note(left)
        gone(seen["pid"], seen["grandchild"])
    assert {orchestrator.state(run) for run in runs} == {"Cancelled"}, [orchestrator.names(run) for run in runs]
