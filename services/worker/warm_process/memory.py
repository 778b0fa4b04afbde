"""The memory that runs use, from /proc: what cannot be taken from them, so neither files nor what the warm process has."""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress

# What the kernel counts when memory runs out; mapped files are read again from the disk.
_IN_STATUS = ("RssAnon", "RssShmem", "VmSwap")


def find_members(leaders: Collection[int]) -> dict[int, list[int]]:
    """Find the processes of runs: those that a run's process started, and those in its process group or session.

    Args:
        leaders: The pids of the runs' processes.

    Returns:
        The pids of each run's processes, by the pid of its first.
    """
    table: dict[int, tuple[int, ...]] = {}  # parent, process group and session
    for name in (entry.name for entry in os.scandir("/proc")):
        if name.isdigit():
            with suppress(OSError, IndexError):  # it has ended
                fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split(None, 4)
                table[int(name)] = (int(fields[1]), int(fields[2]), int(fields[3]))
    members: dict[int, list[int]] = {leader: [] for leader in leaders}
    for pid in table:
        if leader := _find_leader(pid, table, members):
            members[leader].append(pid)
    return members


def _find_leader(pid: int, table: Mapping[int, tuple[int, ...]], leaders: Collection[int]) -> int | None:
    for _ in range(len(table)):  # a table that is read while pids change might have a loop
        for candidate in (pid, *table.get(pid, ())[1:]):
            if candidate in leaders:
                return candidate
        if pid not in table:
            break
        pid = table[pid][0]
    return None


def estimate_memory(pids: Collection[int]) -> int:
    """Return an upper bound of the memory of processes in bytes, which is read quickly: shared pages count repeatedly."""
    sizes = [_read_sizes(f"/proc/{pid}/status") for pid in pids]
    return sum(found[name] for found in sizes for name in _IN_STATUS)


def measure_memory(pids: Collection[int], warm_pid: int | None) -> int:
    """Return the memory of a run in bytes: what its processes alone have, and what they share with each other.

    Args:
        pids: Its processes.
        warm_pid: The warm process, whose pages a fork shares until it writes to them; they do not count.
    """
    private = shared = swapped = 0
    for pid in pids:
        sizes = read_rollup(pid)
        if "Pss_Anon" not in sizes:  # it has ended, or the kernel is older than 5.3
            private += estimate_memory([pid])
            continue
        proportional = sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        own = min(sizes["Private_Dirty"], proportional)  # pages of files may be dirty too
        private, shared = private + own, shared + proportional - own
        swapped += sizes["SwapPss"]
    if shared and warm_pid:
        shared = max(0, shared - read_rollup(warm_pid)["Shared_Dirty"])
    return private + shared + swapped


def read_rollup(pid: int) -> Counter[str]:
    """Read the sums of a process's memory map in bytes, by the names of /proc/PID/smaps_rollup; empty if it has ended."""
    return _read_sizes(f"/proc/{pid}/smaps_rollup")


def _read_sizes(path: str) -> Counter[str]:
    sizes: Counter[str] = Counter()
    with suppress(OSError):
        for line in _read(path).splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                sizes[name] = int(value.split()[0]) * 1024
    return sizes


def _read(path: str) -> str:
    """Read a short file; a third of the time of `Path.read_text`, for a hundred processes ten times a second."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 13).decode(errors="replace")
    finally:
        os.close(descriptor)
