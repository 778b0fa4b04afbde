"""Data in, against a real Prefect server: retries, and what a person sees of data that is refused."""

import json
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import State

from flows.weather.ingest import fetch_weather, preprocess
from infra.testing.open_meteo_server import OpenMeteoServer

pytestmark = pytest.mark.usefixtures("prefect", "open_meteo")


def failure(state: State[Any]) -> str:
    assert state.is_failed(), state
    assert state.message is not None
    return state.message


def problems(prefect: SyncPrefectClient, state: State[Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and the description of the run's table of problems."""
    wanted = {"key": {"any_": ["data-problems"]}, "flow_run_id": {"any_": [state.state_details.flow_run_id]}}
    (table,) = prefect.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted))
    return json.loads(str(table.data)), str(table.description)


@pytest.mark.parametrize(
    ("place", "message", "rows"),
    [
        ("Gapville", "not consecutive", 1),
        ("Fahrenheitville", "wrong units", 3),
        ("Staleville", "ends too early", 1),
        ("Negativeville", "outside 0 to 1900 mm", 1),
    ],
)
def test_bad_data_fails_with_a_table(
    prefect: SyncPrefectClient, open_meteo: OpenMeteoServer, place: str, message: str, rows: int
) -> None:
    state = fetch_weather(place=place, years=2, return_state=True)
    assert message in failure(state)
    table, description = problems(prefect, state)
    assert len(table) == rows
    assert message in table[0]["check"]
    assert message in description
    assert open_meteo.counts["/v1/archive"] == 1  # asked once: the data would be the same


def test_small_gaps_are_filled_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    examples = preprocess(place="Patchville", years=2)
    assert examples.filled_days == 3
    (warning,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert "Patchville, Testshire, Testland: 3 days filled by interpolation, 1 repeated rows dropped" in warning


def test_limits_are_parameters(prefect: SyncPrefectClient) -> None:
    assert "more than 1 days in a row" in failure(
        preprocess(place="Patchville", years=2, max_gap_days=1, return_state=True)
    )
    assert fetch_weather(place="Gapville", years=2, max_gap_days=12, return_state=True).is_completed()


def test_a_refusal_is_not_tried_again(open_meteo: OpenMeteoServer) -> None:
    assert "No data is available" in failure(fetch_weather(place="Refuseville", years=2, return_state=True))
    assert open_meteo.counts["/v1/archive"] == 1


def test_a_connection_that_breaks_is_tried_again(open_meteo: OpenMeteoServer) -> None:
    open_meteo.cut = True
    assert "cannot be reached" in failure(fetch_weather(place="Oslo", years=1, return_state=True))
    assert open_meteo.counts == {"/v1/search": 5}


def test_the_pause_that_is_asked_for_is_kept(open_meteo: OpenMeteoServer) -> None:
    open_meteo.fail_first, open_meteo.fail_status, open_meteo.retry_after = 1, 429, "1"
    assert fetch_weather(place="Oslo", years=1, return_state=True).is_completed()
    assert open_meteo.counts == {"/v1/search": 2, "/v1/archive": 2}


def test_a_pause_that_is_too_long_ends_the_run_at_once(open_meteo: OpenMeteoServer) -> None:
    open_meteo.fail_first, open_meteo.fail_status, open_meteo.retry_after = 1, 429, "7200"
    assert "Run again after" in failure(fetch_weather(place="Oslo", years=1, return_state=True))
    assert open_meteo.counts == {"/v1/search": 1}
