"""Automations: what the Prefect server does by itself when something happens."""

from collections.abc import Iterable
from typing import Any

import httpx

from infra.provision.api import retry_transient
from trainyard.contract import Event, Resource, RunTag, State

HEARTBEAT_WINDOW_SECONDS = 90  # three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY): one may be late
FLOW_RUNS = f"{Event.FLOW_RUN}.*"
NOT_RUNNING = (
    "Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot",
    "Paused", "Suspended", State.AWAITING_RERUN, State.ALERT,
)  # fmt: skip

CRASH_LOST_RUNS: dict[str, Any] = {
    "name": Resource.CRASH_LOST_RUNS,
    "description": "A run whose process died with its worker or host is marked as Crashed.",
    "enabled": True,
    "trigger": {
        "type": "event",
        "posture": "Proactive",
        # Running as well: a process may die before its first heartbeat.
        "after": [Event.FLOW_RUN_HEARTBEAT, Event.FLOW_RUN_RUNNING],
        "expect": [Event.FLOW_RUN_HEARTBEAT, *(f"{Event.FLOW_RUN}.{state}" for state in NOT_RUNNING)],
        "match": {"prefect.resource.id": FLOW_RUNS},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": HEARTBEAT_WINDOW_SECONDS,
    },
    "actions": [
        {
            "type": "change-flow-run-state",
            "state": "CRASHED",
            "message": f"The flow run crashed: it sent no heartbeat for {HEARTBEAT_WINDOW_SECONDS} seconds.",
        }
    ],
}


def mail_run_events(deployment_id: str, events: Iterable[str]) -> dict[str, Any]:
    """Return the automation that sends a mail when a run with the tag `mail` ends.

    Args:
        deployment_id: The deployment of the flow that sends mail.
        events: Types of final states, such as "Completed"; empty disables the automation.
    """
    types = [event.upper() for event in events]
    # By the type and not the name of the state: the type FAILED includes TimedOut and a flow's own names.
    ended = {"prefect.state-type": types or ["none"]}
    description = f"Sends a mail when a run with the tag `{RunTag.MAIL}` ends (MAIL_EVENTS in .env)."
    return _mail_automation(Resource.MAIL_RUN_EVENTS, description, bool(types), deployment_id, RunTag.MAIL, ended)


def mail_alerts(deployment_id: str, events: Iterable[str]) -> dict[str, Any]:
    """Return the automation that sends a mail when a run with the tag `mail-alerts` fails, crashes or raises an alert.

    Args:
        deployment_id: The deployment of the flow that sends mail.
        events: As of `mail_run_events`; empty disables the automation.
    """
    bad = {"prefect.state-name": [State.ALERT, "Failed", "TimedOut", "Crashed"]}
    description = f"Sends a mail when a run with the tag `{RunTag.MAIL_ALERTS}` fails, crashes or raises an alert."
    enabled = bool(list(events))
    return _mail_automation(Resource.MAIL_ALERTS, description, enabled, deployment_id, RunTag.MAIL_ALERTS, bad)


def _mail_automation(
    name: str, description: str, enabled: bool, deployment_id: str, tag: str, match: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "enabled": enabled,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": [FLOW_RUNS],
            "match": {"prefect.resource.id": FLOW_RUNS, **match},
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
                        "template": f"{{{{ event.resource.id | replace('{Event.FLOW_RUN}.', '') }}}}",
                    }
                },
            }
        ],
    }


@retry_transient
def save_automation(api: httpx.Client, automation: dict[str, Any]) -> None:
    """Create an automation, or update the one of the same name.

    Raises:
        httpx.HTTPError: Prefect refused or did not answer.
    """
    existing = find_automations(api, automation["name"])
    if existing:
        api.put(f"/automations/{existing[0]['id']}", json=automation).raise_for_status()
    else:
        api.post("/automations/", json=automation).raise_for_status()


def find_automations(api: httpx.Client, name: str) -> list[dict[str, Any]]:
    """Return the automations of a name."""
    query = {"automations": {"name": {"any_": [name]}}}
    found: list[dict[str, Any]] = api.post("/automations/filter", json=query).raise_for_status().json()
    return found
