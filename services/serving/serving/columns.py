"""Validates the values of a table by column."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from serving.problems import MAX_PROBLEMS, Problem, RequestError
from serving.schema import Column, Schema

MAX_NAME_LENGTH = 200
"""A longer name of a caller's column is cut in messages."""


class ColumnsReader:
    """Validates columns of Python values; None is a missing value.

    A column is validated in one call that stops at its first error, and only then value by value, until there are
    problems enough: the errors of a large batch would take more memory than the batch.
    """

    def __init__(self, schema: Schema, strict: bool) -> None:
        self._schema, self._strict = schema, strict
        self._adapters: list[tuple[TypeAdapter[Any], TypeAdapter[Any]]] = []
        for column in schema.columns:
            one: Any = column.type(strict) if column.required else column.type(strict) | None
            self._adapters.append((TypeAdapter(Annotated[list[one], Field(fail_fast=True)]), TypeAdapter(one)))

    def read(self, given: Mapping[str, Sequence[Any]], problems: Sequence[Problem] = ()) -> list[list[Any]]:
        """Return the columns in the schema's order.

        Args:
            given: Values by name, all of the same length; an optional column may be left out.
            problems: Those that are known already.

        Raises:
            RequestError: A column is unknown, or a required one is missing, or a value does not fit.
        """
        found, codes = list(problems), {"invalid-rows"} if problems else set()
        unknown = (name for name in given if name not in self._schema.names)
        found += [Problem("is not in the signature", name[:MAX_NAME_LENGTH]) for name in islice(unknown, MAX_PROBLEMS)]
        rows = len(next(iter(given.values()), ()))
        columns = []
        for column, (many, one) in zip(self._schema.columns, self._adapters, strict=True):
            values = given.get(column.name)
            if values is None:
                columns.append([None] * rows)
                if column.required:
                    found.append(Problem("is missing", column.name))
                continue
            try:
                columns.append(many.validate_python(values))
            except ValidationError:
                columns.append([])
                for problem, code in islice(_problems(column, one, values), MAX_PROBLEMS):
                    found.append(problem)
                    codes.add(code)
        if found:
            found.sort(key=lambda problem: -1 if problem.row is None else problem.row)
            raise refuse(found[:MAX_PROBLEMS], "not-finite" if codes == {"not-finite"} else "invalid-rows")
        return columns


def _problems(column: Column, adapter: TypeAdapter[Any], values: Iterable[Any]) -> Iterable[tuple[Problem, str]]:
    for row, value in enumerate(values):
        if value is None:
            if column.required:
                yield Problem("is missing", column.name, row), "invalid-rows"
            continue
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            code = "not-finite" if first["type"] == "finite_number" else "invalid-rows"
            yield Problem(first["msg"], column.name, row), code


def refuse(problems: Sequence[Problem], code: str = "invalid-rows") -> RequestError:
    """Return the refusal of rows for some problems; its message is the first."""
    first = problems[0]
    where = f"Row {first.row}" if first.row is not None else "The rows"
    field = f", field {first.field!r}" if first.field is not None else ""
    return RequestError(code, f"{where}{field}: {first.problem}.", problems)
