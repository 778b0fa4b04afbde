"""Rows from request bodies (JSON, CSV, Arrow, Parquet) and from data frames, validated against a model's schema."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from serving.columns import MAX_NAME_LENGTH, ColumnsReader, refuse
from serving.decoding import DecodingProcess
from serving.limits import SMALL_BYTES, Limits, check_json
from serving.problems import MAX_PROBLEMS, Problem, RequestError
from serving.schema import Schema
from serving.wire import FILE, PARQUET, STREAM

JSON, CSV = "application/json", "text/csv"
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
        """Return a data frame with the names and types of the one that the estimator was fitted on."""
        return pd.DataFrame(
            {c.label: c.to_series(values) for c, values in zip(schema.columns, self.columns, strict=True)}
        )


def join(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one."""
    if len(tables) == 1:
        return tables[0]
    columns = [list(chain.from_iterable(parts)) for parts in zip(*(table.columns for table in tables), strict=True)]
    return Table(columns, sum(table.rows for table in tables))


class Reader:
    """Reads the rows of one model; the models share the process that decodes Arrow and Parquet."""

    def __init__(self, schema: Schema, limits: Limits, decoding: DecodingProcess) -> None:
        self.limits = limits
        self._schema, self._decoding = schema, decoding
        self._singles = [at for at, column in enumerate(schema.columns) if column.kind.numpy == "float32"]
        self._row = schema.row_adapter()
        self._typed, self._text = ColumnsReader(schema, strict=True), ColumnsReader(schema, strict=False)

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
            return self._table(*self._decoding.decode(body, media, self._schema))
        media = media[:MAX_NAME_LENGTH] or "missing"
        raise RequestError("content-type", f"Content-Type is {media!r}: send {', '.join(CONTENT_TYPES)}.")

    def read_frame(self, frame: pd.DataFrame) -> Table:
        """Return the rows of a data frame; NaN and None are missing values.

        Raises:
            RequestError: It has no rows, too many, or rows that do not fit the schema.
        """
        names = [str(name) for name in frame.columns]
        if len(set(names)) < len(names):
            raise RequestError("invalid-rows", "Two columns have the same name.")
        self._check_rows(len(frame))
        columns = (_cells(frame.iloc[:, position]) for position in range(len(names)))
        return self.read_columns(dict(zip(names, columns, strict=True)), len(frame))

    def read_columns(self, columns: Mapping[str, Sequence[Any]], rows: int) -> Table:
        """Return the rows of columns of Python values by name, all of them `rows` long; None is a missing value.

        Raises:
            RequestError: There are no rows, too many, or rows that do not fit the schema.
        """
        self._check_rows(rows)
        return self._table(self._typed.read(columns), rows)

    def read_rows(self, rows: Sequence[Any]) -> Table:
        """Return rows that are objects of JSON.

        Raises:
            RequestError: There are no rows, too many, or rows that do not fit the schema.
        """
        self._check_rows(len(rows))
        names = self._schema.names
        try:
            if all(len(row) == len(names) for row in rows):
                return self._table(self._typed.read({name: [row[name] for row in rows] for name in names}), len(rows))
        except (TypeError, KeyError, IndexError):  # not all are objects with each of the columns and no other
            pass
        problems = list(islice(self._row_problems(rows), MAX_PROBLEMS))
        if len(problems) == MAX_PROBLEMS or not all(isinstance(row, dict) for row in rows):
            raise refuse(problems)
        columns = self._typed.read({name: [row.get(name) for row in rows] for name in names}, problems)
        return self._table(columns, len(rows))

    def _row_problems(self, rows: Sequence[Any]) -> Iterator[Problem]:
        names = frozenset(self._schema.names)
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                yield Problem("is not an object", row=number)
            elif not row.keys() <= names:
                unknown = (name for name in row if name not in names)
                yield from (Problem("is not in the signature", name[:MAX_NAME_LENGTH], number) for name in unknown)

    def _table(self, columns: list[list[Any]], rows: int) -> Table:
        """Return columns as a table; those of single precision are rounded to it, as a matrix of doubles would not."""
        for at in self._singles:
            rounded = np.array([math.nan if v is None else v for v in columns[at]], np.float32).tolist()
            columns[at] = [None if v is None else r for v, r in zip(columns[at], rounded, strict=True)]
        return Table(columns, rows)

    def _check_rows(self, rows: int) -> None:
        if not rows:
            raise RequestError("invalid-rows", "There are no rows.")
        if rows > self.limits.max_rows:
            raise self.limits.too_many_rows()
        if rows * len(self._schema.columns) > self.limits.max_cells:
            raise self.limits.too_many_cells()

    def _from_json(self, body: bytes) -> Table:
        if len(body) <= SMALL_BYTES and body[:256].lstrip()[:1] == b"{":  # a row: the fastest way
            row = validate(lambda: self._row.validate_json(body))
            return self._table([[row.get(name)] for name in self._schema.names], 1)
        check_json(body, self.limits, max_arrays=1)
        try:
            document = from_json(body, allow_inf_nan=True, cache_strings="keys")
        except ValueError as error:
            raise RequestError("malformed", f"The body is not JSON: {first_line(error)}.") from None
        if not isinstance(document, list | dict):
            raise RequestError("invalid-rows", "Send a row as an object, or an array of rows.")
        return self.read_rows(document if isinstance(document, list) else [document])

    def _from_csv(self, body: bytes) -> Table:
        try:
            lines = _Lines(io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline=""), len(self._schema.columns))
            header = next(lines, None)
            if not header:
                raise RequestError("malformed", "The CSV has no header.")
            if problems := list(islice(self._header_problems(header), MAX_PROBLEMS)):
                raise refuse(problems)
            rows = list(self._csv_rows(header, lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RequestError("malformed", f"The body is not CSV in UTF-8: {error}.") from error
        self._check_rows(len(rows))
        texts = {column.name for column in self._schema.columns if column.kind.python is str and column.required}
        columns = {
            name: values if name in texts else [cell or None for cell in values]
            for name, values in zip(header, zip(*rows, strict=True), strict=True)
        }
        return self._table(self._text.read({name: list(values) for name, values in columns.items()}), len(rows))

    def _header_problems(self, header: Sequence[str]) -> Iterator[Problem]:
        seen = set()
        for name in header:
            if name not in self._schema.names:
                yield Problem("is not in the signature", name[:MAX_NAME_LENGTH])
            elif name in seen:
                yield Problem("is repeated", name)
            seen.add(name)
        yield from (Problem("is missing", c.name) for c in self._schema.columns if c.required and c.name not in seen)

    def _csv_rows(self, header: Sequence[str], lines: Iterable[list[str]]) -> Iterator[list[str]]:
        number = 0
        for cells in lines:
            if not cells:  # an empty line
                continue
            number += 1
            if number > self.limits.max_rows:
                raise self.limits.too_many_rows()
            if len(cells) != len(header):
                problem = Problem(f"{len(cells)} cells below a header of {len(header)}", row=number - 1)
                raise RequestError("malformed", "A line of the CSV does not fit its header.", [problem])
            yield cells


class _Lines:
    """The lines of a CSV as lists of cells; a line with far more commas than columns is refused before it is split."""

    def __init__(self, text: Iterable[str], columns: int) -> None:
        self._text, self._commas, self._max_commas = text, 0, columns + csv.field_size_limit()
        self._lines = csv.reader(self._counted(), strict=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self._commas = 0
        return next(self._lines)

    def _counted(self) -> Iterator[str]:
        for line in self._text:
            self._commas += line.count(",")
            if self._commas > self._max_commas:
                raise RequestError("malformed", f"A line of the CSV has more than {self._max_commas} commas.")
            yield line


def _cells(series: pd.Series) -> list[Any]:
    values = (value.item() if isinstance(value, np.generic) else value for value in series.tolist())
    return [None if missing else value for value, missing in zip(values, series.isna(), strict=True)]


def validate(run: Callable[[], Any]) -> Any:
    """Return the result of pydantic's validation of a row.

    Raises:
        RequestError: It found problems.
    """
    try:
        return run()
    except ValidationError as error:
        raise _request_error(error.errors(include_url=False, include_context=False, include_input=False)) from None
    except RecursionError:
        raise RequestError("malformed", "The body is nested too deeply.") from None


def _request_error(errors: Sequence[ErrorDetails]) -> RequestError:
    types = {error["type"] for error in errors}
    if "json_invalid" in types:
        return RequestError("malformed", f"The body is not JSON: {errors[0]['msg']}.")
    problems = []
    for error in errors[:MAX_PROBLEMS]:
        text = {"missing": "is missing", "extra_forbidden": "is not in the signature"}.get(error["type"])
        field = str(error["loc"][0])[:MAX_NAME_LENGTH] if error["loc"] else None
        problems.append(Problem(text or error["msg"], field, 0))
    return refuse(problems, "not-finite" if types == {"finite_number"} else "invalid-rows")


def first_line(error: BaseException) -> str:
    """Return the start of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
