"""The limits of a run: memory and wall time; what exceeds one, and what is said about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from warm_process.job import WarmProcessJobConfiguration
from warm_process.reasons import format_size

_MIB = 1 << 20
# What a run leaves to worker and warm process, which use about 400 MiB, and to what it allocates between two looks.
_MIN_RESERVE, _RESERVE_SHARE = 512 * _MIB, 0.15
_EXHAUSTED_SHARE = 0.95


@dataclass(frozen=True)
class Excess:
    """A limit that a run has exceeded, and for which it is ended."""

    reason: str
    """As the second half of "The flow run crashed: REASON."."""
    may_rerun: bool = False
    """Whether it is run again as after a crash: it would meet a limit of its own again."""


@dataclass(frozen=True)
class Limits:
    """The limits of one run."""

    memory: int | None = None
    """Bytes."""
    wall_time: float | None = None
    """Seconds from the start of its process."""
    worker_memory: int | None = None
    """The bytes of which the default of its memory is a part; None where its job variables set it."""

    @classmethod
    def of(cls, configuration: WarmProcessJobConfiguration, worker_memory: int | None) -> "Limits":
        """Return the limits that a run's job variables set, or their defaults.

        Args:
            configuration: Its job variables.
            worker_memory: The limit of the worker's container in bytes; None where it has none.
        """
        wall_time = configuration.wall_time_seconds
        if configuration.memory_mib is not None:
            return cls(configuration.memory_mib * _MIB, wall_time)
        return cls(default_memory(worker_memory), wall_time, worker_memory)

    def check_memory(self, used: int) -> Excess | None:
        """Return what to say where a run uses more bytes than it may."""
        if self.memory is None or used <= self.memory:
            return None
        origin = "job variable memory_mib"
        if self.worker_memory:
            origin = f"the default where the worker has {format_size(self.worker_memory)}; {origin}"
        return Excess(
            f"it used {format_size(used)} of memory, more than its limit of {format_size(self.memory)} ({origin})"
        )

    def check_wall_time(self, seconds: float) -> Excess | None:
        """Return what to say where a run takes longer than it may."""
        if self.wall_time is None or seconds <= self.wall_time:
            return None
        return Excess(f"it ran for longer than its limit of {self.wall_time:,g} s (job variable wall_time_seconds)")


def default_memory(worker_memory: int | None) -> int | None:
    """Return the bytes that a run may use which sets no limit; None for a worker without a limit.

    They are what the worker has, less 512 MiB or 15 %, whichever is more; a small worker gives half of it to a run.
    """
    if worker_memory is None:
        return None
    reserve = max(_MIN_RESERVE, int(worker_memory * _RESERVE_SHARE))
    return max(worker_memory - reserve, worker_memory // 2)


def is_exhausted(usage: int | None, worker_memory: int | None) -> bool:
    """Tell whether so little of the worker's memory is left that the kernel would soon choose a process to kill."""
    return usage is not None and worker_memory is not None and usage > _EXHAUSTED_SHARE * worker_memory


def choose_largest(used: Mapping[int, int], worker_memory: int) -> tuple[int, Excess]:
    """Choose the run that ends where the worker's memory is exhausted: the one that uses most of it.

    It is run again, because it may be the others that left it no memory; a run that was alone is not.

    Args:
        used: Bytes, by the pid of the run's process.
        worker_memory: The limit of the worker's container in bytes.
    """
    pid = max(used, key=used.__getitem__)
    reason = (
        f"the worker's memory of {format_size(worker_memory)} was exhausted,"
        f" and this run used most of it, {format_size(used[pid])}"
    )
    return pid, Excess(reason, may_rerun=len(used) > 1)
