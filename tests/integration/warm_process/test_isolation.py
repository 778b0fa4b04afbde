"""Isolation: a run sees nothing of other runs, and all of its job variables."""

import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, read_note


def describe(server: Server, pool: str, note: Path, **job_variables: Any) -> dict[str, Any]:
    note.unlink(missing_ok=True)
    run = server.trigger(server.deploy(pool, "describe"), job_variables, path=str(note))
    server.expect(run, "Completed", seconds=60)
    return {**read_note(note), "run": run}


def test_nothing_of_one_run_is_seen_by_the_next(orchestrator: Server, shared_pool: str, note: Path) -> None:
    first = describe(orchestrator, shared_pool, note)
    second = describe(orchestrator, shared_pool, note)

    for seen in (first, second):
        assert seen["is_fork"]
        assert seen["seen"] == 1
        assert "LEAKED" not in seen["env"]
        assert seen["sigint"]
        assert seen["sigusr1"]
        assert not seen["marked"]
        assert "/leaked" not in seen["sys_path"]
        assert seen["gc_enabled"]
        assert seen["argv"] == []
        assert seen["sockets"] <= 12  # those of its own clients and event loops
    assert first["pid"] != second["pid"]
    assert first["cwd"] == second["cwd"]  # where the pull step leads
    assert first["level"] == second["level"]
    assert set(first["draws"]).isdisjoint(second["draws"])
    assert set(second["threads"]) - set(first["threads"]) <= {"EventsWorkerThread", "prefect-control-listener"}


def test_job_variables_reach_the_run_and_no_other(
    orchestrator: Server, shared_pool: str, note: Path, tmp_path: Path
) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    env = {
        "COLOUR": "blue",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PYTHONPATH": str(extra),
        "TZ": "Asia/Tokyo",
    }
    with_env = describe(orchestrator, shared_pool, note, env=env)
    without = describe(orchestrator, shared_pool, note)

    assert with_env["is_fork"]
    assert with_env["env"]["COLOUR"] == "blue"
    assert with_env["level"] == 10
    assert str(extra) in with_env["sys_path"]
    assert without["env"].keys().isdisjoint({"COLOUR", "PYTHONPATH", "TZ"})
    assert without["level"] == 20
    assert str(extra) not in without["sys_path"]


def test_runs_found_by_one_poll_keep_their_job_variables_apart(
    orchestrator: Server, shared_pool: str, tmp_path: Path
) -> None:
    deployment = orchestrator.deploy(shared_pool, "describe", job_variables={"env": {"COMMON": "yes"}})
    runs = {}
    for name in ("ONE", "TWO", "THREE", "FOUR"):
        path = tmp_path / f"{name}.json"
        runs[name] = path, orchestrator.trigger(deployment, {"env": {name: "1"}}, path=str(path))
    for name, (path, run) in runs.items():
        orchestrator.expect(run, "Completed")
        env = read_note(path)["env"]

        assert env["COMMON"] == "yes"
        assert runs.keys() & env.keys() == {name}


def test_the_working_directory_of_a_job(orchestrator: Server, shared_pool: str, note: Path, tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "import json, os\nfrom pathlib import Path\nfrom prefect import flow\n\n\n@flow\ndef here(path: str):\n"
        "    Path(path).write_text(json.dumps({'cwd': os.getcwd()}))\n"
    )
    deployment = orchestrator.deploy(
        shared_pool,
        "here",
        entrypoint=str(tmp_path / "here.py") + ":here",
        pull_steps=[{"prefect.deployments.steps.run_shell_script": {"script": "true"}}],
    )
    place = tmp_path / "place"
    place.mkdir()
    run = orchestrator.trigger(deployment, {"working_dir": str(place)}, path=str(note))
    orchestrator.expect(run, "Completed")
    working_dir = read_note(note)["cwd"]
    note.unlink()
    orchestrator.expect(orchestrator.trigger(deployment, path=str(note)), "Completed")
    elsewhere = read_note(note)["cwd"]

    assert working_dir == str(place)
    assert elsewhere != str(place)
    wait_until(lambda: not Path(elsewhere).exists(), 5, "the temporary directory to be removed")


@pytest.mark.parametrize("env", [{}, {"OMP_NUM_THREADS": "1"}], ids=["fork", "cold start"])
def test_no_temporary_file_of_a_killed_run_is_left(
    orchestrator: Server, shared_pool: str, note: Path, env: dict[str, str]
) -> None:
    deployment = orchestrator.deploy(shared_pool, "leaves_a_file")
    run = orchestrator.trigger(deployment, {"env": env}, path=str(note))
    orchestrator.expect(run, "Crashed")
    seen = read_note(note)

    assert seen["exists"]
    wait_until(lambda: not Path(seen["file"]).parent.exists(), 10, "the run's temporary folder to be removed")


def test_the_warm_process_itself_is_unchanged(shared_worker: Worker) -> None:
    environment = Path(f"/proc/{shared_worker.warm_pid}/environ").read_bytes().split(b"\0")

    assert not any(line.startswith((b"LEAKED=", b"COLOUR=")) for line in environment)
    assert Path(f"/proc/{shared_worker.warm_pid}/cwd").readlink() == shared_worker.home


def test_no_fork_has_the_environment_of_another_in_its_memory(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, tmp_path: Path
) -> None:
    secrets = {name: (uuid4().hex, uuid4().hex) for name in ("own", "other")}
    searching, trivial = (orchestrator.deploy(shared_pool, name) for name in ("searches_its_memory", "trivial"))
    os.kill(shared_worker.warm_pid, signal.SIGSTOP)  # so that it gets the requests of all runs at once
    runs = [orchestrator.trigger(trivial, {"env": {"SECRET": "".join(secrets["other"])}})]
    for name, (first, second) in secrets.items():
        parameters = {"path": str(tmp_path / name), "first_half": first, "second_half": second}
        runs.append(orchestrator.trigger(searching, {"env": {"SECRET": "".join(secrets["own"])}}, **parameters))
    try:
        for run in runs:
            orchestrator.wait_for(run, "Submitting")
    finally:
        os.kill(shared_worker.warm_pid, signal.SIGCONT)
    for run in runs:
        orchestrator.expect(run, "Completed", seconds=60)

    assert read_note(tmp_path / "own")["hits"] > 0
    assert read_note(tmp_path / "other")["hits"] == 0
