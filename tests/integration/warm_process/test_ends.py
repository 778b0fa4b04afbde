"""Runs whose process, worker or warm process is killed are settled soon, with the reason."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from warm_process.ledger import Ledger

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, alive, gone, read_note, worker


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
def test_an_end_that_the_engine_reports(orchestrator: Server, shared_pool: str, how: str) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "end"), how=how)

    orchestrator.expect(run, "Crashed", seconds=15)
    assert orchestrator.names(run).count("Crashed") == 1


def test_a_flow_that_cannot_be_loaded(orchestrator: Server, shared_pool: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    deployment = orchestrator.deploy(shared_pool, "broken", folder=tmp_path, file="broken.py")
    run = orchestrator.trigger(deployment)

    orchestrator.expect(run, "Crashed", seconds=15)
    assert "exited with code 1" in orchestrator.message(run)
    wait_until(lambda: any("no_such_module" in line for line in orchestrator.logs(run)), 10, "the reason in the log")


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


@dataclass
class MLflow:
    """An experiment for probe flows, read through MLflow's REST API."""

    address: str
    experiment: str

    def status(self, run_id: str) -> str:
        answer = httpx.get(f"{self.address}/api/2.0/mlflow/runs/get", params={"run_id": run_id})
        return str(answer.json()["run"]["info"]["status"])

    def wait_for(self, run_id: str, status: str) -> None:
        wait_until(lambda: self.status(run_id) == status, 10, f"an MLflow run to be {status}")


@pytest.fixture
def mlflow(mlflow_address: str) -> MLflow:
    body = {"name": f"left open {uuid4()}"}
    created = httpx.post(f"{mlflow_address}/api/2.0/mlflow/experiments/create", json=body)
    return MLflow(mlflow_address, created.json()["experiment_id"])


def test_a_crash_ends_the_subflow_runs_and_what_they_left_open_in_mlflow(
    orchestrator: Server, shared_pool: str, note: Path, mlflow: MLflow
) -> None:
    env = {"MLFLOW_TRACKING_URI": mlflow.address}
    deployment = orchestrator.deploy(shared_pool, "opens_mlflow_run_in_subflow", job_variables={"env": env})
    parameters = {"address": mlflow.address, "experiment": mlflow.experiment}
    run = orchestrator.trigger(deployment, path=str(note), **parameters)
    seen = read_note(note)
    mlflow.wait_for(seen["mlflow_run"], "RUNNING")
    os.kill(seen["pid"], signal.SIGKILL)

    orchestrator.expect(run, "Crashed")
    wait_until(
        lambda: {child["state"]["name"] for child in orchestrator.subflow_runs(run)} == {"Crashed"},
        10,
        "the subflow run to be Crashed",
    )
    mlflow.wait_for(seen["mlflow_run"], "FAILED")
    mlflow.wait_for(seen["trial"], "FAILED")


@pytest.mark.parametrize("killed", ["parent", "child"])
def test_a_crash_ends_the_mlflow_runs_of_that_run_and_of_no_other(
    orchestrator: Server, shared_pool: str, tmp_path: Path, mlflow: MLflow, killed: str
) -> None:
    variables: dict[str, Any] = {"job_variables": {"env": {"MLFLOW_TRACKING_URI": mlflow.address}}}
    child = orchestrator.deploy(shared_pool, "leaves_mlflow_run_open", **variables)
    parent = orchestrator.deploy(shared_pool, "leaves_mlflow_run_open_and_runs", **variables)
    notes = {name: tmp_path / name for name in ("parent", "child")}
    run = orchestrator.trigger(
        parent,
        address=mlflow.address,
        experiment=mlflow.experiment,
        child=child,
        path=str(notes["parent"]),
        child_path=str(notes["child"]),
    )
    seen = {name: read_note(path) for name, path in notes.items()}
    runs = {"parent": run, "child": orchestrator.subflow_runs(run)[0]["id"]}
    other = "child" if killed == "parent" else "parent"
    orchestrator.wait_for(runs["child"], "Running")
    os.kill(seen[killed]["pid"], signal.SIGKILL)
    orchestrator.expect(runs[killed], "Crashed")
    for name in ("mlflow_run", "trial"):
        mlflow.wait_for(seen[killed][name], "FAILED")
    left_alone = [mlflow.status(seen[other][name]) for name in ("mlflow_run", "trial")]
    orchestrator.cancel(runs[other])

    assert left_alone == ["RUNNING", "RUNNING"]
    orchestrator.wait_for_end(runs[other])


def start_waiting_run(server: Server, pool: str, note: Path) -> tuple[str, int, int]:
    run = server.trigger(server.deploy(pool, "wait"), path=str(note))
    server.wait_for(run, "Running")
    seen = read_note(note)
    return run, seen["pid"], seen["grandchild"]


def test_stopping_the_worker(orchestrator: Server, pool: str, tmp_path: Path, note: Path) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        found.stop(signal.SIGTERM)

        # The worker has waited for the report of the run.
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
            # Depending on the moment: crashed, or back in the queue and run by this worker.
            state = orchestrator.wait_for(run, "Crashed", "Running", seconds=20)["state"]["name"]
        if state == "Running":
            orchestrator.expect(run, "Crashed")


def test_killing_the_warm_process(orchestrator: Server, shared_pool: str, shared_worker: Worker, note: Path) -> None:
    run, pid, grandchild = start_waiting_run(orchestrator, shared_pool, note)
    killed = shared_worker.warm_pid
    os.kill(killed, signal.SIGKILL)

    orchestrator.expect(run, "Crashed", seconds=10)
    gone(pid, grandchild)
    orchestrator.expect(orchestrator.trigger(orchestrator.deploy(shared_pool, "trivial")), "Completed")
    wait_until(lambda: shared_worker.warm_pid != killed, 20, "a new warm process")


def test_killing_everything_at_once_leaves_the_run_to_the_next_worker(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    home = tmp_path / "home"
    with worker(orchestrator, pool, home) as found:
        run, pid, grandchild = start_waiting_run(orchestrator, pool, note)
        victims = (found.warm_pid, found.process.pid, pid, grandchild)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # as when a container is killed: none reacts to another's end
            for victim in victims:
                os.kill(victim, number)
        found.process.wait()
        assert orchestrator.state(run) == "Running"

    with worker(orchestrator, pool, home, WORKER_NAME="the next"):
        orchestrator.expect(run, "Crashed", seconds=10)
        live, _, _ = start_waiting_run(orchestrator, pool, tmp_path / "live.json")
        ledger = Ledger(home / "warm-process", pool, orchestrator.address, "one more")
        ledger.open()
        adopted = ledger.adopt()
        ledger.close()
        orchestrator.cancel(live)

        assert len(list((home / "warm-process").iterdir())) == 1, "the ledgers are not those of one pool"
        assert "the worker that ran it was killed" in orchestrator.message(run)
        assert adopted == []
        orchestrator.expect(live, "Cancelled")
