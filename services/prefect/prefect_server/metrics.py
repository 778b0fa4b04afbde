"""Metrics for Prometheus that only Prefect's database has: runs by state, and the workers that are online."""

import asyncio

import asyncpg
from prometheus_client import Gauge

from prefect_server.schema import connect

MAX_SECONDS = 5.0
EVERY_STATE = ("Scheduled", "Late", "Pending", "Running")
"""States that are shown even where no run has them."""
RUNS = Gauge("trainyard_flow_runs", "Flow runs that have not ended, by state.", ["state"])
ENDED_RUNS = Gauge("trainyard_flow_runs_last_hour", "Flow runs that ended in the last hour, by state.", ["state"])
WORKERS = Gauge(
    "trainyard_workers_online", "Workers whose heartbeat is not overdue, by work pool that is not paused.", ["pool"]
)

COUNT_RUNS = """
SELECT state_name, count(*) FROM flow_run
WHERE state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'PAUSED', 'CANCELLING') GROUP BY state_name
"""
COUNT_ENDED_RUNS = """
SELECT state_name, count(*) FROM flow_run
WHERE end_time > now() - interval '1 hour' AND state_type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED')
GROUP BY state_name
"""
# After three intervals Prefect too takes a worker for offline.
COUNT_WORKERS = """
SELECT work_pool.name, count(worker.id) FROM work_pool LEFT JOIN worker ON worker.work_pool_id = work_pool.id
AND worker.last_heartbeat_time > now() - 3 * coalesce(worker.heartbeat_interval_seconds, 30) * interval '1 second'
WHERE NOT work_pool.is_paused GROUP BY work_pool.name
"""


async def refresh() -> None:
    """Read the metrics anew; where the database does not answer there are none."""
    try:
        async with asyncio.timeout(MAX_SECONDS), connect() as database:
            runs, ended, workers = [
                dict(await database.fetch(query)) for query in (COUNT_RUNS, COUNT_ENDED_RUNS, COUNT_WORKERS)
            ]
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        print(f"The metrics of runs and workers could not be read: {type(error).__name__}: {error}", flush=True)
        runs, ended, workers = {}, {}, {}
    else:
        runs = dict.fromkeys(EVERY_STATE, 0) | runs
    for gauge, counts in ((RUNS, runs), (ENDED_RUNS, ended), (WORKERS, workers)):
        gauge.clear()
        for label, count in counts.items():
            gauge.labels(label).set(count)
