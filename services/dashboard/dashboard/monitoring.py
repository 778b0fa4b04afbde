"""What the flow `monitor` found: drift of the inputs, live scores, and forecasts beside what came."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.models import Links, isoformat, metrics_of, tags_of
from dashboard.tables import number, rows_of

VERDICTS = {
    "ok": ("No alert", "good"),
    "alert": ("Alert", "bad"),
    "too-few": ("Too few to judge", "neutral"),
}
SCORES = ("brier", "log_loss", "accuracy")
MOST_PLACES, MOST_DAYS = 3, 45


def latest(runs: Sequence[Mapping[str, Any]], links: Links) -> dict[str, Any] | None:
    """Return the newest check: its verdict and why, and live scores beside those on the holdout."""
    if not runs:
        return None
    info, tags, metrics = runs[0]["info"], tags_of(runs[0]["data"]), metrics_of(runs[0])
    text, tone = VERDICTS.get(tags.get("verdict", ""), (tags.get("verdict") or "No verdict", "neutral"))
    return {
        "verdict": tags.get("verdict", ""),
        "text": text,
        "tone": tone,
        "reasons": tags.get("reasons", ""),
        "version": tags.get("model_version", ""),
        "at": int(info["start_time"]) / 1000,
        "predictions": metrics.get("predictions"),
        "scored": metrics.get("scored"),
        "drifted_share": metrics.get("drifted_share"),
        "prediction_psi": metrics.get("prediction_psi"),
        "psi_max": metrics.get("psi_max"),
        "scores": [
            {"metric": name, "live": metrics.get(f"live_{name}"), "holdout": metrics.get(f"holdout_{name}")}
            for name in SCORES
            if f"live_{name}" in metrics or f"holdout_{name}" in metrics
        ],
        "url": links.run(info["experiment_id"], info["run_id"]),
        "flow_run_url": links.flow_run(tags["prefect.flow_run_id"]) if tags.get("prefect.flow_run_id") else "",
    }


def trend(runs: Sequence[Mapping[str, Any]], metric: str = "brier") -> list[dict[str, Any]]:
    """Return a score over the checks, live beside holdout, a row for each point of a chart."""
    return [
        {"at": isoformat(int(run["info"]["start_time"]) / 1000), "value": metrics[key], "who": who}
        for run in reversed(runs)
        for metrics in [metrics_of(run)]
        for who, key in (("live", f"live_{metric}"), ("holdout", f"holdout_{metric}"))
        if key in metrics
    ]


def drift(table: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the columns by how far their recent values are from those of the training, the farthest first."""
    names = ("psi", "ks_statistic", "ks_p_value", "training_mean", "recent_mean")
    found = [
        {
            "column": str(row.get("column", "")),
            "drifted": row.get("drifted") in (True, 1, "true", "True"),
            **{name: number(row.get(name)) for name in names},
        }
        for row in rows_of(table)
    ]
    return sorted(found, key=lambda row: -(row["psi"] or 0.0))


def forecasts(table: Mapping[str, Any] | None, today: str) -> list[dict[str, Any]]:
    """Return each place's forecasts by day, the last one issued for each day, the places with most days first.

    Args:
        table: `monitoring/forecasts.json`.
        today: ISO date; what is still to come is told from what came unseen.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows_of(table):
        said = number(row.get("probability"))
        if said is None:
            continue
        key = (str(row.get("place") or "unnamed place"), str(row.get("day", ""))[:10])
        if key not in newest or str(row.get("issued_at", "")) >= newest[key]["issued_at"]:
            newest[key] = {
                "day": key[1],
                "probability": said,
                "issued_at": str(row.get("issued_at", "")),
                "version": row.get("version"),
                "outcome": outcome(number(row.get("observed")), key[1], today),
            }
    places: dict[str, list[dict[str, Any]]] = {}
    for (place, _), row in sorted(newest.items()):
        places.setdefault(place, []).append(row)
    ranked = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_PLACES]
    return [{"place": place, "days": days[-MOST_DAYS:], **score(days)} for place, days in ranked]


def outcome(observed: float | None, day: str, today: str) -> str:
    """Say what came on a day."""
    if observed is not None:
        return "rain" if observed >= 0.5 else "dry"
    return "still to come" if day >= today else "not yet known"


def score(days: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many forecasts of known days fell on the right side of one half, and their Brier score."""
    known = [(day["probability"], float(day["outcome"] == "rain")) for day in days if day["outcome"] in ("rain", "dry")]
    right = sum((said >= 0.5) == (came == 1) for said, came in known)
    brier = sum((said - came) ** 2 for said, came in known) / len(known) if known else None
    return {"known": len(known), "right": right, "brier": brier}
