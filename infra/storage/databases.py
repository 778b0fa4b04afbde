"""The sizes of the databases by group of tables."""

import re
from collections import Counter

from infra.backup.databases import DATABASES, Postgres

# The first pattern that matches the name of a table, or of what it is a partition of, gives the group.
GROUPS = {
    "prefect": {
        "runs, tasks and their states": "flow_run|task_run|flow_run_.*|task_run_.*",
        "logs": "log",
        "events": "event.*",
        "artifacts": "artifact.*",
    },
    "mlflow": {
        "metrics": "metrics|latest_metrics",
        "runs, parameters and tags": "runs|params|tags|inputs|input_tags|datasets",
        "models and versions": "logged_model.*|model_version.*|registered_model.*",
        "traces": "trace.*|span.*|assessment.*",
    },
    "serving": {"recorded predictions": "predictions.*", "labels": "labels.*"},
}
OTHER = "other"
SIZES = """
SELECT coalesce(parent.relname, c.relname) || ' ' || sum(pg_total_relation_size(c.oid))
FROM pg_class AS c
LEFT JOIN pg_inherits ON inhrelid = c.oid
LEFT JOIN pg_class AS parent ON parent.oid = inhparent
WHERE c.relkind = 'r' AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
GROUP BY coalesce(parent.relname, c.relname)
"""


def group_of(database: str, table: str) -> str:
    """Return the group of a table."""
    for group, pattern in GROUPS.get(database, {}).items():
        if re.fullmatch(pattern, table):
            return group
    return OTHER


def measure_databases(postgres: Postgres) -> dict[tuple[str, str], int]:
    """Return bytes by database and group, with indexes.

    Raises:
        BackupError: Postgres does not answer.
    """
    sizes: Counter[tuple[str, str]] = Counter()
    for database in DATABASES:
        for line in postgres.query(database, SIZES).splitlines():
            table, size = line.rsplit(" ", 1)
            sizes[database, group_of(database, table)] += int(size)
    return dict(sizes)
