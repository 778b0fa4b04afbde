"""Real Prefect and MLflow servers as local processes, on SQLite and free ports."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.fernet import Fernet

from infra.testing.waiting import wait_until

SCRIPTS = Path(sys.executable).parent
CHECKOUT = Path(__file__).parents[2]
SERVICES = CHECKOUT / "services"
TEMPLATES = Path(sys.prefix)  # the environment of the tests
MAX_BUSY_SECONDS = 30.0


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(
    command: list[str], health_url: str, folder: Path, environment: dict[str, str], seconds: float = 300
) -> Iterator[None]:
    """Run a command until the block ends; it has answered at `health_url` when the block begins."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "SERVING_", "DASHBOARD_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=clean | environment, stdout=output, stderr=subprocess.STDOUT
        )

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
            try:
                return httpx.get(health_url, timeout=2).is_success
            except httpx.TransportError:
                return False

        try:
            wait_until(answers, seconds, health_url)
            yield
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and wait for it."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def prefect_database(folder: Path) -> str:
    """Return the address of Prefect's database in a folder. A new one is a copy, since its migrations take longer than all else."""
    file = folder / "prefect.db"
    if not file.exists():
        template = TEMPLATES / f"prefect-{importlib.metadata.version('prefect')}.db"
        if not template.exists():
            with tempfile.TemporaryDirectory(dir=TEMPLATES) as home:
                made = Path(home, "prefect.db")
                clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
                settings = {"PREFECT_HOME": home, "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_url(made)}
                command = [str(SCRIPTS / "prefect"), "server", "database", "upgrade", "--yes"]
                subprocess.run(command, env=clean | settings, check=True, capture_output=True)
                made.rename(template)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(template, file)
    return sqlite_url(file)


def sqlite_url(file: Path) -> str:
    """Return the address of a file as Prefect's database."""
    return f"sqlite+aiosqlite:///{file}"


@contextmanager
def prefect_server(
    folder: Path,
    port: int | None = None,
    admin: str = "",
    reader: str = "",
    worker: str = "worker:unused",
    deployer: str = "deploy:unused",
    **settings: str,
) -> Iterator[str]:
    """Run a Prefect server; yields its API address.

    With the logins of an admin and a reader, `user:password`, it is started as in the stack and asks for one of its accounts'.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(folder),
        **settings,
    }
    command = [str(SCRIPTS / "prefect"), "server", "start"]
    if reader:
        environment |= {
            "PREFECT_SERVER_API_AUTH_STRING": admin,
            "PREFECT_READING_AUTH_STRING": reader,
            "PREFECT_WORKER_AUTH_STRING": worker,
            "PREFECT_DEPLOY_AUTH_STRING": deployer,
            "PREFECT_SERVER_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        }
        command = [sys.executable, "-m", "prefect_server.serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"{address}/api/ready", folder, environment):
        yield f"{address}/api"


class BusyTransport(httpx.HTTPTransport):
    """Repeats what Prefect answers with 503 because SQLite is locked: it rolled the request back, so any may be repeated."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request until the answer is another one; return the last answer after MAX_BUSY_SECONDS."""
        deadline = time.monotonic() + MAX_BUSY_SECONDS
        while True:
            response = super().handle_request(request)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                return response
            response.read()
            time.sleep(0.2)


def prefect_client(api: str, login: tuple[str, str] | None = None) -> httpx.Client:
    """Return a client of the API of a Prefect server on SQLite."""
    return httpx.Client(base_url=api, auth=login, timeout=30, transport=BusyTransport())


@contextmanager
def mlflow_server(
    folder: Path,
    port: int | None = None,
    public_address: str = "",
    admin: tuple[str, str] | None = None,
    **settings: str,
) -> Iterator[str]:
    """Run an MLflow server that also serves artifacts; yields its address.

    With a public address it is the stack's server, which takes requests of pages there. With the name and password of an
    admin it is the stack's with accounts.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        **settings,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_SERVE_ARTIFACTS": "true",
        **({"MLFLOW_UI_URL": public_address} if public_address else {}),
    }
    prepare = "import mlflow_server.serve as serve"
    if admin:
        environment |= accounts_settings(folder, *admin)
        prepare += "; serve.add_route()"
    of_the_stack = [sys.executable, "-c", f"{prepare}; serve.cli()"]
    command = [
        *(of_the_stack if public_address or admin else [str(SCRIPTS / "mlflow")]),
        "server",
        *(["--app-name", "basic-auth"] if admin else []),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with server(command, f"{address}/health", folder, environment):
        yield address


def accounts_settings(folder: Path, admin: str, password: str) -> dict[str, str]:
    """Return the variables of an MLflow server with accounts, which lie in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    accounts = {
        "database_uri": f"sqlite:///{folder}/accounts.db",
        "default_permission": "READ",
        "auth_cache_ttl_seconds": 60,
    }
    (folder / "accounts.ini").write_text(
        "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in accounts.items())])
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "accounts.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": Fernet.generate_key().decode(),
        "MLFLOW_AUTH_ADMIN_USERNAME": admin,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
    }


@contextmanager
def serving_server(folder: Path, mlflow_address: str, **settings: str) -> Iterator[str]:
    """Run the service that answers with the champions; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(SERVICES / "serving"), str(CHECKOUT)]),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": mlflow_address,
        "SERVING_PORT": str(port),
        "SERVING_POLL_SECONDS": "0.2",
        **settings,
    }
    with server([sys.executable, "-m", "serving"], f"{address}/health/live", folder, environment):
        yield address


@contextmanager
def dashboard_server(folder: Path, mlflow_address: str, prefect_api: str, **settings: str) -> Iterator[str]:
    """Run the service that shows what was logged; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "PYTHONPATH": str(SERVICES / "dashboard"),
        "MLFLOW_TRACKING_URI": mlflow_address,
        "PREFECT_API_URL": prefect_api,
        "DASHBOARD_PORT": str(port),
        "DASHBOARD_PASSWORD": "a-password-of-the-tests",
        "DASHBOARD_SESSION_KEY": "a-key-of-the-tests-that-signs-the-sessions",
        "DASHBOARD_CACHE_SECONDS": "0.2",
        **settings,
    }
    with server([sys.executable, "-m", "dashboard"], f"{address}/health", folder, environment):
        yield address
