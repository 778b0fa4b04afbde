"""What is kept for how long in the result storage and in MLflow, and what the next clean-up would remove.

`reconcile` cleans up hourly. MLflow's server decides what is removed there and says what registered versions need
(`mlflow_server.retention`); where the server is not the platform's, nothing of it is removed, nor any snapshot. Prefect
deletes its own runs, logs and events. `make storage` runs this module.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import httpx
import mlflow
from mlflow.utils.credentials import read_mlflow_creds
from prefect.client.orchestration import SyncPrefectClient, get_client
from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainyard import cache_storage
from trainyard.cache_storage import Stored
from trainyard.contract import FLOW_RUN_DAYS, MAX_DAYS, RETENTION_PATH, State
from trainyard.provenance import is_snapshot, snapshot_paths

RESULT = re.compile(r"[0-9a-f]{32}")
"""The path of a result that a run has stored under Prefect's own key."""
MIN_SNAPSHOT_DAYS = 7
"""Longer than from the storing of data to the registration of the version that is trained from it."""
REQUEST_SECONDS = 120.0


def validate_snapshot_days(days: int) -> int:
    """Return the days.

    Raises:
        ValueError: They are too few.
    """
    if 0 < days < MIN_SNAPSHOT_DAYS:
        raise ValueError(f"must be {MIN_SNAPSHOT_DAYS} at least, or 0 for no end")
    return days


Days = Annotated[int, Field(ge=0, le=MAX_DAYS)]
"""How long something is kept; 0 is for no end."""


class RetentionSettings(BaseSettings):
    """Settings of what is kept."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    retention_snapshot_days: Annotated[Days, AfterValidator(validate_snapshot_days)] = 30
    """Data and problems that no registered version was trained from."""
    retention_flow_run_days: Days = FLOW_RUN_DAYS
    """Results that runs have stored, which Prefect forgets with the run."""
    disk_alert_percent: Annotated[float, Field(gt=0, le=100)] = 85
    """How full the disk is when people are told."""
    warm_process_state_dir: Path = Path()
    """A folder on the disk with the data: in the stack one of the volumes."""


@dataclass(frozen=True)
class Retention:
    """What is kept in the result storage."""

    snapshot_days: int
    result_days: int
    needed: frozenset[str] | None
    """The paths of the snapshots that registered versions were trained from; None where they are not known."""

    def is_removable(self, stored: Stored) -> bool:
        """Return whether a file or object of the result storage is removed: it has expired, and no version needs it."""
        if is_snapshot(stored.path):
            return self.needed is not None and stored.path not in self.needed and is_older(stored, self.snapshot_days)
        if RESULT.fullmatch(stored.path):
            return is_older(stored, self.result_days)
        return cache_storage.has_expired(stored)


def is_older(stored: Stored, days: int) -> bool:
    """Return whether something is older than some days; of 0 days nothing is."""
    return days > 0 and stored.age > timedelta(days=days)


def current_retention() -> Retention:
    """Return what is kept in the result storage now.

    Raises:
        httpx.HTTPError: MLflow refused or did not answer.
    """
    settings, known = RetentionSettings(), ask_mlflow("GET")
    needed = (
        None if known is None else frozenset(path for digest in known["digests"] for path in snapshot_paths(digest))
    )
    return Retention(settings.retention_snapshot_days, settings.retention_flow_run_days, needed)


def ask_mlflow(method: str) -> dict[str, Any] | None:
    """Ask MLflow's server what is removed and what is needed (GET), or have it remove a part of it (POST).

    Returns:
        The answer, or None where the server is not the platform's.

    Raises:
        httpx.HTTPError: It refused or did not answer.
    """
    address = mlflow.get_tracking_uri()
    if not address.startswith(("http://", "https://")):
        return None
    credentials = read_mlflow_creds()
    login = (credentials.username, credentials.password or "") if credentials.username else None
    answer = httpx.request(method, f"{address.rstrip('/')}{RETENTION_PATH}", auth=login, timeout=REQUEST_SECONDS)
    if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
        return None
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def clean_mlflow() -> dict[str, int]:
    """Have MLflow's server remove what is not kept any more; return the numbers of trials, runs and models.

    Raises:
        httpx.HTTPError: It refused or did not answer.
    """
    total = dict.fromkeys(("trials", "runs", "models"), 0)
    while removed := ask_mlflow("POST"):
        for kind in total:
            total[kind] += len(removed[kind])
        if not any(removed.values()):
            break
    return total


def kind_of(path: str) -> str:
    """Return what people call a file or object of the result storage."""
    if is_snapshot(path):
        return "snapshots of training data"
    return "cached results" if path.startswith(f"{cache_storage.FOLDER}/") else "results of runs"


def summarize(stored: Iterable[Stored]) -> dict[str, dict[str, int]]:
    """Return number and bytes by kind."""
    found: dict[str, dict[str, int]] = {}
    for each in stored:
        kind = found.setdefault(kind_of(each.path), {"count": 0, "bytes": 0})
        kind["count"] += 1
        kind["bytes"] += each.size
    return found


def count_old_flow_runs(prefect: SyncPrefectClient, days: int) -> int:
    """Return how many top-level flow runs Prefect deletes next; it looks each hour."""
    if not days:
        return 0
    until = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    query = {
        "parent_task_run_id": {"is_null_": True},
        "state": {"type": {"any_": sorted(State.FINAL_TYPES)}},
        "end_time": {"before_": until},
    }
    return int(prefect.request("POST", cast(Any, "/flow_runs/count"), json={"flow_runs": query}).json())


@dataclass(frozen=True)
class Disk:
    """The disk that holds the data."""

    used: int
    total: int
    """In bytes, without what only root may use."""

    @property
    def percent(self) -> float:
        """How full it is."""
        return 100 * self.used / self.total if self.total else 100.0

    def describe(self) -> str:
        """Return a sentence for people."""
        free = (self.total - self.used) / 1e9
        return f"The disk with the data is {self.percent:.0f} % full: {free:,.1f} GB of {self.total / 1e9:,.1f} GB are free."


def measure_disk(folder: Path) -> Disk:
    """Return how full the disk of a folder is.

    Raises:
        OSError: There is no such folder.
    """
    found = shutil.disk_usage(folder)
    return Disk(found.used, found.used + found.free)


def describe_storage() -> dict[str, Any]:
    """Return what `make storage` shows of the result storage, of MLflow and Prefect, and of the disk."""
    settings, retention = RetentionSettings(), current_retention()
    stored = list(cache_storage.list_stored())
    disk = measure_disk(settings.warm_process_state_dir)
    with get_client(sync_client=True) as prefect:
        flow_runs = count_old_flow_runs(prefect, settings.retention_flow_run_days)
    known = ask_mlflow("GET") or {}
    return {
        "disk": {"text": disk.describe(), "alert_percent": settings.disk_alert_percent},
        "results": summarize(stored),
        "removable_results": summarize(each for each in stored if retention.is_removable(each)),
        "flow_runs": flow_runs,
        "mlflow": {kind: known.get(kind) for kind in ("trials", "runs", "models", "deleted_days", "trial_days")},
        **settings.model_dump(include={"retention_snapshot_days", "retention_flow_run_days"}),
    }


if __name__ == "__main__":
    print(json.dumps(describe_storage()))
