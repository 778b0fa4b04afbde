"""The Prefect worker of type `warm-process`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import anyio
import httpx
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from trainyard.contract import Resource
from warm_process import prefect_private
from warm_process.background import BackgroundTasks
from warm_process.client_cache import CachingClient
from warm_process.cold_start import ColdProcess, cold_start_reason
from warm_process.endings import RunEndings
from warm_process.events import EventListener
from warm_process.ledger import Ledger
from warm_process.live_runs import LiveRun, LiveRuns
from warm_process.polling import PollScheduler
from warm_process.protocol import Message
from warm_process.reasons import CgroupMemory, ProcessExit
from warm_process.settings import WarmProcessSettings
from warm_process.supervisor import CannotForkError, Supervisor
from warm_process.warm_start import append_python_path, fork_run

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

_LABELS_TIMEOUT = 2.0
_SYNC_POLL_SECONDS = 1.0


class WarmProcessWorker(ProcessWorker):
    """Starts flow runs in forks of a warm process, as soon as they are scheduled.

    A run that cannot be forked is a cold start: it runs as it does on Prefect's process worker.
    """

    type = Resource.WORK_POOL_TYPE
    _description = (
        "Execute flow runs in subprocesses forked from a process that has already imported what flows import."
    )
    _display_name = "Warm Process"

    def __init__(self, work_pool_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(work_pool_name, *args, **kwargs)
        self._settings = WarmProcessSettings()
        self._background = BackgroundTasks()
        self._ledger = Ledger(self._settings.state_dir, work_pool_name, get_current_settings().api.url or "", self.name)
        self._live = LiveRuns(self._settings, self._ledger, self._background, self._logger)
        self._poll_lock = asyncio.Lock()
        self._poller = PollScheduler(self._poll, self._has_free_slot, self._logger)
        self._client_cache: CachingClient | None = None
        self._endings: RunEndings | None = None
        self._supervisor: Supervisor | None = None
        self._why_never_forked: str | None = None

    @property
    def client(self) -> PrefectClient:
        """The worker's client, which reads a deployment once for all runs of a poll."""
        client = super().client
        return cast("PrefectClient", self._client_cache) if self._client_cache else client

    # Start and stop of the worker

    async def setup(self) -> None:
        """Connect to the server, start the warm process, and settle the runs of killed workers."""
        await self._start_supervisor()
        self._open_ledger()
        await super().setup()
        self._client_cache = CachingClient(super().client)
        self._endings = RunEndings(
            self.client, self._settings, self._ledger, self._supervisor, worker_name=self.name, logger=self._logger
        )
        self._background.spawn(self._listen())
        self._background.spawn(self._poller.run())
        self._background.spawn(self._find_cancelling_regularly())
        self._background.spawn(self._endings.settle_abandoned())

    async def teardown(self, *exc_info: Any) -> None:
        """Stop the runs and wait for the report of each, then stop the worker."""
        if any(exc_info):
            await self._stop_runs()
        await self._background.cancel_all()
        try:
            await super().teardown(*exc_info)
        finally:
            if self._supervisor:
                await self._supervisor.stop()
            if self._live.cancel_channel:
                await self._live.cancel_channel.close()
            self._ledger.close()

    async def _start_supervisor(self) -> None:
        channel = None
        if not self._settings.enabled:
            self._why_never_forked = "the warm process is switched off (WARM_PROCESS_ENABLED)"
        else:
            try:
                channel = prefect_private.CancelChannel()
            except (ImportError, AttributeError) as error:
                self._why_never_forked = f"this version of Prefect lacks what the warm process needs ({error})"
        if channel is None:
            self._logger.warning("Every run is a cold start: %s.", self._why_never_forked)
            return
        await channel.open()
        self._live.cancel_channel = channel
        environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
        self._supervisor = Supervisor(self._settings, environment, self._logger, on_ready=self._record_warm_process)
        self._supervisor.start()

    def _record_warm_process(self, message: Message) -> None:
        facts = {key: message[key] for key in ("seconds", "preloaded", "failed")}
        self._ledger.record_facts(warm_pid=message["pid"], **facts)

    def _open_ledger(self) -> None:
        try:
            self._ledger.open()
        except OSError as error:
            self._logger.warning(
                "The ledger in %s cannot be written, so the next worker cannot settle runs of this one: %s",
                self._settings.state_dir,
                error,
            )

    async def _stop_runs(self) -> None:
        await self._live.stop_all("the worker that ran it was stopped")
        for flow_run_id in self._ledger.claimed():
            if self._endings:
                await self._endings.requeue(flow_run_id)

    # Finding runs

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs and submit them; one poll at a time."""
        async with self._poll_lock:
            if self._live.stop_cause:
                return []
            submitted = await super().get_and_submit_flow_runs()
            if self._client_cache:
                self._client_cache.clear()
            for flow_run in submitted:
                if flow_run.id not in self._live:
                    self._ledger.claim(flow_run.id)
            return submitted

    async def _poll(self) -> bool:
        return bool(await self.get_and_submit_flow_runs())

    def _has_free_slot(self) -> bool:
        try:
            return self.limiter.available_tokens > 0
        except RuntimeError:  # the worker has no limit
            return True

    async def _listen(self) -> None:
        listener = EventListener(
            on_scheduled=self._poller.request,
            on_cancelling=self._live.request_cancel,
            on_connected=self._catch_up,
            logger=self._logger,
        )
        while True:
            try:
                work_pool_id = self.work_pool.id
                break
            except RuntimeError:  # the server was out of reach when the worker started
                await asyncio.sleep(_SYNC_POLL_SECONDS)
        await listener.listen(work_pool_id)

    def _catch_up(self) -> None:
        """Look for what happened while no event stream was connected."""
        self._poller.request()
        self._background.spawn(self._live.find_cancelling(self.client))

    async def _find_cancelling_regularly(self) -> None:
        while True:
            await asyncio.sleep(get_current_settings().worker.cancellation_poll_seconds)
            await self._live.find_cancelling(self.client)

    async def _setup_cancellation_observer(self) -> None:
        """Do without Prefect's observer, because this worker cancels runs itself.

        The observer handles only runs without a process. It would set a run to Cancelled whose engine is starting and
        sets it to Running afterwards.
        """

    # Running

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run to its end, in a fork of the warm process if possible."""
        assert self._endings
        report_pid = task_status.started if task_status else (lambda _pid: None)
        append_python_path(configuration)
        try:
            if self._live.stop_cause:
                await self._endings.requeue(flow_run.id)
                return _not_started(report_pid)
            if self._live.is_cancel_requested(flow_run.id):
                await self._endings.settle_cancelled(flow_run, configuration, self.get_flow_run_logger(flow_run))
                return _not_started(report_pid)
            reason = cold_start_reason(configuration) or self._why_never_forked
            if reason is None:
                try:
                    return await self._run_forked(flow_run, configuration, report_pid)
                except CannotForkError as error:
                    reason = str(error)
            self.get_flow_run_logger(flow_run).info("Cold start in a new interpreter: %s.", reason)
            return await self._run_cold(flow_run, configuration, report_pid)
        finally:
            self._ledger.remove(flow_run.id)
            self._live.forget_cancel(flow_run.id)
            self._poller.request()

    async def _run_forked(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, report_pid: Callable[[int], None]
    ) -> ProcessWorkerResult:
        assert self._supervisor
        assert self._live.cancel_channel
        forking = fork_run(self._supervisor, self._live.cancel_channel, flow_run, configuration)
        async with forking as (run, fork), self._live.track(run):
            report_pid(fork.pid)
            return await self._settle(run, await asyncio.shield(fork.ended))

    async def _run_cold(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, report_pid: Callable[[int], None]
    ) -> ProcessWorkerResult:
        """Run as the process worker does, and settle the run afterwards."""
        execute = super().run
        memory = CgroupMemory.read()
        process = await ColdProcess.start(flow_run.id, lambda status: execute(flow_run, configuration, status))
        run = LiveRun(flow_run, process.pid, process.send_signal, memory, configuration.env)
        async with self._live.track(run):
            report_pid(process.pid)
            return await self._settle(run, await process.wait())

    async def _settle(self, run: LiveRun, process_exit: ProcessExit) -> ProcessWorkerResult:
        assert self._endings
        run.ended.set()
        code = await self._endings.settle_live(
            run, process_exit, stop_cause=self._live.stop_cause, logger=self.get_flow_run_logger(run.flow_run)
        )
        return ProcessWorkerResult(status_code=code, identifier=str(run.pid))

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Label a run with its worker, but start it after two seconds in any case.

        A busy server may refuse this request for a minute, because its transaction reads before it writes; the process
        worker would report the run as crashed.
        """
        await asyncio.wait({self._background.spawn(self._label(flow_run_id))}, timeout=_LABELS_TIMEOUT)

    async def _label(self, flow_run_id: UUID) -> None:
        try:
            await super()._give_worker_labels_to_flow_run(flow_run_id)
        except httpx.HTTPError as error:
            self._logger.warning("Flow run %s does not get the labels of its worker: %s", flow_run_id, error)


def _not_started(report_pid: Callable[[int], None]) -> ProcessWorkerResult:
    report_pid(0)
    return ProcessWorkerResult(status_code=0, identifier="0")
