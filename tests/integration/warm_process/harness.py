"""A Prefect server and workers of the type `warm-process` as local processes, observed through the REST API."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from warm_process.ledger import live_workers

from infra.testing.servers import SCRIPTS, free_port, prefect_client, prefect_database, server
from infra.testing.waiting import wait_until
from trainyard.contract import Resource, State

FLOWS = Path(__file__).parent
AUTH = "trainyard:a-password-for-tests"


@dataclass
class Server:
    """A client of the server's REST API."""

    address: str
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        user, _, password = AUTH.partition(":")
        self.client = prefect_client(self.address, (user, password))

    def call(self, method: str, path: str, **options: Any) -> Any:
        response = self.client.request(method, path, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def create_pool(self, type_: str = Resource.WORK_POOL_TYPE) -> str:
        """Create a work pool with the worker's own default template."""
        from warm_process.worker import WarmProcessWorker

        name = f"pool-{uuid.uuid4().hex[:8]}"
        template = WarmProcessWorker.get_default_base_job_template()
        self.call("POST", "/work_pools/", json={"name": name, "type": type_, "base_job_template": template})
        return name

    def deploy(self, pool: str, flow: str, folder: Path = FLOWS, file: str = "probe_flows.py", **more: Any) -> str:
        """Deploy a flow of a local folder, as prefect.yaml does; return the id of the deployment.

        A crashed run is not scheduled again, unless the job variables say so.
        """
        flow_id = self.call("POST", "/flows/", json={"name": flow.replace("_", "-")})["id"]
        directory = {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}
        body = {
            "name": f"{flow}-{uuid.uuid4().hex[:8]}",
            "flow_id": flow_id,
            "entrypoint": f"{file}:{flow}",
            "work_pool_name": pool,
            "pull_steps": [directory],
            "enforce_parameter_schema": False,
            **more,
            "job_variables": {"reruns_after_crash": 0} | more.get("job_variables", {}),
        }
        return self.call("POST", "/deployments/", json=body)["id"]

    def trigger(self, deployment: str, job_variables: dict[str, Any] | None = None, **parameters: Any) -> str:
        """Run a deployment now; return the id of the flow run."""
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters, "job_variables": job_variables or {}}
        return self.call("POST", f"/deployments/{deployment}/create_flow_run", json=body)["id"]

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        return self.call("GET", f"/flow_runs/{flow_run}")

    def state(self, flow_run: str) -> str:
        return self.flow_run(flow_run)["state"]["name"]

    def message(self, flow_run: str) -> str:
        return self.flow_run(flow_run)["state"]["message"] or ""

    def states(self, flow_run: str) -> list[dict[str, Any]]:
        """Read the states of a run, in order."""
        found = self.call("GET", "/flow_run_states/", params={"flow_run_id": flow_run})
        return sorted(found, key=lambda state: state["timestamp"])

    def names(self, flow_run: str) -> list[str]:
        return [state["name"] for state in self.states(flow_run)]

    def subflow_runs(self, flow_run: str) -> list[dict[str, Any]]:
        query = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}}
        return self.call("POST", "/flow_runs/filter", json=query)

    def cancel(self, flow_run: str) -> None:
        """Cancel as the UI does."""
        self.set_state(flow_run, "CANCELLING", name="Cancelling")

    def set_state(self, flow_run: str, type_: str, force: bool = False, **more: str) -> None:
        """Set a state as the UI or an automation does."""
        body = {"state": {"type": type_, **more}, "force": force}
        self.call("POST", f"/flow_runs/{flow_run}/set_state", json=body)

    def retry(self, flow_run: str) -> None:
        """Retry a run as the UI does."""
        self.set_state(flow_run, "SCHEDULED", name="AwaitingRetry", message="Retry from the UI")

    def logs(self, flow_run: str) -> list[str]:
        body = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        return [log["message"] for log in self.call("POST", "/logs/filter", json=body)]

    def wait_for(self, flow_run: str, *names: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until a run is in one of the named states; return the run."""

        def reached() -> dict[str, Any] | None:
            found = self.flow_run(flow_run)
            return found if found["state"]["name"] in names else None

        try:
            return wait_until(reached, seconds, f"a run to be {' or '.join(names)}", every=0.05)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its states: {self.names(flow_run)}") from None

    def wait_for_end(self, flow_run: str, seconds: float = 30) -> str:
        """Wait until a run has ended; return the name of its last state."""

        def ended() -> str | None:
            state = self.flow_run(flow_run)["state"]
            return state["name"] if state["type"] in State.FINAL_TYPES else None

        try:
            return wait_until(ended, seconds, "a run to end", every=0.05)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its states: {self.names(flow_run)}") from None

    def expect(self, flow_run: str, name: str, seconds: float = 30) -> None:
        """Wait until a run has ended, in the named state."""
        found = self.wait_for_end(flow_run, seconds)
        assert found == name, f"{self.names(flow_run)}: {self.message(flow_run)}\n" + "\n".join(self.logs(flow_run))


@contextmanager
def prefect_server(folder: Path, **settings: str) -> Iterator[Server]:
    """Run a Prefect server with basic authentication."""
    port = free_port()
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_API_AUTH_STRING": AUTH,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(folder),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",  # as in the image
        # Few tests read stored events, none task runs, and on SQLite they block everything else.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        **settings,
    }
    command = [str(SCRIPTS / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"http://127.0.0.1:{port}/api/ready", folder, environment):
        found = Server(f"http://127.0.0.1:{port}/api")
        with found.client:
            yield found


class Worker:
    """One `prefect worker start`."""

    def __init__(
        self,
        api: str,
        pool: str,
        home: Path,
        *,
        limit: int | None,
        type_: str,
        hide: str | None,
        queue: str | None,
        **env: str | None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.pool, self.limit = home, pool, limit
        self.log = home / f"worker-{uuid.uuid4().hex[:6]}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "WARM_PROCESS_"))}
        settings: dict[str, str | None] = {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
            "DO_NOT_TRACK": "1",
            "WARM_PROCESS_PRELOAD": "numpy",
            "WARM_PROCESS_DRAIN_SECONDS": "0",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
            **env,
        }
        prefect = [sys.executable, str(FLOWS / "hide_name.py"), hide] if hide else [str(SCRIPTS / "prefect")]
        command = [*prefect, "worker", "start", "--type", type_, "--pool", pool]
        command += ["--name", f"worker of {pool}"] if "WORKER_NAME" not in env else ["--name", str(env["WORKER_NAME"])]
        command += ["--limit", str(limit)] if limit else []
        command += ["--work-queue", queue] if queue else []
        environment = clean | {k: v for k, v in settings.items() if v is not None}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=home, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_text(self, text: str, seconds: float = 60) -> None:
        def appeared() -> bool:
            if self.process.poll() is not None and text not in self.text():
                raise RuntimeError(f"the worker ended with {self.process.returncode}:\n{self.text()[-3000:]}")
            return text in " ".join(self.text().split())

        wait_until(appeared, seconds, f"the worker to log {text!r}")

    @property
    def warm_pid(self) -> int:
        """The pid of the newest warm process."""
        words = " ".join(self.text().split()).split("The warm process (PID ")
        ready = [part for part in words[1:] if "is ready after" in part]
        return int(ready[-1].split(")")[0])

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(seconds)

    def status(self) -> list[dict[str, Any]]:
        shown = subprocess.run(
            [sys.executable, "-m", "warm_process", "status"],
            env={**os.environ, "PREFECT_HOME": str(self.home)},
            capture_output=True,
            check=True,
        )
        return json.loads(shown.stdout)

    def runs(self) -> list[str]:
        """List the runs that have a process."""
        return [run for found in live_workers(self.home / "warm-process") for run in found["runs"]]


@contextmanager
def worker(
    server: Server,
    pool: str,
    home: Path,
    *,
    limit: int | None = None,
    type_: str = Resource.WORK_POOL_TYPE,
    ready: str = "is ready after",
    api: str | None = None,
    hide: str | None = None,
    queue: str | None = None,
    **env: str | None,
) -> Iterator[Worker]:
    """Run a worker until the block ends; print its log when the block fails.

    Args:
        server: The server of its pool.
        pool: The work pool.
        home: Its folder, which holds its ledger.
        limit: How many runs it may have at a time.
        type_: Its type.
        ready: What it logs once it is ready.
        api: Another address of the server.
        hide: A name that its Prefect lacks (hide_name.py).
        queue: The only work queue that it polls.
        **env: Its environment.
    """
    started = Worker(api or server.address, pool, home, limit=limit, type_=type_, hide=hide, queue=queue, **env)
    try:
        started.wait_for_text(ready)
        started.wait_for_text("started!")
        yield started
    except BaseException:
        print(f"--- {started.log}\n{started.text()[-8000:]}")
        raise
    finally:
        try:
            started.stop()
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.wait()
            raise


@contextmanager
def proxy(server: Server) -> Iterator["Proxy"]:
    """Put a relay before a server until the block ends."""
    relay = Proxy(server.address)
    try:
        yield relay
    finally:
        relay.close()


class Proxy:
    """A TCP relay before the server that can cut the event stream alone, or everything."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2].split("/")[0]))
        self._streams: list[socket.socket] = []
        self._open: list[socket.socket] = []
        self.cut = False
        self._port = 0
        self._listen()
        self.address = f"http://127.0.0.1:{self._port}/api"

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut_events(self) -> None:
        """Close the open event streams and refuse new ones."""
        self.cut = True
        for stream in self._streams:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        self._streams.clear()

    def cut_everything(self) -> None:
        """Close every connection and refuse new ones: the server is away."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def restore(self) -> None:
        """Let everything through again."""
        self.cut = False
        if self._listener.fileno() == -1:
            self._listen()

    def close(self) -> None:
        self.cut_everything()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            head = near.recv(1 << 16)
            is_stream = b"/events/out" in head.split(b"\r\n")[0]
            if is_stream and self.cut:
                return
            with socket.create_connection(self._target) as far:
                self._open += [near, far]
                if is_stream:
                    self._streams.append(near)
                far.sendall(head)
                back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
                back.start()
                self._pump(near, far)
                back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def read_note(path: Path, seconds: float = 20) -> dict[str, Any]:
    """Read the observations of a probe flow as soon as they are written."""

    def read() -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    return wait_until(read, seconds, f"a note in {path}", every=0.02)


def gone(*pids: int, seconds: float = 10) -> None:
    """Wait until none of the processes is alive."""
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds, f"processes {pids} to end", every=0.05)
