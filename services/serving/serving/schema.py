"""A model's MLflow signature as the types of its rows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from serving.errors import UnservableError

FLOAT32_MAX = float(np.finfo(np.float32).max)
"""Trees compute in single precision: a larger number would be infinite to them."""


@dataclass(frozen=True)
class Kind:
    """A column's type: in Python and in numpy, and the bounds of its numbers."""

    python: Any
    numpy: str
    minimum: float | None = None
    maximum: float | None = None

    @property
    def is_numeric(self) -> bool:
        """Whether a matrix of numbers can hold it."""
        return self.python in (float, int, bool)


KINDS = {
    "double": Kind(float, "float64", -FLOAT32_MAX, FLOAT32_MAX),
    "float": Kind(float, "float32", -FLOAT32_MAX, FLOAT32_MAX),
    "long": Kind(int, "int64", -(2**63), 2**63 - 1),
    "integer": Kind(int, "int32", -(2**31), 2**31 - 1),
    "boolean": Kind(bool, "bool"),
    "string": Kind(str, "object"),
    "datetime": Kind(datetime, "datetime64[ns]"),
}
"""By the names of MLflow's types."""


@dataclass(frozen=True)
class Column:
    """A column of the signature."""

    name: str
    kind: Kind
    required: bool

    def type(self, strict: bool) -> Any:
        """Return the type that pydantic validates.

        Args:
            strict: Whether values have types, as in JSON; the cells of a CSV are text.
        """
        rules: dict[str, Any] = {"strict": strict}
        if self.kind.minimum is not None:
            rules |= {"ge": self.kind.minimum, "le": self.kind.maximum}
        if self.kind.python is float:
            rules["allow_inf_nan"] = False
        python: Any = self.kind.python
        inner: Any = Annotated[python, Field(**rules)]
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
    def is_numeric(self) -> bool:
        """Whether a matrix of numbers can hold the rows."""
        return all(column.kind.is_numeric for column in self.columns)

    def adapter(self, shape: Literal["row", "rows"], strict: bool, max_rows: int | None = None) -> TypeAdapter[Any]:
        """Return the validator of one row, or of a batch of at most `max_rows`."""
        make: Any = TypedDict  # the types are known only here
        row: Any = with_config(ConfigDict(extra="forbid"))(make("Row", {c.name: c.type(strict) for c in self.columns}))
        if shape == "row":
            return TypeAdapter(row)
        return TypeAdapter(Annotated[list[row], Field(min_length=1, max_length=max_rows)])


def parse_signature(document: Mapping[str, Any]) -> Schema:
    """Return the schema of an MLmodel document's signature.

    Raises:
        UnservableError: There is no signature, or it has no names, or columns that rows of JSON cannot hold.
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
