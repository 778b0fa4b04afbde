"""The comparison of a weather candidate with the champion, and which days of the holdout count."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from flows.weather import model
from flows.weather.features import TARGET, build_examples
from flows.weather.model import FittedModel
from flows.weather.promotion import compare_with_champion, describe_model
from tests.unit.weather import make_observations
from trainyard.gate import Thresholds

GATE = Thresholds()
EXAMPLES = build_examples(make_observations())


@pytest.fixture(scope="module")
def fitted() -> FittedModel:
    return model.fit_and_score(*model.split_by_time(EXAMPLES.frame, 0.2), model.make_candidates()[1])


@pytest.fixture(scope="module")
def tags(fitted: FittedModel) -> dict[str, str]:
    return describe_model(EXAMPLES, fitted)


def test_a_first_candidate_that_beats_the_baselines_is_promoted(fitted: FittedModel, tags: dict[str, str]) -> None:
    assert compare_with_champion(tags, fitted, None, None, GATE).promote


def test_a_model_does_not_win_against_itself(fitted: FittedModel, tags: dict[str, str]) -> None:
    decision = compare_with_champion(tags, fitted, tags, fitted.estimator, GATE)

    assert not decision.promote
    assert "on the same holdout" in decision.reason


def test_days_that_the_champion_was_fitted_on_do_not_count(fitted: FittedModel, tags: dict[str, str]) -> None:
    last_day = fitted.holdout.index.max() - pd.Timedelta(days=10)

    decision = compare_with_champion(tags, fitted, tags | {"train_last_day": f"{last_day:%F}"}, fitted.estimator, GATE)

    assert not decision.promote
    assert "only 10 days" in decision.reason


def test_a_champion_that_memorized_its_training_days_is_scored_on_later_days(
    fitted: FittedModel, tags: dict[str, str]
) -> None:
    last_day = fitted.holdout.index[len(fitted.holdout) // 2]

    class Memory:
        def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
            truth = fitted.holdout.loc[features.index, TARGET].to_numpy(dtype=float)
            probability = np.where(features.index <= last_day, truth, 0.5)
            return np.column_stack([1 - probability, probability])

    champion_tags = tags | {"train_last_day": f"{last_day:%F}"}

    assert compare_with_champion(tags, fitted, champion_tags, Memory(), GATE).promote


@pytest.mark.parametrize(
    ("candidate_tags", "champion_tags", "reason"),
    [
        ({}, {"wet_day_mm": "5"}, "the champion days of 5 mm"),
        ({"data_source": "vega-datasets-recorded"}, {"data_source": "open-meteo"}, "Recorded observations"),
        ({"latitude": "33.9"}, {"latitude": "-33.9"}, "which lies elsewhere"),
    ],
)
def test_models_that_cannot_be_compared_leave_the_champion(
    fitted: FittedModel,
    tags: dict[str, str],
    candidate_tags: dict[str, str],
    champion_tags: dict[str, str],
    reason: str,
) -> None:
    decision = compare_with_champion(tags | candidate_tags, fitted, tags | champion_tags, None, GATE)

    assert not decision.promote
    assert reason in decision.reason


@pytest.fixture
def of_other_features(fitted: FittedModel) -> object:
    """An estimator that was fitted on fewer features than there are today."""
    features = fitted.train.drop(columns=[TARGET, "rain_today"])
    return model.make_estimator(fitted.candidate).fit(features, fitted.train[TARGET])


def test_a_champion_with_other_features_is_not_replaced_by_a_candidate_worse_than_climatology(
    fitted: FittedModel, tags: dict[str, str], of_other_features: object
) -> None:
    wrong = replace(fitted, predictions=fitted.predictions | {"model": 1 - fitted.predictions["model"]})

    decision = compare_with_champion(tags, wrong, tags, of_other_features, GATE)

    assert not decision.promote
    assert "does not reach" in decision.reason


def test_a_champion_with_other_features_is_replaced_by_one_that_beats_the_baselines(
    fitted: FittedModel, tags: dict[str, str], of_other_features: object
) -> None:
    champion = of_other_features

    decision = compare_with_champion(tags, fitted, tags, champion, GATE)

    assert decision.promote
    assert "does not know today's features" in decision.reason
