"""The gate over simulated weeks and years, in small: `bench/gate.py` runs more of them."""

import pytest

from bench.gate import MODELS, Recipe, days_to_promotion, promotions_in_a_year
from trainyard.gate import Thresholds

LOGISTIC = MODELS["logistic regression"]
UNCHANGED = Recipe("unchanged", LOGISTIC)
OLD, NEW = Recipe("old", LOGISTIC, noise=0.72), Recipe("new", LOGISTIC)
"""The new recipe is better by two standard errors (bench/results/gate.json)."""
GATE = Thresholds()


@pytest.mark.parametrize("seed", [1, 2])
def test_one_unchanged_recipe_is_promoted_at_most_once_in_a_year(seed: int) -> None:
    assert promotions_in_a_year(UNCHANGED, seed, GATE, every=4) <= 1


def test_a_recipe_that_is_better_by_two_standard_errors_is_promoted_within_a_week() -> None:
    promoted = [days_to_promotion(OLD, NEW, seed, GATE) for seed in range(20_000, 20_030)]

    assert sum(map(bool, promoted)) >= 25


def test_one_that_is_worse_is_not() -> None:
    promoted = [days_to_promotion(NEW, OLD, seed, GATE, days=2) for seed in range(20_000, 20_020)]

    assert sum(map(bool, promoted)) <= 1
