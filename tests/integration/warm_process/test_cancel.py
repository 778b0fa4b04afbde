"""Cancelling a run at every moment of its life."""

import time
from pathlib import Path

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


def test_at_every_moment_before_running(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, tmp_path: Path
) -> None:
    deployment = orchestrator.deploy(shared_pool, "wait")
    runs = {}
    for delay in range(0, 900, 50):
        runs[delay] = orchestrator.trigger(deployment, path=str(tmp_path / f"{delay}.json"))
        time.sleep(delay / 1000)  # waits for nothing: the moment is what is tested
        orchestrator.cancel(runs[delay])
    for run in runs.values():
        orchestrator.wait_for_end(run, seconds=30)
    wait_until(lambda: not shared_worker.runs(), 15, "every process to end")

    names = {delay: orchestrator.names(run) for delay, run in runs.items()}
    assert [found for found in names.values() if found[-1] != "Cancelled" or "Crashed" in found] == []
    for path in tmp_path.glob("*.json"):
        seen = read_note(path)
        gone(seen["pid"], seen["grandchild"])
