"""Automations: what the server does by itself when something happens."""

from typing import Any

import httpx

HEARTBEAT_WINDOW_SECONDS = 90  # three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY): one may be late
ENDED_OR_WAITING = (
    "Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot",
    "Paused", "Suspended",
)  # fmt: skip

CRASH_LOST_RUNS: dict[str, Any] = {
    "name": "crash-lost-runs",
    "description": "A run whose process is gone with its worker, or whose host is lost, ends as Crashed.",
    "enabled": True,
    "trigger": {
        "type": "event",
        "posture": "Proactive",
        # Running as well: a process may be lost before its first heartbeat.
        "after": ["prefect.flow-run.heartbeat", "prefect.flow-run.Running"],
        "expect": ["prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in ENDED_OR_WAITING)],
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": HEARTBEAT_WINDOW_SECONDS,
    },
    "actions": [
        {
            "type": "change-flow-run-state",
            "state": "CRASHED",
            "message": f"The flow run crashed: nothing was heard of it for {HEARTBEAT_WINDOW_SECONDS} seconds.",
        }
    ],
}


def save_automation(api: httpx.Client, automation: dict[str, Any]) -> None:
    """Make an automation, or bring the one of its name to what it should be.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    for old in find_automations(api, automation["name"])[:1]:
        api.put(f"/automations/{old['id']}", json=automation).raise_for_status()
        return
    api.post("/automations/", json=automation).raise_for_status()


def find_automations(api: httpx.Client, name: str) -> list[dict[str, Any]]:
    """Return the automations of a name."""
    query = {"automations": {"name": {"any_": [name]}}}
    found: list[dict[str, Any]] = api.post("/automations/filter", json=query).raise_for_status().json()
    return found
