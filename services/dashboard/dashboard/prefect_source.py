"""What is read from Prefect: runs with their components and tasks, schedules, failures, and the work pools."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from dashboard.upstream import Upstream

TOP = {"parent_task_run_id": {"is_null_": True}}
MAILS = {"send-mail"}
UNDER_WAY = ["RUNNING", "PENDING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING", "PAUSED"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
MOST_TASKS, TASK_PAGE, KEPT_RUNS = 2000, 200, 1000
SHOWN = ("id", "name", "flow_id", "state_type", "state_name", "start_time", "end_time", "total_run_time", "run_count",
         "expected_start_time", "next_scheduled_start_time", "deployment_id")  # fmt: skip


class PrefectSource:
    """Questions to Prefect; each raises SourceError where it does not answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._prefect = upstream
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def page_of_runs(self, page: int, rows: int, flow: str | None) -> dict[str, Any]:
        """Return a page of the runs that have begun, newest first, each with its components and tasks counted."""
        names, deployed = await asyncio.gather(self.flows(), self._prefect.post("/deployments/filter", {"limit": 200}))
        query: dict[str, Any] = {
            "flow_runs": {**TOP, "state": {"type": {"any_": UNDER_WAY}}},
            # Mails outnumber what they are about: they show where they are asked for.
            "flows": {"name": {"any_": [flow] if flow else sorted({*names.values()} - MAILS)}},
            "sort": "START_TIME_DESC",
            "page": page,
            "limit": rows,
        }
        found = await self._prefect.post("/flow_runs/paginate", query)
        runs = [trimmed(run) for run in found["results"]]
        await self._add_details(runs)
        for run in runs:
            for each in (run, *run["components"]):
                each["flow"] = names.get(each["flow_id"], "")
        offered = {names.get(deployment["flow_id"], "") for deployment in deployed} or set(names.values())
        offered = (offered | {flow or ""}) - {""}
        return {"runs": runs, "count": found["count"], "pages": found["pages"], "flows": sorted(offered)}

    async def flows(self) -> dict[str, str]:
        """Return the flows' names by id."""
        found = await self._prefect.post("/flows/filter", {"limit": 200, "sort": "NAME_ASC"})
        return {flow["id"]: flow["name"] for flow in found}

    async def outlook(self) -> dict[str, Any]:
        """Return what is scheduled next, the last failure, and how the last week's runs ended."""
        now = datetime.now(UTC)
        scheduled = {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "next_scheduled_start_time": {"after_": now.isoformat()},
        }
        failed = {**TOP, "state": {"type": {"any_": ["FAILED", "CRASHED"]}}}
        completed = {**TOP, "state": {"type": {"any_": ["COMPLETED"]}}}
        week = {
            "start_time": {"after_": (now - timedelta(days=7)).replace(minute=0, second=0, microsecond=0).isoformat()}
        }
        following, failures, good, bad, names = await asyncio.gather(
            self._runs(scheduled, "NEXT_SCHEDULED_START_TIME_ASC", 5),
            self._runs(failed, "END_TIME_DESC", 1),
            self._count({**completed, **week}),
            self._count({**failed, **week}),
            self.flows(),
        )
        return {
            "next": [trimmed(run) | {"flow": names.get(run["flow_id"], "")} for run in following],
            "failure": next(
                (
                    trimmed(run) | {"flow": names.get(run["flow_id"], ""), "message": run["state"].get("message") or ""}
                    for run in failures
                ),
                None,
            ),
            "completed": good,
            "failed": bad,
        }

    async def pools(self) -> list[dict[str, Any]]:
        """Return the work pools with their queues, their workers, and how many runs wait or go on."""
        pools = await self._prefect.post("/work_pools/filter", {"limit": 50})
        found: list[dict[str, Any]] = await asyncio.gather(*(self._pool(pool) for pool in pools))
        return found

    async def _pool(self, pool: dict[str, Any]) -> dict[str, Any]:
        name = pool["name"]
        states = ("Running", "Pending", "Late")
        queues, workers, *counts = await asyncio.gather(
            self._prefect.post(f"/work_pools/{name}/queues/filter", {"limit": 50}),
            self._prefect.post(f"/work_pools/{name}/workers/filter", {"limit": 50}),
            *(self._count({"state": {"name": {"any_": [state]}}}, pool=name) for state in states),
        )
        return {
            **{key: pool.get(key) for key in ("name", "type", "status", "is_paused", "concurrency_limit")},
            "queues": [
                {
                    key: queue.get(key)
                    for key in ("name", "status", "is_paused", "concurrency_limit", "last_polled", "priority")
                }
                for queue in queues
            ],
            "workers": [
                {key: worker.get(key) for key in ("name", "status", "last_heartbeat_time")} for worker in workers
            ],
            "runs": dict(zip(states, counts, strict=True)),
        }

    async def _add_details(self, runs: list[dict[str, Any]]) -> None:
        """Give each run its components and its tasks' counts; those of runs that have ended are kept."""
        wanted = [run["id"] for run in runs if run["id"] not in self._ended]
        details = await self._details(wanted) if wanted else {}
        for run in runs:
            known = self._ended.get(run["id"]) or details[run["id"]]
            if run["state_type"] in ENDED and all(part["state_type"] in ENDED for part in known["components"]):
                self._ended[run["id"]] = known
                self._ended.move_to_end(run["id"])
            run |= {**known, "components": [dict(part) for part in known["components"]]}
        while len(self._ended) > KEPT_RUNS:
            self._ended.popitem(last=False)

    async def _details(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        parents, children = await asyncio.gather(
            self._tasks(ids, components=True),
            self._runs({"parent_flow_run_id": {"any_": ids}}, "START_TIME_ASC", 200),
        )
        run_of_task = {task["id"]: task["flow_run_id"] for task in parents}
        run_of_part = {child["id"]: run_of_task.get(child["parent_task_run_id"]) for child in children}
        tasks = await self._tasks([*ids, *run_of_part], components=False)
        details: dict[str, dict[str, Any]] = {
            each: {"components": [], "tasks": 0, "cached": 0, "retries": 0} for each in ids
        }
        for child in children:
            if (owner := run_of_part[child["id"]]) in details:
                details[owner]["components"].append(trimmed(child))
        for task in tasks:
            counts = details.get(run_of_part.get(task["flow_run_id"]) or task["flow_run_id"])
            if counts is not None:
                counts["tasks"] += 1
                counts["cached"] += task["state_name"] == "Cached"
                counts["retries"] += max(0, (task["run_count"] or 0) - 1)
        return details

    async def _runs(self, which: dict[str, Any], sort: str, most: int) -> list[dict[str, Any]]:
        query = {"flow_runs": which, "sort": sort, "limit": most}
        found: list[dict[str, Any]] = await self._prefect.post("/flow_runs/filter", query)
        return found

    async def _count(self, which: dict[str, Any], pool: str | None = None) -> int:
        query: dict[str, Any] = {"flow_runs": which}
        if pool:
            query["work_pools"] = {"name": {"any_": [pool]}}
        return int(await self._prefect.post("/flow_runs/count", query))

    async def _tasks(self, runs: Iterable[str], *, components: bool) -> list[dict[str, Any]]:
        """Return the tasks of runs: those that stand for a component, or the others."""
        query: dict[str, Any] = {
            "flow_runs": {"id": {"any_": list(runs)}},
            "task_runs": {"subflow_runs": {"exists_": components}},
            "sort": "ID_DESC",
            "limit": TASK_PAGE,
        }
        found: list[dict[str, Any]] = []
        while len(found) < MOST_TASKS:
            page = await self._prefect.post("/task_runs/filter", query | {"offset": len(found)})
            found += page
            if len(page) < TASK_PAGE:
                break
        return found


def trimmed(run: dict[str, Any]) -> dict[str, Any]:
    """Return of a flow run what the page needs."""
    return {key: run.get(key) for key in SHOWN}
