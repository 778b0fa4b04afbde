"""Drift: what is one, and what is not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard import drift
from trainyard.drift import SEASON_ROWS

RANDOM = np.random.default_rng(1)


def frame(rows: int, mean: float = 0.0, shoes: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "size": RANDOM.normal(mean, 1, rows),
            "wet": RANDOM.random(rows) < 0.3,
            "category": np.where(RANDOM.random(rows) < shoes, "shoes", "books"),
        }
    )


def drifted(training: pd.DataFrame, recent: pd.DataFrame) -> set[str]:
    return {shift.column for shift in drift.compare(training, recent) if shift.drifted}


def test_rows_like_those_of_the_training_have_not_drifted() -> None:
    assert drifted(frame(2000), frame(500)) == set()
    assert drifted(frame(2000), frame(30)) == set(), "few rows have a large index by chance, which the test sees"


def test_a_moved_column_has_and_the_others_have_not() -> None:
    shifts = drift.compare(frame(2000), frame(100, mean=1.0))
    assert [shift.column for shift in shifts if shift.drifted] == ["size"]
    moved = shifts[0]
    assert moved.column == "size"
    assert moved.psi > 0.5
    assert moved.p_value < 1e-6
    assert moved.training_mean == pytest.approx(0, abs=0.2)
    assert moved.recent_mean == pytest.approx(1, abs=0.4)


def test_texts_drift_too() -> None:
    shifts = drift.compare(frame(1000), frame(200, shoes=0.95))
    (found,) = [shift for shift in shifts if shift.drifted]
    assert (found.column, found.training_mean) == ("category", None)


def test_a_trifle_among_many_rows_is_no_drift() -> None:
    (shift,) = drift.compare(frame(20_000)[["size"]], frame(20_000, mean=0.1)[["size"]])
    assert shift.p_value < 0.01
    assert not shift.drifted


def test_the_index_of_a_known_case() -> None:
    before, after = pd.Series([0] * 499 + [1] * 499), pd.Series([0] * 249 + [1] * 749)
    # 0.5 and 0.5 became 0.25 and 0.75: -0.25 ln 0.5 + 0.25 ln 1.5, but for the half rows.
    assert drift.psi(before, after) == pytest.approx(-0.25 * np.log(0.5) + 0.25 * np.log(1.5), abs=2e-3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_the_index_is_finite_and_never_negative(before: list[float], after: list[float]) -> None:
    index = drift.psi(pd.Series(before), pd.Series(after))
    assert np.isfinite(index)
    assert index >= -1e-12
    assert drift.psi(pd.Series(before), pd.Series(before)) == pytest.approx(0)


def test_a_constant_column_has_not_drifted() -> None:
    same = pd.DataFrame({"a": ["x"] * 50})
    assert drifted(same, same.head(30)) == set()


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        drift.compare(pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))
    with pytest.raises(ValueError, match="nothing to compare"):
        drift.compare(pd.DataFrame({"a": [1]}), pd.DataFrame({"a": []}))


class TestSeason:
    def of(self, days: pd.DatetimeIndex) -> pd.DataFrame:
        return pd.DataFrame({"time": [day.date().isoformat() for day in days], "x": range(len(days))})

    def test_rows_of_the_same_weeks_of_all_years(self) -> None:
        years = self.of(pd.date_range("2020-01-01", "2025-12-31"))
        near = drift.same_season(years, "time", pd.date_range("2026-01-01", "2026-01-10"))
        months = pd.to_datetime(near["time"]).dt.month
        assert set(months) == {12, 1}
        assert len(near) == pytest.approx(6 * 24, abs=8)
        one = drift.same_season(years.tail(366), "time", pd.date_range("2026-01-01", "2026-01-10"))
        assert SEASON_ROWS <= len(one) < 140, "wider where there are fewer"

    def test_all_rows_where_they_do_not_say_or_are_too_few(self) -> None:
        days = pd.date_range("2026-01-01", "2026-01-10")
        timeless = pd.DataFrame({"time": [""] * 300, "x": 1})
        assert len(drift.same_season(timeless, "time", days)) == 300
        summer = self.of(pd.date_range("2025-05-01", "2025-09-30"))
        assert len(drift.same_season(summer, "time", days)) == len(summer)
        assert len(drift.same_season(summer, "time", pd.DatetimeIndex([]))) == len(summer)
