"""What the flow `monitor` logs about a model: verdicts, input drift, live scores, and predictions with ground truth."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dashboard.conversions import to_iso, to_number, to_timestamp
from dashboard.metrics import run_metrics, sort_metrics
from dashboard.registry import tag_values
from dashboard.ui import UIAddresses
from trainyard.contract import DRIFT_COLUMNS, Column, MLflowPage, PrefectPage, ScoreName, Tag, Verdict

VERDICTS = {
    Verdict.OK: ("No alert", "good"),
    Verdict.ALERT: ("Alert", "bad"),
    Verdict.TOO_FEW: ("Too few predictions", "neutral"),
}
"""A verdict's text and tone."""
MAX_SUBJECTS, MAX_PREDICTIONS = 3, 100
DAY_SECONDS = 86_400

POSITIVE, NEGATIVE, UNKNOWN, UPCOMING = "positive", "negative", "not yet known", "upcoming"
OUTCOMES = (POSITIVE, NEGATIVE, UNKNOWN, UPCOMING)


def latest_check(runs: Sequence[Mapping[str, Any]], ui: UIAddresses) -> dict[str, Any] | None:
    """Return the newest check: its verdict with the reasons, and live scores next to those on the holdout."""
    if not runs:
        return None
    info, tags, metrics = runs[0]["info"], tag_values(runs[0]["data"]), run_metrics(runs[0])
    verdict, flow_run_id = tags.get(Tag.VERDICT, ""), tags.get(Tag.FLOW_RUN_ID)
    text, tone = VERDICTS.get(verdict, (verdict or "No verdict", "neutral"))
    return {
        "text": text,
        "tone": tone,
        "reasons": tags.get(Tag.REASONS, ""),
        "version": tags.get(Tag.MODEL_VERSION, ""),
        "at": int(info["start_time"]) / 1000,
        "predictions": metrics.get("predictions"),
        "scored": metrics.get("scored"),
        "scores": [
            {
                "metric": name,
                "live": metrics.get(f"{ScoreName.LIVE_PREFIX}{name}"),
                "holdout": metrics.get(f"{ScoreName.HOLDOUT_PREFIX}{name}"),
            }
            for name in scored_metrics(metrics)
        ],
        "url": MLflowPage.run(ui.mlflow, info["experiment_id"], info["run_id"]),
        "flow_run_url": PrefectPage.flow_run(ui.prefect, flow_run_id) if flow_run_id else "",
    }


def check_rows(runs: Sequence[Mapping[str, Any]], ui: UIAddresses) -> list[dict[str, Any]]:
    """Return the checks, newest first."""
    return [check for run in runs if (check := latest_check([run], ui))]


def started_since(runs: Sequence[Mapping[str, Any]], since: float) -> list[Mapping[str, Any]]:
    """Return the runs that have started since a time, in seconds since the epoch."""
    return [run for run in runs if int(run["info"]["start_time"]) / 1000 >= since]


def scored_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of a check's live and holdout scores without their prefixes."""
    prefixes = (ScoreName.LIVE_PREFIX, ScoreName.HOLDOUT_PREFIX)
    return sort_metrics(name.removeprefix(prefix) for prefix in prefixes for name in metrics if name.startswith(prefix))


def live_trend(runs: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the first of the newest check's metrics, and its live and holdout scores over the checks for a chart."""
    metric = next(iter(scored_metrics(run_metrics(runs[0]))), "") if runs else ""
    points = [
        {
            "at": to_iso(int(run["info"]["start_time"]) / 1000),
            "value": metrics[f"{prefix}{metric}"],
            "predictor": predictor,
            "version": tag_values(run["data"]).get(Tag.MODEL_VERSION, ""),
        }
        for run in reversed(runs)
        for metrics in [run_metrics(run)]
        for predictor, prefix in (("live", ScoreName.LIVE_PREFIX), ("holdout", ScoreName.HOLDOUT_PREFIX))
        if f"{prefix}{metric}" in metrics
    ]
    return metric, points


def drift_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `Artifact.DRIFT`, drifted ones and the largest population stability index first."""
    numbers = [name for name in DRIFT_COLUMNS if name not in ("column", "drifted", "test", "reason")]
    drift = [
        {
            "column": str(row.get("column", "")),
            "drifted": row.get("drifted") in (True, 1, "true", "True"),
            "reason": str(row.get("reason") or ""),
            "test": str(row.get("test") or ""),
            **{name: to_number(row.get(name)) for name in numbers},
        }
        for row in rows
    ]
    for row in drift:
        if not row["test"] and row["statistic"] is not None:  # until 0.2.0, only numeric columns had means
            is_numeric = row[Column.TRAINING_MEAN] is not None
            row["test"] = "Kolmogorov-Smirnov" if is_numeric else "chi-squared"
    return sorted(drift, key=lambda row: (not row["drifted"], -(row["psi"] or 0.0)))


def predictions_by_subject(rows: Iterable[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """Return each subject's predictions by time, those with the most predictions first.

    Of the predictions for one time, the one that was issued last counts. `is_binary` is whether all of a subject's
    predictions can be probabilities of the positive class, with ground truth of 0 or 1; those of other models are
    values, which `value` holds if they are numbers.

    Args:
        rows: The rows of `Artifact.FORECASTS`.
        now: Seconds since the epoch.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.get(Column.PROBABILITY) is None:
            continue
        key = (str(row.get(Column.SUBJECT) or "unnamed subject"), str(row.get(Column.TIME) or ""))
        issued_at = str(row.get(Column.ISSUED_AT) or "")
        if key not in newest or issued_at >= newest[key][Column.ISSUED_AT]:
            newest[key] = {
                "time": key[1],
                "prediction": row[Column.PROBABILITY],
                "value": to_number(row[Column.PROBABILITY]),
                "observed": row.get(Column.OBSERVED),
                Column.ISSUED_AT: issued_at,
                "version": row.get(Column.VERSION),
            }
    subjects: dict[str, list[dict[str, Any]]] = {}
    for (subject, _), row in sorted(newest.items()):
        subjects.setdefault(subject, []).append(row)
    ranked = sorted(subjects.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_SUBJECTS]
    return [{"subject": subject, **summarize_predictions(members, now)} for subject, members in ranked]


def summarize_predictions(predictions: Sequence[Mapping[str, Any]], now: float) -> dict[str, Any]:
    """Return a subject's newest predictions with their outcomes, and scores of those whose ground truth is known."""
    known = [row for row in predictions if row["observed"] is not None]
    truths = [to_number(row["observed"]) for row in known]
    is_binary = set(truths) <= {0.0, 1.0} and all(
        row["value"] is not None and 0 <= row["value"] <= 1 for row in predictions
    )
    summary: dict[str, Any] = {"is_binary": is_binary, "known": len(known)}
    errors = [
        row["value"] - truth for row, truth in zip(known, truths, strict=True) if None not in (row["value"], truth)
    ]
    if is_binary and errors:
        summary["correct"] = sum(abs(error) < 0.5 for error in errors)
        summary["brier"] = sum(error**2 for error in errors) / len(errors)
    elif errors:
        summary["mean_absolute_error"] = sum(map(abs, errors)) / len(errors)
    elif known:
        summary["correct"] = sum(str(row["prediction"]) == str(row["observed"]) for row in known)
    rows = [{**row, "outcome": describe_outcome(row, is_binary, now)} for row in predictions[-MAX_PREDICTIONS:]]
    return summary | {"rows": rows}


def describe_outcome(row: Mapping[str, Any], is_binary: bool, now: float) -> str:
    """Return a prediction's ground truth as text, or why there is none."""
    if row["observed"] is not None:
        if is_binary:
            return POSITIVE if to_number(row["observed"]) == 1 else NEGATIVE
        return str(row["observed"])
    at = to_timestamp(row["time"])
    is_date = len(row["time"]) == len("2026-01-01")
    return UPCOMING if at is not None and at + is_date * DAY_SECONDS > now else UNKNOWN
