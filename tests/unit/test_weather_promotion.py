"""The weather model's comparison with the champion: which days of the holdout count, and when none do."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from flows.weather import model, promotion
from flows.weather.features import TARGET, Examples, build_examples
from flows.weather.model import FittedModel
from tests.unit.weather import make_observations
from trainyard.gate import Thresholds

GATE = Thresholds()


@pytest.fixture
def examples() -> Examples:
    return build_examples(make_observations())


@pytest.fixture
def training(examples: Examples) -> FittedModel:
    return model.fit_and_score(*model.split_by_time(examples.frame, 0.2), model.make_candidates()[1])


def test_the_first_becomes_champion(examples: Examples, training: FittedModel) -> None:
    question = promotion.describe_question(examples, training)

    assert promotion.compare_with_champion(question, training, None, None, GATE).promote


def test_the_same_model_is_not_better_than_itself(examples: Examples, training: FittedModel) -> None:
    question = promotion.describe_question(examples, training)
    decision = promotion.compare_with_champion(question, training, question, training.estimator, GATE)

    assert not decision.promote
    assert "on the same holdout" in decision.reason


def test_days_that_the_champion_was_fitted_on_do_not_count(examples: Examples, training: FittedModel) -> None:
    question = promotion.describe_question(examples, training)
    newest = training.holdout.index.max()
    champion = question | {"train_last_day": f"{newest - pd.Timedelta(days=10):%F}"}
    decision = promotion.compare_with_champion(question, training, champion, training.estimator, GATE)

    assert not decision.promote
    assert "only 10 days" in decision.reason


def test_a_worse_champion_that_was_fitted_on_half_of_the_holdout_is_scored_on_the_other_half(
    examples: Examples, training: FittedModel
) -> None:
    half = training.holdout.index[len(training.holdout) // 2]

    class Memory:
        """Knows the first half of the holdout by heart, and nothing of the rest."""

        def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
            truth = training.holdout.loc[features.index, TARGET].to_numpy(dtype=float)
            probability = np.where(features.index <= half, truth, 0.5)
            return np.column_stack([1 - probability, probability])

    question = promotion.describe_question(examples, training)
    champion = question | {"train_last_day": f"{half:%F}"}

    assert promotion.compare_with_champion(question, training, champion, Memory(), GATE).promote


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({}, {"wet_day_mm": "5"}, "another question"),
        ({"data_source": "vega-datasets-recorded"}, {"data_source": "open-meteo"}, "Recorded observations"),
    ],
)
def test_models_that_cannot_be_compared(
    examples: Examples, training: FittedModel, ours: dict[str, str], theirs: dict[str, str], reason: str
) -> None:
    question = promotion.describe_question(examples, training)
    decision = promotion.compare_with_champion(question | ours, training, question | theirs, None, GATE)

    assert not decision.promote
    assert reason in decision.reason


def test_a_champion_with_other_features_is_replaced(examples: Examples, training: FittedModel) -> None:
    question = promotion.describe_question(examples, training)
    fewer = replace(training, train=training.train.drop(columns="rain_today"))
    other = model.make_estimator(training.candidate).fit(fewer.train.drop(columns=TARGET), fewer.train[TARGET])
    decision = promotion.compare_with_champion(question, training, question, other, GATE)

    assert decision.promote
    assert "does not know today's features" in decision.reason
