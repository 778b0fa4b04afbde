"""Subscribes to Prefect's events about the runs of a work pool."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

from trainyard.contract import Event as EventName
from trainyard.contract import State, is_lost

# Seconds between reads of a run after an event: it may arrive before the transaction that set the state is committed.
EVENT_DELAYS = (0.0, 0.05, 0.2, 1.0)
_MIN_BACKOFF, _MAX_BACKOFF = 0.5, 5.0
_SCHEDULED = (EventName.FLOW_RUN_SCHEDULED, f"{EventName.FLOW_RUN}.{State.AWAITING_RERUN}")
# Runs that somebody cancels or ends; what ends by itself is among them.
_STOPPED = tuple(f"{EventName.FLOW_RUN}.{name}" for name in ("Cancelling", "Cancelled", "Crashed", "Failed"))


class EventListener:
    """Listens for runs of one work pool that are scheduled, cancelled or ended; reconnects whenever the stream is cut.

    Prefect sends the events of the last minute again to each new connection: they are hints, and the server's state
    of a run is the truth.
    """

    def __init__(
        self,
        *,
        on_scheduled: Callable[[], None],
        on_stopped: Callable[[UUID], None],
        on_lost: Callable[[UUID], None],
        on_connected: Callable[[], None],
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._on_scheduled = on_scheduled
        self._on_stopped = on_stopped
        self._on_lost = on_lost
        self._on_connected = on_connected
        self._logger = logger

    async def listen(self, work_pool_id: UUID) -> None:
        """Listen until cancelled; `on_connected` has to look for what happened while the stream was cut."""
        events = EventFilter(
            event=EventNameFilter(name=[*_SCHEDULED, *_STOPPED]),
            any_resource=EventAnyResourceFilter(id=[f"{EventName.WORK_POOL}.{work_pool_id}"]),
        )
        loop = asyncio.get_running_loop()
        backoff, was_cut = _MIN_BACKOFF, False
        while True:
            connected_at = loop.time()
            try:
                async with get_events_subscriber(filter=events, reconnection_attempts=0) as stream:
                    if was_cut:
                        self._logger.info("The event stream is back; runs start at once again.")
                        was_cut = False
                    self._on_connected()
                    async for event in stream:
                        self._handle(event)
            except Exception as error:  # noqa: BLE001 - polling continues, so any failure is followed by a retry
                self._logger.info("The event stream was cut; polling continues: %s", error or type(error).__name__)
                was_cut = True
            if loop.time() - connected_at > _MAX_BACKOFF:
                backoff = _MIN_BACKOFF
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            backoff = min(2 * backoff, _MAX_BACKOFF)

    def _handle(self, event: Event) -> None:
        if event.event in _SCHEDULED:
            self._on_scheduled()
        elif event.event in _STOPPED:
            flow_run_id = UUID(event.resource.id.removeprefix(f"{EventName.FLOW_RUN}."))
            self._on_stopped(flow_run_id)
            if event.event == EventName.FLOW_RUN_CRASHED and is_lost(event.resource.get("prefect.state-message") or ""):
                self._on_lost(flow_run_id)
