"""The gate's decisions, and which days of a holdout it may look at."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from flows.weather import model, promotion
from flows.weather.features import TARGET, Examples, build_examples
from flows.weather.model import Training
from tests.unit.weather import make_observations
from trainyard.gate import Thresholds, decide

GATE = Thresholds()


class TestDecide:
    @pytest.mark.parametrize(
        ("candidate", "champion", "promoted"),
        [(0.15, None, True), (0.25, None, False), (0.15, 0.16, True), (0.15, 0.15, False), (0.15, 0.1505, False)],
    )
    def test_lower_is_better(self, candidate: float, champion: float | None, promoted: bool) -> None:
        decision = decide("brier", candidate, 0.2, champion, GATE)
        assert decision.promote is promoted
        assert f"brier {candidate:.4f}" in decision.reason

    @pytest.mark.parametrize(("candidate", "promoted"), [(0.95, True), (0.9, False), (0.5, False)])
    def test_greater_is_better(self, candidate: float, promoted: bool) -> None:
        assert decide("roc_auc", candidate, 0.6, 0.9, GATE, greater_is_better=True).promote is promoted

    def test_as_good_is_not_better_even_without_a_threshold(self) -> None:
        assert not decide("brier", 0.15, 0.2, 0.15, Thresholds(min_improvement=0)).promote

    @pytest.mark.parametrize(("skill", "promoted"), [(0.5, False), (0.2, True), (-0.5, True)])
    def test_skill_is_a_share_of_the_baseline(self, skill: float, promoted: bool) -> None:
        assert decide("brier", 0.15, 0.2, None, Thresholds(min_skill=skill)).promote is promoted

    def test_thresholds_have_bounds(self) -> None:
        with pytest.raises(ValidationError):
            Thresholds(min_improvement=-1)


@pytest.fixture
def examples() -> Examples:
    return build_examples(make_observations())


@pytest.fixture
def training(examples: Examples) -> Training:
    return model.fit_and_score(*model.split_by_time(examples.frame, 0.2), model.make_candidates()[1])


class TestAgainstTheChampion:
    def test_the_first_becomes_champion(self, examples: Examples, training: Training) -> None:
        question = promotion.describe_question(examples, training)
        assert promotion.compare_with_champion(question, training, None, None, GATE).promote

    def test_the_same_model_does_not_win_against_itself(self, examples: Examples, training: Training) -> None:
        question = promotion.describe_question(examples, training)
        decision = promotion.compare_with_champion(question, training, question, training.estimator, GATE)
        assert not decision.promote
        assert "on the same holdout" in decision.reason

    def test_days_that_the_champion_was_fitted_on_do_not_count(self, examples: Examples, training: Training) -> None:
        question = promotion.describe_question(examples, training)
        newest = training.holdout.index.max()
        reigning = question | {"train_last_day": f"{newest - pd.Timedelta(days=10):%F}"}
        decision = promotion.compare_with_champion(question, training, reigning, training.estimator, GATE)
        assert not decision.promote
        assert "only 10 days" in decision.reason

    def test_a_worse_champion_that_was_fitted_on_everything_is_judged_on_new_days_only(
        self, examples: Examples, training: Training
    ) -> None:
        """It knows the first half of the holdout by heart, and is worse on the rest."""
        half = training.holdout.index[len(training.holdout) // 2]

        class Memory:
            def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
                truth = training.holdout.loc[features.index, TARGET].to_numpy(dtype=float)
                said = np.where(features.index <= half, truth, 0.5)
                return np.column_stack([1 - said, said])

        question = promotion.describe_question(examples, training)
        reigning = question | {"train_last_day": f"{half:%F}"}
        assert promotion.compare_with_champion(question, training, reigning, Memory(), GATE).promote

    @pytest.mark.parametrize(
        ("ours", "theirs", "reason"),
        [
            ({}, {"wet_day_mm": "5"}, "another question"),
            ({"data_source": "vega-datasets-recorded"}, {"data_source": "open-meteo"}, "Recorded observations"),
        ],
    )
    def test_what_cannot_be_compared(
        self, examples: Examples, training: Training, ours: dict[str, str], theirs: dict[str, str], reason: str
    ) -> None:
        question = promotion.describe_question(examples, training)
        decision = promotion.compare_with_champion(question | ours, training, question | theirs, None, GATE)
        assert not decision.promote
        assert reason in decision.reason

    def test_a_champion_with_other_features_makes_way(self, examples: Examples, training: Training) -> None:
        question = promotion.describe_question(examples, training)
        fewer = replace(training, train=training.train.drop(columns="rain_today"))
        other = model.make_estimator(training.candidate).fit(fewer.train.drop(columns=TARGET), fewer.train[TARGET])
        decision = promotion.compare_with_champion(question, training, question, other, GATE)
        assert decision.promote
        assert "does not know today's features" in decision.reason
