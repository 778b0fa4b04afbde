"""The ends of runs: settles what ended without a report, and requeues what was claimed and not started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled
from prefect.workers.process import ProcessJobConfiguration

from warm_process.ledger import ClaimedRun, Ledger
from warm_process.live_runs import ForkContext, LiveRun
from warm_process.prefect_private import WORKER_NAME_LABEL
from warm_process.processes import processes_of, signal_processes, terminate_processes_of
from warm_process.reasons import CgroupMemory, ProcessExit, describe_exit
from warm_process.settings import WarmProcessSettings
from warm_process.settle import EndedRun, HookKind, RunHooks, settle
from warm_process.supervisor import CannotForkError, Supervisor

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    Log = logging.Logger | logging.LoggerAdapter[Any]

_HOOKS_TIMEOUT = 60.0
_HOOKS_MODULE = "warm_process.hooks"


class RunEndings:
    """Gives the runs of one worker, and those that an earlier worker abandoned, their final states."""

    def __init__(
        self,
        client: PrefectClient,
        settings: WarmProcessSettings,
        ledger: Ledger,
        supervisor: Supervisor | None,
        *,
        worker_name: str,
        logger: Log,
    ) -> None:
        self._client = client
        self._settings = settings
        self._ledger = ledger
        self._supervisor = supervisor
        self._worker_name = worker_name
        self._logger = logger

    async def settle_live(self, run: LiveRun, process_exit: ProcessExit, *, stop_cause: str | None, logger: Log) -> int:
        """Settle a run whose process has ended, unless it reported its own end.

        Args:
            run: The run.
            process_exit: How its process ended.
            stop_cause: Why the worker stopped it, if it did.
            logger: The run's own logger.

        Returns:
            The exit code for Prefect to report.
        """
        if process_exit.ran_to_end and process_exit.code == 0 and not run.is_cancelled:
            return 0
        signal_processes(processes_of(run.flow_run.id), signal.SIGKILL)
        reason = stop_cause or describe_exit(process_exit, before=run.memory_before, after=CgroupMemory.read())
        ended = EndedRun(run.flow_run.id, reason, run.is_cancelled, pid=run.pid, mlflow_env=run.job_env)
        state = await settle(self._client, ended, run_hooks=self._hook_runner(run), logger=logger)
        if state is None or not state.is_crashed():
            return 0
        logger.error("The run has ended as Crashed: %s.", reason)
        return process_exit.code if process_exit.code is not None else 1

    async def settle_cancelled(self, flow_run: FlowRun, configuration: ProcessJobConfiguration, logger: Log) -> None:
        """Settle a run that was cancelled before it had a process."""
        ended = EndedRun(flow_run.id, "it was cancelled", is_cancelled=True, mlflow_env=configuration.env)
        await settle(self._client, ended, logger=logger)

    async def requeue(self, flow_run_id: UUID) -> None:
        """Return a run that was claimed but not started to its queue."""
        with contextlib.suppress(httpx.HTTPError, ObjectNotFound):
            flow_run = await self._client.read_flow_run(flow_run_id)
            worker_name = flow_run.labels.get(WORKER_NAME_LABEL, self._worker_name)
            if flow_run.state and flow_run.state.is_pending() and worker_name == self._worker_name:
                message = "The worker was stopped before it started the run."
                await self._client.set_flow_run_state(flow_run_id, Scheduled(message=message), force=True)
        self._ledger.remove(flow_run_id)

    async def settle_abandoned(self) -> None:
        """Settle the runs that killed workers of this pool have left in their ledgers."""
        try:
            with self._ledger.abandoned() as runs:
                for run in runs:
                    await self._settle_abandoned(run)
        except (httpx.HTTPError, OSError) as error:
            self._logger.warning("Runs of an earlier worker are left for the next one to settle: %s", error)

    async def _settle_abandoned(self, run: ClaimedRun) -> None:
        reason = "the worker that ran it was killed, together with its process"
        if run.pid is None:
            reason = "the worker that had claimed it was killed before it started the run"
            flow_run = await self._client.read_flow_run(run.flow_run_id)
            if not (flow_run.state and flow_run.state.is_pending()):
                return
            if flow_run.labels.get(WORKER_NAME_LABEL, run.worker) != run.worker:
                return
        else:
            await terminate_processes_of(run.flow_run_id, self._settings.stop_grace)
        ended = EndedRun(run.flow_run_id, reason, pid=run.pid, mlflow_env=os.environ)
        if state := await settle(self._client, ended, logger=self._logger):
            self._logger.warning(
                "Worker %r was killed and left flow run %s, which is now %s.", run.worker, run.flow_run_id, state.name
            )

    def _hook_runner(self, run: LiveRun) -> RunHooks | None:
        context = run.fork
        if context is None:
            return None

        async def run_hooks(kind: HookKind, message: str) -> None:
            await self._run_hooks(run.flow_run.id, context, kind, message)

        return run_hooks

    async def _run_hooks(self, flow_run_id: UUID, context: ForkContext, kind: HookKind, message: str) -> None:
        """Run the flow's hooks in a process of their own, forked if possible."""
        assert self._supervisor
        env, cwd = context.env, context.cwd
        try:
            async with asyncio.timeout(_HOOKS_TIMEOUT):
                try:
                    fork = await self._supervisor.fork(
                        f"{flow_run_id} {kind}", _HOOKS_MODULE, kind, message, env=env, cwd=cwd
                    )
                    await fork.ended
                except CannotForkError:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", _HOOKS_MODULE, kind, message, env=env, cwd=cwd
                    )
                    await process.wait()
        except TimeoutError:
            self._logger.warning("The %s hooks of flow run %s exceed %g s.", kind, flow_run_id, _HOOKS_TIMEOUT)
