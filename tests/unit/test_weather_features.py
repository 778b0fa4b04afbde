"""Features and examples: no value from the future, no filled target, and bounds that always hold."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.weather.features import LONGEST_WINDOW, TARGET, WET_TODAY, build_examples, build_features, validate_examples
from flows.weather.observations import DAY, Observations
from flows.weather.validation import GapLimits, validate_days
from tests.unit.weather import ORIGIN, make_frame, make_observations
from trainyard.errors import DataError

temperatures = st.floats(-90, 55, allow_nan=False)


@st.composite
def weather(draw: st.DrawFn, days: int = 45) -> pd.DataFrame:
    """Return any weather that passes validation."""
    rain = draw(st.lists(st.one_of(st.just(0.0), st.floats(0, 1900)), min_size=days, max_size=days))
    low = draw(st.lists(temperatures, min_size=days, max_size=days))
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


class TestNoFuture:
    @settings(max_examples=40, deadline=None)
    @given(past=weather(), day=st.integers(LONGEST_WINDOW - 1, 43), other=weather())
    def test_later_days_never_change_an_earlier_row(self, past: pd.DataFrame, day: int, other: pd.DataFrame) -> None:
        changed = past.copy()
        changed.iloc[day + 1 :] = other.iloc[day + 1 :].to_numpy()

        until = past.index[day]
        pd.testing.assert_frame_equal(build_features(past).loc[:until], build_features(changed).loc[:until])

    def test_each_day_alone_changes_its_own_row_and_no_earlier_one(self) -> None:
        past = make_frame(days=60)
        features = build_features(past)

        for day in range(LONGEST_WINDOW, 60):
            changed = past.copy()
            changed.iloc[day] = [500.0, 40.0, -40.0, 90.0]
            rebuilt = build_features(changed)
            earlier = features.index < past.index[day]
            pd.testing.assert_frame_equal(rebuilt[earlier], features[earlier])
            assert not rebuilt.loc[past.index[day]].equals(features.loc[past.index[day]])

    @settings(max_examples=60, deadline=None)
    @given(
        seeds=st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True),
        day=st.integers(LONGEST_WINDOW, 43),
        blanks=st.sets(st.tuples(st.integers(1, 43), st.integers(0, 3)), max_size=20),
        missing=st.sets(st.integers(1, 43), max_size=6),
    )
    def test_raw_values_of_later_days_never_change_an_earlier_row_nor_fill_its_gaps(
        self, seeds: list[int], day: int, blanks: set[tuple[int, int]], missing: set[int]
    ) -> None:
        raw, other = (make_frame(days=45, seed=seed) for seed in seeds)
        changed = pd.concat([raw.iloc[: day + 1], other.iloc[day + 1 :]])

        def rows_until_day(sent: pd.DataFrame) -> pd.DataFrame:
            sent = sent.copy()
            for row, column in blanks:
                sent.iloc[row, column] = np.nan
            whole = validate_days(sent.drop(sent.index[list(missing)]), ORIGIN, GapLimits(45, 1.0)).frame
            return build_features(whole).loc[: raw.index[day]]

        pd.testing.assert_frame_equal(rows_until_day(raw), rows_until_day(changed))


class TestRows:
    def test_every_day_with_full_windows_has_all_features(self) -> None:
        features = build_features(make_frame(days=100))

        assert len(features) == 100 - LONGEST_WINDOW + 1
        assert np.isfinite(features.to_numpy()).all()
        assert (features.dtypes == "float64").all()

    def test_the_target_is_the_next_days_rain(self) -> None:
        frame = make_frame(days=400)

        examples = build_examples(make_observations(frame), wet_day_mm=2.0).frame

        wet = frame["precipitation_mm"] >= 2.0
        assert examples[TARGET].tolist() == wet.shift(-1).loc[examples.index].astype(bool).tolist()
        assert examples[WET_TODAY].tolist() == wet.loc[examples.index].astype(float).tolist()
        assert examples.index.max() == frame.index[-2]

    def test_the_season_is_that_of_the_predicted_day(self) -> None:
        last = build_features(make_frame(days=366)).iloc[-1]  # of 2020-12-31

        assert last["season_sin"] == pytest.approx(np.sin(2 * np.pi / 365.25))

    @settings(max_examples=40, deadline=None)
    @given(frame=weather(), threshold=st.floats(0.1, 100))
    def test_any_weather_gives_valid_examples(self, frame: pd.DataFrame, threshold: float) -> None:
        wet = frame["precipitation_mm"] >= threshold
        frame.iloc[-2:, 0] = [0.0, threshold]  # both classes are among the targets

        examples = build_examples(make_observations(frame), threshold, min_observations=0).frame

        assert len(examples) == 45 - LONGEST_WINDOW
        assert np.isfinite(examples.drop(columns=TARGET).to_numpy()).all()
        assert examples[TARGET].iloc[:-2].tolist() == wet.iloc[LONGEST_WINDOW:-2].tolist()


class TestRefusedObservations:
    def test_a_missing_day_is_named(self) -> None:
        frame = make_frame(days=100).drop(pd.Timestamp("2020-02-10"))

        with pytest.raises(DataError, match="2020-02-09 is followed by 2020-02-11"):
            build_features(frame)

    def test_too_few_observations(self) -> None:
        with pytest.raises(DataError, match="has 364 daily observations, fewer than the 365"):
            build_examples(make_observations(make_frame(days=364)))

    @pytest.mark.parametrize(("rain", "kind"), [(0.0, "dry"), (9.0, "wet")])
    def test_a_single_class(self, rain: float, kind: str) -> None:
        frame = make_frame().assign(precipitation_mm=rain)

        with pytest.raises(DataError, match=f"Every day of Testville is {kind}"):
            build_examples(make_observations(frame))


class TestFilledDays:
    GAP = pd.date_range("2020-07-10", periods=2)

    @pytest.fixture
    def observations(self) -> Observations:
        return validate_days(make_frame().drop(self.GAP), ORIGIN)

    def test_they_are_never_a_target(self, observations: Observations) -> None:
        whole = build_examples(make_observations())

        examples = build_examples(observations)

        omitted = whole.frame.index.difference(examples.frame.index)
        assert omitted.tolist() == (self.GAP - DAY).tolist()
        assert (examples.filled_days, whole.filled_days) == (2, 0)
        assert examples.model_dump(mode="json")["filled_days"] == 2

    def test_they_do_not_count_as_observed(self, observations: Observations) -> None:
        with pytest.raises(DataError, match="has 798 daily observations, fewer than the 799"):
            build_examples(observations, min_observations=799)


class TestSchema:
    @pytest.fixture
    def frame(self) -> pd.DataFrame:
        return build_examples(make_observations()).frame.copy()

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
    def test_a_feature_out_of_bounds_is_named(
        self, frame: pd.DataFrame, column: str, value: float, message: str
    ) -> None:
        frame.iloc[7, frame.columns.get_loc(column)] = value  # type: ignore[index]

        with pytest.raises(DataError) as caught:
            validate_examples(frame)

        assert message in str(caught.value)
        assert caught.value.problems[0]["first_day"] == f"{frame.index[7]:%F}"

    @pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 1]])
    def test_unordered_or_repeated_days_are_refused(self, frame: pd.DataFrame, order: list[int]) -> None:
        with pytest.raises(DataError, match="The data is refused"):
            validate_examples(frame.iloc[order])

    def test_a_missing_feature_is_refused(self, frame: pd.DataFrame) -> None:
        with pytest.raises(DataError, match="The data is refused"):
            validate_examples(frame.drop(columns="temp_range"))

    def test_an_unknown_feature_is_refused(self, frame: pd.DataFrame) -> None:
        with pytest.raises(DataError, match="The data is refused"):
            validate_examples(frame.assign(humidity=0.5))

    def test_a_target_that_is_not_boolean_is_refused(self, frame: pd.DataFrame) -> None:
        with pytest.raises(DataError, match=TARGET):
            validate_examples(frame.astype({TARGET: float}))
