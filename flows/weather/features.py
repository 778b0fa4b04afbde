"""From observations to examples: what was known on a day, and whether the next day was wet."""

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from flows.weather.observations import Frame, Observations, Origin, WeatherDataError, check_observations

TARGET = "wet_tomorrow"
WET_TODAY = "wet_today"
LONGEST_WINDOW = 30


class Examples(BaseModel):
    """One row a day, oldest first: features in float64 and the target `wet_tomorrow` (bool)."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    origin: Origin
    wet_day_mm: float
    frame: Frame


def build_features(observations: pd.DataFrame, wet_day_mm: float = 1.0) -> pd.DataFrame:
    """Return what is known at the end of each day about the day after it.

    Row t holds values of day t and of earlier days only, and the season of day t+1, which is known
    beforehand. The first rows, whose windows are not full, are left out; the last row, of the newest
    day, is there: it is what a forecast starts from. A wet day has at least `wet_day_mm` of
    precipitation; 1 mm is the convention of climatology (WMO, ETCCDI index R1mm).

    Raises WeatherDataError if days are missing.
    """
    weather = check_observations(observations)
    rain = np.log1p(weather["precipitation_mm"])
    wet = (weather["precipitation_mm"] >= wet_day_mm).astype(float)
    temp = (weather["temp_max_c"] + weather["temp_min_c"]) / 2
    tomorrow = pd.DatetimeIndex(weather.index) + pd.Timedelta(days=1)
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
    """Return features and target of every day whose next day was observed.

    Raises WeatherDataError if there are fewer than `min_observations` days of observations, or if the
    days are all wet or all dry, so that there is nothing to learn.
    """
    weather, place = observations.frame, observations.origin.place.name
    if len(weather) < max(min_observations, LONGEST_WINDOW + 2):
        raise WeatherDataError(
            f"{place} has {len(weather)} daily observations, fewer than the "
            f"{max(min_observations, LONGEST_WINDOW + 2)} needed. Ask for more years or another place."
        )
    wet_tomorrow = (weather["precipitation_mm"] >= wet_day_mm).shift(-1)
    frame = build_features(weather, wet_day_mm).assign(**{TARGET: wet_tomorrow}).iloc[:-1]
    frame[TARGET] = frame[TARGET].astype(bool)
    if frame[TARGET].nunique() < 2:
        kind = "wet" if frame[TARGET].iloc[0] else "dry"
        raise WeatherDataError(
            f"Every day of {place} is {kind} at a threshold of {wet_day_mm} mm, so there is nothing to "
            "learn. Change wet_day_mm, ask for more years, or choose another place."
        )
    return Examples(origin=observations.origin, wet_day_mm=wet_day_mm, frame=frame)
