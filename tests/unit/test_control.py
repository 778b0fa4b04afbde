"""Control charts of daily inputs: what strays like the training's own days, and what does not."""

import numpy as np
import pandas as pd
import pytest

from trainyard.contract import Column
from trainyard.control import InputCharts, Jumps, Windows, can_chart

DAYS = pd.date_range("2020-01-01", periods=4 * 365 + 120, tz="UTC")
TRAINING = 4 * 365


def make_days(seed: int, memory: float = 0.7) -> pd.DataFrame:
    """Return daily inputs with season and memory: two that depend on each other, and a rolling mean."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(len(DAYS), 2))
    state = np.zeros(len(DAYS))
    for day in range(1, len(DAYS)):
        state[day] = memory * state[day - 1] + noise[day, 0]
    warm = 2 * np.cos(2 * np.pi * DAYS.day_of_year.to_numpy() / 365.25)
    frame = pd.DataFrame({"temp": warm + state, "dew": warm + state + 0.3 * noise[:, 1]})
    frame["mean_30d"] = frame["temp"].sub(warm).rolling(30).mean().bfill()
    frame["sky"] = np.where(noise[:, 1] > 0, "clear", "cloudy")
    frame[Column.PREDICTION] = 1 / (1 + np.exp(-state))
    return frame


def find_drifted(frame: pd.DataFrame, start: int = TRAINING, days: int = 30) -> set[str]:
    charts = InputCharts(frame[:TRAINING], DAYS[:TRAINING], 1)
    stop = start + days
    deviations = charts.deviations(frame[start:stop], DAYS[start:stop])
    return {name for name, deviation in deviations.items() if deviation.is_out_of_control}


def test_days_like_those_of_training_raise_at_most_one_alarm_in_ninety_looks() -> None:
    alarms = []
    for seed in range(5):
        frame = make_days(seed)
        charts = InputCharts(frame[:TRAINING], DAYS[:TRAINING], 1)
        looks = [
            charts.deviations(frame[stop - 30 : stop], DAYS[stop - 30 : stop])
            for stop in range(TRAINING + 30, TRAINING + 120)
        ]
        alarms.append(sum(any(each.is_out_of_control for each in look.values()) for look in looks))

    assert sum(alarms) <= len(alarms)


@pytest.mark.parametrize("column", ["temp", "dew", "mean_30d"])
def test_a_shift_by_one_standard_deviation_is_found_within_a_week(column: str) -> None:
    found = 0
    for seed in range(5):
        frame = make_days(seed)
        frame.loc[TRAINING + 23 :, column] += frame[column][:TRAINING].std()
        found += column in find_drifted(frame)

    assert found == 5


@pytest.mark.parametrize(("share", "drifted"), [(1.05, False), (1.15, True)])
def test_a_mean_must_exceed_the_largest_of_training_by_a_margin(share: float, drifted: bool) -> None:
    training = np.zeros(400)
    training[100:130] = 1.0  # the largest mean of a month is 1, 4.6 standard deviations of such means

    found = Windows(training).deviation(np.full(30, share))

    assert found.is_out_of_control == drifted


def test_a_change_from_day_to_day_must_be_twice_the_largest_of_training() -> None:
    jumps = Jumps(np.r_[np.zeros(400), 1.0])

    assert not jumps.deviation(np.array([0.0, -1.9])).is_out_of_control
    assert jumps.deviation(np.array([0.0, -2.1])).is_out_of_control


def test_another_frequency_of_a_category_is_found() -> None:
    frame = make_days(0)
    frame.loc[TRAINING:, "sky"] = "clear"

    assert "sky" in find_drifted(frame)


def test_a_prediction_that_no_longer_tells_days_apart_is_found() -> None:
    frame = make_days(0, memory=0.0)
    frame.loc[TRAINING:, Column.PREDICTION] = frame[Column.PREDICTION][:TRAINING].mean()

    assert find_drifted(frame) == {Column.PREDICTION}


def test_nulls_are_left_to_another_check() -> None:
    frame = make_days(0)
    frame.loc[::50, "temp"] = np.nan
    frame.loc[TRAINING : TRAINING + 2, "dew"] = np.nan

    deviations = InputCharts(frame[:TRAINING], DAYS[:TRAINING], 1).deviations(
        frame[TRAINING : TRAINING + 30], DAYS[TRAINING : TRAINING + 30]
    )

    assert all(np.isfinite(deviation.value) for deviation in deviations.values())


def test_fewer_rows_a_day_than_in_training_stray_further() -> None:
    """Twenty shops were trained on, and one is asked about: its noise is no drift."""
    random = np.random.default_rng(0)
    days = DAYS[:TRAINING].repeat(20)
    training = pd.DataFrame({"sales": random.normal(size=len(days))})
    recent, recent_days = pd.DataFrame({"sales": random.normal(size=30)}), DAYS[TRAINING : TRAINING + 30]
    (one,) = InputCharts(training, days, 1).deviations(recent, recent_days).values()
    (twenty,) = InputCharts(training, days, 20).deviations(recent, recent_days).values()

    assert one.value < 3
    assert twenty.value > 2 * one.value


@pytest.mark.parametrize(("training", "recent", "expected"), [(200, 5, True), (199, 5, False), (200, 4, False)])
def test_few_days_are_not_charted(training: int, recent: int, expected: bool) -> None:
    assert can_chart(DAYS[:training], DAYS[:recent]) == expected
    assert not can_chart(DAYS[:training], pd.DatetimeIndex([pd.NaT], tz="UTC"))
