"""How a run starts: at once, in a process of its own, with the current flow code."""

import os
import time
from pathlib import Path

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, gone, read_note, worker


def test_a_run_starts_as_soon_as_it_is_triggered(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "60", "WARM_PROCESS_PRELOAD": None}
    with worker(orchestrator, pool, tmp_path, **settings) as found:
        deployment = orchestrator.deploy(pool, "trivial")
        for _ in range(3):  # polling would find none of these within the minute
            orchestrator.expect(orchestrator.trigger(deployment), "Completed", seconds=10)
        preloaded = set(found.status()[0]["preloaded"])

        assert "could not import" not in found.text()
        assert {"pandas", "sklearn.ensemble", "mlflow", "trainyard.tracking"} <= preloaded
        assert not any(name.split(".")[0] == "flows" for name in preloaded)


def test_a_run_is_forked_from_the_warm_process(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, note: Path
) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "describe"), path=str(note))
    orchestrator.expect(run, "Completed")
    seen = read_note(note)

    assert seen["is_fork"]
    assert seen["parent"] == shared_worker.warm_pid
    assert orchestrator.flow_run(run)["infrastructure_pid"] == str(seen["pid"])
    gone(seen["pid"])


def test_an_edited_flow_file_is_used_by_the_next_run(orchestrator: Server, shared_pool: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("WORD = 'first'\n")
    source = "from pathlib import Path\nfrom prefect import flow\nfrom helper import WORD\n\n\n@flow\n"
    file = tmp_path / "edited.py"
    file.write_text(f"{source}def edited(path: str):\n    Path(path).write_text(WORD)\n")
    deployment = orchestrator.deploy(shared_pool, "edited", folder=tmp_path, file="edited.py")
    result = tmp_path / "result"
    for word, text in [("first", "WORD"), ("second", "WORD"), ("second and third", "WORD + ' and third'")]:
        (tmp_path / "helper.py").write_text(f"WORD = {word.split()[0]!r}\n")
        file.write_text(f"{source}def edited(path: str):\n    Path(path).write_text({text})\n")
        # Python recompiles a file when its size or the second of its modification time differs, so let the latter differ.
        stamp = file.stat().st_mtime + len(word)
        for edited in (file, tmp_path / "helper.py"):
            os.utime(edited, (stamp, stamp))
        orchestrator.expect(orchestrator.trigger(deployment, path=str(result)), "Completed")

        assert result.read_text() == word


def test_the_limit_of_a_worker_holds(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, tmp_path: Path
) -> None:
    assert shared_worker.limit
    deployment = orchestrator.deploy(shared_pool, "wait_for_file")
    number, release = shared_worker.limit + 2, tmp_path / "release"
    for index in range(number):
        orchestrator.trigger(deployment, path=str(tmp_path / f"{index}.json"), release=str(release))

    def count(*types: str) -> int:
        query = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": types}}}}
        return orchestrator.call("POST", "/flow_runs/count", json=query)

    wait_until(lambda: count("RUNNING") == shared_worker.limit, 60, "as many runs as the limit allows")
    time.sleep(2)  # in which one run more would have started
    active = count("PENDING", "RUNNING")
    release.touch()
    wait_until(lambda: count("COMPLETED") == number, 60, "the runs to complete")

    assert active == shared_worker.limit


def test_a_preload_that_fails_is_a_warning(orchestrator: Server, pool: str, tmp_path: Path) -> None:
    preload = tmp_path / "preload"
    preload.mkdir()
    (preload / "broken_preload.py").write_text("raise SystemExit('no')\n")
    settings = {
        "PYTHONPATH": str(preload),
        "WARM_PROCESS_PRELOAD": "numpy, no_such_module, broken_preload",
    }
    with worker(orchestrator, pool, tmp_path / "home", **settings) as found:
        text = " ".join(found.text().split())
        run = orchestrator.trigger(orchestrator.deploy(pool, "trivial"))

        assert text.count("The warm process could not import") == 2
        assert "could not import no_such_module (ModuleNotFoundError" in text
        assert "could not import broken_preload (SystemExit: no)" in text
        orchestrator.expect(run, "Completed")


def test_status_shows_the_memory_of_the_processes(
    orchestrator: Server, shared_pool: str, shared_worker: Worker, note: Path
) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "wait"), path=str(note))
    read_note(note)
    (status,) = shared_worker.status()
    orchestrator.cancel(run)
    orchestrator.expect(run, "Cancelled")

    assert status["pool"] == shared_pool
    assert "numpy" in status["preloaded"]
    assert status["processes"]["warm process"]["pss"] > 20
    assert status["processes"][f"run {run}"]["private"] > 1
    wait_until(lambda: f"run {run}" not in shared_worker.status()[0]["processes"], 10, "the run to leave the status")
