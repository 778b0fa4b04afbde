"""Places, Open-Meteo's answers and the recorded observations: what is accepted, and what is said otherwise."""

from collections.abc import Callable
from copy import deepcopy
from datetime import date
from typing import Any

import pytest

from flows.weather import open_meteo, places, recorded
from flows.weather.observations import (
    WEATHER_COLUMNS,
    Place,
    RateLimitedError,
    SourceUnreachableError,
    UnknownPlaceError,
    WeatherDataError,
)
from tests.support.open_meteo_server import OpenMeteoServer, archive, geocode

SEATTLE = Place(name="Seattle", latitude=47.6, longitude=-122.3)


@pytest.fixture
def answer() -> dict[str, Any]:
    """A complete answer for the ten days of a query of ours."""
    query = open_meteo.archive_query(SEATTLE, date(2024, 2, 25), date(2024, 3, 5))
    status, content = archive(query)
    assert status == 200
    return content


class TestArchive:
    def test_rows_are_days_and_units_are_as_asked_for(self, answer: dict[str, Any]) -> None:
        frame = open_meteo.parse_archive(answer)
        assert tuple(frame.columns) == WEATHER_COLUMNS
        assert [f"{day:%m-%d}" for day in frame.index[[0, 4, 5, -1]]] == ["02-25", "02-29", "03-01", "03-05"]
        assert frame["wind_ms"].tolist() == answer["daily"]["wind_speed_10m_max"]
        assert (frame.dtypes == "float64").all()

    def test_newest_days_that_are_not_complete_are_dropped(self, answer: dict[str, Any]) -> None:
        answer["daily"]["precipitation_sum"][-2:] = [None, None]
        answer["daily"]["temperature_2m_max"][-3] = None
        assert f"{open_meteo.parse_archive(answer).index.max():%F}" == "2024-03-02"

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda a: a.pop("daily"), "it has no object 'daily'"),
            (lambda a: a.update(daily=[1, 2]), "it has no object 'daily'"),
            (lambda a: a.pop("daily_units"), "it has no object 'daily_units'"),
            (lambda a: a["daily"].pop("time"), "the column 'time' is missing"),
            (lambda a: a["daily"].pop("wind_speed_10m_max"), "the column 'wind_speed_10m_max' is missing"),
            (lambda a: a["daily"]["time"].pop(), "has 10 values for 9 days"),
            (lambda a: a["daily"]["temperature_2m_min"].pop(), "has 9 values for 10 days"),
            (lambda a: a["daily_units"].update(precipitation_sum="inch"), "is in 'inch', not in 'mm'"),
            (lambda a: a["daily_units"].update(wind_speed_10m_max="km/h"), "is in 'km/h', not in 'm/s'"),
            (lambda a: a["daily"]["precipitation_sum"].__setitem__(3, "wet"), "neither a number nor a date"),
            (lambda a: a["daily"]["time"].__setitem__(3, "yesterday"), "neither a number nor a date"),
            (lambda a: a["daily"]["time"].__setitem__(3, "2024-02-27"), "not consecutive"),
            (lambda a: a["daily"]["precipitation_sum"].__setitem__(3, None), "precipitation_mm on 2024-02-28"),
            (lambda a: a["daily"].update(precipitation_sum=[None] * 10), "no complete day"),
        ],
    )
    def test_what_is_wrong_is_named(self, answer: dict[str, Any], spoil: Callable[[Any], object], message: str) -> None:
        wrong = deepcopy(answer)
        spoil(wrong)
        with pytest.raises(WeatherDataError, match=r"(Check|Run again|Ask)") as caught:
            open_meteo.parse_archive(wrong)
        assert message in str(caught.value)

    @pytest.mark.parametrize("wrong", [None, [], "sunny", 7])
    def test_json_that_is_no_object(self, wrong: Any) -> None:
        with pytest.raises(WeatherDataError, match="not as documented"):
            open_meteo.parse_archive(wrong)


class TestGetJson:
    @pytest.mark.parametrize(
        ("status", "error", "message"),
        [
            (400, WeatherDataError, r"refused the request \(status 400\): told to fail"),
            (404, WeatherDataError, "refused the request"),
            (429, RateLimitedError, "fewer requests"),
            (500, SourceUnreachableError, "status 500"),
            (503, SourceUnreachableError, "status 503"),
        ],
    )
    def test_statuses(self, status: int, error: type[Exception], message: str) -> None:
        with (
            OpenMeteoServer(fail_first=1, fail_status=status) as server,
            pytest.raises(error, match=message),
        ):
            open_meteo.get_json(f"{server.url}/v1/archive", {}, 5)

    def test_open_meteos_own_refusal(self) -> None:
        query = open_meteo.archive_query(SEATTLE, date(1900, 1, 1), date(1900, 1, 2))
        with OpenMeteoServer() as server, pytest.raises(WeatherDataError, match="'start_date' is out of"):
            open_meteo.get_json(f"{server.url}/v1/archive", query, 5)

    def test_truncated_json(self) -> None:
        with OpenMeteoServer() as server:
            server.truncate = True
            with pytest.raises(WeatherDataError, match="no valid JSON"):
                open_meteo.get_json(f"{server.url}/v1/search", {"name": "Oslo"}, 5)

    def test_no_answer_in_time(self) -> None:
        with OpenMeteoServer() as server:
            server.stalled = True
            with pytest.raises(SourceUnreachableError, match="ReadTimeout"):
                open_meteo.get_json(f"{server.url}/v1/search", {"name": "Oslo"}, 0.2)

    def test_nobody_listens(self) -> None:
        with OpenMeteoServer() as server:
            url = server.url
        with pytest.raises(SourceUnreachableError, match="ConnectError"):
            open_meteo.get_json(f"{url}/v1/search", {"name": "Oslo"}, 5)


class TestPlaces:
    @pytest.mark.parametrize(
        ("text", "point"),
        [("47.6,-122.3", (47.6, -122.3)), (" -33 , +18.4 ", (-33, 18.4)), ("90,180", (90, 180))],
    )
    def test_coordinates(self, text: str, point: tuple[float, float]) -> None:
        place = places.parse_coordinates(text)
        assert place is not None
        assert (place.latitude, place.longitude) == point

    @pytest.mark.parametrize("text", ["Seattle", "Springfield, Illinois", "1,2,3", "47.6 -122.3", "nan,nan"])
    def test_other_text_is_a_name(self, text: str) -> None:
        assert places.parse_coordinates(text) is None

    @pytest.mark.parametrize("text", ["91,0", "0,181", "-90.1,0"])
    def test_not_on_earth(self, text: str) -> None:
        with pytest.raises(UnknownPlaceError, match="not on Earth"):
            places.parse_coordinates(text)

    def test_best_match_with_region_and_country(self) -> None:
        place = places.parse_geocoding(geocode(places.geocoding_query("seattle")), "seattle")
        assert place == Place(name="Seattle, Washington, United States", latitude=47.60621, longitude=-122.33207)

    @pytest.mark.parametrize("answer", [{"generationtime_ms": 0.4}, {"results": []}])
    def test_unknown_place_says_what_to_do(self, answer: dict[str, Any]) -> None:
        with pytest.raises(UnknownPlaceError, match="Check the spelling"):
            places.parse_geocoding(answer, "Nowhereville")

    @pytest.mark.parametrize(
        "answer", [[], "x", {"results": 3}, {"results": [{"name": "Oslo"}]}, {"results": [[1, 2]]}]
    )
    def test_answer_of_another_shape(self, answer: Any) -> None:
        with pytest.raises(WeatherDataError, match="not as documented"):
            places.parse_geocoding(answer, "Oslo")


class TestRecorded:
    def test_four_years_of_seattle(self) -> None:
        observations = recorded.read_recorded(years=5)
        frame = observations.frame
        assert tuple(frame.columns) == WEATHER_COLUMNS
        assert (f"{frame.index.min():%F}", f"{frame.index.max():%F}") == ("2012-01-01", "2015-12-31")
        assert observations.origin.source == "vega-datasets-recorded"
        assert observations.origin.url.startswith("https://")

    def test_fewer_years_on_request(self) -> None:
        assert len(recorded.read_recorded(years=1).frame) == 365

    def test_they_are_seattles_alone(self) -> None:
        assert recorded.covers("Seattle")
        assert recorded.covers(" seattle, Washington")
        assert not recorded.covers("Oslo")
        assert not recorded.covers("59.9,10.7")
