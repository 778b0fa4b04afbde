"""What the worker uses of Prefect beyond its documented interface, checked name by name."""

import inspect
from importlib import import_module

import prefect
import pytest
from warm_process import prefect_private

MOVED = (
    f"Prefect {prefect.__version__} has moved something that warm_process/prefect_private.py uses;"
    " see there what it is for, and adapt it before the new version is taken: "
)


@pytest.mark.parametrize("module", prefect_private.ENGINE_MODULES)
def test_what_is_imported_ahead_still_exists(module: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        pytest.fail(f"{MOVED}module {module} ({error})")


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("prefect.runner._control_channel", "ControlChannel.register", ["self", "flow_run_id"]),
        ("prefect.runner._control_channel", "ControlChannel.unregister", ["self", "flow_run_id"]),
        ("prefect.runner._control_channel", "ControlChannel.signal", ["self", "flow_run_id", "intent"]),
        ("prefect.workers.base", "BaseWorker._setup_cancellation_observer", ["self"]),
        ("prefect.workers.base", "BaseWorker._give_worker_labels_to_flow_run", ["self", "flow_run_id"]),
        ("prefect.context", "refresh_global_settings_context", []),
        ("prefect.logging.configuration", "setup_logging", ["incremental"]),
    ],
)
def test_functions_keep_their_parameters(module: str, name: str, parameters: list[str]) -> None:
    found = import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{MOVED}{module}.{name}"
        found = getattr(found, part)
    assert list(inspect.signature(found).parameters) == parameters, f"{MOVED}{module}.{name}"


def test_the_answers_of_the_control_channel() -> None:
    statuses = import_module("prefect.runner._control_channel").ControlSignalStatus
    assert hasattr(statuses, "ACKNOWLEDGED"), f"{MOVED}ControlSignalStatus.ACKNOWLEDGED"
    assert hasattr(statuses, "ALREADY_CONCLUDED"), f"{MOVED}ControlSignalStatus.ALREADY_CONCLUDED"


@pytest.mark.parametrize(
    ("module", "variables"),
    [
        ("prefect._internal.control_listener", (prefect_private.CONTROL_PORT, prefect_private.CONTROL_TOKEN)),
        ("prefect.engine", (prefect_private.FLOW_RUN_ID,)),
        ("prefect.flow_engine", (prefect_private.ENGINE_OWNS_CANCELLATION,)),
    ],
)
def test_the_engine_reads_these_variables(module: str, variables: tuple[str, ...]) -> None:
    source = inspect.getsource(import_module(module))
    for variable in variables:
        assert f'"{variable}"' in source, f"{MOVED}{module} does not read {variable}"


@pytest.mark.parametrize("name", ["_client", "_work_pool", "_limiter", "_logger"])
def test_the_worker_still_has_these_attributes(name: str) -> None:
    source = inspect.getsource(import_module("prefect.workers.base").BaseWorker)
    assert f"self.{name}" in source, f"{MOVED}BaseWorker.{name}, which warm_process/worker.py reads"


def test_the_heartbeat_waits_as_we_think() -> None:
    source = inspect.getsource(import_module("prefect.flow_engine"))
    for part in ("stop_event = threading.Event()", "if stop_event.is_set():", "time.sleep(1)"):
        assert part in source, f"{MOVED}the heartbeat thread of prefect.flow_engine ({part})"


def test_the_cold_start_is_still_a_module() -> None:
    source = inspect.getsource(import_module("prefect.engine"))
    assert 'if __name__ == "__main__":' in source, f"{MOVED}python -m prefect.engine"
