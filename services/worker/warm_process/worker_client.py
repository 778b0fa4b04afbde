"""The worker's client: reads a deployment or flow once for all runs of a poll, and records which runs were claimed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import State
    from prefect.client.schemas.responses import OrchestrationResult


class WorkerClient:
    """A client that caches deployments and flows, and reports accepted claims.

    The worker clears the cache after each poll, so that whatever a run gets was read after the poll that found it: a
    deployment that was changed before its run was triggered is never seen in its former state.
    """

    def __init__(self, client: PrefectClient, on_claim: Callable[[UUID, UUID], None]) -> None:
        """Create a client.

        Args:
            client: The client that sends the requests.
            on_claim: Gets the id of a run that was claimed and that of its Pending state.
        """
        self._client = client
        self._on_claim = on_claim
        self._reads: dict[UUID, asyncio.Task[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def clear(self) -> None:
        """Clear the cache."""
        self._reads.clear()

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        result: OrchestrationResult[Any] = await self._client.set_flow_run_state(flow_run_id, state, force=force)
        # Named Submitting, it is the state of a run that was claimed before.
        if state.is_pending() and state.name == "Pending" and result.state and result.state.is_pending():
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
