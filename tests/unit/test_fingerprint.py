"""Digests of values that change with content, and with nothing else."""

import pickle
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import BaseModel, ConfigDict

from flows.wine import model
from trainyard.candidates import Candidate
from trainyard.fingerprint import fingerprint
from trainyard.fitting import fit
from trainyard.frames import Frame
from trainyard.problem import divide

CHECKOUT = Path(__file__).parents[2]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass
class Point:
    x: float
    tags: frozenset[str] = frozenset()


class Data(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    frame: Frame


def make_frame(first: float = 0.5) -> pd.DataFrame:
    days = pd.date_range("2026-01-01", periods=3, name="day")
    return pd.DataFrame({"speed": [first, 2.5, 4.0], "name": ["a", "b", "c"], "count": [1, 2, 3]}, index=days)


@given(PLAIN, PLAIN)
def test_digests_are_equal_for_equal_values_of_the_same_types_only(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))
    assert (fingerprint(one) == fingerprint(other)) == (
        repr(one) == repr(other) or (one == other and have_same_types(one, other))
    )


def have_same_types(one: Any, other: Any) -> bool:
    """Return whether two equal values have the same types throughout; 1, 1.0 and True are equal and do not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return all(map(have_same_types, one, other))
    if isinstance(one, dict):
        # The order of a mapping counts: columns and arguments follow it.
        return list(one) == list(other) and all(have_same_types(value, other[key]) for key, value in one.items())
    return repr(one) == repr(other)


def test_a_frame_counts_by_its_cells_types_index_and_columns() -> None:
    frame = make_frame()
    changed = [
        make_frame(0.5 + 1e-12),
        frame.rename(columns={"speed": "wind"}),
        frame[frame.columns[::-1]],
        frame.iloc[::-1],
        frame.astype({"speed": "float32"}),
        frame.set_axis(frame.index + pd.Timedelta(days=1)),
    ]
    digests = {fingerprint(each) for each in [frame, *changed]}

    assert len(digests) == 1 + len(changed)
    assert fingerprint(frame.copy()) == fingerprint(frame)


@pytest.mark.parametrize("candidate", model.CANDIDATES[::3], ids=lambda each: each.name)
def test_a_fitted_estimator_is_the_same_after_pickling(candidate: Candidate) -> None:
    problem = model.make_problem()
    fitted = fit(problem, divide(problem, model.read_wines()), candidate)

    assert fingerprint(pickle.loads(pickle.dumps(fitted))) == fingerprint(fitted)


def test_dataclasses_and_pydantic_models_count_by_their_fields() -> None:
    assert fingerprint(Point(1.0)) != fingerprint(Point(1.0, frozenset({"a"})))
    assert fingerprint(Data(frame=make_frame())) == fingerprint(Data(frame=make_frame()))
    assert fingerprint(Data(frame=make_frame())) != fingerprint(Data(frame=make_frame(1.0))), "excluded from its JSON"


def test_a_digest_is_the_same_in_another_process() -> None:
    program = (
        "from trainyard.fingerprint import fingerprint; import pandas as pd;"
        "print(fingerprint([pd.DataFrame({'x': [1.5, None]}), {'b': {1, 'x'}, 'a': None}]))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(CHECKOUT)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)

    assert shown.stdout.strip() == fingerprint([pd.DataFrame({"x": [1.5, None]}), {"b": {"x", 1}, "a": None}])


def open_file() -> Any:
    return Path(__file__).open()


def make_generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "unknown", [make_generator(), open_file(), np.array([make_generator()], dtype=object), threading.Thread()]
)
def test_a_value_without_content_is_refused(unknown: Any) -> None:
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprint({"date": date(2020, 1, 1), "unknown": unknown})


class Level(Enum):
    LOW = 1


class Rank(IntEnum):
    LOW = 1


class Weight:
    """An object like any other, with an attribute that is computed on demand."""

    def __init__(self, kg: float) -> None:
        self.kg = kg

    @cached_property
    def grams(self) -> float:
        return self.kg * 1000


def test_a_computed_attribute_is_no_content() -> None:
    before = fingerprint(weight := Weight(1.5))

    assert weight.grams == 1500
    assert fingerprint(weight) == before != fingerprint(Weight(2.5))


def test_a_schema_counts_by_its_checks_and_not_by_its_use() -> None:
    def make_schema(low: float, check: Any = pa.Check.in_range) -> pa.DataFrameSchema:
        return pa.DataFrameSchema({"x": pa.Column(float, check(low, 5))})

    schema = make_schema(0)
    before = fingerprint(schema)
    schema.validate(pd.DataFrame({"x": [1.0]}))

    assert fingerprint(schema) == before == fingerprint(make_schema(0))
    assert before not in {fingerprint(make_schema(1)), fingerprint(make_schema(0, lambda low, high: pa.Check.ge(low)))}


def categories(*names: str, ordered: bool = False) -> "pd.Series[Any]":
    return pd.Series(pd.Categorical(["a", "b"], categories=names, ordered=ordered))


def series(*cells: Any, dtype: Any = object, **options: Any) -> "pd.Series[Any]":
    return pd.Series(list(cells), dtype=dtype, **options)


OBJECTS = np.array([1, "a"], dtype=object), np.array(["1", "a"], dtype=object)
ALL_DIFFERENT: dict[str, list[Any]] = {
    "zeros and ones": [0, 0.0, -0.0, False, "0", b"0", None, 1, 1.0, True, "1", np.int64(1), np.float32(1), Decimal(1)],
    "enums": [Level.LOW, Rank.LOW, 1],
    "collections": [
        [],
        (),
        {},
        set(),
        frozenset(),
        deque(),
        deque(maxlen=3),
        OrderedDict(),
        defaultdict(list),
        defaultdict(int),
    ],
    "nesting": [[1, 2], [[1], 2], [[1, 2]], [1, [2]], ["1, 2"]],
    "order": [{"a": 1, "b": 2}, {"b": 2, "a": 1}, [1, 2], [2, 1]],
    "times": [
        date(2026, 1, 1),
        datetime(2026, 1, 1),
        datetime(2026, 1, 1, tzinfo=UTC),
        pd.Timestamp(2026, 1, 1),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        "2026-01-01",
    ],
    "missing": [
        series(None),
        series(np.nan),
        series(pd.NA),
        series(pd.NaT),
        series("nan"),
        series("None"),
        series(np.nan, dtype=float),
    ],
    "mixed cells": [series(1, "a"), series("1", "a"), series(1.0, "a"), series(True, "a"), series(b"1", "a")],
    "categories": [
        categories("a", "b"),
        categories("b", "a"),
        categories("a", "b", "c"),
        categories("a", "b", ordered=True),
        series("a", "b"),
        series("a", "b", dtype="str"),
    ],
    "dtypes": [
        series(1, 2, dtype=each) for each in ("int64", "int32", "uint64", "float64", "Int64", "Float64", "bool", object)
    ],
    "nullable": [series(1, None, dtype="Int64"), series(1, 1, dtype="Int64"), series(1, 0, dtype="Int64")],
    "time zones": [
        series("2026-01-01", dtype=each) for each in ("datetime64[ns]", "datetime64[s]", "datetime64[ns, UTC]")
    ],
    "series": [series(1), series(1, index=[1]), series(1, name="x"), series(1, index=pd.Index([0], name="i"))],
    "columns": [
        pd.DataFrame({"a": [1], "b": [1]}),
        pd.DataFrame({"b": [1], "a": [1]}),
        pd.DataFrame({"a": [1]}),
        pd.DataFrame([[1, 1]], columns=["a", "a"]),
        pd.DataFrame([[1, 1]]),
        pd.DataFrame([[1, 1]], columns=["0", "1"]),
        pd.DataFrame([[1, 1]], columns=pd.Index(["a", "b"], name="c")),
        pd.DataFrame({"a": [], "b": []}),
        pd.DataFrame(),
    ],
    "indexes": [
        pd.RangeIndex(2),
        pd.Index([0, 1]),
        pd.Index(["0", "1"]),
        pd.Index([0, "1"]),
        pd.Index([0, 1], name="i"),
        pd.date_range("2026-01-01", periods=2),
        pd.DatetimeIndex(["2026-01-01", "2026-01-02"]),
        pd.MultiIndex.from_tuples([(0, 1)]),
        pd.MultiIndex.from_tuples([(0, "1")]),
        pd.CategoricalIndex([0, 1]),
        pd.CategoricalIndex([0, 1], categories=[1, 0]),
    ],
    "arrays": [
        *OBJECTS,
        np.array([1, 2]),
        np.array([[1, 2]]),
        np.array([1, 2], "i4"),
        np.array([1.0, 2.0]),
        np.ma.masked_array([1, 2], [True, False]),
        np.ma.masked_array([1, 2], [False, False]),
    ],
    "code": [lambda: 1, lambda: 2, len, sorted, Level, Rank, int, model, date.today],
}


@pytest.mark.parametrize("values", ALL_DIFFERENT.values(), ids=ALL_DIFFERENT)
def test_values_that_differ_have_different_digests(values: list[Any]) -> None:
    digests = [fingerprint(value) for value in values]

    pairs = [(one, other) for (one, a), (other, b) in combinations(zip(values, digests, strict=True), 2) if a == b]
    assert pairs == []
    assert digests == [fingerprint(value) for value in values]


CELLS = {
    "float64": st.floats(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "datetime64[ns]": st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
    "category": st.sampled_from("abc"),
    "str": st.none() | st.text(max_size=3),
    object: st.none() | st.just(np.nan) | st.integers() | st.booleans() | st.text(max_size=3) | st.floats(),
}
DTYPES = st.sampled_from(list(CELLS))


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from([*"abcd", 0, 1]), min_size=1, max_size=3, unique=True))
    cells: dict[Any, tuple[Any, Any]] = {
        name: (dtype := draw(DTYPES), draw(st.lists(CELLS[dtype], min_size=rows, max_size=rows))) for name in names
    }
    columns = {name: pd.Series(values, dtype=dtype) for name, (dtype, values) in cells.items()}
    return pd.DataFrame(columns)


def with_other_cell(frame: pd.DataFrame, row: int, column: int) -> pd.DataFrame:
    """Return the frame with another value, as an object, in one cell."""
    cells = frame.iloc[:, column].astype(object).tolist()
    cells[row] = ("another", cells[row])
    changed = frame.copy()
    other: Any = pd.Series(cells, dtype=object, index=frame.index)
    changed.isetitem(column, other)
    return changed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), st.data())
def test_a_frame_has_the_digest_of_its_copy_and_not_that_of_its_mutation(
    frame: pd.DataFrame, data: st.DataObject
) -> None:
    row, column = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, frame.shape[1] - 1))
    name = frame.columns[column]
    mutations = {
        "cell": with_other_cell(frame, row, column),
        "name": frame.rename(columns={name: "another"}),
        "dtype": frame.astype({name: "str" if pd.api.types.is_object_dtype(frame.dtypes.iloc[column]) else object}),
        "index": frame.set_axis(frame.index + 1),
        "index name": frame.rename_axis("another"),
        "rows": frame.iloc[:-1],
        "more": frame.assign(another=1),
    }
    if frame.shape[1] > 1:
        mutations["order of columns"] = frame[frame.columns[::-1]]
    same = fingerprint(frame)

    assert same == fingerprint(frame.copy()) == fingerprint(pickle.loads(pickle.dumps(frame)))
    assert [change for change, mutated in mutations.items() if fingerprint(mutated) == same] == []


@settings(max_examples=40, deadline=None)
@given(arrays(st.sampled_from(["f8", "f4", "i8", "u1", "?", "U3", "M8[s]", "c16"]), st.integers(1, 4)))
def test_an_array_has_the_digest_of_its_copy_and_not_that_of_another_shape_or_type(array: Any) -> None:
    same = fingerprint(array)

    assert same == fingerprint(array.copy()) == fingerprint(np.asfortranarray(array))
    assert same not in {
        fingerprint(array[None]),
        fingerprint(array.astype(object)),
        fingerprint(array[:-1]),
        fingerprint(list(array)),
    }


def test_a_path_counts_by_its_content_too(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    digests = [fingerprint(file)]
    for text in ("a", "b"):
        file.write_text(text)
        digests += [fingerprint(file), fingerprint(tmp_path)]
    same = fingerprint(file)
    file.rename(tmp_path / "other.csv")

    assert len({*digests, fingerprint(tmp_path), fingerprint(tmp_path / "other.csv")}) == 7
    assert same == digests[-2]


def test_a_value_within_itself_has_a_digest() -> None:
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [2]
    other.append(other)

    assert fingerprint(one) != fingerprint(other)
