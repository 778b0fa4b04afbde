"""Assessing a model from its recorded predictions."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from trainyard.contract import DRIFT_COLUMNS, FORECAST_COLUMNS, Artifact, Column, Record, Verdict, table_rows
from trainyard.evaluation import MAX_SAMPLE_ROWS, as_table, from_table, holdout_table, training_sample
from trainyard.monitoring import (
    AlertThresholds,
    Assessment,
    Reference,
    assess,
    drift_table,
    new_alerts,
    rows_from_records,
)

RANDOM = np.random.default_rng(3)
DEPOT = "Depot North"
VERSION = 3


def record(number: int, rows: list[list[float]], probabilities: list[float], about: Any = None) -> dict[str, Any]:
    return {
        "id": number,
        "at": f"2026-11-{1 + number // 1000:02}T12:{number % 60:02}:00Z",
        "version": VERSION,
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


def make_forecasts(days: int, correct: bool, lead_days: int = 1) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Return daily forecasts that were all correct or all wrong, and the ground truth."""
    dates = [date(2026, 1, 1) + timedelta(days=number) for number in range(days)]
    names = [day.isoformat() for day in dates]
    probabilities = RANDOM.choice([0.1, 0.9], days)
    records = [
        record(number, [[0.0, 5.0]], [float(probability)], about(f"{day}"))
        | {"at": f"{day - timedelta(days=lead_days)}T12:00:00Z"}
        for number, (day, probability) in enumerate(zip(dates, probabilities, strict=True))
    ]
    observed = {(DEPOT, day): float((p > 0.5) == correct) for day, p in zip(names, probabilities, strict=True)}
    return rows_from_records(records), observed


def assess_inputs(rows: pd.DataFrame, **thresholds: Any) -> Assessment:
    return assess(rows, Reference(*make_training_tables()), {}, AlertThresholds(**thresholds), VERSION)


def test_rows_like_the_training_data_are_ok() -> None:
    assessment = assess_inputs(make_recent(200))

    assert (assessment.verdict, assessment.summary) == (Verdict.OK, "No input has drifted.")
    assert assessment.metrics["drifted_share"] == 0
    assert assessment.metrics["predictions"] == 200
    assert set(drift_table(assessment.shifts)["column"]) == {"a", "b", Column.PREDICTION}


def test_drift_is_an_alert_that_names_the_columns() -> None:
    assessment = assess_inputs(make_recent(100, mean=2))

    assert assessment.verdict == Verdict.ALERT
    assert assessment.summary.startswith("50% of the inputs have drifted (a: ")
    assert "The prediction has drifted (another distribution)." in assessment.summary
    assert assessment.metrics["psi_max"] > 1
    assert assessment.metrics["prediction_psi"] > 0.2


def test_an_alert_names_what_it_is_about() -> None:
    assessment = assess_inputs(make_recent(100, mean=2))

    inputs, prediction = "distribution of the inputs", "distribution of the prediction"
    assert set(assessment.alerts) == {inputs, prediction}
    assert new_alerts(assessment.alerts, []) == list(assessment.alerts)
    assert new_alerts(assessment.alerts, [["skill"], [inputs]]) == [prediction]
    rows = make_recent(100)
    rows.loc[rows.index[-40:], "b"] = None
    assert assess_inputs(rows).alerts == ("nulls of b",)
    assert assess_inputs(make_recent(200)).alerts == ()


def test_drift_of_the_allowed_share_is_ok() -> None:
    rows = make_recent(100)
    rows["b"] += 9

    assert assess_inputs(rows).verdict == Verdict.ALERT
    assert assess_inputs(rows, max_drifted_share=0.5).verdict == Verdict.OK


def test_drift_of_the_prediction_alone_is_an_alert() -> None:
    rows = make_recent(100)
    rows[Column.PREDICTION] = 0.99

    assessment = assess_inputs(rows, max_drifted_share=0.5)

    assert assessment.verdict == Verdict.ALERT
    assert assessment.summary.startswith("The prediction has drifted")


def test_an_input_that_is_all_null_is_an_alert() -> None:
    rows = make_recent(100)
    rows["b"] = None

    assessment = assess_inputs(rows, max_drifted_share=0.5)
    named = assess_inputs(rows)

    assert assessment.metrics["null_share_max"] == 1
    assert named.verdict == Verdict.ALERT
    assert "b: 100% null, in training 0%" in named.summary


def test_null_training_rows_do_not_hide_a_shift() -> None:
    sample, holdout = make_training_tables()
    sample.loc[5, "a"] = None

    assessment = assess(make_recent(100, mean=9), Reference(sample, holdout), {}, AlertThresholds(), VERSION)

    assert "(a: " in assessment.summary


@pytest.mark.parametrize("rows", [0, 29])
def test_too_few_rows_get_no_verdict(rows: int) -> None:
    assessment = assess_inputs(make_recent(rows, mean=9) if rows else rows_from_records([]))

    assert assessment.verdict == Verdict.TOO_FEW
    assert assessment.summary.startswith(f"{rows} predictions are too few")
    assert list(drift_table(assessment.shifts)["column"]) == []


def test_wrong_forecasts_are_an_alert() -> None:
    rows, observed = make_forecasts(25, correct=False)
    assessment = assess(
        rows, Reference(*make_training_tables()), observed, AlertThresholds(min_predictions=100), VERSION
    )

    assert assessment.verdict == Verdict.ALERT
    assert "The skill of 25 forecasts against climatology is -" in assessment.summary
    assert assessment.metrics["skill_low"] <= assessment.metrics["live_skill"] <= assessment.metrics["skill_high"]
    assert assessment.metrics["live_brier"] == pytest.approx(0.81)
    assert assessment.metrics["live_accuracy"] == 0
    assert assessment.metrics["scored"] == 25
    assert 0 < assessment.metrics["holdout_brier"] < 0.25


@pytest.mark.parametrize(("days", "correct", "verdict"), [(25, True, Verdict.OK), (9, False, Verdict.TOO_FEW)])
def test_correct_forecasts_are_ok_and_few_get_no_verdict(days: int, correct: bool, verdict: str) -> None:
    rows, observed = make_forecasts(days, correct)
    assessment = assess(
        rows, Reference(*make_training_tables()), observed, AlertThresholds(min_predictions=100), VERSION
    )

    assert assessment.verdict == verdict


def test_forecasts_of_another_version_are_listed_and_not_judged() -> None:
    rows, observed = make_forecasts(25, correct=False)

    assessment = assess(rows, Reference(*make_training_tables()), observed, AlertThresholds(), VERSION + 1)

    assert (assessment.verdict, assessment.metrics["scored"]) == (Verdict.TOO_FEW, 0)
    assert len(assessment.forecasts) == 25


def test_lead_times_are_scored_apart() -> None:
    """Forecasts a day ahead are right; those of the same days, three days ahead, are not."""
    near, observed = make_forecasts(25, correct=True, lead_days=1)
    far, _ = make_forecasts(25, correct=True, lead_days=3)
    near[Column.PREDICTION] = [0.9 if observed[DEPOT, time] else 0.1 for time in near[Column.TIME]]
    far[Column.PREDICTION] = [0.1 if observed[DEPOT, time] else 0.9 for time in far[Column.TIME]]
    rows = pd.concat([far, near], ignore_index=True)

    assessment = assess(rows, Reference(*make_training_tables()), observed, AlertThresholds(), VERSION)

    assert (
        assessment.metrics["scored"],
        assessment.metrics["scored_nearest"],
        assessment.metrics["live_accuracy"],
    ) == (50, 25, 1)
    assert assessment.metrics["skill_3_days_ahead"] < -1
    assert "Forecasts 3 days ahead are worse than climatology" in assessment.summary
    assert set(assessment.forecasts[Column.LEAD_DAYS]) == {1, 3}


def test_ground_truth_that_is_not_binary_is_not_scored() -> None:
    rows, observed = make_forecasts(25, correct=True)
    observed[min(observed)] = 2.0
    assessment = assess(
        rows, Reference(*make_training_tables()), observed, AlertThresholds(min_predictions=100), VERSION
    )

    assert (assessment.verdict, assessment.metrics["scored"]) == (Verdict.TOO_FEW, 0)


def test_a_forecast_without_ground_truth_has_no_observed_value() -> None:
    rows, observed = make_forecasts(3, correct=True)
    newest = max(observed)
    del observed[newest]
    table = assess(rows, Reference(*make_training_tables()), observed, AlertThresholds(), VERSION).forecasts

    assert table[table[Column.TIME] == newest[1]][Column.OBSERVED].tolist() == [None]
    assert table[Column.OBSERVED].notna().sum() == 2
    assert list(table[Column.VERSION]) == [VERSION] * 3


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
        assessment = assess(rows, Reference(sample, holdout), observed, AlertThresholds(), VERSION)

        assert {shift.column for shift in assessment.shifts} == {"a", "b", Column.PREDICTION}
        assert assessment.metrics["holdout_brier"] > 0

    def test_the_monitor_writes_the_tables_of_the_contract(self) -> None:
        rows, observed = make_forecasts(40, correct=False)
        assessment = assess(rows, Reference(*make_training_tables()), observed, AlertThresholds(), VERSION)
        shifts = table_rows(as_table(drift_table(assessment.shifts)), Artifact.DRIFT)
        forecasts = table_rows(as_table(assessment.forecasts), Artifact.FORECASTS)

        assert [tuple(row) for row in shifts] == [DRIFT_COLUMNS] * 3
        assert [tuple(row) for row in forecasts] == [FORECAST_COLUMNS] * 40
        assert {(row[Column.SUBJECT], row[Column.TIME]) for row in forecasts} == observed.keys()


class TestDailyModel:
    """A model that was trained on days with a season."""

    DAYS = pd.date_range("2020-01-01", "2025-12-31")

    def make_reference(self) -> Reference:
        season = np.cos(2 * np.pi * self.DAYS.day_of_year.to_numpy() / 365.25)
        inputs = pd.DataFrame(
            {"a": 3 * season + RANDOM.normal(size=len(self.DAYS)), "b": RANDOM.normal(5, 2, len(season))}
        )
        probability = 1 / (1 + np.exp(-inputs["a"]))
        observed = pd.Series((RANDOM.random(len(inputs)) < probability).astype(int))[-365:]
        holdout = holdout_table(observed, {"model": probability[-365:]}, self.DAYS[-365:])
        return Reference(training_sample(inputs, probability, self.DAYS), holdout)

    def make_forecasts(self, shift: float = 0.0) -> pd.DataFrame:
        """Return forecasts about the days of a January, of which the last week is shifted."""
        records = []
        for number, day in enumerate(pd.date_range("2026-01-01", "2026-01-30")):
            a = 3 + RANDOM.normal() + (shift if number >= 23 else 0)
            one = record(number, [[a, RANDOM.normal(5, 2)]], [float(1 / (1 + np.exp(-a)))], about(f"{day:%F}"))
            records.append(one | {"at": f"{day - timedelta(days=1):%F}T12:00:00Z"})
        return rows_from_records(records)

    def test_a_month_of_its_season_is_no_drift(self) -> None:
        assessment = assess(self.make_forecasts(), self.make_reference(), {}, AlertThresholds(), VERSION)

        assert (assessment.verdict, assessment.summary) == (Verdict.OK, "No input has drifted.")
        assert {shift.test for shift in assessment.shifts} == {"control chart"}

    def test_manual_requests_do_not_turn_off_the_comparison_by_season(self) -> None:
        manual = record(99, [[-3.0, 5.0]] * 100, [0.05] * 100) | {"at": "2026-01-29T12:00:00Z"}
        rows = pd.concat([self.make_forecasts(), rows_from_records([manual])], ignore_index=True)

        assessment = assess(rows, self.make_reference(), {}, AlertThresholds(), VERSION)

        assert assessment.verdict == Verdict.OK
        assert {shift.test for shift in assessment.shifts} == {"control chart"}

    def test_a_shift_of_a_week_is_drift(self) -> None:
        assessment = assess(self.make_forecasts(shift=2.3), self.make_reference(), {}, AlertThresholds(), VERSION)

        assert assessment.verdict == Verdict.ALERT
        assert "a: " in assessment.summary

    def test_requests_without_a_time_are_compared_by_their_day_where_there_are_no_forecasts(self) -> None:
        records = [
            record(n, [[3 + RANDOM.normal(), 5.0 + RANDOM.normal()]], [0.95]) | {"at": f"2026-01-{n:02}T12:00:00Z"}
            for n in range(1, 31)
        ]

        assessment = assess(rows_from_records(records), self.make_reference(), {}, AlertThresholds(), VERSION)

        assert "a:" not in assessment.summary
