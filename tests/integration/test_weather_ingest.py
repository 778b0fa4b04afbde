"""Ingestion with a real Prefect server: retries, the fallback, and the run page's table of problems."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import State
from prefect.variables import Variable

from flows.weather import quota
from flows.weather.ingest import choose_period, fetch_archive, fetch_weather, find_place, preprocess
from flows.weather.observations import Place
from flows.weather.parameters import DataParameters
from flows.weather.validation import GapLimits
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import free_port
from trainyard import rate_limits
from trainyard.cache import refreshing

ONE_YEAR, TWO_YEARS = DataParameters(years=1), DataParameters(years=2)

variables: Any = Variable  # whose types do not know that it is called from synchronous code

pytestmark = pytest.mark.usefixtures("prefect", "open_meteo")


@pytest.fixture(autouse=True)
def _short_retry_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (find_place, fetch_archive):
        monkeypatch.setattr(task, "retry_delay_seconds", 0.01)


def failure_message(state: State[Any]) -> str:
    """Return the message that the failed run's page shows."""
    assert state.is_failed(), state
    assert state.message is not None
    return state.message


def table_of_problems(prefect: SyncPrefectClient, state: State[Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and the description of the run page's table of problems."""
    wanted = {"key": {"any_": ["data-problems"]}, "flow_run_id": {"any_": [state.state_details.flow_run_id]}}
    (table,) = prefect.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted))
    return json.loads(str(table.data)), str(table.description)


def drop_column(answer: dict[str, Any]) -> None:
    del answer["daily"]["precipitation_sum"]


class TestInvalidData:
    @pytest.mark.parametrize(
        ("place", "message", "rows"),
        [
            ("Gapville", "not consecutive", 1),
            ("Fahrenheitville", "outside -95 to 60 °C", 2),
            ("Staleville", "ends too early", 1),
            ("Negativeville", "outside 0 to 1900 mm", 1),
        ],
    )
    def test_it_fails_with_a_table_of_problems_and_no_retry(
        self, prefect: SyncPrefectClient, open_meteo: OpenMeteoServer, place: str, message: str, rows: int
    ) -> None:
        state = fetch_weather(place, TWO_YEARS, return_state=True)

        table, description = table_of_problems(prefect, state)
        assert message in failure_message(state)
        assert len(table) == rows
        assert message in table[0]["check"]
        assert message in description
        assert open_meteo.counts["/v1/archive"] == 1

    @pytest.mark.parametrize(
        ("place", "switches", "message", "archive_requests"),
        [
            ("91,0", {}, "not on Earth", 0),
            ("Refuseville", {}, "No data is available", 1),
            ("Seattle", {"truncate": True}, "no valid JSON", 0),
            ("47.6,-122.3", {"truncate": True}, "no valid JSON", 1),
            ("Seattle", {"change": drop_column}, "the column 'precipitation_sum' is missing", 1),
            ("47.6,-122.3", {"fail_first": 9, "fail_status": 400}, "refused the request (status 400): told", 1),
        ],
    )
    def test_an_unusable_answer_fails_without_a_retry_or_a_fallback(
        self,
        open_meteo: OpenMeteoServer,
        place: str,
        switches: dict[str, Any],
        message: str,
        archive_requests: int,
    ) -> None:
        for name, value in switches.items():
            setattr(open_meteo, name, value)

        state = fetch_weather(place, DataParameters(years=2, allow_recorded=True), return_state=True)

        assert message in failure_message(state)
        assert open_meteo.counts["/v1/archive"] == archive_requests

    def test_too_few_observations_fail(self) -> None:
        state = preprocess("Oslo", DataParameters(years=1, min_observations=1000), return_state=True)

        assert "fewer than the 1000 needed" in failure_message(state)


class TestGaps:
    def test_small_gaps_are_filled_and_logged_as_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        examples = preprocess("Patchville", TWO_YEARS)

        (warning,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
        assert examples.filled_days == 3
        assert "Patchville, Testshire, Testland: 3 days filled with earlier values, 1 repeated rows dropped" in warning

    def test_a_lower_limit_refuses_them(self) -> None:
        state = preprocess("Patchville", DataParameters(years=2, max_gap_days=1), return_state=True)

        assert "more than 1 days in a row" in failure_message(state)

    def test_a_higher_limit_accepts_longer_ones(self) -> None:
        observations = fetch_weather("Gapville", DataParameters(years=2, max_gap_days=12))

        assert len(observations.filled) == 12


class TestRetries:
    @pytest.mark.parametrize("status", [503, 429])
    def test_transient_failures_are_retried(self, open_meteo: OpenMeteoServer, status: int) -> None:
        open_meteo.fail_first, open_meteo.fail_status = 2, status

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert state.is_completed()
        assert open_meteo.counts == {"/v1/search": 3, "/v1/archive": 3}

    def test_a_connection_that_breaks_is_retried_four_times(self, open_meteo: OpenMeteoServer) -> None:
        open_meteo.cut = True

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert "cannot be reached" in failure_message(state)
        assert open_meteo.counts == {"/v1/search": 5}

    def test_a_timeout_is_retried_four_times(
        self, open_meteo: OpenMeteoServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WEATHER_TIMEOUT_SECONDS", "0.5")
        open_meteo.stalled = True

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert "ReadTimeout" in failure_message(state)
        assert open_meteo.counts == {"/v1/search": 5}

    def test_a_requested_pause_is_respected(self, open_meteo: OpenMeteoServer) -> None:
        open_meteo.fail_first, open_meteo.fail_status, open_meteo.retry_after = 1, 429, "1"

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert state.is_completed()
        assert open_meteo.counts == {"/v1/search": 2, "/v1/archive": 2}

    def test_a_pause_that_is_too_long_fails_at_once(self, open_meteo: OpenMeteoServer) -> None:
        open_meteo.fail_first, open_meteo.fail_status, open_meteo.retry_after = 1, 429, "7200"

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert "Run again after" in failure_message(state)
        assert open_meteo.counts == {"/v1/search": 1}


MINUTELY = "Minutely API request limit exceeded. Please try again in one minute."
DAILY = "Daily API request limit exceeded. Please try again tomorrow."


class TestLimits:
    @pytest.fixture(autouse=True)
    def _no_calls_yet(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(rate_limits, "RESET_MARGIN_SECONDS", 1)
        variables.unset(quota.LIMIT.variable, _sync=True)
        yield
        variables.unset(quota.LIMIT.variable, _sync=True)

    def test_a_refusal_waits_until_its_limit_is_over(self, open_meteo: OpenMeteoServer) -> None:
        open_meteo.refusals = [MINUTELY, MINUTELY]

        state = fetch_weather("Oslo", ONE_YEAR, return_state=True)

        assert state.is_completed()
        assert open_meteo.counts == {"/v1/search": 3, "/v1/archive": 1}

    def test_recorded_observations_replace_those_of_a_limit_that_lasts_too_long(
        self, open_meteo: OpenMeteoServer
    ) -> None:
        open_meteo.refusals = [DAILY]

        observations = fetch_weather("Seattle", DataParameters(allow_recorded=True))

        assert observations.origin.source == "vega-datasets-recorded"
        assert open_meteo.counts == {"/v1/search": 1}

    def test_no_other_run_asks_before_the_limit_is_over(self, open_meteo: OpenMeteoServer) -> None:
        open_meteo.refusals = [DAILY]
        first = fetch_weather("Oslo", ONE_YEAR, return_state=True)
        second = fetch_weather("Seattle", ONE_YEAR, return_state=True)

        assert "Run again after" in failure_message(first)
        assert "Run again after" in failure_message(second)
        assert open_meteo.counts == {"/v1/search": 1}

    def test_a_request_counts_for_all_runs(self) -> None:
        fetch_weather("Oslo", TWO_YEARS)

        counts = variables.get(quota.LIMIT.variable, _sync=True)
        assert max(counts["days"].values()) == pytest.approx(1 + 0.4 * 731 / 14, abs=0.1)


class TestIncremental:
    def test_only_days_that_the_archive_may_still_correct_are_fetched_again(self, open_meteo: OpenMeteoServer) -> None:
        place = Place(name="nowhere", latitude=12.0, longitude=34.0)
        url, limits, day = f"{open_meteo.url}/v1/archive", GapLimits(), timedelta(days=1)
        first, last = choose_period(5)

        @flow(persist_result=False)
        def fetch(begin: date, end: date, refresh: bool) -> pd.DataFrame:
            with refreshing(refresh):
                return fetch_archive(url, place, begin, end, limits).frame

        before = fetch(first - day, last - day, False)
        after = fetch(first, last, False)
        fetch(first, last, True)
        periods = [(query["start_date"], query["end_date"]) for _, query in open_meteo.queries]
        settled = max(year for year in range(2000, last.year) if (last - date(year, 12, 31)).days > 90)
        calls = quota.count_calls(date(settled + 1, 1, 1), last)

        assert periods == [
            (f"{first - day}", f"{last - day}"),
            (f"{settled + 1}-01-01", f"{last}"),
            (f"{first}", f"{last}"),
        ]
        assert calls < 14
        pd.testing.assert_frame_equal(after[: f"{settled}"], before[f"{first}" : f"{settled}"], check_freq=False)

    def test_years_with_gaps_are_fetched_again(self, open_meteo: OpenMeteoServer) -> None:
        fetch_weather("Patchville", TWO_YEARS)
        fetch_weather("Patchville", DataParameters(years=2, max_gap_days=4))
        (first, second) = [query["start_date"] for path, query in open_meteo.queries if path == "/v1/archive"]

        assert first == second


class TestUnreachable:
    @pytest.fixture(autouse=True)
    def _unreachable(self, open_meteo: OpenMeteoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        address = f"http://127.0.0.1:{free_port()}/v1"
        monkeypatch.setenv("WEATHER_ARCHIVE_URL", f"{address}/archive")
        monkeypatch.setenv("WEATHER_GEOCODING_URL", f"{address}/search")

    def test_recorded_observations_are_the_fallback_where_allowed(self) -> None:
        observations = fetch_weather("Seattle", DataParameters(allow_recorded=True))

        assert observations.origin.source == "vega-datasets-recorded"

    @pytest.mark.parametrize(("place", "allowed"), [("Seattle", False), ("Oslo", True), ("59.9,10.7", True)])
    def test_otherwise_the_error_says_what_to_do(self, place: str, allowed: bool) -> None:
        state = fetch_weather(place, DataParameters(allow_recorded=allowed), return_state=True)

        message = failure_message(state)
        assert "cannot be reached" in message
        assert "allow_recorded=true" in message
