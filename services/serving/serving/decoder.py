"""Decodes Arrow and Parquet bodies in a process of its own, which has a limit of memory: `python -m serving.decoder`.

Both formats can describe gigabytes in a few hundred bytes, in more ways than their metadata tells, and their readers
are C++ that a damaged body may crash. Here either costs one request and this process, which the service starts again.

It reads requests from standard input and writes replies to standard output, as `serving.wire` describes them.
"""

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as types

from serving.problems import MAX_PROBLEMS
from serving.wire import PARQUET, READY, REPLY, REQUEST, STREAM, Job, Wanted

FIRST_MOMENT, LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999, which Python knows, in microseconds since the epoch."""

# By the Python type of a column: the Arrow types that are accepted, and the one that they are cast to.
ACCEPTED = {
    "float": (lambda given: types.is_floating(given) or types.is_integer(given), pa.float64()),
    "int": (types.is_integer, pa.int64()),
    "bool": (types.is_boolean, pa.bool_()),
    "str": (lambda t: types.is_string(t) or types.is_large_string(t) or types.is_string_view(t), pa.large_string()),
    "datetime": (lambda given: types.is_timestamp(given) or types.is_date(given), pa.timestamp("us")),
}


class RefusedError(Exception):
    """The body is refused: a code of `serving.problems`, its message, and (problem, field, row) of each problem."""

    def __init__(
        self, code: str, message: str = "", problems: Sequence[tuple[str, str | None, int | None]] = ()
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.problems = code, message, problems


def decode(job: Job, body: bytes) -> list[bytes]:
    """Return the lines of a reply: the number of rows, and the values of each column as a JSON array.

    A missing value is null, a moment the microseconds since the epoch.

    Raises:
        RefusedError: The body does not fit the signature or the limits.
        ArrowException, OSError, ValueError, TypeError, NotImplementedError, OverflowError: It is damaged.
        MemoryError: It unpacks to more than this process may hold.
    """
    table = read_parquet(job, body) if job.media == PARQUET else read_arrow(job, body)
    table.validate(full=True)  # offsets may point outside of the body
    if not table.num_rows:
        raise RefusedError("invalid-rows", "There are no rows.")
    lines, size = [b"%d" % table.num_rows], 0
    for column in job.columns:
        if column.name in table.column_names:
            lines.append(encode_column(column, table.column(column.name)))
        else:
            lines.append(orjson.dumps([None] * table.num_rows))
        size += len(lines[-1])
        if size > job.max_bytes:
            raise MemoryError
    return lines


def read_parquet(job: Job, body: bytes) -> Any:
    """Return the wanted columns of a Parquet file."""
    file = pq.ParquetFile(pa.BufferReader(body))
    check_schema(job, file.schema_arrow)
    check_rows(job, file.metadata.num_rows)
    names = set(file.schema_arrow.names)
    return file.read(columns=[column.name for column in job.columns if column.name in names], use_threads=False)


def read_arrow(job: Job, body: bytes) -> Any:
    """Return the wanted columns of an Arrow stream or file."""
    source = pa.BufferReader(body)
    opened = pa.ipc.open_stream(source) if job.media == STREAM else pa.ipc.open_file(source)
    schema = opened.schema
    check_schema(job, schema)
    wanted = {column.name for column in job.columns}
    chosen = [at for at, name in enumerate(schema.names) if name in wanted]
    options = pa.ipc.IpcReadOptions(included_fields=chosen, use_threads=False)
    source.seek(0)
    batches, rows = [], 0
    for batch in _batches(source, job.media, options):
        check_rows(job, rows := rows + batch.num_rows)
        batches.append(batch)
    return pa.Table.from_batches(batches, pa.schema([schema.field(at) for at in chosen]))


def _batches(source: Any, media: str, options: Any) -> Iterator[Any]:
    if media == STREAM:
        yield from pa.ipc.open_stream(source, options=options)
    else:
        file = pa.ipc.open_file(source, options=options)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def check_rows(job: Job, rows: int) -> None:
    """Refuse a body with too many rows or cells."""
    if rows > job.max_rows:
        raise RefusedError("too-many-rows")
    if rows * len(job.columns) > job.max_cells:
        raise MemoryError


def check_schema(job: Job, schema: Any) -> None:
    """Refuse columns that are unknown, repeated, missing or of another type; pandas' index is ignored."""
    names = [name for name in schema.names if not name.startswith("__index_level_")]
    wanted = {column.name: column for column in job.columns}
    problems: list[tuple[str, str | None, int | None]] = []
    for name in names:
        if name not in wanted:
            problems.append(("is not in the signature", name[:200], None))
        if len(problems) == MAX_PROBLEMS:
            break
    counts = dict.fromkeys(wanted, 0)
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    for column in job.columns:
        if counts[column.name] > 1:
            problems.append(("is repeated", column.name, None))
        elif counts[column.name] == 0 and column.required:
            problems.append(("is missing", column.name, None))
        elif counts[column.name] == 1:
            given = schema.field(column.name).type
            values = given.value_type if types.is_dictionary(given) else given
            if not types.is_null(values) and not ACCEPTED[column.type][0](values):
                problems.append((f"has the type {str(given)[:100]}", column.name, None))
    if problems:
        raise RefusedError("invalid-rows", problems=problems[:MAX_PROBLEMS])


def encode_column(column: Wanted, values: Any) -> bytes:
    """Return a column's values as a JSON array.

    Raises:
        RefusedError: A value is missing, not finite, or out of range.
    """
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        values = values.cast(ACCEPTED[column.type][1]).combine_chunks()
    except pa.ArrowInvalid as error:
        raise RefusedError("invalid-rows", problems=[(first_line(error), column.name, None)]) from error
    if column.required and values.null_count:
        raise _refusal("is missing", column, pc.is_null(values))
    if column.type == "datetime":
        values = values.cast(pa.int64())
        _check_range(column, values, FIRST_MOMENT, LAST_MOMENT, "is outside of the years 1 to 9999")
    elif column.type == "float":
        finite = pc.is_finite(values)
        if not pc.all(finite, min_count=0).as_py():
            raise _refusal("is not a finite number", column, pc.invert(finite), "not-finite")
        _check_range(column, values, column.minimum, column.maximum, f"is beyond {column.maximum:g}")
    elif column.type == "int":
        bounds = f"is outside of {column.minimum} to {column.maximum}"
        _check_range(column, values, column.minimum, column.maximum, bounds)
    if column.type == "str" or values.null_count:
        return orjson.dumps(values.to_pylist())
    return orjson.dumps(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)), option=orjson.OPT_SERIALIZE_NUMPY)


def _check_range(column: Wanted, values: Any, minimum: Any, maximum: Any, text: str) -> None:
    low, high = (pa.scalar(bound, values.type) for bound in (minimum, maximum))
    outside = pc.or_(pc.less(values, low), pc.greater(values, high))
    if pc.any(outside, min_count=0).as_py():
        raise _refusal(text, column, outside)


def _refusal(text: str, column: Wanted, wrong: Any, code: str = "invalid-rows") -> RefusedError:
    rows = pc.indices_nonzero(pc.fill_null(wrong, False))[:MAX_PROBLEMS].to_pylist()
    return RefusedError(code, problems=[(text, column.name, row) for row in rows])


def first_line(error: BaseException) -> str:
    """Return the start of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def answer(job: Job, body: bytes) -> bytes:
    """Return the reply to a request."""
    try:
        return b"\n".join(decode(job, body))
    except RefusedError as error:
        refusal = {"code": error.code, "message": error.message, "problems": error.problems}
    except MemoryError:
        refusal = {"code": "body-too-large", "message": "", "problems": []}
    except (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError, OverflowError, KeyError) as error:
        refusal = {"code": "malformed", "message": f"The body is not {job.media}: {first_line(error)}", "problems": []}
    return orjson.dumps(refusal)


class WithoutPandas(MetaPathFinder):
    """Hides pandas from pyarrow, which would import it on first use and take 50 MiB for nothing."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Raise for pandas; leave other modules to the next finder.

        Raises:
            ModuleNotFoundError: As if pandas were not installed.
        """
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def address_space() -> int:
    """Return the size of this process's address space in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def limit_memory(max_bytes: int) -> int:
    """Limit what this process may allocate beyond what it has; return the address space it started with."""
    base = address_space()
    if base:
        resource.setrlimit(resource.RLIMIT_AS, (base + max_bytes, base + max_bytes))
        with suppress(OSError):  # where the container is short of memory, this process ends first
            Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return base


def run(requests: BinaryIO, replies: BinaryIO, max_bytes: int) -> None:
    """Answer requests until the input ends, or until half of the memory is not given back: a new process has all of it."""
    sys.meta_path.insert(0, WithoutPandas())
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    base = limit_memory(max_bytes)
    replies.write(READY)
    replies.flush()
    while head := requests.read(REQUEST.size):
        header, length = REQUEST.unpack(head)
        job = Job.from_json(requests.read(header))
        reply = answer(job, requests.read(length))
        replies.write(REPLY.pack(len(reply)))
        replies.write(reply)
        replies.flush()
        del reply
        if address_space() > base + max_bytes // 2:
            return


if __name__ == "__main__":
    # A crash inside of Arrow prints to the log of the service; what Arrow might print to standard output must not mix
    # with the replies.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run(sys.stdin.buffer, output, int(sys.argv[1]))
