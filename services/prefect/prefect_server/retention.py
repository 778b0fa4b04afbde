"""How long Prefect keeps runs and events, in days, for its own service that deletes them (`db_vacuum`)."""

import sys
from collections.abc import MutableMapping

FLOW_RUN_DAYS, MIN_FLOW_RUN_DAYS = 90, 14
"""The monitor looks for alerts and retrainings of the last week."""
EVENT_DAYS = 7
MAX_DAYS = 36_500


def set_retention(environment: MutableMapping[str, str]) -> None:
    """Set Prefect's variables from RETENTION_FLOW_RUN_DAYS and RETENTION_EVENT_DAYS; 0 keeps everything.

    Logs, task runs, states and artifacts are deleted with their run. Call it before Prefect's server is imported, which reads
    them then.

    Args:
        environment: The process's variables.

    Raises:
        SystemExit: One is no number of days; the message names it.
    """
    runs = read_days(environment, "RETENTION_FLOW_RUN_DAYS", FLOW_RUN_DAYS, MIN_FLOW_RUN_DAYS)
    events = read_days(environment, "RETENTION_EVENT_DAYS", EVENT_DAYS, 1)
    enabled = [name for name, days in (("events", events), ("flow_runs", runs)) if days]
    environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] = ",".join(enabled)
    environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"] = f"P{runs or MAX_DAYS}D"
    environment["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] = f"P{events or MAX_DAYS}D"


def read_days(environment: MutableMapping[str, str], name: str, default: int, least: int) -> int:
    """Return a setting in days, or the default where it is not set.

    Raises:
        SystemExit: It is neither 0 nor a whole number from `least` to MAX_DAYS.
    """
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not (int(text) == 0 or least <= int(text) <= MAX_DAYS):
        sys.exit(
            f"Prefect does not start: {name} is {text!r} and must be a whole number of days from {least}, or 0 for no end."
        )
    return int(text)
