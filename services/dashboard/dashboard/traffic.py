"""Serving's requests of the last hour: totals by model and version, and a model's counts and latency by minute."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dashboard.conversions import to_iso

ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"
OUTCOMES = [ANSWERED, REFUSED, FAILED]
QUANTILES = ("p50", "p95", "p99")
Traffic = Sequence[Mapping[str, Any]]


def requests_by_model(traffic: Traffic) -> dict[str, dict[str, int]]:
    """Return each model's requests, errors and refusals of the last hour, all of its versions together."""
    totals: dict[str, dict[str, int]] = {}
    for each in traffic:
        of_model = totals.setdefault(each["model"], {"requests": 0, "errors": 0, "refusals": 0})
        for name in of_model:
            of_model[name] += each["hour"][name]
    return totals


def version_rows(traffic: Traffic, model: str) -> list[dict[str, Any]]:
    """Return a model's versions with their requests of the last hour, the newest version first.

    The version is None for requests that failed before it was known.
    """
    rows = [{"version": each["version"], **each["hour"]} for each in traffic if each["model"] == model]
    return sorted(rows, key=lambda row: -(row["version"] or 0))


def request_points(traffic: Traffic, model: str, since: float) -> list[dict[str, Any]]:
    """Return the count of a model's requests by minute and outcome since a time: a bar's part for each.

    Args:
        traffic: As serving lists it.
        model: The name of a registered model.
        since: Seconds since the epoch.
    """
    counts: dict[tuple[int, str], int] = {}
    for minute in _minutes(traffic, model, since):
        parts = {FAILED: minute["errors"], REFUSED: minute["refusals"]}
        parts[ANSWERED] = minute["requests"] - sum(parts.values())
        for outcome, count in parts.items():
            key = (minute["minute"], outcome)
            counts[key] = counts.get(key, 0) + count
    return [
        {"at": to_iso(at), "until": to_iso(at + 60), "outcome": outcome, "requests": count}
        for (at, outcome), count in sorted(counts.items())
        if count
    ]


def latency_points(traffic: Traffic, model: str, since: float) -> list[dict[str, Any]]:
    """Return the latency of a model's busiest version in each minute, in milliseconds: a point for each quantile."""
    busiest: dict[int, Mapping[str, Any]] = {}
    for minute in _minutes(traffic, model, since):
        if minute["requests"] > busiest.get(minute["minute"], {"requests": 0})["requests"]:
            busiest[minute["minute"]] = minute
    return [
        {"at": to_iso(at), "quantile": name, "milliseconds": round(minute["seconds"][name] * 1000, 3)}
        for at, minute in sorted(busiest.items())
        for name in QUANTILES
    ]


def _minutes(traffic: Traffic, model: str, since: float) -> Iterable[Mapping[str, Any]]:
    return (
        minute
        for each in traffic
        if each["model"] == model
        for minute in each["minutes"]
        if minute["minute"] + 60 > since
    )
