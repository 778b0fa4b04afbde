"""How many calls a request counts as, which days are fetched, and how long the limits let it wait."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.weather import history, quota
from trainyard.rate_limits import RateLimit, reserve

LIMIT = RateLimit("weather.test", per_minute=60, per_hour=500, per_day=1000)
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "calls"), [(1, 1.0), (14, 1.0), (35, 1.0), (70, 2.0), (1826, 52.17), (365 * 50, 521.4)]
)
def test_calls_are_counted_as_open_meteo_does(days: int, calls: float) -> None:
    first = date(1970, 1, 1)

    assert quota.count_calls(first, first + timedelta(days=days - 1)) == pytest.approx(calls, abs=0.05)


def test_no_request_counts_as_more_than_the_limit_by_the_minute() -> None:
    first = date(1970, 1, 1)
    last = first + timedelta(days=history.MAX_DAYS_OF_A_REQUEST - 1)

    assert quota.count_calls(first, last) < quota.LIMIT.per_minute


@pytest.mark.parametrize(
    ("reason", "now", "seconds"),
    [
        ("Minutely API request limit exceeded. Please try again in one minute.", NOON, 61),
        ("Hourly API request limit exceeded. Please try again in the next hour.", NOON + timedelta(minutes=45), 961),
        ("Daily API request limit exceeded. Please try again tomorrow.", NOON, 12 * 3600 + 61),
        ("Too many concurrent requests", NOON, quota.CONCURRENCY_SECONDS),
        ("Go away", NOON, None),
        ("", NOON, None),
    ],
)
def test_a_refusal_says_when_its_limit_is_over(reason: str, now: datetime, seconds: float | None) -> None:
    assert quota.seconds_until_reset(reason, now) == seconds


FIRST, LAST = date(2021, 11, 24), date(2026, 11, 24)


@pytest.mark.parametrize(
    ("kept", "periods"),
    [
        ([], [(FIRST, LAST)]),
        ([2021, 2022, 2023, 2024, 2025], [(date(2026, 1, 1), LAST)]),
        ([2022, 2024], [(FIRST, date(2021, 12, 31)), (date(2023, 1, 1), date(2023, 12, 31)), (date(2025, 1, 1), LAST)]),
        ([2021, 2022, 2023, 2024, 2025, 2026], []),
    ],
)
def test_consecutive_years_that_are_missing_are_fetched_together(
    kept: list[int], periods: list[tuple[date, date]]
) -> None:
    assert history.missing_periods(FIRST, LAST, dict.fromkeys(kept)) == periods


@settings(max_examples=30, deadline=None)
@given(st.dates(date(1940, 1, 1), date(2026, 1, 1)), st.integers(0, 8000), st.sets(st.integers(1940, 2080)))
def test_the_periods_are_the_days_of_the_years_that_are_not_kept(first: date, days: int, kept: set[int]) -> None:
    last = first + timedelta(days=days)
    periods = history.missing_periods(first, last, dict.fromkeys(kept))
    fetched = [start + timedelta(days=n) for start, end in periods for n in range((end - start).days + 1)]
    wanted = [first + timedelta(days=n) for n in range(days + 1)]

    assert fetched == [day for day in wanted if day.year not in kept]
    assert all((end - start).days < history.MAX_DAYS_OF_A_REQUEST for start, end in periods)
    assert all(one[1] < other[0] for one, other in pairwise(periods))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1, 60), st.floats(0, 90)), min_size=1, max_size=150),
    st.floats(0, 60),
    st.floats(0, 86400),
)
@example(wishes=[(60.0, 0.0)] * 10, phase=0.0, start=0.0)  # some of them within the first minute of an hour
def test_no_sequence_of_requests_exceeds_the_limits_as_the_service_counts(
    wishes: list[tuple[float, float]], phase: float, start: float
) -> None:
    counts: dict[str, object] = {}
    now, sent = 1_764_115_200.0 + start, list[tuple[float, float]]()
    for calls, pause in wishes:
        counts, wait = reserve(LIMIT, counts, calls, now)
        if wait:
            now += wait
            counts, wait = reserve(LIMIT, counts, calls, now)
        assert wait == 0
        sent.append((now, calls))
        now += pause

    # The service sweeps each minute at a moment of its own; at the first sweep of an hour or a day it resets those too.
    minutes, hours, days = (
        defaultdict[int, float](float),
        defaultdict[int, float](float),
        defaultdict[int, float](float),
    )
    for at, calls in sent:
        sweep = int((at - phase) // 60)
        minutes[sweep] += calls
        hours[sweep // 60] += calls
        days[sweep // 1440] += calls
    assert max(minutes.values()) <= LIMIT.per_minute
    assert max(hours.values()) <= LIMIT.per_hour
    assert max(days.values()) <= LIMIT.per_day


def test_a_wait_is_no_longer_than_needed() -> None:
    counts, wait = reserve(LIMIT, {}, 60, 1000.0)
    later, second = reserve(LIMIT, counts, 1, 1030.0)

    assert (wait, second) == (0.0, 40.0)
    assert later == counts
    assert reserve(LIMIT, counts, 1, 1070.0)[1] == 0


def test_a_pause_keeps_everybody_waiting() -> None:
    assert reserve(LIMIT, {"paused_until": 1100.0}, 1, 1000.0)[1] == 100.0
    assert reserve(LIMIT, {"paused_until": 1100.0}, 1, 1100.0)[1] == 0
