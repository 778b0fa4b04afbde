"""The control group of this process, of either version: what it may use, and what it uses."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 shows a number near 2^63 where there is no limit


@dataclass(frozen=True)
class CgroupMemory:
    """The memory limit of this process's control group, and how often it was exceeded."""

    limit: int | None = None
    """Bytes; None where there is no limit or none can be read."""
    oom_kills: int | None = None
    """Processes that the kernel killed for it; None where it cannot be read."""
    group: Path | None = field(default=None, compare=False)
    """The folder of the group that has the limit."""

    @classmethod
    def read(cls, own: Path = Path("/proc/self/cgroup"), root: Path = ROOT) -> "CgroupMemory":
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
                limits.append((int(value), folder))
            if folder == root:
                break
        limit, limited = min(limits, default=(None, None))
        return cls(limit, _oom_kills(group / "memory.events"), limited)

    @classmethod
    def _read_version_1(cls, group: Path) -> "CgroupMemory":
        """Read the older interface, where a container sees its own group at the root of the mount."""
        limit = int(_read(group / "memory.limit_in_bytes"))
        kills = _oom_kills(group / "memory.oom_control")
        return cls(limit, kills, group) if limit < _UNLIMITED else cls(None, kills)

    def read_usage(self) -> int | None:
        """Read the bytes that count against the limit and are no file cache, which the kernel takes back when it must.

        Returns:
            None where there is no limit.
        """
        for usage, prefix in (("memory.current", ""), ("memory.usage_in_bytes", "total_")):
            if self.group and (value := _read(self.group / usage)).isdigit():
                counts = _read_counts(self.group / "memory.stat")
                return int(value) - sum(counts.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return None


def read_core_quota(root: Path = ROOT) -> int | None:
    """Read how many cores this process's control group may use, rounded up; None where no quota makes them fewer."""
    quota, _, period = _read(root / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit()):  # "max" and -1 stand for no quota
        return None
    cores = math.ceil(int(quota) / int(period))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if 0 < cores < available else None


def _oom_kills(file: Path) -> int | None:
    return _read_counts(file).get("oom_kill")


def _read_counts(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in _read(file).splitlines())}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
