"""A model's MLflow signature as the types of its rows."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, NotRequired

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from serving.errors import UnservableError
from trainyard.contract import ModelMetadata

DTYPES = re.compile(
    r"u?int(8|16|32|64)|U?Int(8|16|32|64)|float(16|32|64)|Float(32|64)|bool|boolean|object|str|string|"
    r"category|datetime64\[(s|ms|us|ns)(, [A-Za-z0-9_+:/-]+)?\]"
)
"""pandas' types that a model's file may name."""
ISO_8601 = re.compile(
    r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.]\d{1,6}0*)?)?(Z|[+-]\d{2}:?\d{2})?)?", re.ASCII | re.IGNORECASE
)
FLOAT32_MAX = float(np.finfo(np.float32).max)
"""Trees compute in single precision: a larger number would be infinite to them."""
MAX_MATRIX_COLUMNS = 100_000
"""A signature tells the columns of a matrix by one number, which costs its author nothing."""


@dataclass(frozen=True)
class Kind:
    """A column's type: in Python and in numpy, and the bounds of its numbers."""

    python: Any
    numpy: str
    frame: str
    """The type that pandas gives such values by itself."""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def is_numeric(self) -> bool:
        """Whether a matrix of numbers can hold it."""
        return self.python in (float, int, bool)

    @property
    def is_datetime(self) -> bool:
        """Whether it holds moments."""
        return self.python is datetime


KINDS = {
    "double": Kind(float, "float64", "float64", -FLOAT32_MAX, FLOAT32_MAX),
    "float": Kind(float, "float32", "float32", -FLOAT32_MAX, FLOAT32_MAX),
    "long": Kind(int, "int64", "int64", -(2**63), 2**63 - 1),
    "integer": Kind(int, "int32", "int32", -(2**31), 2**31 - 1),
    "boolean": Kind(bool, "bool", "bool"),
    "string": Kind(str, "object", "str"),
    "datetime": Kind(datetime, "datetime64[ns]", "datetime64[us]"),
}
"""By the names of MLflow's types."""


@dataclass(frozen=True)
class Column:
    """A column of the signature."""

    name: str
    kind: Kind
    required: bool
    dtype: str | None = None
    """The type of the frame that the estimator was fitted on; None where only the signature is known."""
    missing: float | None = None
    """How a missing value of the type `object` is written: None or NaN."""
    label: str | int = ""
    """Its name in the frame that the estimator was fitted on, which may be a number."""

    def to_series(self, values: Sequence[Any]) -> pd.Series:
        """Return values as the column of a frame that the estimator was fitted on; None is a missing value."""
        dtype: Any = self._dtype
        if dtype == "category":
            return pd.Series(pd.Categorical(list(values)))
        if self.kind.is_datetime:
            moments: Any = pd.Series(pd.to_datetime(list(values), utc=True))
            moments = moments if "," in dtype else moments.dt.tz_localize(None)
            return pd.Series(moments.astype(dtype))
        if (dtype == "bool" or dtype.startswith(("int", "uint"))) and any(value is None for value in values):
            dtype = "object" if dtype == "bool" else "float64"
        if dtype == "object" and self.missing is not None:
            values = [self.missing if value is None else value for value in values]
        series: pd.Series = pd.Series(values, dtype=dtype)
        return series

    @property
    def _dtype(self) -> str:
        return self.dtype if self.dtype is not None and DTYPES.fullmatch(self.dtype) else self.kind.frame

    def type(self, strict: bool) -> Any:
        """Return the type that pydantic validates.

        Args:
            strict: Whether values have types, as in JSON; the cells of a CSV are text.
        """
        if self.kind.is_datetime:
            return Annotated[datetime, BeforeValidator(check_moment)]
        rules: dict[str, Any] = {"strict": strict}
        if self.kind.minimum is not None:
            rules |= {"ge": self.kind.minimum, "le": self.kind.maximum}
        if self.kind.python is float:
            rules["allow_inf_nan"] = False
        python: Any = self.kind.python
        return Annotated[python, Field(**rules)]


def check_moment(value: Any) -> Any:
    """Return a moment, or the text of one, as it is.

    Raises:
        ValueError: It is neither, such as a number of seconds, or finer than a microsecond, which would be cut off.
    """
    if isinstance(value, datetime) or (isinstance(value, str) and ISO_8601.fullmatch(value)):
        return value
    raise ValueError("Input should be a date and a time in ISO 8601, no finer than a microsecond")


@dataclass(frozen=True)
class Schema:
    """The columns of a model's rows, in the order in which it was fitted."""

    columns: tuple[Column, ...]
    matrix: str | None = None
    """numpy's type of the matrix that the estimator was fitted on; None where it was a data frame. The columns of a matrix
    are named by their positions."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def is_numeric(self) -> bool:
        """Whether a matrix of numbers can hold the rows."""
        return all(column.kind.is_numeric for column in self.columns)

    def row_adapter(self) -> TypeAdapter[Any]:
        """Return the validator of one row in JSON."""
        make: Any = TypedDict  # the types are known only here
        fields = {c.name: c.type(True) if c.required else NotRequired[c.type(True) | None] for c in self.columns}
        return TypeAdapter(with_config(ConfigDict(extra="forbid"))(make("Row", fields)))


def parse_signature(document: Mapping[str, Any]) -> Schema:
    """Return the schema of an MLmodel document's signature.

    Raises:
        UnservableError: There is no signature, or it has columns that rows of JSON cannot hold.
    """
    signature = document.get("signature")
    if not signature or not signature.get("inputs"):
        raise UnservableError("it has no signature: log it with signature=infer_signature(...)")
    given = json.loads(signature["inputs"])
    if any(column.get("type") == "tensor" for column in given):
        return _parse_tensor(given)
    if given and all(column.get("name") is None for column in given):
        return _parse_unnamed([str(column.get("type")) for column in given])
    metadata = document.get("metadata") or {}
    dtypes, with_nan = metadata.get(ModelMetadata.DTYPES) or {}, metadata.get(ModelMetadata.MISSING_NAN) or ()
    columns = []
    for column in given:
        label, kind = column.get("name"), column.get("type")
        name = str(label)
        if label is None:
            raise UnservableError("its signature has columns with and without names")
        if kind not in KINDS:
            raise UnservableError(f"its column {name!r} has the type {kind}, which cannot be served")
        missing = math.nan if name in with_nan else None
        required = bool(column.get("required", True))
        columns.append(Column(name, KINDS[kind], required, dtypes.get(name), missing, label))
    if not columns or len({column.name for column in columns}) < len(columns):
        raise UnservableError("its signature has no columns, or two of one name")
    return Schema(tuple(columns))


def _parse_tensor(given: Sequence[Mapping[str, Any]]) -> Schema:
    """Return the schema of a signature that was inferred from a matrix of numpy."""
    described = given[0].get("tensor-spec") or {}
    shape, dtype = described.get("shape"), str(described.get("dtype"))
    if len(given) > 1 or not isinstance(shape, list) or len(shape) != 2 or not 0 < shape[1] <= MAX_MATRIX_COLUMNS:
        raise UnservableError("its signature is not of one matrix, rows by columns: fit and log it with a data frame")
    kinds = {kind.numpy: name for name, kind in KINDS.items() if kind.is_numeric}
    if dtype not in kinds:
        raise UnservableError(f"its matrix has the type {dtype}, which cannot be served: use a data frame")
    return _parse_unnamed([kinds[dtype]] * shape[1])


def _parse_unnamed(kinds: Sequence[str]) -> Schema:
    """Return the schema of columns without names, by MLflow's types: a matrix of numbers."""
    if not all(kind in KINDS and KINDS[kind].is_numeric for kind in kinds):
        raise UnservableError("its signature has columns without names that are no numbers: use a data frame")
    matrix = str(np.result_type(*(KINDS[kind].numpy for kind in kinds)))
    return Schema(tuple(Column(str(at), KINDS[kind], True, label=at) for at, kind in enumerate(kinds)), matrix)
