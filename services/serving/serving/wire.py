"""What the service and the process that decodes Arrow and Parquet send each other.

A request is `REQUEST`, a `Job` in JSON, and the body. A reply is `REPLY` and lines of JSON: the number of rows and a line
for each column, or one object: the code, message and problems of a refusal.
"""

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import orjson

STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
READY = b"ready"
"""What the process writes once it has started."""
REQUEST, REPLY = struct.Struct("<QQ"), struct.Struct("<Q")
"""The lengths of the job and the body; the length of the reply."""


@dataclass(frozen=True)
class Wanted:
    """A column of the signature."""

    name: str
    type: str
    required: bool
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True)
class Job:
    """What is said of a body: its media type, the columns to read, and how much of it may be read."""

    media: str
    columns: Sequence[Wanted]
    max_rows: int
    max_cells: int
    max_bytes: int
    """The longest reply."""

    def as_json(self) -> bytes:
        """Return the job as it is sent."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Return the job that was sent."""
        given = orjson.loads(content)
        return cls(**{**given, "columns": [Wanted(**column) for column in given["columns"]]})
