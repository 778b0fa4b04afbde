"""Finds, signals and watches operating-system processes."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from uuid import UUID

from warm_process.prefect_private import FLOW_RUN_ID


def processes_of(flow_run_id: UUID) -> list[int]:
    """List the processes that have a run's id in their initial environment; none where there is no /proc.

    A fork of the warm process is not among them, because /proc shows the warm process's environment for it. What
    the fork started is, even outside its process group.
    """
    marker = f"{FLOW_RUN_ID}={flow_run_id}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if marker in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def signal_processes(pids: list[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads, if it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; reap it first if it is an ended child of this process."""
    with contextlib.suppress(ChildProcessError):
        # Orphans become children of PID 1, which the worker itself may be.
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def offer_to_oom_killer(pid: int) -> None:
    """Have the kernel kill this process when memory runs out, and not the worker, the server or the database."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


async def terminate_processes_of(flow_run_id: UUID, grace: float) -> None:
    """Terminate the processes of a run, and kill those that are left after `grace` seconds."""
    deadline = asyncio.get_running_loop().time() + grace
    signal_processes(processes_of(flow_run_id), signal.SIGTERM)
    while pids := processes_of(flow_run_id):
        if asyncio.get_running_loop().time() > deadline:
            signal_processes(pids, signal.SIGKILL)
            return
        await asyncio.sleep(0.1)
