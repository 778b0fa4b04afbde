"""A registered model: its versions, its champions, and the metrics of its trainings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dashboard.conversions import to_iso, to_timestamp
from dashboard.metrics import run_metrics, scores_by_metric
from dashboard.ui import UIAddresses
from trainyard.contract import GateDecision, MLflowPage, PrefectPage, Tag


def tag_values(tagged: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a run's data or of a version as a mapping."""
    return {tag["key"]: tag.get("value", "") for tag in tagged.get("tags", [])}


def list_trainings(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the trainings among a model's runs, oldest first."""
    trainings = []
    for run in runs:
        if scores := scores_by_metric(run_metrics(run)):
            tags = tag_values(run["data"])
            trainings.append(
                {
                    "run_id": run["info"]["run_id"],
                    "experiment": run["info"]["experiment_id"],
                    "name": run["info"].get("run_name", ""),
                    "at": int(run["info"]["start_time"]) / 1000,
                    "version": tags.get(Tag.MODEL_VERSION, ""),
                    "flow_run": tags.get(Tag.LAST_FLOW_RUN_ID) or tags.get(Tag.FLOW_RUN_ID, ""),
                    "scores": scores,
                }
            )
    return sorted(trainings, key=lambda training: training["at"])


def version_history(
    versions: Iterable[Mapping[str, Any]],
    aliases: Mapping[str, int],
    trainings: Iterable[Mapping[str, Any]],
    ui: UIAddresses,
) -> list[dict[str, Any]]:
    """Return a model's versions, newest first, each with the gate's decision, its scores and links."""
    by_run = {training["run_id"]: training for training in trainings}
    history = []
    for version in versions:
        number, tags = int(version["version"]), tag_values(version)
        training = by_run.get(version.get("run_id") or "")
        history.append(
            {
                "version": number,
                "url": MLflowPage.version(ui.mlflow, str(version["name"]), number),
                "aliases": sorted(alias for alias, holder in aliases.items() if holder == number),
                "registered_at": int(version["creation_timestamp"]) / 1000,
                "decision": tags.get(Tag.GATE_DECISION, ""),
                "decided_at": to_timestamp(tags.get(Tag.GATE_DECIDED_AT)),
                "reason": tags.get(Tag.GATE_REASON, ""),
                "compared_with": tags.get(Tag.GATE_COMPARED_WITH, ""),
                "last_reason": tags.get(Tag.GATE_LAST_REASON, ""),
                "last_at": to_timestamp(tags.get(Tag.GATE_LAST_AT)),
                "scores": training["scores"] if training else {},
                "run_url": MLflowPage.run(ui.mlflow, training["experiment"], training["run_id"]) if training else "",
                "flow_run_url": flow_run_url(training, ui) if training else "",
            }
        )
    return sorted(history, key=lambda version: -version["version"])


def champion_history(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the champions and their periods, newest first; each period ends where the next one begins.

    A version has the tags of its newest decision alone, so one that was promoted twice has its last period only.
    """
    promoted = [each for each in history if each["decision"] == GateDecision.PROMOTED and each["decided_at"]]
    promoted.sort(key=lambda version: version["decided_at"], reverse=True)
    ends = [None, *(version["decided_at"] for version in promoted)]
    return [
        {"version": version["version"], "url": version["url"], "from": version["decided_at"], "until": end}
        for version, end in zip(promoted, ends, strict=False)
    ]


def last_refusal(history: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return why the gate did not promote the newest candidate: a challenger, or one that was not worth a version."""
    refusals = []
    for version in history:
        if version["decision"] == GateDecision.CHALLENGER:
            refusals.append(
                {
                    "at": version["decided_at"] or 0,
                    "version": version["version"],
                    "url": version["url"],
                    "compared_with": version["compared_with"],
                    "reason": version["reason"],
                }
            )
        if version["last_reason"]:
            refusals.append(
                {
                    "at": version["last_at"] or 0,
                    "version": None,
                    "url": "",
                    "compared_with": version["version"],
                    "reason": version["last_reason"],
                }
            )
    # Of a challenger both are recorded, in the same second; its own is the one with a link.
    return max(refusals, key=lambda refusal: (refusal["at"], refusal["version"] or 0), default=None)


def metric_points(trainings: Iterable[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return a metric of model and baselines over the trainings: a point of a chart for each."""
    return [
        {"at": to_iso(training["at"]), "value": value, "predictor": name, "version": training["version"] or "none"}
        for training in trainings
        for name, value in training["scores"].get(metric, {}).items()
    ]


def metric_rows(
    trainings: Sequence[Mapping[str, Any]], metric: str, model: str, ui: UIAddresses
) -> list[dict[str, Any]]:
    """Return a metric's scores in each training, newest first, with links."""
    return [
        {
            "name": training["name"] or training["run_id"],
            "at": training["at"],
            "version": training["version"],
            "scores": training["scores"].get(metric, {}),
            "url": MLflowPage.run(ui.mlflow, training["experiment"], training["run_id"]),
            "version_url": MLflowPage.version(ui.mlflow, model, int(training["version"]))
            if training["version"].isdecimal()
            else "",
            "flow_run_url": flow_run_url(training, ui),
        }
        for training in reversed(trainings)
    ]


def flow_run_url(training: Mapping[str, Any], ui: UIAddresses) -> str:
    """Return the page of the flow run that logged a training; empty if none did."""
    return PrefectPage.flow_run(ui.prefect, training["flow_run"]) if training["flow_run"] else ""
