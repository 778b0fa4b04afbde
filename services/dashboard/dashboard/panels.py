"""The contents of the page's panels, made from a view's snapshots."""

import time
from typing import Any

from dashboard import checks, comparison, outcomes, registry, runs, traffic
from dashboard.calibration import calibrate
from dashboard.conversions import to_timestamp
from dashboard.metrics import describe_metric, sort_metrics, sort_predictors
from dashboard.overview import overview_rows
from dashboard.ui import UIAddresses
from dashboard.view import View, aliases_of
from trainyard.contract import Alias, PrefectPage

VERSIONS_PER_PAGE = 8
MAX_CHAMPIONS = 6


def make_panels(view: View, ui: UIAddresses) -> dict[str, Any]:
    """Return the template's variables."""
    now = time.time()
    return {
        "overview": overview_rows(view.value("models") or [], view.value("overview") or {}, view.value("traffic"), ui),
        "traffic": traffic_panels(view, now),
        "comparison": comparison_panel(view),
        "model": model_panels(view, ui, now),
        "calibration": calibrate(view.value("holdout") or []),
        "residuals": outcomes.holdout_residuals(
            view.value("holdout") or [], (view.value("checks") or {"runs": []})["runs"]
        ),
        "monitoring": monitoring_panels(view, ui, now),
        "platform": platform_panels(view, ui, now),
        "diagnosis": diagnosis_panel(view),
    }


def traffic_panels(view: View, now: float) -> dict[str, Any]:
    """Return serving's requests for the model: by version in the last hour, by minute in the time range."""
    data, since = view.value("traffic") or [], view.selection.since(now)
    return {
        "versions": traffic.version_rows(data, view.model),
        "requests": traffic.request_points(data, view.model, since),
        "latency": traffic.latency_points(data, view.model, since),
    }


def comparison_panel(view: View) -> dict[str, Any] | None:
    """Return two versions side by side; None if there are no two."""
    versions = (view.value("model") or {}).get("versions", [])
    aliases = aliases_of(view.value("models") or [], view.model)
    selected = comparison.select_versions(view.selection, versions, aliases)
    if selected is None:
        return None
    numbers = [int(version["version"]) for version in versions]
    return {
        "compared": selected[0],
        "against": selected[1],
        "choices": [
            {"version": number, "aliases": sorted(alias for alias, holder in aliases.items() if holder == number)}
            for number in numbers
        ],
        "shadow": view.value("shadow"),
        **comparison.compare_runs(view.value("comparison") or [None, None]),
    }


def model_panels(view: View, ui: UIAddresses, now: float) -> dict[str, Any]:
    """Return the champion, the version history and the metrics of the trainings."""
    models = view.value("models") or []
    names = sorted(model["name"] for model in models)
    data = view.value("model")
    if not data:
        return {"names": names, "champion": None, "description": None}
    trainings = registry.list_trainings(data["runs"])
    history = registry.version_history(data["versions"], aliases_of(models, view.model), trainings, ui)
    metrics = sort_metrics(metric for training in trainings for metric in training["scores"])
    metric = view.selection.metric if view.selection.metric in metrics else next(iter(metrics), "")
    last_page = max(1, -(-len(history) // VERSIONS_PER_PAGE))
    page = min(view.selection.versions, last_page)
    since = view.selection.since(now)
    in_range = [training for training in trainings if training["at"] >= since]
    points = registry.metric_points(in_range, metric)
    return {
        "names": names,
        "champion": next((version for version in history if Alias.CHAMPION in version["aliases"]), None),
        "champions": registry.champion_history(history)[:MAX_CHAMPIONS],
        "refusal": registry.last_refusal(history),
        "versions": history[(page - 1) * VERSIONS_PER_PAGE : page * VERSIONS_PER_PAGE],
        "version_page": page,
        "version_pages": last_page,
        "metrics": metrics,
        "metric": metric,
        "description": describe_metric(metric) if metric else None,
        "points": points,
        "rows": registry.metric_rows(in_range, metric, view.model, ui),
        "predictors": sort_predictors(point["predictor"] for point in points),
    }


def monitoring_panels(view: View, ui: UIAddresses, now: float) -> dict[str, Any]:
    """Return the newest check of the model and the trend over the checks."""
    data = view.value("checks") or {"runs": [], "drift": [], "forecasts": [], "outcomes": []}
    in_range = checks.started_since(data["runs"], view.selection.since(now))
    metric, trend = checks.live_trend(in_range)
    return {
        "check": checks.latest_check(data["runs"], ui),
        "checks": checks.check_rows(in_range, ui),
        "trend": trend,
        "trend_metric": metric,
        "drift": checks.drift_rows(data["drift"]),
        "predictions": checks.predictions_by_subject(data["forecasts"], now),
        "outcomes": outcomes.summarize_outcomes(data["runs"], data["outcomes"]),
    }


def diagnosis_panel(view: View) -> dict[str, Any]:
    """Return what is wrong: servers that do not answer, what Prefect tells, and what `make doctor` found last."""
    silent = sorted({each.error for each in view.snapshots.values() if each.error})
    data = view.value("diagnosis") or {"findings": [], "report": None}
    return {
        "findings": [*([error, "docker compose ps --all; make doctor"] for error in silent), *data["findings"]],
        "report": data["report"],
    }


def platform_panels(view: View, ui: UIAddresses, now: float) -> dict[str, Any]:
    """Return runs, schedules, the last failure and work pools."""
    page = view.value("runs") or {"runs": [], "count": 0, "pages": 0, "flows": []}
    schedule = view.value("schedule") or {"next": [], "failure": None, "completed": 0, "failed": 0}
    rows, failure = [runs.run_row(run, ui, now) for run in page["runs"]], schedule["failure"]
    return {
        "runs": rows,
        "count": page["count"],
        "flows": page["flows"],
        "last_page": page["pages"],
        "page_numbers": runs.page_numbers(view.selection.page, page["pages"]),
        "durations": runs.durations_by_component(rows),
        "next": [
            {
                "flow": run["flow"],
                "at": to_timestamp(run["next_scheduled_start_time"]),
                "url": PrefectPage.flow_run(ui.prefect, run["id"]),
            }
            for run in schedule["next"]
        ],
        "failure": failure
        and runs.run_row(failure, ui, now)
        | {"message": failure["message"], "ended_at": to_timestamp(failure["end_time"])},
        "week": {"completed": schedule["completed"], "failed": schedule["failed"]},
        "pools": [runs.pool_row(pool, ui, now) for pool in view.value("pools") or []],
    }
