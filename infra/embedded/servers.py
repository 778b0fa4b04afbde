"""Prefect's server, MLflow's server and a worker as local processes that stop with the program that starts them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import httpx

from trainyard.contract import Resource

START_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 15.0


class ServerError(Exception):
    """A process exited or did not become ready; the message names it and its log."""


class Servers(AbstractContextManager["Servers"]):
    """The platform's processes over one folder of state, stopped when the context ends.

    Args:
        home: The project's folder, where prefect.yaml and flows/ are.
        state: Folder of the databases, artifacts and logs; created where it is missing.
        prefect_port: Preferred port of Prefect; a free one is chosen if it is in use.
        mlflow_port: The same for MLflow.
        variables: Additional environment variables of the processes.
    """

    def __init__(
        self,
        home: Path,
        state: Path,
        prefect_port: int = 0,
        mlflow_port: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._home, self._state = home, state
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (state / "artifacts").mkdir(parents=True, exist_ok=True)
        (state / "logs").mkdir(exist_ok=True)
        self.prefect_address = f"http://127.0.0.1:{free_port(prefect_port)}"
        self.mlflow_address = f"http://127.0.0.1:{free_port(mlflow_port)}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "TRAINYARD_HOME": str(home),
            "PYTHONPATH": str(home),  # for the hooks of the project, in flows/
            "PREFECT_HOME": str(state / "prefect"),
            "PREFECT_API_URL": f"{self.prefect_address}/api",
            "PREFECT_UI_URL": self.prefect_address,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Kept with the data: a lock whose lease the server forgets would be held for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "WARM_PROCESS_DRAIN_SECONDS": "0",  # Ctrl-C stops at once
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": self.mlflow_address,
            "MLFLOW_UI_URL": self.mlflow_address,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **(variables or {}),
        }

    def __enter__(self) -> Self:
        """Start the two servers and return once both are ready.

        Raises:
            ServerError: One of them exited or did not become ready in time.
        """
        try:
            prefect, mlflow = httpx.URL(self.prefect_address), httpx.URL(self.mlflow_address)
            self._start("prefect", "prefect", "server", "start", "--host", prefect.host, "--port", str(prefect.port))
            self._start(
                "mlflow", "mlflow", "server", "--host", mlflow.host, "--port", str(mlflow.port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self._state / 'mlflow.db'}",
                "--artifacts-destination", str(self._state / "artifacts"),
            )  # fmt: skip
            self._wait_for("prefect", f"{self.prefect_address}/api/ready")
            self._wait_for("mlflow", f"{self.mlflow_address}/health")
        except BaseException:
            self._stop()
            raise
        return self

    def start_worker(self) -> None:
        """Start a worker on the work pool."""
        pool = ("--pool", Resource.WORK_POOL, "--type", Resource.WORK_POOL_TYPE)
        self._start("worker", "prefect", "worker", "start", *pool)

    def wait(self) -> None:
        """Block as long as all processes run.

        Raises:
            ServerError: One of them exited.
        """
        while True:
            for name in self._processes:
                self._require_alive(name)
            Event().wait(0.5)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self, name: str, *command: str) -> None:
        with (self._state / "logs" / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C then reaches this program only, which stops them in order.
            self._processes[name] = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                cwd=self._home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for(self, name: str, address: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            self._require_alive(name)
            try:
                if httpx.get(address, timeout=2).is_success:
                    return
            except httpx.TransportError:
                pass
            Event().wait(0.1)
        raise ServerError(
            f"{name} did not become ready within {START_TIMEOUT_SECONDS:.0f} s. Its log: {self._log(name)}"
        )

    def _require_alive(self, name: str) -> None:
        code = self._processes[name].poll()
        if code is not None:
            raise ServerError(f"{name} exited with code {code}. Its log: {self._log(name)}")

    def _log(self, name: str) -> Path:
        return self._state / "logs" / f"{name}.log"

    def _stop(self) -> None:
        """Stop the processes and their children, the last one started first."""
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must leave none behind
        try:
            for process in reversed(self._processes.values()):
                signal_group(process, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_SECONDS)
                signal_group(process, signal.SIGKILL)
                process.wait()
        finally:
            self._processes.clear()
            signal.signal(signal.SIGINT, interrupt)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process and the descendants in its session, if they still exist."""
    with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
        os.killpg(process.pid, number)


def free_port(preferred: int) -> int:
    """Return the preferred port of 127.0.0.1, or a free one if it is in use.

    Raises:
        ServerError: No port is free.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError("No port of 127.0.0.1 is free.")
