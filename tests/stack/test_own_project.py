"""A team's own project in place of the examples: trained, served, monitored and shown by the platform as it is."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.testing.stack import Stack, copy_checkout
from infra.testing.waiting import wait_until
from trainyard.contract import MONITORING_EXPERIMENT, Alias, Record, Resource, RunTag, ServingPath, Tag, Verdict

PROJECT = Path(__file__).parent / "shop"
EXAMPLES = ("weather", "wine")
MODEL, FLOW, SUBJECT = "shop-busy", "shop-pipeline", "Main Street"
HOURS = 48  # that live_features predicts


def replace_examples(checkout: Path) -> None:
    """Remove the example projects, with their deployments, and add the test's own."""
    for example in EXAMPLES:
        shutil.rmtree(checkout / "flows" / example)
    shutil.copytree(PROJECT, checkout / "flows/shop", ignore=shutil.ignore_patterns("__pycache__"))
    file = checkout / "prefect.yaml"
    document = yaml.safe_load(file.read_text())
    entries = [
        entry
        for entry in document["deployments"]
        if not entry["entrypoint"].startswith(tuple(f"flows/{name}/" for name in EXAMPLES))
    ]
    entries.append(
        {
            "name": FLOW,
            "entrypoint": "flows/shop/pipeline.py:shop_pipeline",
            "tags": [RunTag.FIRST_RUN],
            "work_pool": {"name": Resource.WORK_POOL},
        }
    )
    file.write_text(yaml.safe_dump({**document, "deployments": entries}))


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, boot: Callable[[Stack], AbstractContextManager[Stack]]
) -> Iterator[Stack]:
    """A running installation whose checkout has no example project, after its first run."""
    home = tmp_path_factory.mktemp("own-project")
    copy_checkout(home)
    replace_examples(home)
    # Tags of its own for the images: they hold flows/, and the shared stack runs on the others.
    stack = Stack(home, COMPOSE_FILE="docker-compose.yml", TRAINYARD_VERSION="own-project")
    try:
        with boot(stack):
            run = stack.wait_for_first_run(FLOW)
            assert run["state"]["name"] == "Completed", run["state"]
            yield stack
    finally:
        images = "docker images --filter reference='trainyard-*:own-project' --format '{{.Repository}}:{{.Tag}}'"
        stack.shell(f"{images} | xargs --no-run-if-empty docker image rm", check=False)


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


def champion_metrics(own: Stack) -> dict[str, float]:
    with own.mlflow() as api:
        query = {"name": MODEL, "alias": Alias.CHAMPION}
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
