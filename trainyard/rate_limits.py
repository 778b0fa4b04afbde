"""Limits of how often a service is called by all runs of the installation together.

What was called is kept in a Prefect variable, under a lock. Prefect's own rate limits are not used: their slots decay by
whole numbers at each look, so that those of a limit by the hour or day never decay while somebody waits.
"""

from dataclasses import dataclass
from math import floor
from time import monotonic, sleep, time
from typing import Any

from prefect.variables import Variable

from trainyard.http import check_wait
from trainyard.locks import lock

PERIODS = {"hours": 3600, "days": 86400}
"""Their lengths in seconds, in the order of the limits."""
BUCKET_SECONDS = 10
_variables: Any = Variable  # whose types do not know that it is called from synchronous code
RESET_MARGIN_SECONDS = 61
"""How long after the full hour, or midnight UTC, a service may still count for the hour or day before."""


@dataclass(frozen=True)
class RateLimit:
    """How many calls a service allows: in any minute, in an hour of the clock, and on a day (UTC)."""

    name: str
    """The service's host, for messages."""
    per_minute: int
    per_hour: int
    per_day: int

    @property
    def variable(self) -> str:
        """The name of the Prefect variable that counts the calls."""
        return f"calls_of_{''.join(c if c.isalnum() else '_' for c in self.name.lower())}"


def acquire(limit: RateLimit, calls: float, max_wait_seconds: float) -> None:
    """Count calls, and wait until the limit allows them.

    Args:
        limit: The limit.
        calls: How many calls the next request counts as.
        max_wait_seconds: How long to wait at most.

    Raises:
        WaitTooLongError: The limit allows them later than that; the message says when.
    """
    deadline = monotonic() + max_wait_seconds
    while True:
        with lock(f"rate-limit-{limit.name}"):
            counts, wait_seconds = reserve(limit, _variables.get(limit.variable, {}, _sync=True), calls, time())
            if not wait_seconds:
                _variables.set(limit.variable, counts, overwrite=True, _sync=True)
                return
        check_wait(limit.name, wait_seconds, deadline - monotonic())
        print(
            f"The calls of {limit.name} that are allowed are used up; the next request to it is in {wait_seconds:.0f} s"
        )
        sleep(wait_seconds)


def pause(limit: RateLimit, seconds: float) -> None:
    """Keep all runs of the installation from calling the service for some seconds."""
    with lock(f"rate-limit-{limit.name}"):
        counts = _variables.get(limit.variable, {}, _sync=True)
        until = max(time() + seconds, counts.get("paused_until", 0.0))
        _variables.set(limit.variable, {**counts, "paused_until": until}, overwrite=True, _sync=True)


def reserve(limit: RateLimit, counts: dict[str, Any], calls: float, now: float) -> tuple[dict[str, Any], float]:
    """Return the counts with some more calls, and 0; or the counts as they are, and the seconds to wait.

    Args:
        limit: The limit. More calls at once than it has are treated as all that it has.
        counts: As this function returns them; empty at first.
        calls: How many more calls.
        now: The time, in seconds since 1970.
    """
    buckets = {
        int(at): used for at, used in counts.get("buckets", {}).items() if int(at) > (now - 60) / BUCKET_SECONDS - 1
    }
    waits = [counts.get("paused_until", 0.0) - now]
    # Within the margin the service counts a call to the period that has ended or to the one that has begun.
    periods = {
        name: {
            period: counts.get(name, {}).get(str(period), 0.0)
            for period in {floor((now - RESET_MARGIN_SECONDS) / seconds), floor(now / seconds)}
        }
        for name, seconds in PERIODS.items()
    }
    for (name, used_in), most in zip(periods.items(), (limit.per_hour, limit.per_day), strict=True):
        waits += [
            (period + 1) * PERIODS[name] + RESET_MARGIN_SECONDS - now
            for period, used in used_in.items()
            if min(calls, most) + used > most
        ]
    free = limit.per_minute - min(calls, limit.per_minute)
    in_minute = sum(buckets.values())
    for at, used in sorted(buckets.items()):
        if in_minute <= free:
            break
        in_minute -= used
        waits.append((at + 1) * BUCKET_SECONDS + 60 - now)
    if max(waits) > 0:
        return counts, max(waits)
    bucket = floor(now / BUCKET_SECONDS)
    buckets[bucket] = buckets.get(bucket, 0.0) + calls
    return {
        "buckets": {str(at): used for at, used in buckets.items()},
        **{name: {str(period): used + calls for period, used in used_in.items()} for name, used_in in periods.items()},
    }, 0.0
