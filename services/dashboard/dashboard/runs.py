"""Pipeline runs and work pools as the page shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.models import Links, seconds_of

# How a state looks: a tone and a sign, so that colour is never alone.
TONES = {
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
# Names that flows give to states of theirs, and that say more than the type.
NAMED = {"Alert": ("bad", "!")}
REST = "between components"
OFFLINE_AFTER_SECONDS = 90


def view(run: Mapping[str, Any], links: Links, now: float) -> dict[str, Any]:
    """Return a run's row: state, times, components with their seconds, retries and cache hits."""
    tone, sign = NAMED.get(run["state_name"]) or TONES.get(run["state_type"], ("neutral", "·"))
    return {
        "id": run["id"],
        "name": run["name"],
        "flow": run.get("flow") or "a deleted flow",
        "url": links.flow_run(run["id"]),
        "state": run["state_name"],
        "tone": tone,
        "sign": sign,
        "started": seconds_of(run["start_time"]),
        "seconds": seconds(run, now),
        "components": [
            {
                "flow": part.get("flow") or part["name"],
                "seconds": seconds(part, now),
                "state": part["state_name"],
                "url": links.flow_run(part["id"]),
            }
            for part in run.get("components", [])
        ],
        "tasks": run.get("tasks", 0),
        "cached": run.get("cached", 0),
        "retries": run.get("retries", 0) + max(0, (run.get("run_count") or 0) - 1),
    }


def seconds(run: Mapping[str, Any], now: float) -> float | None:
    """Return how long a run took, or has taken so far."""
    start, end = seconds_of(run["start_time"]), seconds_of(run["end_time"])
    if start is None:
        return None
    if end is None and run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        return None
    return max(0.0, (now if end is None else end) - start)


def durations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the seconds by component of each run, a row for each piece of a stacked bar, the newest run first.

    Places that are trained side by side overlap: their components may add up to more than the run took, and then
    nothing is left between them.
    """
    found = []
    for order, row in enumerate(rows):
        if row["seconds"] is None:
            continue
        parts: dict[str, float] = {}
        for part in row["components"]:
            parts[part["flow"]] = parts.get(part["flow"], 0.0) + (part["seconds"] or 0.0)
        rest = row["seconds"] - sum(parts.values())
        if not parts:
            parts[row["flow"]] = row["seconds"]
        elif rest > 0:
            parts[REST] = rest
        found += [
            {"run": row["name"], "order": order, "component": name, "seconds": round(took, 2), "state": row["state"]}
            for name, took in parts.items()
        ]
    return found


def pool_view(pool: Mapping[str, Any], links: Links, now: float) -> dict[str, Any]:
    """Return a work pool with its workers' last signs of life."""
    workers = [
        {
            "name": worker["name"],
            "online": worker["status"] == "ONLINE",
            "seen": seconds_of(worker["last_heartbeat_time"]),
        }
        for worker in pool["workers"]
    ]
    workers.sort(key=lambda worker: -(worker["seen"] or 0))
    online = sum(worker["online"] for worker in workers)
    late = pool["runs"]["Late"]
    if pool["is_paused"]:
        text, tone = "Paused: no run is started", "bad"
    elif not online:
        text, tone = "No worker is online: nothing is run", "bad"
    elif late:
        text, tone = f"{late} {'run is' if late == 1 else 'runs are'} late", "bad"
    else:
        text, tone = "Ready", "good"
    return {
        **{key: pool[key] for key in ("name", "type", "concurrency_limit", "queues", "runs")},
        "workers": [worker for worker in workers if worker["online"] or now - (worker["seen"] or 0) < 86400][:8],
        "online": online,
        "text": text,
        "tone": tone,
        "url": links.pool(pool["name"]),
    }


def pages(page: int, last: int, around: int = 2) -> list[int | None]:
    """Return the page numbers to link to; None stands for a gap."""
    near = range(max(1, page - around), min(last, page + around) + 1)
    wanted = sorted({1, last, *near}) if last else []
    found: list[int | None] = []
    for number in wanted:
        if found and found[-1] is not None and number > found[-1] + 1:
            found.append(None)
        found.append(number)
    return found
