"""Automations: what the server does by itself when something happens."""

from collections.abc import Iterable
from typing import Any

import httpx

HEARTBEAT_WINDOW_SECONDS = 90  # three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY): one may be late
ENDED_OR_WAITING = (
    "Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot",
    "Paused", "Suspended", "Alert",
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

MAIL_RUN_EVENTS, MAIL_TAG = "mail-run-events", "mail"
MAIL_ALERTS, ALERTS_TAG = "mail-alerts", "mail-alerts"


def mail_run_events(deployment_id: str, events: Iterable[str]) -> dict[str, Any]:
    """Return the automation that has a mail sent about each run with the tag `mail` that ends in a certain way.

    Args:
        deployment_id: The deployment of the flow that sends it.
        events: Types of states, as "Completed"; without any, no mail is sent.
    """
    types = [event.upper() for event in events]
    # By the type and not the name of the state: Failed is TimedOut as well, and what a flow calls its failure.
    ended = {"prefect.state-type": types or ["none"]}
    about = f"A run with the tag `{MAIL_TAG}` that ends is told to people by mail (MAIL_EVENTS in .env)."
    return _mail(MAIL_RUN_EVENTS, about, bool(types), deployment_id, MAIL_TAG, ended)


def mail_alerts(deployment_id: str, events: Iterable[str]) -> dict[str, Any]:
    """Return the automation that has a mail sent about each run with the tag `mail-alerts` that has bad news.

    That is one that fails or crashes, or that ends in the state `Alert`.

    Args:
        deployment_id: The deployment of the flow that sends it.
        events: As of `mail_run_events`; without any, no mail is sent.
    """
    bad = {"prefect.state-name": ["Alert", "Failed", "TimedOut", "Crashed"]}
    about = f"A run with the tag `{ALERTS_TAG}` that fails or raises an alert is told to people by mail."
    return _mail(MAIL_ALERTS, about, bool(list(events)), deployment_id, ALERTS_TAG, bad)


def _mail(
    name: str, description: str, enabled: bool, deployment_id: str, tag: str, match: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "enabled": enabled,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.*"],
            "match": {"prefect.resource.id": "prefect.flow-run.*", **match},
            "match_related": {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": deployment_id,
                "parameters": {
                    "flow_run_id": {
                        "__prefect_kind": "jinja",
                        "template": "{{ event.resource.id | replace('prefect.flow-run.', '') }}",
                    }
                },
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
