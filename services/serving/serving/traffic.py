"""Requests of the last hour by model and version: their number, errors and latency, a minute at a time."""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

KEPT_MINUTES = 60
MIN_SECONDS, BUCKETS_PER_DOUBLING, BUCKETS = 1e-4, 8, 8 * 20
"""Latencies are counted in buckets that grow by 9 %, from 0.1 ms to 100 s: a quantile is at most that much too high."""


@dataclass(slots=True)
class Minute:
    """The requests of a minute."""

    number: int
    """Minutes since the epoch."""
    requests: int = 0
    errors: int = 0
    """Answers with a status of 500 and more."""
    refusals: int = 0
    """Answers with another status than 200 that is below 500."""
    latencies: list[int] = field(default_factory=lambda: [0] * BUCKETS)


class Traffic:
    """Counts requests; a thread may read while the event loop counts."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[str, int | None], deque[Minute]] = {}
        self._lock = threading.Lock()

    def add(self, model: str, version: int | None, status: int, seconds: float) -> None:
        """Count a request; of one that failed early the version may be unknown."""
        number = int(time.time() // 60)
        with self._lock:
            minutes = self._minutes.get((model, version))
            if minutes is None:
                minutes = self._minutes[model, version] = deque(maxlen=KEPT_MINUTES)
            if not minutes or minutes[-1].number != number:
                minutes.append(Minute(number))
            minute = minutes[-1]
            minute.requests += 1
            if status >= 500:
                minute.errors += 1
            elif status != 200:
                minute.refusals += 1
            minute.latencies[bucket_of(seconds)] += 1

    def summary(self) -> list[dict[str, Any]]:
        """Return for each model and version the last hour, and its minutes, oldest first."""
        first = int(time.time() // 60) - KEPT_MINUTES + 1
        with self._lock:
            for key in [k for k, minutes in self._minutes.items() if minutes[-1].number < first]:
                del self._minutes[key]
            return [
                describe_version(model, version, [minute for minute in minutes if minute.number >= first])
                for (model, version), minutes in sorted(self._minutes.items(), key=lambda e: (e[0][0], e[0][1] or 0))
            ]


def describe_version(model: str, version: int | None, minutes: Sequence[Minute]) -> dict[str, Any]:
    """Return the requests for a version, together and by minute."""
    hour = Minute(0)
    for minute in minutes:
        hour.requests += minute.requests
        hour.errors += minute.errors
        hour.refusals += minute.refusals
        hour.latencies = [a + b for a, b in zip(hour.latencies, minute.latencies, strict=True)]
    each = [{"minute": minute.number * 60, **describe_minute(minute)} for minute in minutes]
    return {"model": model, "version": version, "hour": describe_minute(hour), "minutes": each}


def describe_minute(minute: Minute) -> dict[str, Any]:
    """Return the counts of a minute with the quantiles of its latencies."""
    return {
        "requests": minute.requests,
        "errors": minute.errors,
        "refusals": minute.refusals,
        "seconds": {name: quantile(minute.latencies, share) for name, share in QUANTILES.items()},
    }


QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def bucket_of(seconds: float) -> int:
    """Return the number of a latency's bucket."""
    if seconds <= MIN_SECONDS:
        return 0
    return min(BUCKETS - 1, math.ceil(math.log2(seconds / MIN_SECONDS) * BUCKETS_PER_DOUBLING))


def quantile(latencies: list[int], share: float) -> float:
    """Return a quantile in seconds by the nearest rank: the upper bound of its bucket."""
    rank, seen, number = math.ceil(share * sum(latencies)), 0, 0
    while (seen := seen + latencies[number]) < rank:
        number += 1
    return float(round(MIN_SECONDS * 2 ** (number / BUCKETS_PER_DOUBLING), 6))
