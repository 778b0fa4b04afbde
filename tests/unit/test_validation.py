"""The rules for what a source sent, each on a small frame, and what is said when one is broken."""

import pickle
from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.weather.observations import Problem, check_observations
from flows.weather.validation import Checked, Limits, check_days, warmest_mean
from tests.unit.weather import make_frame
from trainyard.errors import DataError

LATITUDE = 47.6
LOOSE = Limits(max_filled_share=1.0)
RAIN, HIGH, LOW, WIND = "precipitation_mm", "temp_max_c", "temp_min_c", "wind_ms"


def days(count: int = 40) -> pd.DataFrame:
    """Return good days from 2020-01-01."""
    return make_frame(days=count)


def day(text: str) -> pd.Timestamp:
    return pd.Timestamp(f"2020-{text}")


def check(frame: pd.DataFrame, limits: Limits = LOOSE, asked: tuple[date, date] | None = None) -> Checked:
    return check_days(frame, LATITUDE, limits, asked)


def refused(
    frame: pd.DataFrame, limits: Limits = LOOSE, asked: tuple[date, date] | None = None
) -> tuple[str, list[Problem]]:
    with pytest.raises(DataError) as caught:
        check(frame, limits, asked)
    return str(caught.value), caught.value.problems


def test_good_days_stay_as_they_are() -> None:
    frame = days()
    checked = check(frame, Limits())
    pd.testing.assert_frame_equal(checked.frame, frame, check_freq=False, check_index_type=False)
    assert (checked.filled, checked.dropped_duplicates) == ((), 0)


def test_what_was_sent_is_not_changed() -> None:
    frame = days().drop(day("01-20")).sample(frac=1, random_state=0)
    before = frame.copy()
    check(frame)
    pd.testing.assert_frame_equal(frame, before)


class TestDuplicates:
    def test_the_same_row_again_is_dropped_and_counted(self) -> None:
        frame = days()
        frame.loc[day("01-09"), WIND] = np.nan
        again = pd.concat([frame, frame.iloc[[3, 8]], frame.iloc[[3]]])
        checked = check(again)
        assert checked.dropped_duplicates == 3
        assert len(checked.frame) == 40

    def test_a_day_with_two_different_rows(self) -> None:
        frame = days()
        message, problems = refused(pd.concat([frame, frame.iloc[[3, 5]].assign(wind_ms=9.5)]))
        assert "one day sent with different values (2020-01-04 to 2020-01-06, 2 days; wind_ms" in message
        assert [(p["first_day"], p["count"]) for p in problems] == [("2020-01-04", 2)]


class TestEnds:
    ASKED = (date(2020, 1, 1), date(2020, 2, 9))

    def test_newest_and_oldest_incomplete_days_are_dropped(self) -> None:
        frame = days()
        frame.loc[day("02-08") :, RAIN] = np.nan
        frame.loc[: day("01-02"), HIGH] = np.nan
        checked = check(frame, Limits(), self.ASKED)
        assert (checked.frame.index.min(), checked.frame.index.max()) == (day("01-03"), day("02-07"))
        assert checked.filled == ()

    def test_ten_days_may_be_wanting_and_not_eleven(self) -> None:
        check(days(30), Limits(), self.ASKED)
        message, (problem,) = refused(days(29), Limits(), self.ASKED)
        assert "ends too early, more than 10 days before 2020-02-09" in message
        assert "newest day 2020-01-29" in message
        assert (problem["first_day"], problem["last_day"], problem["count"]) == ("2020-01-30", "2020-02-09", 11)

    def test_begins_too_late(self) -> None:
        check(days().iloc[10:], Limits(), self.ASKED)
        message, _ = refused(days().iloc[11:], Limits(), self.ASKED)
        assert "begins too late, more than 10 days after 2020-01-01 (2020-01-01 to 2020-01-11, 11 days" in message

    def test_a_blank_column_at_the_end_counts(self) -> None:
        frame = days()
        frame.loc[day("01-20") :, WIND] = np.nan
        assert "newest day 2020-01-19" in refused(frame, Limits(), self.ASKED)[0]

    def test_age_matters_only_where_a_period_was_asked_for(self) -> None:
        check(days(29), Limits())

    def test_days_nobody_asked_for(self) -> None:
        message, _ = refused(days(42), Limits(), self.ASKED)
        assert "day not asked for (2020-02-10 to 2020-02-11, 2 days; asked from 2020-01-01 to 2020-02-09)" in message

    def test_days_of_another_century(self) -> None:
        frame = days().set_axis(pd.date_range("1920-01-01", periods=40, name="date"))
        assert "day not asked for" in refused(frame, Limits(), self.ASKED)[0]

    @pytest.mark.parametrize("frame", [days()[:0], days().assign(wind_ms=np.nan)])
    def test_nothing(self, frame: pd.DataFrame) -> None:
        with pytest.raises(DataError, match=r"no complete day\. Ask for"):
            check(frame)


class TestGaps:
    def test_three_days_are_filled_in_a_straight_line(self) -> None:
        frame = days()
        frame.loc[day("01-10"), RAIN], frame.loc[day("01-14"), RAIN] = 4.0, 0.0
        checked = check(frame.drop([day("01-11"), day("01-12"), day("01-13")]))
        assert checked.filled == (date(2020, 1, 11), date(2020, 1, 12), date(2020, 1, 13))
        assert checked.frame.loc[day("01-10") : day("01-14"), RAIN].tolist() == pytest.approx([4, 3, 2, 1, 0])

    @pytest.mark.parametrize("blank", [True, False])
    def test_four_are_not(self, blank: bool) -> None:
        frame = days()
        gap = pd.date_range("2020-01-11", "2020-01-14")
        frame = frame.drop(list(gap))
        frame = frame.reindex(days().index) if blank else frame
        message, (problem,) = refused(frame)
        assert (
            "not consecutive, more than 3 days in a row missing or blank (2020-01-11 to 2020-01-14, 4 days" in message
        )
        assert "2020-01-10 is followed by 2020-01-15" in message
        assert (problem["column"], problem["count"]) == ("all", 4)

    def test_missing_and_blank_days_make_one_gap(self) -> None:
        frame = days().drop([day("01-11"), day("01-12")])
        frame.loc[day("01-13") : day("01-14"), [RAIN, WIND]] = np.nan
        assert refused(frame)[1][0]["count"] == 4

    def test_a_gap_in_one_column_is_named_by_it(self) -> None:
        frame = days()
        frame.loc[day("01-11") : day("01-15"), WIND] = np.nan
        assert refused(frame)[0].startswith("The data is refused: wind_ms: not consecutive")

    def test_only_what_is_blank_is_filled(self) -> None:
        frame = days()
        frame.loc[day("01-20"), RAIN] = np.nan
        checked = check(frame)
        assert checked.filled == (date(2020, 1, 20),)
        for column in (HIGH, LOW, WIND):
            assert checked.frame[column].tolist() == frame[column].tolist()

    def test_too_many_small_gaps(self) -> None:
        gone = days(100).index[10:70:20]
        check(days(100).drop(gone), Limits(max_filled_share=0.03))
        message, (problem,) = refused(days(100).drop(gone), Limits())
        assert "more than 0.02 of all days missing or blank" in message
        assert (problem["count"], problem["example"]) == (3, "0.03")

    def test_a_limit_of_none(self) -> None:
        assert "more than 0 days in a row" in refused(days().drop(day("01-20")), Limits(max_gap_days=0))[0]


class TestValues:
    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            (RAIN, -0.1, "precipitation_mm: outside 0 to 1900 mm (2020-01-20; -0.1)"),
            (RAIN, 1901, "outside 0 to 1900 mm"),
            (RAIN, np.inf, "outside 0 to 1900 mm"),
            (HIGH, 60.1, "temp_max_c: outside -95 to 60 °C (2020-01-20; 60.1)"),
            (LOW, -95.1, "temp_min_c: outside -95 to 60 °C"),
            (WIND, -1, "wind_ms: outside 0 to 120 m/s"),
            (WIND, 121, "outside 0 to 120 m/s"),
            (HIGH, -90, "temp_max_c below temp_min_c (2020-01-20"),
        ],
    )
    def test_impossible_values(self, column: str, value: float, message: str) -> None:
        frame = days()
        frame.loc[day("01-20"), column] = value
        assert message in refused(frame)[0]

    @pytest.mark.parametrize(("column", "value"), [(RAIN, 1825), (HIGH, 56.7), (LOW, -89.2), (WIND, 113.2)])
    def test_the_records_are_possible(self, column: str, value: float) -> None:
        frame = days()
        frame.loc[day("01-20"), column] = value
        check(frame)

    @pytest.mark.parametrize("convert", [lambda c: c * 9 / 5 + 32, lambda c: c + 273.15])
    @pytest.mark.parametrize("latitude", [0.0, 35.0, LATITUDE, 65.0, -54.0])
    def test_fahrenheit_and_kelvin_under_the_name_of_celsius(
        self, convert: Callable[[pd.Series], pd.Series], latitude: float
    ) -> None:
        frame = days(400)
        frame = frame.assign(**{name: frame[name] - abs(latitude) / 5 for name in (HIGH, LOW)})
        check_days(frame, latitude)
        frame = frame.assign(**{name: convert(frame[name]) for name in (HIGH, LOW)})
        with pytest.raises(DataError, match=r"wrong units.*Check the address"):
            check_days(frame, latitude)

    @pytest.mark.parametrize(("latitude", "mean"), [(14.2, 34.6), (36.5, 25.1), (-54.8, 5.7), (60.4, 8.0), (90, -15)])
    def test_the_warmest_places_are_possible(self, latitude: float, mean: float) -> None:
        assert mean < warmest_mean(latitude)


class TestProblems:
    def test_all_are_listed_and_the_first_is_in_the_message(self) -> None:
        frame = days().drop(pd.date_range("2020-01-25", "2020-01-29"))
        frame.loc[day("01-20"), RAIN] = -4.0
        frame.loc[day("01-22"), RAIN] = -2.0
        frame.loc[day("01-21"), WIND] = 500.0
        message, problems = refused(frame)
        assert message == (
            "The data is refused: precipitation_mm: outside 0 to 1900 mm (2020-01-20 to 2020-01-22, 2 days; -4). "
            "And 2 more problems. Run again later, or choose fewer years or another place."
        )
        assert problems[0] == {
            "column": "precipitation_mm",
            "check": "outside 0 to 1900 mm",
            "first_day": "2020-01-20",
            "last_day": "2020-01-22",
            "count": 2,
            "example": "-4",
        }
        assert [problem["column"] for problem in problems] == [RAIN, WIND, "all"]

    def test_they_travel_between_processes(self) -> None:
        with pytest.raises(DataError) as caught:
            check(days().assign(wind_ms=-1.0))
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


@settings(max_examples=60, deadline=None)
@given(
    blanks=st.lists(st.tuples(st.integers(1, 38), st.integers(0, 3)), max_size=12),
    gone=st.sets(st.integers(1, 38), max_size=6),
    again=st.lists(st.integers(0, 39), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_what_is_accepted_is_whole_and_what_was_observed_stays(
    blanks: list[tuple[int, int]], gone: set[int], again: list[int], order: object
) -> None:
    good = days()
    sent = good.copy()
    for row, column in blanks:
        sent.iloc[row, column] = np.nan
    sent = pd.concat([sent, sent.iloc[again]])
    sent = sent[~sent.index.isin(good.index[list(gone)])]
    rows = list(range(len(sent)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    checked = check(sent.iloc[rows], Limits(max_gap_days=40, max_filled_share=1))
    frame = check_observations(checked.frame)
    assert (frame[HIGH] >= frame[LOW]).all()
    assert (frame[RAIN] >= 0).all()
    assert set(checked.filled) == {good.index[row].date() for row in {row for row, _ in blanks} | gone}
    untouched = ~frame.index.isin(pd.DatetimeIndex(checked.filled))
    pd.testing.assert_frame_equal(frame[untouched], good[untouched], check_freq=False, check_index_type=False)
