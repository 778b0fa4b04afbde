"""What recorded predictions say of a model."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from flows.weather import truth
from flows.weather.observations import Observations, Origin, Place
from trainyard.errors import DataError
from trainyard.evaluation import (
    OBSERVED,
    PREDICTION,
    SAMPLE_ROWS,
    as_table,
    from_table,
    holdout_table,
    training_sample,
)
from trainyard.monitoring import Limits, check, drift_table, rows_of

RANDOM = np.random.default_rng(3)
SEATTLE = "Seattle, Washington, United States"
TAGS = {"place": SEATTLE, "latitude": "47.6", "longitude": "-122.3"}


def record(number: int, rows: list[list[float]], said: list[float], **about: Any) -> dict[str, Any]:
    return {
        "id": number,
        "at": f"2026-11-{1 + number // 1000:02}T12:{number % 60:02}:00Z",
        "version": 3,
        "inputs": {"columns": ["a", "b"], "data": rows},
        "outputs": {
            "columns": ["prediction", "probability_False", "probability_True"],
            "data": [[p >= 0.5, 1 - p, p] for p in said],
        },
        "about": about or None,
    }


def training(rows: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame]:
    inputs = pd.DataFrame({"a": RANDOM.normal(0, 1, rows), "b": RANDOM.normal(5, 2, rows)})
    probability = 1 / (1 + np.exp(-inputs["a"]))
    wet = pd.Series((RANDOM.random(rows) < probability).astype(int))
    return training_sample(inputs, probability), holdout_table(wet, {"model": probability})


def recent(rows: int, mean: float = 0.0) -> pd.DataFrame:
    inputs = np.column_stack([RANDOM.normal(mean, 1, rows), RANDOM.normal(5, 2, rows)])
    return rows_of([record(1, inputs.tolist(), (1 / (1 + np.exp(-inputs[:, 0]))).tolist())])


def forecasts(days: int, right: bool) -> tuple[pd.DataFrame, dict[tuple[str, str], bool]]:
    """Return forecasts of days, which came true mostly or seldom, and what happened."""
    names = [(date(2026, 1, 1) + timedelta(days=number)).isoformat() for number in range(days)]
    said = RANDOM.choice([0.1, 0.9], days)
    records = [
        record(number, [[0.0, 5.0]], [float(probability)], place=SEATTLE, days=[day])
        for number, (day, probability) in enumerate(zip(names, said, strict=True))
    ]
    happened = {(SEATTLE, day): bool((p > 0.5) == right) for day, p in zip(names, said, strict=True)}
    return rows_of(records), happened


def test_rows_as_in_training_are_ok() -> None:
    verdict = check(recent(200), *training(), {}, Limits())
    assert (verdict.word, verdict.metrics["drifted_share"]) == ("ok", 0)
    assert verdict.metrics["predictions"] == 200
    assert set(drift_table(verdict.shifts)["column"]) == {"a", "b", PREDICTION}


def test_drift_is_an_alert_that_names_the_columns() -> None:
    verdict = check(recent(100, mean=2), *training(), {}, Limits())
    assert verdict.word == "alert"
    assert "50% of the inputs have drifted (a)" in verdict.text
    assert verdict.metrics["psi_max"] > 1
    assert verdict.metrics["prediction_psi"] > 0.2
    assert check(recent(100, mean=2), *training(), {}, Limits(max_drifted_share=0.5)).word == "ok"


def test_too_few_rows_say_nothing() -> None:
    verdict = check(recent(29, mean=9), *training(), {}, Limits())
    assert verdict.word == "too-few"
    assert "29 predictions are too few" in verdict.text
    assert list(drift_table(verdict.shifts)["column"]) == []
    assert check(rows_of([]), *training(), {}, Limits()).word == "too-few"


def test_forecasts_that_do_not_come_true_are_an_alert() -> None:
    rows, happened = forecasts(25, right=False)
    verdict = check(rows, *training(), happened, Limits(min_predictions=100))
    assert verdict.word == "alert"
    assert "The Brier score of 25 forecasts is 0.810" in verdict.text
    assert verdict.metrics["live_accuracy"] == 0
    assert verdict.metrics["scored"] == 25
    assert 0 < verdict.metrics["holdout_brier"] < 0.25


def test_forecasts_that_come_true_are_ok_and_few_are_not_judged() -> None:
    rows, happened = forecasts(25, right=True)
    assert check(rows, *training(), happened, Limits(min_predictions=100)).word == "ok"
    rows, happened = forecasts(19, right=False)
    assert check(rows, *training(), happened, Limits(min_predictions=100)).word == "too-few"


def test_what_is_not_known_yet_has_no_truth() -> None:
    rows, happened = forecasts(3, right=True)
    newest = max(happened)
    del happened[newest]
    table = check(rows, *training(), happened, Limits()).forecasts
    assert table[table["day"] == newest[1]][OBSERVED].tolist() == [None]
    assert table[OBSERVED].notna().sum() == 2
    assert list(table["version"]) == [3, 3, 3]


def test_a_day_counts_once_with_its_newest_forecast() -> None:
    rows = rows_of([record(n, [[0.0, 5.0]], [p], place="Oslo", days=["2026-01-01"]) for n, p in [(2, 0.7), (1, 0.2)]])
    assert rows[PREDICTION].tolist() == [0.7]
    assert len(rows_of([record(1, [[0.0, 5.0]] * 3, [0.5] * 3)])) == 3, "rows about no day all count"


def test_forecasts_of_later_days_are_no_inputs_of_today() -> None:
    days = [f"2026-11-{day:02}" for day in range(2, 9)]
    rows = rows_of([record(n, [[0.0, 5.0]] * 7, [0.5] * 7, place=f"place {n}", days=days) for n in range(1, 13)])
    sample, holdout = training()
    # Made on the first: the second is tomorrow, and the third may be, where the day ends earlier than in UTC.
    verdict = check(rows, sample, holdout, {}, Limits(min_predictions=24))
    assert verdict.shifts
    assert verdict.metrics["predictions"] == 84
    assert not check(rows, sample, holdout, {}, Limits(min_predictions=25)).shifts


def test_of_three_classes_the_class_counts() -> None:
    one = record(1, [[0.0, 1.0]], [0.5])
    one["outputs"] = {
        "columns": ["prediction", "probability_x", "probability_y", "probability_z"],
        "data": [["y", 0.2, 0.5, 0.3]],
    }
    assert rows_of([one])[PREDICTION].tolist() == ["y"]


def test_limits_refuse_nonsense() -> None:
    for nonsense in ({"min_predictions": 1}, {"max_drifted_share": 2}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Limits.model_validate(nonsense)


class TestTables:
    def test_a_table_comes_back(self) -> None:
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")]})
        table = as_table(frame)
        assert table == {"columns": ["a", "b", "c"], "data": [[1, "x", 0.5], [2, None, None]]}
        assert from_table(table).shape == (2, 3)
        with pytest.raises(ValueError, match="no table"):
            from_table({"columns": []})

    def test_a_large_sample_is_small_in_order_and_the_same_again(self) -> None:
        days = pd.date_range("2000-01-01", periods=5000)
        inputs = pd.DataFrame({"a": range(5000)}, index=days)
        sample = training_sample(inputs, np.zeros(5000), days)
        assert len(sample) == SAMPLE_ROWS
        assert sample["time"].is_monotonic_increasing
        assert sample.equals(training_sample(inputs, np.zeros(5000), days))
        assert "time" not in inputs

    def test_moments_keep_their_time_of_day(self) -> None:
        table = holdout_table(
            pd.Series([1, 0]), {"model": [0.5, 0.5]}, pd.DatetimeIndex(["2026-01-01", "2026-01-02 06"])
        )
        assert table["time"].tolist() == ["2026-01-01", "2026-01-02T06:00:00"]


class TestTruth:
    def test_the_place_of_a_version(self) -> None:
        assert truth.place_of(TAGS) == Place(name=SEATTLE, latitude=47.6, longitude=-122.3)
        with pytest.raises(DataError, match="Train it again"):
            truth.place_of({"place": SEATTLE})

    def test_a_day_was_wet_or_not_and_a_filled_one_says_nothing(self) -> None:
        days = pd.date_range("2026-01-01", periods=3, name="date")
        frame = pd.DataFrame(
            {"precipitation_mm": [0.9, 1.0, 5.0], "temp_max_c": 9.0, "temp_min_c": 1.0, "wind_ms": 2.0}, index=days
        )
        origin = Origin(place=truth.place_of(TAGS), source="open-meteo", url="http://archive")
        observed = Observations(origin=origin, frame=frame, filled=(date(2026, 1, 3),))
        assert truth.was_wet(observed, 1.0) == {"2026-01-01": False, "2026-01-02": True}
