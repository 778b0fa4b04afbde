"""How runs end whose process, worker or warm process is killed: truthfully, soon, and with a reason."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, alive, gone, read_note, worker


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit 9", "its process exited with code 9"),
        ("exit 0", "its process exited with code 0 in the middle of the run"),
        ("SIGKILL", "its process was killed by signal 9"),
        ("SIGSEGV", "its process was killed by signal 11 (SIGSEGV)"),
    ],
)
def test_a_process_that_ends_by_itself(orchestrator: Server, shared_pool: str, how: str, reason: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "end"), how=how)
    orchestrator.expect(run, "Crashed", seconds=15)
    assert reason in orchestrator.message(run)
    assert orchestrator.names(run).count("Crashed") == 1


@pytest.mark.parametrize("how", ["sys.exit 5", "SIGTERM"])
def test_what_the_engine_reports_itself(orchestrator: Server, shared_pool: str, how: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "end"), how=how)
    orchestrator.expect(run, "Crashed", seconds=15)
    assert orchestrator.names(run).count("Crashed") == 1


def test_a_flow_that_cannot_be_loaded(orchestrator: Server, shared_pool: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    deployment = orchestrator.deploy(shared_pool, "broken", folder=tmp_path, file="broken.py")
    run = orchestrator.trigger(deployment)
    orchestrator.expect(run, "Crashed", seconds=15)
    assert "exited with code 1" in orchestrator.message(run)
    wait_until(lambda: any("no_such_module" in line for line in orchestrator.logs(run)), 10, "the log to say why")


def test_a_crash_runs_the_hooks_and_ends_the_grandchildren(
    orchestrator: Server, shared_pool: str, note: Path, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    env = {"HOOK_FILE": str(hook)}
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "with_hooks"), {"env": env}, path=str(note))
    other_note = tmp_path / "other.json"
    deployment = orchestrator.deploy(shared_pool, "wait")
    other = orchestrator.trigger(deployment, path=str(other_note), new_session=True)
    os.kill(read_note(note)["pid"], signal.SIGKILL)
    pids = read_note(other_note)
    os.kill(pids["pid"], signal.SIGKILL)
    orchestrator.expect(run, "Crashed")
    orchestrator.expect(other, "Crashed")
    gone(pids["grandchild"])
    wait_until(lambda: hook.exists() and hook.read_text(), 10, "the hook to run")
    assert hook.read_text() == "crashed Crashed"


def test_a_crash_ends_the_subflow_runs_and_what_they_left_open_in_mlflow(
    orchestrator: Server, shared_pool: str, note: Path, mlflow_address: str
) -> None:
    created = httpx.post(f"{mlflow_address}/api/2.0/mlflow/experiments/create", json={"name": "left open"})
    deployment = orchestrator.deploy(shared_pool, "opens_mlflow_run_in_subflow")
    run = orchestrator.trigger(
        deployment,
        {"env": {"MLFLOW_TRACKING_URI": mlflow_address}},
        path=str(note),
        address=mlflow_address,
        experiment=created.json()["experiment_id"],
    )
    seen = read_note(note)

    def mlflow_status() -> str:
        query = {"run_id": seen["mlflow_run"]}
        info = httpx.get(f"{mlflow_address}/api/2.0/mlflow/runs/get", params=query).json()["run"]["info"]
        return str(info["status"])

    assert mlflow_status() == "RUNNING"
    os.kill(seen["pid"], signal.SIGKILL)
    orchestrator.expect(run, "Crashed")
    wait_until(
        lambda: {child["state"]["name"] for child in orchestrator.subflow_runs(run)} == {"Crashed"},
        10,
        "the subflow run to be Crashed",
    )
    wait_until(lambda: mlflow_status() == "FAILED", 10, "the MLflow run to be FAILED")


def start_waiting_run(server: Server, pool: str, note: Path) -> tuple[str, int, int]:
    run = server.trigger(server.deploy(pool, "wait"), path=str(note))
    server.wait_for(run, "Running")
    seen = read_note(note)
    return run, seen["pid"], seen["grandchild"]


def test_stopping_the_worker(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        found.stop(signal.SIGTERM)
        # The worker waited for the report: nothing is left to wait for.
        assert orchestrator.state(run) == "Crashed"
        assert not alive(pid)
        assert not alive(grandchild)
        assert any("worker that ran it was stopped" in line for line in orchestrator.logs(run))
        gone(found.warm_pid)


def test_stopping_the_worker_before_a_run_has_started(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    (tmp_path / "slow_preload.py").write_text("import time\ntime.sleep(60)\n")
    slow = {"PYTHONPATH": str(tmp_path), "WARM_PROCESS_PRELOAD": "slow_preload", "ready": "started!"}
    with worker(orchestrator, pool, tmp_path / "first", **slow) as found:
        run = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))
        orchestrator.wait_for(run, "Submitting")
        found.stop(signal.SIGTERM)
        assert orchestrator.state(run) == "Scheduled"
    with worker(orchestrator, pool, tmp_path / "second"):
        orchestrator.expect(run, "Completed")


def test_killing_the_worker(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        found.process.kill()
        orchestrator.expect(run, "Crashed", seconds=10)
        gone(pid, grandchild, found.warm_pid)


def test_killing_the_worker_while_a_run_starts(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run = orchestrator.trigger(orchestrator.deploy(pool, "wait"))
        orchestrator.wait_for(run, "Submitting")
        found.process.kill()
        found.process.wait()
        with worker(orchestrator, pool, tmp_path):
            # Whatever was reached: crashed, or back in the queue and run by this worker.
            state = orchestrator.wait_for(run, "Crashed", "Running", seconds=20)["state"]["name"]
        if state == "Running":
            orchestrator.expect(run, "Crashed")


def test_killing_the_warm_process(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        first = found.warm_pid
        os.kill(first, signal.SIGKILL)
        orchestrator.expect(run, "Crashed", seconds=10)
        gone(pid, grandchild)
        again = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))
        orchestrator.expect(again, "Completed", seconds=30)
        wait_until(lambda: found.warm_pid != first, 20, "a new warm process")


def test_killing_everything_at_once_leaves_the_run_to_the_next_worker(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    home = tmp_path / "home"
    with worker(orchestrator, pool, home) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        for victim in (found.warm_pid, found.process.pid, pid, grandchild):
            os.kill(victim, signal.SIGSTOP)  # as when a container is killed: nobody reacts to the others
        for victim in (found.warm_pid, found.process.pid, pid, grandchild):
            os.kill(victim, signal.SIGKILL)
        found.process.wait()
        assert orchestrator.state(run) == "Running"

        # A live worker's run is not touched by the next worker, a dead one's is settled.
        other_note = tmp_path / "other.json"
        with worker(orchestrator, pool, home, WORKER_NAME="the next"):
            orchestrator.expect(run, "Crashed", seconds=10)
            assert "the worker that ran it was killed" in orchestrator.message(run)
            live, live_pid, _ = start_waiting_run(orchestrator, pool, other_note)
            with worker(orchestrator, pool, home, WORKER_NAME="one more"):
                deadline = time.monotonic() + 2
                wait_until(lambda: time.monotonic() > deadline, 5, "the time in which it would have settled")
                assert orchestrator.state(live) == "Running"
                assert alive(live_pid)
            orchestrator.cancel(live)
            orchestrator.expect(live, "Cancelled")
