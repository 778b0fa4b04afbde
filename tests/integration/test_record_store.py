"""The table of records in a real Postgres: partitions, budget, migration, and the indexes of its queries."""

import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import psycopg2
import pytest
from psycopg2.extensions import cursor as Cursor
from serving.batches import Predictions
from serving.prediction_id import make_id
from serving.record import Record
from serving.record_pages import Selection, newest_query, page_query, read_page, read_sample, sample_query
from serving.record_store import RecordStore

from trainyard.contract import record_about

TODAY = datetime.now(UTC).date()
MODEL = "wet"
FORMER_TABLE = """
CREATE TABLE predictions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL, model text NOT NULL,
    version integer NOT NULL, inputs json NOT NULL, outputs json NOT NULL, about json
);
CREATE INDEX predictions_of_a_model ON predictions (model, at);
INSERT INTO predictions (at, model, version, inputs, outputs, about)
    SELECT now() - make_interval(days => d), 'wet', 1, '{}', '{}', '{"place": "Seattle", "days": ["2026-11-22"]}'
    FROM generate_series(9, 0, -1) AS d
"""


@pytest.fixture
def cursor(database: str) -> Iterator[Cursor]:
    """A cursor of the database, in which no table is left from another test."""
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("DROP TABLE IF EXISTS predictions, labels; DROP SEQUENCE IF EXISTS predictions_ids")
        yield cursor


@pytest.fixture
def store(database: str, cursor: Cursor) -> Iterator[RecordStore]:
    """A store of an empty database."""
    store = RecordStore(database)
    yield store
    store.close()


def days_ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def make_record(day: date = TODAY, number: float = 0.0, **fields: Any) -> Record:
    at = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + number
    record = Record(at, MODEL, 1, ["rain"], [[number]], Predictions([True], [[0.25, 0.75]]))
    return replace(record, **fields)


def write(store: RecordStore, *records: Record) -> None:
    store.write(
        [record.line() for record in records], {datetime.fromtimestamp(record.at, UTC).date() for record in records}
    )


def names(store: RecordStore) -> list[str]:
    return [partition.name for partition in store.partitions()]


def name_of(day: date) -> str:
    return f"predictions_{day:%Y%m%d}"


def test_each_day_has_a_partition(store: RecordStore) -> None:
    write(store, make_record(), make_record(days_ago(3)))

    assert names(store) == [name_of(days_ago(3)), name_of(TODAY)]


def test_days_that_are_too_old_are_dropped(store: RecordStore, database: str) -> None:
    write(store, *(make_record(days_ago(days)) for days in range(9)))
    left = store.prune(keep_days=5, max_bytes=2**40)
    found, _ = read_page(database, Selection(MODEL), 0, 100)

    assert (
        [partition.name for partition in left] == names(store) == [name_of(days_ago(days)) for days in range(5, -1, -1)]
    )
    assert len(found) == 6


def test_without_days_to_keep_everything_is_dropped(store: RecordStore) -> None:
    write(store, make_record(), make_record(days_ago(1)))

    left = store.prune(keep_days=0, max_bytes=2**40)

    assert (left, names(store)) == ([], [])


def test_the_oldest_days_are_dropped_while_the_budget_is_exceeded(store: RecordStore) -> None:
    for days in range(4):
        write(store, *(make_record(days_ago(days), number) for number in range(400)))
    *_, newest = store.partitions()
    left = store.prune(keep_days=30, max_bytes=2 * newest.size + newest.size // 2)

    assert [partition.name for partition in left] == [name_of(days_ago(1)), name_of(TODAY)]
    assert [partition.name for partition in store.prune(keep_days=30, max_bytes=1)] == [name_of(TODAY)]


def test_a_day_is_recorded_again_after_its_partition_was_dropped(store: RecordStore) -> None:
    write(store, make_record(days_ago(9)))
    store.prune(keep_days=5, max_bytes=2**40)
    write(store, make_record(days_ago(9)))

    assert names(store) == [name_of(days_ago(9))]


def test_two_services_make_the_table_and_its_partitions_at_once(database: str, store: RecordStore) -> None:
    other = RecordStore(database)
    with closing(other):
        for days in range(3):
            write(store, make_record(days_ago(days)))
            write(other, make_record(days_ago(days)))

    assert len(names(store)) == 3


def test_records_of_former_releases_become_the_oldest_partition(database: str, cursor: Cursor) -> None:
    cursor.execute(FORMER_TABLE)
    store = RecordStore(database)
    with closing(store):
        store.add_partitions([TODAY, TODAY + timedelta(days=1)])
        write(store, make_record(number=time.time() % 86_400), make_record(TODAY + timedelta(days=1)))
        found, _ = read_page(database, Selection(MODEL), 0, 100)
        kept = names(store)
        left = store.prune(keep_days=1, max_bytes=1)

    assert [record["id"] for record in found] == list(range(1, 13))
    assert not any(record["shadow"] for record in found)
    assert record_about(orjson.loads(orjson.dumps(found[0]))) == ("Seattle", ["2026-11-22"])
    assert kept == ["predictions_former", name_of(TODAY + timedelta(days=1))]
    assert [partition.name for partition in left] == kept, "it holds today's records"


def test_partitions_of_former_releases_get_a_column_for_ids(database: str, cursor: Cursor, store: RecordStore) -> None:
    write(store, make_record(days_ago(1)))
    cursor.execute(
        "DROP TABLE labels; ALTER TABLE predictions DROP COLUMN prediction_id, DROP COLUMN rows, DROP COLUMN classes"
    )
    store.close()
    write(store, make_record(prediction_id=make_id(), classes=[False, True]))
    found, _ = read_page(database, Selection(MODEL), 0, 10)

    before, after = orjson.loads(orjson.dumps(found))
    assert (before["prediction_id"], before["classes"], before["labels"]) == (None, None, None)
    assert (len(after["prediction_id"]), after["classes"]) == (36, [False, True])


def test_shadow_records_are_listed_apart(store: RecordStore, database: str) -> None:
    write(store, make_record(version=1), make_record(version=2, shadow=True))
    answered, _ = read_page(database, Selection(MODEL), 0, 10)
    shadow, _ = read_page(database, Selection(MODEL, shadow=True), 0, 10)

    assert [(record["version"], record["shadow"]) for record in answered] == [(1, False)]
    assert [(record["version"], record["shadow"]) for record in shadow] == [(2, True)]


def test_records_are_selected_by_version_and_by_whether_they_are_forecasts(store: RecordStore, database: str) -> None:
    forecast = make_record(about={"subject": "Seattle", "times": ["2026-11-22"]}, version=2)
    write(store, make_record(), make_record(version=2), forecast)

    def ids(**fields: Any) -> list[int]:
        return [record["id"] for record in read_page(database, Selection(MODEL, **fields), 0, 10)[0]]

    assert ids(version=2) == [2, 3]
    assert ids(about=True) == [3]
    assert ids(about=False, version=2) == [2]


def test_a_sample_is_spread_over_the_period(store: RecordStore, database: str) -> None:
    for days in range(10, 0, -1):
        write(store, *(make_record(days_ago(days), number * 60.0) for number in range(500)))
    since, until = (datetime(day.year, day.month, day.day, tzinfo=UTC) for day in (days_ago(10), TODAY))
    sample = read_sample(database, Selection(MODEL, since=since, until=until), 100)
    everything = read_sample(database, Selection(MODEL, since=since, until=until), 5000)
    dates = [record["at"][:10] for record in sample]

    assert len(everything) == 5000
    assert 10 * 3 <= len(sample) <= 100
    assert len(set(dates)) == 10
    assert dates == sorted(dates)


def test_no_query_scans_a_partition(store: RecordStore, cursor: Cursor) -> None:
    for days in range(3):
        write(store, *(make_record(days_ago(days), number, model=f"model {number % 7:.0f}") for number in range(4000)))
    cursor.execute("ANALYZE predictions")
    since = datetime.now(UTC) - timedelta(days=30)
    rare = Selection("rare", since=since)
    queries = {
        "page": page_query(rare, 0, 1000),
        "page of a busy model": page_query(Selection("model 1", since=since), 5000, 100),
        "page of a version": page_query(replace(rare, version=2), 0, 1000),
        "forecasts": newest_query(replace(rare, about=True), 1000),
        "labeled": newest_query(replace(rare, labeled=True), 1000),
        "newest": newest_query(replace(rare, version=2), 1000),
        "sample": sample_query(replace(rare, version=2, until=datetime.now(UTC)), 1000),
        "sample of forecasts": sample_query(replace(rare, about=True, until=datetime.now(UTC)), 1000),
    }

    for name, (query, values) in queries.items():
        cursor.execute(f"EXPLAIN {query}", values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "Index Scan" in plan or "Bitmap" in plan, f"{name}: {plan}"
        assert "Seq Scan" not in plan, f"{name}: {plan}"
        assert not re.search(r"predictions\w*_pkey", plan), f"{name} reads other models' records: {plan}"
