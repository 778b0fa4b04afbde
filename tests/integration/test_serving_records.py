"""What serving records of its answers, in a real Postgres: beside the answers, through the database's absence."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import psycopg2
import pytest
from schemathesis import GenerationMode
from sklearn.linear_model import LinearRegression, LogisticRegression

from infra.testing.postgres import postgres_server
from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import HEADERS, KEY, register, wait_for
from tests.support.fuzzing import fuzz
from tests.support.gate import Gate

random = np.random.default_rng(0)
DAYS = pd.DataFrame(random.normal(size=(100, 2)), columns=["rain", "wind"])
WET = DAYS["rain"] > 0
DAY = {"wind": 0.5, "rain": 1.0}


@pytest.fixture(scope="module", autouse=True)
def _registry(mlflow_address: str) -> Iterator[None]:
    """Two champions: one says a class, one a number from texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("serving")
        register("wet", LogisticRegression(), DAYS, WET)
        register("depth", LinearRegression(), DAYS, DAYS["rain"])
        yield


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module")
def api(mlflow_address: str, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that records."""
    folder = tmp_path_factory.mktemp("serving")
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}
    with serving_server(folder, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        wait_for(api, "depth", 1)
        yield api


def client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, headers=HEADERS, timeout=30)


def ask(api: httpx.Client, name: str, rows: Any) -> dict[str, Any]:
    answer = api.post(f"/models/{name}/predict", json=rows)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def records(api: httpx.Client, name: str, **query: Any) -> list[dict[str, Any]]:
    answer = api.get(f"/models/{name}/predictions", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def newest_id(api: httpx.Client, name: str) -> int:
    found = records(api, name, limit=1000)
    return found[-1]["id"] if found else 0


def wait_for_records(api: httpx.Client, name: str, number: int, after: int) -> list[dict[str, Any]]:
    def there() -> list[dict[str, Any]] | None:
        found = records(api, name, after=after, limit=1000)
        return found if len(found) >= number else None

    return wait_until(there, 30, f"{number} records")


def metric(api: httpx.Client, name: str) -> float:
    lines = api.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name)))


def test_a_request_is_recorded_with_inputs_outputs_version_and_time(api: httpx.Client) -> None:
    after, before = newest_id(api, "wet"), datetime.now(UTC)
    rows = [DAY, DAY | {"rain": -3.25}]
    said = ask(api, "wet", rows)["predictions"]
    (record,) = wait_for_records(api, "wet", 1, after)
    assert record["inputs"] == {"columns": ["rain", "wind"], "data": [[1.0, 0.5], [-3.25, 0.5]]}
    outputs = record["outputs"]
    assert outputs["columns"] == ["prediction", "probability_0", "probability_1"]
    assert [row[0] for row in outputs["data"]] == [each["class"] for each in said] == [True, False]
    for row, each in zip(outputs["data"], said, strict=True):
        assert row[1:] == pytest.approx([each["probabilities"]["false"], each["probabilities"]["true"]])
    assert (record["version"], record["about"]) == (1, None)
    assert record["at"].endswith("Z")
    assert before - timedelta(seconds=1) < datetime.fromisoformat(record["at"]) < datetime.now(UTC)


def test_a_number_is_recorded_too_and_each_model_has_its_own_records(api: httpx.Client) -> None:
    after = newest_id(api, "depth")
    (said,) = ask(api, "depth", DAY)["predictions"]
    (record,) = wait_for_records(api, "depth", 1, after)
    assert record["outputs"] == {"columns": ["prediction"], "data": [[pytest.approx(said["value"])]]}


def test_refused_requests_are_not_recorded(api: httpx.Client) -> None:
    after = newest_id(api, "wet")
    assert api.post("/models/wet/predict", json={"rain": "much"}).status_code == 422
    ask(api, "wet", DAY)
    assert len(wait_for_records(api, "wet", 1, after)) == 1


def test_pages_follow_each_other(api: httpx.Client) -> None:
    after = newest_id(api, "wet")
    start = datetime.now(UTC)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda n: ask(api, "wet", DAY | {"rain": float(n)}), range(25)))
    wait_for_records(api, "wet", 25, after)
    seen, pages, at = [], 0, after
    while at is not None:
        page = api.get("/models/wet/predictions", params={"after": at, "limit": 10}).json()
        seen += page["predictions"]
        at, pages = page["next"], pages + 1
    assert pages == 3
    ids = [record["id"] for record in seen]
    assert ids == sorted(ids)
    assert sorted(record["inputs"]["data"][0][0] for record in seen) == list(range(25))
    assert len(records(api, "wet", since=start.isoformat(), limit=1000)) == 25
    assert records(api, "wet", since=(datetime.now(UTC) + timedelta(minutes=1)).isoformat()) == []
    assert not {record["id"] for record in records(api, "wet", until=start.isoformat(), limit=1000)} & set(ids)


def test_large_batches_are_recorded_and_make_short_pages(api: httpx.Client) -> None:
    after = newest_id(api, "wet")
    for _ in range(20):
        ask(api, "wet", [{"rain": float(n) / 7, "wind": 1 / (n + 1)} for n in range(10_000)])
    wait_until(lambda: metric(api, "serving_records_waiting") == 0, 60, "the writer")
    seen, pages, at = 0, 0, after
    while at is not None:
        page = api.get("/models/wet/predictions", params={"after": at, "limit": 1000}).json()
        assert all(len(record["inputs"]["data"]) == 10_000 for record in page["predictions"])
        seen, pages, at = seen + len(page["predictions"]), pages + 1, page["next"]
    assert seen == 20
    assert pages > 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "-1"}, "after"),
        ({"after": "x"}, "after"),
        ({"after": str(2**63)}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-13-01"}, "until"),
        ({"since": "0001-01-01T00:00:00+23:00"}, "since"),
    ],
)
def test_a_wrong_parameter_is_named(api: httpx.Client, query: dict[str, str], field: str) -> None:
    answer = api.get("/models/wet/predictions", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-query")
    assert answer.json()["problems"][0]["field"] == field


def test_records_want_the_key_and_a_known_model(api: httpx.Client) -> None:
    assert httpx.get(f"{api.base_url}/models/wet/predictions").status_code == 401
    unknown = api.get("/models/nobody/predictions")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-model")


@pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning")
def test_whatever_is_asked_is_answered_as_documented(api: httpx.Client) -> None:
    address, path = str(api.base_url).rstrip("/"), "/models/wet/predictions"
    fuzz(address, path, GenerationMode.POSITIVE, lambda status: status in (200, 422))  # years that Python has not
    fuzz(address, path, GenerationMode.NEGATIVE, lambda status: status < 500)


def test_records_that_are_too_old_are_deleted(mlflow_address: str, database: str, tmp_path: Path) -> None:
    program = (
        "INSERT INTO predictions (at, model, version, inputs, outputs) "
        "SELECT now() - make_interval(days => d), 'old', 1, '{}', '{}' FROM generate_series(9, 0, -1) AS d"
    )
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}

    def ages() -> int:
        cursor.execute("SELECT count(*) FROM predictions WHERE model = 'old'")
        return int(cursor.fetchone()[0])

    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("TRUNCATE predictions")
        cursor.execute(program)
        with serving_server(tmp_path / "5", mlflow_address, SERVING_KEEP_DAYS="5", **settings):
            wait_until(lambda: ages() == 5, 30, "the deletion of the old")
        with serving_server(tmp_path / "0", mlflow_address, SERVING_KEEP_DAYS="0", **settings) as address:
            wait_until(lambda: ages() == 0, 30, "the deletion of all")
            with client(address) as api:
                wait_for(api, "wet", 1)
                ask(api, "wet", DAY)
                off = api.get("/models/wet/predictions")
                assert (off.status_code, off.json()["code"]) == (404, "not-recorded")
                assert "serving_records" not in api.get("/metrics").text


def test_without_the_database_it_answers_and_records_wait(mlflow_address: str, database: str, tmp_path: Path) -> None:
    with Gate(database) as gate:
        url = gate.address.replace("http://", "postgresql://postgres@") + "/postgres"
        settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": url}
        with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
            wait_for(api, "wet", 1)
            wait_until(lambda: metric(api, "serving_records_up") == 0, 30, "the database's absence")
            ask(api, "wet", DAY | {"rain": 41.0})
            down = api.get("/models/wet/predictions")
            assert (down.status_code, down.json()["code"]) == (503, "records-down")
            gate.open()
            wait_until(lambda: metric(api, "serving_records_waiting") == 0, 30, "the queue's end")
            assert records(api, "wet", limit=1000)[-1]["inputs"]["data"][0][0] == 41.0
            gate.shut()
            for number in range(50):
                ask(api, "wet", DAY | {"rain": 100.0 + number})
            assert metric(api, "serving_records_waiting") > 0
            gate.open()
            wait_until(lambda: metric(api, "serving_records_waiting") == 0, 30, "the queue's end")
            seen = [record["inputs"]["data"][0][0] for record in records(api, "wet", limit=1000)]
            assert seen[-50:] == [100.0 + number for number in range(50)]
            assert metric(api, 'serving_records_total{end="dropped"}') == 0
            assert metric(api, "serving_records_up") == 1


def test_what_does_not_fit_the_queue_is_dropped_and_counted(mlflow_address: str, tmp_path: Path, database: str) -> None:
    with Gate(database) as gate:
        url = gate.address.replace("http://", "postgresql://postgres@") + "/postgres"
        settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": url}
        with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
            wait_for(api, "wet", 1)
            batch = [{"rain": float(n), "wind": 1.0} for n in range(10_000)]
            for _ in range(25):
                ask(api, "wet", batch)
            assert metric(api, 'serving_records_total{end="dropped"}') > 0
            waiting = metric(api, "serving_records_waiting")
            assert 0 < waiting < 25
            gate.open()
            wait_until(lambda: metric(api, "serving_records_waiting") == 0, 60, "the queue's end")
            assert metric(api, 'serving_records_total{end="written"}') == waiting
    assert (tmp_path / "server.log").read_text().count("too many wait for the database") == 1


def test_what_waits_is_written_before_the_end(mlflow_address: str, tmp_path: Path, database: str) -> None:
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}
    with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        for number in range(20):
            ask(api, "wet", DAY | {"rain": 900.0 + number})
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM predictions WHERE (inputs->'data'->0->>0)::float >= 900")
        assert cursor.fetchone() == (20,)
