"""What is read from MLflow: registered models, their versions and runs, and small files of runs."""

import asyncio
from typing import Any

from dashboard.upstream import Upstream

API = "/api/2.0/mlflow"
MONITORING = "monitoring"
MOST_RUNS, MOST_VERSIONS, MOST_CHECKS = 200, 200, 60


class MLflowSource:
    """Questions to MLflow; each raises SourceError where it does not answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._mlflow = upstream

    async def models(self) -> list[dict[str, Any]]:
        """Return every registered model: name, aliases and when it last changed."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"max_results": "200"} | ({"page_token": token} if token else {})
            page = await self._mlflow.get(f"{API}/registered-models/search", **query)
            found += page.get("registered_models", [])
            token = page.get("next_page_token", "")
            if not token:
                return [
                    {
                        "name": model["name"],
                        "changed": int(model.get("last_updated_timestamp", 0)),
                        "aliases": {alias["alias"]: int(alias["version"]) for alias in model.get("aliases", [])},
                    }
                    for model in found
                ]

    async def model(self, name: str) -> dict[str, Any]:
        """Return a model's versions and training runs, the newest first."""
        versions, (training, _) = await asyncio.gather(self._versions(name), self._experiments())
        runs = await self._runs(training, name, MOST_RUNS) if training else []
        known = {run["info"]["run_id"] for run in runs}
        missing = [version["run_id"] for version in versions[:40] if version.get("run_id") not in ("", None, *known)]
        older = await asyncio.gather(*(self._mlflow.find(f"{API}/runs/get", run_id=run) for run in missing))
        return {"versions": versions, "runs": [*runs, *(found["run"] for found in older if found)]}

    async def checks(self, name: str) -> dict[str, Any]:
        """Return the monitor's runs for a model, the newest first, and the newest one's tables."""
        _, monitoring = await self._experiments()
        runs = await self._runs(monitoring, name, MOST_CHECKS) if monitoring else []
        if not runs:
            return {"runs": [], "drift": None, "forecasts": None}
        newest = runs[0]["info"]["run_id"]
        drift, forecasts = await asyncio.gather(
            self.table(newest, "monitoring/drift.json"), self.table(newest, "monitoring/forecasts.json")
        )
        return {"runs": runs, "drift": drift, "forecasts": forecasts}

    async def table(self, run_id: str, path: str) -> dict[str, Any] | None:
        """Return a table that a run logged, as columns and data; None where it logged none."""
        listed = await self._mlflow.find(f"{API}/artifacts/list", run_id=run_id, path=path.rpartition("/")[0])
        if not any(file["path"] == path for file in (listed or {}).get("files", [])):
            return None
        found = await self._mlflow.find("/get-artifact", run_uuid=run_id, path=path)
        if isinstance(found, dict) and {"columns", "data"} <= found.keys():
            return {"columns": found["columns"], "data": found["data"]}
        return None

    async def _versions(self, name: str) -> list[dict[str, Any]]:
        query = {"filter": f"name = {quoted(name)}", "max_results": str(MOST_VERSIONS)}
        page = await self._mlflow.get(f"{API}/model-versions/search", **query, order_by="version_number DESC")
        found: list[dict[str, Any]] = page.get("model_versions", [])
        return sorted(found, key=lambda version: -int(version["version"]))

    async def _experiments(self) -> tuple[list[str], list[str]]:
        page = await self._mlflow.get(f"{API}/experiments/search", max_results="1000")
        found = page.get("experiments", [])
        monitoring = [each["experiment_id"] for each in found if each["name"] == MONITORING]
        return [each["experiment_id"] for each in found if each["name"] != MONITORING], monitoring

    async def _runs(self, experiments: list[str], model: str, most: int) -> list[dict[str, Any]]:
        query = {
            "experiment_ids": experiments,
            "filter": f"tags.model = {quoted(model)}",
            "order_by": ["attributes.start_time DESC"],
            "max_results": most,
        }
        page = await self._mlflow.post(f"{API}/runs/search", query)
        found: list[dict[str, Any]] = page.get("runs", [])
        return found


def quoted(text: str) -> str:
    """Return a text as MLflow's filters take it."""
    return f'"{text}"' if "'" in text else f"'{text}'"
