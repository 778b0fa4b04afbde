"""Numbers and times of the servers' JSON as Python values."""

import math
from datetime import UTC, datetime
from typing import Any


def to_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def to_timestamp(text: str | None) -> float | None:
    """Return an ISO 8601 time, in UTC unless it says otherwise, as seconds since the epoch; None if it is not one."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def to_iso(timestamp: float) -> str:
    """Return seconds since the epoch as an ISO 8601 time in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
