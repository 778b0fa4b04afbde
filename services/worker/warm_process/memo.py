"""Reads a deployment or flow once for all runs that one poll has found, and not twice for each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.orchestration import PrefectClient


class RememberingClient:
    """A client that remembers deployments and flows until it is told to forget.

    The worker forgets after each poll, so what a run gets was read after the run had been found: a
    deployment that was changed before a run was triggered is never seen as it was.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._known: dict[tuple[str, UUID], asyncio.Task[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def forget(self) -> None:
        """Read everything anew from here on."""
        self._known.clear()

    async def read_deployment(self, deployment_id: UUID) -> Any:
        return await self._read("deployment", deployment_id, self._client.read_deployment)

    async def read_flow(self, flow_id: UUID) -> Any:
        return await self._read("flow", flow_id, self._client.read_flow)

    async def _read(self, kind: str, id_: UUID, read: Callable[[UUID], Awaitable[Any]]) -> Any:
        key = (kind, id_)
        if key not in self._known:
            self._known[key] = asyncio.ensure_future(_call(read, id_))
        task = self._known[key]
        try:
            found = await asyncio.shield(task)
        except Exception:
            if self._known.get(key) is task:
                del self._known[key]
            raise
        # A copy: Prefect adds the job variables of a run to those of the deployment in place.
        return found.model_copy(deep=True)


async def _call(read: Callable[[UUID], Awaitable[Any]], id_: UUID) -> Any:
    return await read(id_)
