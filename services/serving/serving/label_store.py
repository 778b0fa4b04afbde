"""Store labels beside the records of their predictions; one transaction for each request, so that all or none are stored."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg2

from serving.admission import overloaded
from serving.errors import RecordsUnavailableError
from serving.labels import Given, Label, Recorded, as_columns, check_labels
from serving.prediction_id import is_recorded, moment_of, parse_id, to_text
from serving.record_store import RecordStore
from serving.recorder import Recorder

T = TypeVar("T")

# The ids tell the days, so that only their partitions are searched.
KNOWN = """
SELECT prediction_id::text, model, rows, classes FROM predictions
WHERE prediction_id = ANY(%s::uuid[]) AND at BETWEEN %s AND %s AND NOT shadow
"""
# Equal labels are left as they are: posting them again writes nothing.
STORE = """
INSERT INTO labels (at, model, prediction_id, row, value)
SELECT at, %s, id, row, value::jsonb
FROM unnest(%s::timestamptz[], %s::uuid[], %s::integer[], %s::text[]) AS given (at, id, row, value)
ON CONFLICT (prediction_id, row, at) DO UPDATE SET value = excluded.value, labeled_at = excluded.labeled_at
WHERE labels.value <> excluded.value
"""
MAX_WAITING = 16
"""Requests with labels that are not answered yet; each holds its body in memory."""
MAX_ATTEMPTS = 2
"""A connection that the database has closed meanwhile is noticed at its next use only; labels may be stored again."""


class LabelStore:
    """Stores labels, for one request at a time, in a thread of its own."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._store = RecordStore(recorder.url)
        self._thread = ThreadPoolExecutor(1, "labels")
        self._waiting = 0
        self.stored = 0
        """Labels that were new or corrected another one."""

    def stop(self) -> None:
        """Finish the requests that have begun, and close the connection."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    async def run(self, task: Callable[[], T]) -> T:
        """Return what a task returns that reads and adds labels, from the thread.

        Raises:
            RequestError: Too many tasks wait, or the task raises it.
        """
        if self._waiting >= MAX_WAITING:
            raise overloaded("Too many requests with labels wait for the database. Try again later.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, task)
        finally:
            self._waiting -= 1

    def add(self, model: str, given: Given) -> dict[str, int]:
        """Store labels; one for the same row as an earlier one replaces it. It runs in the thread.

        Returns:
            `stored`, those that are new or correct another one; `unchanged`, those that were stored before;
            `not_recorded`, those of predictions that are not recorded.

        Raises:
            RequestError: A label does not fit its prediction, or there is no such prediction.
            RecordsUnavailableError: The database does not answer.
        """
        attempt = 1
        while True:
            try:
                return self._add(model, given)
            except psycopg2.Error as error:
                self._store.close()
                is_lost = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
                if not is_lost or attempt == MAX_ATTEMPTS:
                    raise RecordsUnavailableError(str(error).strip().partition("\n")[0]) from error
                attempt += 1

    def _add(self, model: str, given: Given) -> dict[str, int]:
        labels, unrecorded = check_labels(given, self._find({label.prediction_id for label in given.labels}), model)
        changed = self._write(model, labels) if labels else 0
        self.stored += changed
        return {"stored": changed, "unchanged": len(labels) - changed, "not_recorded": unrecorded}

    def _find(self, ids: Collection[int]) -> Mapping[int, Recorded]:
        """Return the recorded predictions among some, also those whose records are still queued."""
        ids = [each for each in ids if is_recorded(each)]
        # The queue first: a record that leaves it meanwhile is in the database by then.
        queued = self._recorder.find_queued(ids)
        wanted = [each for each in ids if each not in queued]
        if not wanted:
            return queued
        moments = [moment_of(each) for each in (min(wanted), max(wanted))]
        with self._store.transaction() as cursor:
            cursor.execute(KNOWN, ([to_text(each) for each in wanted], *moments))
            found = {parse_id(identifier): Recorded(*recorded) for identifier, *recorded in cursor.fetchall()}
        return {**queued, **found}

    def _write(self, model: str, labels: Sequence[Label]) -> int:
        moments = [moment_of(label.prediction_id) for label in labels]
        self._store.add_partitions({moment.date() for moment in moments})
        parameters: tuple[Any, ...] = (model, moments, *as_columns(labels))
        with self._store.transaction() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '5s'")
            cursor.execute(STORE, parameters)
            return int(cursor.rowcount)
