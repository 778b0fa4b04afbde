"""Every name of Prefect that the worker uses and that is not part of its documented interface."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import sleep

import prefect
import pytest
from warm_process import prefect_private

from infra.testing.servers import free_port
from tests.integration.warm_process import hide_name
from tests.integration.warm_process.harness import Server, read_note, worker

MOVED = (
    f"Prefect {prefect.__version__} has moved a name that warm_process/prefect_private.py lists, where its purpose is"
    " explained; adapt the worker before the upgrade: "
)
TEXTS = [f"{module}: {text}" for module, texts in prefect_private.SOURCES.items() for text in texts]
ONE_OF_EACH_KIND = [
    "prefect.runner._control_channel:ControlChannel.signal",
    "prefect.workers.base:BaseWorker._give_worker_labels_to_flow_run",
    "prefect.context:refresh_global_settings_context",
    TEXTS[-1],
]


def test_prefect_has_every_name() -> None:
    assert prefect_private.missing_names() == [], MOVED


@pytest.mark.parametrize("name", [*prefect_private.NAMES, *TEXTS])
def test_each_name_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_name.hide(name, monkeypatch)

    assert prefect_private.missing_names() == [name]


def test_other_parameters_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.context.refresh_global_settings_context", lambda profile: profile)

    assert prefect_private.missing_names() == ["prefect.context:refresh_global_settings_context"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_every_run_is_a_cold_start_without_a_name(
    orchestrator: Server, pool: str, tmp_path: Path, note: Path, name: str
) -> None:
    with worker(orchestrator, pool, tmp_path, ready="Every run is a cold start", hide=name):
        run = orchestrator.trigger(orchestrator.deploy(pool, "describe"), path=str(note))
        orchestrator.expect(run, "Completed", seconds=60)

        assert not read_note(note)["is_fork"]
        (reason,) = [line for line in orchestrator.logs(run) if "Cold start" in line]
        assert f"lacks what the warm process needs ({name})" in reason


@pytest.mark.parametrize("module", prefect_private.ENGINE_MODULES)
def test_preloaded_modules_exist(module: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        pytest.fail(f"{MOVED}module {module} ({error})")


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
