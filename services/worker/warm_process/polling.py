"""Polls for scheduled runs as soon as an event or a finished run asks for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

_MIN_INTERVAL = 0.25
# An event may arrive before the transaction that scheduled its run is committed.
_RETRY_DELAYS = (0.05, 0.2)


class PollScheduler:
    """Merges requests to poll: however many arrive at once, they make one poll."""

    def __init__(
        self,
        poll: Callable[[], Awaitable[bool]],
        has_free_slot: Callable[[], bool],
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        """Create a scheduler.

        Args:
            poll: Polls once and returns whether it found a run.
            has_free_slot: Whether the worker can start another run now.
            logger: Where failed polls are logged.
        """
        self._poll = poll
        self._has_free_slot = has_free_slot
        self._logger = logger
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Ask for a poll."""
        self._requested.set()

    async def run(self) -> None:
        """Poll on request until cancelled."""
        loop = asyncio.get_running_loop()
        polled_at = 0.0
        while True:
            await self._requested.wait()
            await asyncio.sleep(max(0.0, polled_at + _MIN_INTERVAL - loop.time()))
            self._requested.clear()
            for delay in (0.0, *_RETRY_DELAYS):
                await asyncio.sleep(delay)
                if not self._has_free_slot():
                    break  # the next run that ends requests a poll
                polled_at = loop.time()
                try:
                    if await self._poll():
                        break
                except httpx.HTTPError as error:
                    self._logger.debug("A poll failed; the regular polls continue: %s", error)
                    break
