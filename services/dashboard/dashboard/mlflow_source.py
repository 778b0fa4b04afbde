"""Queries to MLflow: registered models, their versions and runs, and tables that runs logged."""

import asyncio
from typing import Any

from dashboard.rest import RestClient
from trainyard.contract import MONITORING_EXPERIMENT, Artifact, Tag, table_rows

API = "/api/2.0/mlflow"
MAX_RUNS, MAX_VERSIONS, MAX_CHECKS, MAX_OLDER_RUNS = 200, 200, 60, 40


class MLflowSource:
    """Queries to MLflow.

    Raises:
        SourceError: From every method: MLflow does not answer as it should.
    """

    def __init__(self, client: RestClient) -> None:
        self._mlflow = client

    async def list_models(self) -> list[dict[str, Any]]:
        """Return every registered model: name, aliases and time of the last change."""
        models: list[dict[str, Any]] = []
        query = {"max_results": "200"}
        while True:
            page = await self._mlflow.get(f"{API}/registered-models/search", **query)
            models += page.get("registered_models", [])
            if not page.get("next_page_token"):
                break
            query["page_token"] = page["next_page_token"]
        return [
            {
                "name": model["name"],
                "changed_at": int(model.get("last_updated_timestamp", 0)),
                "aliases": {alias["alias"]: int(alias["version"]) for alias in model.get("aliases", [])},
            }
            for model in models
        ]

    async def read_model(self, name: str) -> dict[str, Any]:
        """Return a model's versions and training runs, newest first."""
        versions, (training, _) = await asyncio.gather(self._versions(name), self._experiments())
        runs = await self._runs(training, name, MAX_RUNS) if training else []
        ids = {run["info"]["run_id"] for run in runs}
        missing = [each["run_id"] for each in versions[:MAX_OLDER_RUNS] if each.get("run_id") not in ("", None, *ids)]
        older = await asyncio.gather(*(self._mlflow.find(f"{API}/runs/get", run_id=run) for run in missing))
        return {"versions": versions, "runs": [*runs, *(found["run"] for found in older if found)]}

    async def read_checks(self, name: str) -> dict[str, Any]:
        """Return the monitor's runs about a model, newest first, and the newest one's tables."""
        _, monitoring = await self._experiments()
        runs = await self._runs(monitoring, name, MAX_CHECKS) if monitoring else []
        if not runs:
            return {"runs": [], "drift": [], "forecasts": []}
        newest = runs[0]["info"]["run_id"]
        drift, forecasts = await asyncio.gather(
            self.read_table(newest, Artifact.DRIFT), self.read_table(newest, Artifact.FORECASTS)
        )
        return {"runs": runs, "drift": drift, "forecasts": forecasts}

    async def read_table(self, run_id: str, artifact: str) -> list[dict[str, Any]]:
        """Return the rows of a table; none if the run logged none."""
        listed = await self._mlflow.find(f"{API}/artifacts/list", run_id=run_id, path=artifact.rpartition("/")[0])
        if not any(file["path"] == artifact for file in (listed or {}).get("files", [])):
            return []
        return table_rows(await self._mlflow.find("/get-artifact", run_uuid=run_id, path=artifact), artifact)

    async def _versions(self, name: str) -> list[dict[str, Any]]:
        query = {"filter": f"name = {quote_literal(name)}", "max_results": str(MAX_VERSIONS)}
        page = await self._mlflow.get(f"{API}/model-versions/search", **query, order_by="version_number DESC")
        versions: list[dict[str, Any]] = page.get("model_versions", [])
        return sorted(versions, key=lambda version: -int(version["version"]))

    async def _experiments(self) -> tuple[list[str], list[str]]:
        """Return the ids of the experiments with trainings, and of the monitor's."""
        page = await self._mlflow.get(f"{API}/experiments/search", max_results="1000")
        experiments = page.get("experiments", [])
        monitoring = [each["experiment_id"] for each in experiments if each["name"] == MONITORING_EXPERIMENT]
        return [each["experiment_id"] for each in experiments if each["experiment_id"] not in monitoring], monitoring

    async def _runs(self, experiments: list[str], model: str, limit: int) -> list[dict[str, Any]]:
        query = {
            "experiment_ids": experiments,
            "filter": f"tags.{Tag.MODEL} = {quote_literal(model)}",
            "order_by": ["attributes.start_time DESC"],
            "max_results": limit,
        }
        page = await self._mlflow.post(f"{API}/runs/search", query)
        runs: list[dict[str, Any]] = page.get("runs", [])
        return runs


def quote_literal(text: str) -> str:
    """Return a text as a string literal of MLflow's filters, which know no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"
