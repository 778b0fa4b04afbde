"""A registered model as the page shows it: its champion, its versions, and its trainings' metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from dashboard.tables import number

# Names that people know the metrics by, their unit, and which way is better; in the order of the page.
METRICS = {
    "brier": ("Brier score", "mean squared error of the probability, 0 to 1", "lower"),
    "log_loss": ("Log loss", "nats", "lower"),
    "calibration_error": ("Calibration error", "mean gap between probability and frequency, 0 to 1", "lower"),
    "roc_auc": ("ROC AUC", "0.5 is chance, 1 is perfect", "higher"),
    "average_precision": ("Average precision", "0 to 1", "higher"),
    "accuracy": ("Accuracy", "share of holdout rows that are right, 0 to 1", "higher"),
    "macro_f1": ("F1, mean of the classes", "0 to 1", "higher"),
}
MODEL = "model"


@dataclass(frozen=True)
class Links:
    """Addresses of the two UIs, as people's browsers know them."""

    mlflow: str
    prefect: str

    def run(self, experiment: str, run_id: str) -> str:
        """Return the page of a run in MLflow."""
        return f"{self.mlflow}/#/experiments/{experiment}/runs/{run_id}"

    def version(self, model: str, version: int) -> str:
        """Return the page of a model's version in MLflow."""
        return f"{self.mlflow}/#/models/{quote(model, safe='')}/versions/{version}"

    def model(self, model: str) -> str:
        """Return a registered model's page in MLflow."""
        return f"{self.mlflow}/#/models/{quote(model, safe='')}"

    def flow_run(self, run_id: str) -> str:
        """Return the page of a flow run in Prefect."""
        return f"{self.prefect}/runs/flow-run/{run_id}"

    def pool(self, name: str) -> str:
        """Return the page of a work pool in Prefect."""
        return f"{self.prefect}/work-pools/work-pool/{quote(name, safe='')}"


def tags_of(thing: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a run's data or of a version as one mapping."""
    return {tag["key"]: tag.get("value", "") for tag in thing.get("tags", [])}


def metrics_of(run: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's metrics that are finite numbers."""
    given = {metric["key"]: number(metric.get("value")) for metric in run["data"].get("metrics", [])}
    return {name: value for name, value in given.items() if value is not None}


def beside(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return a training's scores by metric and contestant, the model first: {"brier": {"model": 0.16, ...}}."""
    found = {}
    for name in sorted(metrics):
        if name.startswith(f"{MODEL}_"):
            metric = name.removeprefix(f"{MODEL}_")
            others = {key.removesuffix(f"_{metric}"): key for key in sorted(metrics) if key.endswith(f"_{metric}")}
            baselines = {who: metrics[key] for who, key in others.items() if who != MODEL and "_" not in who}
            found[metric] = {MODEL: metrics[name], **baselines}
    order = [*METRICS, *found]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def trainings(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the trainings among a model's runs, oldest first."""
    found = []
    for run in runs:
        if scores := beside(metrics_of(run)):
            tags = tags_of(run["data"])
            found.append(
                {
                    "run_id": run["info"]["run_id"],
                    "experiment": run["info"]["experiment_id"],
                    "name": run["info"].get("run_name", ""),
                    "at": int(run["info"]["start_time"]) / 1000,
                    "version": tags.get("model_version", ""),
                    "flow_run": tags.get("prefect.last_flow_run_id") or tags.get("prefect.flow_run_id", ""),
                    "scores": scores,
                }
            )
    return sorted(found, key=lambda training: training["at"])


def history(
    versions: Sequence[Mapping[str, Any]],
    aliases: Mapping[str, int],
    trained: Sequence[Mapping[str, Any]],
    links: Links,
) -> list[dict[str, Any]]:
    """Return a model's versions, newest first: what was decided of each, when and why, and where to look further."""
    by_run = {training["run_id"]: training for training in trained}
    found = []
    for version in versions:
        number_, tags = int(version["version"]), tags_of(version)
        training = by_run.get(version.get("run_id") or "")
        name = str(version["name"])
        found.append(
            {
                "version": number_,
                "url": links.version(name, number_),
                "aliases": sorted(alias for alias, holder in aliases.items() if holder == number_),
                "registered_at": int(version["creation_timestamp"]) / 1000,
                "decision": tags.get("gate.decision", ""),
                "decided_at": seconds_of(tags.get("gate.decided_at")),
                "reason": tags.get("gate.reason", ""),
                "against": tags.get("gate.judged_against", ""),
                "scores": training["scores"] if training else {},
                "run_id": version.get("run_id") or "",
                "run_url": links.run(training["experiment"], training["run_id"]) if training else "",
                "flow_run_url": links.flow_run(training["flow_run"]) if training and training["flow_run"] else "",
            }
        )
    return sorted(found, key=lambda version: -version["version"])


def reigns(versions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return who became champion when, newest first; each reign ends where the next begins.

    The registry keeps the newest decision about a version: of one that came back, the last reign alone.
    """
    crowned = [version for version in versions if version["decision"] == "promoted" and version["decided_at"]]
    crowned.sort(key=lambda version: version["decided_at"], reverse=True)
    ends = [None, *(version["decided_at"] for version in crowned)]
    return [
        {"version": version["version"], "url": version["url"], "from": version["decided_at"], "until": end}
        for version, end in zip(crowned, ends, strict=False)
    ]


def last_loser(versions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the version that was last judged and did not become champion."""
    lost = [version for version in versions if version["decision"] == "challenger"]
    return max(lost, key=lambda version: (version["decided_at"] or 0, version["version"]), default=None)


def timeline(trained: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return one metric of model and baselines over the trainings, a row for each point of a chart."""
    return [
        {"at": isoformat(training["at"]), "value": value, "who": who, "version": training["version"] or "none"}
        for training in trained
        for who, value in training["scores"].get(metric, {}).items()
    ]


def figures(trained: Sequence[Mapping[str, Any]], metric: str, model: str, links: Links) -> list[dict[str, Any]]:
    """Return the trainings with one metric's scores, the newest first, and where to look further."""
    return [
        {
            "name": training["name"] or training["run_id"],
            "at": training["at"],
            "version": training["version"],
            "scores": training["scores"].get(metric, {}),
            "url": links.run(training["experiment"], training["run_id"]),
            "version_url": links.version(model, int(training["version"])) if training["version"].isdecimal() else "",
            "flow_run_url": links.flow_run(training["flow_run"]) if training["flow_run"] else "",
        }
        for training in reversed(trained)
    ]


def metric_names(trained: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that trainings have, in the page's order."""
    found = dict.fromkeys(metric for training in trained for metric in training["scores"])
    order = [*METRICS, *found]
    return sorted(found, key=order.index)


def label(metric: str) -> str:
    """Return the name that people know a metric by."""
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ")


def seconds_of(text: str | None) -> float | None:
    """Return seconds since the epoch of an ISO time; None for none."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def isoformat(seconds: float) -> str:
    """Return seconds since the epoch as ISO time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
