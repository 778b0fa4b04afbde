"""The worker's metrics for Prometheus: its runs, slots and memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import prometheus_client
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from warm_process.cgroup import CgroupMemory
from warm_process.live_runs import LiveRun, LiveRuns
from warm_process.reasons import ProcessExit

STARTED = Counter("worker_runs_started", "Flow runs that got a process, by the way: forked or cold.", ["start"])
ENDED = Counter(
    "worker_runs_ended",
    "Processes of flow runs that ended: reported by the run itself; cancelled; over a limit; stopped with the worker; or died.",
    ["end"],
)
ENDS = ("reported", "cancelled", "limit", "stopped", "died")


class WorkerCollector(Collector):
    """Running flow runs, slots and memory, read at each scrape."""

    def __init__(self, live: LiveRuns, count_slots: Callable[[], int | None]) -> None:
        self._live, self._count_slots = live, count_slots

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the metrics are known only at a scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; those of a limit where there is one."""
        memory = CgroupMemory.read()
        gauges = {
            ("worker_runs", "Flow runs that have a process."): len(self._live),
            ("worker_slots", "Flow runs that may run at once."): self._count_slots(),
            ("worker_memory_limit_bytes", "Memory that worker and runs may use together."): memory.limit,
            ("worker_memory_bytes", "Memory that they use, without cached files."): memory.read_usage(),
        }
        for (name, text), value in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)


@contextmanager
def serve_metrics(port: int | None, live: LiveRuns, count_slots: Callable[[], int | None]) -> Iterator[None]:
    """Answer scrapes on a port while the block lasts; do nothing without one."""
    if port is None:
        yield
        return
    for end in ENDS:
        ENDED.labels(end)
    for start in ("forked", "cold"):
        STARTED.labels(start)
    collector = WorkerCollector(live, count_slots)
    prometheus_client.REGISTRY.register(collector)
    server, thread = prometheus_client.start_http_server(port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        prometheus_client.REGISTRY.unregister(collector)


def count_start(run: LiveRun) -> None:
    """Count a run that got a process."""
    STARTED.labels("forked" if run.fork else "cold").inc()


def count_end(run: LiveRun, process_exit: ProcessExit, *, is_stopping: bool) -> None:
    """Count a run whose process has ended.

    Args:
        run: The run.
        process_exit: How its process ended.
        is_stopping: Whether the worker stops its runs.
    """
    if run.excess:
        end = "limit"
    elif run.ending == "cancel":
        end = "cancelled"
    elif is_stopping and run.ending:
        end = "stopped"
    else:
        end = "reported" if process_exit.has_reported or is_cold_success(run, process_exit) else "died"
    ENDED.labels(end).inc()


def is_cold_success(run: LiveRun, process_exit: ProcessExit) -> bool:
    """Return whether a cold start ended by itself: its engine reports to the server alone."""
    return run.fork is None and process_exit.code == 0
