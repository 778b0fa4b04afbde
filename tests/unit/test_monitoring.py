"""Assessing a model from its recorded predictions."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from trainyard.contract import DRIFT_COLUMNS, FORECAST_COLUMNS, Artifact, Column, Record, Verdict, table_rows
from trainyard.evaluation import MAX_SAMPLE_ROWS, as_table, from_table, holdout_table, training_sample
from trainyard.monitoring import AlertThresholds, Assessment, assess, drift_table, rows_from_records

RANDOM = np.random.default_rng(3)
DEPOT = "Depot North"


def record(number: int, rows: list[list[float]], probabilities: list[float], about: Any = None) -> dict[str, Any]:
    return {
        "id": number,
        "at": f"2026-11-{1 + number // 1000:02}T12:{number % 60:02}:00Z",
        "version": 3,
        "inputs": {"columns": ["a", "b"], "data": rows},
        "outputs": {
            "columns": ["prediction", "probability_0", "probability_1"],
            "data": [[p >= 0.5, 1 - p, p] for p in probabilities],
        },
        "about": about,
    }


def about(*times: str, subject: str = DEPOT) -> dict[str, Any]:
    return {Record.SUBJECT: subject, Record.TIMES: list(times)}


def make_training_tables(rows: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame]:
    inputs = pd.DataFrame({"a": RANDOM.normal(0, 1, rows), "b": RANDOM.normal(5, 2, rows)})
    probability = 1 / (1 + np.exp(-inputs["a"]))
    observed = pd.Series((RANDOM.random(rows) < probability).astype(int))
    return training_sample(inputs, probability), holdout_table(observed, {"model": probability})


def make_recent(rows: int, mean: float = 0.0) -> pd.DataFrame:
    inputs = np.column_stack([RANDOM.normal(mean, 1, rows), RANDOM.normal(5, 2, rows)])
    return rows_from_records([record(1, inputs.tolist(), (1 / (1 + np.exp(-inputs[:, 0]))).tolist())])


def make_forecasts(days: int, correct: bool) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Return daily forecasts that were all correct or all wrong, and the ground truth."""
    names = [(date(2026, 1, 1) + timedelta(days=number)).isoformat() for number in range(days)]
    probabilities = RANDOM.choice([0.1, 0.9], days)
    records = [
        record(number, [[0.0, 5.0]], [float(probability)], about(day))
        for number, (day, probability) in enumerate(zip(names, probabilities, strict=True))
    ]
    observed = {(DEPOT, day): float((p > 0.5) == correct) for day, p in zip(names, probabilities, strict=True)}
    return rows_from_records(records), observed


def assess_inputs(rows: pd.DataFrame, **thresholds: Any) -> Assessment:
    return assess(rows, *make_training_tables(), {}, AlertThresholds(**thresholds))


def test_rows_like_the_training_data_are_ok() -> None:
    assessment = assess_inputs(make_recent(200))

    assert (assessment.verdict, assessment.summary) == (Verdict.OK, "No input has drifted.")
    assert assessment.metrics["drifted_share"] == 0
    assert assessment.metrics["predictions"] == 200
    assert set(drift_table(assessment.shifts)["column"]) == {"a", "b", Column.PREDICTION}


def test_drift_is_an_alert_that_names_the_columns() -> None:
    assessment = assess_inputs(make_recent(100, mean=2))

    assert assessment.verdict == Verdict.ALERT
    assert assessment.summary == "50% of the inputs have drifted (a); 30% are allowed."
    assert assessment.metrics["psi_max"] > 1
    assert assessment.metrics["prediction_psi"] > 0.2


def test_drift_of_the_allowed_share_is_ok() -> None:
    assert assess_inputs(make_recent(100, mean=2), max_drifted_share=0.5).verdict == Verdict.OK


@pytest.mark.parametrize("rows", [0, 29])
def test_too_few_rows_get_no_verdict(rows: int) -> None:
    assessment = assess_inputs(make_recent(rows, mean=9) if rows else rows_from_records([]))

    assert assessment.verdict == Verdict.TOO_FEW
    assert assessment.summary.startswith(f"{rows} predictions are too few")
    assert list(drift_table(assessment.shifts)["column"]) == []


def test_wrong_forecasts_are_an_alert() -> None:
    rows, observed = make_forecasts(25, correct=False)
    assessment = assess(rows, *make_training_tables(), observed, AlertThresholds(min_predictions=100))

    assert assessment.verdict == Verdict.ALERT
    assert "The Brier score of 25 forecasts is 0.810" in assessment.summary
    assert assessment.metrics["live_accuracy"] == 0
    assert assessment.metrics["scored"] == 25
    assert 0 < assessment.metrics["holdout_brier"] < 0.25


@pytest.mark.parametrize(("days", "correct", "verdict"), [(25, True, Verdict.OK), (19, False, Verdict.TOO_FEW)])
def test_correct_forecasts_are_ok_and_few_get_no_verdict(days: int, correct: bool, verdict: str) -> None:
    rows, observed = make_forecasts(days, correct)
    assessment = assess(rows, *make_training_tables(), observed, AlertThresholds(min_predictions=100))

    assert assessment.verdict == verdict


def test_ground_truth_that_is_not_binary_is_not_scored() -> None:
    rows, observed = make_forecasts(25, correct=True)
    observed[min(observed)] = 2.0
    assessment = assess(rows, *make_training_tables(), observed, AlertThresholds(min_predictions=100))

    assert (assessment.verdict, assessment.metrics["scored"]) == (Verdict.TOO_FEW, 0)


def test_a_forecast_without_ground_truth_has_no_observed_value() -> None:
    rows, observed = make_forecasts(3, correct=True)
    newest = max(observed)
    del observed[newest]
    table = assess(rows, *make_training_tables(), observed, AlertThresholds()).forecasts

    assert table[table[Column.TIME] == newest[1]][Column.OBSERVED].tolist() == [None]
    assert table[Column.OBSERVED].notna().sum() == 2
    assert list(table[Column.VERSION]) == [3, 3, 3]


def test_the_newest_forecast_about_a_subject_and_time_counts() -> None:
    forecasts = [record(n, [[0.0, 5.0]], [p], about("2026-01-01")) for n, p in [(2, 0.7), (1, 0.2)]]

    assert rows_from_records(forecasts)[Column.PREDICTION].tolist() == [0.7]


def test_all_rows_that_are_about_nothing_count() -> None:
    assert len(rows_from_records([record(1, [[0.0, 5.0]] * 3, [0.5] * 3)])) == 3


def test_records_from_before_0_2_0_are_forecasts_too() -> None:
    former = record(1, [[0.0, 5.0]], [0.5], {"place": DEPOT, "latitude": 47.6, "days": ["2026-01-01"]})
    (row,) = rows_from_records([former]).to_dict("records")

    assert (row[Column.SUBJECT], row[Column.TIME]) == (DEPOT, "2026-01-01")


@pytest.mark.parametrize(("min_predictions", "is_compared"), [(24, True), (25, False)])
def test_forecasts_more_than_two_days_ahead_do_not_count_for_drift(min_predictions: int, is_compared: bool) -> None:
    days = [f"2026-11-{day:02}" for day in range(2, 9)]
    records = [record(n, [[0.0, 5.0]] * 7, [0.5] * 7, about(*days, subject=f"depot {n}")) for n in range(1, 13)]
    assessment = assess_inputs(rows_from_records(records), min_predictions=min_predictions)

    # Issued on the 1st at noon (UTC): of 7 days ahead, the 2nd and the 3rd count.
    assert bool(assessment.shifts) == is_compared
    assert assessment.metrics["predictions"] == 84


def test_the_prediction_of_a_classifier_with_three_classes_is_the_class() -> None:
    one = record(1, [[0.0, 1.0]], [0.5])
    one["outputs"] = {
        "columns": ["prediction", "probability_0", "probability_1", "probability_2"],
        "data": [["y", 0.2, 0.5, 0.3]],
    }

    assert rows_from_records([one])[Column.PREDICTION].tolist() == ["y"]


@pytest.mark.parametrize("invalid", [{"min_predictions": 1}, {"max_drifted_share": 2}, {"unknown": 1}])
def test_invalid_thresholds_are_refused(invalid: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AlertThresholds.model_validate(invalid)


class TestTables:
    """What trainings and the monitor write is what their readers read."""

    def test_a_table_survives_the_round_trip(self) -> None:
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")]})
        table = as_table(frame)

        assert table == {"columns": ["a", "b", "c"], "data": [[1, "x", 0.5], [2, None, None]]}
        assert from_table(table).shape == (2, 3)

    def test_other_json_is_no_table(self) -> None:
        with pytest.raises(ValueError, match="table"):
            from_table({"columns": []})

    def test_a_sample_is_bounded_ordered_and_reproducible(self) -> None:
        days = pd.date_range("2000-01-01", periods=5000)
        inputs = pd.DataFrame({"a": range(5000)}, index=days)
        sample = training_sample(inputs, np.zeros(5000), days)

        assert len(sample) == MAX_SAMPLE_ROWS
        assert sample[Column.TIME].is_monotonic_increasing
        assert sample.equals(training_sample(inputs, np.zeros(5000), days))
        assert Column.TIME not in inputs

    def test_times_keep_their_time_of_day(self) -> None:
        times = pd.DatetimeIndex(["2026-01-01", "2026-01-02 06"])
        table = holdout_table(pd.Series([1, 0]), {"model": [0.5, 0.5]}, times)

        assert table[Column.TIME].tolist() == ["2026-01-01", "2026-01-02T06:00:00"]

    def test_the_monitor_reads_the_tables_of_a_training(self) -> None:
        sample, holdout = (from_table(as_table(table)) for table in make_training_tables())
        rows, observed = make_forecasts(40, correct=False)
        assessment = assess(rows, sample, holdout, observed, AlertThresholds())

        assert {shift.column for shift in assessment.shifts} == {"a", "b", Column.PREDICTION}
        assert assessment.metrics["holdout_brier"] > 0

    def test_the_monitor_writes_the_tables_of_the_contract(self) -> None:
        rows, observed = make_forecasts(40, correct=False)
        assessment = assess(rows, *make_training_tables(), observed, AlertThresholds())
        shifts = table_rows(as_table(drift_table(assessment.shifts)), Artifact.DRIFT)
        forecasts = table_rows(as_table(assessment.forecasts), Artifact.FORECASTS)

        assert [tuple(row) for row in shifts] == [DRIFT_COLUMNS] * 3
        assert [tuple(row) for row in forecasts] == [FORECAST_COLUMNS] * 40
        assert {(row[Column.SUBJECT], row[Column.TIME]) for row in forecasts} == observed.keys()
