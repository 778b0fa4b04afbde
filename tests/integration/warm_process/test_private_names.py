"""Every name of Prefect that the worker uses and that is not part of its documented interface."""

import inspect
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from threading import Thread
from time import sleep
from uuid import UUID

import prefect
import pytest
from warm_process import prefect_private

from infra.testing.servers import free_port

MOVED = (
    f"Prefect {prefect.__version__} has moved a name that warm_process/prefect_private.py lists, where its purpose is"
    " explained; adapt the worker before the upgrade: "
)


@pytest.mark.parametrize("module", prefect_private.ENGINE_MODULES)
def test_preloaded_modules_exist(module: str) -> None:
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
        ("prefect.workers.base", f"BaseWorker.{prefect_private.WORKER_METHODS[0]}", ["self"]),
        ("prefect.workers.base", f"BaseWorker.{prefect_private.WORKER_METHODS[1]}", ["self", "flow_run_id"]),
        ("prefect.flow_engine", "_send_heartbeats", ["engine", "join_on_exit"]),
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


def test_the_statuses_of_the_control_channel() -> None:
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


@pytest.mark.parametrize("name", prefect_private.WORKER_ATTRIBUTES)
def test_the_worker_has_these_attributes(name: str) -> None:
    source = inspect.getsource(import_module("prefect.workers.base").BaseWorker)

    assert name in source, f"{MOVED}BaseWorker.{name}"


def test_the_label_for_the_name_of_the_worker() -> None:
    source = inspect.getsource(import_module("prefect.workers.base").BaseWorker)

    assert f'"{prefect_private.WORKER_NAME_LABEL}": self.name' in source, f"{MOVED}the label for the name of the worker"


def test_a_configured_command_is_recorded() -> None:
    configuration = import_module("prefect.workers.process").ProcessJobConfiguration(command="python -m prefect.engine")
    flow_run = import_module("prefect.client.schemas.objects").FlowRun(flow_id=UUID(int=0))
    configuration.prepare_for_flow_run(flow_run)

    assert prefect_private.is_command_configured(configuration), f"{MOVED}ProcessJobConfiguration._command_configured"


def test_the_engine_can_leave_its_heartbeat_thread_behind() -> None:
    engine = import_module("prefect.flow_engine")

    assert "with _send_heartbeats(self):" in inspect.getsource(engine), f"{MOVED}prefect.flow_engine._send_heartbeats"


def test_the_cold_start_is_still_a_module() -> None:
    source = inspect.getsource(import_module("prefect.engine"))

    assert 'if __name__ == "__main__":' in source, f"{MOVED}python -m prefect.engine"


CLIENT = """
import sys
from prefect.client.orchestration import get_client
from warm_process import prefect_private

prefect_private.retry_refused_connections()
print("asking", flush=True)
with get_client(sync_client=True) as client:
    print(client.hello().status_code)
"""


def test_the_first_request_of_a_client_waits_for_a_server_that_restarts() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_CLIENT_RETRY_JITTER_FACTOR": "0",
    }
    command = [sys.executable, "-c", CLIENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        client.stdout.readline()
        sleep(0.5)  # the connection is refused meanwhile
        with HTTPServer(("127.0.0.1", port), Handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            answer = client.stdout.read().split()
            server.shutdown()

    assert answer == ["200"]
