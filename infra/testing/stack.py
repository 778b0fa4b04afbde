"""The real compose file under a project name and ports of its own, from a copy of the checkout."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from infra.testing.servers import free_port
from infra.testing.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
RUNNING = {"postgres", "minio", "prefect", "mlflow", "worker", "serving", "dashboard", "mail", "backup", "upstream"}
PORTS = ("PREFECT_PORT", "MLFLOW_PORT", "MAIL_PORT", "SERVING_PORT", "DASHBOARD_PORT", "PROMETHEUS_PORT")
FOREIGN_IMAGES = {"postgres", "minio", "mail", "upstream", "prometheus", "alertmanager", "postgres-exporter", "redis"}
LAST_RELEASE, LAST_VERSION = "64b37ad", "0.1.0"
# A server closes an idle connection after some seconds, perhaps just as the next request is sent.
NO_IDLE_CONNECTIONS = httpx.Limits(max_keepalive_connections=0)
ONE_SHOTS = {"secrets", "databases", "prefect-migrate", "mlflow-migrate", "provision", "deploy"}

PSS = """
import os, re, sys
from pathlib import Path
processes = [each for each in Path("/proc").glob("[0-9]*") if each.name != str(os.getpid())]
ours = [each for each in processes if f"-m\\0{sys.argv[1]}".encode() in (each / "cmdline").read_bytes()]
print(sum(int(re.search(r"Pss: +(\\d+)", (each / "smaps_rollup").read_text())[1]) for each in ours))
"""


# Variables of the example flows: the weather comes from the stand-in of infra/testing/compose.yml.
FLOWS_ENV = """\
WEATHER_ARCHIVE_URL=http://upstream:8080/v1/archive
WEATHER_FORECAST_URL=http://upstream:8080/v1/forecast
WEATHER_GEOCODING_URL=http://upstream:8080/v1/search
"""


def copy_checkout(target: Path) -> None:
    """Copy what a commit of the checkout as it stands would hold, with the variables of the example flows."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target / name)
    (target / "flows.env").write_text(FLOWS_ENV)


def add_flows(home: Path, flows: str, deployments: str) -> None:
    """Give a copy of the checkout the module `flows/probes.py`, and its deployments."""
    (home / "flows/probes.py").write_text(flows)
    with (home / "prefect.yaml").open("a") as project:
        project.write(deployments)


def has_last_release() -> bool:
    """Return whether the clone has the last release's commit."""
    command = ["git", "cat-file", "-e", f"{LAST_RELEASE}^{{commit}}"]
    return not subprocess.run(command, cwd=CHECKOUT, capture_output=True).returncode


def clone_checkout(target: Path) -> str:
    """Clone the checkout, with a commit of it as it stands, and return that commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost", *arguments]
        return subprocess.run(command, cwd=target, check=True, capture_output=True, text=True).stdout.strip()

    subprocess.run(["git", "clone", "--quiet", CHECKOUT, target], check=True)
    copy_checkout(target)
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", "The checkout as it stands")
    return git("rev-parse", "HEAD")


class Stack:
    """A stack of its own: its commands see it through the variables that Compose itself reads."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.project = f"trainyard-test-{uuid4().hex[:8]}"
        self.ports = {name: free_port() for name in PORTS}
        kept = {
            name: value
            for name, value in os.environ.items()
            # Nor what `make test` tells the makes beneath it.
            if not name.startswith(
                (
                    "PREFECT_",
                    "PROJECT",
                    "MLFLOW_",
                    "COMPOSE_",
                    "WEATHER_",
                    "MINIO_",
                    "POSTGRES_",
                    "S3_",
                    "MAIL_",
                    "SERVING_",
                    "DASHBOARD_",
                    "BACKUP_",
                    "SMTP_",
                    "DISK_",
                    "MAKE",
                    "MFLAGS",
                )
            )
        }
        self.environment = {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": os.pathsep.join(["docker-compose.yml", "infra/testing/compose.yml"]),
            "DISK_ALERT_PERCENT": "100",  # how full this machine's disk is says nothing about the stack
            **{name: str(port) for name, port in self.ports.items()},
            **settings,
        }

    def shell(self, command: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command line as a person would type it in the checkout's folder."""
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode:
            raise AssertionError(f"{command}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def exec(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in a running service's container, with the service's secrets as variables."""
        secrets = [] if service in FOREIGN_IMAGES else ["with-secrets"]
        return self.shell(shlex.join(["docker", "compose", "exec", "-T", service, *secrets, *command]), check)

    def python(self, service: str, program: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Python text in a service's container."""
        return self.exec(service, "python", "-c", program, check=check)

    def pss_mib(self, service: str) -> float:
        """Return the memory of a service that is a Python module of its name: shared pages by their share."""
        return int(self.exec(service, "python", "-c", PSS, service).stdout) / 1024

    def provisioner(self, program: str) -> str:
        """Run Python text in a container of `provision`, which alone has the object store's root account."""
        command = ["docker", "compose", "run", "--rm", "--no-deps", "-T", "provision", "python", "-c", program]
        return self.shell(shlex.join(command)).stdout

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return what `docker inspect` says of each service's container."""
        ids = self.shell("docker compose ps --all --quiet").stdout.split()
        inspected = json.loads(self.shell(shlex.join(["docker", "inspect", *ids])).stdout)
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in inspected}

    def variables(self) -> dict[str, str]:
        """Return what `make env` prints."""
        lines = self.shell("make -s env").stdout.splitlines()
        return dict(shlex.split(line)[1].split("=", 1) for line in lines)

    @cached_property
    def _credentials(self) -> dict[str, str]:
        """What `make env` printed after the last start: it runs a container, which takes longer than most requests."""
        return self.variables()

    def forget_credentials(self) -> None:
        """Read the credentials again before the next request: they may have changed."""
        self.__dict__.pop("_credentials", None)

    def dashboard(self) -> tuple[str, str, str]:
        """Return the dashboard's address, user and password, as `make info` shows them."""
        (line,) = [line for line in self.shell("make info").stdout.splitlines() if line.startswith("Dashboard ")]
        _, address, user, password = line.split()
        return address, user, password

    def prefect(self) -> httpx.Client:
        """Return a client of Prefect's API with the credentials of `make env`."""
        variables = self._credentials
        user, password = variables["PREFECT_API_AUTH_STRING"].split(":", 1)
        address = variables["PREFECT_API_URL"]
        return httpx.Client(base_url=address, auth=(user, password), timeout=30, limits=NO_IDLE_CONNECTIONS)

    def mlflow(self) -> httpx.Client:
        """Return a client of MLflow's API with the credentials of `make env`."""
        variables = self._credentials
        login = (variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"])
        address = f"{variables['MLFLOW_TRACKING_URI']}/api/2.0/mlflow"
        return httpx.Client(base_url=address, auth=login, timeout=30, limits=NO_IDLE_CONNECTIONS)

    def serving(self) -> httpx.Client:
        """Return a client of serving with the key of `make env`."""
        variables = self._credentials
        headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
        return httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30, limits=NO_IDLE_CONNECTIONS)

    def mailbox(self) -> httpx.Client:
        """Return a client of Mailpit's API."""
        user, password = self.exec("mail", "cat", "/run/secrets/login").stdout.strip().split(":", 1)
        address = f"http://localhost:{self.ports['MAIL_PORT']}/api/v1"
        return httpx.Client(base_url=address, auth=(user, password), timeout=10)

    def flow_runs(self, flow: str) -> list[dict[str, Any]]:
        """Return the runs of a flow that somebody asked for, the newest first; those of a schedule are left out."""
        query = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
        with self.prefect() as api:
            runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=query).raise_for_status().json()
        return [run for run in runs if not run["auto_scheduled"]]

    def wait_for_first_run(self, flow: str = "weather-pipeline") -> dict[str, Any]:
        """Return a flow's first run once it has ended."""

        def ended() -> dict[str, Any] | None:
            runs = self.flow_runs(flow)
            return next(
                (run for run in reversed(runs) if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")), None
            )

        return wait_until(ended, 180, "the first run's end", every=1)

    def model_versions(self) -> list[dict[str, Any]]:
        """Return the registered versions of rain-tomorrow."""
        with self.mlflow() as api:
            answer = api.get("/model-versions/search", params={"filter": "name = 'rain-tomorrow'"})
        versions: list[dict[str, Any]] = answer.raise_for_status().json().get("model_versions", [])
        return versions

    def up(self, *services: str) -> float:
        """Run the README's command, for some services and what they depend on or for all; return how long it took in seconds."""
        start = time.monotonic()
        self.forget_credentials()  # .env may have changed
        self.shell(f"docker compose up -d --wait --build {' '.join(services)}", timeout=1800)
        return time.monotonic() - start

    def wait_until_healthy(self, seconds: float = 120, services: Collection[str] = RUNNING) -> None:
        """Return once the services' health checks pass; a check that has failed is repeated every 10 s."""

        def unhealthy() -> list[str]:
            containers = self.containers()
            return [name for name in services if containers[name]["State"]["Health"]["Status"] != "healthy"]

        wait_until(lambda: not unhealthy(), seconds, f"{', '.join(services)} to be healthy", every=1)

    def logs(self, lines: str = "all") -> str:
        """Return every service's log, or its last lines."""
        return self.shell(f"docker compose logs --no-color --timestamps --tail {lines}", check=False).stdout

    def remove_images(self) -> None:
        """Remove the images of a stack with a version of its own (`TRAINYARD_VERSION`)."""
        reference = f"reference={self.project}-*:{self.environment['TRAINYARD_VERSION']}"
        images = shlex.join(["docker", "images", "--filter", reference, "--format", "{{.Repository}}:{{.Tag}}"])
        self.shell(f"{images} | xargs --no-run-if-empty docker image rm", check=False)

    def remove(self) -> None:
        """Remove the containers, networks and volumes, and the images that were built for them."""
        self.shell("docker compose down --volumes --remove-orphans --timeout 5", check=False)
        label = f"label=com.docker.compose.project={self.project}"
        self.shell(f"docker image prune --all --force --filter {label}", check=False)
