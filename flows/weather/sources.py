"""The difference between the data that a model learns from and the data that it is asked with.

Models are fitted on the archive, a reanalysis, and asked with the forecast API's values of the same days. What both have of
the last three months shows how far the score on the holdout is from that of live predictions. It is a lower bound: when a
model is asked, today's values are still partly forecasts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flows.weather.features import LONGEST_WINDOW, TARGET, WET_TODAY, build_features
from flows.weather.observations import Place
from flows.weather.open_meteo import daily_query, parse_archive
from flows.weather.validation import fill_forward
from trainyard.errors import DataError
from trainyard.http import get_json
from trainyard.metrics import brier_losses

PAST_DAYS = 92
"""As many as the forecast API has."""


@dataclass(frozen=True)
class SourceDifference:
    """The scores of one model on the same days, from the features of either source; the ground truth is the archive's."""

    days: int
    archive_brier: float
    live_brier: float
    wet_day_disagreement: float
    """Share of days that are wet by one source and dry by the other."""

    def describe(self) -> str:
        """Return the paragraph of the model card."""
        return (
            f"Live predictions take their features from the forecast API. On the {self.days} newest holdout days that both "
            f"sources have, the Brier score is {self.archive_brier:.4f} with the archive's features and "
            f"{self.live_brier:.4f} with the forecast API's; the two disagree about rain on "
            f"{100 * self.wet_day_disagreement:.0f} % of the days."
        )


def fetch_live_days(url: str, place: Place, timeout_seconds: float) -> pd.DataFrame:
    """Return the days that the forecast API has of the last three months, as in `Observations`, gaps filled.

    Raises:
        SourceError: The service did not deliver.
        DataError: The answer is not as documented, or has no complete day.
    """
    query = daily_query(place) | {"past_days": str(PAST_DAYS), "forecast_days": "1"}
    days = parse_archive(get_json(url, query, timeout_seconds))
    return fill_forward(days[~days.index.duplicated()].sort_index())


def compare_sources(
    estimator: Any, holdout: pd.DataFrame, live_days: pd.DataFrame, wet_day_mm: float
) -> SourceDifference:
    """Score a model on its newest holdout days, once from the archive's features and once from the live source's.

    Args:
        estimator: The model, fitted without the holdout.
        holdout: Its holdout, from the archive.
        live_days: The live source's days, as in `Observations`.
        wet_day_mm: Precipitation from which a day counts as wet.

    Raises:
        DataError: The two have fewer than `LONGEST_WINDOW` days in common.
    """
    live = build_features(live_days, wet_day_mm)
    common = holdout.index.intersection(live.index)
    if len(common) < LONGEST_WINDOW:
        raise DataError(f"The archive and the forecast API have only {len(common)} days of features in common.")
    archived, asked, wet = holdout.loc[common].drop(columns=TARGET), live.loc[common], holdout.loc[common, TARGET]
    archive_brier, live_brier = (
        float(brier_losses(wet, estimator.predict_proba(features)[:, 1]).mean()) for features in (archived, asked)
    )
    disagreement = float(np.mean(archived[WET_TODAY] != asked[WET_TODAY]))
    return SourceDifference(len(common), archive_brier, live_brier, disagreement)
