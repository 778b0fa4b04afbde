"""The Prefect worker of type `warm-process`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import anyio
import httpx
from prefect.logging.loggers import get_worker_logger
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from trainyard.contract import Resource
from warm_process import prefect_private
from warm_process.background import BackgroundTasks
from warm_process.cgroup import CgroupMemory
from warm_process.checks import RunChecks
from warm_process.cold_start import ColdProcess, cold_start_reason
from warm_process.endings import RunEndings
from warm_process.events import EventListener
from warm_process.job import WarmProcessJobConfiguration, WarmProcessVariables
from warm_process.ledger import Claim, Ledger
from warm_process.limits import Limits
from warm_process.live_runs import LiveRun, LiveRuns
from warm_process.lost_runs import LostRuns
from warm_process.metrics import count_end, count_start, serve_metrics
from warm_process.polling import PollScheduler
from warm_process.processes import offer_to_oom_killer
from warm_process.protocol import Message
from warm_process.reasons import ProcessExit
from warm_process.settings import WarmProcessSettings
from warm_process.supervisor import CannotForkError, Supervisor
from warm_process.threads import set_for_cold_start
from warm_process.warm_start import CannotStartError, append_python_path, fork_run, temporary_folder
from warm_process.watch import LimitWatch
from warm_process.worker_client import WorkerClient

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

ReportPid = Callable[[int], None]

_LABELS_TIMEOUT = 2.0
_SETTLE_TIMEOUT = 10.0
_STOPPED_BEFORE_START = "the worker was stopped before it started the run"
_SYNC_POLL_SECONDS = 1.0


class WarmProcessWorker(ProcessWorker):
    """Starts flow runs in forks of a warm process, as soon as they are scheduled.

    A run that cannot be forked is a cold start: it runs as it does on Prefect's process worker.
    """

    type = Resource.WORK_POOL_TYPE
    job_configuration = WarmProcessJobConfiguration
    job_configuration_variables = WarmProcessVariables  # type: ignore[assignment]  # mypy takes the base's for None
    _description = (
        "Execute flow runs in subprocesses forked from a process that has already imported what flows import."
    )
    _display_name = "Warm Process"

    def __init__(self, work_pool_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(work_pool_name, *args, **kwargs)
        self._settings = WarmProcessSettings()
        self._log = get_worker_logger(self)
        self._background = BackgroundTasks(self._log)
        self._ledger = Ledger(self._settings.state_dir, work_pool_name, get_current_settings().api.url or "", self.name)
        self._live = LiveRuns(self._settings, self._ledger)
        self._poll_lock = asyncio.Lock()
        self._poller = PollScheduler(self._poll, self._has_free_slot, self._log)
        self._worker_client: WorkerClient | None = None
        self._endings: RunEndings | None = None
        self._checks: RunChecks | None = None
        self._lost: LostRuns | None = None
        self._supervisor: Supervisor | None = None
        self._why_never_forked: str | None = None
        self._metrics = contextlib.ExitStack()

    @property
    def client(self) -> PrefectClient:
        """The worker's client, which reads a deployment once for all runs of a poll and records claims."""
        client = super().client
        return cast("PrefectClient", self._worker_client) if self._worker_client else client

    # Start and stop of the worker

    async def setup(self) -> None:
        """Connect to the server, start the warm process, and settle the runs of killed workers."""
        self._metrics.enter_context(serve_metrics(self._settings.metrics_port, self._live, self._count_slots))
        await self._start_supervisor()
        self._open_ledger()
        await super().setup()
        self._worker_client = WorkerClient(
            super().client,
            on_claim=self._ledger.claim,
            on_refusal=self._poller.request,
            job_variables=self._pool_job_variables,
            logger=self._log,
        )
        self._endings = RunEndings(self.client, self._settings, self._ledger, self._supervisor, self._log)
        self._checks = RunChecks(
            self.client, self._settings, self._ledger, self._live, self._endings, self._background, self._log
        )
        self._lost = LostRuns(self.client, self._work_pool_name, self._pool_job_variables, self._background, self._log)
        self._background.keep_running(self._listen)
        self._background.keep_running(self._poller.run)
        self._background.keep_running(self._check_regularly)
        watch = LimitWatch(self._live, self._endings, self._background, self._log, warm_pid=self._warm_pid)
        self._background.keep_running(watch.watch)
        await self._endings.settle_adopted(self._background)

    async def teardown(self, *exc_info: Any) -> None:
        """Let runs finish or give them back, then stop the worker."""
        if any(exc_info):
            await self._stop_runs()
        await self._background.cancel_all()
        try:
            await super().teardown(*exc_info)
        finally:
            if self._supervisor:
                await self._supervisor.stop()
            if self._live.control_channel:
                await self._live.control_channel.close()
            self._ledger.close()
            self._metrics.close()

    async def _start_supervisor(self) -> None:
        if not self._settings.enabled:
            self._why_never_forked = "the warm process is switched off (WARM_PROCESS_ENABLED)"
        elif missing := prefect_private.missing_names():
            self._why_never_forked = f"this version of Prefect lacks what the warm process needs ({', '.join(missing)})"
        if self._why_never_forked:
            self._log.warning("Every run is a cold start: %s.", self._why_never_forked)
            return
        self._live.control_channel = prefect_private.ControlChannel()
        await self._live.control_channel.open()
        environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
        self._supervisor = Supervisor(self._settings, environment, self._log, on_ready=self._record_warm_process)
        self._supervisor.start()

    def _warm_pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor else None

    def _record_warm_process(self, message: Message) -> None:
        facts = {key: message[key] for key in ("seconds", "preloaded", "failed")}
        self._ledger.record_facts(warm_pid=message["pid"], **facts)

    def _open_ledger(self) -> None:
        try:
            self._ledger.open()
        except OSError as error:
            self._log.warning(
                "The ledger in %s cannot be written, so the next worker cannot settle runs of this one: %s",
                self._settings.state_dir,
                error,
            )

    async def _stop_runs(self) -> None:
        if self._live:
            self._log.info(
                "%d flow runs get up to %g s to finish; the others are given back.",
                len(self._live),
                self._settings.drain_seconds,
            )
        await self._live.stop_all("the worker that ran it was stopped")
        if self._endings:
            unstarted = [
                self._endings.settle_unstarted(claim, _STOPPED_BEFORE_START) for claim in self._ledger.unstarted()
            ]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*unstarted, return_exceptions=True), _SETTLE_TIMEOUT)

    # Finding runs

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs and submit them; one poll at a time."""
        async with self._poll_lock:
            if self._live.is_draining:
                return []
            submitted = await super().get_and_submit_flow_runs()
            if self._worker_client:
                self._worker_client.clear()
            return submitted

    async def _poll(self) -> bool:
        return bool(await self.get_and_submit_flow_runs())

    def _pool_job_variables(self) -> dict[str, Any]:
        """Return the defaults of the work pool's job variables."""
        properties = self.work_pool.base_job_template.get("variables", {}).get("properties", {})
        return {name: each["default"] for name, each in properties.items() if "default" in each}

    def _has_free_slot(self) -> bool:
        try:
            return self.limiter.available_tokens > 0
        except RuntimeError:  # the worker has no limit
            return True

    def _count_slots(self) -> int | None:
        try:
            return int(self.limiter.total_tokens)
        except RuntimeError:  # the worker has no limit
            return None

    async def _listen(self) -> None:
        assert self._checks
        assert self._lost
        listener = EventListener(
            on_scheduled=self._poller.request,
            on_stopped=self._checks.request,
            on_lost=self._lost.request,
            on_connected=self._catch_up,
            logger=self._log,
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
        assert self._checks
        assert self._lost
        self._poller.request()
        self._background.spawn(self._checks.check_all())
        self._background.spawn(self._lost.request_all())

    async def _check_regularly(self) -> None:
        assert self._checks
        while True:
            await asyncio.sleep(get_current_settings().worker.cancellation_poll_seconds)
            await self._checks.check_all()

    # Running

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run to its end, in a fork of the warm process if possible."""
        assert self._endings
        claim = self._ledger.get(flow_run.id)
        report_pid = task_status.started if task_status else (lambda _pid: None)
        if claim is None:  # its submission took so long that it was given back
            return _result(report_pid)
        try:
            await self._live.end_earlier_attempt(flow_run.id)
            if self._live.is_draining or flow_run.id in self._live.withheld:
                await self._endings.settle_unstarted(claim, _STOPPED_BEFORE_START)
                return _result(report_pid)
            return await self._start(flow_run, claim, cast("WarmProcessJobConfiguration", configuration), report_pid)
        except CannotStartError as error:
            await self._endings.settle_unstarted(claim, str(error), may_repeat=False)
            return _result(report_pid)
        finally:
            self._live.withheld.pop(flow_run.id, None)
            self._poller.request()

    async def _start(
        self, flow_run: FlowRun, claim: Claim, configuration: WarmProcessJobConfiguration, report_pid: ReportPid
    ) -> ProcessWorkerResult:
        append_python_path(configuration)
        with temporary_folder(configuration):
            reason = cold_start_reason(configuration) or self._why_never_forked
            if reason is None:
                try:
                    return await self._run_forked(flow_run, claim, configuration, report_pid)
                except CannotForkError as error:
                    reason = str(error)
            self.get_flow_run_logger(flow_run).info("Cold start in a new interpreter: %s.", reason)
            return await self._run_cold(flow_run, claim, configuration, report_pid)

    async def _run_forked(
        self, flow_run: FlowRun, claim: Claim, configuration: WarmProcessJobConfiguration, report_pid: ReportPid
    ) -> ProcessWorkerResult:
        channel = self._live.control_channel
        assert self._supervisor
        assert channel
        forking = fork_run(self._supervisor, channel, flow_run, claim, configuration)
        async with forking as (run, fork), self._live.track(run, configuration.reruns_after_crash):
            self._report_start(run, report_pid)
            process_exit = await asyncio.shield(fork.ended)
            has_reported = process_exit.code == 0 and process_exit.ran_to_end and channel.has_reported_end(flow_run.id)
            return await self._settle(run, replace(process_exit, has_reported=has_reported))

    async def _run_cold(
        self, flow_run: FlowRun, claim: Claim, configuration: WarmProcessJobConfiguration, report_pid: ReportPid
    ) -> ProcessWorkerResult:
        """Run as the process worker does, and settle the run afterwards."""
        execute = super().run
        set_for_cold_start(configuration.env, configuration.threads)
        memory = CgroupMemory.read()
        try:
            process = await ColdProcess.start(flow_run.id, lambda status: execute(flow_run, configuration, status))
        except Exception as error:
            raise CannotStartError(f"it could not be started ({type(error).__name__}: {error})") from error
        offer_to_oom_killer(process.pid)
        limits = Limits.of(configuration, memory.limit)
        run = LiveRun(flow_run, claim, process.pid, process.send_signal, memory, configuration.env, limits)
        async with self._live.track(run, configuration.reruns_after_crash):
            self._report_start(run, report_pid)
            return await self._settle(run, await process.wait())

    def _report_start(self, run: LiveRun, report_pid: ReportPid) -> None:
        report_pid(run.pid)
        count_start(run)
        if intent := self._live.withheld.get(run.flow_run.id):  # since the start began
            self._background.spawn(self._live.end(run, intent))

    async def _settle(self, run: LiveRun, process_exit: ProcessExit) -> ProcessWorkerResult:
        assert self._endings
        run.ended.set()
        count_end(run, process_exit, is_stopping=self._live.stop_cause is not None)
        logger = self.get_flow_run_logger(run.flow_run)
        await self._endings.settle_live(run, process_exit, stop_cause=self._live.stop_cause, logger=logger)
        return _result(pid=run.pid)

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
            self._log.warning("Flow run %s does not get the labels of its worker: %s", flow_run_id, error)


def _result(report_pid: ReportPid | None = None, pid: int = 0) -> ProcessWorkerResult:
    """Return a result that makes Prefect set no state, because every run is settled by then."""
    if report_pid:
        report_pid(pid)
    return ProcessWorkerResult(status_code=0, identifier=str(pid))
