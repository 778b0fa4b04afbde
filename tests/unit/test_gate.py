"""The decisions of the promotion gate."""

import pytest
from pydantic import ValidationError

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
