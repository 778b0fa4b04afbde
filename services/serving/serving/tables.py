"""Bodies of requests as tables: JSON, CSV, Arrow and Parquet, checked against a model's schema."""

import csv
import io
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from serving.problems import MOST_SHOWN, Problem, RequestError
from serving.schema import SINGLE, Column, Schema

JSON, CSV = "application/json", "text/csv"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
MOST_UNPACKED = 64
"""How much larger than its body a Parquet file may be."""
CONTENT_TYPES = (JSON, CSV, STREAM, FILE, PARQUET)


@dataclass(frozen=True)
class Table:
    """Rows by column, in the schema's order; what is missing is None."""

    columns: Sequence[Sequence[Any]]
    rows: int

    def to_array(self, dtype: str) -> Any:
        """Return a matrix of numbers, rows by columns; what is missing is NaN."""
        return np.array(self.columns, dtype=dtype).T

    def to_frame(self, schema: Schema) -> pd.DataFrame:
        """Return a data frame with the types of the signature."""
        return pd.DataFrame(
            {c.name: _series(c, values) for c, values in zip(schema.columns, self.columns, strict=True)}
        )


def _series(column: Column, values: Sequence[Any]) -> pd.Series:
    if column.kind.numpy.startswith("datetime64"):
        return pd.Series(pd.to_datetime(list(values), utc=True).tz_localize(None))
    dtype = column.kind.numpy
    if not column.required and dtype.startswith(("int", "bool")) and any(value is None for value in values):
        dtype = "float64" if dtype.startswith("int") else "object"
    return pd.Series(values, dtype=dtype)


def join(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one."""
    if len(tables) == 1:
        return tables[0]
    columns = [list(chain.from_iterable(parts)) for parts in zip(*(table.columns for table in tables), strict=True)]
    return Table(columns, sum(table.rows for table in tables))


class Reader:
    """Reads the bodies that are for one model."""

    def __init__(self, schema: Schema, most_rows: int) -> None:
        self._schema, self._most = schema, most_rows
        self._row = schema.adapter("row", strict=True)
        self._rows = schema.adapter("rows", strict=True, most=most_rows)
        self._texts = schema.adapter("rows", strict=False)

    def read(self, body: bytes, content_type: str) -> Table:
        """Return a body's rows.

        Raises:
            RequestError: It is malformed, has too many rows, or rows that do not fit.
        """
        media, _, parameters = content_type.partition(";")
        media = media.strip().lower()
        charset = parameters.lower().replace(" ", "").replace('"', "")
        if "charset=" in charset and not charset.endswith(("charset=utf-8", "charset=utf8")):
            raise RequestError("content-type", "Send text in UTF-8.")
        if media == JSON:
            return self._from_json(body)
        if media == CSV:
            return self._from_csv(body)
        if media in (STREAM, FILE, PARQUET):
            return self._from_arrow(body, media)
        raise RequestError("content-type", f"Content-Type is {media or 'missing'!r}: send {', '.join(CONTENT_TYPES)}.")

    def _from_json(self, body: bytes) -> Table:
        if body.lstrip()[:1] == b"[":
            return self._columns(check(lambda: self._rows.validate_json(body), batch=True, most=self._most))
        return self._columns([check(lambda: self._row.validate_json(body), batch=False, most=1)])

    def _from_csv(self, body: bytes) -> Table:
        try:
            text = io.StringIO(body.decode("utf-8-sig"), newline="")
            lines = csv.reader(text, strict=True)
            header = next(lines, None)
            if not header:
                raise RequestError("malformed", "The CSV has no header.")
            twice = {name for name in header if header.count(name) > 1} if len(header) < 10_000 else {"?"}
            if twice:
                raise RequestError("malformed", f"The CSV's header has {sorted(twice)[0]!r} twice, or too many names.")
            rows = list(self._cells(header, lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RequestError("malformed", f"The body is no CSV in UTF-8: {error}.") from error
        return self._columns(check(lambda: self._texts.validate_python(rows), batch=True, most=self._most))

    def _cells(self, header: Sequence[str], lines: Iterable[list[str]]) -> Iterator[dict[str, str]]:
        texts = {column.name for column in self._schema.columns if column.kind.python is str and column.required}
        number = 0
        for cells in lines:
            if not cells:  # an empty line
                continue
            if number == self._most:
                raise too_many(self._most)
            if len(cells) != len(header):
                problem = Problem(number, None, f"{len(cells)} cells beneath a header of {len(header)}")
                raise RequestError("malformed", "A line of the CSV does not fit its header.", [problem])
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell or name in texts}
            number += 1

    def _columns(self, rows: list[dict[str, Any]]) -> Table:
        return Table([[row.get(name) for row in rows] for name in self._schema.names], len(rows))

    def _from_arrow(self, body: bytes, media: str) -> Table:
        import pyarrow as pa  # not for those who send JSON

        try:
            table = _arrow_table(body, media, self._most)
            table.validate(full=True)  # offsets that lead outside of the body
        except (pa.ArrowException, OSError, ValueError, NotImplementedError, OverflowError) as error:
            raise RequestError("malformed", f"The body is not {media}: {_line(error)}") from error
        names = [name for name in table.column_names if not name.startswith("__index_level_")]
        problems = [Problem(None, name, "is not in the signature") for name in names if name not in self._schema.names]
        problems += [
            Problem(None, column.name, "is missing" if column.name not in names else "is there twice")
            for column in self._schema.columns
            if names.count(column.name) != 1 and (column.required or column.name in names)
        ]
        if problems:
            raise RequestError("invalid-rows", _say(problems), problems)
        if not table.num_rows:
            raise RequestError("invalid-rows", "There are no rows.")
        columns = [
            _arrow_column(column, table.column(column.name)) if column.name in names else [None] * table.num_rows
            for column in self._schema.columns
        ]
        return Table(columns, table.num_rows)


def _arrow_table(body: bytes, media: str, most_rows: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if media == PARQUET:
        file = pq.ParquetFile(pa.BufferReader(body))
        if file.metadata.num_rows > most_rows:
            raise too_many(most_rows)
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > MOST_UNPACKED * max(len(body), 65536):
            raise RequestError("body-too-large", "The body unpacks to too much: send several.")
        return file.read(use_threads=False)
    if media == FILE:
        # A stream between a head and a foot; the foot, which may point anywhere, is not asked.
        head, body = body[:8], body[8:]
        if head != b"ARROW1\0\0":
            raise RequestError("malformed", "The body is no Arrow file.")
    refuse_compressed(body)
    batches, rows = [], 0
    opened = pa.ipc.open_stream(pa.BufferReader(body))
    for batch in opened:
        rows += batch.num_rows
        if rows > most_rows:
            raise too_many(most_rows)
        batches.append(batch)
    return pa.Table.from_batches(batches, opened.schema)


def refuse_compressed(stream: bytes) -> None:
    """Refuse an Arrow stream with compressed batches: a small one may unpack to any size, before a row is counted.

    pyarrow does not say, so the field is looked up in each message's flatbuffer (Arrow's format/Message.fbs).

    Raises:
        RequestError: A batch is compressed, or a message is none.
    """
    import pyarrow as pa

    try:
        for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(stream)):
            data = message.metadata.to_pybytes()
            root = struct.unpack_from("<I", data, 0)[0]
            header = _table(data, root, 2)
            batch = _table(data, header, 1) if message.type == "dictionary" else header
            if message.type in ("dictionary", "record batch") and batch is not None and _slot(data, batch, 3):
                raise RequestError("content-type", "Send Arrow without compression, or Parquet.")
    except struct.error as error:
        raise RequestError("malformed", "The body is no Arrow.") from error


def _slot(data: bytes, table: int, field: int) -> int:
    """Return where a field of a flatbuffer's table stands, from its start; 0 if it is not there."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * field
    if vtable < 0 or at >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    return int(struct.unpack_from("<H", data, vtable + at)[0])


def _table(data: bytes, table: int | None, field: int) -> int | None:
    """Return where the table in a field stands."""
    if table is None or not (slot := _slot(data, table, field)):
        return None
    return int(table + slot + struct.unpack_from("<I", data, table + slot)[0])


def _arrow_column(column: Column, values: Any) -> Sequence[Any]:
    """Return a column's values as Python has them, checked."""
    import pyarrow as pa
    import pyarrow.types as types

    kind, given = column.kind.python, values.type
    if types.is_dictionary(given):
        given = given.value_type
    fits = {
        float: types.is_floating(given) or types.is_integer(given),
        int: types.is_integer(given),
        bool: types.is_boolean(given),
        str: types.is_string(given) or types.is_large_string(given) or types.is_string_view(given),
    }.get(kind, types.is_timestamp(given) or types.is_date(given))
    if not fits and not types.is_null(given):
        raise _invalid([Problem(None, column.name, f"has the type {given}")])
    wanted = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}.get(kind, pa.timestamp("us"))
    try:
        cells: list[Any] = values.cast(given).cast(wanted).to_pylist()
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise _invalid([Problem(None, column.name, _line(error))]) from error
    problems = []
    for row, cell in enumerate(cells):
        if cell is None:
            if column.required:
                problems.append(Problem(row, column.name, "is missing"))
        elif kind is float and not math.isfinite(cell):
            raise RequestError(
                "not-finite", "A number is NaN or infinite.", [Problem(row, column.name, "is not a finite number")]
            )
        elif kind is float and abs(cell) > SINGLE:
            problems.append(Problem(row, column.name, f"is beyond {SINGLE:g}"))
        elif kind is int and not column.kind.json["minimum"] <= cell <= column.kind.json["maximum"]:
            problems.append(Problem(row, column.name, f"does not fit {column.kind.numpy}"))
        if len(problems) == MOST_SHOWN:
            break
    if problems:
        raise _invalid(problems)
    return cells


def check(validate: Callable[[], Any], *, batch: bool, most: int) -> Any:
    """Return what pydantic makes of a body.

    Raises:
        RequestError: It found problems.
    """
    try:
        return validate()
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refusal(found, batch=batch, most=most) from None
    except RecursionError:
        raise RequestError("malformed", "The body is nested too deeply.") from None


def _refusal(found: Sequence[ErrorDetails], *, batch: bool, most: int) -> RequestError:
    kinds = {problem["type"] for problem in found}
    if "json_invalid" in kinds:
        return RequestError("malformed", f"The body is not JSON: {found[0]['msg']}.")
    if "too_long" in kinds:
        return too_many(most)
    if not batch and found[0]["type"] in ("dict_type", "typed_dict_type") and not found[0]["loc"]:
        return RequestError("invalid-rows", "Send a row as an object, or an array of rows.")
    if "too_short" in kinds:
        return RequestError("invalid-rows", "There are no rows.")
    problems = []
    for problem in found[:MOST_SHOWN]:
        row, *rest = problem["loc"] if batch else (0, *problem["loc"])
        text = {"missing": "is missing", "extra_forbidden": "is not in the signature"}.get(problem["type"])
        problems.append(Problem(int(row), str(rest[0]) if rest else None, text or problem["msg"]))
    if kinds == {"finite_number"}:
        return RequestError("not-finite", _say(problems), problems)
    return _invalid(problems)


def too_many(most: int) -> RequestError:
    """Return the refusal of a batch that is too large."""
    return RequestError("too-many-rows", f"A request may have {most} rows: send several.")


def _invalid(problems: Sequence[Problem]) -> RequestError:
    return RequestError("invalid-rows", _say(problems), problems)


def _say(problems: Sequence[Problem]) -> str:
    first = problems[0]
    where = f"Row {first.row}" if first.row is not None else "The rows"
    field = f", field {first.field!r}" if first.field is not None else ""
    return f"{where}{field}: {first.problem}."


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
