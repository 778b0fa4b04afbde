"""The runs that have a process on this worker, and how they are cancelled and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType

from warm_process.background import BackgroundTasks
from warm_process.ledger import Ledger
from warm_process.reasons import CgroupMemory
from warm_process.settings import WarmProcessSettings

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from warm_process.prefect_private import CancelChannel

# How long a cancelled run may take to connect to the cancel channel, which it does while its engine starts.
_CONNECT_TIMEOUT = 5.0
# How long Prefect's process worker may take to cancel a run that it started.
_COLD_CANCEL_TIMEOUT = 5.0
# How long the settling of stopped runs may take once their processes have ended.
_SETTLE_TIMEOUT = 5.0
_MAX_CANCEL_REQUESTS = 1000


@dataclass(frozen=True)
class ForkContext:
    """Where a forked run executes; its hooks run in the same place."""

    env: dict[str, str]
    cwd: str


@dataclass(eq=False)
class LiveRun:
    """A run that has a process."""

    flow_run: FlowRun
    pid: int
    send_signal: Callable[[int], None]
    memory_before: CgroupMemory
    """Read before its process started."""
    job_env: Mapping[str, str | None]
    """The environment of its job."""
    fork: ForkContext | None = None
    """None for a cold start, whose hooks Prefect runs itself."""
    is_cancelled: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class LiveRuns:
    """The live runs of a worker, with the requests to cancel runs and to stop them all."""

    def __init__(
        self,
        settings: WarmProcessSettings,
        ledger: Ledger,
        background: BackgroundTasks,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self.stop_cause: str | None = None
        """Why every run is stopped; None unless the worker is stopping."""
        self.cancel_channel: CancelChannel | None = None
        self._settings = settings
        self._ledger = ledger
        self._background = background
        self._logger = logger
        self._runs: dict[UUID, LiveRun] = {}
        self._cancel_requests: dict[UUID, None] = {}  # in order of arrival

    def __contains__(self, flow_run_id: UUID) -> bool:
        return flow_run_id in self._runs

    @asynccontextmanager
    async def track(self, run: LiveRun) -> AsyncIterator[None]:
        """Make a run known to cancelling and stopping while the block lasts."""
        flow_run_id = run.flow_run.id
        self._runs[flow_run_id] = run
        self._ledger.record_start(flow_run_id, run.pid)
        if flow_run_id in self._cancel_requests:
            self.request_cancel(flow_run_id)
        if self.stop_cause:
            run.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            run.ended.set()
            run.settled.set()
            del self._runs[flow_run_id]

    # Cancelling

    def request_cancel(self, flow_run_id: UUID) -> None:
        """Cancel a run now if it is live, else when it is about to start."""
        self._cancel_requests[flow_run_id] = None
        if len(self._cancel_requests) > _MAX_CANCEL_REQUESTS:
            del self._cancel_requests[next(iter(self._cancel_requests))]
        if run := self._runs.get(flow_run_id):
            self._background.spawn(self._cancel(run))

    def is_cancel_requested(self, flow_run_id: UUID) -> bool:
        """Tell whether a run is to be cancelled."""
        return flow_run_id in self._cancel_requests

    def forget_cancel(self, flow_run_id: UUID) -> None:
        """Forget the request to cancel a run that has ended."""
        self._cancel_requests.pop(flow_run_id, None)

    async def find_cancelling(self, client: PrefectClient) -> None:
        """Ask the server which claimed or live runs were cancelled, in case an event was lost."""
        ids = [flow_run_id for flow_run_id, run in self._runs.items() if not run.is_cancelled]
        ids += self._ledger.claimed()
        if not ids:
            return
        cancelling = FlowRunFilter(
            id=FlowRunFilterId(any_=ids),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING])),
        )
        try:
            for flow_run in await client.read_flow_runs(flow_run_filter=cancelling):
                self.request_cancel(flow_run.id)
        except httpx.HTTPError as error:
            self._logger.debug("Could not read which runs were cancelled: %s", error)

    async def _cancel(self, run: LiveRun) -> None:
        """End the process of a cancelled run: through its engine, then by SIGTERM, then by SIGKILL."""
        if run.is_cancelled:
            return
        run.is_cancelled = True
        if run.fork and self.cancel_channel:
            # An engine that gets SIGTERM while it starts reports a crash, so wait until it is connected.
            announced = await self.cancel_channel.announce_cancel(run.flow_run.id, _CONNECT_TIMEOUT)
            if announced is None:
                return  # it has ended by itself
        else:
            await _wait_for_all([run.ended], _COLD_CANCEL_TIMEOUT)
        if not run.ended.is_set():
            run.send_signal(signal.SIGTERM)
            await _wait_for_all([run.ended], self._settings.cancel_grace)
        if not run.ended.is_set():
            run.send_signal(signal.SIGKILL)

    # Stopping

    async def stop_all(self, cause: str) -> None:
        """Stop every run and wait until each is settled on the server."""
        self.stop_cause = cause
        runs = list(self._runs.values())
        for run in runs:
            run.send_signal(signal.SIGTERM)
        await _wait_for_all([run.ended for run in runs], self._settings.stop_grace)
        for run in runs:
            if not run.ended.is_set():
                run.send_signal(signal.SIGKILL)
        await _wait_for_all([run.settled for run in runs], _SETTLE_TIMEOUT)


async def _wait_for_all(events: list[asyncio.Event], seconds: float) -> None:
    """Wait until every event is set, but no longer than some seconds."""

    async def wait() -> None:
        for event in events:
            await event.wait()

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wait(), seconds)
