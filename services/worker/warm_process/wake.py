"""Listens on Prefect's event stream for what a worker has to react to at once."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

SCHEDULED = "prefect.flow-run.Scheduled"
CANCELLING = "prefect.flow-run.Cancelling"

_FIRST_BACKOFF, _LAST_BACKOFF = 0.5, 30.0


class EventWatch:
    """A subscription to the runs of one work pool, restored whenever it is cut."""

    def __init__(
        self,
        *,
        on_scheduled: Callable[[], None],
        on_cancelling: Callable[[UUID], None],
        on_connected: Callable[[], None],
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._on_scheduled = on_scheduled
        self._on_cancelling = on_cancelling
        self._on_connected = on_connected
        self._logger = logger

    async def run(self, work_pool_id: UUID) -> None:
        """Listen until cancelled. What happened while the stream was cut is for `on_connected` to find."""
        events = EventFilter(
            event=EventNameFilter(name=[SCHEDULED, CANCELLING]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{work_pool_id}"]),
        )
        backoff = _FIRST_BACKOFF
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with get_events_subscriber(filter=events, reconnection_attempts=0) as stream:
                    self._logger.debug("Listening on the event stream.")
                    self._on_connected()
                    async for event in stream:
                        self._handle(event)
            except Exception as error:  # noqa: BLE001 - whatever cut the stream, polling goes on and so do we
                self._logger.info("The event stream is cut, polling goes on: %s", error or type(error).__name__)
            if asyncio.get_running_loop().time() - began > _LAST_BACKOFF:
                backoff = _FIRST_BACKOFF
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            backoff = min(2 * backoff, _LAST_BACKOFF)

    def _handle(self, event: Event) -> None:
        if event.event == SCHEDULED:
            self._on_scheduled()
        elif event.event == CANCELLING:
            self._on_cancelling(UUID(event.resource.id.removeprefix("prefect.flow-run.")))
