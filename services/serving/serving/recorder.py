"""Record predictions in Postgres from a background thread.

A response never waits for the database. Records are queued in bounded memory; a batch whose acknowledgement was lost
with the connection is written again, so that in rare cases a record is stored twice.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import psycopg2

from serving.labels import Recorded
from serving.record import Record
from serving.record_budget import RecordBudget
from serving.record_store import RecordStore
from serving.settings import Settings

log = logging.getLogger("serving")

MAX_QUEUE_BYTES = 32 * 2**20
"""Size of the queue while the database is down; further records are dropped."""
BATCH_BYTES = 2**20
QUICK_ROWS = 32
"""Records with more rows are serialized by the writing thread; others at once, which takes microseconds."""
LINGER_SECONDS = 0.2
"""How long records are collected for a batch."""
PRUNE_SECONDS = 60.0
"""How often the records' size is compared with the budget."""
MAX_BACKOFF_SECONDS = 5.0
FLUSH_SECONDS = 5.0
"""Time to write queued records at shutdown."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A record in the queue."""

    size: int
    """In bytes of memory."""
    day: date
    """In UTC."""
    content: bytes | Record
    """Serialized as a line of COPY, or not yet."""
    labeled_as: tuple[int, Recorded] | None
    """The id and what labels must fit, where a caller knows the id."""


class Recorder:
    """Queues records and writes them in batches. It records nothing without a database or with 0 days to keep them."""

    def __init__(self, settings: Settings) -> None:
        url = settings.serving_database_url
        self.url = url.get_secret_value() if url else ""
        self._days = settings.serving_keep_days
        self.enabled = bool(self.url) and self._days > 0
        self._budget = RecordBudget(settings.serving_records_max_bytes, settings.serving_records_rate)
        self._store = RecordStore(self.url)
        self.written = self.dropped = self.skipped = self.queued = self._bytes = 0
        """Numbers of records. Skipped ones were left out by the sampling rate or the budget."""
        self.error: str | None = None
        """Why the last statement failed, or None if it succeeded."""
        self._dropping = False
        self._queue: deque[Queued] = deque()
        self._waiting: dict[int, Recorded] = {}
        """By id, the predictions whose records are queued: a label may arrive before the record is written."""
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._next_prune = 0.0

    def start(self) -> None:
        """Start to write records and to drop those that are too old or too many."""
        if self.url:
            self._thread.start()

    def stop(self) -> None:
        """Flush the queue, if the database answers, and stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(FLUSH_SECONDS)
        if self.queued:
            log.warning("%s predictions could not be recorded before the shutdown.", self.queued)

    def put(self, record: Record) -> bool:
        """Queue a record, or drop it if the queue is full; return at once, whether it is recorded."""
        if not self.enabled:
            return False
        if not self._budget.admits(self._bytes, is_forecast=record.about is not None):
            with self._lock:
                self.skipped += 1
            return False
        day = datetime.fromtimestamp(record.at, UTC).date()
        key = None
        if record.prediction_id is not None and not record.shadow:
            key = record.prediction_id, Recorded(record.model, record.rows, record.classes)
        if record.rows > QUICK_ROWS:
            queued = Queued(record.size(), day, record, key)
        elif line := self._line(record):
            queued = Queued(len(line) + 100, day, line, key)
        else:
            return False
        with self._lock:
            full, first = self._bytes + queued.size > MAX_QUEUE_BYTES, not self._dropping
            if full:
                self.dropped += 1
                self._dropping = True
            else:
                self._queue.append(queued)
                self.queued += 1
                self._bytes += queued.size
                if key:
                    self._waiting[key[0]] = key[1]
        if full and first:
            log.error("The queue of records is full: predictions are not recorded. /metrics counts them.")
        if not self._wake.is_set():
            self._wake.set()
        return not full

    def find_queued(self, ids: Iterable[int]) -> dict[int, Recorded]:
        """Return those of some predictions whose records are not written yet."""
        with self._lock:
            return {each: self._waiting[each] for each in ids if each in self._waiting}

    def _work(self) -> None:
        pause, batch = 0.0, list[Queued]()
        while not (self._stop.is_set() and (self.error or not (batch or self._queue))):
            if not batch:
                self._wake.wait(max(0.0, self._next_prune - time.monotonic()))
                self._wake.clear()
            self._stop.wait(pause or LINGER_SECONDS)
            try:
                while batch := batch or self._take_batch():
                    self._write(batch)
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
        self._store.close()

    def _take_batch(self) -> list[Queued]:
        """Return the oldest records that fit a batch; they count as queued until `_done`."""
        batch, size = list[Queued](), 0
        with self._lock:
            while self._queue and size < BATCH_BYTES:
                batch.append(self._queue.popleft())
                size += batch[-1].size
        return batch

    def _done(self, batch: Sequence[Queued], *, lost: bool = False) -> None:
        with self._lock:
            self.queued -= len(batch)
            self._bytes -= sum(queued.size for queued in batch)
            for queued in batch:
                if queued.labeled_as:
                    self._waiting.pop(queued.labeled_as[0], None)
            if lost:
                self.dropped += len(batch)
            if self._dropping and not self.queued:
                self._dropping = False
                log.info("Predictions are recorded again; %s were dropped since the start.", self.dropped)

    def _write(self, batch: Sequence[Queued]) -> None:
        contents = ((queued.content, queued.day) for queued in batch)
        serialized = [(each if isinstance(each, bytes) else self._line(each), day) for each, day in contents]
        lines = [(line, day) for line, day in serialized if line]
        try:
            self._insert(lines)
        except psycopg2.DataError:  # write each by itself, so that only the wrong one is dropped
            for line in lines:
                try:
                    self._insert([line])
                except psycopg2.DataError as error:
                    self._drop(error)

    def _insert(self, lines: Sequence[tuple[bytes, date]]) -> None:
        self._store.write([line for line, _ in lines], {day for _, day in lines})
        self._budget.count(sum(len(line) for line, _ in lines))
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

    def _prune(self) -> None:
        today = datetime.now(UTC).date()
        if self.enabled:
            self._store.add_partitions([today, today + timedelta(days=1)])
        partitions = self._store.prune(self._days, self._budget.max_bytes)
        midnight = datetime(today.year, today.month, today.day, tzinfo=UTC) + timedelta(days=1)
        self._budget.measure(sum(each.size for each in partitions if each.until == midnight))
        self._next_prune = time.monotonic() + PRUNE_SECONDS

    def _note_failure(self, error: psycopg2.Error) -> None:
        self._store.close()
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if self.error is None:
            log.warning("The database of predictions does not answer; records are queued: %s", reason)
        self.error = reason

    def _note_recovery(self) -> None:
        if self.error is not None:
            self.error = None
            log.info("The database of predictions answers again.")
