"""Bodies of requests: what each format may hold, and bodies that are damaged or unpack to much."""

import csv
import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.decoding import DecodingProcess
from serving.limits import Limits, measure_json
from serving.payloads import JSON, Reader
from serving.problems import MAX_PROBLEMS, RequestError
from serving.schema import Schema, parse_signature

from bench.bodies import CSV, FILE, PARQUET, STREAM, as_arrow, as_parquet, bombs

LIMITS = Limits(max_rows=10_000, max_body_bytes=2**20)


def schema_of(*columns: tuple[str, str] | tuple[str, str, bool]) -> Schema:
    inputs = [{"name": name, "type": kind, "required": not optional} for name, kind, *optional in columns]
    return parse_signature({"signature": {"inputs": json.dumps(inputs)}})


SCHEMA = schema_of(("a", "double"), ("s", "string", True))


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcess]:
    """The process that decodes Arrow and Parquet."""
    process = DecodingProcess(LIMITS)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def reader(decoding: DecodingProcess) -> Reader:
    """The reader of a model with a required number `a` and an optional text `s`."""
    return Reader(SCHEMA, LIMITS, decoding)


BOMBS = {name: (media, body) for name, media, body in bombs(2**20)}
ALLOWED = {"json-a-long-text", "json-escapes", "json-wide-characters", "csv-wide-characters", "parquet-groups"}
ALLOWED |= {"stream-compressed-dictionary", "file-compressed-dictionary"}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_that_unpacks_to_much_is_refused_or_small(reader: Reader, name: str) -> None:
    media, body = BOMBS[name]
    assert len(body) <= 2**20

    if name in ALLOWED:
        table = reader.read(body, media)
        assert table.rows * len(table.columns) <= LIMITS.max_cells
        return
    with pytest.raises(RequestError) as refused:
        reader.read(body, media)

    assert refused.value.status in (400, 413, 422)
    assert len(refused.value.problems) <= MAX_PROBLEMS
    assert len(json.dumps(refused.value.as_json())) < 10_000


def test_a_body_that_takes_too_long_or_crashes_its_reader_is_refused_and_the_next_is_read() -> None:
    body = as_arrow(pa.table({"a": [1.0]}), STREAM)
    slow = DecodingProcess(LIMITS, max_seconds=0.1)
    small = DecodingProcess(LIMITS)
    try:
        os.kill(slow._running().pid, signal.SIGSTOP)
        with pytest.raises(RequestError) as too_slow:
            slow.decode(body, STREAM, SCHEMA)
        before = small.decode(body, STREAM, SCHEMA)
        assert small._process is not None
        small._process.kill()
        small._process.wait()
        after = small.decode(body, STREAM, SCHEMA)
    finally:
        slow.stop()
        small.stop()

    assert too_slow.value.code == "body-too-large"
    assert before == after == ([[1.0], [None]], 1)


def test_the_process_that_decodes_bodies_is_given_no_secret(
    decoding: DecodingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_API_KEY", "a key of the tests")
    decoding.stop()

    decoding.decode(as_arrow(pa.table({"a": [1.0]}), STREAM), STREAM, SCHEMA)

    assert decoding._process is not None
    environment = Path(f"/proc/{decoding._process.pid}/environ").read_text()
    assert "PYTHONPATH" in environment
    assert "a key" not in environment


MOMENT = datetime(2026, 3, 1, 12, 30, 15, 250_001)
TYPES: dict[str, tuple[list[Any], Any]] = {
    "double": ([1.5, None, -0.0], pa.float64()),
    "float": ([0.5, None, 2.0], pa.float32()),
    "long": ([2**53 + 1, None, -(2**63)], pa.int64()),
    "integer": ([1, None, -(2**31)], pa.int32()),
    "boolean": ([True, None, False], pa.bool_()),
    "string": (["x", None, "ü"], pa.string()),
    "datetime": ([MOMENT, None, datetime(1, 1, 1)], pa.timestamp("us")),
}


@pytest.mark.parametrize("media", [STREAM, FILE, PARQUET, JSON, CSV])
def test_each_type_is_read_from_each_format(decoding: DecodingProcess, media: str) -> None:
    schema = schema_of(*((name, name, True) for name in TYPES))
    table = pa.table({name: pa.array(values, kind) for name, (values, kind) in TYPES.items()})
    rows = [
        {name: cell.isoformat() if isinstance(cell, datetime) else cell for name, cell in row.items()}
        for row in table.to_pylist()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, TYPES)
    writer.writeheader()
    writer.writerows(rows)
    make = {
        JSON: lambda: json.dumps(rows).encode(),
        CSV: lambda: text.getvalue().encode(),
        PARQUET: lambda: as_parquet(table),
        STREAM: lambda: as_arrow(table, STREAM, "zstd"),
        FILE: lambda: as_arrow(table, FILE, "lz4"),
    }

    read = Reader(schema, LIMITS, decoding).read(make[media](), media)

    assert dict(zip(schema.names, read.columns, strict=True)) == {name: values for name, (values, _) in TYPES.items()}
    assert [type(cell) for column in read.columns for cell in column[:1]] == [
        float,
        float,
        int,
        int,
        bool,
        str,
        datetime,
    ]


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("double", pa.array([1.0, 1e300]), "is beyond"),
        ("double", pa.array([1.0, None]), "is missing"),
        ("double", pa.array([1.0, np.inf]), "is not a finite number"),
        ("double", pa.array([1, 2**53 + 1]), "Integer value 9007199254740993 not in range"),
        ("double", pa.array(["1", "2"]), "has the type string"),
        ("integer", pa.array([1, 2**31]), "is outside of -2147483648 to 2147483647"),
        ("long", pa.array([1, 2**63], pa.uint64()), "Integer value 9223372036854775808 not in range"),
        ("datetime", pa.array([0, 1], pa.timestamp("ns")), "would lose data"),
        ("datetime", pa.array([0, 2**62], pa.timestamp("us")), "is outside of the years 1 to 9999"),
        ("string", pa.array(["x", None]).dictionary_encode(), "is missing"),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_refused_and_its_row_named(
    decoding: DecodingProcess, kind: str, values: Any, problem: str
) -> None:
    reader = Reader(schema_of(("a", kind)), LIMITS, decoding)

    with pytest.raises(RequestError) as refused:
        reader.read(as_arrow(pa.table({"a": values}), STREAM), STREAM)

    assert refused.value.code == ("not-finite" if "finite" in problem else "invalid-rows")
    assert problem in refused.value.problems[0].problem
    assert refused.value.problems[0].field == "a"
    if "is " in problem[:3]:
        assert refused.value.problems[0].row == 1


@pytest.mark.parametrize("moment", [0, "1700000000", "2026-01-01T00:00:00.0000001", "soon", True])
def test_a_moment_is_text_in_iso_8601_and_never_rounded(decoding: DecodingProcess, moment: Any) -> None:
    reader = Reader(schema_of(("at", "datetime")), LIMITS, decoding)

    for document in ({"at": moment}, [{"at": moment}]):
        with pytest.raises(RequestError) as refused:
            reader.read(json.dumps(document).encode(), JSON)
        assert refused.value.problems[0].field == "at"


def test_brackets_and_commas_within_strings_are_no_values() -> None:
    document = [{"a": 1, 'b,[{"\\': "x,[]{}\\"}, {"a": [2, {}], "b": 'say "\\", '}]

    size = measure_json(json.dumps(document).encode())

    assert (size.arrays, size.objects) == (2, 3)
    assert 5 <= size.values <= 10


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(alphabet='a\\",[{é'),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a\\",[{'), inner),
    )
)
def test_no_json_document_has_more_than_was_measured(document: Any) -> None:
    def count(node: Any) -> tuple[int, int, int]:
        inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        parts = [count(each) for each in inner]
        own = (int(isinstance(node, list)), int(isinstance(node, dict)), 1)
        arrays, objects, values = (sum(column) for column in zip(own, *parts, strict=True))
        return arrays, objects, values

    size = measure_json(json.dumps(document, ensure_ascii=False).encode())

    arrays, objects, values = count(document)
    assert (size.arrays, size.objects) == (arrays, objects)
    assert size.values >= values


def test_a_text_full_of_brackets_is_a_value(reader: Reader) -> None:
    text = "[{," * 100_000

    table = reader.read(json.dumps([{"a": 1, "s": text}]).encode(), JSON)

    assert table.columns[1] == [text]


@settings(max_examples=100, deadline=None, database=None)
@given(
    form=st.sampled_from([STREAM, FILE, PARQUET, CSV, JSON]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=3),
    length=st.integers(0, 5000),
)
def test_a_damaged_body_is_refused_or_read_and_nothing_else(
    reader: Reader, form: str, edits: list[tuple[int, int]], length: int
) -> None:
    body = bytearray(WHOLE[form])
    for at, byte in edits:
        body[at % len(body)] = byte

    with suppress(RequestError):
        reader.read(bytes(body[:length]), form)


FRAME = pd.DataFrame({"a": [0.5, 1.5, 2.5], "s": pd.Categorical(["x", None, "y"])})
WHOLE = {
    STREAM: as_arrow(pa.Table.from_pandas(FRAME), STREAM, "zstd"),
    FILE: as_arrow(pa.Table.from_pandas(FRAME), FILE),
    PARQUET: as_parquet(pa.Table.from_pandas(FRAME)),
    CSV: FRAME.to_csv(index=False).encode(),
    JSON: FRAME.to_json(orient="records").encode(),
}


def test_the_problems_of_a_batch_are_the_first_ones_of_any_column(reader: Reader) -> None:
    rows: list[Any] = [{"a": "x", "s": 1, "t": 2} for _ in range(9_000)]

    with pytest.raises(RequestError) as refused:
        reader.read(json.dumps(rows).encode(), JSON)
    with pytest.raises(RequestError) as late:
        reader.read(json.dumps([*[{"a": 1}] * 5_000, {"s": 3}, 4]).encode(), JSON)

    assert len(refused.value.problems) == MAX_PROBLEMS
    assert [(each.row, each.field) for each in late.value.problems] == [(5001, None)]
