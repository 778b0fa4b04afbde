"""Ends the MLflow runs that a flow run left open, through MLflow's REST API.

Flows tag their MLflow runs with the ids of the top-level flow run and of the subflow that logs them. MLflow's client
takes seconds to import; the worker needs three kinds of request.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from uuid import UUID

import httpx

from trainyard.contract import Tag


async def end_open_runs(
    flow_run_ids: Iterable[UUID], status: Literal["FAILED", "KILLED"], env: Mapping[str, str | None]
) -> list[str]:
    """End every MLflow run that one of the flow runs has logged and that is still RUNNING, and its child runs.

    A run of another deployment has its parent's id in `Tag.FLOW_RUN_ID` too; what it logged is left alone.

    Args:
        flow_run_ids: The flow run and the subflow runs in its process.
        status: The status that the MLflow runs get.
        env: The run's environment, with MLFLOW_TRACKING_URI and the credentials.

    Returns:
        The ids of the MLflow runs that were ended; none when the tracking address is not HTTP.

    Raises:
        httpx.HTTPError: The tracking server is out of reach or refuses a request.
    """
    address = env.get("MLFLOW_TRACKING_URI") or ""
    if not address.startswith(("http://", "https://")):
        return []
    ended = []
    async with httpx.AsyncClient(
        base_url=f"{address.rstrip('/')}/api/2.0/mlflow/", timeout=10.0, **_credentials(env)
    ) as client:
        experiments = await _search_experiments(client)
        for run_id in await _search_runs_to_end(client, experiments, {str(id_) for id_ in flow_run_ids}):
            await _post(
                client, "runs/update", {"run_id": run_id, "status": status, "end_time": int(time.time() * 1000)}
            )
            ended.append(run_id)
    return ended


def _credentials(env: Mapping[str, str | None]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if token := env.get("MLFLOW_TRACKING_TOKEN"):
        options["headers"] = {"Authorization": f"Bearer {token}"}
    elif user := env.get("MLFLOW_TRACKING_USERNAME"):
        options["auth"] = (user, env.get("MLFLOW_TRACKING_PASSWORD") or "")
    if (env.get("MLFLOW_TRACKING_INSECURE_TLS") or "").lower() == "true":
        options["verify"] = False
    elif certificate := env.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        options["verify"] = certificate
    return options


async def _search_experiments(client: httpx.AsyncClient) -> list[str]:
    found: list[str] = []
    page: str | None = None
    while True:
        body = await _post(client, "experiments/search", {"max_results": 1000, "page_token": page})
        found += [experiment["experiment_id"] for experiment in body.get("experiments", [])]
        if not (page := body.get("next_page_token")):
            return found


async def _search_runs_to_end(client: httpx.AsyncClient, experiments: list[str], flow_run_ids: set[str]) -> list[str]:
    """Return the ids of the open runs of flow runs, children last."""
    found: dict[str, None] = {}
    for flow_run_id in flow_run_ids:
        for tag in (Tag.FLOW_RUN_ID, Tag.SUBFLOW_RUN_ID):
            for run_id, tags in await _search_open_runs(client, experiments, tag, flow_run_id):
                if tags.get(Tag.SUBFLOW_RUN_ID, tags.get(Tag.FLOW_RUN_ID)) in flow_run_ids:
                    found[run_id] = None
    parents = list(found)
    for parent in parents:  # grows while it is read: children have children
        for run_id, _ in await _search_open_runs(client, experiments, Tag.PARENT_RUN_ID, parent):
            if run_id not in found:
                found[run_id] = None
                parents.append(run_id)
    return list(found)


async def _search_open_runs(
    client: httpx.AsyncClient, experiments: list[str], tag: str, value: str
) -> list[tuple[str, dict[str, str]]]:
    """Return the ids and tags of the open runs whose tag has a value."""
    query = {
        "experiment_ids": experiments,
        "filter": f"attributes.status = 'RUNNING' and tags.`{tag}` = '{value}'",
        "max_results": 1000,
    }
    body = await _post(client, "runs/search", query)
    return [
        (run["info"]["run_id"], {pair["key"]: pair["value"] for pair in run["data"].get("tags", [])})
        for run in body.get("runs", [])
    ]


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json={k: v for k, v in body.items() if v is not None})
    response.raise_for_status()
    result: dict[str, Any] = response.json()
    return result
