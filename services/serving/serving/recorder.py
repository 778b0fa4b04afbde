"""Recorded predictions in Postgres: written by a background thread, read a page at a time.

A response never waits for the database. Records are queued in bounded memory; a batch whose acknowledgement was lost
with the connection is written again, so that in rare cases a record is stored twice.
"""

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg2
from psycopg2.extensions import connection as Connection

from serving.errors import RecordsUnavailableError
from serving.model import Predictions
from serving.settings import Settings
from trainyard.contract import Column, Table
from trainyard.contract import Record as RecordFields

log = logging.getLogger("serving")

MAX_QUEUE_BYTES = 32 * 2**20
"""Size of the queue while the database is down; further records are dropped."""
BATCH_BYTES = 2**20
QUICK_ROWS = 32
"""Records with more rows are serialized by the writing thread; others at once, which takes microseconds."""
LINGER_SECONDS = 0.2
"""How long records are collected for a batch."""
PRUNE_SECONDS, PRUNE_ROWS = 3600.0, 5000
MAX_BACKOFF_SECONDS = 5.0
FLUSH_SECONDS = 5.0
"""Time to write queued records at shutdown."""
MAX_PAGE_BYTES = 8 * 2**20
"""Size at which a page of records ends early; a record is as large as its request was."""

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
TABLE = """
CREATE TABLE IF NOT EXISTS predictions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    inputs json NOT NULL,
    outputs json NOT NULL,
    about json
);
CREATE INDEX IF NOT EXISTS predictions_of_a_model ON predictions (model, at);
"""
COPY = "COPY predictions (at, model, version, inputs, outputs, about) FROM STDIN"
# The oldest rows have the lowest ids, so `at` needs no index of its own.
PRUNE = """
DELETE FROM predictions WHERE at < now() - make_interval(days => %s)
    AND id IN (SELECT id FROM predictions ORDER BY id LIMIT %s)
"""
PAGE = """
SELECT id, at, version, inputs::text, outputs::text, about::text FROM predictions
WHERE model = %s AND id > %s AND at >= %s AND at < %s ORDER BY id LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A request that was answered with predictions."""

    at: float
    """Seconds since the epoch."""
    model: str
    version: int
    names: Sequence[str]
    columns: Sequence[Sequence[Any]]
    """The inputs, by column in the order of `names`."""
    predictions: Predictions
    about: Mapping[str, Any] | None = None
    """What the rows are about, where a hook made them (`trainyard.contract.Record`)."""

    def size(self) -> int:
        """Return about how many bytes of memory it takes."""
        probabilities = self.predictions.probabilities
        rows = len(self.predictions.values)
        width = len(self.columns) + 1 + (len(probabilities[0]) if probabilities else 0)
        texts = sum(len(cell) for column in self.columns for cell in column if isinstance(cell, str))
        return 1000 + (64 + 32 * rows) * width + texts

    def line(self) -> bytes:
        """Return it as a line of COPY's text format.

        Raises:
            TypeError: JSON cannot hold a value.
        """
        values, probabilities = self.predictions.values, self.predictions.probabilities
        inputs = {Table.COLUMNS: self.names, Table.DATA: list(zip(*self.columns, strict=True))}
        if probabilities is None:
            outputs = {Table.COLUMNS: [Column.PREDICTION], Table.DATA: [[value] for value in values]}
        else:
            classes = range(len(probabilities[0]))
            outputs = {
                Table.COLUMNS: [Column.PREDICTION, *(f"{RecordFields.PROBABILITY_PREFIX}{n}" for n in classes)],
                Table.DATA: [[value, *row] for value, row in zip(values, probabilities, strict=True)],
            }
        about = _escape(orjson.dumps(self.about)) if self.about is not None else b"\\N"
        at = datetime.fromtimestamp(self.at, UTC).isoformat().encode()
        cells = (at, _escape(self.model.encode()), b"%d" % self.version)
        return b"\t".join((*cells, _escape(orjson.dumps(inputs)), _escape(orjson.dumps(outputs)), about)) + b"\n"


Queued = tuple[int, bytes | Record]
"""A queued record, serialized as a line of COPY or not yet, and its size in bytes."""


def _escape(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


FIRST_MOMENT, LAST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Page:
    """A selection of records."""

    after: int = 0
    """The id of the last record of the page before."""
    since: datetime = FIRST_MOMENT
    until: datetime = LAST_MOMENT
    """The first moment after the period."""
    limit: int = 100


class Recorder:
    """Queues records and writes them in batches. It records nothing without a database or with 0 days to keep them."""

    def __init__(self, settings: Settings) -> None:
        url = settings.serving_database_url
        self._url = url.get_secret_value() if url else ""
        self._days = settings.serving_keep_days
        self.enabled = bool(self._url) and self._days > 0
        self.written = self.dropped = self.queued = self._bytes = 0
        self.error: str | None = None
        """Why the last statement failed, or None if it succeeded."""
        self._dropping = False
        self._queue: deque[Queued] = deque()
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._connection: Connection | None = None
        self._next_prune = 0.0

    def start(self) -> None:
        """Start to write records and to delete those that are too old."""
        if self._url:
            self._thread.start()

    def stop(self) -> None:
        """Flush the queue, if the database answers, and stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(FLUSH_SECONDS)
        if self.queued:
            log.warning("%s predictions could not be recorded before the shutdown.", self.queued)

    def put(self, record: Record) -> None:
        """Queue a record, or drop it if the queue is full; return at once."""
        if not self.enabled:
            return
        queued: Queued
        if len(record.predictions.values) > QUICK_ROWS:
            queued = record.size(), record
        elif line := self._line(record):
            queued = len(line) + 100, line
        else:
            return
        with self._lock:
            full, first = self._bytes + queued[0] > MAX_QUEUE_BYTES, not self._dropping
            if full:
                self.dropped += 1
                self._dropping = True
            else:
                self._queue.append(queued)
                self.queued += 1
                self._bytes += queued[0]
        if full and first:
            log.error("The queue of records is full: predictions are not recorded. /metrics counts them.")
        if not self._wake.is_set():
            self._wake.set()

    def _work(self) -> None:
        pause, batch = 0.0, list[Queued]()
        while not (self._stop.is_set() and (self.error or not (batch or self._queue))):
            if not batch:
                self._wake.wait(max(0.0, self._next_prune - time.monotonic()))
                self._wake.clear()
            self._stop.wait(pause or LINGER_SECONDS)
            try:
                while batch := batch or self._take_batch():
                    self._write([record for _, record in batch])
                    self._done(batch)
                    batch = []
                if time.monotonic() >= self._next_prune:
                    self._prune()
                pause = 0.0
                self._note_recovery()
            except psycopg2.Error as error:
                pause = min(MAX_BACKOFF_SECONDS, 2 * pause or LINGER_SECONDS)
                self._note_failure(error)
            except Exception:  # the thread must survive any bug; the batch that caused it is dropped
                log.exception("Recording failed")
                self._done(batch, lost=True)
                batch = []
        if self._connection is not None:
            self._connection.close()

    def _take_batch(self) -> list[Queued]:
        """Return the oldest records that fit a batch; they count as queued until `_done`."""
        batch, size = list[Queued](), 0
        with self._lock:
            while self._queue and size < BATCH_BYTES:
                batch.append(self._queue.popleft())
                size += batch[-1][0]
        return batch

    def _done(self, batch: Sequence[Queued], *, lost: bool = False) -> None:
        with self._lock:
            self.queued -= len(batch)
            self._bytes -= sum(size for size, _ in batch)
            if lost:
                self.dropped += len(batch)
            if self._dropping and not self.queued:
                self._dropping = False
                log.info("Predictions are recorded again; %s were dropped since the start.", self.dropped)

    def _write(self, batch: Sequence[bytes | Record]) -> None:
        serialized = (record if isinstance(record, bytes) else self._line(record) for record in batch)
        lines = [line for line in serialized if line]
        try:
            self._copy(lines)
        except psycopg2.DataError:  # write each by itself, so that only the wrong one is dropped
            for line in lines:
                try:
                    self._copy([line])
                except psycopg2.DataError as error:
                    self._drop(error)

    def _copy(self, lines: Sequence[bytes]) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            text = b"".join(lines)
            cursor.copy_expert(COPY, io.BytesIO(text), size=len(text) + 1)  # the default size is 8 KiB
        self.written += len(lines)

    def _line(self, record: Record) -> bytes | None:
        try:
            return record.line()
        except (TypeError, ValueError) as error:  # JSON cannot hold it, such as an integer of 70 bits
            self._drop(error)
            return None

    def _drop(self, error: Exception) -> None:
        with self._lock:
            self.dropped += 1
        log.error("A prediction cannot be recorded: %s", str(error).partition("\n")[0])

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg2.connect(self._url, **CONNECTION_OPTIONS)
            with self._connection as connection, connection.cursor() as cursor:
                cursor.execute(TABLE)
        return self._connection

    def _prune(self) -> None:
        deleted = PRUNE_ROWS
        while deleted == PRUNE_ROWS:
            with self._connect() as connection, connection.cursor() as cursor:
                cursor.execute(PRUNE, (self._days, PRUNE_ROWS))
                deleted = cursor.rowcount
        self._next_prune = time.monotonic() + PRUNE_SECONDS

    def _note_failure(self, error: psycopg2.Error) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if self.error is None:
            log.warning("The database of predictions does not answer; records are queued: %s", reason)
        self.error = reason

    def _note_recovery(self) -> None:
        if self.error is not None:
            self.error = None
            log.info("The database of predictions answers again.")

    def page(self, model: str, page: Page) -> tuple[list[dict[str, Any]], int | None]:
        """Return a page of a model's records in the order of their ids, and the last id if more may follow.

        It has fewer than `limit` records where they are large.

        Raises:
            RecordsUnavailableError: The database does not answer.
        """
        found: list[dict[str, Any]] = []
        size = 0
        try:
            with (
                closing(psycopg2.connect(self._url, **CONNECTION_OPTIONS)) as connection,
                connection.cursor("page") as cursor,
            ):
                cursor.itersize = 20
                cursor.execute(PAGE, (model, page.after, page.since, page.until, page.limit))
                for number, at, version, *texts in cursor:
                    size += sum(len(text or "") for text in texts)
                    inputs, outputs, about = (None if text is None else orjson.Fragment(text) for text in texts)
                    found.append(
                        {
                            "id": number,
                            "at": _utc(at),
                            "version": version,
                            "inputs": inputs,
                            "outputs": outputs,
                            RecordFields.ABOUT: about,
                        }
                    )
                    if size > MAX_PAGE_BYTES:
                        break
        except psycopg2.errors.UndefinedTable:  # nothing was recorded yet
            return [], None
        except psycopg2.Error as error:
            raise RecordsUnavailableError(str(error).strip().partition("\n")[0]) from error
        more = len(found) == page.limit or size > MAX_PAGE_BYTES
        return found, found[-1]["id"] if more else None


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
