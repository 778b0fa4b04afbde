"""Cold starts: runs that need a new interpreter, which Prefect's process worker starts."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import anyio
from prefect.workers.process import ProcessWorkerResult

from warm_process.job import WarmProcessJobConfiguration
from warm_process.processes import processes_of, signal_processes
from warm_process.reasons import ProcessExit

_AUTO_INSTALL = "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES"


def cold_start_reason(configuration: WarmProcessJobConfiguration) -> str | None:
    """Return why a job cannot run in a fork; None if it can."""
    if configuration.has_command:
        return f"its job variables set a command ({configuration.command})"
    if str(configuration.env.get(_AUTO_INSTALL)).lower() in ("1", "true", "t", "yes", "y", "on"):
        return f"its dependencies may have to be installed ({_AUTO_INSTALL})"
    return None


class ColdProcess:
    """A run that Prefect's process worker executes in a new interpreter."""

    def __init__(self, flow_run_id: UUID, pid: int, execution: asyncio.Task[ProcessWorkerResult]) -> None:
        self.pid = pid
        self._flow_run_id = flow_run_id
        self._execution = execution

    @classmethod
    async def start(
        cls,
        flow_run_id: UUID,
        execute: Callable[[anyio.abc.TaskStatus[int]], Coroutine[Any, Any, ProcessWorkerResult]],
    ) -> "ColdProcess":
        """Start the process.

        Args:
            flow_run_id: The run.
            execute: The process worker's `run` for it.

        Raises:
            Exception: Whatever kept the process from starting.
        """
        status = _PidStatus()
        execution = asyncio.create_task(execute(status))
        execution.add_done_callback(lambda _: status.pid.cancel())
        await asyncio.wait([status.pid])
        if status.pid.cancelled():
            await execution
            raise RuntimeError("the process worker has started no process")
        return cls(flow_run_id, status.pid.result(), execution)

    def send_signal(self, number: int) -> None:
        """Signal every process of the run where /proc shows them, else the one that was started."""
        signal_processes(processes_of(self._flow_run_id) if sys.platform == "linux" else [self.pid], number)

    async def wait(self) -> ProcessExit:
        """Wait for the end of the process."""
        try:
            result = await self._execution
        except Exception as error:  # noqa: BLE001 - whatever the process worker raises, the run is settled
            return ProcessExit(None, ran_to_end=False, cause=str(error))
        return ProcessExit(result.status_code, ran_to_end=False)


class _PidStatus(anyio.abc.TaskStatus[int]):
    """Receives the pid that the process worker reports."""

    def __init__(self) -> None:
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def started(self, value: int | None = None) -> None:
        if value is not None and not self.pid.done():
            self.pid.set_result(value)
