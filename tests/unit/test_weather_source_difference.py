"""What the difference between the archive and the live source does to a model's score."""

import pandas as pd
import pytest

from flows.weather import model
from flows.weather.features import build_examples
from flows.weather.model import FittedModel
from flows.weather.sources import compare_sources, fetch_live_days
from infra.testing.open_meteo_server import OpenMeteoServer
from tests.unit.weather import PLACE, make_frame, make_observations
from trainyard.errors import DataError

ARCHIVE = make_frame()
LAST = ARCHIVE.tail(122)


@pytest.fixture(scope="module")
def fitted() -> FittedModel:
    examples = build_examples(make_observations(ARCHIVE)).frame
    return model.fit_and_score(*model.split_by_time(examples, 0.2), model.make_candidates()[1])


def test_equal_sources_make_no_difference(fitted: FittedModel) -> None:
    difference = compare_sources(fitted, LAST, 1.0)

    assert difference.days == 122 - 29 - 1, "the newest day has no target"
    assert difference.live_brier == pytest.approx(difference.archive_brier)
    assert difference.wet_day_disagreement == 0


def test_a_live_source_that_misses_rain_costs_score(fitted: FittedModel) -> None:
    dry = LAST.copy()
    dry.iloc[::2, 0] = 0.0

    difference = compare_sources(fitted, dry, 1.0)

    assert difference.live_brier > difference.archive_brier
    assert 0.1 < difference.wet_day_disagreement < 0.5
    assert f"{difference.live_brier:.4f} with the forecast API's" in difference.describe()


def test_too_few_common_days_are_an_error(fitted: FittedModel) -> None:
    with pytest.raises(DataError, match="only 0 days"):
        compare_sources(fitted, LAST.set_axis(LAST.index + pd.Timedelta(days=400)), 1.0)


def test_the_live_source_has_three_months() -> None:
    with OpenMeteoServer() as server:
        days = fetch_live_days(f"{server.url}/v1/forecast", PLACE, 5)

    assert len(days) == 93
    assert not days.isna().to_numpy().any()
