"""Print the scores of the models that a flow run trained, from what it logged in MLflow."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from infra.provision.api import http_client
from trainyard.contract import ScoreName, Tag


def print_scores(mlflow_address: str, flow_run_id: str) -> None:
    """Print each model's metrics beside those of its baselines.

    Args:
        mlflow_address: MLflow's address.
        flow_run_id: The flow run that trained the models, or reused an unchanged training.

    Raises:
        httpx.HTTPError: MLflow refused a request or did not answer.
    """
    has_scores = False
    with http_client(f"{mlflow_address}/api/2.0/mlflow") as mlflow:
        for run in _find_runs(mlflow, flow_run_id):
            metrics = {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])}
            table = score_table(metrics)
            query = {"filter": f"run_id = '{run['info']['run_id']}'"}
            versions = mlflow.get("/model-versions/search", params=query).raise_for_status().json()
            for version in versions.get("model_versions", []):
                print(f"\n{version['name']} version {version['version']}\n\n{table}")
                has_scores = True
    if not has_scores:
        print("\nThe run registered no model.")


def score_table(metrics: Mapping[str, float]) -> str:
    """Return metrics as a table with a row for each metric and a column for the model and each baseline.

    Args:
        metrics: By their names: `model_log_loss` belongs to the model, `climatology_log_loss` to a baseline.
    """
    prefix = ScoreName.MODEL_PREFIX
    names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    owners = ["model"]
    for key in metrics:
        owner = key.removesuffix(f"_{max((name for name in names if key.endswith(f'_{name}')), key=len, default='')}")
        if owner not in {key, *owners}:
            owners.append(owner)
    width = max(map(len, [*names, "metric"]))
    lines = [f"{'metric':{width}}" + "".join(f"  {owner:>12}" for owner in owners)]
    for name in names:
        scores = [metrics.get(f"{owner}_{name}") for owner in owners]
        lines.append(f"{name:{width}}" + "".join(f"  {'' if s is None else format(s, '.3f'):>12}" for s in scores))
    return "\n".join(lines)


def _find_runs(mlflow: httpx.Client, flow_run_id: str) -> Iterator[dict[str, Any]]:
    query: dict[str, Any] = {"max_results": 1000}
    answer = mlflow.post("/experiments/search", json=query).raise_for_status().json()
    search = {
        "experiment_ids": [experiment["experiment_id"] for experiment in answer.get("experiments", [])],
        "filter": f"tags.`{Tag.LAST_FLOW_RUN_ID}` = '{flow_run_id}'",
        "max_results": 100,
    }
    yield from mlflow.post("/runs/search", json=search).raise_for_status().json().get("runs", [])
