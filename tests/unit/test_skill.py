"""Skill against climatology, its interval, and the control chart of the daily loss."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.skill import (
    Climatology,
    ControlChart,
    clipped_losses,
    cusum,
    daily_excess,
    draw_blocks,
    loss_table,
    measure_skill,
)

DAYS = pd.date_range("2024-01-01", periods=365, tz="UTC")


def make_table(seed: int, days: int, sharpness: float = 2.5, lost: float = 0.0) -> pd.DataFrame:
    """Return the losses of a calibrated model, of whose outcomes a share no longer depends on its probabilities."""
    random = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=days, tz="UTC")
    score = sharpness * random.normal(size=days)
    probability = 1 / (1 + np.exp(-score))
    truth = np.where(random.random(days) < lost, random.random(days) < 0.5, random.random(days) < probability)
    time = pd.Series([f"{day:%F}" for day in index])
    return loss_table(time, clipped_losses(truth.astype(float), probability), np.full(days, np.log(2)))


def count_alerts(chart: ControlChart, excess: np.ndarray, window: int = 30) -> int:
    return sum(chart.sum(excess[max(0, stop - window) : stop]) > chart.limit for stop in range(1, len(excess) + 1))


def test_climatology_follows_the_season() -> None:
    wet = (np.cos(2 * np.pi * DAYS.day_of_year.to_numpy() / 365.25) > 0).astype(float)
    winter, summer = Climatology.fit(DAYS, wet).predict(pd.DatetimeIndex(["2026-01-01", "2026-07-01"]))

    assert winter > 0.9
    assert summer < 0.1


def test_climatology_of_less_than_a_year_is_one_frequency() -> None:
    climatology = Climatology.fit(DAYS[:200], np.r_[np.ones(50), np.zeros(150)])

    assert climatology.predict(DAYS[:2]).tolist() == [0.25, 0.25]


def test_the_interval_holds_the_skill_and_narrows_with_the_days() -> None:
    few, many = measure_skill(make_table(0, 30)), measure_skill(make_table(0, 1000))

    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.value > 0.3


def test_the_interval_of_days_that_depend_on_each_other_is_wider() -> None:
    """The same values, once in an order with memory."""
    table = make_table(0, 400)
    ordered = table.sort_values("model_loss")[["model_loss", "baseline_loss"]].to_numpy()
    slow = pd.DataFrame(ordered, columns=["model_loss", "baseline_loss"]).assign(day=np.arange(400))
    loose, tight = (measure_skill(each) for each in (slow, table))

    assert loose.high - loose.low > 1.5 * (tight.high - tight.low)


def test_an_unchanged_champion_raises_at_most_one_alert_in_ninety_days() -> None:
    alerts = [
        count_alerts(
            ControlChart.fit(daily_excess(make_table(seed, 365)), 0.05), daily_excess(make_table(99 + seed, 90))
        )
        for seed in range(20)
    ]

    assert sum(number > 1 for number in alerts) <= 2


def test_a_champion_whose_forecasts_lost_all_relation_is_found_within_thirty_days() -> None:
    found = [
        count_alerts(
            ControlChart.fit(daily_excess(make_table(seed, 365)), 0.05),
            daily_excess(make_table(99 + seed, 30, lost=1.0)),
        )
        for seed in range(20)
    ]

    assert sum(number > 0 for number in found) >= 17


def test_a_row_without_a_time_is_a_day_of_its_own() -> None:
    table = loss_table(pd.Series(["", "", ""]), np.ones(3), np.ones(3))

    assert len(daily_excess(table)) == 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_a_cumulative_sum_is_the_largest_sum_of_last_days(steps: list[float]) -> None:
    expected = max(0.0, *(sum(steps[start:]) for start in range(len(steps))))

    assert cusum(np.array(steps))[-1] == pytest.approx(expected)


def test_blocks_are_consecutive_and_wrap_around() -> None:
    drawn = draw_blocks(27, 100, np.random.default_rng(0))
    blocks = drawn[:, :99].reshape(-1, 3)

    assert drawn.shape == (1000, 100)
    assert set(drawn.flatten()) == set(range(27))
    assert (np.diff(blocks, axis=1) % 27 == 1).all()
    assert (np.diff(blocks, axis=1) < 0).any()
