"""Flow runs and work pools as the page shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.conversions import to_timestamp
from dashboard.ui import UIAddresses
from trainyard.contract import PrefectPage, State

STATE_TONES = {
    "COMPLETED": ("good", "✓"),
    "FAILED": ("bad", "✕"),
    "CRASHED": ("bad", "✕"),
    "RUNNING": ("busy", "▶"),
    "PENDING": ("busy", "…"),
    "CANCELLED": ("neutral", "■"),
    "CANCELLING": ("neutral", "■"),
    "PAUSED": ("neutral", "‖"),
    "SCHEDULED": ("neutral", "◷"),
}
"""A state type's tone and sign, so that color is never alone."""
STATE_NAME_TONES = {State.ALERT: ("bad", "!"), State.ALERT_PERSISTS: ("bad", "!"), State.WAITING: ("busy", "…")}
"""Names of states that say more than their type."""
UNATTRIBUTED = "between components"
MAX_WORKERS, WORKER_SHOWN_SECONDS = 8, 86_400


def run_row(run: Mapping[str, Any], ui: UIAddresses, now: float) -> dict[str, Any]:
    """Return a run with its state, times, components, retries and cache hits."""
    tone, sign = STATE_NAME_TONES.get(run["state_name"]) or STATE_TONES.get(run["state_type"], ("neutral", "·"))
    return {
        "name": run["name"],
        "flow": run.get("flow") or "a deleted flow",
        "url": PrefectPage.flow_run(ui.prefect, run["id"]),
        "state": run["state_name"],
        "waits_for": run.get("waits_for", ""),
        "tone": tone,
        "sign": sign,
        "started_at": to_timestamp(run["start_time"]),
        "seconds": run_seconds(run, now),
        "components": [
            {
                "flow": component.get("flow") or component["name"],
                "seconds": run_seconds(component, now),
                "url": PrefectPage.flow_run(ui.prefect, component["id"]),
            }
            for component in run.get("components", [])
        ],
        "tasks": run.get("tasks", 0),
        "cached": run.get("cached", 0),
        "retries": run.get("retries", 0) + max(0, (run.get("run_count") or 0) - 1),
    }


def run_seconds(run: Mapping[str, Any], now: float) -> float | None:
    """Return how long a run took, or has taken so far."""
    start, end = to_timestamp(run["start_time"]), to_timestamp(run["end_time"])
    if start is None or (end is None and run["state_type"] in State.FINAL_TYPES):
        return None
    return max(0.0, (now if end is None else end) - start)


def durations_by_component(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the seconds of each run by component: the parts of stacked bars, newest run first.

    Concurrent components may add up to more than the run took; then no time is left between them.
    """
    durations = []
    for order, row in enumerate(rows):
        if row["seconds"] is None:
            continue
        parts: dict[str, float] = {}
        for component in row["components"]:
            parts[component["flow"]] = parts.get(component["flow"], 0.0) + (component["seconds"] or 0.0)
        rest = row["seconds"] - sum(parts.values())
        if not parts:
            parts[row["flow"]] = row["seconds"]
        elif rest > 0:
            parts[UNATTRIBUTED] = rest
        durations += [
            {"run": row["name"], "order": order, "component": name, "seconds": round(seconds, 2), "state": row["state"]}
            for name, seconds in parts.items()
        ]
    return durations


def pool_row(pool: Mapping[str, Any], ui: UIAddresses, now: float) -> dict[str, Any]:
    """Return a work pool with its status and its recently seen workers."""
    workers = [
        {
            "name": worker["name"],
            "is_online": worker["status"] == "ONLINE",
            "seen_at": to_timestamp(worker["last_heartbeat_time"]),
        }
        for worker in pool["workers"]
    ]
    workers.sort(key=lambda worker: -(worker["seen_at"] or 0))
    online, late = sum(worker["is_online"] for worker in workers), pool["runs"]["Late"]
    if pool["is_paused"]:
        text, tone = "Paused: no runs are started", "bad"
    elif not online:
        text, tone = "No worker online: no runs are started", "bad"
    elif late:
        text, tone = f"{late} {'run is' if late == 1 else 'runs are'} late", "bad"
    else:
        text, tone = "Ready", "good"
    recent = [each for each in workers if each["is_online"] or now - (each["seen_at"] or 0) < WORKER_SHOWN_SECONDS]
    return {
        **{key: pool[key] for key in ("name", "type", "queues", "runs")},
        "workers": recent[:MAX_WORKERS],
        "online": online,
        "text": text,
        "tone": tone,
        "url": PrefectPage.work_pool(ui.prefect, pool["name"]),
    }


def page_numbers(page: int, last: int, neighbors: int = 2) -> list[int | None]:
    """Return the page numbers to link to; None stands for a gap."""
    nearby = range(max(1, page - neighbors), min(last, page + neighbors) + 1)
    numbers: list[int | None] = []
    for number in sorted({1, last, *nearby}) if last else []:
        if numbers and numbers[-1] is not None and number > numbers[-1] + 1:
            numbers.append(None)
        numbers.append(number)
    return numbers
