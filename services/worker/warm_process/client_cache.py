"""Reads a deployment or flow once for all runs that one poll has found, instead of twice for each run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect.client.orchestration import PrefectClient


class CachingClient:
    """A client that caches deployments and flows.

    The worker clears the cache after each poll, so that whatever a run gets was read after the poll that found it: a
    deployment that was changed before its run was triggered is never seen in its former state.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._reads: dict[UUID, asyncio.Task[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def clear(self) -> None:
        """Clear the cache."""
        self._reads.clear()

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
