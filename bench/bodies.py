"""Bodies that are small and unpack to much, or take a parser much memory, for a model with a number `a` and a text `s`."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

JSON, CSV = "application/json", "text/csv"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"


def repeated(text: str, rows: int) -> Any:
    """Return an array that holds a text once and shows it in each row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def as_arrow(table: Any, media: str, compression: str | None = None) -> bytes:
    """Return a table as an Arrow stream or file."""
    sink = io.BytesIO()
    make = pa.ipc.new_stream if media == STREAM else pa.ipc.new_file
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_parquet(table: Any, **options: Any) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol writes it."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def parquet_footer(columns: int, groups: int = 0) -> bytes:
    """Return a Parquet file without data, whose metadata names many columns, and as many again in each row group."""
    root = b"\x48\x01r\x15" + varint(2 * columns) + b"\x00"
    schema = b"\x19\xfc" + varint(columns + 1) + root + b"\x48\x00\x00" * columns
    chunks = b"\x19\xfc" + varint(columns) + b"\x26\x00\x00" * columns
    group = chunks + b"\x16\x00\x16\x00\x00"
    metadata = b"\x15\x02" + schema + b"\x16\x00" + b"\x19\xfc" + varint(groups) + group * groups + b"\x00"
    return b"PAR1" + metadata + struct.pack("<I", len(metadata)) + b"PAR1"


def shared_fields(number: int) -> bytes:
    """Return an Arrow stream whose schema refers to one field many times: four bytes for each field."""
    # Message{version, header_type, header}, Schema{fields} and one Field{name}, as flatbuffers.
    out = bytearray(struct.pack("<I", 0))
    vtable = len(out)
    out += struct.pack("<HHHHH", 10, 12, 8, 10, 4) + b"\0\0"
    message = len(out)
    out += struct.pack("<i", message - vtable) + struct.pack("<I", 0) + struct.pack("<hBB", 4, 1, 0)
    struct.pack_into("<I", out, 0, message)
    vtable = len(out)
    out += struct.pack("<HHHH", 8, 8, 0, 4)
    schema = len(out)
    out += struct.pack("<iI", schema - vtable, 0)
    struct.pack_into("<I", out, message + 4, schema - (message + 4))
    struct.pack_into("<I", out, schema + 4, len(out) - (schema + 4))
    vector = len(out)
    field = vector + 4 + 4 * number
    vtable = field
    field += 12
    out += struct.pack("<I", number)
    out += b"".join(struct.pack("<I", field - (vector + 4 + 4 * at)) for at in range(number))
    out += struct.pack("<HHHHH", 10, 12, 4, 0, 8) + b"\0\0"
    out += struct.pack("<iIBBBB", field - vtable, 8, 1, 0, 0, 0) + struct.pack("<I", 0)
    out += b"\0" * (-len(out) % 8)
    return struct.pack("<II", 0xFFFFFFFF, len(out)) + bytes(out)


def bombs(max_bytes: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield the name, the media type and the bytes of each body; none is longer than `max_bytes`."""
    yield from json_bombs(max_bytes)
    yield from csv_bombs(max_bytes)
    yield from arrow_bombs(max_bytes)
    yield from parquet_bombs(max_bytes)


def json_bombs(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield texts of nothing but structure, and batches that are wrong in each value."""
    yield "json-arrays", JSON, b"[" + b"[]," * (size // 3 - 1) + b"[]]"
    yield "json-objects", JSON, b"[" + b"{}," * (size // 3 - 1) + b"{}]"
    yield "json-numbers", JSON, b"[" + b"0," * (size // 2 - 2) + b"0]"
    yield "json-texts", JSON, b'["' + b'","' * (size // 3 - 2) + b'"]'
    yield "json-array-of-a-field", JSON, b'{"a":[' + b"0," * (size // 2 - 10) + b"0]}"
    yield "json-depth", JSON, b"[" * size
    yield "json-depth-of-objects", JSON, b'{"a":' * (size // 5)
    keys = b",".join(b'"%x":1' % number for number in range(size // 10))
    yield "json-many-names", JSON, b"{" + keys + b"}"
    yield "json-many-names-of-a-row", JSON, b"[{" + keys + b"}]"
    row = b'{"a":"x"},'
    yield "json-wrong-values", JSON, b"[" + row * min(9_999, size // len(row) - 2) + row[:-1] + b"]"
    yield "json-digits", JSON, b'{"a":' + b"9" * (size - 10) + b"}"
    yield "json-a-long-text", JSON, b'{"a":1,"s":"' + b"x" * (size - 20) + b'"}'
    yield "json-a-long-name", JSON, b'{"a":1,"' + b"x" * (size - 20) + b'":1}'
    yield "json-escapes", JSON, b'{"a":1,"s":"' + b"\\u00ff" * (size // 6 - 4) + b'"}'
    yield "json-wide-characters", JSON, b'{"a":1,"s":"' + "\U0001f327".encode() * (size // 4 - 5) + b'"}'
    yield "json-unclosed", JSON, b'["' + b"\\" * (size - 3)


def csv_bombs(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield tables of nothing but commas, and batches that are wrong in each value."""
    yield "csv-header", CSV, b"," * size
    yield "csv-header-of-names", CSV, b",".join(b"%x" % number for number in range(size // 8))
    yield "csv-a-line", CSV, b"a,s\n" + b"," * (size - 4)
    yield "csv-a-record-of-lines", CSV, b"a,s\n" + b'a,"\n",' * ((size - 4) // 7)
    yield "csv-wrong-values", CSV, b"a,s\n" + b"x,y\n" * (min(10_000, size // 4 - 1))
    yield "csv-lines", CSV, b"a,s\n" + b"1,y\n" * (size // 4 - 1)
    yield "csv-empty-lines", CSV, b"a,s\n" + b"\n" * (size - 4)
    yield "csv-a-cell", CSV, b'a,s\n1,"' + b"x" * (size - 8) + b'"'
    yield "csv-wide-characters", CSV, b"a,s\n" + ("1," + "\U0001f327" * 250 + "\n").encode() * (size // 1003 - 1)


def arrow_bombs(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield dictionaries, views, runs and compressed columns, and a schema that refers to one field many times."""
    rows = 9_000
    numbers, zeros = pa.array([0.0] * rows), pa.array(np.zeros(4_000_000))
    text = "x" * (size // 2)
    for media in (STREAM, FILE):
        kind = media.rpartition(".")[2]
        yield f"{kind}-dictionary", media, as_arrow(pa.table({"a": numbers, "s": repeated(text, rows)}), media)
        view = struct.pack("<i4sii", len(text), text[:4].encode(), 0, 0)
        buffers = [None, pa.py_buffer(view * rows), pa.py_buffer(text.encode())]
        views = pa.Array.from_buffers(pa.string_view(), rows, buffers)
        yield f"{kind}-views", media, as_arrow(pa.table({"a": numbers, "s": views}), media)
        runs = pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([text]))
        yield f"{kind}-runs", media, as_arrow(pa.table({"a": numbers, "s": runs}), media)
        yield f"{kind}-nulls", media, as_arrow(pa.table({"a": pa.nulls(10**7), "s": pa.nulls(10**7)}), media)
        yield f"{kind}-compressed", media, as_arrow(pa.table({"a": zeros}), media, "zstd")
        dictionary = pa.DictionaryArray.from_arrays(pa.array([0]), zeros)
        yield f"{kind}-compressed-dictionary", media, as_arrow(pa.table({"a": dictionary}), media, "zstd")
        columns = {f"c{number}": pa.nulls(1) for number in range(min(20_000, size // 200))}
        yield f"{kind}-columns", media, as_arrow(pa.table(columns), media)
    nested: Any = pa.array([1])
    for _ in range(40):
        nested = pa.StructArray.from_arrays([nested], ["x"])
    yield "stream-nested", STREAM, as_arrow(pa.table({"a": nested}), STREAM)
    yield "stream-shared-fields", STREAM, shared_fields(min(900_000, size // 4 - 64))


def parquet_bombs(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield dictionaries, shared prefixes, compressed pages and metadata without data."""
    rows = 9_000
    numbers = pa.array([0.0] * rows)
    for length in (200_000, 1_000_000, 3_000_000):
        table = pa.table({"s": repeated("x" * min(length, size), rows), "a": numbers})
        yield f"parquet-dictionary-of-{length}", PARQUET, as_parquet(table, compression="zstd", store_schema=False)
    prefixes = pa.table({"a": numbers, "s": pa.array(["x" * 20_000]).take(pa.array([0] * rows))})
    yield (
        "parquet-prefixes",
        PARQUET,
        as_parquet(prefixes, use_dictionary=False, column_encoding={"s": "DELTA_BYTE_ARRAY"}),
    )
    yield "parquet-lengths", PARQUET, as_parquet(prefixes, use_dictionary=False, compression="zstd")
    wide = pa.table({f"c{number}": numbers for number in range(200)})
    yield "parquet-unknown-columns", PARQUET, as_parquet(wide, compression="zstd")
    zeros = pa.table({"a": pa.array(np.zeros(4_000_000))})
    yield "parquet-rows", PARQUET, as_parquet(zeros, compression="zstd", use_dictionary=False)
    lists = pa.table({"a": pa.array([[0.0] * 100_000] * 10)})
    yield "parquet-lists", PARQUET, as_parquet(lists, compression="zstd")
    yield "parquet-groups", PARQUET, as_parquet(pa.table({"a": numbers[:2_000]}), row_group_size=1)[-size:]
    columns = min(900_000, size // 3 - 16)
    yield "parquet-columns", PARQUET, parquet_footer(columns)
    yield "parquet-columns-of-groups", PARQUET, parquet_footer(1_000, min(2_000, size // 3_020 - 2))
