"""A worker that is stopped lets its runs finish, and gives back those that do not; crashed runs are run again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, gone, read_note, worker

REPEATED: dict[str, Any] = {"job_variables": {"reruns_after_crash": 2}}


def test_a_stopping_worker_lets_runs_finish_and_takes_no_new_ones(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    release = tmp_path / "release"
    with worker(orchestrator, pool, tmp_path, WARM_PROCESS_DRAIN_SECONDS="60") as found:
        deployment = orchestrator.deploy(pool, "wait_for_file")
        run = orchestrator.trigger(deployment, path=str(note), release=str(release))
        read_note(note)
        found.process.send_signal(signal.SIGTERM)
        found.wait_for_text("get up to 60 s to finish")
        late = orchestrator.trigger(deployment, path=str(note), release=str(release))
        release.touch()
        found.process.wait(30)

        assert orchestrator.state(run) == "Completed"
        assert orchestrator.names(late)[-1] in ("Scheduled", "Late")


def test_a_run_that_does_not_finish_in_time_is_given_back(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    release = tmp_path / "release"
    with worker(orchestrator, pool, tmp_path, WARM_PROCESS_DRAIN_SECONDS="1") as found:
        deployment = orchestrator.deploy(pool, "wait_for_file", **REPEATED)
        run = orchestrator.trigger(deployment, path=str(note), release=str(release))
        pid = read_note(note)["pid"]
        found.stop()
        given_back = orchestrator.flow_run(run)["state"]
        gone(pid)
        note.unlink()
    with worker(orchestrator, pool, tmp_path):
        read_note(note)
        release.touch()

        orchestrator.expect(run, "Completed")
        assert (given_back["type"], given_back["name"]) == ("SCHEDULED", "Scheduled")
        assert "the worker that ran it was stopped" in given_back["message"]
        assert "Crashed" not in orchestrator.names(run)


def test_a_run_that_must_not_repeat_is_crashed_by_a_stop(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    with worker(orchestrator, pool, tmp_path) as found:
        run = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(note))
        read_note(note)
        found.stop()

        assert orchestrator.state(run) == "Crashed"
        assert "the worker that ran it was stopped" in orchestrator.message(run)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_crashed_run_is_run_again(orchestrator: Server, shared_pool: str, tmp_path: Path, how: str) -> None:
    deployment = orchestrator.deploy(shared_pool, "crashes_once", **REPEATED)
    run = orchestrator.trigger(deployment, path=str(tmp_path / "tried"), how=how)

    orchestrator.wait_for(run, "Completed")  # an engine that gets SIGTERM reports a crash first
    again = [state for state in orchestrator.states(run) if state["name"] == "AwaitingRerun"]
    assert [state["message"].split(". ")[-1] for state in again] == ["It is run again (1 of 2)."]
    if how == "SIGKILL":
        assert "its process was killed by signal 9" in again[0]["message"]
        assert "Crashed" not in orchestrator.names(run)


def test_a_run_that_crashes_again_and_again_is_crashed_at_last(orchestrator: Server, shared_pool: str) -> None:
    deployment = orchestrator.deploy(shared_pool, "end")
    run = orchestrator.trigger(deployment, {"reruns_after_crash": 2}, how="exit 9")

    orchestrator.expect(run, "Crashed")
    names = orchestrator.names(run)
    assert (names.count("Running"), names.count("AwaitingRerun"), names.count("Crashed")) == (3, 2, 1)
    assert "exited with code 9" in orchestrator.message(run)


def test_a_default_of_two_reruns(orchestrator: Server, shared_pool: str) -> None:
    pool = orchestrator.call("GET", f"/work_pools/{shared_pool}")

    assert pool["base_job_template"]["variables"]["properties"]["reruns_after_crash"]["default"] == 2


def test_a_run_whose_worker_is_killed_is_run_again_by_the_next(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    release = tmp_path / "release"
    with worker(orchestrator, pool, tmp_path) as found:
        deployment = orchestrator.deploy(pool, "wait_for_file", **REPEATED)
        run = orchestrator.trigger(deployment, path=str(note), release=str(release))
        pid = read_note(note)["pid"]
        victims = (found.warm_pid, found.process.pid, pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                os.kill(victim, number)
        found.process.wait()
        note.unlink()
        release.touch()
    with worker(orchestrator, pool, tmp_path):
        wait_until(note.exists, 20, "the run to run again")

        orchestrator.expect(run, "Completed")
        assert "AwaitingRerun" in orchestrator.names(run)


def test_a_run_that_was_cancelled_while_it_crashed_is_not_run_again(
    orchestrator: Server, shared_pool: str, note: Path
) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "wait", **REPEATED), path=str(note))
    pid = read_note(note)["pid"]
    orchestrator.wait_for(run, "Running")
    os.kill(pid, signal.SIGSTOP)
    orchestrator.cancel(run)
    os.kill(pid, signal.SIGKILL)

    orchestrator.expect(run, "Cancelled")
    assert "AwaitingRerun" not in orchestrator.names(run)
