"""The ends of runs: settles what ended without a report, and returns to the queue what was claimed and not started."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.exceptions import ObjectNotFound

from warm_process.background import BackgroundTasks
from warm_process.cgroup import CgroupMemory
from warm_process.ledger import Claim, Ledger
from warm_process.live_runs import ForkContext, LiveRun
from warm_process.processes import processes_of, signal_group, signal_processes, terminate_processes_of
from warm_process.reasons import OomKills, ProcessExit
from warm_process.settings import WarmProcessSettings
from warm_process.settle import EndedRun, HookKind, RunHooks, Settlement, owns
from warm_process.supervisor import CannotForkError, Supervisor

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    Log = logging.Logger | logging.LoggerAdapter[Any]

_HOOKS_MODULE = "warm_process.hooks"
_ADOPTION_RETRY_SECONDS = 2.0


class RunEndings:
    """Gives the runs of one worker, and those that dead workers left, their next states."""

    def __init__(
        self,
        client: PrefectClient,
        settings: WarmProcessSettings,
        ledger: Ledger,
        supervisor: Supervisor | None,
        logger: Log,
    ) -> None:
        self._client = client
        self._settings = settings
        self._ledger = ledger
        self._supervisor = supervisor
        self._logger = logger
        self._oom_kills = OomKills()

    async def settle_live(
        self, run: LiveRun, process_exit: ProcessExit, *, stop_cause: str | None, logger: Log
    ) -> None:
        """Settle a run whose process has ended, unless it reported its own end.

        Args:
            run: The run.
            process_exit: How its process ended.
            stop_cause: Why the worker stopped it, if it did.
            logger: The run's own logger.
        """
        if not process_exit.has_reported or run.ending or run.excess:
            signal_processes(processes_of(run.flow_run.id), signal.SIGKILL)
            reason = run.excess.reason if run.excess else stop_cause
            reason = reason or self._oom_kills.describe(
                process_exit, before=run.memory_before, after=CgroupMemory.read()
            )
            ended = EndedRun(
                run.claim,
                reason,
                is_cancelled=run.ending == "cancel",
                is_given_back=stop_cause is not None and run.excess is None,
                may_rerun=run.excess is None or run.excess.may_rerun,
                mlflow_env=run.job_env,
            )
            state = await Settlement(self._client, ended, run_hooks=self._hook_runner(run), logger=logger).settle()
            if state and (state.is_crashed() or state.is_scheduled()):
                logger.error("The run has ended without a result and is now %s: %s.", state.name, reason)
        self._ledger.remove(run.claim)

    async def settle_excess(self, run: LiveRun) -> None:
        """Settle a run that has exceeded a limit while its process still exists; it may not get any further."""
        assert run.excess
        ended = EndedRun(
            run.claim,
            run.excess.reason,
            is_cancelled=run.ending == "cancel",
            may_rerun=False,  # until its process has ended
            mlflow_env=run.job_env,
        )
        await Settlement(self._client, ended, logger=self._logger).settle()

    async def settle_unstarted(self, claim: Claim, reason: str, *, may_repeat: bool = True) -> None:
        """Settle a run that was claimed and has no process.

        Args:
            claim: The run.
            reason: Why it has none.
            may_repeat: Whether it returns to the queue; else it is crashed.
        """
        ended = EndedRun(claim, reason, is_unstarted=may_repeat)
        await Settlement(self._client, ended, logger=self._logger).settle()
        self._ledger.remove(claim)

    async def settle_adopted(self, background: BackgroundTasks) -> None:
        """Settle the runs that dead workers of this pool have left in their ledgers, each on its own."""
        try:
            claims = self._ledger.adopt()
        except OSError as error:
            self._logger.warning("The ledger of an earlier worker cannot be read: %s", error)
            return
        for claim in claims:
            background.spawn(self._settle_adopted(claim))

    async def _settle_adopted(self, claim: Claim) -> None:
        reason = "the worker that had claimed it was killed before it started the run"
        if claim.pid is not None:
            reason = "the worker that ran it was killed, together with its process"
            if await self._is_current(claim):
                await terminate_processes_of(claim.flow_run_id, self._settings.stop_grace)
        ended = EndedRun(claim, reason, is_unstarted=claim.pid is None, mlflow_env=os.environ)
        state = await Settlement(self._client, ended, logger=self._logger).settle()
        self._ledger.remove(claim)
        if state:
            self._logger.warning(
                "Worker %r was killed and left flow run %s, which is now %s.",
                claim.worker,
                claim.flow_run_id,
                state.name,
            )

    async def _is_current(self, claim: Claim) -> bool:
        """Tell whether nobody has claimed the run since; wait for the server as long as it is out of reach."""
        while True:
            try:
                return owns(await self._client.read_flow_run_states(claim.flow_run_id), claim)
            except ObjectNotFound:
                return False
            except httpx.HTTPError as error:
                self._logger.warning("An earlier worker's run waits until the server can be reached: %s", error)
                await asyncio.sleep(_ADOPTION_RETRY_SECONDS)

    def _hook_runner(self, run: LiveRun) -> RunHooks | None:
        context = run.fork
        if context is None:
            return None

        async def run_hooks(kind: HookKind, message: str) -> None:
            await self._run_hooks(run.flow_run.id, context, kind, message)

        return run_hooks

    async def _run_hooks(self, flow_run_id: UUID, context: ForkContext, kind: HookKind, message: str) -> None:
        """Run the flow's hooks in a process of their own, forked if possible; kill it when it takes too long."""
        assert self._supervisor
        ended: asyncio.Future[Any]
        try:
            fork = await self._supervisor.fork(
                f"{flow_run_id} {kind}", _HOOKS_MODULE, kind, message, env=context.env, cwd=context.cwd
            )
            ended, kill = fork.ended, functools.partial(self._supervisor.signal, fork, signal.SIGKILL)
        except CannotForkError:
            command = (sys.executable, "-m", _HOOKS_MODULE, kind, message)
            process = await asyncio.create_subprocess_exec(
                *command, env=context.env, cwd=context.cwd, start_new_session=True
            )
            ended, kill = (
                asyncio.ensure_future(process.wait()),
                functools.partial(signal_group, process.pid, signal.SIGKILL),
            )
        timeout = self._settings.hooks_timeout
        if not (await asyncio.wait([ended], timeout=timeout))[0]:
            kill()
            self._logger.warning("The %s hooks of flow run %s exceed %g s and were killed.", kind, flow_run_id, timeout)
