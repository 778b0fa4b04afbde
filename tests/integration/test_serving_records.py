"""Recorded predictions in a real Postgres, also while the database is down."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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
from serving.record_store import RecordStore
from sklearn.linear_model import LinearRegression, LogisticRegression

from infra.testing.servers import serving_server
from infra.testing.waiting import wait_until
from tests.support.champions import DAY, KEY, client, predict, register, wait_for
from tests.support.fuzzing import fuzz
from tests.support.gate import Gate
from trainyard.contract import record_about

random = np.random.default_rng(0)
DAYS = pd.DataFrame(random.normal(size=(100, 2)), columns=["rain", "wind"])
WET = DAYS["rain"] > 0


@pytest.fixture(scope="module", autouse=True)
def _registry(mlflow_address: str) -> Iterator[None]:
    """Two champions: a classifier and a regressor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
        mlflow.set_experiment("serving")
        register("wet", LogisticRegression(), DAYS, WET)
        register("depth", LinearRegression(), DAYS, DAYS["rain"])
        yield


@pytest.fixture(scope="module")
def api(mlflow_address: str, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that records."""
    folder = tmp_path_factory.mktemp("serving")
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}
    with serving_server(folder, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        wait_for(api, "depth", 1)
        yield api


def records(api: httpx.Client, name: str, **query: Any) -> list[dict[str, Any]]:
    answer = api.get(f"/models/{name}/predictions", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def newest_id(api: httpx.Client, name: str) -> int:
    found = records(api, name, limit=1000)
    return found[-1]["id"] if found else 0


def wait_for_records(api: httpx.Client, name: str, number: int, after: int) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]] | None:
        page = records(api, name, after=after, limit=1000)
        return page if len(page) >= number else None

    return wait_until(found, 30, f"{number} records")


def metric(api: httpx.Client, name: str) -> float:
    lines = api.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name)))


def test_a_request_is_recorded_with_inputs_outputs_version_and_time(api: httpx.Client) -> None:
    after, before = newest_id(api, "wet"), datetime.now(UTC)

    predictions = predict(api, "wet", [DAY, DAY | {"rain": -3.25}])["predictions"]
    (record,) = wait_for_records(api, "wet", 1, after)

    assert record["inputs"] == {"columns": ["rain", "wind"], "data": [[1.0, 0.5], [-3.25, 0.5]]}
    outputs = record["outputs"]
    assert outputs["columns"] == ["prediction", "probability_0", "probability_1"]
    assert [row[0] for row in outputs["data"]] == [each["class"] for each in predictions] == [True, False]
    for row, each in zip(outputs["data"], predictions, strict=True):
        assert row[1:] == pytest.approx([each["probabilities"]["false"], each["probabilities"]["true"]])
    assert (record["version"], record["about"]) == (1, None)
    assert record["at"].endswith("Z")
    assert before - timedelta(seconds=1) < datetime.fromisoformat(record["at"]) < datetime.now(UTC)


def test_a_number_is_recorded_among_the_records_of_its_own_model(api: httpx.Client) -> None:
    after = newest_id(api, "depth")

    (prediction,) = predict(api, "depth", DAY)["predictions"]
    (record,) = wait_for_records(api, "depth", 1, after)

    assert record["outputs"] == {"columns": ["prediction"], "data": [[pytest.approx(prediction["value"])]]}


def test_refused_requests_are_not_recorded(api: httpx.Client) -> None:
    after = newest_id(api, "wet")

    refused = api.post("/models/wet/predict", json={"rain": "much"})
    predict(api, "wet", DAY)

    assert refused.status_code == 422
    assert len(wait_for_records(api, "wet", 1, after)) == 1


@pytest.fixture(scope="module")
def numbered(api: httpx.Client) -> tuple[int, datetime]:
    """The id and the moment before 25 requests that are numbered by their rain."""
    after, start = newest_id(api, "wet"), datetime.now(UTC)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda n: predict(api, "wet", DAY | {"rain": float(n)}), range(25)))
    wait_for_records(api, "wet", 25, after)
    return after, start


def read_pages(api: httpx.Client, after: int, limit: int) -> list[list[dict[str, Any]]]:
    pages, at = [], after
    while at is not None:
        page = api.get("/models/wet/predictions", params={"after": at, "limit": limit}).json()
        pages.append(page["predictions"])
        at = page["next"]
    return pages


def test_pages_follow_each_other_without_gaps(api: httpx.Client, numbered: tuple[int, datetime]) -> None:
    after, _ = numbered

    pages = read_pages(api, after, 10)

    seen = [record for page in pages for record in page]
    ids = [record["id"] for record in seen]
    assert [len(page) for page in pages[:2]] == [10, 10]
    assert ids == sorted(ids)
    assert {float(n) for n in range(25)} <= {record["inputs"]["data"][0][0] for record in seen}


def test_records_are_listed_by_their_time(api: httpx.Client, numbered: tuple[int, datetime]) -> None:
    after, start = numbered
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()

    since = records(api, "wet", after=after, since=start.isoformat(), limit=1000)
    until = records(api, "wet", until=start.isoformat(), limit=1000)
    future = records(api, "wet", since=later)

    assert len(since) >= 25
    assert not {record["id"] for record in until} & {record["id"] for record in since}
    assert future == []


def test_large_batches_are_recorded_and_make_short_pages(api: httpx.Client) -> None:
    after = newest_id(api, "wet")
    for _ in range(20):
        predict(api, "wet", [{"rain": float(n) / 7, "wind": 1 / (n + 1)} for n in range(10_000)])
    wait_until(lambda: metric(api, "serving_records_waiting") == 0, 60, "the writer")

    pages = read_pages(api, after, 1000)

    assert [len(record["inputs"]["data"]) for page in pages for record in page] == [10_000] * 20
    assert len(pages) > 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "-1"}, "after"),
        ({"after": "x"}, "after"),
        ({"after": str(2**63)}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"version": "0"}, "version"),
        ({"about": "something"}, "about"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-13-01"}, "until"),
        ({"since": "0001-01-01T00:00:00+23:00"}, "since"),
    ],
)
def test_a_wrong_parameter_is_named(api: httpx.Client, query: dict[str, str], field: str) -> None:
    answer = api.get("/models/wet/predictions", params=query)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-query")
    assert answer.json()["problems"][0]["field"] == field


def test_records_need_the_key_and_a_registered_model(api: httpx.Client) -> None:
    without_key = httpx.get(f"{api.base_url}/models/wet/predictions")
    unknown = api.get("/models/nobody/predictions")

    assert without_key.status_code == 401
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-model")


@pytest.mark.filterwarnings("ignore:jsonschema.exceptions.RefResolutionError:DeprecationWarning")
def test_responses_to_any_query_conform_to_the_documentation(api: httpx.Client) -> None:
    address, path = str(api.base_url).rstrip("/"), "/models/wet/predictions"

    fuzz(address, path, GenerationMode.POSITIVE, lambda status: status in (200, 422))  # years beyond those of Python
    fuzz(address, path, GenerationMode.NEGATIVE, lambda status: status < 500)


@pytest.mark.parametrize(("days", "kept"), [("5", 6), ("0", 0)])  # the day of the fifth day's end is kept
def test_records_that_are_too_old_are_deleted(
    mlflow_address: str, database: str, tmp_path: Path, days: str, kept: int
) -> None:
    program = (
        "INSERT INTO predictions (at, model, version, inputs, outputs) "
        "SELECT now() - make_interval(days => d), 'old', 1, '{}', '{}' FROM generate_series(9, 0, -1) AS d"
    )
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database, "SERVING_KEEP_DAYS": days}

    def number() -> int:
        cursor.execute("SELECT count(*) FROM predictions WHERE model = 'old'")
        return int(cursor.fetchone()[0])

    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("TRUNCATE predictions")
        today = datetime.now(UTC).date()
        with closing(RecordStore(database)) as store:
            store.add_partitions([today - timedelta(days=days) for days in range(10)])
        cursor.execute(program)
        with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
            wait_until(lambda: number() == kept, 30, "the deletion of old records")
            wait_for(api, "wet", 1)
            predict(api, "wet", DAY)
            listed = api.get("/models/wet/predictions")
            metrics = api.get("/metrics").text

    is_recording = kept > 0
    assert listed.status_code == (200 if is_recording else 404)
    assert is_recording or listed.json()["code"] == "not-recorded"
    assert ("serving_records" in metrics) == is_recording


@contextmanager
def gated(mlflow_address: str, database: str, folder: Path) -> Iterator[tuple[Gate, httpx.Client]]:
    """Run a service whose way to the database is a gate, shut at first."""
    with Gate(database) as gate:
        url = gate.address.replace("http://", "postgresql://postgres@") + "/postgres"
        settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": url}
        with serving_server(folder, mlflow_address, **settings) as address, client(address) as api:
            wait_for(api, "wet", 1)
            yield gate, api


def test_records_are_queued_while_the_database_is_down(mlflow_address: str, database: str, tmp_path: Path) -> None:
    with gated(mlflow_address, database, tmp_path) as (gate, api):
        wait_until(lambda: metric(api, "serving_records_up") == 0, 30, "the outage of the database")
        predict(api, "wet", DAY | {"rain": 41.0})
        down = api.get("/models/wet/predictions")
        gate.open()
        wait_until(lambda: metric(api, "serving_records_waiting") == 0, 30, "an empty queue")
        first = records(api, "wet", limit=1000)[-1]["inputs"]["data"][0][0]
        gate.shut()
        for number in range(50):
            predict(api, "wet", DAY | {"rain": 100.0 + number})
        queued = metric(api, "serving_records_waiting")
        gate.open()
        wait_until(lambda: metric(api, "serving_records_waiting") == 0, 30, "an empty queue")
        seen = [record["inputs"]["data"][0][0] for record in records(api, "wet", limit=1000)]
        dropped, up = metric(api, 'serving_records_total{end="dropped"}'), metric(api, "serving_records_up")

    assert (down.status_code, down.json()["code"]) == (503, "records-down")
    assert first == 41.0
    assert queued > 0
    assert seen[-50:] == [100.0 + number for number in range(50)]
    assert (dropped, up) == (0, 1)


def test_records_beyond_the_queues_size_are_dropped_and_counted(
    mlflow_address: str, tmp_path: Path, database: str
) -> None:
    with gated(mlflow_address, database, tmp_path) as (gate, api):
        batch = [{"rain": float(n), "wind": 1.0} for n in range(10_000)]
        for _ in range(25):
            predict(api, "wet", batch)
        dropped = metric(api, 'serving_records_total{end="dropped"}')
        queued = metric(api, "serving_records_waiting")
        gate.open()
        wait_until(lambda: metric(api, "serving_records_waiting") == 0, 60, "an empty queue")
        written = metric(api, 'serving_records_total{end="written"}')

    assert dropped > 0
    assert 0 < queued < 25
    assert written == queued
    assert (tmp_path / "server.log").read_text().count("The queue of records is full") == 1


def test_a_share_of_the_requests_is_recorded_and_the_others_are_counted(
    mlflow_address: str, tmp_path: Path, database: str
) -> None:
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database, "SERVING_RECORDS_RATE": "0.25"}
    with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        for _ in range(200):
            predict(api, "wet", DAY)
        wait_until(lambda: metric(api, "serving_records_waiting") == 0, 30, "an empty queue")
        written, skipped = (metric(api, f'serving_records_total{{end="{end}"}}') for end in ("written", "skipped"))

    assert written + skipped == 200
    assert 20 < written < 90


def test_queued_records_are_written_at_shutdown(mlflow_address: str, tmp_path: Path, database: str) -> None:
    settings = {"SERVING_API_KEY": KEY, "SERVING_DATABASE_URL": database}
    with serving_server(tmp_path, mlflow_address, **settings) as address, client(address) as api:
        wait_for(api, "wet", 1)
        for number in range(20):
            predict(api, "wet", DAY | {"rain": 900.0 + number})

    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM predictions WHERE (inputs->'data'->0->>0)::float >= 900")
        assert cursor.fetchone() == (20,)


def test_records_of_former_releases_are_listed_as_they_were_stored(api: httpx.Client, database: str) -> None:
    about = {"place": "Seattle", "latitude": 47.6, "longitude": -122.3, "days": ["2026-11-22"]}
    with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO predictions (at, model, version, inputs, outputs, about)"
            " VALUES (now(), 'depth', 1, '{}', '{}', %s)",
            (json.dumps(about),),
        )

    record = records(api, "depth", limit=1000)[-1]

    assert record["about"] == about
    assert record_about(record) == ("Seattle", ["2026-11-22"])
