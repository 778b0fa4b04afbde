"""What was predicted, kept in Postgres: written by a thread behind the answers, read back a page at a time.

An answer never waits for the database. Records wait for it in a queue of bounded size; a batch whose acknowledgement
was lost with the connection is written again, so that in rare cases a record is there twice.
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

from serving.model import Answer
from serving.problems import wrong_parameter
from serving.settings import Settings

log = logging.getLogger("serving")

MOST_BYTES = 32 * 2**20
"""What may wait while the database is down; more is dropped."""
BATCH_BYTES = 2**20
QUICK_ROWS = 32
"""More rows than this are made into text by the writing thread; fewer at once, which costs some microseconds."""
LINGER_SECONDS = 0.2
"""How long records gather before they are written together."""
PRUNE_SECONDS, PRUNED_AT_ONCE = 3600.0, 5000
LONGEST_PAUSE_SECONDS = 5.0
FLUSH_SECONDS = 5.0
ANSWER_BYTES = 8 * 2**20
"""Where a page of records ends early; each is as large as its request was."""

# A dead server is noticed within seconds, also in the middle of a statement.
CONNECTING: dict[str, Any] = {
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
# The oldest have the lowest ids, so that the time needs no index of its own.
PRUNE = """
DELETE FROM predictions WHERE at < now() - make_interval(days => %s)
    AND id IN (SELECT id FROM predictions ORDER BY id LIMIT %s)
"""
PAGE = """
SELECT id, at, version, inputs::text, outputs::text, about::text FROM predictions
WHERE model = %s AND id > %s AND at >= %s AND at < %s ORDER BY id LIMIT %s
"""


class RecordsDownError(Exception):
    """The database does not answer."""


@dataclass(frozen=True, slots=True)
class Record:
    """A request that was answered."""

    at: float
    """Seconds since the epoch."""
    model: str
    version: int
    names: Sequence[str]
    columns: Sequence[Sequence[Any]]
    """The inputs, by column in the order of `names`."""
    answer: Answer
    about: Mapping[str, Any] | None = None
    """What the rows are of, where the service itself made them."""

    def size(self) -> int:
        """Return about how many bytes of memory it takes."""
        rows = len(self.answer.said)
        width = len(self.columns) + 1 + (len(self.answer.probabilities[0]) if self.answer.probabilities else 0)
        texts = sum(len(cell) for column in self.columns for cell in column if isinstance(cell, str))
        return 1000 + (64 + 32 * rows) * width + texts

    def line(self) -> bytes:
        """Return it as a line of COPY's text format.

        Raises:
            TypeError: A value is none of JSON's.
        """
        answer = self.answer
        inputs = {"columns": self.names, "data": list(zip(*self.columns, strict=True))}
        if answer.probabilities is None:
            outputs = {"columns": ["prediction"], "data": [[said] for said in answer.said]}
        else:
            shares = answer.probabilities
            outputs = {
                "columns": ["prediction", *(f"probability_{n}" for n in range(len(shares[0])))],
                "data": [[said, *row] for said, row in zip(answer.said, shares, strict=True)],
            }
        about = _escape(orjson.dumps(self.about)) if self.about is not None else b"\\N"
        at = datetime.fromtimestamp(self.at, UTC).isoformat().encode()
        cells = (at, _escape(self.model.encode()), b"%d" % self.version)
        return b"\t".join((*cells, _escape(orjson.dumps(inputs)), _escape(orjson.dumps(outputs)), about)) + b"\n"


Waiting = tuple[int, bytes | Record]
"""A record on its way, as a line of COPY's or still to be made into one, and its size in bytes."""


def _escape(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


EVER = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


@dataclass(frozen=True)
class Page:
    """Which records are asked for."""

    after: int = 0
    since: datetime = EVER[0]
    until: datetime = EVER[1]
    limit: int = 100


def parse_page(given: Mapping[str, str]) -> Page:
    """Return what a request's parameters ask for.

    Raises:
        RequestError: One of them is wrong.
    """
    return Page(
        _number(given, "after", 0, (0, 2**63 - 1)),
        _moment(given, "since", EVER[0]),
        _moment(given, "until", EVER[1]),
        _number(given, "limit", 100, (1, 1000)),
    )


def _number(given: Mapping[str, str], name: str, without: int, bounds: tuple[int, int]) -> int:
    text = given.get(name, str(without))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not bounds[0] <= number <= bounds[1]:
        raise wrong_parameter(name, f"is a number from {bounds[0]} to {bounds[1]}")
    return number


def _moment(given: Mapping[str, str], name: str, without: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(given[name]) if name in given else without
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong_parameter(name, "is a date and time such as 2026-11-23T15:00:00Z") from None


class Recorder:
    """Takes records and writes them when it can. Without an address of a database, or for 0 days, it takes none."""

    def __init__(self, settings: Settings) -> None:
        url = settings.serving_database_url
        self._url = url.get_secret_value() if url else ""
        self._days = settings.serving_keep_days
        self.enabled = bool(self._url) and self._days > 0
        self.written = self.dropped = self.waiting = self._bytes = 0
        self.error: str | None = None
        """Why the database's last answer was none."""
        self._dropping = False
        self._queue: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._connection: Connection | None = None
        self._next_prune = 0.0

    def start(self) -> None:
        """Begin to write, and to delete what is too old: all of it where nothing is to be kept."""
        if self._url:
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, if the database answers, and end."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(FLUSH_SECONDS)
        if self.waiting:
            log.warning("%s predictions could not be recorded before the end.", self.waiting)

    def put(self, record: Record) -> None:
        """Take a record, or drop it where too many wait already; return at once."""
        if not self.enabled:
            return
        waiting: Waiting
        if len(record.answer.said) > QUICK_ROWS:
            waiting = record.size(), record
        elif line := self._line(record):
            waiting = len(line) + 100, line
        else:
            return
        with self._lock:
            full, first = self._bytes + waiting[0] > MOST_BYTES, not self._dropping
            if full:
                self.dropped += 1
                self._dropping = True
            else:
                self._queue.append(waiting)
                self.waiting += 1
                self._bytes += waiting[0]
        if full and first:
            log.error("Predictions are not recorded: too many wait for the database. /metrics counts them.")
        if not self._wake.is_set():
            self._wake.set()

    def _work(self) -> None:
        pause, batch = 0.0, list[Waiting]()
        while not (self._stop.is_set() and (self.error or not (batch or self._queue))):
            if not batch:
                self._wake.wait(max(0.0, self._next_prune - time.monotonic()))
                self._wake.clear()
            self._stop.wait(pause or LINGER_SECONDS)
            try:
                while batch := batch or self._take():
                    self._write([each for _, each in batch])
                    self._done(batch)
                    batch = []
                if time.monotonic() >= self._next_prune:
                    self._prune()
                pause = 0.0
                self._recovered()
            except psycopg2.Error as error:
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause or LINGER_SECONDS)
                self._failed(error)
            except Exception:  # the thread must outlive what nobody foresaw; the batch that it failed on must not
                log.exception("Recording failed")
                self._done(batch, lost=True)
                batch = []
        if self._connection is not None:
            self._connection.close()

    def _take(self) -> list[Waiting]:
        """Return the oldest records that fit a batch; they count as waiting until `_done`."""
        taken, size = list[Waiting](), 0
        with self._lock:
            while self._queue and size < BATCH_BYTES:
                taken.append(self._queue.popleft())
                size += taken[-1][0]
        return taken

    def _done(self, batch: Sequence[Waiting], *, lost: bool = False) -> None:
        with self._lock:
            self.waiting -= len(batch)
            self._bytes -= sum(size for size, _ in batch)
            if lost:
                self.dropped += len(batch)
            if self._dropping and not self.waiting:
                self._dropping = False
                log.info("Predictions are recorded again; %s were not, since the start.", self.dropped)

    def _write(self, batch: Sequence[bytes | Record]) -> None:
        made = (each if isinstance(each, bytes) else self._line(each) for each in batch)
        lines = [line for line in made if line]
        try:
            self._copy(lines)
        except psycopg2.DataError:  # one spoils no other
            for line in lines:
                try:
                    self._copy([line])
                except psycopg2.DataError as error:
                    self._refuse(error)

    def _copy(self, lines: Sequence[bytes]) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            text = b"".join(lines)
            cursor.copy_expert(COPY, io.BytesIO(text), size=len(text) + 1)  # by default in pieces of 8 KiB
        self.written += len(lines)

    def _line(self, record: Record) -> bytes | None:
        try:
            return record.line()
        except (TypeError, ValueError) as error:  # what JSON cannot hold, such as an integer of 70 bits
            self._refuse(error)
            return None

    def _refuse(self, error: Exception) -> None:
        with self._lock:
            self.dropped += 1
        log.error("A prediction cannot be recorded: %s", str(error).partition("\n")[0])

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg2.connect(self._url, **CONNECTING)
            with self._connection as connection, connection.cursor() as cursor:
                cursor.execute(TABLE)
        return self._connection

    def _prune(self) -> None:
        deleted = PRUNED_AT_ONCE
        while deleted == PRUNED_AT_ONCE:
            with self._connect() as connection, connection.cursor() as cursor:
                cursor.execute(PRUNE, (self._days, PRUNED_AT_ONCE))
                deleted = cursor.rowcount
        self._next_prune = time.monotonic() + PRUNE_SECONDS

    def _failed(self, error: psycopg2.Error) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        if self.error is None:
            log.warning("The database of predictions does not do as asked; records wait: %s", said)
        self.error = said

    def _recovered(self) -> None:
        if self.error is not None:
            self.error = None
            log.info("The database of predictions answers again.")

    def page(self, model: str, asked: Page) -> tuple[list[dict[str, Any]], int | None]:
        """Return a model's records with ids beyond `after`, in their order, and the last id where more may follow.

        Those from `since` on and before `until`; at most `limit`, and fewer where they are large.

        Raises:
            RecordsDownError: The database does not answer.
        """
        found: list[dict[str, Any]] = []
        size = 0
        try:
            with closing(psycopg2.connect(self._url, **CONNECTING)) as connection, connection.cursor("page") as cursor:
                cursor.itersize = 20
                cursor.execute(PAGE, (model, asked.after, asked.since, asked.until, asked.limit))
                for number, at, version, *texts in cursor:
                    size += sum(len(text or "") for text in texts)
                    inputs, outputs, about = (None if text is None else orjson.Fragment(text) for text in texts)
                    said = {"id": number, "at": _utc(at), "version": version}
                    found.append({**said, "inputs": inputs, "outputs": outputs, "about": about})
                    if size > ANSWER_BYTES:
                        break
        except psycopg2.errors.UndefinedTable:  # the first record is still to come
            return [], None
        except psycopg2.Error as error:
            raise RecordsDownError(str(error).strip().partition("\n")[0]) from error
        more = len(found) == asked.limit or size > ANSWER_BYTES
        return found, found[-1]["id"] if more else None


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
