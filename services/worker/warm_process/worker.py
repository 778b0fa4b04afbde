"""The Prefect worker of type `warm-process`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import anyio
import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Scheduled
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)
from pydantic import PrivateAttr

from warm_process import prefect_private
from warm_process.ledger import Ledger, TakenRun
from warm_process.memo import RememberingClient
from warm_process.processes import processes_of, signal_processes
from warm_process.reasons import Memory, describe_ending
from warm_process.settings import WarmProcessSettings
from warm_process.settle import Ending, HookKind, settle
from warm_process.wake import EventWatch
from warm_process.warm import Ended, NotWarmError, WarmChild, WarmProcess
from warm_process.wire import Message

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

# Polls that an event asks for: at least so far apart, and tried again when the event came before its run.
_POLL_SPACING = 0.25
_POLL_RETRIES = (0.05, 0.2)
# How long a cancelled run gets to connect to the cancel channel, which it does as its engine starts.
_CANCEL_CONNECT = 1.0
# How long the stock way gets to cancel a run by itself.
_STOCK_CANCEL = 5.0
_HOOKS_TIMEOUT = 60.0
_REMEMBERED_CANCELS = 1000
_LABELS_WAIT = 2.0


class WarmProcessJobConfiguration(ProcessJobConfiguration):
    """The job configuration of process pools, which also remembers whether a command was given."""

    _own_command: str | None = PrivateAttr(default=None)

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Prepare for a flow run, as the process worker's does."""
        self._own_command = self.command
        super().prepare_for_flow_run(*args, **kwargs)


@dataclass
class LiveRun:
    """A run whose process this worker has started."""

    flow_run_id: UUID
    pid: int
    send_signal: Callable[[int], None]
    warm: bool
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False


class WarmProcessWorker(ProcessWorker):
    """Starts flow runs in forks of a warm process, as soon as they are scheduled.

    It keeps what the process worker keeps. A run that cannot be forked starts as it does there.
    """

    type = "warm-process"
    job_configuration = WarmProcessJobConfiguration
    _description = (
        "Execute flow runs in subprocesses forked from a process that has already imported what flows import."
    )
    _display_name = "Warm Process"

    def __init__(self, work_pool_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(work_pool_name, *args, **kwargs)
        self._settings = WarmProcessSettings()
        self._live: dict[UUID, LiveRun] = {}
        self._cancel_requests: dict[UUID, None] = {}  # in the order of arrival
        self._stop_cause: str | None = None
        self._poll_lock = asyncio.Lock()
        self._poll_wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._memo: RememberingClient | None = None
        self._warm: WarmProcess | None = None
        self._why_never_warm: str | None = None
        self._cancel_channel: prefect_private.CancelChannel | None = None
        self._ledger = Ledger(self._settings.state_dir, work_pool_name, get_current_settings().api.url or "", self.name)

    @property
    def client(self) -> PrefectClient:
        """The worker's client, which reads a deployment once for all runs of a poll."""
        if self._memo is None or self._client is None:
            return super().client
        return cast("PrefectClient", self._memo)

    # Life of the worker

    async def setup(self) -> None:
        """Connect to the server, start the warm process, and settle what an earlier worker left."""
        await self._start_warm_process()
        try:
            self._ledger.open()
        except OSError as error:
            self._logger.warning(
                "Runs cannot be noted in %s, so a next worker cannot settle them: %s",
                self._settings.state_dir,
                error,
            )
        await super().setup()
        self._memo = RememberingClient(super().client)
        watch = EventWatch(
            on_scheduled=self._poll_wanted.set,
            on_cancelling=self._on_cancelling,
            on_connected=self._on_connected,
            logger=self._logger,
        )
        self._spawn(self._watch_events(watch))
        self._spawn(self._poll_when_wanted())
        self._spawn(self._look_for_cancelled())
        self._spawn(self._settle_left_behind())

    async def teardown(self, *exc_info: Any) -> None:
        """Stop, but let every run report its end first."""
        if any(exc_info):
            await self._stop_runs("the worker that ran it was stopped")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await super().teardown(*exc_info)
        finally:
            if self._warm:
                await self._warm.stop()
            if self._cancel_channel:
                await self._cancel_channel.close()
            self._ledger.close()

    async def _start_warm_process(self) -> None:
        if not self._settings.enabled:
            self._why_never_warm = "the warm process is switched off (WARM_PROCESS_ENABLED)"
        else:
            try:
                self._cancel_channel = prefect_private.CancelChannel()
            except (ImportError, AttributeError) as error:
                self._why_never_warm = f"this version of Prefect has moved what the warm process needs ({error})"
        if self._cancel_channel is None:
            self._logger.warning("Runs start the stock way: %s.", self._why_never_warm)
            return
        await self._cancel_channel.open()
        environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
        self._warm = WarmProcess(self._settings, environment, self._logger, on_ready=self._note_warm_process)
        self._warm.start()

    def _note_warm_process(self, facts: Message) -> None:
        self._ledger.note(
            warm_pid=facts["pid"],
            seconds=facts["seconds"],
            preloaded=facts["preloaded"],
            failed=facts["failed"],
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _stop_runs(self, cause: str) -> None:
        """Stop every run and wait until each has its end on the server."""
        self._stop_cause = cause
        live = list(self._live.values())
        for run in live:
            run.send_signal(signal.SIGTERM)
        await _wait_for_all([run.ended for run in live], self._settings.stop_grace)
        for run in live:
            if not run.ended.is_set():
                run.send_signal(signal.SIGKILL)
        await _wait_for_all([run.settled for run in live], 5.0)
        for flow_run_id in self._ledger.not_started():
            await self._give_back(flow_run_id)

    # Learning of runs

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs and submit them; one poll at a time."""
        async with self._poll_lock:
            if self._stop_cause:
                return []
            submitted = await super().get_and_submit_flow_runs()
            if self._memo:
                self._memo.forget()
            for flow_run in submitted:
                if flow_run.id not in self._live:
                    self._ledger.take(flow_run.id)
            return submitted

    async def _watch_events(self, watch: EventWatch) -> None:
        while self._work_pool is None:  # the server was out of reach when the worker started
            await asyncio.sleep(1.0)
        await watch.run(self.work_pool.id)

    def _on_connected(self) -> None:
        self._poll_wanted.set()
        self._spawn(self._find_cancelled())

    async def _poll_when_wanted(self) -> None:
        """Poll when an event or a finished run asks for it, however many ask at once."""
        loop = asyncio.get_running_loop()
        last = 0.0
        while True:
            await self._poll_wanted.wait()
            await asyncio.sleep(max(0.0, last + _POLL_SPACING - loop.time()))
            self._poll_wanted.clear()
            for pause in (0.0, *_POLL_RETRIES):
                await asyncio.sleep(pause)
                if self._limiter and self._limiter.available_tokens == 0:
                    break  # the run that ends next asks again
                last = loop.time()
                try:
                    if await self.get_and_submit_flow_runs():
                        break
                except httpx.HTTPError as error:
                    self._logger.debug("A poll failed, the regular ones go on: %s", error)
                    break

    # Cancelling

    async def _setup_cancellation_observer(self) -> None:
        """Leave cancelling to this worker: Prefect's observer knows only runs without a process.

        It would call a run Cancelled whose engine is coming up, and then call it Running again.
        """

    def _on_cancelling(self, flow_run_id: UUID) -> None:
        """React to a run that was cancelled, be it submitted yet or not."""
        self._cancel_requests[flow_run_id] = None
        if len(self._cancel_requests) > _REMEMBERED_CANCELS:
            del self._cancel_requests[next(iter(self._cancel_requests))]
        if run := self._live.get(flow_run_id):
            self._spawn(self._cancel_live(run))

    async def _look_for_cancelled(self) -> None:
        """Find cancelled runs by polling, in case an event was lost."""
        while True:
            await asyncio.sleep(get_current_settings().worker.cancellation_poll_seconds)
            await self._find_cancelled()

    async def _find_cancelled(self) -> None:
        ours = [run.flow_run_id for run in self._live.values() if not run.cancelled]
        ours += self._ledger.not_started()
        if not ours:
            return
        cancelling = FlowRunFilter(
            id=FlowRunFilterId(any_=ours),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING])),
        )
        try:
            for flow_run in await self.client.read_flow_runs(flow_run_filter=cancelling):
                self._on_cancelling(flow_run.id)
        except httpx.HTTPError as error:
            self._logger.debug("Looking for cancelled runs failed: %s", error)

    async def _cancel_live(self, run: LiveRun) -> None:
        """Stop the process of a cancelled run: by the engine itself, by SIGTERM, at last by SIGKILL."""
        if run.cancelled:
            return
        run.cancelled = True
        if run.warm and self._cancel_channel:
            # Killed while its engine comes up, it would report a crash; so let it connect first.
            announced = await self._cancel_channel.announce_cancel(run.flow_run_id, _CANCEL_CONNECT)
            if announced is None:
                return  # it had ended by itself
        else:
            await _wait_for_all([run.ended], _STOCK_CANCEL)
        if not run.ended.is_set():
            run.send_signal(signal.SIGTERM)
            await _wait_for_all([run.ended], self._settings.cancel_grace)
        if not run.ended.is_set():
            run.send_signal(signal.SIGKILL)

    # Running

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run to its end, in a fork of the warm process where that can be."""
        started = task_status.started if task_status else (lambda _pid: None)
        try:
            if self._stop_cause:
                await self._give_back(flow_run.id)
                return _not_run(started)
            if flow_run.id in self._cancel_requests:
                await self._settle(flow_run, configuration, Ended(None, clean=False), None, Memory())
                return _not_run(started)
            why_not = self._why_stock(configuration)
            if why_not is None:
                try:
                    return await self._run_warm(flow_run, configuration, started)
                except NotWarmError as error:
                    why_not = str(error)
            self.get_flow_run_logger(flow_run).info("Starting a new interpreter for this run: %s.", why_not)
            return await self._run_stock(flow_run, configuration, started)
        finally:
            self._ledger.drop(flow_run.id)
            self._cancel_requests.pop(flow_run.id, None)
            self._poll_wanted.set()

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Label a run with its worker, but start it after two seconds in any case.

        A busy server may refuse this one call, whose transaction reads before it writes, for a minute; to
        the process worker such a run has crashed.
        """
        await asyncio.wait({self._spawn(self._label(flow_run_id))}, timeout=_LABELS_WAIT)

    async def _label(self, flow_run_id: UUID) -> None:
        try:
            await super()._give_worker_labels_to_flow_run(flow_run_id)
        except httpx.HTTPError as error:
            self._logger.warning("Flow run %s does without the labels of its worker: %s", flow_run_id, error)

    def _why_stock(self, configuration: ProcessJobConfiguration) -> str | None:
        """Say why a run cannot be forked, if so."""
        if command := getattr(configuration, "_own_command", None):
            return f"its job variables bring their own command ({command})"
        env = configuration.env
        if str(env.get("PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES")).lower() in ("1", "true"):
            return "its dependencies may have to be installed (PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES)"
        return self._why_never_warm

    async def _run_warm(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, started: Callable[[int], None]
    ) -> ProcessWorkerResult:
        assert self._warm
        assert self._cancel_channel
        env = _environment(flow_run, configuration)
        await self._warm.check(env)
        env |= self._cancel_channel.register(flow_run.id)
        try:
            with _working_directory(configuration) as cwd:
                memory = Memory.read()
                child = await self._warm.fork(
                    str(flow_run.id),
                    "prefect.engine",
                    env=env,
                    cwd=cwd,
                    quiet=not configuration.stream_output,
                )
                async with self._alive(flow_run.id, child.pid, self._signals_to(child), warm=True) as run:
                    started(child.pid)
                    ended = await asyncio.shield(child.ended)
                    run.ended.set()
                    code = await self._settle(flow_run, configuration, ended, run, memory, env=env, cwd=cwd)
        finally:
            self._cancel_channel.unregister(flow_run.id)
        return ProcessWorkerResult(status_code=code, identifier=str(child.pid))

    def _signals_to(self, child: WarmChild) -> Callable[[int], None]:
        warm = self._warm
        assert warm
        return lambda number: warm.signal(child, number)

    async def _run_stock(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, started: Callable[[int], None]
    ) -> ProcessWorkerResult:
        """Run as the process worker does, and see that the run has an end afterwards."""
        status = _PidStatus()
        memory = Memory.read()
        process = asyncio.create_task(super().run(flow_run, configuration, status))
        process.add_done_callback(lambda _: status.pid.cancel())
        await asyncio.wait([status.pid])
        if status.pid.cancelled():
            return await process  # raises what kept it from starting
        pid = status.pid.result()
        async with self._alive(flow_run.id, pid, _signals_to_stock(flow_run.id, pid), warm=False) as run:
            started(run.pid)
            try:
                result = await process
                ended = Ended(result.status_code, clean=False)
            except Exception as error:  # noqa: BLE001 - whatever the stock way met, the run gets its end
                result = ProcessWorkerResult(status_code=1, identifier=str(run.pid))
                ended = Ended(None, clean=False, cause=str(error))
            run.ended.set()
            result.status_code = await self._settle(flow_run, configuration, ended, run, memory)
        return result

    @asynccontextmanager
    async def _alive(
        self, flow_run_id: UUID, pid: int, send_signal: Callable[[int], None], *, warm: bool
    ) -> AsyncIterator[LiveRun]:
        """Keep a run among those that can be cancelled and stopped."""
        run = LiveRun(flow_run_id, pid, send_signal, warm)
        self._live[flow_run_id] = run
        self._ledger.start(flow_run_id, pid)
        if flow_run_id in self._cancel_requests:
            self._on_cancelling(flow_run_id)
        if self._stop_cause:
            run.send_signal(signal.SIGTERM)
        try:
            yield run
        finally:
            run.ended.set()
            run.settled.set()
            del self._live[flow_run_id]

    # Ends

    async def _settle(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        ended: Ended,
        run: LiveRun | None,
        memory: Memory,
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> int:
        """See that a run has its true end on the server; the exit code to report."""
        cancelled = run.cancelled if run else True
        if ended.clean and ended.code == 0 and not cancelled:
            return 0
        signal_processes(processes_of(flow_run.id), signal.SIGKILL)
        logger = self.get_flow_run_logger(flow_run)
        reason = (
            self._stop_cause
            or ended.cause
            or describe_ending(ended.code, clean=ended.clean, before=memory, now=Memory.read())
        )

        async def run_hooks(kind: HookKind, message: str) -> None:
            if env is not None and cwd is not None:
                await self._run_hooks(flow_run.id, kind, message, env, cwd)

        ending = Ending(flow_run.id, reason, cancelled, pid=run.pid if run else None, mlflow_env=configuration.env)
        state = await settle(self.client, ending, run_hooks=run_hooks, logger=logger)
        if state is None:
            return 0
        if state.is_crashed():
            logger.error("The run has ended as Crashed: %s.", reason)
            return ended.code if ended.code is not None else 1
        return 0

    async def _run_hooks(self, flow_run_id: UUID, kind: HookKind, message: str, env: dict[str, str], cwd: str) -> None:
        """Run the flow's own hooks in a process of their own, forked if that can be."""
        module, key = "warm_process.hooks", f"{flow_run_id} {kind}"
        try:
            async with asyncio.timeout(_HOOKS_TIMEOUT):
                try:
                    assert self._warm
                    child = await self._warm.fork(key, module, kind, message, env=env, cwd=cwd)
                    await child.ended
                except NotWarmError:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", module, kind, message, env=env, cwd=cwd
                    )
                    await process.wait()
        except TimeoutError:
            self._logger.warning("The %s hooks of flow run %s take too long.", kind, flow_run_id)

    async def _give_back(self, flow_run_id: UUID) -> None:
        """Put a run that was taken but not started back into its queue."""
        with contextlib.suppress(httpx.HTTPError, ObjectNotFound):
            flow_run = await self.client.read_flow_run(flow_run_id)
            worker = flow_run.labels.get("prefect.worker.name", self.name)
            if flow_run.state and flow_run.state.is_pending() and worker == self.name:
                message = "The worker was stopped before it had started the run."
                await self.client.set_flow_run_state(flow_run_id, Scheduled(message=message), force=True)
        self._ledger.drop(flow_run_id)

    async def _settle_left_behind(self) -> None:
        """Settle the runs of workers on this pool that were killed together with all they had started."""
        try:
            with self._ledger.left_behind() as runs:
                for run in runs:
                    await self._settle_one_left_behind(run)
        except (httpx.HTTPError, OSError) as error:
            self._logger.warning("Runs of an earlier worker are left for the next one to settle: %s", error)

    async def _settle_one_left_behind(self, run: TakenRun) -> None:
        reason = "the worker that ran it was killed, together with its process"
        if run.pid is None:
            reason = "the worker that had taken it was killed before it started the run"
            flow_run = await self.client.read_flow_run(run.flow_run_id)
            if not (flow_run.state and flow_run.state.is_pending()):
                return
            if flow_run.labels.get("prefect.worker.name", run.worker) != run.worker:
                return
        else:
            await _end_processes_of(run.flow_run_id, self._settings.stop_grace)
        ending = Ending(run.flow_run_id, reason, pid=run.pid, mlflow_env=os.environ)
        state = await settle(self.client, ending, logger=self._logger)
        if state:
            self._logger.warning(
                "Flow run %s was left by worker %r and is %s now.", run.flow_run_id, run.worker, state.name
            )


class _PidStatus(anyio.abc.TaskStatus[int]):
    """Takes the pid that the stock way reports."""

    def __init__(self) -> None:
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def started(self, value: int | None = None) -> None:
        if value is not None and not self.pid.done():
            self.pid.set_result(value)


def _not_run(started: Callable[[int], None]) -> ProcessWorkerResult:
    started(0)
    return ProcessWorkerResult(status_code=0, identifier="0")


def _environment(flow_run: FlowRun, configuration: ProcessJobConfiguration) -> dict[str, str]:
    """Compose the environment of a run; what the job sets wins over what the worker has."""
    env = {name: value for name, value in configuration.env.items() if value is not None}
    env[prefect_private.FLOW_RUN_ID] = str(flow_run.id)
    env[prefect_private.ENGINE_OWNS_CANCELLATION] = "false"
    return env


def _working_directory(
    configuration: ProcessJobConfiguration,
) -> contextlib.AbstractContextManager[str]:
    if configuration.working_dir:
        return contextlib.nullcontext(str(Path(configuration.working_dir).resolve()))
    return tempfile.TemporaryDirectory(suffix="prefect", ignore_cleanup_errors=True)


def _signals_to_stock(flow_run_id: UUID, pid: int) -> Callable[[int], None]:
    """Signal what the stock way has started: all of it where that can be seen, else the one process."""
    return lambda number: signal_processes(processes_of(flow_run_id) if sys.platform == "linux" else [pid], number)


async def _wait_for_all(events: list[asyncio.Event], seconds: float) -> None:
    async def wait() -> None:
        for event in events:
            await event.wait()

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wait(), seconds)


async def _end_processes_of(flow_run_id: UUID, grace: float) -> None:
    """Stop what lives on of a dead worker's run, as one that was started the stock way does."""
    deadline = asyncio.get_running_loop().time() + grace
    signal_processes(processes_of(flow_run_id), signal.SIGTERM)
    while left := processes_of(flow_run_id):
        if asyncio.get_running_loop().time() > deadline:
            signal_processes(left, signal.SIGKILL)
            return
        await asyncio.sleep(0.1)
