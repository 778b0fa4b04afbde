"""Cold starts: runs that need a new interpreter, and workers without a warm process."""

from pathlib import Path
from typing import Any

import pytest
from warm_process.child import find_start_only_variables
from warm_process.cold_start import cold_start_reason
from warm_process.job import WarmProcessJobConfiguration

from tests.integration.warm_process.harness import Server, gone, read_note, worker


def cold_start_lines(server: Server, run: str) -> list[str]:
    return [line for line in server.logs(run) if "Cold start" in line]


@pytest.mark.parametrize(
    ("job_variables", "reason"),
    [
        ({"command": "python -m prefect.engine"}, "its job variables set a command (python -m prefect.engine)"),
        (
            {"env": {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}},
            "OMP_NUM_THREADS, PYTHONHASHSEED can only be set for a new interpreter",
        ),
    ],
)
def test_a_cold_start_says_why_and_can_be_cancelled(
    orchestrator: Server, shared_pool: str, note: Path, job_variables: dict[str, Any], reason: str
) -> None:
    run = orchestrator.trigger(orchestrator.deploy(shared_pool, "wait"), job_variables, path=str(note))
    seen = read_note(note, seconds=60)
    orchestrator.cancel(run)

    orchestrator.expect(run, "Cancelled", seconds=20)
    gone(seen["pid"], seen["grandchild"])
    assert not seen["is_fork"]
    assert job_variables.get("env", {}).items() <= seen["env"].items()
    assert cold_start_lines(orchestrator, run) == [f"Cold start in a new interpreter: {reason}."]


def test_every_run_is_a_cold_start_where_the_warm_process_is_switched_off(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path
) -> None:
    settings = {"WARM_PROCESS_ENABLED": "false", "ready": "Every run is a cold start"}
    waiting_note = tmp_path / "waiting.json"
    with worker(orchestrator, pool, tmp_path, **settings) as found:
        waiting = orchestrator.trigger(orchestrator.deploy(pool, "wait"), path=str(waiting_note))
        run = orchestrator.trigger(orchestrator.deploy(pool, "describe"), path=str(note))
        orchestrator.expect(run, "Completed", seconds=60)
        read_note(waiting_note, seconds=60)
        found.stop()

        assert not read_note(note)["is_fork"]
        assert cold_start_lines(orchestrator, run) == [
            "Cold start in a new interpreter: the warm process is switched off (WARM_PROCESS_ENABLED)."
        ]
        assert orchestrator.state(waiting) == "Crashed"


@pytest.mark.parametrize(
    "name",
    ["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "SCIPY_ARRAY_API", "SKLEARN_SKIP_NETWORK_TESTS", "NPY_PROMOTION_STATE",
     "JOBLIB_MULTIPROCESSING", "PANDERA_VALIDATION_ENABLED", "MLFLOW_LOGGING_LEVEL", "LD_PRELOAD", "LANG", "MPLBACKEND"],
)  # fmt: skip
def test_a_variable_that_is_read_on_import_needs_a_new_interpreter(name: str) -> None:
    assert find_start_only_variables({name: "1"}, {}) == [name]
    assert find_start_only_variables({name: "1"}, {name: "1"}) == []


@pytest.mark.parametrize(
    ("value", "is_on"), [("true", True), ("on", True), ("Yes", True), ("0", False), ("off", False)]
)
def test_dependencies_are_installed_by_a_new_interpreter(value: str, is_on: bool) -> None:
    configuration = WarmProcessJobConfiguration(env={"PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": value})

    assert bool(cold_start_reason(configuration)) == is_on


def test_a_missing_working_directory_is_the_reason_of_the_crash(
    orchestrator: Server, shared_pool: str, tmp_path: Path
) -> None:
    deployment = orchestrator.deploy(shared_pool, "trivial", job_variables={"reruns_after_crash": 2})
    run = orchestrator.trigger(deployment, {"working_dir": str(tmp_path / "none")})

    orchestrator.expect(run, "Crashed")
    assert f"its working directory {tmp_path}/none does not exist" in orchestrator.message(run)
