"""Says in words how the process of a run ended, with what the kernel knows about memory."""

import signal
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_GIB, _MIB = 1 << 30, 1 << 20
_NO_LIMIT = 1 << 60  # version 1 says a number near 2^63 where there is none


@dataclass(frozen=True)
class Memory:
    """What the control group says: its limit, and how many processes ran out of memory."""

    limit: int | None = None
    """Bytes; None when there is no limit or none can be read."""
    kills: int | None = None
    """None where it cannot be read."""

    @classmethod
    def read(cls, own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> "Memory":
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
        if not group.is_dir():  # the group seen from outside a container's namespace
            group = root
        limits = []
        for folder in (group, *group.parents):
            if (value := _read(folder / "memory.max")).isdigit():
                limits.append(int(value))
            if folder == root:
                break
        return cls(min(limits, default=None), _kills(group / "memory.events"))

    @classmethod
    def _read_version_1(cls, group: Path) -> "Memory":
        """Read the older interface, where a container sees its own group at the root of the mount."""
        limit = int(_read(group / "memory.limit_in_bytes"))
        return cls(limit if limit < _NO_LIMIT else None, _kills(group / "memory.oom_control"))


def _kills(file: Path) -> int | None:
    events = dict(line.split() for line in _read(file).splitlines())
    return int(events["oom_kill"]) if "oom_kill" in events else None


def describe_ending(code: int | None, *, clean: bool, before: Memory, now: Memory) -> str:
    """Word how a process ended.

    Args:
        code: exit code, negative for a signal, None if nobody saw it.
        clean: whether its program came to the end.
        before: memory when the process started.
        now: memory after it ended.
    """
    if code is None:
        return "its process is gone"
    if code == -signal.SIGKILL:
        return f"its process was killed by signal 9{_out_of_memory(before, now)}"
    if code < 0:
        return f"its process was killed by signal {-code} ({_signal_name(-code)})"
    if code == 0 and not clean:
        return "its process exited with code 0 in the middle of the run"
    if code == 0:
        return "its process ended without reporting an end of the run"
    return f"its process exited with code {code} before it reported an end; the run's log may say why"


def _out_of_memory(before: Memory, now: Memory) -> str:
    limit = f", limit {_amount(now.limit)}" if now.limit else ""
    if now.kills is None or before.kills is None:
        return f"; probably out of memory{limit}"
    if now.kills > before.kills:
        return f": out of memory{limit}"
    return " from outside; it was not out of memory"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _amount(size: int) -> str:
    unit, name = (_GIB, "GiB") if size >= _GIB else (_MIB, "MiB")
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
