"""Compares the runs of a worker with what the server says of them: cancelled, ended by somebody, or claimed again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound

from warm_process.background import BackgroundTasks
from warm_process.endings import RunEndings
from warm_process.events import EVENT_DELAYS
from warm_process.ledger import Ledger
from warm_process.live_runs import LiveRun, LiveRuns, wait_for_all
from warm_process.settings import WarmProcessSettings
from warm_process.settle import owns

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State

# A run that was claimed and neither started nor refused within this time has met an error in between.
_MAX_SUBMISSION_SECONDS = 300.0


class RunChecks:
    """Reads the states of claimed runs, and ends the processes of those that must not run."""

    def __init__(
        self,
        client: PrefectClient,
        settings: WarmProcessSettings,
        ledger: Ledger,
        live: LiveRuns,
        endings: RunEndings,
        background: BackgroundTasks,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._client = client
        self._settings = settings
        self._ledger = ledger
        self._live = live
        self._endings = endings
        self._background = background
        self._logger = logger

    def request(self, flow_run_id: UUID) -> None:
        """Check a run of which an event says that it was cancelled or has ended."""
        if self._ledger.get(flow_run_id):
            self._background.spawn(self._check(flow_run_id))

    async def _check(self, flow_run_id: UUID) -> None:
        try:
            for delay in EVENT_DELAYS:
                await asyncio.sleep(delay)
                if not self._ledger.get(flow_run_id) or self._judge(await self._client.read_flow_run(flow_run_id)):
                    return
        except (httpx.HTTPError, ObjectNotFound) as error:
            self._logger.warning("Flow run %s could not be read after an event about it: %s", flow_run_id, error)

    async def check_all(self) -> None:
        """Check every claimed run, in case an event was lost."""
        try:
            for claim in self._ledger.unstarted(_MAX_SUBMISSION_SECONDS):
                await self._endings.settle_unstarted(claim, "the worker met an error before it started the run")
            ids = [claim.flow_run_id for claim in self._ledger.all()]
            if not ids:
                return
            for flow_run in await self._client.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids))
            ):
                run = self._live.get(flow_run.id)
                if self._judge(flow_run) or run is None:
                    continue
                if not owns(await self._client.read_flow_run_states(flow_run.id), run.claim):
                    self._logger.warning("Flow run %s was claimed again and is stopped here.", flow_run.id)
                    self._background.spawn(self._live.end(run, "relinquish"))
        except httpx.HTTPError as error:
            self._logger.debug("Could not read which runs were cancelled or have ended: %s", error)

    def _judge(self, flow_run: FlowRun) -> bool:
        """End a run that must not run; return whether that is so."""
        state, run = flow_run.state, self._live.get(flow_run.id)
        if state is None or not (state.is_cancelling() or state.is_final()) or state.is_completed():
            return False
        if run is None:
            if (claim := self._ledger.get(flow_run.id)) and claim.pid is None:
                self._live.withheld[flow_run.id] = "cancel" if state.is_cancelling() else "relinquish"
        elif state.is_cancelling():
            self._background.spawn(self._live.end(run, "cancel"))
        else:
            self._background.spawn(self._end(run, state))
        return True

    async def _end(self, run: LiveRun, state: State[Any]) -> None:
        """End the process of a run that has ended on the server, unless its own engine reported that and runs hooks."""
        # Only Prefect's Python client gives a transition an id; the UI and automations do not.
        if state.state_details.transition_id and not state.is_cancelled():
            await wait_for_all([run.ended], self._settings.hooks_timeout)
        if not run.ended.is_set():
            self._logger.warning("Flow run %s is %s on the server and is stopped.", run.flow_run.id, state.name)
            await self._live.end(run, "relinquish")
