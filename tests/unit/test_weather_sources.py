"""The sources of observations: Open-Meteo's answers, places, and the recordings; what is accepted and refused."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.weather import open_meteo, places, recorded
from flows.weather.observations import WEATHER_COLUMNS, Observations, Place
from flows.weather.validation import GapLimits
from infra.testing.open_meteo_server import OpenMeteoServer, archive, geocode
from trainyard.errors import DataError, RefusedError, UnknownSubjectError

SEATTLE = Place(name="Seattle", latitude=47.6, longitude=-122.3)


@pytest.fixture
def answer() -> dict[str, Any]:
    """A complete answer of the archive for ten days."""
    query = open_meteo.archive_query(SEATTLE, date(2024, 2, 25), date(2024, 3, 5))
    status, content = archive(query)
    assert status == 200
    return content


class TestArchive:
    def test_rows_are_days_in_the_requested_units(self, answer: dict[str, Any]) -> None:
        frame = open_meteo.parse_archive(answer)

        assert tuple(frame.columns) == WEATHER_COLUMNS
        assert [f"{day:%m-%d}" for day in frame.index[[0, 4, 5, -1]]] == ["02-25", "02-29", "03-01", "03-05"]
        assert frame["wind_ms"].tolist() == answer["daily"]["wind_speed_10m_max"]
        assert (frame.dtypes == "float64").all()

    def test_days_are_returned_as_they_were_sent(self, answer: dict[str, Any]) -> None:
        for column in answer["daily"].values():
            column.reverse()
        answer["daily"]["precipitation_sum"][0] = None

        frame = open_meteo.parse_archive(answer)

        assert f"{frame.index[0]:%m-%d}" == "03-05"
        assert frame["precipitation_mm"].isna().sum() == 1

    @pytest.mark.parametrize(
        ("damage", "message"),
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
            (lambda a: a["daily"]["time"].__setitem__(3, None), "a day has no date"),
        ],
    )
    def test_the_error_names_the_fault_and_what_to_check(
        self, answer: dict[str, Any], damage: Callable[[Any], object], message: str
    ) -> None:
        damaged = deepcopy(answer)
        damage(damaged)

        with pytest.raises(DataError, match="Check WEATHER_ARCHIVE_URL") as caught:
            open_meteo.parse_archive(damaged)

        assert message in str(caught.value)

    @pytest.mark.parametrize("answer", [None, [], "sunny", 7])
    def test_an_answer_that_is_no_object_is_refused(self, answer: Any) -> None:
        with pytest.raises(DataError, match="not as documented"):
            open_meteo.parse_archive(answer)


@pytest.fixture
def server() -> Iterator[OpenMeteoServer]:
    with OpenMeteoServer() as server:
        yield server


FIRST, LAST = date(2022, 1, 1), date(2023, 12, 31)


def observe(server: OpenMeteoServer, name: str = "Seattle", limits: GapLimits | None = None) -> Observations:
    """Request observations as a run does, by the place's name."""
    place = places.parse_geocoding(geocode({"name": name}), name)
    return open_meteo.observe(f"{server.url}/v1/archive", place, FIRST, LAST, 5, limits)


def refuse(server: OpenMeteoServer, name: str = "Seattle") -> DataError:
    """Return the error with which a place's data is refused."""
    with pytest.raises(DataError) as caught:
        observe(server, name)
    return caught.value


class TestObserve:
    def test_complete_data_is_returned_unchanged(self, server: OpenMeteoServer) -> None:
        observations = observe(server)

        assert len(observations.frame) == 730
        assert (observations.filled, observations.dropped_duplicates) == ((), 0)
        assert "start_date=2022-01-01" in observations.origin.url

    def test_small_gaps_are_filled_and_repeated_rows_dropped(self, server: OpenMeteoServer) -> None:
        observations = observe(server, "Patchville")

        assert [str(day) for day in observations.filled] == ["2022-02-20", "2022-07-20", "2022-07-21"]
        assert observations.dropped_duplicates == 1
        assert len(observations.frame) == 730
        assert not observations.frame.isna().to_numpy().any()

    def test_the_json_of_observations_counts_what_was_mended(self, server: OpenMeteoServer) -> None:
        content = observe(server, "Patchville").model_dump(mode="json")

        assert (len(content["filled"]), content["dropped_duplicates"]) == (3, 1)

    @pytest.mark.parametrize(
        ("name", "message", "days"),
        [
            ("Gapville", "not consecutive", 12),
            ("Fahrenheitville", "temp_max_c: outside -95 to 60 °C", 289),
            ("Staleville", "ends too early", 40),
            ("Negativeville", "precipitation_mm: outside 0 to 1900 mm", 3),
        ],
    )
    def test_places_with_invalid_data_are_refused(
        self, server: OpenMeteoServer, name: str, message: str, days: int
    ) -> None:
        error = refuse(server, name)

        assert message in str(error)
        assert error.problems[0]["count"] == days

    def test_higher_limits_let_longer_gaps_be_filled(self, server: OpenMeteoServer) -> None:
        observations = observe(server, "Gapville", GapLimits(max_gap_days=12))

        assert len(observations.filled) == 12

    def test_a_place_without_data_is_refused(self, server: OpenMeteoServer) -> None:
        with pytest.raises(RefusedError, match=r"status 400\): No data is available"):
            observe(server, "Refuseville")

    def test_a_period_out_of_range_is_refused(self, server: OpenMeteoServer) -> None:
        with pytest.raises(RefusedError, match="'start_date' is out of"):
            open_meteo.observe(f"{server.url}/v1/archive", SEATTLE, date(1900, 1, 1), date(1900, 1, 2), 5)

    def test_a_day_with_conflicting_rows_is_refused(self, server: OpenMeteoServer) -> None:
        def add_conflict(answer: dict[str, Any]) -> None:
            for name, column in answer["daily"].items():
                column.append(99.0 if name == "precipitation_sum" else column[7])

        server.change = add_conflict

        assert "one day sent with different values (2022-01-08; precipitation_mm" in str(refuse(server))

    def test_other_units_are_refused(self, server: OpenMeteoServer) -> None:
        server.change = lambda answer: answer["daily_units"].update(precipitation_sum="inch")

        error = refuse(server)

        assert "is in 'inch', not in 'mm'" in str(error)
        assert error.problems[0]["column"] == "precipitation_sum"


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
    def test_other_text_is_not_coordinates(self, text: str) -> None:
        assert places.parse_coordinates(text) is None

    @pytest.mark.parametrize("text", ["91,0", "0,181", "-90.1,0"])
    def test_coordinates_out_of_range_are_refused(self, text: str) -> None:
        with pytest.raises(UnknownSubjectError, match="not on Earth"):
            places.parse_coordinates(text)

    def test_the_name_of_the_best_match_has_region_and_country(self) -> None:
        place = places.parse_geocoding(geocode(places.geocoding_query("seattle")), "seattle")

        assert place == places.SEATTLE

    @pytest.mark.parametrize(
        ("name", "region"),
        [
            ("Springfield", "Missouri"),
            ("Springfield, Illinois", "Illinois"),
            (" springfield ,ILLINOIS, us", "Illinois"),
            ("Springfield, Illinois, United States", "Illinois"),
        ],
    )
    def test_a_region_or_country_after_a_comma_decides_between_places_of_one_name(self, name: str, region: str) -> None:
        place = places.parse_geocoding(geocode(places.geocoding_query(name)), name)

        assert place.name == f"Springfield, {region}, United States"

    def test_the_error_for_a_wrong_region_lists_the_places_of_the_name(self) -> None:
        with pytest.raises(
            UnknownSubjectError, match="but Springfield, Missouri, United States; Springfield, Illinois"
        ):
            places.parse_geocoding(geocode(places.geocoding_query("Springfield, Norway")), "Springfield, Norway")

    @pytest.mark.parametrize("answer", [{"generationtime_ms": 0.4}, {"results": []}])
    def test_the_error_for_an_unknown_place_says_what_to_do(self, answer: dict[str, Any]) -> None:
        with pytest.raises(UnknownSubjectError, match="Check the spelling"):
            places.parse_geocoding(answer, "Nowhereville")

    @pytest.mark.parametrize(
        "answer", [[], "x", {"results": 3}, {"results": [{"name": "Oslo"}]}, {"results": [[1, 2]]}]
    )
    def test_an_answer_in_another_form_is_refused(self, answer: Any) -> None:
        with pytest.raises(DataError, match="not as documented"):
            places.parse_geocoding(answer, "Oslo")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Seattle", "rain-tomorrow"),
            ("47.60621, -122.33207", "rain-tomorrow"),
            ("Oslo", "rain-tomorrow-59.91n-10.75e"),
            ("59.9127,10.7461", "rain-tomorrow-59.91n-10.75e"),
            ("33.9,151.2", "rain-tomorrow-33.90n-151.20e"),
            ("-33.9,151.2", "rain-tomorrow-33.90s-151.20e"),
            ("-0.001,-180", "rain-tomorrow-0.00n-180.00e"),
        ],
    )
    def test_the_name_of_the_model_is_made_of_the_coordinates(self, text: str, expected: str) -> None:
        place = places.parse_coordinates(text) or places.parse_geocoding(geocode(places.geocoding_query(text)), text)

        assert places.model_name(place) == expected

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(-9000, 9000), st.integers(-17999, 18000)), min_size=2, max_size=2, unique=True)
    )
    def test_different_places_have_different_keys(self, points: list[tuple[int, int]]) -> None:
        here, there = (Place(name="x", latitude=north / 100, longitude=east / 100) for north, east in points)

        assert places.place_key(here) != places.place_key(there)


class TestRecorded:
    def test_there_are_four_years_of_seattle(self) -> None:
        observations = recorded.read_recorded(years=5)

        frame = observations.frame
        assert tuple(frame.columns) == WEATHER_COLUMNS
        assert (f"{frame.index.min():%F}", f"{frame.index.max():%F}") == ("2012-01-01", "2015-12-31")
        assert observations.origin.source == "vega-datasets-recorded"
        assert observations.origin.url.startswith("https://")

    def test_fewer_years_can_be_requested(self) -> None:
        assert len(recorded.read_recorded(years=1).frame) == 365

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ("Seattle", True),
            (" seattle, Washington", True),
            ("Seattle, Norway", False),
            ("Oslo", False),
            ("59.9,10.7", False),
            (places.SEATTLE, True),
            (Place(name="Seattle", latitude=59.9, longitude=10.7), False),
        ],
    )
    def test_they_are_of_seattle_only(self, place: str | Place, expected: bool) -> None:
        assert recorded.has_recordings(place) is expected
