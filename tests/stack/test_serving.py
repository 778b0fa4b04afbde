"""The champion of the first run, served in the stack."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import pytest

from infra.testing.stack import CHECKOUT, Stack
from infra.testing.waiting import wait_until

MODEL = "rain-tomorrow"


@pytest.fixture(scope="module")
def served(stack: Stack) -> Iterator[httpx.Client]:
    """A client of the service with the key of `make env`, once the first run's champion answers."""
    stack.wait_for_first_run()
    variables = stack.variables()
    headers = {"Authorization": f"Bearer {variables['SERVING_API_KEY']}"}
    with httpx.Client(base_url=variables["SERVING_URL"], headers=headers, timeout=30) as client:
        wait_until(lambda: MODEL in about(client), 30, "the champion")
        yield client


def about(client: httpx.Client) -> dict[str, Any]:
    models: dict[str, Any] = client.get("/models").raise_for_status().json()["models"]
    return models


def wait_for_version(client: httpx.Client, version: int) -> None:
    wait_until(lambda: about(client)[MODEL]["version"] == version, 30, f"version {version}")


def test_the_champion_answers_soon_after_it_was_registered(stack: Stack, served: httpx.Client) -> None:
    found = about(served)[MODEL]
    answer = served.post(f"/models/{MODEL}/predict", json=found["example"])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["version"] == found["version"] == int(answer.headers["X-Model-Version"])
    (said,) = body["predictions"]
    assert said["probabilities"].keys() == {"false", "true"}
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    paths = served.get("/openapi.json").json()["paths"]
    rows = paths[f"/models/{MODEL}/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert list(rows[0]["properties"]) == found["fields"]


def test_the_readmes_commands_predict_and_forecast(stack: Stack, served: httpx.Client) -> None:
    section = (CHECKOUT / "README.md").read_text().split("\n## Predictions\n")[1].split("\n## ")[0]
    commands = re.findall(r"```shell\n(.*?)```", section, re.DOTALL)
    assert len(commands) == 2
    output = stack.shell("set -euo pipefail\n" + "echo\n".join(commands)).stdout
    predicted, forecast = (json.loads(line) for line in output.splitlines())
    assert predicted["model"] == forecast["model"] == MODEL
    assert len(predicted["predictions"]) == 1
    assert len(forecast["forecasts"]) == 3


def test_predictions_want_the_key(stack: Stack, served: httpx.Client) -> None:
    address = str(served.base_url).rstrip("/")
    assert httpx.post(f"{address}/models/{MODEL}/predict", json={}).status_code == 401
    assert httpx.get(f"{address}/metrics").status_code == 200
    key = stack.variables()["SERVING_API_KEY"]
    assert key in stack.shell("make info").stdout


def test_its_account_reads_and_changes_nothing(stack: Stack, served: httpx.Client) -> None:
    program = (
        "import os, httpx; e = os.environ; login = (e['MLFLOW_TRACKING_USERNAME'], e['MLFLOW_TRACKING_PASSWORD']);"
        "u = e['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow/registered-models/alias';"
        f"print(httpx.get(u, auth=login, params={{'name': '{MODEL}', 'alias': 'champion'}}).status_code,"
        f"httpx.post(u, auth=login, json={{'name': '{MODEL}', 'alias': 'mine', 'version': '1'}}).status_code,"
        "sorted(name for name in e if name.startswith('AWS')))"
    )
    assert stack.python("serving", program).stdout.strip() == "200 403 []"


def test_it_reaches_its_own_database_alone_and_not_the_object_store(stack: Stack, served: httpx.Client) -> None:
    program = "import socket; socket.create_connection(('minio', 9000), timeout=3)"
    assert stack.python("serving", program, check=False).returncode == 1, "serving reached minio"
    connect = "import os, psycopg2; psycopg2.connect(os.environ['SERVING_DATABASE_URL'], dbname={!r})"
    assert stack.python("serving", connect.format("serving")).returncode == 0
    for other in ("mlflow", "mlflow_accounts", "prefect"):
        refused = stack.python("serving", connect.format(other), check=False)
        assert "permission denied for database" in refused.stderr


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
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["version"]) == (MODEL, about(served)[MODEL]["version"])
    assert [0 <= each["probability"] <= 1 for each in body["forecasts"]] == [True] * 3
    (record,) = wait_until(lambda: records(served, after), 30, "the record")
    assert record["about"]["days"] == [each["day"] for each in body["forecasts"]]
    assert served.get("/forecast", params={"place": "Arica"}).json()["code"] == "unknown-model"


def test_predictions_wait_for_a_database_that_is_down(stack: Stack, served: httpx.Client) -> None:
    after, example = newest(served), about(served)[MODEL]["example"]
    stack.shell("docker compose stop postgres")
    try:
        for _ in range(20):
            assert served.post(f"/models/{MODEL}/predict", json=example).status_code == 200
        assert served.get(f"/models/{MODEL}/predictions").json()["code"] == "records-down"
    finally:
        stack.shell("docker compose up --detach --wait --no-recreate postgres")
    wait_until(lambda: served.get(f"/models/{MODEL}/predictions").status_code == 200, 60, "the database")
    wait_until(lambda: len(records(served, after)) == 20, 60, "the records")
    wait_until(lambda: served.get("/health/ready").json()["registry_answers"], 60, "MLflow's database")


def test_no_request_fails_while_a_person_changes_the_champion(stack: Stack, served: httpx.Client) -> None:
    first = about(served)[MODEL]
    stack.shell("""make run DEPLOYMENT=weather-pipeline PARAMETERS='{"refresh": true, "years": 4}'""")
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
            for version in (other, first["version"], other):
                stack.shell(f"make promote VERSION={version}")
                wait_for_version(served, version)
        finally:
            done.set()
        for future in calls:
            future.result()
    assert set(seen) == {first["version"], other}


def test_it_goes_on_while_mlflow_is_down(stack: Stack, served: httpx.Client) -> None:
    example = about(served)[MODEL]["example"]
    stack.shell("docker compose stop mlflow")
    try:
        wait_until(lambda: not served.get("/health/ready").json()["registry_answers"], 30, "MLflow's end")
        assert served.post(f"/models/{MODEL}/predict", json=example).status_code == 200
    finally:
        stack.shell("docker compose up --detach --wait --no-recreate mlflow")
    wait_until(lambda: served.get("/health/ready").json()["registry_answers"], 60, "MLflow's return")


def test_its_idle_memory_stays_within_250_mib(stack: Stack, served: httpx.Client) -> None:
    assert served.get("/forecast", params={"place": "Seattle"}).status_code == 200
    program = (
        "import pathlib;"
        "own = [p for p in pathlib.Path('/proc').glob('[0-9]*') if b'-m\\0serving' in (p / 'cmdline').read_bytes()];"
        "rows = [line.split() for p in own for line in (p / 'smaps_rollup').read_text().splitlines()];"
        "print(sum(int(row[1]) for row in rows if row[0] == 'Pss:') / 1024)"
    )
    used = float(stack.python("serving", program).stdout)
    print(f"serving uses {used:.0f} MiB")
    assert 50 < used <= 250
