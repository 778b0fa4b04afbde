"""Which requests are recorded, so that records stay within a sampling rate and a budget of bytes.

A busy model would fill any budget within hours and push out the days that the monitor compares. A day may therefore use
a share of the budget, and use it at an even pace; requests ahead of that pace are not recorded.
"""

import random
import time

DAY_SHARE = 1 / 8
"""Share of the budget that a day's requests may take: a week stays, and the day itself."""
HEAD_START_HOURS = 6
"""A day's records may be this far ahead of an even pace, so that single large batches are recorded."""
HOUR_SECONDS, DAY_SECONDS = 3600, 86_400


class RecordBudget:
    """Decides before a record is made; a database's size is told to it every now and then."""

    def __init__(self, max_bytes: int, rate: float) -> None:
        self.max_bytes = max_bytes
        self._rate = rate
        self._day, self._used = 0, 0

    def admits(self, queued_bytes: int, *, is_forecast: bool, now: float | None = None) -> bool:
        """Return whether a record may be made.

        Forecasts, which are few and whose ground truth a hook knows, are not sampled, and may use twice the pace.

        Args:
            queued_bytes: What is not written yet.
            is_forecast: Whether the record is about a subject.
            now: Seconds since the epoch.
        """
        if not is_forecast and self._rate < 1 and random.random() >= self._rate:  # noqa: S311 - no secret
            return False
        now = time.time() if now is None else now
        used = self._used if self._day == int(now // DAY_SECONDS) else 0
        hours = min(24.0, (now % DAY_SECONDS) / HOUR_SECONDS + HEAD_START_HOURS)
        allowed = self.max_bytes * DAY_SHARE * hours / 24 * (2 if is_forecast else 1)
        return used + queued_bytes < allowed

    def count(self, size: int, now: float | None = None) -> None:
        """Add bytes that were written."""
        self.measure(size + (self._used if self._is_today(now) else 0), now)

    def measure(self, size: int, now: float | None = None) -> None:
        """Set what today's records take."""
        self._day, self._used = int((time.time() if now is None else now) // DAY_SECONDS), size

    def _is_today(self, now: float | None) -> bool:
        return self._day == int((time.time() if now is None else now) // DAY_SECONDS)
