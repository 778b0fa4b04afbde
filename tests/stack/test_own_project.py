"""A team's own project beside the checkout: trained, served, monitored and shown by the platform as it is."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.testing.stack import Stack
from infra.testing.waiting import wait_until
from tests.stack.conftest import OWN_FLOW as FLOW
from trainyard.contract import MONITORING_EXPERIMENT, Alias, Record, Resource, ServingPath, Tag, Verdict

EXAMPLES = ("weather", "wine")
MODEL, SUBJECT = "shop-busy", "Main Street"
HOURS = 48  # that live_features predicts


@pytest.fixture(scope="module")
def served(own: Stack) -> Iterator[httpx.Client]:
    """The serving API, once the champion is served."""
    variables = own.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    with httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30) as client:
        wait_until(lambda: MODEL in client.get(ServingPath.MODELS).json()["models"], 30, "the champion")
        yield client


@pytest.fixture(scope="module")
def forecast(served: httpx.Client) -> dict[str, Any]:
    """An answer of /models/NAME/forecast that has been recorded."""
    answer = served.get(ServingPath.of_model(MODEL, "forecast"))
    assert answer.status_code == 200, answer.text

    def is_recorded() -> bool:
        page = served.get(ServingPath.of_model(MODEL, "predictions"), params={"limit": "1000"}).raise_for_status()
        return any(record[Record.ABOUT] for record in page.json()["predictions"])

    wait_until(is_recorded, 30, "the forecast's record")
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture(scope="module")
def check(own: Stack, forecast: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tags and metrics of a check by the monitor."""
    parameters = shlex.quote(json.dumps({"models": [MODEL]}))
    own.shell(f"make run DEPLOYMENT={Resource.MONITOR} PARAMETERS={parameters}")
    with own.mlflow() as api:
        query = {"experiment_name": MONITORING_EXPERIMENT}
        experiment = api.get("/experiments/get-by-name", params=query).raise_for_status().json()["experiment"]
        search = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1}
        (run,) = api.post("/runs/search", json=search).raise_for_status().json()["runs"]
    return {kind: {one["key"]: one["value"] for one in run["data"][kind]} for kind in ("tags", "metrics")}


def champion_metrics(own: Stack, model: str = MODEL) -> dict[str, float]:
    with own.mlflow() as api:
        query = {"name": model, "alias": Alias.CHAMPION}
        version = api.get("/registered-models/alias", params=query).raise_for_status().json()["model_version"]
        run = api.get("/runs/get", params={"run_id": version["run_id"]}).raise_for_status().json()["run"]
    return {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}


def test_the_first_run_trains_a_champion_that_beats_the_baseline(own: Stack) -> None:
    metrics = champion_metrics(own)

    assert metrics["model_log_loss"] < metrics["baseline_log_loss"]


def test_no_example_is_deployed_or_registered(own: Stack) -> None:
    with own.prefect() as prefect, own.mlflow() as mlflow:
        deployments = prefect.post("/deployments/filter", json={}).raise_for_status().json()
        models = mlflow.get("/registered-models/search").raise_for_status().json()["registered_models"]

    names = {deployment["name"] for deployment in deployments}
    assert {FLOW, Resource.MONITOR, Resource.SEND_MAIL} <= names
    assert not [name for name in names if name.startswith(EXAMPLES)]
    assert [model["name"] for model in models] == [MODEL]


def test_nothing_is_wrong_with_a_new_installation(own: Stack) -> None:
    examined = own.shell("make doctor", check=False)

    assert examined.stdout == "Nothing is wrong.\n"
    assert examined.returncode == 0


def test_worker_and_serving_have_the_project_s_package(own: Stack, forecast: dict[str, Any]) -> None:
    program = "import holidays, pandas; print(holidays.__name__)"

    assert own.python("worker", program).stdout.strip() == "holidays"
    assert own.provisioner("import importlib.util as u; print(u.find_spec('holidays'))").strip() == "None"
    assert forecast["details"] == {"country": "NO"}


def test_the_worker_can_clone_code(own: Stack) -> None:
    program = "cd $(mktemp -d) && git init --quiet one && git clone --quiet one two && ls -d two/.git"

    assert own.exec("worker", "bash", "-c", program).stdout.strip() == "two/.git"


def test_packages_that_contradict_the_platform_s_are_refused_at_build(own: Stack) -> None:
    file = own.home.parent / "shop" / "pyproject.toml"
    text = file.read_text()
    file.write_text(text.replace('"holidays', '"pandas<3", "holidays'))
    refused = own.shell("docker compose build worker", check=False)
    file.write_text(text)

    assert refused.returncode != 0
    assert "shop needs pandas<3, and Trainyard has pandas 3." in refused.stdout + refused.stderr


def test_the_champion_predicts_rows_that_a_caller_sends(served: httpx.Client) -> None:
    example = served.get(ServingPath.MODELS).json()["models"][MODEL]["example"]

    answer = served.post(ServingPath.of_model(MODEL, "predict"), json=example)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["version"]) == (MODEL, 1)
    assert body["predictions"][0]["probabilities"].keys() == {"false", "true"}


def test_the_forecast_is_about_the_rows_of_the_project_s_hook(forecast: dict[str, Any]) -> None:
    assert (forecast["model"], forecast["version"], forecast["subject"]) == (MODEL, 1, SUBJECT)
    times = [prediction["time"] for prediction in forecast["predictions"]]
    assert len(times) == len(set(times)) == HOURS
    assert all(sum(each["probabilities"].values()) == pytest.approx(1) for each in forecast["predictions"])


def test_an_error_of_the_hook_reaches_the_caller(served: httpx.Client) -> None:
    answer = served.get(ServingPath.of_model(MODEL, "forecast"), params={"hours": "many"})

    assert answer.status_code == 422, answer.text
    assert "hours" in answer.text


def test_the_monitor_compares_with_the_training_data_and_the_ground_truth(check: dict[str, dict[str, Any]]) -> None:
    assert check["tags"][Tag.MODEL] == MODEL
    assert check["tags"][Tag.VERDICT] == Verdict.OK, check["tags"][Tag.REASONS]
    assert check["metrics"]["scored"] >= HOURS
    assert 0 < check["metrics"]["live_brier"] < 0.25
    assert "drifted_share" in check["metrics"]


def test_the_dashboard_shows_metrics_and_predictions_with_their_ground_truth(
    own: Stack, forecast: dict[str, Any], check: dict[str, dict[str, Any]]
) -> None:
    address, user, password = own.dashboard()
    loss = f"{champion_metrics(own)['model_log_loss']:.4f}"
    with httpx.Client(base_url=address, headers={"Origin": address}, timeout=30) as client:
        assert client.post("/login", data={"user": user, "password": password}).status_code == 303

        def predictions() -> str | None:
            page = client.get("/", params={"model": MODEL}).raise_for_status().text
            panel = re.search(r'<section[^>]*id="predictions-1".*?</section>', page, re.DOTALL)
            is_complete = panel and loss in page and SUBJECT in panel[0]
            return panel[0] if panel and is_complete else None

        panel = wait_until(predictions, 60, f"{MODEL} on the dashboard", every=1)

    assert "Ground truth is known for" in panel
    assert forecast["predictions"][-1]["time"][:13] in panel


@pytest.mark.slow
def test_a_second_project_from_the_template_runs_on_a_worker_of_its_own(own: Stack) -> None:
    folder = own.home.parent / "late-orders"
    copier = [str(Path(sys.executable).with_name("copier")), "copy", "--quiet", "--defaults"]
    subprocess.run([*copier, "--data", "name=late-orders", str(own.home / "template"), str(folder)], check=True)
    # For the rest of this stack's life: what removes it has to know of the second worker too.
    own.environment |= {
        "COMPOSE_FILE": f"{own.environment['COMPOSE_FILE']}:infra/compose/second-project.yml",
        "SECOND_PROJECT": "../late-orders",
        "SECOND_QUEUE": "orders",
    }

    own.up("worker", "second-worker")

    run = own.wait_for_first_run("late-orders-pipeline")
    assert run["state"]["name"] == "Completed", run["state"]
    assert run["work_queue_name"] == "orders"
    assert champion_metrics(own, "late-orders")["model_roc_auc"] > 0.7
    own.shell(f"make run DEPLOYMENT={FLOW}")  # the first project's worker goes on with its own
