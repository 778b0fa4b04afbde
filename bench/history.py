"""Give an installation a long history: copies of the runs that it has, by bulk inserts through both servers' own schemas.

A copy has all that its run has, with ids of its own, and lies further back in time: states, task runs, logs and artifacts in
Prefect, metrics, parameters, tags and logged models in MLflow. Events are copied for as long as Prefect keeps them.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.contract import FLOW_RUN_DAYS

EVENT_DAYS = 7  # for as long the server keeps events by default
BATCH_RUNS = 5000


@dataclass(frozen=True)
class Table:
    """A table of which rows are copied."""

    name: str
    of_runs: str
    """Which rows are those of the runs in the temporary table `template`."""
    ids: Sequence[str]
    """The columns with ids, in place of which a copy has its own."""
    id: str
    """The SQL of a copy's own id, from the `{column}` and the copy's number `n`."""


RUN_TASKS = "SELECT id FROM task_run WHERE flow_run_id IN (TABLE template)"
UUID = "md5({column}::text || n)::uuid"
PREFECT = [
    Table("flow_run", "id IN (TABLE template)", ["id", "state_id", "parent_task_run_id"], UUID),
    Table("flow_run_state", "flow_run_id IN (TABLE template)", ["id", "flow_run_id", "result_artifact_id"], UUID),
    Table("task_run", "flow_run_id IN (TABLE template)", ["id", "flow_run_id", "state_id"], UUID),
    Table("task_run_state", f"task_run_id IN ({RUN_TASKS})", ["id", "task_run_id", "result_artifact_id"], UUID),
    Table("log", "flow_run_id IN (TABLE template)", ["id", "flow_run_id", "task_run_id"], UUID),
    Table("artifact", "flow_run_id IN (TABLE template)", ["id", "flow_run_id", "task_run_id"], UUID),
]
OF_EVENTS = "resource_id ~ '^prefect[.](flow|task)-run[.]'"
EVENTS = [
    Table("events", OF_EVENTS, ["id"], UUID),
    Table("event_resources", f"event_id IN (SELECT id FROM events WHERE {OF_EVENTS})", ["id", "event_id"], UUID),
]
HEX = "md5({column} || n)"
MODEL = "'m-' || md5({column} || n)"
OF_MODELS = "model_id IN (SELECT model_id FROM logged_models WHERE source_run_id IN (TABLE template))"
MLFLOW = [
    Table("runs", "run_uuid IN (TABLE template)", ["run_uuid"], HEX),
    *(
        Table(name, "run_uuid IN (TABLE template)", ["run_uuid"], HEX)
        for name in ("metrics", "latest_metrics", "params", "tags")
    ),
    Table("logged_models", "source_run_id IN (TABLE template)", ["model_id"], MODEL),
    *(Table(name, OF_MODELS, ["model_id"], MODEL) for name in ("logged_model_params", "logged_model_tags")),
]
# An id follows upon 17 characters: prefect.flow-run. or prefect.task-run.
OTHERS: Mapping[tuple[str, str], str] = {
    ("flow_run", "idempotency_key"): "idempotency_key || '-' || n",
    ("events", "resource_id"): "left(resource_id, 17) || md5(substr(resource_id, 18) || n)::uuid",
    ("event_resources", "resource_id"): (
        f"CASE WHEN {OF_EVENTS} THEN left(resource_id, 17) || md5(substr(resource_id, 18) || n)::uuid ELSE resource_id END"
    ),
    ("logged_models", "source_run_id"): HEX.format(column="source_run_id"),
    ("runs", "artifact_uri"): "replace(artifact_uri, run_uuid, md5(run_uuid || n))",
}
"""What a copy has in other columns."""
MILLISECONDS = {"start_time", "end_time", "timestamp", "creation_timestamp_ms", "last_updated_timestamp_ms"}


@dataclass(frozen=True)
class Databases:
    """The databases of an installation that runs."""

    home: Path
    """Its checkout."""
    environment: Mapping[str, str]

    def query(self, database: str, sql: str) -> str:
        """Run SQL as the administrator; return what it prints."""
        command = ["docker", "compose", "exec", "-T", "postgres", "psql", "-qAtv", "ON_ERROR_STOP=1", "-d", database]
        result = subprocess.run(
            command, cwd=self.home, env=self.environment, input=sql, stdout=subprocess.PIPE, text=True, check=True
        )
        return result.stdout


def copy_statement(columns: Mapping[str, str], table: Table, step: float, first: int, last: int) -> str:
    """Return the SQL that adds copies of a table's rows.

    Args:
        columns: The table's columns and their types.
        table: The table.
        step: The seconds by which each copy lies further back.
        first: The number of the first copy.
        last: That of the last.
    """
    values = []
    for name, kind in columns.items():
        if name in table.ids:
            values.append(table.id.format(column=name))
        elif (table.name, name) in OTHERS:
            values.append(OTHERS[table.name, name])
        elif kind == "timestamp with time zone":
            values.append(f"{name} - n * interval '{step} seconds'")
        elif kind == "bigint" and name in MILLISECONDS:
            values.append(f'"{name}" - (n * {step * 1000})::bigint')
        else:
            values.append(f'"{name}"')
    names = ", ".join(f'"{name}"' for name in columns)
    return (
        f"INSERT INTO {table.name} ({names}) SELECT {', '.join(values)} FROM {table.name}_template, "
        f"generate_series({first}, {last}) AS n;"
    )


def fill(
    databases: Databases, database: str, template: str, tables: Sequence[Table], runs: int, span: float = 1.0
) -> None:
    """Add copies of runs to a database.

    Args:
        databases: Those of an installation that has runs.
        database: Its name.
        template: The SQL of the ids of the runs that are copied.
        tables: What is copied.
        runs: How many runs there are to be, about.
        span: The part of them, from the newest on, of which these tables have rows.

    Raises:
        SystemExit: There are no runs to copy.
    """
    columns: dict[str, dict[str, str]] = {}
    rows = databases.query(
        database,
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
        "AND is_generated = 'NEVER' ORDER BY table_name, ordinal_position",
    )
    for row in rows.splitlines():
        owner, name, kind = row.split("|")
        columns.setdefault(owner, {})[name] = kind
    number = int(databases.query(database, f"SELECT count(*) FROM ({template}) AS found"))
    if not number:
        sys.exit(f"The database {database} has no run that has ended: start one, then fill the installation.")
    step = FLOW_RUN_DAYS * 86400 * number / runs
    copies, batch = int(span * -(-runs // number)), max(1, BATCH_RUNS // number)
    # No foreign keys are checked while rows are inserted whose partners follow.
    script = [
        "SET session_replication_role = replica; SET synchronous_commit = off;",
        f"CREATE TEMPORARY TABLE template AS {template};",
        *(
            f"CREATE TEMPORARY TABLE {each.name}_template AS SELECT * FROM {each.name} WHERE {each.of_runs};"
            for each in tables
        ),
    ]
    for first in range(1, copies + 1, batch):
        last = min(first + batch - 1, copies)
        script += [copy_statement(columns[table.name], table, step, first, last) for table in tables]
    script.append("VACUUM ANALYZE;")
    databases.query(database, "\n".join(script))


def fill_both(databases: Databases, flow_runs: int, mlflow_runs: int) -> dict[str, int]:
    """Add copies of Prefect's and MLflow's runs; return how many there are now, and the databases' sizes in bytes."""
    ended = "SELECT id FROM flow_run WHERE state_type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED')"
    fill(databases, "prefect", ended, PREFECT, flow_runs)
    fill(databases, "prefect", ended, EVENTS, flow_runs, span=EVENT_DAYS / FLOW_RUN_DAYS)
    fill(databases, "mlflow", "SELECT run_uuid FROM runs WHERE status = 'FINISHED'", MLFLOW, mlflow_runs)
    return {
        "flow_runs": int(databases.query("prefect", "SELECT count(*) FROM flow_run")),
        "mlflow_runs": int(databases.query("mlflow", "SELECT count(*) FROM runs")),
        **{
            f"{database}_bytes": int(databases.query(database, f"SELECT pg_database_size('{database}')"))
            for database in ("prefect", "mlflow")
        },
    }


def main() -> None:
    """Fill the installation of this checkout, which runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flow_runs", type=int)
    parser.add_argument("mlflow_runs", type=int)
    arguments = parser.parse_args()
    print(fill_both(Databases(Path.cwd(), os.environ), arguments.flow_runs, arguments.mlflow_runs))


if __name__ == "__main__":
    main()
