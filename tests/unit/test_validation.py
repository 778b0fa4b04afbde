"""The rules for observations, each on a small frame."""

import pickle
import random
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.weather.observations import Observations, Problem, require_complete
from flows.weather.validation import GapLimits, validate_days
from tests.unit.weather import ORIGIN, make_frame
from trainyard.errors import DataError

LOOSE = GapLimits(max_filled_share=1.0)
RAIN, HIGH, LOW, WIND = "precipitation_mm", "temp_max_c", "temp_min_c", "wind_ms"
REQUESTED = (date(2020, 1, 1), date(2020, 2, 9))


def make_days(count: int = 40) -> pd.DataFrame:
    """Return valid days from 2020-01-01."""
    return make_frame(days=count)


def day(text: str) -> pd.Timestamp:
    return pd.Timestamp(f"2020-{text}")


def validate(
    frame: pd.DataFrame, limits: GapLimits = LOOSE, requested: tuple[date, date] | None = None
) -> Observations:
    return validate_days(frame, ORIGIN, limits, requested)


def refuse(
    frame: pd.DataFrame, limits: GapLimits = LOOSE, requested: tuple[date, date] | None = None
) -> tuple[str, list[Problem]]:
    """Return the message and the problems of the error with which the days are refused."""
    with pytest.raises(DataError) as caught:
        validate(frame, limits, requested)
    return str(caught.value), [dict(problem) for problem in caught.value.problems]


def test_valid_days_are_returned_unchanged() -> None:
    frame = make_days()

    observations = validate(frame, GapLimits())

    pd.testing.assert_frame_equal(observations.frame, frame, check_freq=False, check_index_type=False)
    assert (observations.filled, observations.dropped_duplicates) == ((), 0)
    assert observations.origin == ORIGIN


def test_the_input_is_not_modified() -> None:
    frame = make_days().drop(day("01-20")).sample(frac=1, random_state=0)
    before = frame.copy()

    validate(frame)

    pd.testing.assert_frame_equal(frame, before)


class TestDuplicates:
    def test_identical_rows_are_dropped_and_counted(self) -> None:
        frame = make_days()
        frame.loc[day("01-09"), WIND] = np.nan

        observations = validate(pd.concat([frame, frame.iloc[[3, 8]], frame.iloc[[3]]]))

        assert observations.dropped_duplicates == 3
        assert len(observations.frame) == 40

    def test_different_rows_of_one_day_are_refused(self) -> None:
        frame = make_days()

        message, problems = refuse(pd.concat([frame, frame.iloc[[3, 5]].assign(wind_ms=9.5)]))

        assert "one day sent with different values (2020-01-04 to 2020-01-06, 2 days; wind_ms" in message
        assert [(p["first_day"], p["count"]) for p in problems] == [("2020-01-04", 2)]


class TestEnds:
    def test_newest_and_oldest_incomplete_days_are_dropped(self) -> None:
        frame = make_days()
        frame.loc[day("02-08") :, RAIN] = np.nan
        frame.loc[: day("01-02"), HIGH] = np.nan

        observations = validate(frame, GapLimits(), REQUESTED)

        days = observations.frame.index
        assert (days.min(), days.max()) == (day("01-03"), day("02-07"))
        assert observations.filled == ()

    @pytest.mark.parametrize("frame", [make_days(30), make_days().iloc[10:]])
    def test_ten_days_may_be_missing_at_either_end(self, frame: pd.DataFrame) -> None:
        observations = validate(frame, GapLimits(), REQUESTED)

        assert len(observations.frame) == 30

    def test_eleven_missing_days_at_the_end_are_refused(self) -> None:
        message, (problem,) = refuse(make_days(29), GapLimits(), REQUESTED)

        assert "ends too early, more than 10 days before 2020-02-09" in message
        assert "newest day 2020-01-29" in message
        assert (problem["first_day"], problem["last_day"], problem["count"]) == ("2020-01-30", "2020-02-09", 11)

    def test_eleven_missing_days_at_the_start_are_refused(self) -> None:
        message, _ = refuse(make_days().iloc[11:], GapLimits(), REQUESTED)

        assert "begins too late, more than 10 days after 2020-01-01 (2020-01-01 to 2020-01-11, 11 days" in message

    def test_a_column_that_is_blank_at_the_end_counts_as_missing(self) -> None:
        frame = make_days()
        frame.loc[day("01-20") :, WIND] = np.nan

        message, _ = refuse(frame, GapLimits(), REQUESTED)

        assert "newest day 2020-01-19" in message

    def test_the_ends_are_not_checked_without_a_requested_period(self) -> None:
        observations = validate(make_days(29), GapLimits())

        assert len(observations.frame) == 29

    def test_days_outside_the_requested_period_are_refused(self) -> None:
        message, _ = refuse(make_days(42), GapLimits(), REQUESTED)

        assert (
            "day not requested (2020-02-10 to 2020-02-11, 2 days; requested from 2020-01-01 to 2020-02-09)" in message
        )

    def test_days_of_another_century_are_refused(self) -> None:
        frame = make_days().set_axis(pd.date_range("1920-01-01", periods=40, name="date"))

        message, _ = refuse(frame, GapLimits(), REQUESTED)

        assert "day not requested" in message

    @pytest.mark.parametrize("frame", [make_days()[:0], make_days().assign(wind_ms=np.nan)])
    def test_data_without_a_complete_day_is_refused(self, frame: pd.DataFrame) -> None:
        message, _ = refuse(frame)

        assert "no complete day. Choose another place" in message


class TestGaps:
    def test_three_days_are_filled_with_the_last_earlier_value(self) -> None:
        frame = make_days()
        frame.loc[day("01-10"), RAIN], frame.loc[day("01-14"), RAIN] = 4.0, 0.0

        observations = validate(frame.drop([day("01-11"), day("01-12"), day("01-13")]))

        assert observations.filled == (date(2020, 1, 11), date(2020, 1, 12), date(2020, 1, 13))
        assert observations.frame.loc[day("01-10") : day("01-14"), RAIN].tolist() == [4, 4, 4, 4, 0]

    @pytest.mark.parametrize("blank", [True, False])
    def test_four_days_are_refused(self, blank: bool) -> None:
        missing = make_days().drop(list(pd.date_range("2020-01-11", "2020-01-14")))
        frame = missing.reindex(make_days().index) if blank else missing

        message, (problem,) = refuse(frame)

        assert "more than 3 days in a row missing or blank (2020-01-11 to 2020-01-14, 4 days" in message
        assert "2020-01-10 is followed by 2020-01-15" in message
        assert (problem["column"], problem["count"]) == ("all", 4)

    def test_adjacent_missing_and_blank_days_are_one_gap(self) -> None:
        frame = make_days().drop([day("01-11"), day("01-12")])
        frame.loc[day("01-13") : day("01-14"), [RAIN, WIND]] = np.nan

        _, (problem,) = refuse(frame)

        assert problem["count"] == 4

    def test_a_gap_in_one_column_names_the_column(self) -> None:
        frame = make_days()
        frame.loc[day("01-11") : day("01-15"), WIND] = np.nan

        message, _ = refuse(frame)

        assert message.startswith("The data is refused: wind_ms: not consecutive")

    def test_only_blank_values_are_filled(self) -> None:
        frame = make_days()
        frame.loc[day("01-20"), RAIN] = np.nan

        observations = validate(frame)

        others = [HIGH, LOW, WIND]
        assert observations.filled == (date(2020, 1, 20),)
        pd.testing.assert_frame_equal(
            observations.frame[others], frame[others], check_freq=False, check_index_type=False
        )

    def test_a_larger_share_than_allowed_is_refused(self) -> None:
        frame = make_days(100).drop(make_days(100).index[10:70:20])

        message, (problem,) = refuse(frame, GapLimits())

        assert "more than 0.02 of all days missing or blank" in message
        assert (problem["count"], problem["example"]) == (3, "0.03")

    def test_the_largest_allowed_share_is_filled(self) -> None:
        frame = make_days(100).drop(make_days(100).index[10:70:20])

        observations = validate(frame, GapLimits(max_filled_share=0.03))

        assert len(observations.filled) == 3

    def test_a_limit_of_zero_refuses_every_gap(self) -> None:
        message, _ = refuse(make_days().drop(day("01-20")), GapLimits(max_gap_days=0))

        assert "more than 0 days in a row" in message


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
    def test_impossible_values_are_refused(self, column: str, value: float, message: str) -> None:
        frame = make_days()
        frame.loc[day("01-20"), column] = value

        assert message in refuse(frame)[0]

    @pytest.mark.parametrize(("column", "value"), [(RAIN, 1825), (HIGH, 56.7), (LOW, -89.2), (WIND, 113.2)])
    def test_records_are_accepted(self, column: str, value: float) -> None:
        frame = make_days()
        frame.loc[day("01-20"), column] = value

        observations = validate(frame)

        assert observations.frame.loc[day("01-20"), column] == value


class TestProblems:
    def test_all_are_listed_and_the_message_names_the_first(self) -> None:
        frame = make_days().drop(pd.date_range("2020-01-25", "2020-01-29"))
        frame.loc[day("01-20"), RAIN] = -4.0
        frame.loc[day("01-22"), RAIN] = -2.0
        frame.loc[day("01-21"), WIND] = 500.0

        message, problems = refuse(frame)

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

    def test_they_survive_pickling(self) -> None:
        with pytest.raises(DataError) as caught:
            validate(make_days().assign(wind_ms=-1.0))

        copy = pickle.loads(pickle.dumps(caught.value))

        assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


@settings(max_examples=60, deadline=None)
@given(
    blanks=st.lists(st.tuples(st.integers(1, 38), st.integers(0, 3)), max_size=12),
    missing=st.sets(st.integers(1, 38), max_size=6),
    repeated=st.lists(st.integers(0, 39), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_accepted_data_is_complete_and_keeps_what_was_observed(
    blanks: list[tuple[int, int]], missing: set[int], repeated: list[int], order: random.Random
) -> None:
    good = make_days()
    sent = good.copy()
    for row, column in blanks:
        sent.iloc[row, column] = np.nan
    sent = pd.concat([sent, sent.iloc[repeated]])
    sent = sent[~sent.index.isin(good.index[list(missing)])]
    rows = list(range(len(sent)))
    order.shuffle(rows)

    observations = validate(sent.iloc[rows], GapLimits(max_gap_days=40, max_filled_share=1))

    frame = require_complete(observations.frame)
    untouched = ~frame.index.isin(pd.DatetimeIndex(observations.filled))
    assert (frame[HIGH] >= frame[LOW]).all()
    assert (frame[RAIN] >= 0).all()
    assert set(observations.filled) == {good.index[row].date() for row in {row for row, _ in blanks} | missing}
    pd.testing.assert_frame_equal(frame[untouched], good[untouched], check_freq=False, check_index_type=False)
