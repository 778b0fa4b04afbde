"""Read recorded predictions: a page at a time, or a sample that is spread over a period."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg2
from psycopg2.extensions import cursor as Cursor

from serving.errors import RecordsUnavailableError
from serving.record_store import CONNECTION_OPTIONS, LAST_MOMENT
from trainyard.contract import Record as RecordFields

MAX_PAGE_BYTES = 8 * 2**20
"""Size at which a page of records ends early; a record is as large as its request was."""
FIRST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
LABELED = "FROM labels WHERE labels.prediction_id = predictions.prediction_id AND labels.at = predictions.at"
COLUMNS = f"""
id, at, version, shadow, prediction_id::text, rows, inputs::text, outputs::text, about::text, classes::text,
(SELECT json_object_agg(row, value) {LABELED})::text AS labels
"""


@dataclass(frozen=True)
class Selection:
    """Which records of a model are read."""

    model: str
    since: datetime = FIRST_MOMENT
    until: datetime = LAST_MOMENT
    """The first moment after the period."""
    version: int | None = None
    """None selects all versions."""
    about: bool | None = None
    """Whether they are about a subject (forecasts) or about none; None selects both."""
    shadow: bool = False
    """Whether they are those that no caller got, or those that were answered."""
    labeled: bool | None = None
    """Whether a label was posted for any of their rows; None selects both."""

    def where(self) -> tuple[str, list[Any]]:
        """Return the SQL condition and its parameters."""
        conditions = ["model = %s", "at >= %s", "at < %s", "shadow" if self.shadow else "NOT shadow"]
        values: list[Any] = [self.model, self.since, self.until]
        if self.version is not None:
            conditions.append("version = %s")
            values.append(self.version)
        if self.about is not None:
            conditions.append(f"about IS {'NOT ' if self.about else ''}NULL")
        if self.labeled is not None:
            conditions.append(f"{'' if self.labeled else 'NOT '}EXISTS (SELECT {LABELED} AND labels.model = %s)")
            values.append(self.model)
        return " AND ".join(conditions), values


def page_query(selection: Selection, after: int, limit: int) -> tuple[str, list[Any]]:
    """Return the SQL of a page in the order of ids, and its parameters."""
    where, values = selection.where()
    query = f"SELECT {COLUMNS} FROM predictions WHERE {where} AND id > %s ORDER BY id LIMIT %s"  # noqa: S608 - constants only
    return query, [*values, after, limit]


def newest_query(selection: Selection, limit: int) -> tuple[str, list[Any]]:
    """Return the SQL of the newest records, and its parameters."""
    where, values = selection.where()
    query = f"SELECT {COLUMNS} FROM predictions WHERE {where} ORDER BY at DESC LIMIT %s"  # noqa: S608 - constants only
    return query, [*values, limit]


def sample_query(selection: Selection, limit: int) -> tuple[str, list[Any]]:
    """Return the SQL of a sample that is spread over the period, and its parameters.

    The period is cut into as many slots as records are wanted; the first record of each slot is one short search in an
    index. The order is random, so that a page that ends early is still spread.
    """
    where, values = selection.where()
    slot = "at >= %s + slot * (%s - %s) / %s AND at < %s + (slot + 1) * (%s - %s) / %s"
    first = f"SELECT {COLUMNS} FROM predictions WHERE {where} AND {slot} ORDER BY at LIMIT 1"  # noqa: S608 - constants only
    slots = "SELECT found.* FROM generate_series(0, %s - 1) AS slot"
    query = f"{slots} CROSS JOIN LATERAL ({first}) AS found ORDER BY random()"
    return query, [limit, *values, *(selection.since, selection.until, selection.since, limit) * 2]


def read_page(url: str, selection: Selection, after: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """Return a page of records in the order of their ids, and the last id if more may follow.

    It has fewer than `limit` records where they are large.

    Args:
        url: The database's address.
        selection: Which records.
        after: The id of the last record of the page before.
        limit: The most records.

    Raises:
        RecordsUnavailableError: The database does not answer.
    """
    with _reading(url) as cursor:
        found, full = _fetch(cursor, *page_query(selection, after, limit))
    return found, found[-1]["id"] if found and (full or len(found) == limit) else None


def read_newest(url: str, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """Return the newest of the selected records, newest first; fewer than `limit` where they are large.

    Raises:
        RecordsUnavailableError: The database does not answer.
    """
    with _reading(url) as cursor:
        return _fetch(cursor, *newest_query(selection, limit))[0]


def read_sample(url: str, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """Return all selected records in the order of their ids, or a sample over the period where there are too many.

    Args:
        url: The database's address.
        selection: Which records.
        limit: The most records; there are fewer where they are large or the period has pauses.

    Raises:
        RecordsUnavailableError: The database does not answer.
    """
    with _reading(url) as cursor:
        found, full = _fetch(cursor, *newest_query(selection, limit + 1))
    if full or len(found) > limit:
        oldest, until = max(selection.since, FIRST_MOMENT), min(selection.until, datetime.now(UTC))
        period = Selection(**{**selection.__dict__, "since": oldest, "until": max(until, oldest)})
        with _reading(url) as cursor:
            found, _ = _fetch(cursor, *sample_query(period, limit))
    return sorted(found, key=lambda record: record["id"])


@contextmanager
def _reading(url: str) -> Iterator[Cursor]:
    try:
        with closing(psycopg2.connect(url, **CONNECTION_OPTIONS)) as connection, connection.cursor("page") as cursor:
            cursor.itersize = 20
            yield cursor
    except psycopg2.Error as error:
        raise RecordsUnavailableError(str(error).strip().partition("\n")[0]) from error


def _fetch(cursor: Cursor, query: str, values: Sequence[Any]) -> tuple[list[dict[str, Any]], bool]:
    """Return records as the API lists them, and whether their bytes filled the page."""
    found: list[dict[str, Any]] = []
    size = 0
    try:
        cursor.execute(query, values)
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn):  # the writer has not made the table yet
        return [], False
    for number, at, version, shadow, prediction_id, rows, *texts, labels in cursor:
        size += sum(len(text or "") for text in (*texts, labels))
        inputs, outputs, about, classes = (None if text is None else orjson.Fragment(text) for text in texts)
        found.append(
            {
                "id": number,
                "at": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "version": version,
                "shadow": shadow,
                "inputs": inputs,
                "outputs": outputs,
                RecordFields.ABOUT: about,
                RecordFields.PREDICTION_ID: prediction_id,
                RecordFields.CLASSES: classes,
                RecordFields.LABELS: labels and _by_row(orjson.loads(labels), rows),
            }
        )
        if size > MAX_PAGE_BYTES:
            return found, True
    return found, False


def _by_row(labels: dict[str, Any], rows: int) -> list[Any]:
    """Return the label of each row, None where it is not known."""
    return [labels.get(str(row)) for row in range(rows)]
