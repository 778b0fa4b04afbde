"""The weather problem: rain on the day after, its estimators, candidates and baselines, which need no server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flows.weather import plots, promotion
from flows.weather.features import TARGET, WET_TODAY
from flows.weather.observations import DAY, Place
from flows.weather.places import model_name
from trainyard.contract import Tag
from trainyard.problem import Problem, grid
from trainyard.splits import Mask, TimeSplit

Probabilities = NDArray[np.float64]
Family = Literal["logistic-regression", "random-forest", "hist-gradient-boosting"]
FAMILIES: tuple[Family, ...] = ("logistic-regression", "random-forest", "hist-gradient-boosting")
EXPERIMENT = "weather"
SEED = 0

ESTIMATORS = {
    "logistic-regression": lambda C: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000, random_state=SEED, C=C)
    ),
    "random-forest": RandomForestClassifier(n_estimators=150, random_state=SEED),
    "hist-gradient-boosting": HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=SEED),
}
CANDIDATES = (
    *grid("logistic-regression", C=[0.01, 0.1, 1.0]),
    *grid("random-forest", min_samples_leaf=[5, 20, 50]),
    *grid("hist-gradient-boosting", learning_rate=[0.03], max_leaf_nodes=[7, 15]),
    *grid("hist-gradient-boosting", learning_rate=[0.1], max_leaf_nodes=[7]),
)


def persistence(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Predict tomorrow from today alone: the frequency of rain after wet days, and that after dry days.

    The frequencies are those of the training set, (wet + 1) / (days + 2): the rule of succession, which keeps them off
    0 and 1.
    """
    counts = train.groupby(WET_TODAY)[TARGET].agg(["sum", "count"]).reindex([0.0, 1.0], fill_value=0)
    return holdout[WET_TODAY].map(_rule_of_succession(counts)).to_numpy(dtype=np.float64)


def climatology(train: pd.DataFrame, holdout: pd.DataFrame) -> Probabilities:
    """Predict tomorrow from its month alone: the frequency of rain in that month of the training set.

    The frequencies follow the rule of succession; a month without training days gets the overall frequency.
    """
    counts = train.groupby(_month_of_tomorrow(train))[TARGET].agg(["sum", "count"])
    months = _month_of_tomorrow(holdout).map(_rule_of_succession(counts))
    return months.fillna(train[TARGET].mean()).to_numpy(dtype=np.float64)


def next_days(examples: pd.DataFrame) -> pd.DatetimeIndex:
    """Return the day that each example predicts."""
    return pd.DatetimeIndex(examples.index) + DAY


def _rule_of_succession(counts: pd.DataFrame) -> pd.Series:
    return (counts["sum"] + 1) / (counts["count"] + 2)


def _month_of_tomorrow(examples: pd.DataFrame) -> pd.Series:
    return pd.Series(next_days(examples).month, index=examples.index, name="month")


BASELINES = {"persistence": persistence, "climatology": climatology}


@dataclass(frozen=True)
class DaySplit(TimeSplit):
    """Hold out the newest days; champions of releases before 0.3.0 name the last day before theirs by a tag of their own."""

    def find_unseen(self, holdout: pd.DataFrame, own: Mapping[str, str], champion: Mapping[str, str]) -> Mask | str:
        """Return the days after the champion's training set."""
        if last_day := champion.get("train_last_day"):
            champion = {Tag.TRAIN_LAST_TIME: last_day, **champion}
        return super().find_unseen(holdout, own, champion)


def make_problem(
    place: Place,
    wet_day_mm: float = 1.0,
    families: Sequence[Family] = FAMILIES,
    folds: int = 5,
    holdout_fraction: float = 0.2,
) -> Problem:
    """Return the problem of a place: whether the day after an example is wet.

    The search chooses by the log loss, which punishes a confident mistake most; the gate compares by the Brier score.

    Args:
        place: The place, whose model it is.
        wet_day_mm: Precipitation from which a day counts as wet.
        families: Families of estimators to search.
        folds: Number of folds of the cross-validation.
        holdout_fraction: Share of the days, the newest, that are held out.
    """
    return Problem(
        model=model_name(place),
        target=TARGET,
        estimators=ESTIMATORS,
        candidates=[candidate for candidate in CANDIDATES if candidate.family in families],
        split=DaySplit(share=holdout_fraction),
        folds=folds,
        metric="brier",
        search_metric="log_loss",
        baselines=BASELINES,
        data_params={"wet_day_mm": wet_day_mm},
        question=f"Will it rain in {place.name} tomorrow, at least {wet_day_mm:g} mm?",
        experiment=EXPERIMENT,
        figures=plots.draw,
        times=next_days,
        why_not_comparable=promotion.why_not_comparable,
    )
