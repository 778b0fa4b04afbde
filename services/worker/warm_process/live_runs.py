"""The runs that have a process on this worker, and how they are cancelled and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from warm_process.cgroup import CgroupMemory
from warm_process.ledger import Claim, Ledger
from warm_process.limits import Excess, Limits
from warm_process.settings import WarmProcessSettings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from warm_process.prefect_private import ControlChannel, Intent

# How long a run may take to connect to the control channel, which it does while its engine starts.
_CONNECT_TIMEOUT = 5.0
# How long Prefect's process worker may take to cancel a run that it started.
_COLD_CANCEL_TIMEOUT = 5.0
# How long the settling of stopped runs may take once their processes have ended.
_SETTLE_TIMEOUT = 10.0


@dataclass(frozen=True)
class ForkContext:
    """Where a forked run executes; its hooks run in the same place."""

    env: dict[str, str]
    cwd: str


@dataclass(eq=False)
class LiveRun:
    """A run that has a process."""

    flow_run: FlowRun
    claim: Claim
    pid: int
    send_signal: Callable[[int], None]
    memory_before: CgroupMemory
    """Read before its process started."""
    job_env: Mapping[str, str | None]
    """The environment of its job."""
    limits: Limits
    fork: ForkContext | None = None
    """None for a cold start, whose hooks Prefect runs itself."""
    ending: Intent | None = None
    """Why the worker ends its process; None while it does not."""
    excess: Excess | None = None
    """The limit for which the worker ends it; None while it keeps to its limits."""
    started_at: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class LiveRuns:
    """The live runs of a worker, and how they are ended."""

    def __init__(self, settings: WarmProcessSettings, ledger: Ledger) -> None:
        self.is_draining = False
        """Whether no run is started any more."""
        self.stop_cause: str | None = None
        """Why every run is stopped; None unless the worker is stopping."""
        self.withheld: dict[UUID, Intent] = {}
        """Claimed runs that were cancelled or ended before their start, and how they are ended should they start."""
        self.control_channel: ControlChannel | None = None
        self._settings = settings
        self._ledger = ledger
        self._runs: dict[UUID, LiveRun] = {}
        self._is_any = asyncio.Event()

    def __iter__(self) -> Iterator[LiveRun]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, flow_run_id: UUID) -> LiveRun | None:
        """Return a run; None if it has no process here."""
        return self._runs.get(flow_run_id)

    async def wait_for_any(self) -> None:
        """Wait until there is a run."""
        await self._is_any.wait()

    @asynccontextmanager
    async def track(self, run: LiveRun, max_reruns: int) -> AsyncIterator[None]:
        """Make a run known to cancelling and stopping while the block lasts.

        Args:
            run: The run.
            max_reruns: How often it is run again after a crash.
        """
        flow_run_id = run.flow_run.id
        self._runs[flow_run_id] = run
        self._is_any.set()
        run.claim = self._ledger.record_start(run.claim, run.pid, max_reruns)
        if self.stop_cause:
            run.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            run.ended.set()
            run.settled.set()
            del self._runs[flow_run_id]
            if not self._runs:
                self._is_any.clear()

    async def end(self, run: LiveRun, intent: Intent) -> None:
        """End the process of a run: through its engine, then by SIGTERM, then by SIGKILL.

        Args:
            run: The run.
            intent: "cancel", "relinquish" if the run has ended, belongs to another worker or has exceeded its wall time,
                "reschedule" if this worker stops; only "cancel" is reported by the engine.
        """
        if run.ending or run.ended.is_set():
            return
        run.ending = intent
        grace = self._settings.cancel_grace if intent == "cancel" else self._settings.stop_grace
        has_concluded = False
        if run.fork and self.control_channel:
            # An engine that gets SIGTERM while it starts reports a crash, so wait until it is connected.
            has_concluded = await self.control_channel.announce(run.flow_run.id, intent, _CONNECT_TIMEOUT) is None
        elif intent == "cancel":
            await wait_for_all([run.ended], _COLD_CANCEL_TIMEOUT)
        if not run.ended.is_set() and not has_concluded:
            run.send_signal(signal.SIGTERM)
        await wait_for_all([run.ended], grace)
        if not run.ended.is_set():
            run.send_signal(signal.SIGKILL)

    async def end_earlier_attempt(self, flow_run_id: UUID) -> None:
        """End the process that a run still has from an earlier attempt."""
        if run := self._runs.get(flow_run_id):
            await self.end(run, "relinquish")
            await run.settled.wait()

    async def stop_all(self, cause: str) -> None:
        """Let the runs finish, within the drain time; then stop the others, and wait until each is settled."""
        self.is_draining = True
        await wait_for_all([run.settled for run in self._runs.values()], self._settings.drain_seconds)
        self.stop_cause = cause
        runs = list(self._runs.values())
        await asyncio.gather(*(self.end(run, "reschedule") for run in runs))
        await wait_for_all([run.settled for run in runs], _SETTLE_TIMEOUT)


async def wait_for_all(events: list[asyncio.Event], seconds: float) -> None:
    """Wait until every event is set, but no longer than some seconds."""

    async def wait() -> None:
        for event in events:
            await event.wait()

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wait(), seconds)
