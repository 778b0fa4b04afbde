"""Finds the processes of a run by the variable that every one of them inherits."""

import contextlib
import os
from pathlib import Path
from uuid import UUID

from warm_process.prefect_private import FLOW_RUN_ID


def processes_of(flow_run_id: UUID) -> list[int]:
    """List what was started with the run's id in its environment; nothing where there is no /proc.

    A fork of the warm process is not among them, since it has the environment of the warm process
    there. What it has started itself is, also where that has left its process group.
    """
    mark = f"{FLOW_RUN_ID}={flow_run_id}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def signal_processes(pids: list[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
