"""Fixtures: real Prefect and MLflow servers for the whole session, a fresh Open-Meteo for each test."""

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_UI_URL,
    temporary_settings,
)

from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.postgres import postgres_server
from infra.testing.servers import mlflow_server, prefect_server

STARTED: list[str] = []  # MLflow's address, once a test has asked for one


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    """A client of a real Prefect server; flows that a test calls report to it."""
    home = tmp_path_factory.mktemp("prefect")
    # No test here reads stored events, and on SQLite they hold up everything else.
    with prefect_server(home / "server", PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED="false") as api:
        settings = {
            PREFECT_API_URL: api,
            PREFECT_UI_URL: "http://prefect.test:4200",
            PREFECT_HOME: home,
            # The thread that sends heartbeats holds up the end of each flow by as much as a second.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        }
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client
            APILogHandler().flush()


@pytest.fixture(scope="session")
def mlflow_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server with an artifact store of its own."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        STARTED.append(address)
        yield address


@pytest.fixture(scope="module", autouse=True)
def _no_model_for_the_next_module() -> Iterator[None]:
    """Each module begins with an empty registry: a champion of another's would decide its gates."""
    yield
    for address in STARTED:
        registry = MlflowClient(address)
        for registered in registry.search_registered_models():
            registry.delete_registered_model(registered.name)


@pytest.fixture
def tracking(mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the MLflow server, which the flows use too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.setenv("MLFLOW_UI_URL", "http://mlflow.test:5001")
    return MlflowClient()


@pytest.fixture
def open_meteo(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenMeteoServer]:
    """A server that answers as Open-Meteo does, with synthetic weather; the flows ask it."""
    with OpenMeteoServer() as server:
        monkeypatch.setenv("WEATHER_ARCHIVE_URL", f"{server.url}/v1/archive")
        monkeypatch.setenv("WEATHER_FORECAST_URL", f"{server.url}/v1/forecast")
        monkeypatch.setenv("WEATHER_GEOCODING_URL", f"{server.url}/v1/search")
        monkeypatch.setenv("WEATHER_TIMEOUT_SECONDS", "5")
        yield server


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database."""
    with postgres_server() as url:
        yield url
