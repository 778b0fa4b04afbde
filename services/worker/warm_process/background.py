"""Background tasks that are cancelled together."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

_RESTART_SECONDS = 1.0


class BackgroundTasks:
    """Holds references to running tasks, which the event loop alone would not keep alive, and logs their errors."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in the background; an error that it raises is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        return task

    def keep_running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run a coroutine function in the background, again and again: it ends only by being cancelled."""
        return self.spawn(self._repeat(work))

    async def cancel_all(self) -> None:
        """Cancel every task and wait until all have ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception:
                self._logger.exception("A background task has failed and is restarted.")
            await asyncio.sleep(_RESTART_SECONDS)

    def _discard(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._logger.error("A background task has failed.", exc_info=error)
