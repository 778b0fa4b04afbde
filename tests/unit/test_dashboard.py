"""What the dashboard makes of what it reads, without servers."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import altair as alt
import pytest
from dashboard import charts, monitoring, runs
from dashboard.calibration import calibration, wilson
from dashboard.mlflow_source import quoted
from dashboard.models import Links, beside, history, last_loser, reigns, timeline, trainings
from dashboard.reading import KEPT, Reading, Readings, SourceError
from dashboard.sessions import ALL_WRONG_TRIES, TRIES_SECONDS, WRONG_TRIES, Sessions, Tries
from dashboard.tables import number, rows_of
from dashboard.view import Choice, chosen_model
from dashboard.words import count, figure, moment, share, took

LINKS = Links("http://mlflow.test", "http://prefect.test")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def run(id_: str, at: int, metrics: dict[str, float], **tags: str) -> dict[str, Any]:
    """Return a run as MLflow's API gives it."""
    return {
        "info": {"run_id": id_, "experiment_id": "7", "run_name": id_, "start_time": at},
        "data": {
            "metrics": [{"key": name, "value": value} for name, value in metrics.items()],
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
        },
    }


def version(number_: int, run_id: str, **tags: str) -> dict[str, Any]:
    """Return a registered version as MLflow's API gives it."""
    named = [{"key": f"gate.{name}", "value": value} for name, value in tags.items()]
    return {"name": "rain", "version": str(number_), "run_id": run_id, "creation_timestamp": 1000, "tags": named}


def test_scores_are_sorted_by_contestant() -> None:
    metrics = {
        "model_brier": 0.1,
        "climatology_brier": 0.3,
        "model_log_loss": 0.4,
        "persistence_log_loss": 0.9,
        "cv": 1,
    }
    assert beside(metrics) == {
        "brier": {"model": 0.1, "climatology": 0.3},
        "log_loss": {"model": 0.4, "persistence": 0.9},
    }


def test_history_says_what_was_decided_and_why() -> None:
    trained = trainings([run("b", 2000, {"model_brier": 0.2}, model_version="2"), run("a", 1000, {"model_brier": 0.1})])
    assert [training["run_id"] for training in trained] == ["a", "b"]
    versions = [
        version(1, "a", decision="promoted", reason="first", decided_at="2026-11-01T00:00:00+00:00"),
        version(2, "b", decision="promoted", reason="better", decided_at="2026-11-03T00:00:00+00:00"),
        version(
            3, "c", decision="challenger", reason="worse", decided_at="2026-11-04T00:00:00+00:00", judged_against="2"
        ),
        version(4, ""),
    ]
    found = history(versions, {"champion": 2, "challenger": 3}, trained, LINKS)
    assert [(each["version"], each["aliases"], each["decision"]) for each in found] == [
        (4, [], ""),
        (3, ["challenger"], "challenger"),
        (2, ["champion"], "promoted"),
        (1, [], "promoted"),
    ]
    assert found[2]["scores"]["brier"]["model"] == 0.2
    assert found[2]["run_url"] == "http://mlflow.test/#/experiments/7/runs/b"
    assert [(each["version"], each["until"]) for each in reigns(found)] == [(2, None), (1, reigns(found)[0]["from"])]
    loser = last_loser(found)
    assert loser is not None
    assert (loser["version"], loser["reason"], loser["against"]) == (3, "worse", "2")
    assert last_loser([]) is None


def test_a_timeline_has_a_point_for_each_contestant() -> None:
    trained = trainings([run("a", 1000, {"model_brier": 0.1, "climatology_brier": math.nan, "persistence_brier": 0.3})])
    assert [(point["who"], point["value"]) for point in timeline(trained, "brier")] == [
        ("model", 0.1),
        ("persistence", 0.3),
    ]
    assert timeline(trained, "accuracy") == []


def test_calibration_counts_how_often_it_came() -> None:
    rows = [{"time": "", "observed": came, "model": said} for said, came in [(0.05, 0), (0.05, 1), (0.95, 1), (1.0, 1)]]
    found = calibration(rows)
    assert found is not None
    assert found.binary
    assert [(each["came"], each["rows"]) for each in found.bins] == [(0.5, 2), (1.0, 2)]
    assert found.brier == pytest.approx((0.05**2 + 0.95**2 + 0.05**2 + 0) / 4)
    assert all(0 <= each["low"] <= each["came"] <= each["high"] <= 1 for each in found.bins)


def test_calibration_of_classes_says_how_sure_the_model_was() -> None:
    rows = [{"time": "", "observed": label, "model": 0.8, "baseline": 0.4} for label in ("a", "b", "c")]
    found = calibration(rows)
    assert found is not None
    assert not found.binary
    assert found.mean_right == {"model": pytest.approx(0.8), "baseline": pytest.approx(0.4)}
    assert sum(each["rows"] for each in found.bins) == 3


@pytest.mark.parametrize(
    "rows", [[], [{"observed": None, "model": 0.5}], [{"observed": 1, "model": None}], [{"other": 1}]]
)
def test_rows_that_cannot_be_judged_are_no_calibration(rows: list[dict[str, Any]]) -> None:
    assert calibration(rows) is None


def test_an_interval_is_wide_where_there_is_little() -> None:
    assert wilson(0, 1)[1] > 0.75
    low, high = wilson(500, 1000)
    assert (round(low, 3), round(high, 3)) == (0.469, 0.531)


def test_forecasts_keep_the_last_word_on_each_day() -> None:
    table = {
        "columns": ["place", "day", "issued_at", "version", "probability", "observed"],
        "data": [
            ["Oslo", "2026-11-20", "2026-11-18T06:00:00Z", 1, 0.2, 1],
            ["Oslo", "2026-11-20", "2026-11-19T06:00:00Z", 1, 0.9, 1],
            ["Oslo", "2026-11-21", "2026-11-20T06:00:00Z", 1, 0.6, 0],
            ["Oslo", "2026-11-22", "2026-11-21T06:00:00Z", 1, 0.6, None],
            ["Oslo", "2026-11-24", "2026-11-23T06:00:00Z", 1, 0.3, None],
            ["Bergen", "2026-11-24", "2026-11-23T06:00:00Z", 1, None, None],
        ],
    }
    (oslo,) = monitoring.forecasts(table, "2026-11-23")
    assert [(day["probability"], day["outcome"]) for day in oslo["days"]] == [
        (0.9, "rain"),
        (0.6, "dry"),
        (0.6, "not yet known"),
        (0.3, "still to come"),
    ]
    assert (oslo["known"], oslo["right"]) == (2, 1)
    assert oslo["brier"] == pytest.approx((0.1**2 + 0.6**2) / 2)
    assert monitoring.forecasts(None, "2026-11-23") == []


def test_a_check_is_told_with_its_scores() -> None:
    found = monitoring.latest(
        [run("m", 1000, {"live_brier": 0.2, "scored": 3}, verdict="alert", reasons="drift")], LINKS
    )
    assert found is not None
    assert (found["text"], found["tone"], found["reasons"]) == ("Alert", "bad", "drift")
    assert found["scores"] == [{"metric": "brier", "live": 0.2, "holdout": None}]
    assert monitoring.latest([], LINKS) is None


def test_drift_puts_the_farthest_first() -> None:
    table = {"columns": ["column", "psi", "drifted"], "data": [["a", 0.1, False], ["b", 0.4, True], ["c", None, None]]}
    assert [(row["column"], row["drifted"]) for row in monitoring.drift(table)] == [
        ("b", True),
        ("a", False),
        ("c", False),
    ]


@pytest.mark.parametrize("table", [None, {}, {"columns": ["a"]}, {"columns": ["a"], "data": [["1", "2"], "x"]}])
def test_a_table_that_is_not_as_documented_has_no_rows(table: dict[str, Any] | None) -> None:
    assert rows_of(table) == []


@pytest.mark.parametrize(
    ("given", "expected"), [(1, 1.0), ("0.5", 0.5), (True, 1.0), (None, None), ("x", None), ("NaN", None)]
)
def test_numbers_are_finite_or_none(given: object, expected: float | None) -> None:
    assert number(given) == expected


def flow_run(**given: Any) -> dict[str, Any]:
    """Return a flow run as `PrefectSource` gives it."""
    return {
        "id": "1", "name": "red-fox", "flow": "pipeline", "state_type": "COMPLETED", "state_name": "Completed",
        "start_time": "2026-11-23T10:00:00Z", "end_time": "2026-11-23T10:00:10Z", "run_count": 1,
        "components": [], "tasks": 0, "cached": 0, "retries": 0, **given,
    }  # fmt: skip


def test_a_run_has_its_seconds_by_component() -> None:
    part = flow_run(id="2", flow="train", end_time="2026-11-23T10:00:06Z")
    row = runs.view(flow_run(components=[part], run_count=3, retries=2), LINKS, now=0)
    assert (row["seconds"], row["retries"]) == (10, 4)
    assert {piece["component"]: piece["seconds"] for piece in runs.durations([row])} == {"train": 6, runs.REST: 4}
    lone = runs.view(flow_run(), LINKS, now=0)
    assert [piece["component"] for piece in runs.durations([lone])] == ["pipeline"]


def test_a_run_under_way_takes_until_now() -> None:
    row = runs.view(flow_run(state_type="RUNNING", end_time=None), LINKS, now=1763892000 + 365 * 86400 + 5)
    assert row["seconds"] == 5
    assert runs.view(flow_run(start_time=None, state_type="PENDING"), LINKS, now=0)["seconds"] is None


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
def test_pages_are_linked_around_the_one_that_is_shown(page: int, last: int, expected: list[int | None]) -> None:
    assert runs.pages(page, last) == expected


@pytest.mark.parametrize(
    ("workers", "paused", "late", "expected"),
    [(0, False, 0, "No worker"), (1, True, 0, "Paused"), (1, False, 2, "2 runs are late"), (2, False, 0, "Ready")],
)
def test_a_pool_says_whether_it_runs_anything(workers: int, paused: bool, late: int, expected: str) -> None:
    pool = {
        "name": "training", "type": "process", "concurrency_limit": None, "is_paused": paused, "queues": [],
        "runs": {"Running": 0, "Pending": 0, "Late": late},
        "workers": [{"name": str(n), "status": "ONLINE", "last_heartbeat_time": None} for n in range(workers)],
    }  # fmt: skip
    assert runs.pool_view(pool, LINKS, now=0)["text"].startswith(expected)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, Choice()),
        ({"page": "3", "model": "a'b"}, Choice(page=3, model="a'b")),
        ({"page": "-1", "versions": "x"}, Choice()),
        ({"page": "99999999999999999999"}, Choice()),
        ({"page": "٣"}, Choice(page=3)),  # a digit too, in Arabic
    ],
)
def test_a_choice_is_read_from_any_address(query: dict[str, str], expected: Choice) -> None:
    assert Choice.of(query) == expected


def test_a_choice_has_an_address() -> None:
    assert Choice().address() == "/"
    assert Choice(model="a b", page=2).address("runs", page=3) == "/?model=a+b&page=3#runs"


def test_the_model_that_changed_last_and_has_a_champion_is_shown() -> None:
    listed = [
        {"name": "old", "changed": 1, "aliases": {"champion": 1}},
        {"name": "new", "changed": 2, "aliases": {"champion": 3}},
        {"name": "raw", "changed": 9, "aliases": {}},
    ]
    assert chosen_model(listed, "") == "new"
    assert chosen_model(listed, "raw") == "raw"
    assert chosen_model(listed, "gone") == "new"
    assert chosen_model([], "") == ""


def test_words() -> None:
    assert [took(None), took(0.42), took(12.34), took(245), took(7380)] == [
        "–",  # noqa: RUF001
        "0.42 s",
        "12.3 s",
        "4 min 5 s",
        "2 h 3 min",
    ]
    assert [figure(0.12344), figure(math.nan), share(0.256), count(12345)] == ["0.1234", "–", "26 %", "12\u202f345"]  # noqa: RUF001
    assert 'datetime="2026-11-23T00:00:00+00:00"' in moment(1795392000)
    assert quoted("it's") == '"it\'s"'


@pytest.mark.parametrize(
    "chart",
    [
        lambda: charts.metric_chart([{"at": "2026-11-23T00:00:00Z", "value": 0.1, "who": "model", "version": "1"}], "brier"),
        lambda: charts.reliability_chart([{"said": 0.1, "came": 0.2, "low": 0.1, "high": 0.3, "rows": 3}]),
        lambda: charts.certainty_chart([{"from": 0.9, "to": 1, "rows": 3}]),
        lambda: charts.forecast_chart([{"day": "2026-11-23", "probability": 0.4, "outcome": "dry", "version": 1, "issued_at": ""}]),
        lambda: charts.drift_chart([{"column": "a", "psi": 0.1, "drifted": True, "training_mean": 1, "recent_mean": 2}]),
        lambda: charts.duration_chart([{"run": "a", "order": 0, "component": "train", "seconds": 2.0, "state": "Completed"}]),
    ],
)  # fmt: skip
def test_each_chart_is_a_valid_specification_with_named_axes(chart: Callable[[], dict[str, Any]]) -> None:
    made = chart()
    alt.Chart.from_dict(made)
    titles = json.dumps(made)
    assert made["width"] == "container"
    assert titles.count('"title": "') >= 2


def test_a_chart_cannot_end_its_place_in_the_page() -> None:
    rows = [{"at": "2026-11-23T00:00:00Z", "value": 0.1, "who": "</script><b>", "version": "1"}]
    assert "<" not in charts.drawn(charts.metric_chart, rows, "brier")


def answers(*said: Any) -> tuple[Callable[[], Awaitable[Any]], list[Any]]:
    """Return a reading's source that gives one answer after the other, and what it has given."""
    given: list[Any] = []

    async def load() -> Any:
        answer = said[min(len(given), len(said) - 1)]
        given.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load, given


async def get(readings: Readings, load: Callable[[], Awaitable[Any]], **options: Any) -> Reading:
    """Ask for a reading, with time enough to wait for it."""
    return await readings.get("key", load, time.monotonic() + 60, **options)


def test_a_reading_is_kept_for_its_time() -> None:
    async def check() -> None:
        clock = Clock()
        readings, (load, given) = Readings(10, clock), answers(1, 2)
        assert (await get(readings, load)).value == 1
        clock.now += 9
        assert (await get(readings, load)).value == 1
        clock.now += 1
        assert (await get(readings, load)).value == 2
        readings.expire()
        await get(readings, load)
        assert len(given) == 3

    asyncio.run(check())


def test_a_reading_stays_while_its_server_is_down() -> None:
    async def check() -> None:
        clock = Clock()
        readings, (load, _) = Readings(10, clock), answers(1, SourceError("MLflow does not answer."), KeyError("x"), 1)
        first = (await get(readings, load)).version
        for expected in ("MLflow does not answer.", "not as documented"):
            clock.now += 10
            asked = await get(readings, load)
            while asked.task is not None:
                await asyncio.sleep(0)
            assert (asked.value, asked.read_at) == (1, 1_000_000.0)
            assert expected in (asked.error or "")
        clock.now += 10
        asked = await get(readings, load)
        while asked.task is not None:
            await asyncio.sleep(0)
        assert (asked.error, asked.read_at) == (None, clock.now)
        assert asked.version > first

    asyncio.run(check())


def test_who_asks_at_once_shares_one_reading() -> None:
    async def check() -> None:
        readings, (load, given) = Readings(10), answers(1)
        found = await asyncio.gather(*(get(readings, load) for _ in range(20)))
        assert {each.value for each in found} == {1}
        assert len(given) == 1

    asyncio.run(check())


def test_a_lasting_reading_is_read_once() -> None:
    async def check() -> None:
        clock = Clock()
        readings, (load, given) = Readings(10, clock), answers(1)
        for _ in range(3):
            await get(readings, load, lasting=True)
            clock.now += 1000
        assert len(given) == 1

    asyncio.run(check())


def test_only_so_many_readings_are_kept() -> None:
    async def check() -> None:
        readings, (load, _) = Readings(10), answers(1)
        for key in range(KEPT + 20):
            await readings.get(key, load, time.monotonic() + 60)
        assert len(readings._entries) == KEPT

    asyncio.run(check())


def sessions(clock: Clock, **given: str) -> Sessions:
    return Sessions(**{"user": "admin", "password": "right", "key": "k" * 32} | given, seconds=100, clock=clock)


def test_a_session_ends_by_time_and_by_hand() -> None:
    clock = Clock()
    made = sessions(clock)
    cookie = made.begin()
    session = made.read(cookie)
    assert session is not None
    assert session.user == "admin"
    made.end(session)
    assert made.read(cookie) is None
    other = made.begin()
    clock.now += 100
    assert made.read(other) is None


@pytest.mark.parametrize("changed", [{"password": "other"}, {"key": "o" * 32}, {"user": "other"}])
def test_a_changed_account_ends_its_sessions(changed: dict[str, str]) -> None:
    cookie = sessions(Clock()).begin()
    assert sessions(Clock()).read(cookie) is not None
    assert sessions(Clock(), **changed).read(cookie) is None


@pytest.mark.parametrize("cookie", [None, "", ".", "a.b", "ä.ö", "e30=.", "." * 1000])
def test_what_is_no_cookie_of_ours_is_no_session(cookie: str | None) -> None:
    assert sessions(Clock()).read(cookie) is None


def test_a_cookie_with_a_changed_letter_is_no_session() -> None:
    made = sessions(Clock())
    cookie = made.begin()
    assert all(
        made.read(cookie[:n] + ("A" if cookie[n] != "A" else "B") + cookie[n + 1 :]) is None
        for n in range(len(cookie) - 2)
    )


def test_wrong_tries_have_to_wait() -> None:
    clock = Clock()
    tries = Tries(clock)
    for _ in range(WRONG_TRIES):
        assert tries.wait("one") == 0
        tries.wrong("one")
    assert tries.wait("one") == TRIES_SECONDS
    assert tries.wait("other") == 0
    clock.now += TRIES_SECONDS
    assert tries.wait("one") == 0
    for address in range(ALL_WRONG_TRIES):
        tries.wrong(str(address))
    assert tries.wait("a new one") > 0
