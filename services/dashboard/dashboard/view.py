"""The snapshots that a view of the page shows."""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.mlflow_source import MLflowSource
from dashboard.prefect_source import PrefectSource
from dashboard.selection import Selection
from dashboard.snapshots import Snapshot, SnapshotCache
from trainyard.contract import Alias, Artifact


@dataclass(frozen=True)
class View:
    """A selection and its snapshots."""

    selection: Selection
    model: str
    """The name of the model that is shown; empty if none is registered."""
    snapshots: Mapping[str, Snapshot]
    """By panel: models, model, checks, holdout, runs, schedule, pools."""

    def value(self, panel: str) -> Any:
        """Return a panel's value; None before there is one."""
        snapshot = self.snapshots.get(panel)
        return snapshot.value if snapshot else None

    @property
    def fingerprint(self) -> str:
        """A digest that changes whenever the page would."""
        parts = [f"{panel}:{each.version}:{each.is_loaded}" for panel, each in self.snapshots.items()]
        return hashlib.sha256("|".join([self.model, *parts]).encode()).hexdigest()[:16]

    @property
    def is_pending(self) -> bool:
        """Whether a panel still waits for its first value."""
        return any(not each.is_loaded and each.error is None for each in self.snapshots.values())

    @property
    def read_at(self) -> dict[str, float | None]:
        """When each panel's value was read, in seconds since the epoch."""
        return {panel: each.read_at for panel, each in self.snapshots.items()}


class ViewLoader:
    """Loads the snapshots of a selection."""

    def __init__(self, mlflow: MLflowSource, prefect: PrefectSource, cache: SnapshotCache, rows: int) -> None:
        self._mlflow, self._prefect, self._cache, self._rows = mlflow, prefect, cache, rows

    async def load(self, selection: Selection) -> View:
        """Return the view of a selection."""
        requested_at = time.monotonic()
        (model, of_model), runs, schedule, pools = await asyncio.gather(
            self._load_model(selection, requested_at),
            self._cache.get(
                ("runs", selection.page, selection.flow),
                lambda: self._prefect.read_runs(selection.page, self._rows, selection.flow or None),
                requested_at,
            ),
            self._cache.get("schedule", self._prefect.schedule_summary, requested_at),
            self._cache.get("pools", self._prefect.list_pools, requested_at),
        )
        return View(selection, model, {**of_model, "runs": runs, "schedule": schedule, "pools": pools})

    async def _load_model(self, selection: Selection, requested_at: float) -> tuple[str, dict[str, Snapshot]]:
        models = await self._cache.get("models", self._mlflow.list_models, requested_at)
        name = select_model(models.value or [], selection.model)
        if not name:
            return "", {"models": models}
        model, checks = await asyncio.gather(
            self._cache.get(("model", name), lambda: self._mlflow.read_model(name), requested_at),
            self._cache.get(("checks", name), lambda: self._mlflow.read_checks(name), requested_at),
        )
        snapshots = {"models": models, "model": model, "checks": checks}
        run = run_of_version(model.value, aliases_of(models.value, name).get(Alias.CHAMPION))
        if run:
            snapshots["holdout"] = await self._cache.get(
                ("holdout", run), lambda: self._mlflow.read_table(run, Artifact.HOLDOUT), requested_at, immutable=True
            )
        return name, snapshots


def select_model(models: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the name if such a model is registered, else that of the last changed model with a champion."""
    if any(model["name"] == name for model in models):
        return name
    default = max(models, key=lambda each: (Alias.CHAMPION in each["aliases"], each["changed_at"]), default=None)
    return str(default["name"]) if default else ""


def aliases_of(models: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    """Return the versions of a registered model by alias."""
    return next((dict(model["aliases"]) for model in models if model["name"] == name), {})


def run_of_version(model: Mapping[str, Any] | None, version: int | None) -> str:
    """Return the id of the run that logged a version; empty if it is not known."""
    runs = [each.get("run_id") for each in (model or {}).get("versions", []) if int(each["version"]) == version]
    return str(runs[0] or "") if runs else ""
