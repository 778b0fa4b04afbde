"""From observations to examples: the features of each day, and whether the next day was wet."""

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors
from pydantic import BaseModel, ConfigDict

from flows.weather.observations import DAY, Observations, Origin, require_complete
from flows.weather.validation import list_problems, refused_data_error
from trainyard.errors import DataError
from trainyard.frames import Frame

TARGET = "wet_tomorrow"
WET_TODAY = "wet_today"
LONGEST_WINDOW = 30
"""Days of the longest rolling window: features need as many days of history."""


class Examples(BaseModel):
    """One row for each day, oldest first: features in float64 and the target `wet_tomorrow` (bool)."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    origin: Origin
    wet_day_mm: float
    frame: Frame
    filled_days: int = 0
    """Number of filled days; they are part of features and never a target."""


def build_features(observations: pd.DataFrame, wet_day_mm: float = 1.0) -> pd.DataFrame:
    """Return the features of each day, from which the next day is predicted.

    Row t depends on day t and earlier days, and on the season of day t+1, which is known in advance. The first
    LONGEST_WINDOW - 1 days, whose windows are not full, have no row; the newest day has one.

    Args:
        observations: A frame as in `Observations`.
        wet_day_mm: Precipitation from which a day counts as wet; 1 mm is the convention of climatology (WMO, ETCCDI
            index R1mm).

    Raises:
        DataError: Days or values are missing.
    """
    weather = require_complete(observations)
    rain = np.log1p(weather["precipitation_mm"])
    wet = (weather["precipitation_mm"] >= wet_day_mm).astype(float)
    temp = (weather["temp_max_c"] + weather["temp_min_c"]) / 2
    tomorrow = pd.DatetimeIndex(weather.index) + DAY
    angle = 2 * np.pi * tomorrow.day_of_year.to_numpy() / 365.25
    features = {
        WET_TODAY: wet,
        "wet_yesterday": wet.shift(1),
        "wet_share_3d": wet.rolling(3).mean(),
        "wet_share_7d": wet.rolling(7).mean(),
        f"wet_share_{LONGEST_WINDOW}d": wet.rolling(LONGEST_WINDOW).mean(),
        "rain_today": rain,
        "rain_yesterday": rain.shift(1),
        "rain_mean_7d": rain.rolling(7).mean(),
        "temp_today": temp,
        "temp_change_1d": temp.diff(1),
        "temp_range": weather["temp_max_c"] - weather["temp_min_c"],
        "wind_today": weather["wind_ms"],
        "wind_change_1d": weather["wind_ms"].diff(1),
        "season_sin": pd.Series(np.sin(angle), index=weather.index),
        "season_cos": pd.Series(np.cos(angle), index=weather.index),
    }
    return pd.DataFrame(features).iloc[LONGEST_WINDOW - 1 :]


def build_examples(observations: Observations, wet_day_mm: float = 1.0, min_observations: int = 365) -> Examples:
    """Return features and target of every day whose next day was observed, not filled.

    Raises:
        DataError: Fewer than `min_observations` days were observed, all days are wet or all are dry, or a feature is
            out of its bounds.
    """
    weather, place = observations.frame, observations.origin.place.name
    filled = pd.DatetimeIndex(observations.filled)
    observed, required = len(weather) - len(filled), max(min_observations, LONGEST_WINDOW + 2)
    if observed < required:
        raise DataError(
            f"{place} has {observed} daily observations, fewer than the {required} needed. "
            "Choose more years or another place."
        )
    wet_tomorrow = (weather["precipitation_mm"] >= wet_day_mm).shift(-1)
    frame = build_features(weather, wet_day_mm).assign(**{TARGET: wet_tomorrow}).iloc[:-1]
    frame = frame[~(pd.DatetimeIndex(frame.index) + DAY).isin(filled)]
    frame[TARGET] = frame[TARGET].astype(bool)
    validate_examples(frame)
    if frame[TARGET].nunique() < 2:
        kind = "wet" if frame[TARGET].iloc[0] else "dry"
        raise DataError(
            f"Every day of {place} is {kind} at a threshold of {wet_day_mm} mm, so there is nothing to "
            "learn. Change wet_day_mm, or choose more years or another place."
        )
    return Examples(origin=observations.origin, wet_day_mm=wet_day_mm, frame=frame, filled_days=len(filled))


def validate_examples(frame: pd.DataFrame) -> None:
    """Check that all columns are there and within their bounds.

    Raises:
        DataError: They are not; the error lists all problems.
    """
    try:
        _SCHEMA.validate(frame, lazy=True)
    except SchemaErrors as errors:
        advice = "The observations are valid, so the fault is in the code of the features."
        raise refused_data_error(list(list_problems(errors)), advice) from errors


def _feature(low: float = -np.inf, high: float = np.inf) -> pa.Column:
    checks = [pa.Check(np.isfinite, error="not finite")]
    if np.isfinite(low):
        checks.append(pa.Check.ge(low, error=f"below {low:g}"))
    if np.isfinite(high):
        checks.append(pa.Check.le(high, error=f"above {high:g}"))
    return pa.Column(float, checks)


_SCHEMA = pa.DataFrameSchema(
    {
        WET_TODAY: _feature(0, 1),
        "wet_yesterday": _feature(0, 1),
        "wet_share_3d": _feature(0, 1),
        "wet_share_7d": _feature(0, 1),
        f"wet_share_{LONGEST_WINDOW}d": _feature(0, 1),
        "rain_today": _feature(0),
        "rain_yesterday": _feature(0),
        "rain_mean_7d": _feature(0),
        "temp_today": _feature(),
        "temp_change_1d": _feature(),
        "temp_range": _feature(0),
        "wind_today": _feature(0),
        "wind_change_1d": _feature(),
        "season_sin": _feature(-1, 1),
        "season_cos": _feature(-1, 1),
        TARGET: pa.Column(bool),
    },
    checks=pa.Check(lambda days: bool(days.index.is_monotonic_increasing), error="days not in order"),
    index=pa.Index(unique=True),
    strict=True,
)
