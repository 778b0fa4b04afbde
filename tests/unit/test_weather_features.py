"""Features: nothing from the future, no target that was filled in, and bounds that always hold."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.weather.features import LONGEST_WINDOW, TARGET, build_examples, build_features, check_examples
from flows.weather.observations import Observations
from flows.weather.validation import check_days
from tests.unit.weather import PLACE, make_frame, make_observations
from trainyard.errors import DataError

number = st.floats(-90, 55, allow_nan=False)


@st.composite
def weather(draw: st.DrawFn, days: int = 45) -> pd.DataFrame:
    """Return any weather that passes validation."""
    rain = draw(st.lists(st.one_of(st.just(0.0), st.floats(0, 1900)), min_size=days, max_size=days))
    low = draw(st.lists(number, min_size=days, max_size=days))
    span = draw(st.lists(st.floats(0, 5), min_size=days, max_size=days))
    wind = draw(st.lists(st.floats(0, 120), min_size=days, max_size=days))
    first = draw(st.dates(date(1940, 1, 1), date(2030, 1, 1)))
    columns = {
        "precipitation_mm": rain,
        "temp_max_c": np.add(low, span),
        "temp_min_c": low,
        "wind_ms": wind,
    }
    return pd.DataFrame(columns, index=pd.date_range(first, periods=days, name="date"))


@settings(max_examples=40, deadline=None)
@given(past=weather(), day=st.integers(LONGEST_WINDOW - 1, 43), other=weather())
def test_a_later_day_never_changes_an_earlier_row(past: pd.DataFrame, day: int, other: pd.DataFrame) -> None:
    changed = past.copy()
    changed.iloc[day + 1 :] = other.iloc[day + 1 :].to_numpy()
    until = past.index[day]
    pd.testing.assert_frame_equal(build_features(past).loc[:until], build_features(changed).loc[:until])


def test_each_later_day_alone_changes_no_earlier_row() -> None:
    past = make_frame(days=60)
    features = build_features(past)
    for day in range(LONGEST_WINDOW, 60):
        changed = past.copy()
        changed.iloc[day] = [500.0, 40.0, -40.0, 90.0]
        rebuilt = build_features(changed)
        earlier = features.index < past.index[day]
        pd.testing.assert_frame_equal(rebuilt[earlier], features[earlier])
        assert not rebuilt.loc[past.index[day]].equals(features.loc[past.index[day]])


@settings(max_examples=40, deadline=None)
@given(frame=weather(), threshold=st.floats(0.1, 100))
def test_any_weather_gives_features_within_bounds(frame: pd.DataFrame, threshold: float) -> None:
    wet = frame["precipitation_mm"] >= threshold
    frame.iloc[-2:, 0] = [0.0, threshold]  # both kinds of days are among the targets
    examples = build_examples(make_observations(frame), threshold, min_observations=0).frame
    assert len(examples) == 45 - LONGEST_WINDOW
    assert np.isfinite(examples.drop(columns=TARGET).to_numpy()).all()
    assert examples[TARGET].iloc[:-2].tolist() == wet.iloc[LONGEST_WINDOW:-2].tolist()


class TestFilledDays:
    GAP = pd.date_range("2020-07-10", periods=2)

    @pytest.fixture
    def observations(self) -> Observations:
        checked = check_days(make_frame().drop(self.GAP), PLACE.latitude)
        return make_observations(checked.frame).model_copy(update={"filled": checked.filled})

    def test_they_are_no_target(self, observations: Observations) -> None:
        examples = build_examples(observations)
        whole = build_examples(make_observations())
        left_out = whole.frame.index.difference(examples.frame.index)
        assert left_out.tolist() == (self.GAP - pd.Timedelta(days=1)).tolist()
        assert (examples.filled_days, whole.filled_days) == (2, 0)
        assert examples.model_dump(mode="json")["filled_days"] == 2

    def test_they_do_not_count_as_observed(self, observations: Observations) -> None:
        with pytest.raises(DataError, match="has 798 daily observations, fewer than the 799"):
            build_examples(observations, min_observations=799)


class TestSchema:
    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("wet_share_7d", 1.5, "wet_share_7d: above 1"),
            ("rain_today", -0.1, "rain_today: below 0"),
            ("season_sin", -1.1, "season_sin: below -1"),
            ("temp_today", np.inf, "temp_today: not finite"),
            ("wind_change_1d", np.nan, "wind_change_1d: not_nullable"),
        ],
    )
    def test_a_feature_out_of_bounds(self, column: str, value: float, message: str) -> None:
        frame = build_examples(make_observations()).frame.copy()
        frame.iloc[7, frame.columns.get_loc(column)] = value  # type: ignore[index]
        with pytest.raises(DataError) as caught:
            check_examples(frame)
        assert message in str(caught.value)
        assert caught.value.problems[0]["first_day"] == f"{frame.index[7]:%F}"

    @pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1]])
    def test_days_out_of_order_or_twice(self, order: list[int]) -> None:
        with pytest.raises(DataError, match="The data is refused"):
            check_examples(build_examples(make_observations()).frame.iloc[order])

    def test_a_feature_that_is_missing_or_new(self) -> None:
        frame = build_examples(make_observations()).frame
        with pytest.raises(DataError, match="refused"):
            check_examples(frame.drop(columns="temp_range"))
        with pytest.raises(DataError, match="refused"):
            check_examples(frame.assign(humidity=0.5))

    def test_the_target_is_true_or_false(self) -> None:
        frame = build_examples(make_observations()).frame
        with pytest.raises(DataError, match=TARGET):
            check_examples(frame.astype({TARGET: float}))
