"""A synthetic shop, which is busiest around 13:00 UTC: observations, features and the fitted model."""

from zlib import crc32

import holidays
import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from trainyard.metrics import log_losses

MODEL, SUBJECT, TARGET = "shop-busy", "Main Street", "busy"
FEATURES = ["closeness_to_noon", "offers"]
COUNTRY = holidays.country_holidays("NO").country
"""From a package that the platform does not have: both worker and serving import it."""


def past_hours(number: int) -> pd.DatetimeIndex:
    """Return the last hours before the current one, in UTC without an offset."""
    return pd.date_range(end=pd.Timestamp.now("UTC").tz_localize(None).floor("h"), periods=number + 1, freq="h")[:-1]


def make_features(times: pd.DatetimeIndex) -> pd.DataFrame:
    """Return one row for each hour."""
    closeness = np.cos(2 * np.pi * (times.hour - 13) / 24)
    return pd.DataFrame({FEATURES[0]: closeness, FEATURES[1]: _noise(times, "offers")}, index=times)


def observe(times: pd.DatetimeIndex) -> pd.Series:
    """Return whether the shop was busy: the same answer for the same hour."""
    features = make_features(times)
    return features[FEATURES[0]] + features[FEATURES[1]] + _noise(times, "chance") > 1


def fit(times: pd.DatetimeIndex) -> tuple[LogisticRegression, DummyClassifier]:
    """Fit the model and the baseline."""
    features, busy = make_features(times), observe(times)
    return LogisticRegression().fit(features, busy), DummyClassifier(strategy="prior").fit(features, busy)


def score(estimator: LogisticRegression | DummyClassifier, times: pd.DatetimeIndex) -> dict[str, float]:
    """Return the log loss (lower is better)."""
    return {"log_loss": float(log_loss(observe(times), estimator.predict_proba(make_features(times))))}


def losses(estimator: LogisticRegression | DummyClassifier, times: pd.DatetimeIndex) -> np.ndarray:
    """Return the log loss of each hour."""
    busy = estimator.predict_proba(make_features(times))[:, 1]
    return log_losses(np.where(observe(times), busy, 1 - busy))


def _noise(times: pd.DatetimeIndex, salt: str) -> np.ndarray:
    return np.array([crc32(f"{salt} {time.isoformat()}".encode()) % 1000 / 1000 for time in times])
