"""Automations: what the Prefect server does by itself when something happens."""

from collections.abc import Iterable
from typing import Any

import httpx

from infra.provision.api import retry_transient
from trainyard.contract import Event, LostRun, Resource, RunTag, State

# Run or server may be away for a minute (docs/faults.md), and a heartbeat comes every 30 s
# (PREFECT_FLOWS_HEARTBEAT_FREQUENCY).
HEARTBEAT_WINDOW_SECONDS = 120
# Longer than a worker takes to start a run, with the installation of its dependencies if need be.
START_WINDOW_SECONDS = 600
# Longer than a worker takes to end a cancelled run (WARM_PROCESS_CANCEL_GRACE) and to run its hooks.
CANCEL_WINDOW_SECONDS = 120
FLOW_RUNS = f"{Event.FLOW_RUN}.*"
ENDED = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled", State.ALERT, State.ALERT_PERSISTS)
NOT_STARTED = ("Scheduled", "AwaitingRetry", State.AWAITING_RERUN, "AwaitingConcurrencySlot")
NOT_RUNNING = (*ENDED, *NOT_STARTED, "Paused", "Suspended")


def lost_run_automations(
    *,
    heartbeat_window: int = HEARTBEAT_WINDOW_SECONDS,
    start_window: int = START_WINDOW_SECONDS,
    cancel_window: int = CANCEL_WINDOW_SECONDS,
) -> list[dict[str, Any]]:
    """Return the automations that end runs of which nothing is heard, because worker or host are gone for good.

    Args:
        heartbeat_window: Seconds without a heartbeat after which a running run is crashed; at least 10, as the others.
        start_window: Seconds after which a run that a worker has claimed and not started is crashed.
        cancel_window: Seconds after which a run that is being cancelled is cancelled.
    """
    return [
        _lost_run_automation(
            Resource.CRASH_LOST_RUNS,
            "A run whose process died with its worker or host is marked as Crashed.",
            # Running as well: a process may die before its first heartbeat.
            after=[Event.FLOW_RUN_HEARTBEAT, Event.FLOW_RUN_RUNNING],
            expect=[Event.FLOW_RUN_HEARTBEAT, *_state_events(*NOT_RUNNING)],
            within=heartbeat_window,
            state="CRASHED",
            message=f"The flow run crashed: {LostRun.NO_HEARTBEAT} for {heartbeat_window} seconds.",
        ),
        _lost_run_automation(
            Resource.CRASH_UNSTARTED_RUNS,
            "A run that was claimed by a worker that died before it started the run is marked as Crashed.",
            after=[Event.FLOW_RUN_PENDING],
            expect=_state_events("Running", "Cancelling", *NOT_RUNNING),
            within=start_window,
            state="CRASHED",
            message=f"The flow run crashed: {LostRun.NOT_STARTED} for {start_window} seconds.",
        ),
        _lost_run_automation(
            Resource.CANCEL_LOST_RUNS,
            "A cancelled run whose worker is gone is marked as Cancelled.",
            after=[Event.FLOW_RUN_CANCELLING],
            expect=_state_events(*ENDED, *NOT_STARTED),
            within=cancel_window,
            state="CANCELLED",
            message=f"The flow run was cancelled; no worker ended it within {cancel_window} seconds.",
        ),
    ]


def _state_events(*names: str) -> list[str]:
    return [f"{Event.FLOW_RUN}.{name}" for name in names]


def _lost_run_automation(
    name: str, description: str, *, after: list[str], expect: list[str], within: int, state: str, message: str
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": after,
            "expect": expect,
            "match": {"prefect.resource.id": FLOW_RUNS},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": within,
        },
        "actions": [{"type": "change-flow-run-state", "state": state, "message": message}],
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
