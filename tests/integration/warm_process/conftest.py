"""Fixtures: one Prefect server and one worker for the folder; tests that stop a worker start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testing.waiting import wait_until
from tests.integration.warm_process.harness import Server, Worker, prefect_server, worker


@pytest.fixture(scope="session")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server with basic authentication."""
    with prefect_server(tmp_path_factory.mktemp("warm-server")) as found:
        yield found


@pytest.fixture(scope="session")
def recording_orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server that stores events, which it sends again to whoever connects within a minute."""
    settings = {
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "1",
    }
    with prefect_server(tmp_path_factory.mktemp("recording-server"), **settings) as found:
        yield found


@pytest.fixture
def pool(orchestrator: Server) -> str:
    """A work pool for one test."""
    return orchestrator.create_pool()


@pytest.fixture(scope="session")
def shared_worker(orchestrator: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that no test stops."""
    home = tmp_path_factory.mktemp("warm-worker")
    with worker(orchestrator, orchestrator.create_pool(), home, limit=8) as found:
        yield found


@pytest.fixture
def shared_pool(shared_worker: Worker) -> Iterator[str]:
    """The work pool of the worker that no test stops; a test has to leave no process of a run."""
    yield shared_worker.pool
    wait_until(lambda: not shared_worker.runs(), 15, "every process of a run to end")


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """The file in which a probe flow writes its observations."""
    return tmp_path / "note.json"
