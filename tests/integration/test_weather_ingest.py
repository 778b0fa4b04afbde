"""Ingestion with a real Prefect server: retries, the fallback, and the run page's table of problems."""

import json
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import State

from flows.weather.ingest import fetch_archive, fetch_weather, find_place, preprocess
from flows.weather.parameters import DataParameters
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import free_port

ONE_YEAR, TWO_YEARS = DataParameters(years=1), DataParameters(years=2)

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
        assert "Patchville, Testshire, Testland: 3 days filled by interpolation, 1 repeated rows dropped" in warning

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
