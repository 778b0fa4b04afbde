"""Describes how the process of a run ended, with what the kernel knows about its memory."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_GIB, _MIB = 1 << 30, 1 << 20
_UNLIMITED = 1 << 60  # version 1 shows a number near 2^63 where there is no limit


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


@dataclass(frozen=True)
class CgroupMemory:
    """The memory limit of this process's control group, and how often it was exceeded."""

    limit: int | None = None
    """Bytes; None where there is no limit or none can be read."""
    oom_kills: int | None = None
    """Processes that the kernel killed for it; None where it cannot be read."""

    @classmethod
    def read(cls, own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUP_ROOT) -> "CgroupMemory":
        """Read the tightest limit between this process's group and the root, and the group's kills."""
        try:
            lines = own.read_text().splitlines()
        except OSError:
            return cls()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if (root / "memory" / "memory.limit_in_bytes").exists():
            return cls._read_version_1(root / "memory")
        if path is None:
            return cls()
        group = root / path.lstrip("/")
        if not group.is_dir():  # /proc names the group as seen from outside a container's namespace
            group = root
        limits = []
        for folder in (group, *group.parents):
            if (value := _read(folder / "memory.max")).isdigit():
                limits.append(int(value))
            if folder == root:
                break
        return cls(min(limits, default=None), _oom_kills(group / "memory.events"))

    @classmethod
    def _read_version_1(cls, group: Path) -> "CgroupMemory":
        """Read the older interface, where a container sees its own group at the root of the mount."""
        limit = int(_read(group / "memory.limit_in_bytes"))
        return cls(limit if limit < _UNLIMITED else None, _oom_kills(group / "memory.oom_control"))


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
    limit = f", limit {_format_size(after.limit)}" if after.limit else ""
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


def _format_size(size: int) -> str:
    unit, name = (_GIB, "GiB") if size >= _GIB else (_MIB, "MiB")
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"


def _oom_kills(file: Path) -> int | None:
    events = dict(line.split() for line in _read(file).splitlines())
    return int(events["oom_kill"]) if "oom_kill" in events else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
