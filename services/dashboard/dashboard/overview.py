"""All registered models at a glance: champion, main metric, last check, last training and traffic."""

from collections.abc import Iterable, Mapping
from typing import Any

from dashboard.checks import latest_check
from dashboard.metrics import describe_metric, run_metrics, scores_by_metric
from dashboard.traffic import Traffic, requests_by_model
from dashboard.ui import UIAddresses
from trainyard.contract import Alias, MLflowPage


def overview_rows(
    models: Iterable[Mapping[str, Any]],
    runs: Mapping[str, Mapping[str, Any]],
    traffic: Traffic | None,
    ui: UIAddresses,
) -> list[dict[str, Any]]:
    """Return a row for each registered model, by name.

    Args:
        models: As `MLflowSource.list_models` returns them.
        runs: As `MLflowSource.read_overview` returns them.
        traffic: As serving lists it; None if it is not known.
        ui: The UIs' addresses.
    """
    requests = None if traffic is None else requests_by_model(traffic)
    champions, trainings, checks = (runs.get(kind, {}) for kind in ("champions", "trainings", "checks"))
    rows = []
    for model in sorted(models, key=lambda each: str(each["name"])):
        name, training = model["name"], trainings.get(model["name"])
        version = model["aliases"].get(Alias.CHAMPION)
        rows.append(
            {
                "name": name,
                "version": version,
                "version_url": version and MLflowPage.version(ui.mlflow, name, version),
                "score": main_score(champions.get(name)) if version else None,
                "check": latest_check([checks[name]], ui) if name in checks else None,
                "trained_at": int(training["info"]["start_time"]) / 1000 if training else None,
                "training_url": training
                and MLflowPage.run(ui.mlflow, training["info"]["experiment_id"], training["info"]["run_id"]),
                "traffic": None if requests is None else requests.get(name, {"requests": 0, "errors": 0}),
            }
        )
    return rows


def main_score(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the first of a training's metrics with the model's score and the baselines'; None if it has none."""
    scores = scores_by_metric(run_metrics(run)) if run else {}
    metric = next(iter(scores), None)
    if metric is None:
        return None
    baselines = {name: value for name, value in scores[metric].items() if name != "model"}
    return {"label": describe_metric(metric).label, "model": scores[metric]["model"], "baselines": baselines}
