"""The worker's client: selects runs, reads a deployment or flow once for all of a poll, and records which were claimed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.responses import SetStateStatus

from warm_process.selection import RunSelector

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Coroutine, Mapping
    from datetime import datetime

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import State
    from prefect.client.schemas.responses import OrchestrationResult, WorkerFlowRunResponse


class WorkerClient:
    """A client that caches deployments and flows, selects among scheduled runs, and reports accepted and refused claims.

    The worker clears the cache after each poll, so that whatever a run gets was read after the poll that found it: a
    deployment that was changed before its run was triggered is never seen in its former state.
    """

    def __init__(
        self,
        client: PrefectClient,
        *,
        on_claim: Callable[[UUID, UUID], None],
        on_refusal: Callable[[], None],
        job_variables: Callable[[], Mapping[str, Any]],
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        """Create a client.

        Args:
            client: The client that sends the requests.
            on_claim: Gets the id of a run that was claimed and that of its Pending state.
            on_refusal: Called when the server refuses a claim.
            job_variables: Returns the defaults of the work pool.
            logger: Where skipped runs are logged.
        """
        self._client = client
        self._on_claim = on_claim
        self._on_refusal = on_refusal
        self._selector = RunSelector(self, client, job_variables, logger)
        self._reads: dict[UUID, asyncio.Task[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def clear(self) -> None:
        """Clear the cache."""
        self._reads.clear()

    async def get_scheduled_flow_runs_for_work_pool(
        self,
        work_pool_name: str,
        work_queue_names: list[str] | None = None,
        scheduled_before: datetime | None = None,
    ) -> list[WorkerFlowRunResponse]:
        found = await self._client.get_scheduled_flow_runs_for_work_pool(
            work_pool_name, work_queue_names=work_queue_names, scheduled_before=scheduled_before
        )
        return await self._selector.select(
            found,
            work_pool_name=work_pool_name,
            work_queue_names=work_queue_names,
            scheduled_before=scheduled_before,
        )

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        if state.is_pending():
            self._selector.note_submission(UUID(str(flow_run_id)))
        result: OrchestrationResult[Any] = await self._client.set_flow_run_state(flow_run_id, state, force=force)
        # Named Submitting, it is the state of a run that was claimed before.
        if state.is_pending() and state.name == "Pending" and result.state:
            if not result.state.is_pending():
                self._on_refusal()
            elif result.status != SetStateStatus.ABORT:  # else it is the claim of another worker
                # Also where it is REJECT: the server has accepted it before, and its answer was lost.
                self._on_claim(UUID(str(flow_run_id)), result.state.id)
        return result

    async def read_deployment(self, deployment_id: UUID) -> Any:
        return await self._read(deployment_id, self._client.read_deployment)

    async def read_flow(self, flow_id: UUID) -> Any:
        return await self._read(flow_id, self._client.read_flow)

    async def _read(self, id_: UUID, read: Callable[[UUID], Coroutine[Any, Any, Any]]) -> Any:
        if id_ not in self._reads:
            self._reads[id_] = asyncio.create_task(read(id_))
        task = self._reads[id_]
        try:
            result = await asyncio.shield(task)
        except Exception:
            if self._reads.get(id_) is task:
                del self._reads[id_]
            raise
        # A copy, because Prefect adds the job variables of a run to those of the deployment in place.
        return result.model_copy(deep=True)
