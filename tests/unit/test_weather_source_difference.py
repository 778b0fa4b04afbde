"""What the difference between the archive and the live source does to a model's score."""

from collections.abc import Callable

import pandas as pd
import pytest

from flows.weather.features import build_examples
from flows.weather.model import CANDIDATES, make_problem
from flows.weather.sources import SourceDifference, compare_sources, fetch_live_days
from infra.testing.open_meteo_server import OpenMeteoServer
from tests.unit.weather import PLACE, make_frame, make_observations
from trainyard import fitting
from trainyard.errors import DataError
from trainyard.problem import divide

ARCHIVE = make_frame()
LAST = ARCHIVE.tail(122)


Compare = Callable[[pd.DataFrame], SourceDifference]


@pytest.fixture(scope="module")
def compare() -> Compare:
    """Compare days of a live source with the archive by a model of it."""
    problem = make_problem(PLACE)
    parts = divide(problem, build_examples(make_observations(ARCHIVE)).frame)
    estimator = fitting.fit(problem, parts, CANDIDATES[1]).estimator
    return lambda live_days: compare_sources(estimator, parts.holdout, live_days, 1.0)


def test_equal_sources_make_no_difference(compare: Compare) -> None:
    difference = compare(LAST)

    assert difference.days == 122 - 29 - 1, "the newest day has no target"
    assert difference.live_brier == pytest.approx(difference.archive_brier)
    assert difference.wet_day_disagreement == 0


def test_a_live_source_that_misses_rain_costs_score(compare: Compare) -> None:
    dry = LAST.copy()
    dry.iloc[::2, 0] = 0.0

    difference = compare(dry)

    assert difference.live_brier > difference.archive_brier
    assert 0.1 < difference.wet_day_disagreement < 0.5
    assert f"{difference.live_brier:.4f} with the forecast API's" in difference.describe()


def test_too_few_common_days_are_an_error(compare: Compare) -> None:
    with pytest.raises(DataError, match="only 0 days"):
        compare(LAST.set_axis(LAST.index + pd.Timedelta(days=400)))


def test_the_live_source_has_three_months() -> None:
    with OpenMeteoServer() as server:
        days = fetch_live_days(f"{server.url}/v1/forecast", PLACE, 5)

    assert len(days) == 93
    assert not days.isna().to_numpy().any()
