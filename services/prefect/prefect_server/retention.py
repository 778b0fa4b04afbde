"""How long Prefect keeps runs and events, in days, for its own service that deletes them (`db_vacuum`)."""

from collections.abc import MutableMapping

from trainyard.contract import FLOW_RUN_DAYS, MAX_DAYS
from trainyard.servers.days import read_days

MIN_FLOW_RUN_DAYS = 14
"""The monitor looks for alerts and retrainings of the last week."""
EVENT_DAYS = 7


def set_retention(environment: MutableMapping[str, str]) -> None:
    """Set Prefect's variables from RETENTION_FLOW_RUN_DAYS and RETENTION_EVENT_DAYS; 0 keeps everything.

    Logs, task runs, states and artifacts are deleted with their run. Call it before Prefect's server is imported, which reads
    them then.

    Args:
        environment: The process's variables.

    Raises:
        SystemExit: One is no number of days; the message names it.
    """
    runs = read_days("Prefect", environment, "RETENTION_FLOW_RUN_DAYS", FLOW_RUN_DAYS, MIN_FLOW_RUN_DAYS)
    events = read_days("Prefect", environment, "RETENTION_EVENT_DAYS", EVENT_DAYS)
    enabled = [name for name, days in (("events", events), ("flow_runs", runs)) if days]
    environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] = ",".join(enabled)
    environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"] = f"P{runs or MAX_DAYS}D"
    environment["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"] = f"P{events or MAX_DAYS}D"
