"""Flows, a debugger and a notebook on the host, with the servers that `make env` names."""

import inspect
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter
from prefect.client.schemas.objects import FlowRun

from flows.wine.model import CANDIDATES
from infra.testing.open_meteo_server import OpenMeteoServer
from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import KEY
from trainyard import fitting
from trainyard.contract import Alias

CHECKOUT = Path(__file__).parents[2]
NOTEBOOK = CHECKOUT / "examples/champion.ipynb"
MODEL = "wine-cultivar"


@pytest.fixture(scope="module")
def host(prefect: SyncPrefectClient, mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment after `make env`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return clean | {
        "PREFECT_API_URL": str(prefect.api_url),
        "PREFECT_HOME": str(tmp_path_factory.mktemp("host")),
        "MLFLOW_TRACKING_URI": mlflow_address,
    }


def run(host: dict[str, str], *command: str, text: str = "") -> str:
    """Run Python in the checkout; return what it printed."""
    result = subprocess.run(
        [sys.executable, *command], cwd=CHECKOUT, env=host, input=text, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def runs_of(prefect: SyncPrefectClient, flow: str, known: set[uuid.UUID]) -> list[FlowRun]:
    """Return a flow's runs but for the known ones."""
    named = FlowFilter.model_validate({"name": {"any_": [flow]}})
    return [found for found in prefect.read_flow_runs(flow_filter=named) if found.id not in known]


@pytest.fixture(scope="module")
def debugged(prefect: SyncPrefectClient, host: dict[str, str]) -> str:
    """The output of a debugger that has stopped within the wine pipeline and then let it end."""
    line = inspect.getsourcelines(fitting.choose_best)[1] + 2
    stop = f"tbreak {Path(fitting.__file__)}:{line}"
    return run(
        host,
        "-m",
        "pdb",
        "-c",
        stop,
        "-c",
        "continue",
        "-m",
        "flows.wine.pipeline",
        text="p f'{len(scores)} scores'\nc\nq\n",
    )


def test_a_flow_that_is_run_as_a_script_is_a_run_in_prefect(
    prefect: SyncPrefectClient, host: dict[str, str], open_meteo: OpenMeteoServer
) -> None:
    before = {found.id for found in runs_of(prefect, "cat-facts", set())}

    output = run(host, "flows/cat_facts.py", f"{open_meteo.url}/fact")

    (found,) = runs_of(prefect, "cat-facts", before)
    assert found.state_name == "Completed"
    assert "Cat fact 3 of 3: " in output


def test_a_debugger_stops_within_a_pipeline_whose_run_is_recorded(
    prefect: SyncPrefectClient, mlflow_address: str, debugged: str
) -> None:
    (found, *_) = runs_of(prefect, "wine-pipeline", set())

    assert "choose_best()" in debugged
    assert f"{len(CANDIDATES)} scores" in debugged
    assert found.state_name == "Completed"
    assert MlflowClient(mlflow_address).get_model_version_by_alias(MODEL, Alias.CHAMPION).version == "1"


@pytest.fixture(scope="module")
def serving(debugged: str, mlflow_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of serving, which serves the champion."""
    with serving_server(
        tmp_path_factory.mktemp("serving"), mlflow_address, SERVING_API_KEY=KEY, SERVING_KEEP_DAYS="0"
    ) as address:
        login = {"Authorization": f"Bearer {KEY}"}
        wait_until(lambda: MODEL in httpx.get(f"{address}/models", headers=login).json()["models"], 30, "the champion")
        yield address


def outputs(cell: Any) -> str:
    """Return the text that a cell shows."""
    return "".join(str(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", []))


def test_the_notebook_reads_runs_loads_the_champion_and_asks_serving(
    host: dict[str, str], serving: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**host, "MODEL": MODEL, "SERVING_URL": serving, "SERVING_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    shown = [outputs(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert "model_log_loss" in shown[1]
    assert "baseline_log_loss" in shown[1]
    assert "'version': 1" in shown[4]
    assert "class_" in shown[5]


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
