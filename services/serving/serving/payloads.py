"""Rows from request bodies (JSON, CSV, Arrow, Parquet) and from data frames, validated against a model's schema."""

import csv
import io
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from serving.problems import MAX_PROBLEMS, Problem, RequestError
from serving.schema import FLOAT32_MAX, Column, Schema

JSON, CSV = "application/json", "text/csv"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
MAX_UNPACKED_RATIO = 64
"""How many times its body's size a Parquet file may unpack to."""
MAX_CSV_COLUMNS = 10_000
CONTENT_TYPES = (JSON, CSV, STREAM, FILE, PARQUET)


@dataclass(frozen=True)
class Table:
    """Rows by column, in the schema's order; a missing value is None."""

    columns: Sequence[Sequence[Any]]
    rows: int

    def to_array(self, dtype: str) -> Any:
        """Return a matrix of numbers, rows by columns; a missing value is NaN."""
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
    """Reads the rows of one model."""

    def __init__(self, schema: Schema, max_rows: int) -> None:
        self._schema, self._max_rows = schema, max_rows
        self._row = schema.adapter("row", strict=True)
        self._rows = schema.adapter("rows", strict=True, max_rows=max_rows)
        self._text_rows = schema.adapter("rows", strict=False)

    def read(self, body: bytes, content_type: str) -> Table:
        """Return a body's rows.

        Raises:
            RequestError: It is malformed, has too many rows, or rows that do not fit the schema.
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

    def read_frame(self, frame: pd.DataFrame) -> Table:
        """Return the rows of a data frame; NaN and None are missing values.

        Raises:
            RequestError: It has no rows, too many, or rows that do not fit the schema.
        """
        names = [str(name) for name in frame.columns]
        missing = frame.isna().to_numpy().tolist()
        rows = [
            {name: cell for name, cell, is_missing in zip(names, cells, blanks, strict=True) if not is_missing}
            for cells, blanks in zip(frame.to_dict("split")["data"], missing, strict=True)
        ]
        return self._columns(self._validate_batch(self._rows, rows))

    def _from_json(self, body: bytes) -> Table:
        if body.lstrip()[:1] == b"[":
            return self._columns(
                validate(lambda: self._rows.validate_json(body), is_batch=True, max_rows=self._max_rows)
            )
        return self._columns([validate(lambda: self._row.validate_json(body), is_batch=False, max_rows=1)])

    def _validate_batch(self, adapter: TypeAdapter[Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        validated: list[dict[str, Any]] = validate(
            lambda: adapter.validate_python(rows), is_batch=True, max_rows=self._max_rows
        )
        return validated

    def _from_csv(self, body: bytes) -> Table:
        try:
            text = io.StringIO(body.decode("utf-8-sig"), newline="")
            lines = csv.reader(text, strict=True)
            header = next(lines, None)
            if not header:
                raise RequestError("malformed", "The CSV has no header.")
            if len(header) > MAX_CSV_COLUMNS:
                raise RequestError("malformed", f"The CSV has more than {MAX_CSV_COLUMNS} columns.")
            if repeated := [name for name, number in Counter(header).items() if number > 1]:
                raise RequestError("malformed", f"The CSV's header repeats {repeated[0]!r}.")
            rows = list(self._cells(header, lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RequestError("malformed", f"The body is not CSV in UTF-8: {error}.") from error
        return self._columns(self._validate_batch(self._text_rows, rows))

    def _cells(self, header: Sequence[str], lines: Iterable[list[str]]) -> Iterator[dict[str, str]]:
        texts = {column.name for column in self._schema.columns if column.kind.python is str and column.required}
        number = 0
        for cells in lines:
            if not cells:  # an empty line
                continue
            if number == self._max_rows:
                raise too_many_rows(self._max_rows)
            if len(cells) != len(header):
                problem = Problem(f"{len(cells)} cells below a header of {len(header)}", row=number)
                raise RequestError("malformed", "A line of the CSV does not fit its header.", [problem])
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell or name in texts}
            number += 1

    def _columns(self, rows: list[dict[str, Any]]) -> Table:
        return Table([[row.get(name) for row in rows] for name in self._schema.names], len(rows))

    def _from_arrow(self, body: bytes, media: str) -> Table:
        import pyarrow as pa  # only where Arrow or Parquet is sent

        try:
            table = _arrow_table(body, media, self._max_rows)
            table.validate(full=True)  # offsets may point outside of the body
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            TypeError,
            NotImplementedError,
            OverflowError,
            struct.error,
        ) as error:
            raise RequestError("malformed", f"The body is not {media}: {_first_line(error)}") from error
        names = [name for name in table.column_names if not name.startswith("__index_level_")]
        problems = [Problem("is not in the signature", name) for name in names if name not in self._schema.names]
        problems += [
            Problem("is missing" if column.name not in names else "is repeated", column.name)
            for column in self._schema.columns
            if names.count(column.name) != 1 and (column.required or column.name in names)
        ]
        if problems:
            raise _invalid(problems)
        if not table.num_rows:
            raise RequestError("invalid-rows", "There are no rows.")
        columns = [
            _arrow_column(column, table.column(column.name)) if column.name in names else [None] * table.num_rows
            for column in self._schema.columns
        ]
        return Table(columns, table.num_rows)


def _arrow_table(body: bytes, media: str, max_rows: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if media == PARQUET:
        file = pq.ParquetFile(pa.BufferReader(body))
        if file.metadata.num_rows > max_rows:
            raise too_many_rows(max_rows)
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > MAX_UNPACKED_RATIO * max(len(body), 65536):
            raise RequestError("body-too-large", "The body unpacks to too much: send several.")
        return file.read(use_threads=False)
    if media == FILE:
        # A stream between a head and a foot. The foot is ignored: its offsets may point anywhere.
        head, body = body[:8], body[8:]
        if head != b"ARROW1\0\0":
            raise RequestError("malformed", "The body is not an Arrow file.")
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(body)):
        if _is_compressed(message):
            raise RequestError("content-type", "Send Arrow without compression, or Parquet.")
    batches, rows = [], 0
    reader = pa.ipc.open_stream(pa.BufferReader(body))
    for batch in reader:
        rows += batch.num_rows
        if rows > max_rows:
            raise too_many_rows(max_rows)
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


# Field numbers of Arrow's format/Message.fbs.
HEADER_OF_MESSAGE, DATA_OF_DICTIONARY_BATCH, COMPRESSION_OF_RECORD_BATCH = 2, 1, 3


def _is_compressed(message: Any) -> bool:
    """Return whether an IPC message holds compressed columns.

    pyarrow would unpack them, to whatever size, while it reads the batch, and does not tell beforehand; the message's
    metadata, a flatbuffer, does.

    Raises:
        TypeError, struct.error: The metadata is damaged.
    """
    from flatbuffers.encode import Get
    from flatbuffers.number_types import UOffsetTFlags
    from flatbuffers.table import Table as Flatbuffer

    def offset(parent: Any, field: int) -> int:
        return int(parent.Offset(4 + 2 * field))

    def child(parent: Any, field: int) -> Any:
        return Flatbuffer(data, parent.Indirect(parent.Pos + offset(parent, field)))

    if message.type not in ("dictionary", "record batch"):
        return False
    data = message.metadata.to_pybytes()
    batch = child(Flatbuffer(data, Get(UOffsetTFlags.packer_type, data, 0)), HEADER_OF_MESSAGE)
    if message.type == "dictionary":
        batch = child(batch, DATA_OF_DICTIONARY_BATCH)
    return offset(batch, COMPRESSION_OF_RECORD_BATCH) != 0


def _arrow_column(column: Column, values: Any) -> Sequence[Any]:
    """Return a column's validated values as Python objects."""
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
        raise _invalid([Problem(f"has the type {given}", column.name)])
    wanted = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}.get(kind, pa.timestamp("us"))
    try:
        cells: list[Any] = values.cast(given).cast(wanted).to_pylist()
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise _invalid([Problem(_first_line(error), column.name)]) from error
    problems = []
    for row, cell in enumerate(cells):
        if cell is None:
            if column.required:
                problems.append(Problem("is missing", column.name, row))
        elif kind is float and not math.isfinite(cell):
            problem = Problem("is not a finite number", column.name, row)
            raise RequestError("not-finite", "A number is NaN or infinite.", [problem])
        elif kind is float and abs(cell) > FLOAT32_MAX:
            problems.append(Problem(f"is beyond {FLOAT32_MAX:g}", column.name, row))
        elif kind is int and not column.kind.minimum <= cell <= column.kind.maximum:
            problems.append(Problem(f"does not fit {column.kind.numpy}", column.name, row))
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise _invalid(problems)
    return cells


def validate(run: Callable[[], Any], *, is_batch: bool, max_rows: int) -> Any:
    """Return the result of a pydantic validation.

    Raises:
        RequestError: It found problems.
    """
    try:
        return run()
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise _request_error(errors, is_batch=is_batch, max_rows=max_rows) from None
    except RecursionError:
        raise RequestError("malformed", "The body is nested too deeply.") from None


def _request_error(errors: Sequence[ErrorDetails], *, is_batch: bool, max_rows: int) -> RequestError:
    types = {error["type"] for error in errors}
    if "json_invalid" in types:
        return RequestError("malformed", f"The body is not JSON: {errors[0]['msg']}.")
    if "too_long" in types:
        return too_many_rows(max_rows)
    if not is_batch and errors[0]["type"] in ("dict_type", "typed_dict_type") and not errors[0]["loc"]:
        return RequestError("invalid-rows", "Send a row as an object, or an array of rows.")
    if "too_short" in types:
        return RequestError("invalid-rows", "There are no rows.")
    problems = []
    for error in errors[:MAX_PROBLEMS]:
        row, *rest = error["loc"] if is_batch else (0, *error["loc"])
        text = {"missing": "is missing", "extra_forbidden": "is not in the signature"}.get(error["type"])
        problems.append(Problem(text or error["msg"], str(rest[0]) if rest else None, int(row)))
    return (
        RequestError("not-finite", _describe(problems), problems) if types == {"finite_number"} else _invalid(problems)
    )


def too_many_rows(max_rows: int) -> RequestError:
    """Return the refusal of a batch that is too large."""
    return RequestError("too-many-rows", f"A request may have {max_rows} rows: send several.")


def _invalid(problems: Sequence[Problem]) -> RequestError:
    return RequestError("invalid-rows", _describe(problems), problems)


def _describe(problems: Sequence[Problem]) -> str:
    first = problems[0]
    where = f"Row {first.row}" if first.row is not None else "The rows"
    field = f", field {first.field!r}" if first.field is not None else ""
    return f"{where}{field}: {first.problem}."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
