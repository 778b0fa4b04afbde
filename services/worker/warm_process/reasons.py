"""Describes how the process of a run ended, with what the kernel knows about its memory."""

import signal
from dataclasses import dataclass, replace

from warm_process.cgroup import CgroupMemory

_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended."""

    code: int | None
    """The exit code, negative for a signal; None if unknown."""
    ran_to_end: bool
    """Whether its program came to its end, whatever the code."""
    has_reported: bool = False
    """Whether its engine has reported the end of the run to the server."""
    cause: str | None = None
    """What else explains the end."""


class OomKills:
    """Attributes every kill that the control group counts to one run: runs share the counter."""

    def __init__(self) -> None:
        self._attributed = 0

    def describe(self, process_exit: ProcessExit, *, before: CgroupMemory, after: CgroupMemory) -> str:
        """Describe how a process ended, as `describe_exit` does; a kill explains the end of one run only."""
        if process_exit.code == -signal.SIGKILL and before.oom_kills is not None and after.oom_kills is not None:
            explained = max(before.oom_kills, self._attributed)
            before = replace(before, oom_kills=explained)
            if after.oom_kills > explained:
                self._attributed = explained + 1
        return describe_exit(process_exit, before=before, after=after)


def describe_exit(process_exit: ProcessExit, *, before: CgroupMemory, after: CgroupMemory) -> str:
    """Describe how a process ended.

    Args:
        process_exit: Its exit.
        before: Memory when the process started.
        after: Memory after it ended.
    """
    code = process_exit.code
    if process_exit.cause:
        return process_exit.cause
    if code is None:
        return "its process is gone"
    if code == -signal.SIGKILL:
        return f"its process was killed by signal 9{_describe_memory(before, after)}"
    if code < 0:
        return f"its process was killed by signal {-code} ({_signal_name(-code)})"
    if code == 0 and not process_exit.ran_to_end:
        return "its process exited with code 0 in the middle of the run"
    if code == 0:
        return "its process ended without reporting an end of the run"
    return f"its process exited with code {code} before it reported an end; the run's log may say why"


def _describe_memory(before: CgroupMemory, after: CgroupMemory) -> str:
    limit = f", limit {format_size(after.limit)}" if after.limit else ""
    if after.oom_kills is None or before.oom_kills is None:
        return f"; probably out of memory{limit}"
    if after.oom_kills > before.oom_kills:
        return f": out of memory{limit}"
    return " from outside; it was not out of memory"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def format_size(size: int) -> str:
    """Format a number of bytes for people: 1.5 GiB, 512 MiB."""
    unit, name = (_GIB, "GiB") if size >= _GIB else (_MIB, "MiB")
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
