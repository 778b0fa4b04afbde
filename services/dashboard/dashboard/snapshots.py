"""The last answers of other servers: shown while they are refreshed in the background and while a server is down."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import orjson

log = logging.getLogger("dashboard")

MAX_SNAPSHOTS = 500
RETRY_SECONDS = 3.0
"""Between two attempts while a server is down."""
FIRST_WAIT_SECONDS, REFRESH_WAIT_SECONDS = 0.9, 0.4
"""How long a page waits for a first value, and for a newer one."""


class SourceError(Exception):
    """A server does not answer, or not as documented; the message names the server and the problem."""


@dataclass
class Snapshot:
    """The last value that a server returned, its age, and what has failed since."""

    value: Any = None
    read_at: float | None = None
    """Seconds since the epoch; None before the first value."""
    attempted_at: float = 0.0
    error: str | None = None
    version: int = 0
    """Counts the changes of value and error."""
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def is_loaded(self) -> bool:
        """Whether there is a value to show."""
        return self.read_at is not None


class SnapshotCache:
    """Snapshots by key. A stale one is refreshed once for all concurrent callers (stale while revalidate)."""

    def __init__(self, max_age_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._max_age, self._clock = max_age_seconds, clock
        self._entries: OrderedDict[Hashable, Snapshot] = OrderedDict()

    async def get(
        self, key: Hashable, load: Callable[[], Awaitable[Any]], requested_at: float, *, immutable: bool = False
    ) -> Snapshot:
        """Return a snapshot, after a short wait for a fresh value where it is stale.

        Args:
            key: Identifies the value.
            load: Fetches it; a SourceError becomes the snapshot's error.
            requested_at: When the page was requested, by `time.monotonic`: all its snapshots share one wait.
            immutable: The value never changes, and is loaded once.
        """
        entry = self._entries.setdefault(key, Snapshot())
        self._entries.move_to_end(key)
        self._evict()
        max_age = min(self._max_age, RETRY_SECONDS) if entry.error else self._max_age
        is_stale = self._clock() - entry.attempted_at >= max_age
        if entry.task is None and is_stale and not (immutable and entry.is_loaded and entry.error is None):
            entry.task = asyncio.create_task(self._refresh(entry, load))
        if entry.task is not None and (entry.error is None or not entry.is_loaded):
            wait = REFRESH_WAIT_SECONDS if entry.is_loaded else FIRST_WAIT_SECONDS
            await asyncio.wait([entry.task], timeout=max(0.0, requested_at + wait - time.monotonic()))
        return entry

    def expire(self) -> None:
        """Mark every snapshot as stale."""
        for entry in self._entries.values():
            entry.attempted_at = 0.0

    async def close(self) -> None:
        """Cancel the refreshes in progress."""
        tasks = [entry.task for entry in self._entries.values() if entry.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self, entry: Snapshot, load: Callable[[], Awaitable[Any]]) -> None:
        try:
            value = await load()
        except SourceError as error:
            _set_error(entry, str(error))
        except (AttributeError, LookupError, TypeError, ValueError):  # an undocumented answer fails its panel only
            log.exception("A server's answer could not be parsed")
            _set_error(entry, "A server's answer is not as documented; see the dashboard's log.")
        else:
            if entry.error is not None or not entry.is_loaded or orjson.dumps(value) != orjson.dumps(entry.value):
                entry.version += 1
            entry.value, entry.read_at, entry.error = value, self._clock(), None
        finally:
            entry.attempted_at, entry.task = self._clock(), None

    def _evict(self) -> None:
        while len(self._entries) > MAX_SNAPSHOTS:
            _, entry = self._entries.popitem(last=False)
            if entry.task:
                entry.task.cancel()


def _set_error(entry: Snapshot, message: str) -> None:
    if entry.error != message:
        entry.version += 1
    entry.error = message
