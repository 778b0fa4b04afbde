"""Which requests are recorded within a sampling rate and a budget of bytes."""

from hypothesis import given
from hypothesis import strategies as st
from serving.record_budget import DAY_SECONDS, HOUR_SECONDS, RecordBudget

MEGABYTE = 10**6
BUDGET = 8 * 24 * MEGABYTE
"""Of which a day may use 1 MB an hour."""
MIDNIGHT = 20_000.0 * DAY_SECONDS


def fill(budget: RecordBudget, hour: float, *, is_forecast: bool = False) -> int:
    """Return how many records of 1 MB can be written at an hour of the day."""
    now, written = MIDNIGHT + hour * HOUR_SECONDS, 0
    while budget.admits(0, is_forecast=is_forecast, now=now):
        budget.count(MEGABYTE, now)
        written += 1
    return written


def test_a_day_uses_its_share_at_an_even_pace() -> None:
    budget = RecordBudget(BUDGET, 1.0)

    assert [fill(budget, hour) for hour in (0, 1, 12, 23.9)] == [6, 1, 11, 6]


def test_the_next_day_has_a_share_of_its_own() -> None:
    budget = RecordBudget(BUDGET, 1.0)
    fill(budget, 23.9)

    assert fill(budget, 24) == 6


def test_forecasts_are_recorded_where_requests_have_used_their_share() -> None:
    budget = RecordBudget(BUDGET, 0.0)

    assert fill(budget, 23.9) == 0
    assert fill(budget, 23.9, is_forecast=True) == 48


def test_queued_records_count_too() -> None:
    now = MIDNIGHT + 1

    assert not RecordBudget(BUDGET, 1.0).admits(7 * MEGABYTE, is_forecast=False, now=now)


def test_what_the_database_takes_counts_after_a_restart() -> None:
    budget, now = RecordBudget(BUDGET, 1.0), MIDNIGHT + 1
    budget.measure(6 * MEGABYTE + 10**5, now)

    assert not budget.admits(0, is_forecast=False, now=now)


@given(st.lists(st.tuples(st.floats(0, 23.99), st.integers(1, MEGABYTE)), max_size=50))
def test_a_day_never_exceeds_its_share_by_more_than_a_record(requests: list[tuple[float, int]]) -> None:
    budget, written = RecordBudget(BUDGET, 1.0), 0
    for hour, size in sorted(requests):
        now = MIDNIGHT + hour * HOUR_SECONDS
        if budget.admits(0, is_forecast=False, now=now):
            budget.count(size, now)
            written += size

    assert written <= BUDGET / 8 + MEGABYTE
