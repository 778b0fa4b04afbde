"""A recorded request, and its form in the database's bulk format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from serving.batches import Predictions
from serving.prediction_id import to_text
from trainyard.contract import Column, Table
from trainyard.contract import Record as RecordFields

NULL = b"\\N"
"""Of COPY's text format."""


@dataclass(frozen=True, slots=True)
class Record:
    """A request that was answered with predictions."""

    at: float
    """Seconds since the epoch."""
    model: str
    version: int
    names: Sequence[str]
    columns: Sequence[Sequence[Any]]
    """The inputs, by column in the order of `names`."""
    predictions: Predictions
    about: Mapping[str, Any] | None = None
    """What the rows are about, where a hook made them (`trainyard.contract.Record`)."""
    shadow: bool = False
    """Whether no caller got these predictions, because another version answered."""
    prediction_id: int | None = None
    """What labels name the request by (`serving.prediction_id`); a shadow prediction has the id of the answer."""
    classes: Sequence[Any] | None = None
    """A classifier's classes, in the order of its probabilities."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.predictions.values)

    def size(self) -> int:
        """Return about how many bytes of memory it takes."""
        probabilities = self.predictions.probabilities
        rows = len(self.predictions.values)
        width = len(self.columns) + 1 + (len(probabilities[0]) if probabilities else 0)
        texts = sum(len(cell) for column in self.columns for cell in column if isinstance(cell, str))
        return 1000 + (64 + 32 * rows) * width + texts

    def line(self) -> bytes:
        """Return it as a line of COPY's text format, in the order of `record_store.COPY`.

        Raises:
            TypeError: JSON cannot hold a value.
        """
        values, probabilities = self.predictions.values, self.predictions.probabilities
        inputs = {Table.COLUMNS: self.names, Table.DATA: list(zip(*self.columns, strict=True))}
        if probabilities is None:
            outputs = {Table.COLUMNS: [Column.PREDICTION], Table.DATA: [[value] for value in values]}
        else:
            numbers = range(len(probabilities[0]))
            outputs = {
                Table.COLUMNS: [Column.PREDICTION, *(f"{RecordFields.PROBABILITY_PREFIX}{n}" for n in numbers)],
                Table.DATA: [[value, *row] for value, row in zip(values, probabilities, strict=True)],
            }
        about, classes = (
            _escape(orjson.dumps(each)) if each is not None else NULL for each in (self.about, self.classes)
        )
        identifier = to_text(self.prediction_id).encode() if self.prediction_id is not None else NULL
        at = datetime.fromtimestamp(self.at, UTC).isoformat().encode()
        shadow = b"t" if self.shadow else b"f"
        cells = (at, _escape(self.model.encode()), b"%d" % self.version, shadow)
        tables = (_escape(orjson.dumps(inputs)), _escape(orjson.dumps(outputs)))
        return b"\t".join((*cells, *tables, about, identifier, b"%d" % self.rows, classes)) + b"\n"


def _escape(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
