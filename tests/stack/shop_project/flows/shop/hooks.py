"""What trainyard.toml declares: the hours to predict, and whether they were busy."""

from collections.abc import Mapping, Sequence

import pandas as pd

from flows.shop import model
from trainyard.errors import QueryError
from trainyard.hooks import LiveRows, ModelInfo


def live_features(_: ModelInfo, query: Mapping[str, str]) -> LiveRows:
    """Return the last `hours` hours, 48 by default."""
    hours = query.get("hours", "48")
    if not hours.isdigit() or not 1 <= int(hours) <= 100:
        raise QueryError("hours", "is a number from 1 to 100")
    times = model.past_hours(int(hours))
    details = {"country": model.COUNTRY}
    return LiveRows(model.make_features(times), model.SUBJECT, [time.isoformat() for time in times], details)


def ground_truth(_: ModelInfo, times: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return 1.0 for each hour that was busy, else 0.0."""
    busy = model.observe(pd.DatetimeIndex(list(times)))
    return {(model.SUBJECT, time): float(value) for time, value in zip(times, busy, strict=True)}
