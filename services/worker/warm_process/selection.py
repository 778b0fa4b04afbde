"""Chooses which of the scheduled runs a poll submits, and in which order.

The server returns the runs that are due, oldest first, no more than a page. Taken as they come, the runs of one deployment
that wait for a slot keep all others waiting (PrefectHQ/prefect#19403), and after a downtime every missed run of a schedule is
caught up.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from trainyard.contract import State
from warm_process.job import DEFAULT_LATE_RUNS

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

    from warm_process.worker_client import WorkerClient

# PREFECT_SERVER_API_DEFAULT_LIMIT: how many runs the server returns at most.
PAGE = 200
# The states of a run that has never started.
_UNSTARTED = {"Scheduled", "Late", State.AWAITING_SLOT}


class RunSelector:
    """Selects among the runs that the server returned to a poll."""

    def __init__(
        self,
        client: WorkerClient,
        server: PrefectClient,
        job_variables: Callable[[], Mapping[str, Any]],
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        """Create a selector.

        Args:
            client: The worker's client.
            server: The client behind it, which does not select.
            job_variables: Returns the defaults of the work pool.
            logger: Where skipped runs are logged.
        """
        self._client = client
        self._server = server
        self._job_variables = job_variables
        self._logger = logger
        self._selected: dict[UUID, UUID | None] = {}  # by run, the deployment
        self._turns: Counter[UUID | None] = Counter()  # by deployment, when it had its last turn

    async def select(
        self,
        found: Sequence[WorkerFlowRunResponse],
        *,
        work_pool_name: str,
        work_queue_names: Collection[str] | None,
        scheduled_before: datetime | None,
    ) -> list[WorkerFlowRunResponse]:
        """Return the runs to submit, in order; skip missed runs of schedules on the server.

        Args:
            found: What the server returned.
            work_pool_name: The work pool that was polled.
            work_queue_names: The queues that were polled; all of the pool if empty.
            scheduled_before: Until when the runs are due.

        Raises:
            httpx.HTTPError: The server refuses a request or is out of reach.
        """
        if len(found) >= PAGE:
            others = await self._runs_of_others(found, work_pool_name, work_queue_names, scheduled_before)
            found = [*found, *others]
        now = datetime.now(UTC)
        skipped = set()
        for run, newest in superseded([each.flow_run for each in found], now):
            if await self._skips(run) and await self._skip(run, newest):
                skipped.add(run.id)
        waiting = {each.flow_run.deployment_id for each in found if is_waiting(each.flow_run)}
        free = {id_: await self._free_slots(id_) for id_ in waiting if id_}
        # A run that was refused a slot is due later than before; it keeps its place all the same.
        by_age = sorted(found, key=lambda each: each.flow_run.expected_start_time or now)
        selected = without_blocked((each for each in by_age if each.flow_run.id not in skipped), free)
        self._selected = {each.flow_run.id: each.flow_run.deployment_id for each in selected}
        return in_turn(selected, self._turns, queues=list(dict.fromkeys(each.work_queue_id for each in found)))

    def note_submission(self, flow_run_id: UUID) -> None:
        """Note that a run was submitted, whether the server accepts that or not: its deployment had a turn."""
        if flow_run_id in self._selected:
            self._turns[self._selected[flow_run_id]] = max(self._turns.values(), default=0) + 1

    async def _runs_of_others(
        self,
        found: Sequence[WorkerFlowRunResponse],
        pool: str,
        queue_names: Collection[str] | None,
        before: datetime | None,
    ) -> list[WorkerFlowRunResponse]:
        """Read the due runs of the queues and deployments that a full page has no run of.

        Of a queue with a limit that has filled the page no other deployment is read, because only the server's own
        selection counts its runs.
        """
        all_queues = await self._server.read_work_queues(work_pool_name=pool)
        polled = [each for each in all_queues if not each.is_paused and (not queue_names or each.name in queue_names)]
        in_page = {each.work_queue_id for each in found}
        missing = [queue.name for queue in polled if queue.id not in in_page]
        in_missing_queues: list[WorkerFlowRunResponse] = []
        if missing:
            in_missing_queues = await self._server.get_scheduled_flow_runs_for_work_pool(
                pool, work_queue_names=missing, scheduled_before=before
            )
        seen = {each.flow_run.deployment_id for each in (*found, *in_missing_queues)}
        in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        others = [each.id for each in await self._server.read_deployments(work_pool_filter=in_pool)]
        others = [id_ for id_ in others if id_ not in seen]
        if not others:
            return in_missing_queues
        without_limit = {queue.id for queue in polled if queue.id in in_page and queue.concurrency_limit is None}
        runs = await self._server.get_scheduled_flow_runs_for_deployments(others, scheduled_before=before)
        of_others = [
            WorkerFlowRunResponse(work_pool_id=found[0].work_pool_id, work_queue_id=run.work_queue_id, flow_run=run)
            for run in runs
            if run.work_queue_id in without_limit and run.empirical_policy.retry_type != "in_process"
        ]
        return [*of_others, *in_missing_queues]

    async def _skips(self, run: FlowRun) -> bool:
        deployment = await self._read_deployment(run.deployment_id)
        variables = {**self._job_variables(), **(deployment.job_variables if deployment else {})}
        return bool(variables.get("late_runs", DEFAULT_LATE_RUNS) == "newest")

    async def _skip(self, run: FlowRun, newest: FlowRun) -> bool:
        """Cancel a missed run; return whether it is cancelled."""
        due = newest.expected_start_time
        message = (
            f"Skipped: its schedule was due again at {due:%Y-%m-%d %H:%M:%S} UTC before it could start. With the job variable"
            " late_runs: all, every missed run is caught up."
        )
        try:
            state: Any = Cancelled(name=State.SKIPPED, message=message)
            result = await self._client.set_flow_run_state(run.id, state)
        except ObjectNotFound:
            return True
        self._logger.info("Flow run %s (%s): %s", run.id, run.name, message)
        return bool(result.state and result.state.is_cancelled())

    async def _free_slots(self, deployment_id: UUID) -> int:
        deployment = await self._read_deployment(deployment_id)
        limit = deployment.global_concurrency_limit if deployment else None
        return max(0, limit.limit - limit.active_slots) if limit and limit.active else PAGE  # no limit

    async def _read_deployment(self, deployment_id: UUID | None) -> DeploymentResponse | None:
        try:
            return await self._client.read_deployment(deployment_id) if deployment_id else None
        except ObjectNotFound:
            return None


def is_waiting(run: FlowRun) -> bool:
    """Tell whether the server has refused a run a slot of its deployment's concurrency limit."""
    return run.state is not None and run.state.name == State.AWAITING_SLOT


def superseded(runs: Iterable[FlowRun], now: datetime) -> list[tuple[FlowRun, FlowRun]]:
    """Pair each run of a schedule that is due and has never started with the newest such run of the same schedule."""
    due: defaultdict[tuple[UUID | None, UUID | None], list[FlowRun]] = defaultdict(list)
    for run in runs:
        if (
            run.created_by
            and run.created_by.type == "SCHEDULE"
            and run.state
            and run.state.name in _UNSTARTED
            and not run.run_count
            and run.expected_start_time
            and run.expected_start_time <= now
        ):
            due[run.deployment_id, run.created_by.id].append(run)
    pairs = []
    for late in due.values():
        *older, newest = sorted(late, key=lambda run: run.expected_start_time or now)
        pairs += [(run, newest) for run in older]
    return pairs


def without_blocked(found: Iterable[WorkerFlowRunResponse], free: Mapping[UUID, int]) -> list[WorkerFlowRunResponse]:
    """Leave out the waiting runs for which their deployment has no slot; `free` has its number by deployment.

    A run that has not been refused yet is submitted in any case: the server refuses it, or cancels it where the
    deployment's strategy says so.
    """
    left = dict(free)
    kept = []
    for each in found:
        id_ = each.flow_run.deployment_id
        if id_ and is_waiting(each.flow_run):
            if not left[id_]:
                continue
            left[id_] -= 1
        kept.append(each)
    return kept


def in_turn(
    found: Iterable[WorkerFlowRunResponse], turns: Mapping[UUID | None, int], *, queues: Sequence[UUID]
) -> list[WorkerFlowRunResponse]:
    """Order runs so that the deployments of a queue take turns.

    Args:
        found: The runs.
        turns: By deployment, when it had its last turn; 0 for one that had none.
        queues: The queues in their order, which is kept.
    """
    by_queue: dict[UUID, dict[UUID | None, list[WorkerFlowRunResponse]]] = {queue: {} for queue in queues}
    for each in found:
        by_queue[each.work_queue_id].setdefault(each.flow_run.deployment_id, []).append(each)
    return [
        each
        for by_deployment in by_queue.values()
        for turn in zip_longest(
            *(by_deployment[id_] for id_ in sorted(by_deployment, key=lambda id_: turns.get(id_, 0)))
        )
        for each in turn
        if each is not None
    ]
