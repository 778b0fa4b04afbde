"""The dashboard's calculations, charts, cache and sessions, without servers."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import altair
import pytest
import vl_convert
from dashboard import charts, checks, runs, traffic
from dashboard.auth import MAX_FAILURES, MAX_FAILURES_OF_ALL, WINDOW_SECONDS, SessionManager, SignInLimiter
from dashboard.calibration import calibrate, wilson_interval
from dashboard.comparison import compare_runs, select_versions
from dashboard.conversions import to_iso, to_number, to_timestamp
from dashboard.formatting import decimal, duration, integer, percent, time_tag
from dashboard.metrics import scores_by_metric
from dashboard.mlflow_source import quote_literal
from dashboard.outcomes import daily_losses, holdout_residuals, residuals, summarize_outcomes
from dashboard.overview import overview_rows
from dashboard.registry import champion_history, last_refusal, list_trainings, metric_points, version_history
from dashboard.selection import Selection
from dashboard.snapshots import MAX_SNAPSHOTS, Snapshot, SnapshotCache, SourceError
from dashboard.ui import UIAddresses
from dashboard.view import select_model

from trainyard.contract import OUTCOME_COLUMNS, Alias, GateDecision, Problem, State, Tag, Verdict

UI = UIAddresses("http://mlflow.test", "http://prefect.test")
NOON = to_timestamp("2026-11-23T12:00:00Z") or 0.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def mlflow_run(
    id_: str, start_time: int, metrics: dict[str, float], tags: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a run as MLflow's API does."""
    return {
        "info": {"run_id": id_, "experiment_id": "7", "run_name": id_, "start_time": start_time},
        "data": {
            "metrics": [{"key": name, "value": value} for name, value in metrics.items()],
            "tags": [{"key": name, "value": value} for name, value in (tags or {}).items()],
        },
    }


def mlflow_version(
    number: int, run_id: str, decision: str = "", decided_at: str = "", reason: str = "", compared_with: str = ""
) -> dict[str, Any]:
    """Return a model version as MLflow's API does."""
    tags = {
        Tag.GATE_DECISION: decision,
        Tag.GATE_DECIDED_AT: decided_at,
        Tag.GATE_REASON: reason,
        Tag.GATE_COMPARED_WITH: compared_with,
    }
    named = [{"key": name, "value": value} for name, value in tags.items()]
    return {"name": "demand", "version": str(number), "run_id": run_id, "creation_timestamp": 1000, "tags": named}


def flow_run(**fields: Any) -> dict[str, Any]:
    """Return a flow run as `PrefectSource` does."""
    return {
        "id": "1", "name": "red-fox", "flow": "pipeline", "state_type": "COMPLETED", "state_name": "Completed",
        "start_time": "2026-11-23T10:00:00Z", "end_time": "2026-11-23T10:00:10Z", "run_count": 1,
        "components": [], "tasks": 0, "cached": 0, "retries": 0, **fields,
    }  # fmt: skip


def test_scores_are_grouped_by_metric_with_the_model_first() -> None:
    metrics = {
        "model_brier": 0.1,
        "climatology_brier": 0.3,
        "model_log_loss": 0.4,
        "persistence_log_loss": 0.9,
        "cv": 1,
    }

    scores = scores_by_metric(metrics)

    assert scores == {"brier": {"model": 0.1, "climatology": 0.3}, "log_loss": {"model": 0.4, "persistence": 0.9}}


@pytest.fixture
def history() -> list[dict[str, Any]]:
    """Two champions, one after the other, a challenger, and a version without a decision."""
    trainings = list_trainings(
        [
            mlflow_run("b", 2000, {"model_brier": 0.2}, {Tag.MODEL_VERSION: "2"}),
            mlflow_run("a", 1000, {"model_brier": 0.1}),
        ]
    )
    versions = [
        mlflow_version(1, "a", GateDecision.PROMOTED, "2026-11-01T00:00:00+00:00", "first"),
        mlflow_version(2, "b", GateDecision.PROMOTED, "2026-11-03T00:00:00+00:00", "better"),
        mlflow_version(3, "c", GateDecision.CHALLENGER, "2026-11-04T00:00:00+00:00", "worse", "2"),
        mlflow_version(4, ""),
    ]
    return version_history(versions, {Alias.CHAMPION: 2, Alias.CHALLENGER: 3}, trainings, UI)


def test_the_history_lists_decisions_newest_first(history: list[dict[str, Any]]) -> None:
    assert [(each["version"], each["aliases"], each["decision"]) for each in history] == [
        (4, [], ""),
        (3, [Alias.CHALLENGER], GateDecision.CHALLENGER),
        (2, [Alias.CHAMPION], GateDecision.PROMOTED),
        (1, [], GateDecision.PROMOTED),
    ]
    assert history[2]["scores"]["brier"]["model"] == 0.2
    assert history[2]["run_url"] == "http://mlflow.test/#/experiments/7/runs/b"


def test_a_champions_period_ends_where_the_next_begins(history: list[dict[str, Any]]) -> None:
    newest, oldest = champion_history(history)

    assert (newest["version"], newest["until"]) == (2, None)
    assert (oldest["version"], oldest["until"]) == (1, newest["from"])


def test_the_last_challenger_has_its_reason(history: list[dict[str, Any]]) -> None:
    refusal = last_refusal(history)

    assert refusal is not None
    assert (refusal["version"], refusal["reason"], refusal["compared_with"]) == (3, "worse", "2")


def test_a_later_candidate_without_a_version_has_its_reason(history: list[dict[str, Any]]) -> None:
    champion = next(version for version in history if version["version"] == 2)
    later = {**champion, "last_reason": "no better", "last_at": NOON + 1e6}

    refusal = last_refusal([later, *history])

    assert refusal is not None
    assert (refusal["version"], refusal["reason"], refusal["compared_with"]) == (None, "no better", 2)


def test_a_model_without_refusals_has_no_last_one() -> None:
    assert last_refusal([]) is None


def test_metric_points_leave_out_what_is_not_finite() -> None:
    scores = {"model_brier": 0.1, "climatology_brier": math.nan, "persistence_brier": 0.3}
    trainings = list_trainings([mlflow_run("a", 1000, scores)])

    points = metric_points(trainings, "brier")

    assert [(point["predictor"], point["value"]) for point in points] == [("model", 0.1), ("persistence", 0.3)]
    assert metric_points(trainings, "accuracy") == []


def test_calibration_of_a_binary_target_is_the_observed_frequency_by_bin() -> None:
    pairs = [(0.05, 0), (0.05, 1), (0.95, 1), (1.0, 1)]

    calibration = calibrate([{"time": "", "observed": observed, "model": predicted} for predicted, observed in pairs])

    assert calibration is not None
    assert calibration.is_binary
    assert [(each["observed"], each["rows"]) for each in calibration.bins] == [(0.5, 2), (1.0, 2)]
    assert all(0 <= each["low"] <= each["observed"] <= each["high"] <= 1 for each in calibration.bins)


def test_calibration_of_several_classes_is_the_probability_of_the_true_class() -> None:
    rows = [{"time": "", "observed": label, "model": 0.8, "baseline": 0.4} for label in ("a", "b", "c")]

    calibration = calibrate(rows)

    assert calibration is not None
    assert not calibration.is_binary
    assert calibration.mean_probability == {"model": pytest.approx(0.8), "baseline": pytest.approx(0.4)}
    assert sum(each["rows"] for each in calibration.bins) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"observed": None, "model": 0.5}],
        [{"observed": 1, "model": None}],
        [{"other": 1}],
        [{"observed": 12.0, "model": 11.5}],
        [{"observed": 0.25, "model": 0.5}],
    ],
)
def test_rows_without_probabilities_have_no_calibration(rows: list[dict[str, Any]]) -> None:
    assert calibrate(rows) is None


def scored(day: int, predicted: Any, observed: Any, loss: float = 0.5) -> dict[str, Any]:
    """Return a row of `Artifact.OUTCOMES`."""
    row = dict.fromkeys(OUTCOME_COLUMNS) | {"time": f"2026-11-{day:02}T09:00:00+00:00", "baseline_loss": 1.0}
    return row | {"prediction": predicted, "observed": observed, "loss": loss}


def check_run(problem: str) -> dict[str, Any]:
    return {"data": {"tags": [{"key": Tag.PROBLEM, "value": problem}]}}


def test_losses_are_means_by_day_of_model_and_baseline() -> None:
    rows = [
        scored(2, 1.0, 1.0, 0.25),
        scored(1, 1.0, 2.0, 1.0),
        scored(2, 1.0, 1.0, 0.75),
        scored(3, 1.0, 1.0) | {"loss": None},
    ]

    points = daily_losses(rows)

    assert [(each["day"], each["predictor"], each["value"], each["rows"]) for each in points] == [
        ("2026-11-01", "model", 1.0, 1),
        ("2026-11-01", "baseline", 1.0, 1),
        ("2026-11-02", "model", 0.5, 2),
        ("2026-11-02", "baseline", 1.0, 2),
    ]


def test_a_regressions_outcomes_have_residuals_and_no_confusions() -> None:
    found = summarize_outcomes([check_run(Problem.REGRESSION)], [scored(1, 12.5, 10), scored(2, None, 10)])

    assert found is not None
    assert [(each["prediction"], each["residual"]) for each in found["residuals"]] == [(12.5, -2.5)]
    assert (found["rows"], found["confusions"]) == (2, None)


def test_outcomes_of_classes_are_counted_by_ground_truth_and_prediction() -> None:
    rows = [scored(1, "a", "a"), scored(1, "b", "a"), scored(1, "a", "a"), scored(1, "c", "b")]
    found = summarize_outcomes([check_run(Problem.MULTICLASS)], rows)

    assert found is not None
    assert found["residuals"] == []
    assert found["confusions"] == {
        "classes": ["a", "b", "c"],
        "rows": [
            {"observed": "a", "counts": [2, 1, 0]},
            {"observed": "b", "counts": [0, 0, 1]},
            {"observed": "c", "counts": [0, 0, 0]},
        ],
        "left_out": 0,
    }


def test_a_chart_of_residuals_draws_a_bounded_number_of_points() -> None:
    assert len(residuals([scored(1, 1.0, float(n)) for n in range(2500)], "prediction")) == 834


def test_without_a_check_or_a_ground_truth_there_are_no_outcomes() -> None:
    assert summarize_outcomes([], [scored(1, 1, 1)]) is None
    assert summarize_outcomes([check_run(Problem.BINARY)], []) is None


@pytest.mark.parametrize(
    ("rows", "problem", "number"),
    [
        ([{"observed": 12.0, "model": 11.5}], "", 1),
        ([{"observed": 0.25, "model": 0.5}], "", 1),
        ([{"observed": 1, "model": 0.5}, {"observed": 0, "model": 0.1}], "", 0),
        ([{"observed": 2, "model": 0.5}, {"observed": 7, "model": 0.1}], "", 0),
        ([{"observed": "a", "model": 0.5}], "", 0),
        ([{"observed": 2, "model": 3}], Problem.CLASSES, 0),
        ([{"observed": 2, "model": 3}], Problem.REGRESSION, 1),
    ],
)
def test_a_holdout_has_residuals_if_its_predictions_are_numbers(
    rows: list[dict[str, Any]], problem: str, number: int
) -> None:
    assert len(holdout_residuals(rows, [check_run(problem)])) == number


def test_an_interval_of_few_trials_is_wide() -> None:
    low, high = wilson_interval(500, 1000)

    assert (round(low, 3), round(high, 3)) == (0.469, 0.531)
    assert wilson_interval(0, 1)[1] > 0.75


def prediction(subject: str, time_: str, issued_at: str, value: Any, observed: Any) -> dict[str, Any]:
    """Return a row of `Artifact.FORECASTS`."""
    return {
        "subject": subject, "time": time_, "issued_at": issued_at, "version": 1, "probability": value,
        "observed": observed,
    }  # fmt: skip


def test_the_newest_prediction_for_a_time_counts() -> None:
    rows = [
        prediction("store 1", "2026-11-20", "2026-11-19T06:00:00Z", 0.9, 1),
        prediction("store 1", "2026-11-20", "2026-11-18T06:00:00Z", 0.2, 1),
        prediction("store 1", "2026-11-21", "2026-11-20T06:00:00Z", 0.6, 0),
        prediction("store 1", "2026-11-22", "2026-11-21T06:00:00Z", 0.6, None),
        prediction("store 1", "2026-11-23", "2026-11-22T06:00:00Z", 0.3, None),
        prediction("store 2", "2026-11-24", "2026-11-23T06:00:00Z", None, None),
    ]

    (subject,) = checks.predictions_by_subject(rows, NOON)

    assert (subject["subject"], subject["is_binary"]) == ("store 1", True)
    assert [(row["value"], row["outcome"]) for row in subject["rows"]] == [
        (0.9, "positive"),
        (0.6, "negative"),
        (0.6, "not yet known"),
        (0.3, "upcoming"),
    ]
    assert (subject["known"], subject["correct"]) == (2, 1)
    assert subject["brier"] == pytest.approx((0.1**2 + 0.6**2) / 2)


def test_predicted_values_are_scored_by_their_error() -> None:
    rows = [
        prediction("store 1", "2026-11-23T11:00:00Z", "", 12.5, 10.0),
        prediction("store 1", "2026-11-23T11:30:00Z", "", 11.0, None),
        prediction("store 1", "2026-11-23T13:00:00Z", "", 14.0, None),
    ]

    (subject,) = checks.predictions_by_subject(rows, NOON)

    assert not subject["is_binary"]
    assert [row["outcome"] for row in subject["rows"]] == ["10.0", "not yet known", "upcoming"]
    assert (subject["known"], subject["mean_absolute_error"]) == (1, 2.5)


def test_predicted_classes_are_counted_as_correct_or_not() -> None:
    rows = [prediction("", "2026-11-20", "", "a", "a"), prediction("", "2026-11-21", "", "b", "a")]

    (subject,) = checks.predictions_by_subject(rows, NOON)

    assert (subject["subject"], subject["is_binary"]) == ("unnamed subject", False)
    assert (subject["known"], subject["correct"]) == (2, 1)


def test_the_newest_check_has_its_verdict_and_scores() -> None:
    tags = {Tag.VERDICT: Verdict.ALERT, Tag.REASONS: "drift"}
    run = mlflow_run("m", 1000, {"live_rmse": 3.1, "live_brier": 0.2, "scored": 3}, tags)

    check = checks.latest_check([run], UI)

    assert check is not None
    assert (check["text"], check["tone"], check["reasons"]) == ("Alert", "bad", "drift")
    assert check["scores"] == [
        {"metric": "brier", "live": 0.2, "holdout": None},
        {"metric": "rmse", "live": 3.1, "holdout": None},
    ]
    assert checks.latest_check([], UI) is None


def test_the_trend_follows_the_first_metric_of_the_newest_check() -> None:
    check_runs = [
        mlflow_run("new", 2000, {"live_rmse": 3.0, "holdout_rmse": 2.0}),
        mlflow_run("old", 1000, {"scored": 0}),
    ]

    metric, points = checks.live_trend(check_runs)

    assert metric == "rmse"
    assert [(point["predictor"], point["value"]) for point in points] == [("live", 3.0), ("holdout", 2.0)]
    assert checks.live_trend([]) == ("", [])


def test_drift_is_sorted_by_size_and_names_its_test() -> None:
    rows: list[dict[str, Any]] = [
        {"column": "a", "psi": 0.1, "statistic": 2.0, "drifted": False},
        {"column": "b", "psi": 0.4, "statistic": 0.3, "training_mean": 1.0, "drifted": True},
        {"column": "c", "psi": None, "drifted": None},
    ]

    drift = checks.drift_rows(rows)

    assert [(row["column"], row["drifted"], row["test"]) for row in drift] == [
        ("b", True, "Kolmogorov-Smirnov"),
        ("a", False, "chi-squared"),
        ("c", False, ""),
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), ("0.5", 0.5), (True, 1.0), (None, None), ("x", None), ("NaN", None)]
)
def test_numbers_are_finite_or_none(value: object, expected: float | None) -> None:
    assert to_number(value) == expected


def test_times_without_a_zone_are_in_utc() -> None:
    assert to_timestamp("2026-11-23T12:00:00") == NOON
    assert to_timestamp("2026-11-23T13:00:00+01:00") == NOON
    assert to_iso(NOON) == "2026-11-23T12:00:00Z"
    assert to_timestamp("yesterday") is None


def test_a_run_has_its_seconds_by_component() -> None:
    component = flow_run(id="2", flow="train", end_time="2026-11-23T10:00:06Z")
    row = runs.run_row(flow_run(components=[component], run_count=3, retries=2), UI, now=0)

    parts = runs.durations_by_component([row])

    assert (row["seconds"], row["retries"]) == (10, 4)
    assert {part["component"]: part["seconds"] for part in parts} == {"train": 6, runs.UNATTRIBUTED: 4}


def test_a_run_without_components_is_one_part() -> None:
    row = runs.run_row(flow_run(), UI, now=0)

    assert [part["component"] for part in runs.durations_by_component([row])] == ["pipeline"]


def test_an_unfinished_run_lasts_until_now() -> None:
    running = runs.run_row(flow_run(state_type="RUNNING", end_time=None), UI, now=NOON)
    pending = runs.run_row(flow_run(state_type="PENDING", start_time=None), UI, now=NOON)

    assert running["seconds"] == 2 * 3600
    assert pending["seconds"] is None


def test_a_run_that_ended_in_an_alert_looks_like_a_problem() -> None:
    row = runs.run_row(flow_run(state_name=State.ALERT), UI, now=0)

    assert (row["state"], row["tone"], row["sign"]) == ("Alert", "bad", "!")


@pytest.mark.parametrize(
    ("page", "last", "expected"),
    [
        (1, 0, []),
        (1, 1, [1]),
        (1, 40, [1, 2, 3, None, 40]),
        (20, 40, [1, None, 18, 19, 20, 21, 22, None, 40]),
        (40, 40, [1, None, 38, 39, 40]),
        (99, 3, [1, None, 3]),
    ],
)
def test_page_numbers_surround_the_current_page(page: int, last: int, expected: list[int | None]) -> None:
    assert runs.page_numbers(page, last) == expected


@pytest.mark.parametrize(
    ("workers", "paused", "late", "expected"),
    [
        (0, False, 0, "No worker online"),
        (1, True, 0, "Paused"),
        (1, False, 2, "2 runs are late"),
        (2, False, 0, "Ready"),
    ],
)
def test_a_pool_has_a_status(workers: int, paused: bool, late: int, expected: str) -> None:
    pool = {
        "name": "training", "type": "process", "concurrency_limit": None, "is_paused": paused, "queues": [],
        "runs": {"Running": 0, "Pending": 0, "Late": late},
        "workers": [{"name": str(n), "status": "ONLINE", "last_heartbeat_time": None} for n in range(workers)],
    }  # fmt: skip

    assert runs.pool_row(pool, UI, now=0)["text"].startswith(expected)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, Selection()),
        ({"page": "3", "model": "a'b"}, Selection(page=3, model="a'b")),
        ({"page": "-1", "versions": "x"}, Selection()),
        ({"range": "24h"}, Selection(range="24h")),
        ({"range": "24 h"}, Selection()),
        ({"page": "99999999999999999999"}, Selection()),
        ({"page": "٣"}, Selection(page=3)),  # an Arabic digit
    ],
)
def test_a_selection_is_parsed_from_any_query(query: dict[str, str], expected: Selection) -> None:
    assert Selection.from_query(query) == expected


def test_a_selection_has_a_url() -> None:
    assert Selection().url() == "/"
    assert Selection(model="a b", page=2).url("runs", page=3) == "/?model=a+b&page=3#runs"


@pytest.mark.parametrize(
    ("name", "since"), [("", -math.inf), ("15m", NOON - 900), ("7d", NOON - 7 * 86_400), ("x", -math.inf)]
)
def test_a_time_range_ends_now(name: str, since: float) -> None:
    assert Selection.from_query({"range": name}).since(NOON) == since


def test_checks_outside_of_the_time_range_are_left_out() -> None:
    runs_ = [mlflow_run(name, int(at * 1000), {"live_rmse": 1.0}) for name, at in (("new", NOON), ("old", NOON - 3601))]

    shown = checks.check_rows(checks.started_since(runs_, NOON - 3600), UI)

    assert [check["at"] for check in shown] == [NOON]


def minute(at: float, requests: int, errors: int = 0, refusals: int = 0, seconds: float = 0.002) -> dict[str, Any]:
    """Return a minute as serving describes it."""
    quantiles = dict.fromkeys(("p50", "p95", "p99"), seconds)
    return {"minute": int(at), "requests": requests, "errors": errors, "refusals": refusals, "seconds": quantiles}


def of_version(model: str, version: int | None, *minutes: dict[str, Any]) -> dict[str, Any]:
    """Return a version's traffic as serving describes it; the quantiles of the hour are its first minute's."""
    counts = {name: sum(each[name] for each in minutes) for name in ("requests", "errors", "refusals")}
    hour = {**counts, "seconds": minutes[0]["seconds"]}
    return {"model": model, "version": version, "hour": hour, "minutes": list(minutes)}


TRAFFIC = [
    of_version("demand", None, minute(NOON, 2, refusals=2)),
    of_version("demand", 1, minute(NOON - 1800, 5), minute(NOON, 3, errors=1, seconds=0.004)),
    of_version("demand", 2, minute(NOON, 9)),
    of_version("price", 1, minute(NOON, 100)),
]


def test_a_models_traffic_is_that_of_all_its_versions() -> None:
    totals = traffic.requests_by_model(TRAFFIC)

    assert totals["demand"] == {"requests": 19, "errors": 1, "refusals": 2}
    assert [(row["version"], row["requests"]) for row in traffic.version_rows(TRAFFIC, "demand")] == [
        (2, 9),
        (1, 8),
        (None, 2),
    ]


def test_requests_are_charted_by_minute_and_outcome_in_the_time_range() -> None:
    points = traffic.request_points(TRAFFIC, "demand", NOON - 900)

    assert {point["outcome"]: point["requests"] for point in points} == {"answered": 11, "failed": 1, "refused": 2}
    assert {(point["at"], point["until"]) for point in points} == {("2026-11-23T12:00:00Z", "2026-11-23T12:01:00Z")}


def test_latency_is_charted_of_the_busiest_version() -> None:
    points = traffic.latency_points(TRAFFIC, "demand", -math.inf)

    assert [(point["at"][11:16], point["milliseconds"]) for point in points if point["quantile"] == "p99"] == [
        ("11:30", 2.0),
        ("12:00", 2.0),
    ]


def test_the_overview_has_each_models_champion_with_its_baselines_check_training_and_traffic() -> None:
    models = [
        {"name": "price", "changed_at": 2, "aliases": {}},
        {"name": "demand", "changed_at": 1, "aliases": {Alias.CHAMPION: 2}},
    ]
    found = {
        "champions": {"demand": mlflow_run("a", 1000, {"model_brier": 0.1, "prior_brier": 0.3, "model_log_loss": 1})},
        "trainings": {"demand": mlflow_run("b", 2000, {})},
        "checks": {"demand": mlflow_run("c", 3000, {}, {Tag.VERDICT: Verdict.ALERT})},
    }

    demand, price = overview_rows(models, found, TRAFFIC, UI)

    assert (demand["version"], demand["score"]) == (
        2,
        {"label": "Brier score", "model": 0.1, "baselines": {"prior": 0.3}},
    )
    assert (demand["check"]["text"], demand["trained_at"], demand["traffic"]["requests"]) == ("Alert", 2.0, 19)
    assert (price["version"], price["score"], price["check"], price["trained_at"]) == (None, None, None, None)
    assert price["traffic"]["requests"] == 100
    assert overview_rows(models, {}, None, UI)[0]["traffic"] is None, "not known, rather than none"


@pytest.mark.parametrize(
    ("selection", "aliases", "expected"),
    [
        (Selection(), {Alias.CHAMPION: 2, Alias.CHALLENGER: 3}, (3, 2)),
        (Selection(), {Alias.CHAMPION: 4}, (3, 4)),
        (Selection(), {}, (3, 4)),
        (Selection(compare="1", against="4"), {Alias.CHAMPION: 2}, (1, 4)),
        (Selection(compare="9", against="x"), {Alias.CHAMPION: 2, Alias.CHALLENGER: 3}, (3, 2)),
        (Selection(against="3"), {Alias.CHAMPION: 2, Alias.CHALLENGER: 3}, (4, 3)),
    ],
)
def test_the_challenger_is_compared_with_the_champion_unless_others_are_selected(
    selection: Selection, aliases: dict[str, int], expected: tuple[int, int]
) -> None:
    versions = [mlflow_version(number, "") for number in (4, 3, 2, 1)]

    assert select_versions(selection, versions, aliases) == expected
    assert select_versions(selection, versions[:1], aliases) is None


def test_parameters_that_differ_come_first_and_metrics_say_which_version_is_better() -> None:
    compared = mlflow_run("a", 1, {"model_brier": 0.1, "model_accuracy": 0.5, "model_size": 2.0, "prior_brier": 0.3})
    against = mlflow_run("b", 1, {"model_brier": 0.2, "model_accuracy": 0.75, "model_size": 3.0})
    compared["data"]["params"] = [{"key": "c", "value": "1"}, {"key": "b", "value": "2"}]
    against["data"]["params"] = [{"key": "c", "value": "3"}, {"key": "b", "value": "2"}]

    found = compare_runs([compared, against])

    assert [(row["name"], row["values"]) for row in found["parameters"]] == [("c", ["1", "3"]), ("b", ["2", "2"])]
    assert [(row["label"], row["difference"], row["verdict"]) for row in found["metrics"]] == [
        ("Brier score", pytest.approx(-0.1), "better"),
        ("Accuracy", -0.25, "worse"),
        ("size", -1.0, ""),
    ]
    assert compare_runs([None, against])["metrics"][0]["difference"] is None


@pytest.mark.parametrize(("name", "expected"), [("", "new"), ("raw", "raw"), ("deleted", "new")])
def test_the_default_model_is_the_last_changed_one_with_a_champion(name: str, expected: str) -> None:
    models = [
        {"name": "old", "changed_at": 1, "aliases": {Alias.CHAMPION: 1}},
        {"name": "new", "changed_at": 2, "aliases": {Alias.CHAMPION: 3}},
        {"name": "raw", "changed_at": 9, "aliases": {}},
    ]

    assert select_model(models, name) == expected


def test_without_models_none_is_selected() -> None:
    assert select_model([], "") == ""


def test_numbers_and_times_are_formatted() -> None:
    dash = "–"  # noqa: RUF001
    assert [duration(None), duration(0.42), duration(12.34), duration(245), duration(7380)] == [
        dash,
        "0.42 s",
        "12.3 s",
        "4 min 5 s",
        "2 h 3 min",
    ]
    assert [decimal(0.12344), decimal(math.nan), percent(0.256), integer(12345)] == [
        "0.1234",
        dash,
        "26 %",
        "12\u202f345",
    ]
    assert 'datetime="2026-11-23T12:00:00+00:00"' in time_tag(NOON)


def test_a_quote_in_a_literal_changes_its_delimiter() -> None:
    assert quote_literal("it's") == '"it\'s"'


def predictions(*observed: Any) -> list[dict[str, Any]]:
    """Return a subject's predictions as the page charts them."""
    rows = [
        prediction("store 1", f"2026-11-{day}", "2026-11-01T06:00:00Z", 0.4, truth)
        for day, truth in enumerate(observed, 10)
    ]
    (subject,) = checks.predictions_by_subject(rows, NOON)
    return list(subject["rows"])


SPECS = {
    "metric": charts.metric_chart(
        [{"at": "2026-11-23T00:00:00Z", "value": 0.1, "predictor": "model", "version": "1"}], "brier"
    ),
    "reliability": charts.reliability_chart([{"predicted": 0.1, "observed": 0.2, "low": 0.1, "high": 0.3, "rows": 3}]),
    "true class": charts.true_class_chart([{"from": 0.9, "to": 1, "rows": 3}]),
    "probabilities": charts.prediction_chart(predictions(0, 1, None), is_binary=True),
    "values": charts.prediction_chart(predictions(3.5, None), is_binary=False),
    "requests": charts.request_chart(
        [{"at": "2026-11-23T12:00:00Z", "until": "2026-11-23T12:01:00Z", "outcome": "answered", "requests": 3}]
    ),
    "latency": charts.latency_chart([{"at": "2026-11-23T12:00:00Z", "quantile": "p50", "milliseconds": 1.5}]),
    "drift": charts.drift_chart([{"column": "a", "psi": 0.1, "drifted": True, "training_mean": 1, "recent_mean": 2}]),
    "duration": charts.duration_chart(
        [{"run": "a", "order": 0, "component": "train", "seconds": 2.0, "state": "Completed"}]
    ),
}


@pytest.mark.parametrize("chart", SPECS)
def test_each_chart_conforms_to_vega_lites_schema(chart: str) -> None:
    altair.Chart.from_dict(SPECS[chart])


@pytest.mark.parametrize("chart", SPECS)
def test_each_chart_compiles_to_marks_and_titled_axes(chart: str) -> None:
    vega = vl_convert.vegalite_to_vega({**SPECS[chart], "width": 400})

    assert SPECS[chart]["width"] == "container"
    assert vega["marks"]
    assert any(axis.get("title") for axis in vega["axes"])


def test_charts_name_the_bundled_version_of_vega_lite() -> None:
    newest = max(vl_convert.get_vegalite_versions(), key=lambda version: [int(part) for part in version.split(".")])

    assert charts.SCHEMA.endswith(f"/vega-lite/v{newest.split('.')[0]}.json")


def test_chart_data_cannot_end_its_script_element() -> None:
    points = [{"at": "2026-11-23T00:00:00Z", "value": 0.1, "predictor": "</script><b>", "version": "1"}]

    text = charts.to_json(charts.metric_chart(points, "brier"))

    assert "<" not in text
    assert json.loads(text)["data"]["values"] == points


def source(*answers: Any) -> tuple[Callable[[], Awaitable[Any]], list[Any]]:
    """Return a loader that gives one answer after the other, the last one again and again, and what it gave."""
    given: list[Any] = []

    async def load() -> Any:
        answer = answers[min(len(given), len(answers) - 1)]
        given.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load, given


async def get(cache: SnapshotCache, load: Callable[[], Awaitable[Any]], **options: Any) -> Snapshot:
    """Get a snapshot, with enough time to wait for it."""
    snapshot = await cache.get("key", load, time.monotonic() + 60, **options)
    while snapshot.task is not None:
        await asyncio.sleep(0)
    return snapshot


def test_a_snapshot_is_refreshed_when_it_is_stale() -> None:
    async def read() -> list[int]:
        clock = Clock()
        cache, (load, given) = SnapshotCache(10, clock), source(1, 2, 3)
        values = [(await get(cache, load)).value]
        clock.now += 9
        values.append((await get(cache, load)).value)
        clock.now += 1
        values.append((await get(cache, load)).value)
        cache.expire()
        values.append((await get(cache, load)).value)
        assert len(given) == 3
        return values

    assert asyncio.run(read()) == [1, 1, 2, 3]


def test_a_snapshot_keeps_its_value_while_its_server_is_down() -> None:
    async def check() -> None:
        clock = Clock()
        cache = SnapshotCache(10, clock)
        load, _ = source(1, SourceError("MLflow does not answer."), KeyError("x"), 1)
        first_version = (await get(cache, load)).version
        for expected in ("MLflow does not answer.", "not as documented"):
            clock.now += 10
            snapshot = await get(cache, load)
            assert (snapshot.value, snapshot.read_at) == (1, 1_000_000.0)
            assert expected in (snapshot.error or "")
        clock.now += 10
        snapshot = await get(cache, load)

        assert (snapshot.error, snapshot.read_at) == (None, clock.now)
        assert snapshot.version > first_version

    asyncio.run(check())


def test_concurrent_callers_share_one_request() -> None:
    async def read() -> set[int]:
        cache, (load, given) = SnapshotCache(10), source(1)
        snapshots = await asyncio.gather(*(get(cache, load) for _ in range(20)))
        assert len(given) == 1
        return {snapshot.value for snapshot in snapshots}

    assert asyncio.run(read()) == {1}


def test_an_immutable_snapshot_is_loaded_once() -> None:
    async def count_requests() -> int:
        clock = Clock()
        cache, (load, given) = SnapshotCache(10, clock), source(1)
        for _ in range(3):
            await get(cache, load, immutable=True)
            clock.now += 1000
        return len(given)

    assert asyncio.run(count_requests()) == 1


def test_the_least_recently_used_snapshot_is_evicted() -> None:
    async def count_requests() -> int:
        cache, (load, given) = SnapshotCache(1000), source(1)
        for key in range(MAX_SNAPSHOTS + 1):
            await cache.get(key, load, time.monotonic() + 60)
        await cache.get(MAX_SNAPSHOTS, load, time.monotonic() + 60)
        await cache.get(0, load, time.monotonic() + 60)
        return len(given)

    assert asyncio.run(count_requests()) == MAX_SNAPSHOTS + 2, "the first one was loaded twice, the last one once"


def session_manager(clock: Clock, **account: str) -> SessionManager:
    return SessionManager(
        **{"user": "admin", "password": "right", "key": "k" * 32} | account, max_age_seconds=100, clock=clock
    )


def test_a_session_can_be_revoked() -> None:
    manager = session_manager(Clock())
    cookie = manager.issue()
    session = manager.verify(cookie)

    assert session is not None
    assert session.user == "admin"
    manager.revoke(session)
    assert manager.verify(cookie) is None


def test_a_session_expires() -> None:
    clock = Clock()
    manager = session_manager(clock)
    cookie = manager.issue()
    clock.now += 100

    assert manager.verify(cookie) is None


def test_a_restart_ends_all_sessions_so_that_signed_out_ones_stay_out() -> None:
    manager = session_manager(Clock())
    cookie = manager.issue()
    session = manager.verify(cookie)
    assert session is not None
    manager.revoke(session)

    assert session_manager(Clock()).verify(cookie) is None


def test_a_known_browser_is_known_after_a_restart() -> None:
    cookie = session_manager(Clock()).issue_browser()
    id_ = cookie.partition(".")[0]

    assert session_manager(Clock()).verify_browser(cookie) == id_
    assert session_manager(Clock()).verify_browser(f"x{cookie}") is None
    assert session_manager(Clock()).verify(cookie) is None, "it is no session"


@pytest.mark.parametrize("changed", [{"password": "other"}, {"key": "o" * 32}, {"user": "other"}])
def test_a_changed_account_invalidates_its_browsers(changed: dict[str, str]) -> None:
    assert session_manager(Clock(), **changed).verify_browser(session_manager(Clock()).issue_browser()) is None


@pytest.mark.parametrize("cookie", [None, "", ".", "a.b", "ä.ö", "e30=.", "." * 1000])
def test_a_malformed_cookie_is_neither_session_nor_browser(cookie: str | None) -> None:
    manager = session_manager(Clock())

    assert (manager.verify(cookie), manager.verify_browser(cookie)) == (None, None)


def test_a_tampered_cookie_is_no_session() -> None:
    manager = session_manager(Clock())
    cookie = manager.issue()

    tampered = [cookie[:n] + ("A" if cookie[n] != "A" else "B") + cookie[n + 1 :] for n in range(len(cookie) - 2)]

    assert not any(manager.verify(each) for each in tampered)


def test_an_address_is_blocked_after_too_many_failures() -> None:
    clock = Clock()
    limiter = SignInLimiter(clock)
    before = []
    for _ in range(MAX_FAILURES):
        before.append(limiter.retry_after("one"))
        limiter.record_failure("one")

    assert before == [0] * MAX_FAILURES
    assert (limiter.retry_after("one"), limiter.retry_after("other")) == (WINDOW_SECONDS, 0)
    clock.now += WINDOW_SECONDS
    assert limiter.retry_after("one") == 0


def test_all_addresses_are_blocked_after_too_many_failures_in_total() -> None:
    limiter = SignInLimiter(Clock())
    for address in range(MAX_FAILURES_OF_ALL):
        limiter.record_failure(str(address))

    assert limiter.retry_after("another") == WINDOW_SECONDS


def test_a_known_browser_is_not_blocked_by_the_failures_of_others_at_its_address() -> None:
    limiter = SignInLimiter(Clock())
    for number in range(MAX_FAILURES_OF_ALL):
        limiter.record_failure("gateway" if number < MAX_FAILURES else str(number))

    assert limiter.retry_after("gateway") == WINDOW_SECONDS
    assert limiter.retry_after("gateway", "known") == 0
    for _ in range(MAX_FAILURES):
        limiter.record_failure("gateway", "known")
    assert limiter.retry_after("gateway", "known") == WINDOW_SECONDS
