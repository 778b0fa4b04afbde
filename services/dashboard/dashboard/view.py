"""The snapshots that a view of the page shows."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.comparison import select_versions
from dashboard.mlflow_source import MLflowSource
from dashboard.prefect_source import PrefectSource
from dashboard.selection import Selection
from dashboard.serving_source import ServingSource
from dashboard.snapshots import Snapshot, SnapshotCache
from trainyard.contract import Alias, Artifact


@dataclass(frozen=True)
class View:
    """A selection and its snapshots."""

    selection: Selection
    model: str
    """The name of the model that is shown; empty if none is registered."""
    snapshots: Mapping[str, Snapshot]
    """By panel: models, overview, model, checks, holdout, comparison, shadow, traffic, runs, schedule, pools, diagnosis.

    Those of serving, traffic and shadow, are missing without its address.
    """

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

    def __init__(
        self,
        mlflow: MLflowSource,
        prefect: PrefectSource,
        serving: ServingSource | None,
        cache: SnapshotCache,
        rows: int,
    ) -> None:
        self._mlflow, self._prefect, self._serving = mlflow, prefect, serving
        self._cache, self._rows = cache, rows

    async def load(self, selection: Selection) -> View:
        """Return the view of a selection."""
        requested_at = time.monotonic()
        (model, of_model), traffic, runs, schedule, pools, diagnosis = await asyncio.gather(
            self._load_model(selection, requested_at),
            self._load_traffic(requested_at),
            self._cache.get(
                ("runs", selection.page, selection.flow, selection.range),
                lambda: self._prefect.read_runs(
                    selection.page, self._rows, selection.flow or None, selection.period.seconds
                ),
                requested_at,
            ),
            self._cache.get("schedule", self._prefect.schedule_summary, requested_at),
            self._cache.get("pools", self._prefect.list_pools, requested_at),
            self._cache.get("diagnosis", self._prefect.diagnose, requested_at),
        )
        platform = {"runs": runs, "schedule": schedule, "pools": pools, "diagnosis": diagnosis}
        return View(selection, model, {**of_model, **traffic, **platform})

    async def _load_traffic(self, requested_at: float) -> dict[str, Snapshot]:
        if self._serving is None:
            return {}
        return {"traffic": await self._cache.get("traffic", self._serving.read_traffic, requested_at)}

    async def _load_model(self, selection: Selection, requested_at: float) -> tuple[str, dict[str, Snapshot]]:
        models = await self._cache.get("models", self._mlflow.list_models, requested_at)
        name = select_model(models.value or [], selection.model)
        if not name:
            return "", {"models": models}
        overview, model, checks = await asyncio.gather(
            self._cache.get("overview", lambda: self._mlflow.read_overview(models.value), requested_at),
            self._cache.get(
                ("model", name),
                lambda: self._mlflow.read_model(name, aliases_of(models.value, name).values()),
                requested_at,
            ),
            self._cache.get(("checks", name), lambda: self._mlflow.read_checks(name), requested_at),
        )
        snapshots = {"models": models, "overview": overview, "model": model, "checks": checks}
        wanted = self._of_versions(selection, name, model.value or {}, aliases_of(models.value, name))
        loaded = await asyncio.gather(
            *(
                self._cache.get(key, load, requested_at, immutable=is_immutable)
                for key, load, is_immutable in wanted.values()
            )
        )
        return name, snapshots | dict(zip(wanted, loaded, strict=True))

    def _of_versions(
        self, selection: Selection, name: str, model: Mapping[str, Any], aliases: Mapping[str, int]
    ) -> dict[str, tuple[Hashable, Callable[[], Awaitable[Any]], bool]]:
        """Return the panels about single versions: each one's key, how it is loaded, and whether that is immutable."""
        wanted: dict[str, tuple[Hashable, Callable[[], Awaitable[Any]], bool]] = {}
        if champion := run_of_version(model, aliases.get(Alias.CHAMPION)):
            wanted["holdout"] = (
                ("holdout", champion),
                lambda: self._mlflow.read_table(champion, Artifact.HOLDOUT),
                True,
            )
        versions = select_versions(selection, model.get("versions", []), aliases)
        if versions is not None:
            runs = [run_of_version(model, version) for version in versions]
            wanted["comparison"] = (("comparison", *runs), lambda: self._mlflow.read_logged(runs), True)
        serving = self._serving
        if serving is not None and is_shadowed(versions, aliases):
            seconds = selection.period.seconds
            wanted["shadow"] = (("shadow", name, selection.range), lambda: serving.read_shadow(name, seconds), False)
        return wanted


def is_shadowed(versions: tuple[int, int] | None, aliases: Mapping[str, int]) -> bool:
    """Tell whether versions that are compared are the challenger and the champion, which shadow traffic compares."""
    return versions is not None and {*versions} == {aliases.get(Alias.CHAMPION), aliases.get(Alias.CHALLENGER)}


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
