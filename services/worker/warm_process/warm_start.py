"""Warm starts: runs that execute in a fork of the warm process."""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration

from warm_process import prefect_private
from warm_process.cgroup import CgroupMemory
from warm_process.job import WarmProcessJobConfiguration
from warm_process.ledger import Claim
from warm_process.limits import Limits
from warm_process.live_runs import ForkContext, LiveRun
from warm_process.supervisor import Fork, Supervisor
from warm_process.threads import set_for_fork


class CannotStartError(Exception):
    """A run cannot have a process; the message says why."""


@asynccontextmanager
async def fork_run(
    supervisor: Supervisor,
    channel: prefect_private.ControlChannel,
    flow_run: FlowRun,
    claim: Claim,
    configuration: WarmProcessJobConfiguration,
) -> AsyncIterator[tuple[LiveRun, Fork]]:
    """Start a run in a fork, whose working directory and control channel exist while the block lasts.

    Raises:
        CannotForkError: The run needs a new interpreter, or the fork failed.
        CannotStartError: The working directory of the job does not exist.
    """
    env = _environment(flow_run, configuration)
    await supervisor.wait_until_ready(env)
    set_for_fork(env, configuration.threads)
    env |= channel.register(flow_run.id)
    try:
        with _working_directory(configuration) as cwd:
            memory = CgroupMemory.read()
            fork = await supervisor.fork(
                str(flow_run.id),
                "prefect.engine",
                env=env,
                cwd=cwd,
                quiet=not configuration.stream_output,
                threads=configuration.threads,
            )
            yield (
                LiveRun(
                    flow_run=flow_run,
                    claim=claim,
                    pid=fork.pid,
                    send_signal=lambda number: supervisor.signal(fork, number),
                    memory_before=memory,
                    job_env=configuration.env,
                    limits=Limits.of(configuration, memory.limit),
                    fork=ForkContext(env, cwd),
                ),
                fork,
            )
    finally:
        channel.unregister(flow_run.id)


def append_python_path(configuration: ProcessJobConfiguration) -> None:
    """Append the worker's PYTHONPATH to one that the job sets: it holds the platform's own packages in the images."""
    own, job = os.environ.get("PYTHONPATH"), configuration.env.get("PYTHONPATH")
    if own and job and job != own:
        configuration.env["PYTHONPATH"] = f"{job}{os.pathsep}{own}"


@contextlib.contextmanager
def temporary_folder(configuration: ProcessJobConfiguration) -> Iterator[None]:
    """Give a run a TMPDIR of its own, unless its job sets one; what the run leaves there is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="run-", ignore_cleanup_errors=True) as folder:
        if configuration.env.get("TMPDIR") == os.environ.get("TMPDIR"):
            configuration.env["TMPDIR"] = folder
        yield


def _environment(flow_run: FlowRun, configuration: ProcessJobConfiguration) -> dict[str, str]:
    """Compose the environment of a run, in which the job's variables override the worker's."""
    env = {name: value for name, value in configuration.env.items() if value is not None}
    env[prefect_private.FLOW_RUN_ID] = str(flow_run.id)
    env[prefect_private.ENGINE_OWNS_CANCELLATION] = "false"
    return env


def _working_directory(configuration: ProcessJobConfiguration) -> contextlib.AbstractContextManager[str]:
    if configuration.working_dir:
        if not configuration.working_dir.is_dir():
            raise CannotStartError(f"its working directory {configuration.working_dir} does not exist")
        return contextlib.nullcontext(str(configuration.working_dir.resolve()))
    return tempfile.TemporaryDirectory(suffix="prefect", ignore_cleanup_errors=True)
