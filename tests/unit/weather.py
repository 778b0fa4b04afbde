"""Synthetic weather in the form of `Observations`, for tests without a server."""

import numpy as np
import pandas as pd

from flows.weather.observations import Observations, Origin, Place

PLACE = Place(name="Testville", latitude=47.6, longitude=-122.3)
ORIGIN = Origin(place=PLACE, source="open-meteo", url="http://archive.test")


def make_frame(days: int = 800, seed: int = 0) -> pd.DataFrame:
    """Return daily weather in which a wet day tends to follow a wet one."""
    rng = np.random.default_rng(seed)
    wet = np.zeros(days, dtype=bool)
    for day in range(1, days):
        wet[day] = rng.random() < (0.75 if wet[day - 1] else 0.2)
    high = 15 + rng.normal(0, 4, days)
    return pd.DataFrame(
        {
            "precipitation_mm": np.where(wet, 1 + rng.exponential(5, days), 0.0),
            "temp_max_c": high,
            "temp_min_c": high - 8,
            "wind_ms": rng.gamma(3, 1.5, days),
        },
        index=pd.date_range("2020-01-01", periods=days, name="date"),
    )


def make_observations(frame: pd.DataFrame | None = None) -> Observations:
    """Return observations of Testville without gaps."""
    return Observations(origin=ORIGIN, frame=make_frame() if frame is None else frame)
