"""The comparison of a weather candidate with the champion, and which days of the holdout count."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.weather import model
from flows.weather.features import TARGET, build_examples
from flows.weather.promotion import describe_model
from tests.unit.weather import PLACE, make_observations
from trainyard import fitting
from trainyard.comparison import make_comparison
from trainyard.contract import Column, Tag
from trainyard.fitting import Evaluation
from trainyard.gate import FIRST_USE, Decision, Thresholds
from trainyard.problem import divide
from trainyard.registry import Champion

EXAMPLES = build_examples(make_observations())
PROBLEM = model.make_problem(PLACE)
PARTS = divide(PROBLEM, EXAMPLES.frame)
TAGS = PROBLEM.split.describe(PARTS.train) | describe_model(EXAMPLES)


@dataclass(frozen=True)
class Served(Champion):
    """A champion with an estimator that no registry holds."""

    estimator: Any = None

    def load_estimator(self) -> Any:
        return self.estimator


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return fitting.fit(PROBLEM, PARTS, model.CANDIDATES[1])


def compare(evaluation: Evaluation, champion: Any = None, /, **champion_tags: str) -> Decision:
    """Compare a candidate with a champion of the same tags, but for those that are given."""
    served = champion and Served("rain", 1, TAGS | champion_tags, FIRST_USE, champion)
    return make_comparison(PROBLEM, PARTS, evaluation, TAGS, Thresholds())(served)


def test_a_first_candidate_that_beats_the_baselines_is_promoted(evaluation: Evaluation) -> None:
    assert compare(evaluation).promote


def test_a_model_does_not_win_against_itself(evaluation: Evaluation) -> None:
    decision = compare(evaluation, evaluation.estimator)

    assert not decision.promote
    assert decision.reason.startswith("brier ")
    assert "on the same holdout" in decision.reason


def tags_of(release: str, last_day: pd.Timestamp) -> dict[str, str]:
    """Return the tags by which a release tells the last day that a champion was fitted on."""
    return {Tag.TRAIN_LAST_TIME: last_day.isoformat()} if release == "this" else {"train_last_day": f"{last_day:%F}"}


@pytest.fixture(params=["this", "former"])
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The release that trained the champion; a former one wrote none of today's tags about the split."""
    if request.param == "former":
        for tag in (Tag.SPLIT, Tag.TRAIN_ROWS, Tag.TRAIN_LAST_TIME):
            monkeypatch.delitem(TAGS, tag)
    return str(request.param)


def test_days_that_the_champion_was_fitted_on_do_not_count(evaluation: Evaluation, release: str) -> None:
    last_day = PARTS.holdout.index.max() - pd.Timedelta(days=10)

    decision = compare(evaluation, evaluation.estimator, **tags_of(release, last_day))

    assert not decision.promote
    assert "was not fitted on 10 rows of the holdout, which are too few" in decision.reason


def test_a_champion_that_memorized_its_training_days_is_scored_on_later_days(
    evaluation: Evaluation, release: str
) -> None:
    last_day = PARTS.holdout.index[len(PARTS.holdout) // 2]

    class Memory:
        classes_ = np.array([False, True])

        def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
            truth = PARTS.holdout.loc[features.index, TARGET].to_numpy(dtype=float)
            probability = np.where(features.index <= last_day, truth, 0.5)
            return np.column_stack([1 - probability, probability])

    assert compare(evaluation, Memory(), **tags_of(release, last_day)).promote


@pytest.mark.parametrize(
    ("candidate_tags", "champion_tags", "reason"),
    [
        ({}, {"wet_day_mm": "5"}, "the champion days of 5 mm"),
        ({"data_source": "vega-datasets-recorded"}, {"data_source": "open-meteo"}, "Recorded observations"),
        ({"latitude": "33.9"}, {"latitude": "-33.9"}, "which lies elsewhere"),
    ],
)
def test_models_that_cannot_be_compared_leave_the_champion(
    evaluation: Evaluation,
    candidate_tags: dict[str, str],
    champion_tags: dict[str, str],
    reason: str,
) -> None:
    champion = Served("rain", 1, TAGS | champion_tags, FIRST_USE)
    decision = make_comparison(PROBLEM, PARTS, evaluation, TAGS | candidate_tags, Thresholds())(champion)

    assert not decision.promote
    assert reason in decision.reason


@pytest.fixture
def of_other_features() -> object:
    """An estimator that was fitted on fewer features than there are today."""
    features = PARTS.train.drop(columns=[TARGET, "rain_today"])
    return PROBLEM.make_estimator(model.CANDIDATES[1]).fit(features, PARTS.train[TARGET])


def test_a_champion_with_other_features_is_not_replaced_by_a_candidate_worse_than_climatology(
    evaluation: Evaluation, of_other_features: object
) -> None:
    predictions: dict[str, Any] = dict(evaluation.predictions)
    wrong = replace(evaluation, predictions=predictions | {Column.MODEL: 1 - predictions[Column.MODEL]})

    decision = compare(wrong, of_other_features)

    assert not decision.promote
    assert "does not reach" in decision.reason


def test_a_champion_with_other_features_is_replaced_by_one_that_beats_the_baselines(
    evaluation: Evaluation, of_other_features: object
) -> None:
    decision = compare(evaluation, of_other_features)

    assert decision.promote
    assert "does not know these features" in decision.reason
