"""Queries to Prefect: runs with their components and tasks, schedules, failures, work pools, and what is wrong."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from dashboard.rest import RestClient
from trainyard.contract import Resource, State
from trainyard.diagnosis import examine_prefect

TOP_LEVEL = {"parent_task_run_id": {"is_null_": True}}
STARTED_TYPES = ["RUNNING", "PENDING", "CANCELLING", "PAUSED", *sorted(State.FINAL_TYPES)]
QUEUE_STATES = ("Running", "Pending", "Late")
MAX_TASKS, TASK_PAGE, LIST_PAGE = 2000, 200, 200
CACHE_RUNS = 1000
RUN_FIELDS = ("id", "name", "flow_id", "state_type", "state_name", "start_time", "end_time", "run_count",
              "next_scheduled_start_time")  # fmt: skip
POOL_FIELDS = ("name", "type", "is_paused", "concurrency_limit")


class PrefectSource:
    """Queries to Prefect.

    Raises:
        SourceError: From every method: Prefect does not answer as it should.
    """

    def __init__(self, client: RestClient) -> None:
        self._prefect = client
        self._details_of_ended: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def read_runs(self, page: int, rows: int, flow: str | None, seconds: float = math.inf) -> dict[str, Any]:
        """Return a page of the started runs, newest first, with their components and counts of tasks.

        Args:
            page: From 1.
            rows: Runs per page.
            flow: Only its runs; None lists those of all flows but the mails'.
            seconds: Only runs that were due within the last seconds.
        """
        names, deployments = await asyncio.gather(self._flow_names(), self._read_all("/deployments/filter"))
        query: dict[str, Any] = {
            "flow_runs": {**TOP_LEVEL, "state": {"type": {"any_": STARTED_TYPES}}},
            # Mails outnumber the runs that they are about, so they are listed on request only.
            "flows": {"name": {"any_": [flow] if flow else sorted({*names.values()} - {Resource.SEND_MAIL})}},
            "sort": "START_TIME_DESC",
            "page": page,
            "limit": rows,
        }
        if math.isfinite(seconds):
            # Pending runs have no start time yet.
            since = datetime.now(UTC) - timedelta(seconds=seconds)
            query["flow_runs"]["expected_start_time"] = {"after_": since.isoformat()}
        result = await self._prefect.post("/flow_runs/paginate", query)
        runs = [select_fields(run, RUN_FIELDS) | {"waits_for": waits_for(run)} for run in result["results"]]
        await self._add_details(runs)
        for run in runs:
            for each in (run, *run["components"]):
                each["flow"] = names.get(each["flow_id"], "")
        choices = {names.get(deployment["flow_id"], "") for deployment in deployments} or set(names.values())
        choices = (choices | {flow or ""}) - {""}
        return {"runs": runs, "count": result["count"], "pages": result["pages"], "flows": sorted(choices)}

    async def schedule_summary(self) -> dict[str, Any]:
        """Return each flow's next scheduled run, the last failure, and how the runs of the last seven days ended."""
        now = datetime.now(UTC)
        scheduled = {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "next_scheduled_start_time": {"after_": now.isoformat()},
        }
        failed = {**TOP_LEVEL, "state": {"type": {"any_": ["FAILED", "CRASHED"]}}}
        completed = {**TOP_LEVEL, "state": {"type": {"any_": ["COMPLETED"]}}}
        week_ago = (now - timedelta(days=7)).replace(minute=0, second=0, microsecond=0)
        this_week = {"start_time": {"after_": week_ago.isoformat()}}
        upcoming, failures, completed_count, failed_count, names = await asyncio.gather(
            self._flow_runs(scheduled, "NEXT_SCHEDULED_START_TIME_ASC", LIST_PAGE),
            self._flow_runs(failed, "END_TIME_DESC", 1),
            self._count({**completed, **this_week}),
            self._count({**failed, **this_week}),
            self._flow_names(),
        )

        def with_flow(run: dict[str, Any]) -> dict[str, Any]:
            return {**select_fields(run, RUN_FIELDS), "flow": names.get(run["flow_id"], "")}

        next_of_flow: dict[str, dict[str, Any]] = {}
        for run in upcoming:
            next_of_flow.setdefault(run["flow_id"], run)
        last = [with_flow(run) | {"message": run["state"].get("message") or ""} for run in failures]
        return {
            "next": [with_flow(run) for run in next_of_flow.values()],
            "failure": last[0] if last else None,
            "completed": completed_count,
            "failed": failed_count,
        }

    async def diagnose(self) -> dict[str, Any]:
        """Return what is wrong as far as Prefect tells now, and what `make doctor` found last; None if it never ran.

        A finding is a problem and its remedy.
        """
        variable = await self._prefect.find(f"/variables/name/{Resource.DIAGNOSIS}")
        examination = examine_prefect(datetime.now(UTC))
        try:
            path, body = next(examination)
            while True:
                path, body = examination.send(await self._prefect.post(path, body))
        except StopIteration as end:
            findings = [[finding.problem, finding.remedy] for finding in end.value]
        return {"findings": findings, "report": variable and variable["value"]}

    async def list_pools(self) -> list[dict[str, Any]]:
        """Return the work pools with their queues, workers and counts of unfinished runs."""
        pools = await self._prefect.post("/work_pools/filter", {"limit": 50})
        return list(await asyncio.gather(*(self._read_pool(pool) for pool in pools)))

    async def _read_pool(self, pool: dict[str, Any]) -> dict[str, Any]:
        name = pool["name"]
        queues, workers, *counts = await asyncio.gather(
            self._prefect.post(f"/work_pools/{name}/queues/filter", {"limit": 50}),
            self._prefect.post(f"/work_pools/{name}/workers/filter", {"limit": 50}),
            *(self._count({"state": {"name": {"any_": [state]}}}, pool=name) for state in QUEUE_STATES),
        )
        return {
            **select_fields(pool, POOL_FIELDS),
            "queues": [select_fields(queue, ("name", "status", "concurrency_limit")) for queue in queues],
            "workers": [select_fields(worker, ("name", "status", "last_heartbeat_time")) for worker in workers],
            "runs": dict(zip(QUEUE_STATES, counts, strict=True)),
        }

    async def _flow_names(self) -> dict[str, str]:
        """Return the flows' names by id."""
        return {flow["id"]: flow["name"] for flow in await self._read_all("/flows/filter")}

    async def _read_all(self, path: str) -> list[dict[str, Any]]:
        """Return all items of a list that Prefect gives a page at a time."""
        items: list[dict[str, Any]] = []
        while True:
            query = {"limit": LIST_PAGE, "offset": len(items), "sort": "NAME_ASC"}
            page = await self._prefect.post(path, query)
            items += page
            if len(page) < LIST_PAGE:
                return items

    async def _add_details(self, runs: list[dict[str, Any]]) -> None:
        """Add components and counts of tasks to runs; those of ended runs come from a cache."""
        missing = [run["id"] for run in runs if run["id"] not in self._details_of_ended]
        details = await self._details(missing) if missing else {}
        for run in runs:
            found = self._details_of_ended.get(run["id"]) or details[run["id"]]
            if all(each["state_type"] in State.FINAL_TYPES for each in (run, *found["components"])):
                self._details_of_ended[run["id"]] = found
                self._details_of_ended.move_to_end(run["id"])
            run |= {**found, "components": [dict(component) for component in found["components"]]}
        while len(self._details_of_ended) > CACHE_RUNS:
            self._details_of_ended.popitem(last=False)

    async def _details(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return components and counts of tasks by run; a component is a subflow, which a task run stands for."""
        placeholders, subflows = await asyncio.gather(
            self._task_runs(ids, of_subflows=True),
            self._flow_runs({"parent_flow_run_id": {"any_": ids}}, "START_TIME_ASC", 200),
        )
        run_of_placeholder = {task["id"]: task["flow_run_id"] for task in placeholders}
        run_of_subflow = {subflow["id"]: run_of_placeholder.get(subflow["parent_task_run_id"]) for subflow in subflows}
        tasks = await self._task_runs([*ids, *run_of_subflow], of_subflows=False)
        details: dict[str, dict[str, Any]] = {
            run_id: {"components": [], "tasks": 0, "cached": 0, "retries": 0} for run_id in ids
        }
        for subflow in subflows:
            if (owner := run_of_subflow[subflow["id"]]) in details:
                details[owner]["components"].append(select_fields(subflow, RUN_FIELDS))
        for task in tasks:
            counts = details.get(run_of_subflow.get(task["flow_run_id"]) or task["flow_run_id"])
            if counts is not None:
                counts["tasks"] += 1
                counts["cached"] += task["state_name"] == State.CACHED
                counts["retries"] += max(0, (task["run_count"] or 0) - 1)
        return details

    async def _flow_runs(self, criteria: dict[str, Any], sort: str, limit: int) -> list[dict[str, Any]]:
        query = {"flow_runs": criteria, "sort": sort, "limit": limit}
        runs: list[dict[str, Any]] = await self._prefect.post("/flow_runs/filter", query)
        return runs

    async def _count(self, criteria: dict[str, Any], pool: str | None = None) -> int:
        query: dict[str, Any] = {"flow_runs": criteria}
        if pool:
            query["work_pools"] = {"name": {"any_": [pool]}}
        return int(await self._prefect.post("/flow_runs/count", query))

    async def _task_runs(self, run_ids: Iterable[str], *, of_subflows: bool) -> list[dict[str, Any]]:
        """Return the task runs that stand for subflows, or all others."""
        query: dict[str, Any] = {
            "flow_runs": {"id": {"any_": list(run_ids)}},
            "task_runs": {"subflow_runs": {"exists_": of_subflows}},
            "sort": "ID_DESC",
            "limit": TASK_PAGE,
        }
        tasks: list[dict[str, Any]] = []
        while len(tasks) < MAX_TASKS:
            page = await self._prefect.post("/task_runs/filter", query | {"offset": len(tasks)})
            tasks += page
            if len(page) < TASK_PAGE:
                break
        return tasks


def select_fields(item: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return some fields of an item of an answer."""
    return {name: item.get(name) for name in names}


def waits_for(run: Mapping[str, Any]) -> str:
    """Return which lock a run waits for and who holds it, or nothing."""
    return (run["state"] or {}).get("message") or "" if run["state_name"] == State.WAITING else ""
