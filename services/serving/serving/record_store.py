"""The tables of records and labels in Postgres: a partition for each day (UTC), within a budget of bytes.

Old days are removed by dropping their partitions, which takes no longer for many records than for few and leaves no dead
rows behind.
"""

import io
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

log = logging.getLogger("serving")

# A dead server is noticed within seconds, also in the middle of a statement.
CONNECTION_OPTIONS: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=30s -c client_encoding=UTF8 -c timezone=UTC -c client_min_messages=warning",
    "application_name": "serving",
}
LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC)
LOCK_KEY = 7_261_903
"""Of the advisory lock under which processes change the schema one at a time."""

# The indexes find a model's records in the order of a page, those of a version by time, and forecasts, which are few among
# many other requests. Without a primary key, no page of a rare model is looked for among the ids of all models.
TABLE = """
CREATE SEQUENCE IF NOT EXISTS predictions_ids AS bigint;
CREATE TABLE IF NOT EXISTS predictions (
    id bigint NOT NULL DEFAULT nextval('predictions_ids'),
    at timestamptz NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    shadow boolean NOT NULL DEFAULT false,
    inputs json NOT NULL,
    outputs json NOT NULL,
    about json,
    prediction_id uuid,
    rows integer,
    classes json
) PARTITION BY RANGE (at);
CREATE INDEX IF NOT EXISTS predictions_by_model ON predictions (model, id);
CREATE INDEX IF NOT EXISTS predictions_by_version ON predictions (model, version, at);
CREATE INDEX IF NOT EXISTS predictions_about ON predictions (model, at) WHERE about IS NOT NULL;
CREATE INDEX IF NOT EXISTS predictions_by_prediction ON predictions (prediction_id) WHERE prediction_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS labels (
    at timestamptz NOT NULL,
    model text NOT NULL,
    prediction_id uuid NOT NULL,
    row integer NOT NULL,
    value jsonb NOT NULL,
    labeled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prediction_id, row, at)
) PARTITION BY RANGE (at);
CREATE INDEX IF NOT EXISTS labels_by_model ON labels (model, at);
"""
# A label has the time of its prediction: its partition is dropped with that of the records. Tables of former releases have
# no column for ids; to add it reads no row, and its index is empty.
HAS_NO_IDS = """
SELECT NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'prediction_id') FROM pg_class AS c
WHERE c.oid = to_regclass('predictions')
"""
ADD_IDS = """
SET LOCAL statement_timeout = 0;
ALTER TABLE {table} ADD COLUMN prediction_id uuid, ADD COLUMN rows integer, ADD COLUMN classes json;
"""
IS_FORMER_TABLE = "SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass('predictions')"
# The table of a former release becomes the oldest partition. Its rows are read once to check their time.
MIGRATE = f"""
SET LOCAL statement_timeout = 0;
ALTER TABLE predictions RENAME TO predictions_former;
ALTER TABLE predictions_former ALTER id DROP IDENTITY, DROP CONSTRAINT predictions_pkey,
    ADD COLUMN shadow boolean NOT NULL DEFAULT false;
{ADD_IDS.format(table="predictions_former")}
DROP INDEX IF EXISTS predictions_of_a_model;
{TABLE}
SELECT setval('predictions_ids', (SELECT coalesce(max(id), 0) + 1 FROM predictions_former), false);
DO $$ DECLARE until timestamptz := date_trunc('day', greatest(now(), (SELECT max(at) FROM predictions_former))) + '1 day';
BEGIN
    EXECUTE format('ALTER TABLE predictions ATTACH PARTITION predictions_former FOR VALUES FROM (MINVALUE) TO (%L)', until);
END $$;
"""  # noqa: S608 - constants only
COPY = "COPY predictions (at, model, version, shadow, inputs, outputs, about, prediction_id, rows, classes) FROM STDIN"
PARTITIONS = """
WITH parts AS (
    SELECT inhparent, c.oid::regclass::text AS name, pg_total_relation_size(c.oid) AS size,
        substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \\('([^']+)'\\)$$)::timestamptz AS until
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
    WHERE inhparent IN ('predictions'::regclass, 'labels'::regclass)
), labeled AS (SELECT * FROM parts WHERE inhparent = 'labels'::regclass)
SELECT parts.name, parts.size + coalesce(labeled.size, 0), until FROM parts LEFT JOIN labeled USING (until)
WHERE parts.inhparent = 'predictions'::regclass ORDER BY until
"""
LABEL_PARTITIONS = """
SELECT c.oid::regclass::text FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
WHERE inhparent = 'labels'::regclass
    AND substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \\('([^']+)'\\)$$)::timestamptz < %s
"""


@dataclass(frozen=True)
class Partition:
    """The records of a day, or of all days before the table had partitions."""

    name: str
    size: int
    """In bytes, with indexes, and with the labels of the day."""
    until: datetime
    """The first moment after it."""


class RecordStore:
    """A connection that writes records, for one thread; it is made on first use, and made again after `close`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._days: set[date] = set()
        """Those that are known to have a partition."""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, lines: Sequence[bytes], days: Collection[date]) -> None:
        """Insert records in one transaction.

        Args:
            lines: As `Record.line` makes them.
            days: The days (UTC) of the records.
        """
        self.add_partitions(days)
        text = b"".join(lines)
        with self.transaction() as cursor:
            cursor.copy_expert(COPY, io.BytesIO(text), size=len(text) + 1)  # the default size is 8 KiB

    def add_partitions(self, days: Collection[date]) -> None:
        """Make the partitions of some days, if they are missing."""
        for day in sorted(set(days) - self._days):
            bounds = f"FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
            for table in ("labels", "predictions"):
                try:
                    with self.transaction(alone=True) as cursor:
                        cursor.execute(f"CREATE TABLE IF NOT EXISTS {table}_{day:%Y%m%d} PARTITION OF {table} {bounds}")
                except psycopg2.errors.InvalidObjectDefinition:  # the partition of a former release has the day
                    pass
            self._days.add(day)

    def partitions(self) -> list[Partition]:
        """Return the partitions, oldest first."""
        with self.transaction() as cursor:
            cursor.execute(PARTITIONS)
            return [Partition(*row) for row in cursor.fetchall()]

    def prune(self, keep_days: int, max_bytes: int) -> list[Partition]:
        """Drop the partitions that are too old, and the oldest ones while all are larger than a budget.

        The newest day that has begun is kept, unless `keep_days` is 0.

        Returns:
            The partitions that are left, oldest first.
        """
        now, left = datetime.now(UTC), self.partitions()
        while left and (
            keep_days == 0
            or left[0].until <= now - timedelta(days=keep_days)
            or (left[0].until <= now and sum(partition.size for partition in left) > max_bytes)
        ):
            oldest = left.pop(0)
            with self.transaction(alone=True) as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {oldest.name}")
            self._days = set()
            log.info("Dropped the records before %s: %s MiB.", f"{oldest.until:%F}", oldest.size // 2**20)
        self._drop_labels(left[0].until if left else LAST_MOMENT)
        return left

    def _drop_labels(self, until: datetime) -> None:
        """Drop the labels of days whose records are gone: their partitions end before `until`."""
        with self.transaction() as cursor:
            cursor.execute(LABEL_PARTITIONS, (until,))
            names = [name for (name,) in cursor.fetchall()]
        for name in names:
            with self.transaction(alone=True) as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {name}")
            self._days = set()

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[Cursor]:
        """Yield a cursor in a transaction; no other process changes the schema meanwhile where `alone` is set."""
        if self._connection is None or self._connection.closed:
            self._days = set()
            self._connection = psycopg2.connect(self._url, **CONNECTION_OPTIONS)
            with self.transaction(alone=True) as cursor:
                for question, change in ((IS_FORMER_TABLE, MIGRATE), (HAS_NO_IDS, ADD_IDS.format(table="predictions"))):
                    cursor.execute(question)
                    if (cursor.fetchone() or (False,))[0]:
                        cursor.execute(change)
                cursor.execute(TABLE)
        with self._connection as connection, connection.cursor() as cursor:
            if alone:
                cursor.execute("SET LOCAL lock_timeout = '5s'; SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
            yield cursor
