"""Start a deployment's run and follow it to its end."""

import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import httpx

from infra.provision.api import find_deployments

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
POLL_SECONDS = 0.4
LAST_LINES_SECONDS = 6.0  # a run's process sends its last lines as it ends, after the run's last state
UNCLAIMED_SECONDS = 30.0


class RunError(Exception):
    """The run could not be started; the message says why and what to do."""


def start_run(api: httpx.Client, name: str, parameters: dict[str, Any], ui: str) -> str:
    """Start a run of a deployment and say where to see it.

    Args:
        api: Prefect's API.
        name: The deployment, as NAME or FLOW/NAME.
        parameters: The flow's parameters; those left out have the deployment's values.
        ui: Address of Prefect's UI.

    Returns:
        The run's id.

    Raises:
        RunError: There is no such deployment, or Prefect refused the parameters.
        httpx.HTTPError: Prefect did not answer.
    """
    deployment = find_deployment(api, name)
    answer = api.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
    if answer.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
        raise RunError(f"Prefect refused the parameters of {name}: {answer.json().get('detail', answer.text)}")
    run = answer.raise_for_status().json()
    print(f"{deployment['full_name']}: run {run['name']}, {ui}/runs/flow-run/{run['id']}", flush=True)
    return str(run["id"])


def find_deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    """Return the one deployment of this name.

    Raises:
        RunError: There is none, or more than one.
    """
    deployments = find_deployments(api)
    found = [deployment for deployment in deployments if name in (deployment["name"], deployment["full_name"])]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(deployment["full_name"] for deployment in found)
        raise RunError(f"More than one deployment is called {name}: say which, of {several}.")
    known = ", ".join(sorted(deployment["name"] for deployment in deployments)) or "none yet"
    raise RunError(f"There is no deployment {name}. Known: {known}. A new one in prefect.yaml needs `make deploy`.")


def follow(api: httpx.Client, run_id: str) -> bool:
    """Print a run's log lines, those of its subflows among them, until it has ended.

    Returns:
        Whether it ended as Completed.
    """
    lines = LogLines(api, run_id)
    started, wait, warned = time.monotonic(), Event(), False
    while True:
        run = api.get(f"/flow_runs/{run_id}").raise_for_status().json()
        for line in lines.new():
            print(line, flush=True)
        if run["state_type"] in FINAL:
            break
        if not warned and run["state_type"] == "SCHEDULED" and time.monotonic() - started > UNCLAIMED_SECONDS:
            print(
                "No worker has taken the run yet: is it running, and is the pool's limit reached?",
                file=sys.stderr,
            )
            warned = True
        wait.wait(POLL_SECONDS)
    deadline = time.monotonic() + LAST_LINES_SECONDS
    while not lines.complete and time.monotonic() < deadline:
        wait.wait(POLL_SECONDS)
        for line in lines.new():
            print(line, flush=True)
    message = run["state"].get("message") or ""
    print(f"{run['name']}: {run['state_name']}{': ' if message else ''}{message}")
    return bool(run["state_type"] == "COMPLETED")


class LogLines:
    """The log lines of a run and of its subflows, each once, in the order in which they reach the server."""

    def __init__(self, api: httpx.Client, run_id: str) -> None:
        self._api = api
        self._runs = {run_id: ""}
        self._root = run_id
        self._seen: set[str] = set()
        self._latest: datetime | None = None
        self.complete = False  # the run's own last line has come

    def new(self) -> Iterator[str]:
        """Yield the lines that came since the last call."""
        self._find_subflows()
        for log in self._fetch():
            if log["id"] in self._seen:
                continue
            self._seen.add(log["id"])
            stamp = datetime.fromisoformat(log["timestamp"])
            self._latest = max(self._latest or stamp, stamp)
            of_root = log["flow_run_id"] == self._root and not log["task_run_id"]
            self.complete |= of_root and log["message"].startswith("Finished in state")
            level = LEVELS.get(log["level"], str(log["level"]))
            yield f"{stamp.astimezone():%H:%M:%S} {level:7} {self._runs[log['flow_run_id']]}{log['message']}"

    def _find_subflows(self) -> None:
        parents = {"parent_flow_run_id": {"any_": list(self._runs)}}
        for run in self._api.post("/flow_runs/filter", json={"flow_runs": parents}).raise_for_status().json():
            if run["id"] not in self._runs:
                flow = self._api.get(f"/flows/{run['flow_id']}").raise_for_status().json()
                self._runs[run["id"]] = f"{flow['name']}: "

    def _fetch(self) -> Iterator[dict[str, Any]]:
        """Yield what the server has, from a little before the newest line seen: processes send theirs in batches."""
        condition: dict[str, Any] = {"flow_run_id": {"any_": list(self._runs)}}
        if self._latest:
            condition["timestamp"] = {"after_": (self._latest - timedelta(seconds=15)).isoformat()}
        page: dict[str, Any] = {"logs": condition, "sort": "TIMESTAMP_ASC", "limit": 200, "offset": 0}
        while batch := self._api.post("/logs/filter", json=page).raise_for_status().json():
            yield from batch
            page["offset"] += len(batch)
