"""The champion of the first run, served in the stack."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from unittest.mock import ANY

import httpx
import pytest

from bench.bodies import bombs
from bench.bombs import MODEL as BOMBED
from infra.testing.stack import CHECKOUT, Stack
from infra.testing.waiting import wait_until
from trainyard.contract import record_about

MODEL = "rain-tomorrow"


def served_models(client: httpx.Client) -> dict[str, Any]:
    models: dict[str, Any] = client.get("/models").raise_for_status().json()["models"]
    return models


def wait_for_version(client: httpx.Client, version: int) -> None:
    wait_until(lambda: served_models(client)[MODEL]["version"] == version, 30, f"version {version}")


def test_the_champion_is_served_soon_after_it_was_registered(stack: Stack, served: httpx.Client) -> None:
    found = served_models(served)[MODEL]

    answer = served.post(f"/models/{MODEL}/predict", json=found["example"])
    paths = served.get("/openapi.json").json()["paths"]

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["version"] == found["version"] == int(answer.headers["X-Model-Version"])
    (prediction,) = body["predictions"]
    assert prediction["probabilities"].keys() == {"false", "true"}
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    rows = paths[f"/models/{MODEL}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert list(rows[0]["properties"]) == found["fields"]


def test_the_readmes_commands_predict_and_forecast(stack: Stack, served: httpx.Client) -> None:
    section = (CHECKOUT / "README.md").read_text().split("\n## Predictions\n")[1].split("\n## ")[0]
    commands = re.findall(r"```shell\n(.*?)```", section, re.DOTALL)

    output = stack.shell("set -euo pipefail\n" + "echo\n".join(commands)).stdout
    predicted, forecast = (json.loads(line) for line in output.splitlines())

    assert len(commands) == 2
    assert predicted["model"] == forecast["model"] == MODEL
    assert len(predicted["predictions"]) == 1
    assert len(forecast["predictions"]) == 3


def test_a_label_is_stored_with_its_prediction(served: httpx.Client) -> None:
    example = served_models(served)[MODEL]["example"]
    answer = served.post(f"/models/{MODEL}/predict", json=example).json()

    stored = served.post(f"/models/{MODEL}/labels", json={"id": answer["id"], "value": True})

    def labeled() -> list[Any] | None:
        page = served.get(f"/models/{MODEL}/predictions", params={"labeled": "true", "limit": 1000}).json()
        return [each["labels"] for each in page["predictions"] if each["prediction_id"] == answer["id"]] or None

    assert (answer["recorded"], stored.status_code) == (True, 200), stored.text
    assert wait_until(labeled, 30, "the labeled record") == [[True]]


def test_predictions_need_the_key_that_make_info_shows(stack: Stack, served: httpx.Client) -> None:
    address = str(served.base_url).rstrip("/")

    predictions, metrics = httpx.post(f"{address}/models/{MODEL}/predict", json={}), httpx.get(f"{address}/metrics")
    output = stack.shell("make info").stdout

    assert (predictions.status_code, metrics.status_code) == (401, 200)
    assert stack.variables()["SERVING_API_KEY"] in output


def test_its_account_reads_and_changes_nothing(stack: Stack, served: httpx.Client) -> None:
    program = (
        "import os, httpx; e = os.environ; login = (e['MLFLOW_TRACKING_USERNAME'], e['MLFLOW_TRACKING_PASSWORD']);"
        "u = e['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/registered-models/alias';"
        f"print(httpx.get(u, auth=login, params={{'name': '{MODEL}', 'alias': 'champion'}}).status_code,"
        f"httpx.post(u, auth=login, json={{'name': '{MODEL}', 'alias': 'mine', 'version': '1'}}).status_code,"
        "sorted(name for name in e if name.startswith('AWS')))"
    )

    output = stack.python("serving", program).stdout

    assert output.strip() == "200 403 []"


def test_it_reaches_its_own_database_alone_and_not_the_object_store(stack: Stack, served: httpx.Client) -> None:
    program = "import socket; socket.create_connection(('minio', 9000), timeout=3)"
    connect = "import os, psycopg2; psycopg2.connect(os.environ['SERVING_DATABASE_URL'], dbname={!r})"
    others = ("mlflow", "mlflow_accounts", "prefect")

    minio = stack.python("serving", program, check=False)
    own = stack.python("serving", connect.format("serving"))
    refused = [stack.python("serving", connect.format(other), check=False) for other in others]

    assert minio.returncode == 1, "serving reached minio"
    assert own.returncode == 0
    assert all("permission denied for database" in each.stderr for each in refused)


def records(served: httpx.Client, after: int = 0) -> list[dict[str, Any]]:
    answer = served.get(f"/models/{MODEL}/predictions", params={"after": after, "limit": 1000})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["predictions"]
    return found


def newest(served: httpx.Client) -> int:
    last, after = 0, 0
    while found := records(served, after):
        last = after = found[-1]["id"]
    return last


def test_tomorrows_rain_is_forecast_and_recorded(stack: Stack, served: httpx.Client) -> None:
    after = newest(served)

    answer = served.get("/forecast", params={"place": "Seattle", "days": 3})
    unknown = served.get("/forecast", params={"place": "Arica"})
    (record,) = wait_until(lambda: records(served, after), 30, "the record")

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["version"]) == (MODEL, served_models(served)[MODEL]["version"])
    assert [0 <= each["probabilities"]["true"] <= 1 for each in body["predictions"]] == [True] * 3
    assert record_about(record) == (body["subject"], [each["time"] for each in body["predictions"]])
    assert unknown.json()["code"] == "unknown-model"


def test_records_are_queued_while_the_database_is_down(stack: Stack, served: httpx.Client) -> None:
    after, example = newest(served), served_models(served)[MODEL]["example"]
    stack.shell("docker compose stop postgres")
    try:
        statuses = [served.post(f"/models/{MODEL}/predict", json=example).status_code for _ in range(20)]
        down = served.get(f"/models/{MODEL}/predictions")
    finally:
        stack.shell("docker compose up --detach --wait --no-recreate postgres")

    assert statuses == [200] * 20
    assert down.json()["code"] == "records-down"
    wait_until(lambda: served.get(f"/models/{MODEL}/predictions").status_code == 200, 60, "the database")
    wait_until(lambda: len(records(served, after)) == 20, 60, "the records")
    wait_until(lambda: served.get("/health/ready").json()["registry_answers"], 60, "MLflow's database")


def test_no_request_fails_while_a_person_changes_the_champion(stack: Stack, served: httpx.Client) -> None:
    first = served_models(served)[MODEL]
    stack.shell(
        """make run DEPLOYMENT=weather-pipeline PARAMETERS='{"families": ["logistic-regression"], "holdout_fraction": 0.3}'"""
    )
    other = max(int(version["version"]) for version in stack.model_versions())
    done, seen = Event(), []

    def call() -> None:
        with httpx.Client(base_url=served.base_url, headers=served.headers, timeout=30) as caller:
            while not done.is_set():
                answer = caller.post(f"/models/{MODEL}/predict", json=first["example"])
                assert answer.status_code == 200, answer.text
                seen.append(answer.json()["version"])

    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(call) for _ in range(2)]
        try:
            for version in (other, first["version"]):
                stack.shell(f"make promote MODEL={MODEL} VERSION={version}")
                wait_for_version(served, version)
        finally:
            done.set()
        for future in calls:
            future.result()

    assert set(seen) == {first["version"], other}


def test_models_stay_served_while_mlflow_is_down(stack: Stack, served: httpx.Client) -> None:
    example = served_models(served)[MODEL]["example"]
    stack.shell("docker compose stop mlflow")
    try:
        wait_until(lambda: not served.get("/health/ready").json()["registry_answers"], 30, "the outage of MLflow")
        answer = served.post(f"/models/{MODEL}/predict", json=example)
    finally:
        stack.shell("docker compose up --detach --wait --no-recreate mlflow")

    assert answer.status_code == 200
    wait_until(lambda: served.get("/health/ready").json()["registry_answers"], 60, "MLflow's return")


def test_its_idle_memory_stays_within_250_mib(stack: Stack, served: httpx.Client) -> None:
    served.get("/forecast", params={"place": "Seattle"}).raise_for_status()
    program = (
        "import pathlib;"
        "own = [p for p in pathlib.Path('/proc').glob('[0-9]*') if b'-m\\0serving' in (p / 'cmdline').read_bytes()];"
        "rows = [line.split() for p in own for line in (p / 'smaps_rollup').read_text().splitlines()];"
        "print(sum(int(row[1]) for row in rows if row[0] == 'Pss:') / 1024)"
    )
    used = float(stack.python("serving", program).stdout)
    print(f"serving uses {used:.0f} MiB")

    assert 50 < used <= 250


REGISTER = """
import mlflow
from bench import bombs
mlflow.set_experiment("bombs")
bombs.register_model()
bombs.register_model("outsized", unused_bytes=128 * 2**20)
"""


@pytest.fixture
def _registered(stack: Stack) -> Iterator[None]:
    """Two more champions: one that bodies are sent to, and one that takes more memory than models may take."""
    stack.shell(f'eval "$(make -s env)"; python -c {shlex.quote(REGISTER)}')
    yield
    with stack.mlflow() as api:
        for name in (BOMBED, "outsized"):
            api.request("DELETE", "/registered-models/delete", json={"name": name}).raise_for_status()


@pytest.mark.usefixtures("_registered")
def test_neither_bodies_nor_models_exhaust_the_containers_memory(stack: Stack, served: httpx.Client) -> None:
    before = stack.containers()["serving"]["State"]
    wait_until(lambda: BOMBED in served_models(served), 60, "the model")
    reason = wait_until(lambda: served.get("/models").json()["unservable"].get("outsized"), 60, "the refusal")

    def send(body: tuple[str, str, bytes]) -> int:
        _, media, content = body
        headers = {"Content-Type": media}
        return served.post(f"/models/{BOMBED}/predict", content=content, headers=headers, timeout=120).status_code

    with ThreadPoolExecutor(4) as callers:
        statuses = Counter(callers.map(send, bombs(8 * 2**20)))
    after, still = stack.containers()["serving"]["State"], served.post(f"/models/{BOMBED}/predict", json={"a": 1})

    assert re.search(r"it takes 512\.\d MiB of memory to load, and models may take 409\.6 MiB", reason), reason
    assert MODEL in served_models(served)
    assert statuses.keys() <= {200, 400, 413, 422, 503}
    assert statuses[413] > 10
    assert still.status_code == 200
    assert (before["StartedAt"], before["OOMKilled"]) == (after["StartedAt"], after["OOMKilled"]) == (ANY, False)
    assert count_killed(stack) == 0


def count_killed(stack: Stack) -> int:
    """Return how many processes of serving the kernel has ended for want of memory."""
    files = "/sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control"
    lines = stack.exec("serving", "sh", "-c", f"cat {files} 2>/dev/null || true").stdout.splitlines()
    (killed,) = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return killed
