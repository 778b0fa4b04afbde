"""Watches the live runs, and ends those that exceed a limit."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from warm_process.background import BackgroundTasks
from warm_process.cgroup import CgroupMemory
from warm_process.endings import RunEndings
from warm_process.limits import Excess, Limits, choose_largest, is_exhausted
from warm_process.live_runs import LiveRun, LiveRuns
from warm_process.memory import estimate_memory, find_members, measure_memory
from warm_process.processes import signal_processes

# A process fills some 200 MiB meanwhile, which the reserve of the default limit has room for.
_INTERVAL_SECONDS = 0.1
# How long the server may take to record why a cold start ends.
_REPORT_TIMEOUT = 10.0


@dataclass(frozen=True)
class _Memory:
    """What a look at the memory has found, by the pids of the runs' processes."""

    members: dict[int, list[int]]
    used: dict[int, int]
    """Bytes; of the runs that may exceed their limit, or of all where the worker's memory is exhausted."""
    is_exhausted: bool


class LimitWatch:
    """Looks at memory and wall time of the live runs; does nothing while there is none."""

    def __init__(
        self,
        live: LiveRuns,
        endings: RunEndings,
        background: BackgroundTasks,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        *,
        warm_pid: Callable[[], int | None],
    ) -> None:
        self._live = live
        self._endings = endings
        self._background = background
        self._logger = logger
        self._warm_pid = warm_pid

    async def watch(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._live.wait_for_any()
            await self._look()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _look(self) -> None:
        runs = {run.pid: run for run in self._live if run.excess is None and not run.ended.is_set()}
        for run in runs.values():
            excess = run.limits.check_wall_time(time.monotonic() - run.started_at)
            if excess and not run.ending:
                self._end(run, excess)
        if sys.platform == "linux" and runs:
            await self._look_at_memory(runs)

    async def _look_at_memory(self, runs: Mapping[int, LiveRun]) -> None:
        *_, newest = runs.values()
        limits = {pid: run.limits for pid, run in runs.items()}
        # Before the look: what it finds may still contain the memory of a run that ends meanwhile.
        is_one_ending = any(run.excess and not run.ended.is_set() for run in self._live)
        # In a thread, because the kernel adds up the pages of a large process in some milliseconds.
        found = await asyncio.to_thread(_measure, limits, newest.memory_before, self._warm_pid())
        for pid, used in found.used.items():
            if excess := runs[pid].limits.check_memory(used):
                self._end(runs[pid], excess, found.members[pid])
        if found.is_exhausted and newest.memory_before.limit and not is_one_ending:
            pid, excess = choose_largest(found.used, newest.memory_before.limit)
            self._end(runs[pid], excess, found.members[pid])

    def _end(self, run: LiveRun, excess: Excess, at_once: list[int] | None = None) -> None:
        """End a run; its processes are killed at once where they are given, because memory leaves no time."""
        if run.ended.is_set():
            return
        run.excess = excess
        self._logger.warning("Flow run %s is ended: %s.", run.flow_run.id, excess.reason)
        if run.fork is None:
            self._background.spawn(self._end_cold_start(run))
        elif at_once:
            signal_processes(at_once, signal.SIGKILL)
        else:
            self._background.spawn(self._live.end(run, "relinquish"))

    async def _end_cold_start(self, run: LiveRun) -> None:
        """Record why a cold start ends before it does: Prefect's process worker would give a reason of its own."""
        run.send_signal(signal.SIGSTOP)  # it gets no further, and uses no more memory
        try:
            await asyncio.wait_for(self._endings.settle_excess(run), _REPORT_TIMEOUT)
        except TimeoutError:
            self._logger.warning("The server has not recorded in time why flow run %s ends.", run.flow_run.id)
        finally:
            run.send_signal(signal.SIGKILL)


def _measure(limits: Mapping[int, Limits], worker: CgroupMemory, warm_pid: int | None) -> _Memory:
    exhausted = is_exhausted(worker.read_usage(), worker.limit)
    members = find_members(limits)
    used = {
        pid: measure_memory(members[pid], warm_pid)
        for pid, limit in limits.items()
        if exhausted or limit.check_memory(estimate_memory(members[pid]))
    }
    return _Memory(members, used, exhausted)
