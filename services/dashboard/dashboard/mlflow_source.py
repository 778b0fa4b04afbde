"""Queries to MLflow: registered models, their versions and runs, and tables that runs logged."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dashboard.registry import tag_values
from dashboard.rest import RestClient
from trainyard.contract import MONITORING_EXPERIMENT, Alias, Artifact, Tag, table_rows

T = TypeVar("T")
API = "/api/2.0/mlflow"
MAX_CONCURRENT, OVERVIEW_RUNS = 8, 100
SHOWN_TAGS = frozenset({Tag.VERDICT, Tag.REASONS, Tag.MODEL_VERSION, Tag.FLOW_RUN_ID, Tag.LAST_FLOW_RUN_ID})
MAX_RUNS, MAX_VERSIONS, MAX_CHECKS, MAX_OLDER_RUNS = 200, 200, 60, 40


class MLflowSource:
    """Queries to MLflow.

    Raises:
        SourceError: From every method: MLflow does not answer as it should.
    """

    def __init__(self, client: RestClient) -> None:
        self._mlflow = client
        self._champion_runs: dict[tuple[str, int, int], dict[str, Any]] = {}

    async def list_models(self) -> list[dict[str, Any]]:
        """Return every registered model: name, aliases, and times of creation and of the last change."""
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
                "created_at": int(model.get("creation_timestamp", 0)),
                "changed_at": int(model.get("last_updated_timestamp", 0)),
                "aliases": {alias["alias"]: int(alias["version"]) for alias in model.get("aliases", [])},
            }
            for model in models
        ]

    async def read_overview(self, models: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the runs of all models that an overview needs, by model.

        Args:
            models: As `list_models` returns them.

        Returns:
            `champions`, the runs that logged the champions; `trainings`, the newest runs; `checks`, the newest ones of
            the monitor. Models without such a run are left out.
        """
        training, monitoring = await self._experiments()
        names = [model["name"] for model in models]
        champions, trainings, checks = await asyncio.gather(
            self._champions(models), self._newest_runs(training, names), self._newest_runs(monitoring, names)
        )
        return {"champions": champions, "trainings": trainings, "checks": checks}

    async def read_model(self, name: str, aliased: Iterable[int] = ()) -> dict[str, Any]:
        """Return a model's versions and training runs, newest first.

        Args:
            name: The registered model.
            aliased: Versions that are read even if they are older than the newest MAX_VERSIONS.
        """
        wanted = set(aliased)
        versions, (training, _) = await asyncio.gather(self._versions(name, wanted), self._experiments())
        runs = await self._runs(training, name, MAX_RUNS) if training else []
        ids = {run["info"]["run_id"] for run in runs}
        shown = [each for n, each in enumerate(versions) if n < MAX_OLDER_RUNS or int(each["version"]) in wanted]
        missing = [each["run_id"] for each in shown if each.get("run_id") not in ("", None, *ids)]
        older = await limited_gather(map(self._find_run, missing))
        return {"versions": versions, "runs": [*runs, *(found for found in older if found)]}

    async def read_logged(self, run_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the parameters and metrics of runs; None where a run is gone."""
        found = await limited_gather(self._find_run(run_id) for run_id in run_ids)
        return [run and {"data": {kind: run["data"].get(kind, []) for kind in ("params", "metrics")}} for run in found]

    async def read_checks(self, name: str) -> dict[str, Any]:
        """Return the monitor's runs about a model, newest first, and the newest one's tables."""
        _, monitoring = await self._experiments()
        runs = await self._runs(monitoring, name, MAX_CHECKS) if monitoring else []
        if not runs:
            return {"runs": [], "drift": [], "forecasts": [], "outcomes": []}
        newest = runs[0]["info"]["run_id"]
        artifacts = {"drift": Artifact.DRIFT, "forecasts": Artifact.FORECASTS, "outcomes": Artifact.OUTCOMES}
        tables = await asyncio.gather(*(self.read_table(newest, artifact) for artifact in artifacts.values()))
        return {"runs": runs, **dict(zip(artifacts, tables, strict=True))}

    async def read_table(self, run_id: str, artifact: str) -> list[dict[str, Any]]:
        """Return the rows of a table; none if the run logged none."""
        listed = await self._mlflow.find(f"{API}/artifacts/list", run_id=run_id, path=artifact.rpartition("/")[0])
        if not any(file["path"] == artifact for file in (listed or {}).get("files", [])):
            return []
        return table_rows(await self._mlflow.find("/get-artifact", run_uuid=run_id, path=artifact), artifact)

    async def _champions(self, models: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the runs that logged the champions; what a run has logged stays, so they are fetched once."""
        wanted = [
            (str(model["name"]), int(model["created_at"]), int(model["aliases"][Alias.CHAMPION]))
            for model in models
            if Alias.CHAMPION in model["aliases"]
        ]
        missing = [key for key in wanted if key not in self._champion_runs]
        found = await limited_gather(self._run_of_version(name, version) for name, _, version in missing)
        known = self._champion_runs | {key: trim_run(run) for key, run in zip(missing, found, strict=True) if run}
        self._champion_runs = {key: known[key] for key in wanted if key in known}
        return {name: run for (name, *_), run in self._champion_runs.items()}

    async def _run_of_version(self, name: str, version: int) -> dict[str, Any] | None:
        held = await self._mlflow.find(f"{API}/model-versions/get", name=name, version=str(version))
        return await self._find_run(held["model_version"].get("run_id", "")) if held else None

    async def _find_run(self, run_id: str) -> dict[str, Any] | None:
        found = await self._mlflow.find(f"{API}/runs/get", run_id=run_id) if run_id else None
        return dict(found["run"]) if found else None

    async def _newest_runs(self, experiments: list[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return each model's newest run in some experiments: one query finds most, the others are asked for."""
        if not experiments or not names:
            return {}
        newest: dict[str, dict[str, Any]] = {}
        for run in await self._search_runs(experiments, f"tags.{Tag.MODEL} != ''", OVERVIEW_RUNS):
            newest.setdefault(tag_values(run["data"])[Tag.MODEL], run)
        missing = [name for name in names if name not in newest]
        found = await limited_gather(self._runs(experiments, name, 1) for name in missing)
        newest |= {name: runs[0] for name, runs in zip(missing, found, strict=True) if runs}
        return {name: trim_run(newest[name]) for name in names if name in newest}

    async def _versions(self, name: str, aliased: Iterable[int]) -> list[dict[str, Any]]:
        query = {"filter": f"name = {quote_literal(name)}", "max_results": str(MAX_VERSIONS)}
        page = await self._mlflow.get(f"{API}/model-versions/search", **query, order_by="version_number DESC")
        versions: list[dict[str, Any]] = page.get("model_versions", [])
        older = set(aliased) - {int(version["version"]) for version in versions}
        found = await limited_gather(
            self._mlflow.find(f"{API}/model-versions/get", name=name, version=str(number)) for number in older
        )
        versions += [each["model_version"] for each in found if each]
        return sorted(versions, key=lambda version: -int(version["version"]))

    async def _experiments(self) -> tuple[list[str], list[str]]:
        """Return the ids of the experiments with trainings, and of the monitor's."""
        page = await self._mlflow.get(f"{API}/experiments/search", max_results="1000")
        experiments = page.get("experiments", [])
        monitoring = [each["experiment_id"] for each in experiments if each["name"] == MONITORING_EXPERIMENT]
        return [each["experiment_id"] for each in experiments if each["experiment_id"] not in monitoring], monitoring

    async def _runs(self, experiments: list[str], model: str, limit: int) -> list[dict[str, Any]]:
        return await self._search_runs(experiments, f"tags.{Tag.MODEL} = {quote_literal(model)}", limit)

    async def _search_runs(self, experiments: list[str], condition: str, limit: int) -> list[dict[str, Any]]:
        query = {
            "experiment_ids": experiments,
            "filter": condition,
            "order_by": ["attributes.start_time DESC"],
            "max_results": limit,
        }
        page = await self._mlflow.post(f"{API}/runs/search", query)
        runs: list[dict[str, Any]] = page.get("runs", [])
        return runs


async def limited_gather(queries: Iterable[Awaitable[T]]) -> list[T]:
    """Return the answers of queries, of which MAX_CONCURRENT run at once."""
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def run(query: Awaitable[T]) -> T:
        async with slots:
            return await query

    return await asyncio.gather(*map(run, queries))


def trim_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run without its parameters and the tags that no page shows, which take most of its memory."""
    tags = [tag for tag in run["data"].get("tags", []) if tag["key"] in SHOWN_TAGS]
    info = {name: run["info"].get(name) for name in ("run_id", "experiment_id", "run_name", "start_time")}
    return {"info": info, "data": {"metrics": run["data"].get("metrics", []), "tags": tags}}


def quote_literal(text: str) -> str:
    """Return a text as a string literal of MLflow's filters, which know no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"
