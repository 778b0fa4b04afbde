"""The id of an answered request, by which labels name it: a UUID of version 8 (RFC 9562, section 5.8).

Its first 48 bits are the time in milliseconds since the epoch, as in version 7, which names the partition of the record.
The first bit after the version says whether the request is recorded: a label for one that is not can be told apart from a
label for an unknown id without storing anything. The other bits are random.
"""

import random
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

VERSION, VARIANT = 8, 0b10
RECORDED_BIT = 1 << 75
TIME_SHIFT = 80


def make_id(now: float | None = None) -> int:
    """Return a new id of a request that is recorded.

    Args:
        now: Seconds since the epoch.
    """
    milliseconds = int((time.time() if now is None else now) * 1000)
    # Ids are no secret: who may send labels has the API key.
    bits = random.getrandbits(73)
    high = VERSION << 76 | RECORDED_BIT | (bits >> 62) << 64
    return milliseconds << TIME_SHIFT | high | VARIANT << 62 | (bits & ((1 << 62) - 1))


def as_unrecorded(prediction_id: int) -> int:
    """Return the id of a request that turned out not to be recorded."""
    return prediction_id & ~RECORDED_BIT


def is_recorded(prediction_id: int) -> bool:
    """Return whether an id says that its request is recorded."""
    return bool(prediction_id & RECORDED_BIT)


def to_text(prediction_id: int) -> str:
    """Return an id as answers show it."""
    digits = f"{prediction_id:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_id(text: str) -> int:
    """Return the id that a text shows.

    Raises:
        ValueError: It shows none.
    """
    try:
        parsed = UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise ValueError("is not the id of a prediction") from None
    if parsed.version != VERSION:
        raise ValueError("is not the id of a prediction")
    return parsed.int


def seconds_of(prediction_id: int) -> float:
    """Return the time of an id in seconds since the epoch."""
    return (prediction_id >> TIME_SHIFT) / 1000


def moment_of(prediction_id: int) -> datetime:
    """Return the time of an id (UTC), which is exactly the `at` of its record; the last one where no calendar has it."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=prediction_id >> TIME_SHIFT)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
