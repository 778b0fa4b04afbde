"""The promotion gate's decisions."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import ttest_rel

from trainyard.gate import Reuse, Thresholds, decide, measure_improvement, significance_of

GATE = Thresholds()
ROWS = 400
BASELINE = {"climatology": np.full(ROWS, 0.2)}
RNG = np.random.default_rng(0)
NOISE: NDArray[np.float64] = RNG.normal(0, 0.05, ROWS)
NOISE -= NOISE.mean()
CHAMPION = 0.16 + NOISE


def better_by(standard_errors: float) -> NDArray[np.float64]:
    """Return losses whose mean is lower than the champion's by a number of standard errors of the difference."""
    difference = np.roll(NOISE, 7)
    return CHAMPION - difference - standard_errors * difference.std(ddof=1) / np.sqrt(ROWS)


@pytest.mark.parametrize(("standard_errors", "promoted"), [(-1, False), (0, False), (0.6, False), (1, True), (4, True)])
def test_a_new_recipe_must_be_better_than_chance_explains(standard_errors: float, promoted: bool) -> None:
    decision = decide("brier", better_by(standard_errors), BASELINE, CHAMPION, GATE)

    assert decision.promote is promoted
    assert "on the same holdout" in decision.reason
    assert "with 75 % confidence" in decision.reason


@pytest.mark.parametrize(("standard_errors", "promoted"), [(1, False), (2, False), (3, True)])
def test_the_champions_own_recipe_must_be_better_by_more(standard_errors: float, promoted: bool) -> None:
    reuse = Reuse(is_champions_recipe=True)

    assert decide("brier", better_by(standard_errors), BASELINE, CHAMPION, GATE, reuse).promote is promoted


@pytest.mark.parametrize("thresholds", [GATE, Thresholds(min_improvement=0, significance=0.5)])
def test_an_equal_model_is_not_better(thresholds: Thresholds) -> None:
    assert not decide("brier", CHAMPION, BASELINE, CHAMPION, thresholds).promote


def test_a_smaller_improvement_than_asked_for_does_not_count() -> None:
    assert not decide("brier", better_by(4), BASELINE, CHAMPION, Thresholds(min_improvement=0.05)).promote


@pytest.mark.parametrize(
    ("reuse", "level"),
    [
        (Reuse(), 0.25),
        (Reuse(comparisons=7), 0.25),
        (Reuse(comparisons=8), 0.0625),
        (Reuse(recipes=5), 0.05),
        (Reuse(comparisons=15, recipes=2), 0.125 / 9),
        (Reuse(is_champions_recipe=True), 0.01),
        (Reuse(comparisons=8, recipes=5, is_champions_recipe=True), 0.0025),
    ],
)
def test_each_use_of_the_holdout_costs_significance(reuse: Reuse, level: float) -> None:
    assert significance_of(GATE, reuse) == pytest.approx(level)


def test_the_levels_of_all_weeks_of_a_recipe_add_up_to_less_than_twice_the_first() -> None:
    weeks = [significance_of(GATE, Reuse(comparisons=comparisons)) for comparisons in range(1, 7000, 7)]

    assert sum(weeks) < 2 * weeks[0]


def test_of_independent_rows_the_bound_is_that_of_the_paired_t_test() -> None:
    candidate = CHAMPION - RNG.normal(0.002, 0.05, ROWS)

    improvement = measure_improvement(candidate, CHAMPION)

    interval = ttest_rel(CHAMPION, candidate, alternative="greater").confidence_interval(0.95)
    assert improvement.lower_bound(0.05) == pytest.approx(interval.low)


def test_of_a_series_the_standard_error_grows_with_its_autocorrelation() -> None:
    """Of an autoregression with coefficient r, the mean's standard error is sqrt((1 + r) / (1 - r)) times that of noise."""
    ratios = []
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=2000)
        series = np.zeros(2000)
        for day in range(1, 2000):
            series[day] = 0.5 * series[day - 1] + noise[day]
        zeros = np.zeros(2000)
        of_series = measure_improvement(zeros, series, is_series=True).standard_error
        ratios.append(of_series / measure_improvement(zeros, series).standard_error)

    assert np.mean(ratios) == pytest.approx(np.sqrt(3), rel=0.1)


def test_a_short_series_has_a_bound() -> None:
    improvement = measure_improvement([0.1, 0.2, 0.1, 0.3], [0.2, 0.3, 0.3, 0.3], is_series=True)

    assert np.isfinite(improvement.lower_bound(0.2))


@pytest.mark.parametrize("losses", [[0.1], [], [[0.1, 0.2], [0.1, 0.2]]])
def test_too_few_rows_are_an_error(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two losses"):
        measure_improvement(losses, losses)


NOT_A_NUMBER = np.full(ROWS, np.nan)


@pytest.mark.parametrize(
    ("candidate", "baseline", "champion"),
    [(NOT_A_NUMBER, BASELINE, None), (CHAMPION, {"x": NOT_A_NUMBER}, None), (better_by(9), BASELINE, NOT_A_NUMBER)],
)
def test_a_loss_that_is_not_a_number_never_promotes(
    candidate: NDArray[np.float64], baseline: dict[str, NDArray[np.float64]], champion: NDArray[np.float64] | None
) -> None:
    assert not decide("brier", candidate, baseline, champion, GATE).promote
    assert not decide("brier", candidate, {**BASELINE, **baseline}, champion, GATE).promote


@pytest.mark.parametrize(("skill", "promoted"), [(0.5, False), (0.19, True), (-0.5, True)])
def test_skill_is_a_share_of_the_best_baseline(skill: float, promoted: bool) -> None:
    baselines = {"worse": np.full(ROWS, 0.9), **BASELINE}

    assert decide("brier", CHAMPION, baselines, None, Thresholds(min_skill=skill)).promote is promoted


class TestExceptions:
    WORSE_THAN_BASELINE = CHAMPION + 0.1

    def test_without_a_champion_a_candidate_must_beat_the_baselines(self) -> None:
        assert decide("brier", CHAMPION, BASELINE, None, GATE).promote
        assert not decide("brier", self.WORSE_THAN_BASELINE, BASELINE, None, GATE).promote

    def test_a_champion_that_cannot_be_compared_is_replaced_by_what_beats_the_baselines_only(self) -> None:
        exception = decide("brier", CHAMPION, BASELINE, None, GATE)

        assert decide("brier", CHAMPION, BASELINE, None, GATE, exception=exception) == exception
        refused = decide("brier", self.WORSE_THAN_BASELINE, BASELINE, None, GATE, exception=exception)
        assert not refused.promote
        assert "does not reach" in refused.reason

    def test_a_forced_promotion_needs_no_improvement_but_skill(self) -> None:
        force = Thresholds(force=True)

        assert decide("brier", CHAMPION, BASELINE, CHAMPION, force).promote
        assert not decide("brier", self.WORSE_THAN_BASELINE, BASELINE, CHAMPION, force).promote


@pytest.mark.parametrize("thresholds", [{"min_improvement": -1}, {"significance": 0}, {"significance": 0.6}])
def test_thresholds_out_of_range_are_refused(thresholds: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Thresholds.model_validate(thresholds)
