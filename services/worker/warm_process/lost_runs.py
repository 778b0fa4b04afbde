"""Runs again what the server has ended because nothing was heard of its worker: that host is gone, or cut off."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter, WorkPoolFilterName
from prefect.exceptions import ObjectNotFound

from trainyard.contract import LostRun, is_lost
from trainyard.locks import lock
from warm_process.background import BackgroundTasks
from warm_process.events import EVENT_DELAYS
from warm_process.job import DEFAULT_RERUNS
from warm_process.ledger import Claim
from warm_process.settle import EndedRun, Settlement

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

_RERUNS = "reruns_after_crash"
# For how long a run that was lost while no worker heard of it is still run again.
_MAX_AGE = timedelta(hours=1)
# Meanwhile a worker that starts settles what its predecessor left in the ledger.
_CATCH_UP_SECONDS = 5.0


class LostRuns:
    """Settles runs that were lost, whichever worker had them. All workers of a pool hear of each of them."""

    def __init__(
        self,
        client: PrefectClient,
        pool: str,
        job_variables: Callable[[], Mapping[str, Any]],
        background: BackgroundTasks,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        """Create it.

        Args:
            client: A client of the Prefect server.
            pool: The work pool.
            job_variables: Returns the defaults of the work pool.
            background: Runs what is requested.
            logger: Where settled runs are logged.
        """
        self._client = client
        self._pool = pool
        self._job_variables = job_variables
        self._background = background
        self._logger = logger

    def request(self, flow_run_id: UUID) -> None:
        """Settle a run of which an event says that the server has ended it."""
        self._background.spawn(self._settle(flow_run_id))

    async def request_all(self) -> None:
        """Settle the runs that were lost while no worker heard of it."""
        await asyncio.sleep(_CATCH_UP_SECONDS)
        since = datetime.now(UTC) - _MAX_AGE
        crashed = FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": since}}
        )
        in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._pool]))
        try:
            runs = await self._client.read_flow_runs(flow_run_filter=crashed, work_pool_filter=in_pool)
        except httpx.HTTPError as error:
            self._logger.debug("Could not read which runs were lost: %s", error)
            return
        for run in runs:
            if run.state and is_lost(run.state.message or ""):
                self.request(run.id)

    async def _settle(self, flow_run_id: UUID) -> None:
        try:
            for delay in EVENT_DELAYS:
                await asyncio.sleep(delay)
                if ended := await self._find(flow_run_id):
                    await asyncio.to_thread(self._settle_in_turn, ended, asyncio.get_running_loop())
                    return
        except (httpx.HTTPError, ObjectNotFound) as error:
            self._logger.warning("Flow run %s, which was lost, could not be settled: %s", flow_run_id, error)

    async def _find(self, flow_run_id: UUID) -> EndedRun | None:
        """Return a run if some worker had claimed it and it is still lost: since the event it may have been run again."""
        flow_run = await self._client.read_flow_run(flow_run_id)
        history = await self._client.read_flow_run_states(flow_run_id)
        claims = [state.id for state in history if state.is_pending() and state.name == "Pending"]
        state = flow_run.state
        if not (claims and state and state.is_crashed() and is_lost(state.message or "")):
            return None
        variables = dict(self._job_variables())
        if flow_run.deployment_id:
            variables |= (await self._client.read_deployment(flow_run.deployment_id)).job_variables or {}
        variables |= flow_run.job_variables or {}
        claim = Claim(flow_run_id, claims[-1], worker="", max_reruns=int(variables.get(_RERUNS, DEFAULT_RERUNS)))
        return EndedRun(claim, LostRun.NO_HEARTBEAT, mlflow_env=os.environ)

    def _settle_in_turn(self, ended: EndedRun, loop: asyncio.AbstractEventLoop) -> None:
        """Settle a run while no other worker does: two that schedule it again would run it twice."""
        settlement = Settlement(self._client, ended, logger=self._logger)
        with lock(LostRun.LOCK):
            state = asyncio.run_coroutine_threadsafe(settlement.settle(), loop).result()
        if state and state.is_scheduled():
            self._logger.warning("Flow run %s was lost and is now %s.", ended.claim.flow_run_id, state.name)
