"""Start a run of a deployment and follow it to its end."""

import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from threading import Event
from typing import Any
from uuid import uuid4

import httpx

from infra.provision.api import create_flow_run, find_deployments
from trainyard.contract import PrefectPage, State

FINAL = State.FINAL_TYPES
LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
POLL_SECONDS = 0.4
LAST_LINES_TIMEOUT_SECONDS = 6.0  # a run's process sends its last lines as it exits, after the run's final state
UNCLAIMED_SECONDS = 30.0
LOG_OVERLAP = timedelta(seconds=15)  # processes send their lines in batches, which may arrive out of order


class RunError(Exception):
    """The run could not be started; the message says why and what to do."""


def start_run(api: httpx.Client, name: str, parameters: dict[str, Any], ui: str) -> str:
    """Start a run of a deployment and print where to see it.

    Args:
        api: Prefect's API.
        name: The deployment, as NAME or FLOW/NAME.
        parameters: The flow's parameters; the deployment's defaults apply to the others.
        ui: Address of Prefect's UI.

    Returns:
        The run's id.

    Raises:
        RunError: There is no such deployment, or Prefect refused the parameters.
        httpx.HTTPError: Prefect did not answer.
    """
    deployment = find_deployment(api, name)
    answer = create_flow_run(api, deployment["id"], str(uuid4()), parameters=parameters)
    if answer.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
        raise RunError(f"Prefect refused the parameters of {name}: {answer.json().get('detail', answer.text)}")
    run = answer.raise_for_status().json()
    print(f"{deployment['full_name']}: run {run['name']}, {PrefectPage.flow_run(ui, run['id'])}", flush=True)
    return str(run["id"])


def find_deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    """Return the one deployment of a name, NAME or FLOW/NAME.

    Raises:
        RunError: There is none, or more than one.
        httpx.HTTPError: Prefect did not answer.
    """
    deployments = find_deployments(api)
    found = [deployment for deployment in deployments if name in (deployment["name"], deployment["full_name"])]
    if len(found) == 1:
        return found[0]
    if found:
        candidates = ", ".join(deployment["full_name"] for deployment in found)
        raise RunError(f"More than one deployment is called {name}: choose one of {candidates}.")
    known = ", ".join(sorted(deployment["name"] for deployment in deployments)) or "none yet"
    raise RunError(f"There is no deployment {name}. Known: {known}. A new one in prefect.yaml needs `make deploy`.")


def follow(api: httpx.Client, run_id: str) -> bool:
    """Print the log of a run and of its subflows until it has ended.

    Returns:
        Whether it completed.

    Raises:
        httpx.HTTPError: Prefect did not answer.
    """
    reader = LogReader(api, run_id)
    started, wait, warned = time.monotonic(), Event(), False
    while True:
        run = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        reader.print_new_lines()
        if run["state_type"] in FINAL:
            break
        if not warned and run["state_type"] == "SCHEDULED" and time.monotonic() - started > UNCLAIMED_SECONDS:
            print("No worker has picked up the run: is one running, and is the pool's limit reached?", file=sys.stderr)
            warned = True
        wait.wait(POLL_SECONDS)
    deadline = time.monotonic() + LAST_LINES_TIMEOUT_SECONDS
    while not reader.is_complete and time.monotonic() < deadline:
        wait.wait(POLL_SECONDS)
        reader.print_new_lines()
    message = run["state"].get("message") or ""
    print(f"{run['name']}: {run['state_name']}{': ' if message else ''}{message}")
    return bool(run["state_type"] == "COMPLETED")


class LogReader:
    """Reads the log lines of a run and of its subflows, each once, in the order in which the server receives them.

    `is_complete` is set when the run's own last line has been read.
    """

    def __init__(self, api: httpx.Client, run_id: str) -> None:
        self.is_complete = False
        self._api = api
        self._prefixes = {run_id: ""}
        self._root = run_id
        self._seen: set[str] = set()
        self._latest: datetime | None = None

    def print_new_lines(self) -> None:
        """Print the lines that have arrived since the last call."""
        self._find_subflows()
        for log in self._fetch():
            if log["id"] in self._seen:
                continue
            self._seen.add(log["id"])
            time_logged = datetime.fromisoformat(log["timestamp"])
            self._latest = max(self._latest or time_logged, time_logged)
            is_of_root = log["flow_run_id"] == self._root and not log["task_run_id"]
            self.is_complete |= is_of_root and log["message"].startswith("Finished in state")
            level, prefix = LEVELS.get(log["level"], str(log["level"])), self._prefixes[log["flow_run_id"]]
            print(f"{time_logged.astimezone():%H:%M:%S} {level:7} {prefix}{log['message']}", flush=True)

    def _find_subflows(self) -> None:
        parents = {"parent_flow_run_id": {"any_": list(self._prefixes)}}
        for run in self._api.post("/flow_runs/filter", json={"flow_runs": parents}).raise_for_status().json():
            if run["id"] not in self._prefixes:
                flow = self._api.get(f"/flows/{run['flow_id']}").raise_for_status().json()
                self._prefixes[run["id"]] = f"{flow['name']}: "

    def _fetch(self) -> Iterator[dict[str, Any]]:
        condition: dict[str, Any] = {"flow_run_id": {"any_": list(self._prefixes)}}
        if self._latest:
            condition["timestamp"] = {"after_": (self._latest - LOG_OVERLAP).isoformat()}
        page: dict[str, Any] = {"logs": condition, "sort": "TIMESTAMP_ASC", "limit": 200, "offset": 0}
        while batch := self._api.post("/logs/filter", json=page).raise_for_status().json():
            yield from batch
            page["offset"] += len(batch)
