"""Which differences between training rows and recent rows are drift."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard import drift
from trainyard.drift import MIN_SEASON_ROWS

RANDOM = np.random.default_rng(1)
FLOATS = st.floats(-1e6, 1e6)


def make_frame(rows: int, mean: float = 0.0, shoes: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "size": RANDOM.normal(mean, 1, rows),
            "gift": RANDOM.random(rows) < 0.3,
            "category": np.where(RANDOM.random(rows) < shoes, "shoes", "books"),
        }
    )


def find_drifted(training: pd.DataFrame, recent: pd.DataFrame) -> set[str]:
    return {shift.column for shift in drift.compare(training, recent) if shift.drifted}


@pytest.mark.parametrize("rows", [30, 500])
def test_rows_of_the_same_distribution_have_not_drifted(rows: int) -> None:
    assert find_drifted(make_frame(2000), make_frame(rows)) == set()


def test_a_column_with_another_mean_has_drifted() -> None:
    shifts = drift.compare(make_frame(2000), make_frame(100, mean=1.0))
    moved = shifts[0]

    assert [shift.column for shift in shifts if shift.drifted] == [moved.column] == ["size"]
    assert moved.psi > 0.5
    assert moved.p_value < 1e-6
    assert moved.training_mean == pytest.approx(0, abs=0.2)
    assert moved.recent_mean == pytest.approx(1, abs=0.4)


def test_categories_drift_too() -> None:
    shifts = drift.compare(make_frame(1000), make_frame(200, shoes=0.95))
    (shift,) = [shift for shift in shifts if shift.drifted]

    assert (shift.column, shift.training_mean, shift.recent_mean) == ("category", None, None)


def test_a_significant_but_small_difference_is_no_drift() -> None:
    (shift,) = drift.compare(make_frame(20_000)[["size"]], make_frame(20_000, mean=0.1)[["size"]])

    assert shift.p_value < 0.01
    assert not shift.drifted


def test_psi_of_a_known_case() -> None:
    before, after = pd.Series([0] * 499 + [1] * 499), pd.Series([0] * 249 + [1] * 749)

    # Shares of 0.5 and 0.5 became 0.25 and 0.75, but for the added half rows.
    assert drift.psi(before, after) == pytest.approx(-0.25 * np.log(0.5) + 0.25 * np.log(1.5), abs=2e-3)


@settings(deadline=None)  # a busy machine is no fault of the function
@given(st.lists(FLOATS, min_size=2, max_size=50), st.lists(FLOATS, min_size=1, max_size=50))
def test_psi_is_finite_and_not_negative(before: list[float], after: list[float]) -> None:
    index = drift.psi(pd.Series(before), pd.Series(after))

    assert np.isfinite(index)
    assert index >= -1e-12
    assert drift.psi(pd.Series(before), pd.Series(before)) == pytest.approx(0)


def test_a_constant_column_has_not_drifted() -> None:
    constant = pd.DataFrame({"a": ["x"] * 50})

    assert find_drifted(constant, constant.head(30)) == set()


@pytest.mark.parametrize(("nulls", "is_drift"), [(0, False), (1, False), (3, True), (7, True)])
def test_more_nulls_than_in_training_are_drift(nulls: int, is_drift: bool) -> None:
    recent = make_frame(7)
    recent.loc[: nulls - 1, "size"] = np.nan

    assert find_drifted(make_frame(1000), recent) == ({"size"} if is_drift else set())


def test_as_many_nulls_as_in_training_are_no_drift() -> None:
    training, recent = make_frame(1000), make_frame(100)
    for frame in (training, recent):
        frame["size"] = frame["size"].where(RANDOM.random(len(frame)) < 0.5)

    assert find_drifted(training, recent) == set()


def test_a_column_of_nulls_in_training_is_compared_by_its_nulls() -> None:
    frame = pd.DataFrame({"a": [np.nan] * 200})

    assert find_drifted(frame, frame.head(30)) == set()


def test_nulls_in_training_do_not_hide_a_shift() -> None:
    training = make_frame(1000)
    training.loc[0, "size"] = np.nan

    assert find_drifted(training, make_frame(100, mean=9.0)) == {"size"}


def test_values_beyond_the_training_range_are_drift() -> None:
    recent = make_frame(30)
    recent.loc[:9, "size"] = 50.0
    (shift,) = [shift for shift in drift.compare(make_frame(1000), recent) if shift.drifted]

    assert shift.column == "size"
    assert shift.outside == pytest.approx(1 / 3)
    assert "33% outside the training range" in shift.reason


def test_unseen_categories_are_drift() -> None:
    recent = make_frame(30)
    recent.loc[:9, "category"] = "toys"
    (shift,) = [shift for shift in drift.compare(make_frame(1000), recent) if shift.drifted]

    assert (shift.column, "33% unseen" in shift.reason) == ("category", True)


@pytest.mark.parametrize("recent", [pd.DataFrame({"b": [1]}), pd.DataFrame({"a": []})])
def test_frames_without_common_columns_or_rows_are_an_error(recent: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        drift.compare(pd.DataFrame({"a": [1]}), recent)


class TestSameSeason:
    RECENT = pd.date_range("2026-01-01", "2026-01-10")

    def rows_of(self, days: pd.DatetimeIndex) -> pd.DataFrame:
        return pd.DataFrame({"time": [day.date().isoformat() for day in days], "x": range(len(days))})

    def test_the_season_is_the_same_weeks_of_all_years(self) -> None:
        season = drift.same_season(self.rows_of(pd.date_range("2020-01-01", "2025-12-31")), "time", self.RECENT)

        assert set(pd.to_datetime(season["time"]).dt.month) == {12, 1}
        assert len(season) == pytest.approx(6 * 24, abs=8)

    def test_the_season_is_wider_if_there_are_few_rows(self) -> None:
        season = drift.same_season(self.rows_of(pd.date_range("2025-01-01", "2025-12-31")), "time", self.RECENT)

        assert MIN_SEASON_ROWS <= len(season) < 140

    def test_days_and_moments_may_be_mixed(self) -> None:
        rows = self.rows_of(pd.date_range("2020-01-01", "2025-12-31"))
        mixed = rows.assign(time=[f"{text}T06:00:00+02:00" if n % 2 else text for n, text in enumerate(rows["time"])])

        season = drift.same_season(mixed, "time", self.RECENT)

        assert len(season) == len(drift.same_season(rows, "time", self.RECENT))

    def test_all_rows_are_returned_if_they_have_no_time(self) -> None:
        timeless = pd.DataFrame({"time": [""] * 300, "x": 1})

        assert len(drift.same_season(timeless, "time", self.RECENT)) == 300

    @pytest.mark.parametrize("recent", [RECENT, pd.DatetimeIndex([])])
    def test_all_rows_are_returned_if_too_few_are_of_the_season(self, recent: pd.DatetimeIndex) -> None:
        summer = self.rows_of(pd.date_range("2025-05-01", "2025-09-30"))

        assert len(drift.same_season(summer, "time", recent)) == len(summer)
