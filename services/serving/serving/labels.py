"""Labels: the ground truth of earlier predictions, checked against what was predicted before any of them is stored."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving.limits import Limits, check_json
from serving.prediction_id import is_recorded, parse_id, to_text
from serving.problems import MAX_PROBLEMS, Problem, RequestError
from trainyard.contract import Label as LabelField

CSV, JSON = "text/csv", "application/json"
MAX_NAMED_CLASSES = 20
MAX_TEXT_LENGTH = 1000
"""Of a label that is text; no class has a longer name."""
KEYS = (LabelField.ID, LabelField.ROW, LabelField.VALUE)
NO_ID = "is not the id of a prediction"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What labels of a recorded prediction must fit."""

    model: str
    rows: int
    classes: Sequence[Any] | None
    """A classifier's; None for a regressor."""


@dataclass(frozen=True, slots=True)
class Label:
    """The ground truth of a row of a prediction."""

    prediction_id: int
    row: int | None
    """None where the request gave none."""
    value: Any


@dataclass(frozen=True, slots=True)
class Given:
    """The labels of a request."""

    labels: Sequence[Label]
    """By their position in the request, from 0."""
    is_text: bool
    """Whether values are the text of a CSV."""


class LabelProblems:
    """Collects what is wrong with labels by their positions, as many problems as an answer may have."""

    def __init__(self) -> None:
        self._found: list[Problem] = []
        self._unknown = 0

    def add(self, position: int, field: str, text: str, *, unknown: bool = False) -> None:
        """Add a problem; `unknown` is one of an id for which there is no prediction."""
        self._found.append(Problem(text, field, position))
        self._unknown += unknown
        if len(self._found) == MAX_PROBLEMS:
            self.refuse()

    def refuse(self) -> None:
        """Refuse the labels if there is a problem.

        Raises:
            RequestError: There is one; its message is the first.
        """
        if not self._found:
            return
        first = self._found[0]
        code = "unknown-prediction" if self._unknown == len(self._found) else "invalid-labels"
        message = f"Label {first.row}, field {first.field!r}: {first.problem}. No label of the request is stored."
        raise RequestError(code, message, self._found)


def read_labels(body: bytes, content_type: str, limits: Limits) -> Given:
    """Return the labels of a request's body.

    Args:
        body: JSON, an object or an array of objects with `id`, `row` and `value`; or a CSV with these columns.
        content_type: The header.
        limits: How much a request may send.

    Raises:
        RequestError: It is malformed, has too many labels, or one that is incomplete.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media not in (JSON, CSV):
        raise RequestError("content-type", f"Content-Type is {media[:200] or 'missing'!r}: send {JSON} or {CSV}.")
    items = _read_json(body, limits) if media == JSON else list(_read_csv(body, limits))
    if len(items) > limits.max_rows:
        raise limits.too_many_rows()
    if not items:
        raise RequestError("malformed", "There are no labels.")
    problems, labels = LabelProblems(), list[Label]()
    for position, item in enumerate(items):
        if (label := _parse(item, position, problems, is_text=media == CSV)) is not None:
            labels.append(label)
    problems.refuse()
    return Given(labels, media == CSV)


def check_labels(given: Given, known: Mapping[int, Recorded], model: str) -> tuple[list[Label], int]:
    """Return the labels that are to be stored, with rows and with classes as the model has them.

    Args:
        given: The labels.
        known: By id, the predictions that are recorded.
        model: The registered model whose predictions they are.

    Returns:
        The labels, and the number of those whose prediction was not recorded.

    Raises:
        RequestError: A label does not fit its prediction, which may be unknown; none may be stored then.
    """
    problems, checked, unrecorded = LabelProblems(), dict[tuple[int, int], Label](), 0
    for position, label in enumerate(given.labels):
        if not is_recorded(label.prediction_id):
            unrecorded += 1
            continue
        recorded = known.get(label.prediction_id)
        if recorded is None or recorded.model != model:
            reason = "there is no recorded prediction of this model with this id, or it was deleted with its day"
            problems.add(position, LabelField.ID, reason, unknown=True)
            continue
        row = 0 if label.row is None and recorded.rows == 1 else label.row
        if row is None or row >= recorded.rows:
            reason = f"the prediction has {recorded.rows} rows, counted from 0"
            problems.add(position, LabelField.ROW, reason)
            continue
        try:
            value = fit_value(label.value, recorded.classes, is_text=given.is_text)
        except ValueError as error:
            problems.add(position, LabelField.VALUE, str(error))
            continue
        if (label.prediction_id, row) in checked:
            problems.add(position, LabelField.ROW, "another label of the request is about the same row")
        checked[label.prediction_id, row] = Label(label.prediction_id, row, value)
    problems.refuse()
    return [checked[key] for key in sorted(checked)], unrecorded


def fit_value(value: Any, classes: Sequence[Any] | None, *, is_text: bool) -> Any:
    """Return a label as the model has it: one of a classifier's classes, or a number.

    Args:
        value: As it was sent.
        classes: A classifier's; None for a regressor.
        is_text: Whether it is a cell of a CSV.

    Raises:
        ValueError: The model cannot predict it.
    """
    if classes is None:
        return _to_number(value, is_text)
    for each in classes:
        if is_text:
            if value in (str(each), orjson.dumps(each).decode()):
                return each
        # In Python, True is 1 and 1 is 1.0; of these, only numbers are one class.
        elif value == each and isinstance(value, bool) == isinstance(each, bool):
            return each
    named = ", ".join(orjson.dumps(each).decode() for each in classes[:MAX_NAMED_CLASSES])
    more = f" and {len(classes) - MAX_NAMED_CLASSES} more" if len(classes) > MAX_NAMED_CLASSES else ""
    raise ValueError(f"is none of the model's classes, which are {named}{more}")


def _to_number(value: Any, is_text: bool) -> float:
    if is_text:
        try:
            value = float(value)
        except ValueError:
            value = None
    # An integer of JSON may be larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is not a finite number, which the model predicts")
    return value


def _read_json(body: bytes, limits: Limits) -> list[Any]:
    check_json(body, limits, max_arrays=1)
    try:
        document = orjson.loads(body)
    except ValueError as error:
        raise RequestError("malformed", f"The body is not JSON: {error}.") from error
    return document if isinstance(document, list) else [document]


def _read_csv(body: bytes, limits: Limits) -> Iterator[dict[str, Any]]:
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header = next(lines, [])
        if unknown := [name for name in header if name not in KEYS]:
            raise RequestError("malformed", f"The CSV has a column {unknown[0][:200]!r}: send {', '.join(KEYS)}.")
        if len(set(header)) < len(header):
            raise RequestError("malformed", "Two columns of the CSV have the same name.")
        for number, cells in enumerate(line for line in lines if line):
            if number >= limits.max_rows:
                raise limits.too_many_rows()
            if len(cells) != len(header):
                raise RequestError("malformed", "A line of the CSV does not fit its header.")
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    except (csv.Error, UnicodeDecodeError) as error:
        raise RequestError("malformed", f"The body is not a CSV in UTF-8: {error}.") from error


def _parse(item: Any, position: int, problems: LabelProblems, *, is_text: bool) -> Label | None:
    if not isinstance(item, dict):
        problems.add(position, LabelField.ID, "each label is an object with id, row and value")
        return None
    if unknown := [key for key in item if key not in KEYS]:
        problems.add(position, unknown[0][:200], f"is unknown: a label has {', '.join(KEYS)}")
        return None
    row, value = item.get(LabelField.ROW), item.get(LabelField.VALUE)
    if is_text and row is not None:
        row = int(row) if row.isascii() and row.isdecimal() and len(row) < 10 else -1
    if row is not None and (isinstance(row, bool) or not isinstance(row, int) or row < 0):
        problems.add(position, LabelField.ROW, "is not the number of a row, counted from 0")
        return None
    if value is None:
        problems.add(position, LabelField.VALUE, "is missing")
        return None
    if not isinstance(value, bool | int | float | str) or len(str(value)) > MAX_TEXT_LENGTH:
        problems.add(position, LabelField.VALUE, f"is no number, boolean or text of up to {MAX_TEXT_LENGTH} characters")
        return None
    identifier = item.get(LabelField.ID)
    if identifier is None:
        problems.add(position, LabelField.ID, "is missing")
        return None
    try:
        return Label(parse_id(identifier), row, value)
    except ValueError:
        problems.add(position, LabelField.ID, NO_ID)
        return None


def as_columns(labels: Sequence[Label]) -> tuple[list[str], list[int | None], list[str]]:
    """Return the ids, rows and values of labels as a database takes them; values are JSON."""
    return (
        [to_text(label.prediction_id) for label in labels],
        [label.row for label in labels],
        [orjson.dumps(label.value).decode() for label in labels],
    )
