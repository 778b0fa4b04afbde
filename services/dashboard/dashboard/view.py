"""One view of the page: which model, metric, flow and page of runs, and every reading that it shows."""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from dashboard import charts, models, monitoring, runs
from dashboard.calibration import Calibration, calibration
from dashboard.mlflow_source import MLflowSource
from dashboard.models import Links
from dashboard.prefect_source import PrefectSource
from dashboard.reading import Reading, Readings
from dashboard.tables import rows_of

CHAMPION = "champion"
VERSIONS_SHOWN = 8
MOST_PAGE = 100_000
EMPTY = Reading()


@dataclass(frozen=True)
class Choice:
    """What a person has chosen to look at; what is empty is left to the page."""

    model: str = ""
    metric: str = ""
    flow: str = ""
    page: int = 1
    versions: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Choice":
        """Read a choice from an address's query; what makes no sense counts as not given."""

        def page(name: str) -> int:
            given = query.get(name, "")
            return min(max(int(given), 1), MOST_PAGE) if given.isdecimal() and len(given) < 9 else 1

        texts = {name: query.get(name, "")[:300] for name in ("model", "metric", "flow")}
        return cls(**texts, page=page("page"), versions=page("versions"))

    def address(self, anchor: str = "", **other: Any) -> str:
        """Return the address of this choice with some of it changed."""
        given = {**self.__dict__, **other}
        query = urlencode({name: value for name, value in given.items() if value not in ("", 1)})
        return "/" + (f"?{query}" if query else "") + (f"#{anchor}" if anchor else "")


@dataclass(frozen=True)
class View:
    """The readings of a choice, and what is made of them."""

    choice: Choice
    name: str
    """Of the model that is shown; empty where there is none."""
    readings: Mapping[str, Reading]

    @property
    def fingerprint(self) -> str:
        """Change where the page would."""
        parts = [f"{panel}:{reading.version}:{reading.known}" for panel, reading in self.readings.items()]
        return hashlib.sha256("|".join([self.name, *parts]).encode()).hexdigest()[:16]

    @property
    def pending(self) -> bool:
        """Tell whether a panel still waits for its first answer."""
        return any(not reading.known and reading.error is None for reading in self.readings.values())

    @property
    def read_at(self) -> dict[str, float | None]:
        """Return when each panel's reading was read."""
        return {panel: reading.read_at for panel, reading in self.readings.items()}


class Viewer:
    """Reads what a choice asks for."""

    def __init__(self, mlflow: MLflowSource, prefect: PrefectSource, readings: Readings, rows: int) -> None:
        self._mlflow, self._prefect, self._readings, self._rows = mlflow, prefect, readings, rows

    async def view(self, choice: Choice) -> View:
        """Return the readings of a choice."""
        asked_at = time.monotonic()
        (listed, name, about), page, outlook, pools = await asyncio.gather(
            self._about_model(choice, asked_at),
            self._readings.get(
                ("runs", choice.page, choice.flow),
                lambda: self._prefect.page_of_runs(choice.page, self._rows, choice.flow or None),
                asked_at,
            ),
            self._readings.get("outlook", self._prefect.outlook, asked_at),
            self._readings.get("pools", self._prefect.pools, asked_at),
        )
        return View(choice, name, {"models": listed, **about, "runs": page, "outlook": outlook, "pools": pools})

    async def _about_model(self, choice: Choice, asked_at: float) -> tuple[Reading, str, dict[str, Reading]]:
        listed = await self._readings.get("models", self._mlflow.models, asked_at)
        name = chosen_model(listed.value or [], choice.model)
        if not name:
            return listed, "", {}
        model, checks = await asyncio.gather(
            self._readings.get(("model", name), lambda: self._mlflow.model(name), asked_at),
            self._readings.get(("checks", name), lambda: self._mlflow.checks(name), asked_at),
        )
        about = {"model": model, "checks": checks}
        run = run_of(model.value, aliases_of(listed.value, name).get(CHAMPION))
        if run:
            about["holdout"] = await self._readings.get(
                ("holdout", run), lambda: self._mlflow.table(run, "evaluation/holdout.json"), asked_at, lasting=True
            )
        return listed, name, about


def chosen_model(listed: list[dict[str, Any]], wanted: str) -> str:
    """Return the model to show: the wanted one, or that with a champion that changed last."""
    if any(model["name"] == wanted for model in listed):
        return wanted
    ranked = sorted(listed, key=lambda model: (CHAMPION in model["aliases"], model["changed"]), reverse=True)
    return str(ranked[0]["name"]) if ranked else ""


def aliases_of(listed: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    """Return the aliases of a registered model with the versions that hold them."""
    return next((dict(model["aliases"]) for model in listed if model["name"] == name), {})


def run_of(model: Mapping[str, Any] | None, version: int | None) -> str:
    """Return the id of the run that made a version."""
    found = [each for each in (model or {}).get("versions", []) if int(each["version"]) == version]
    return str(found[0].get("run_id") or "") if found else ""


def model_panels(view: View, links: Links) -> dict[str, Any]:
    """Return what the page says of the model: champion, history, metrics."""
    raw, choice = view.readings.get("model", EMPTY).value, view.choice
    listed = view.readings["models"].value or []
    aliases = aliases_of(listed, view.name)
    if not raw:
        return {"names": [model["name"] for model in listed], "versions": [], "champion": None, "metrics": []}
    trained = models.trainings(raw["runs"])
    versions = models.history(raw["versions"], aliases, trained, links)
    metrics = models.metric_names(trained)
    metric = choice.metric if choice.metric in metrics else (metrics[0] if metrics else "")
    last = max(1, -(-len(versions) // VERSIONS_SHOWN))
    page = min(choice.versions, last)
    return {
        "names": sorted(model["name"] for model in listed),
        "versions": versions[(page - 1) * VERSIONS_SHOWN : page * VERSIONS_SHOWN],
        "version_count": len(versions),
        "version_page": page,
        "version_pages": last,
        "champion": next((version for version in versions if CHAMPION in version["aliases"]), None),
        "reigns": models.reigns(versions)[:6],
        "loser": models.last_loser(versions),
        "metrics": metrics,
        "metric": metric,
        "label": models.label(metric) if metric else "",
        "better": models.METRICS.get(metric, ("", "", ""))[2],
        "unit": models.METRICS.get(metric, ("", "no unit", ""))[1],
        "timeline": models.timeline(trained, metric) if metric else [],
        "figures": models.figures(trained, metric, view.name, links) if metric else [],
        "contestants": charts.contestants(who for training in trained for who in training["scores"].get(metric, {})),
    }


def calibration_panel(view: View) -> Calibration | None:
    """Return what the champion's holdout says of its probabilities."""
    return calibration(rows_of(view.readings.get("holdout", EMPTY).value))


def monitoring_panels(view: View, links: Links) -> dict[str, Any]:
    """Return what the newest check of the model found."""
    raw = view.readings.get("checks", EMPTY).value or {"runs": [], "drift": None, "forecasts": None}
    return {
        "check": monitoring.latest(raw["runs"], links),
        "trend": monitoring.trend(raw["runs"]),
        "drift": monitoring.drift(raw["drift"]),
        "forecasts": monitoring.forecasts(raw["forecasts"], datetime.now(UTC).date().isoformat()),
    }


def platform_panels(view: View, links: Links) -> dict[str, Any]:
    """Return what the page says of runs, schedules and workers."""
    now = time.time()
    page = view.readings["runs"].value or {"runs": [], "count": 0, "pages": 0, "flows": []}
    outlook = view.readings["outlook"].value or {"next": [], "failure": None, "completed": 0, "failed": 0}
    rows = [runs.view(run, links, now) for run in page["runs"]]
    failure = outlook["failure"]
    return {
        "runs": rows,
        "count": page["count"],
        "flows": page["flows"],
        "last_page": page["pages"],
        "pages": runs.pages(view.choice.page, page["pages"]),
        "durations": runs.durations(rows),
        "next": [
            {
                "name": run["name"],
                "flow": run["flow"],
                "at": models.seconds_of(run["next_scheduled_start_time"]),
                "url": links.flow_run(run["id"]),
            }
            for run in outlook["next"]
        ],
        "failure": failure and runs.view(failure, links, now) | {
            "message": failure["message"], "ended": models.seconds_of(failure["end_time"]),
        },
        "week": {"completed": outlook["completed"], "failed": outlook["failed"]},
        "pools": [runs.pool_view(pool, links, now) for pool in view.readings["pools"].value or []],
    }  # fmt: skip
