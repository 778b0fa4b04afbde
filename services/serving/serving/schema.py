"""A model's MLflow signature as the types of its rows: what is accepted, and what the documentation shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

SINGLE = float(np.finfo(np.float32).max)
"""Trees compute in single precision: a larger number would be infinite to them."""


class UnservableError(Exception):
    """A version that cannot be served; the message says why. Asked later, it would be the same."""


@dataclass(frozen=True)
class Kind:
    """A column's type: in Python, in numpy, and in JSON Schema."""

    python: Any
    numpy: str
    json: Mapping[str, Any]

    @property
    def numeric(self) -> bool:
        """Whether a matrix of numbers can hold it."""
        return self.python in (float, int, bool)


def _integer(bits: int) -> Kind:
    return Kind(int, f"int{bits}", {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1})


_NUMBER = {"type": "number", "minimum": -SINGLE, "maximum": SINGLE}
KINDS = {
    "double": Kind(float, "float64", _NUMBER),
    "float": Kind(float, "float32", _NUMBER),
    "long": _integer(64),
    "integer": _integer(32),
    "boolean": Kind(bool, "bool", {"type": "boolean"}),
    "string": Kind(str, "object", {"type": "string"}),
    "datetime": Kind(datetime, "datetime64[ns]", {"type": "string", "format": "date-time"}),
}


@dataclass(frozen=True)
class Column:
    """A column of the signature."""

    name: str
    kind: Kind
    required: bool

    def as_json(self) -> dict[str, Any]:
        """Return the column's JSON Schema, in the words of OpenAPI 3.0."""
        return dict(self.kind.json) if self.required else {**self.kind.json, "nullable": True}

    def type(self, strict: bool) -> Any:
        """Return the type that pydantic checks: JSON has types of its own, the cells of a CSV are text."""
        about: dict[str, Any] = {"strict": strict}
        if "minimum" in self.kind.json:
            about |= {"ge": self.kind.json["minimum"], "le": self.kind.json["maximum"]}
        if self.kind.python is float:
            about["allow_inf_nan"] = False
        python: Any = self.kind.python
        inner: Any = Annotated[python, Field(**about)]
        return inner if self.required else NotRequired[inner | None]


@dataclass(frozen=True)
class Schema:
    """The columns of a model's rows, in the order in which it was fitted."""

    columns: tuple[Column, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def numeric(self) -> bool:
        """Whether a matrix of numbers can hold the rows."""
        return all(column.kind.numeric for column in self.columns)

    def adapter(self, shape: Literal["row", "rows"], strict: bool, most: int | None = None) -> TypeAdapter[Any]:
        """Return what checks one row, or a batch of at most `most`."""
        make: Any = TypedDict  # the types are known only here
        row: Any = with_config(ConfigDict(extra="forbid"))(make("Row", {c.name: c.type(strict) for c in self.columns}))
        if shape == "row":
            return TypeAdapter(row)
        return TypeAdapter(Annotated[list[row], Field(min_length=1, max_length=most)])

    def as_json(self) -> dict[str, Any]:
        """Return a row's JSON Schema."""
        required = [column.name for column in self.columns if column.required]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {column.name: column.as_json() for column in self.columns},
            "additionalProperties": False,
        }
        return {**schema, "required": required} if required else schema


def parse_signature(document: Mapping[str, Any]) -> Schema:
    """Return the schema of an MLmodel document's signature.

    Raises:
        UnservableError: It has none, or one without names, or columns that rows of JSON cannot hold.
    """
    signature = document.get("signature")
    if not signature or not signature.get("inputs"):
        raise UnservableError("it has no signature: log it with signature=infer_signature(...)")
    columns = []
    for given in json.loads(signature["inputs"]):
        name, kind = given.get("name"), given.get("type")
        if name is None or kind == "tensor":
            raise UnservableError("its signature has no names of columns: fit and log it with a data frame")
        if kind not in KINDS:
            raise UnservableError(f"its column {name!r} has the type {kind}, which cannot be served")
        columns.append(Column(str(name), KINDS[kind], bool(given.get("required", True))))
    if not columns or len({column.name for column in columns}) < len(columns):
        raise UnservableError("its signature has no columns, or two of one name")
    return Schema(tuple(columns))
