"""The ground truth of the weather models."""

from datetime import date

import pandas as pd
import pytest

from flows.weather import truth
from flows.weather.observations import Observations, Origin, Place
from flows.weather.places import place_of
from trainyard.errors import DataError
from trainyard.hooks import ModelInfo

PLACE = Place(name="Seattle, Washington, United States", latitude=47.6, longitude=-122.3)
TAGS = {"place": PLACE.name, "latitude": "47.6", "longitude": "-122.3", "wet_day_mm": "1.0"}


def test_the_tags_of_a_version_name_its_place() -> None:
    assert place_of(TAGS) == PLACE


@pytest.mark.parametrize("missing", ["latitude", "wet_day_mm"])
def test_a_version_without_its_tags_is_an_error(missing: str) -> None:
    tags = {name: value for name, value in TAGS.items() if name != missing}
    with pytest.raises(DataError, match=r"Train the model again\."):
        truth.ground_truth(ModelInfo("rain-tomorrow", 1, tags), ["2026-01-01"])


def test_days_to_come_are_left_out() -> None:
    assert truth.ground_truth(ModelInfo("rain-tomorrow", 1, TAGS), ["9999-12-31"]) == {}


def test_a_day_is_wet_or_dry_and_a_filled_one_is_left_out() -> None:
    days = pd.date_range("2026-01-01", periods=3, name="date")
    frame = pd.DataFrame(
        {"precipitation_mm": [0.9, 1.0, 5.0], "temp_max_c": 9.0, "temp_min_c": 1.0, "wind_ms": 2.0}, index=days
    )
    origin = Origin(place=PLACE, source="open-meteo", url="http://archive")
    observations = Observations(origin=origin, frame=frame, filled=(date(2026, 1, 3),))

    assert truth.find_wet_days(observations, 1.0) == {"2026-01-01": False, "2026-01-02": True}
