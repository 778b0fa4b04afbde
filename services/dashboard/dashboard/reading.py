"""Readings from other servers: kept, with their age, refreshed in the background, and kept on when a server is down."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import orjson

log = logging.getLogger("dashboard")

KEPT = 500
RETRY_SECONDS = 3.0  # between two tries while a server is down
PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 0.4, 0.9  # for a newer reading, and for the first


class SourceError(Exception):
    """A server did not answer, or not as documented; the message says which and what."""


@dataclass
class Reading:
    """What a server said last, when, and what has gone wrong since."""

    value: Any = None
    read_at: float | None = None
    """Seconds since the epoch; None before the first answer."""
    tried_at: float = 0.0
    error: str | None = None
    version: int = 0
    """Counts changes of value and error, so that a page knows whether it is still right."""
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def known(self) -> bool:
        """Whether there is a value to show."""
        return self.read_at is not None


class Readings:
    """Every reading by its key. One that has aged is read anew, once for all who ask, while the old one is shown."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._seconds, self._clock = seconds, clock
        self._entries: OrderedDict[Hashable, Reading] = OrderedDict()

    async def get(
        self, key: Hashable, load: Callable[[], Awaitable[Any]], asked_at: float, *, lasting: bool = False
    ) -> Reading:
        """Return a reading, waiting no longer than a person would for a new one.

        Args:
            key: What is read.
            load: Reads it; raises SourceError where its server does not answer.
            asked_at: When the person asked, by `time.monotonic`: all of a page's readings share the wait.
            lasting: It never changes, and is read once.
        """
        entry = self._entries.setdefault(key, Reading())
        self._entries.move_to_end(key)
        self._forget()
        lasts = min(self._seconds, RETRY_SECONDS) if entry.error else self._seconds
        aged = self._clock() - entry.tried_at >= lasts
        if entry.task is None and aged and not (lasting and entry.known and entry.error is None):
            entry.task = asyncio.create_task(self._read(entry, load))
        if entry.task is not None and (entry.error is None or not entry.known):
            patience = PATIENCE_SECONDS if entry.known else FIRST_PATIENCE_SECONDS
            await asyncio.wait([entry.task], timeout=max(0.0, asked_at + patience - time.monotonic()))
        return entry

    def expire(self) -> None:
        """Let everything be read anew when it is next asked for."""
        for entry in self._entries.values():
            entry.tried_at = 0.0

    async def close(self) -> None:
        """End what is under way."""
        tasks = [entry.task for entry in self._entries.values() if entry.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, entry: Reading, load: Callable[[], Awaitable[Any]]) -> None:
        try:
            value = await load()
        except SourceError as error:
            _fail(entry, str(error))
        except (
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):  # an answer that is not as documented must not end the panel
            log.exception("A reading could not be understood")
            _fail(entry, "A server's answer is not as documented; the dashboard's log says more.")
        else:
            if entry.error is not None or not entry.known or _differs(value, entry.value):
                entry.version += 1
            entry.value, entry.read_at, entry.error = value, self._clock(), None
        finally:
            entry.tried_at, entry.task = self._clock(), None

    def _forget(self) -> None:
        while len(self._entries) > KEPT:
            key = next(iter(self._entries))
            task = self._entries.pop(key).task
            if task:
                task.cancel()


def _fail(entry: Reading, message: str) -> None:
    if entry.error != message:
        entry.version += 1
    entry.error = message


def _differs(one: Any, other: Any) -> bool:
    return orjson.dumps(one) != orjson.dumps(other)
