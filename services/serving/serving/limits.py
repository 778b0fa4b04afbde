"""The limits of a body, and the size of a JSON document before it is parsed."""

from dataclasses import dataclass

import numpy as np

from serving.problems import RequestError

BYTES_PER_CELL = 8
SMALL_BYTES = 64 * 1024
"""A JSON document of this size is parsed without being measured: at the worst it becomes a hundred times as large."""


@dataclass(frozen=True)
class Limits:
    """How much a request may send."""

    max_rows: int
    max_body_bytes: int = 8 * 2**20

    @property
    def max_cells(self) -> int:
        """The most values of a table: as many as the largest body has numbers of 8 bytes."""
        return max(self.max_body_bytes // BYTES_PER_CELL, 1)

    def too_many_rows(self) -> RequestError:
        """Return the refusal of a batch that has too many rows."""
        return RequestError("too-many-rows", f"A request may have {self.max_rows} rows: send several.")

    def too_many_cells(self) -> RequestError:
        """Return the refusal of a body that has too many values."""
        return RequestError("body-too-large", f"A request may have {self.max_cells} values: send several.")


@dataclass(frozen=True)
class JsonSize:
    """How many arrays, objects and values a JSON document has at most."""

    arrays: int
    objects: int
    values: int


def measure_json(body: bytes) -> JsonSize:
    """Return the size of a JSON document from its brackets and commas.

    A parsed document may take 100 times the memory of its text: `[[],[],...`. Brackets and commas within strings do not
    count; in a document that is not JSON, those after the first error may.
    """
    # Without escapes every quote begins or ends a string.
    quoted = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    text = np.frombuffer(quoted, dtype=np.uint8)
    outside = ~np.logical_xor.accumulate(text == ord('"'))
    arrays, objects, commas = (int(np.count_nonzero((text == ord(each)) & outside)) for each in "[{,")
    return JsonSize(arrays, objects, arrays + objects + commas + 1)


def check_json(body: bytes, limits: Limits, max_arrays: int) -> None:
    """Refuse a JSON document that has more objects than rows may be sent, or more values than a table may have.

    Args:
        body: The document, in UTF-8, not parsed yet.
        limits: Those of the request.
        max_arrays: How many arrays a document of the expected form has at most.

    Raises:
        RequestError: It has more.
    """
    if len(body) <= SMALL_BYTES:
        return
    size = measure_json(body)
    if size.objects > limits.max_rows:
        raise limits.too_many_rows()
    if size.arrays > max_arrays or size.values > limits.max_cells + limits.max_rows + max_arrays:
        raise limits.too_many_cells()
