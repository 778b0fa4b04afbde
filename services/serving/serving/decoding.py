"""Runs the process that decodes Arrow and Parquet (`serving.decoder`), within limits of memory and time."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import orjson

from serving.limits import Limits
from serving.problems import Problem, RequestError
from serving.schema import Schema
from serving.wire import READY, REPLY, REQUEST, Job, Wanted

MAX_SECONDS, MAX_START_SECONDS = 10.0, 60.0
"""A body that takes longer is refused; a process that takes longer to start is ended."""
MEMORY_RATIO, MIN_MEMORY_BYTES = 16, 64 * 2**20
"""How many times the largest body's size the process may allocate."""
MAX_HEADER_BYTES = 2**20
MAX_REPLY_RATIO = 4
"""How many times the largest body's size the decoded values may have, as JSON."""


class DecodingProcess:
    """A process that is started by the first body, and again after a body that ended it."""

    def __init__(self, limits: Limits, max_seconds: float = MAX_SECONDS) -> None:
        self._max_memory = max(MEMORY_RATIO * limits.max_body_bytes, MIN_MEMORY_BYTES)
        self._limits, self._max_seconds = limits, max_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def decode(self, body: bytes, media: str, schema: Schema) -> tuple[list[list[Any]], int]:
        """Return the values of each column of the schema, and the number of rows.

        Raises:
            RequestError: The body is damaged, does not fit the schema, or unpacks to more than the limits.
        """
        reply = self._ask(_job(media, schema, self._limits).as_json(), body)
        if reply[:1] == b"{":
            raise self._refusal(orjson.loads(reply))
        rows, *lines = reply.split(b"\n")
        del reply
        columns = []
        for column, line in zip(schema.columns, lines, strict=True):
            values = orjson.loads(line)
            columns.append(_moments(values) if column.kind.is_datetime else values)
        return columns, int(rows)

    def _refusal(self, refusal: dict[str, Any]) -> RequestError:
        problems = [Problem(text, field, row) for text, field, row in refusal["problems"]]
        code, message = refusal["code"], refusal["message"]
        if code == "body-too-large":
            return self._too_large()
        if code == "too-many-rows":
            return self._limits.too_many_rows()
        return RequestError(code, message, problems)

    def _too_large(self) -> RequestError:
        return RequestError("body-too-large", "The body unpacks to too much: send several.")

    def _ask(self, job: bytes, body: bytes) -> bytes:
        with self._lock:
            for _ in range(2):
                try:
                    process = self._running()
                    with self._deadline(process, self._max_seconds):
                        return self._exchange(process, job, body)
                except BrokenPipeError:
                    if self._end() != 0:  # else it ended by itself before it read this body
                        break
            raise self._too_large()

    def _exchange(self, process: subprocess.Popen[bytes], job: bytes, body: bytes) -> bytes:
        assert process.stdin is not None
        process.stdin.write(REQUEST.pack(len(job), len(body)) + job)
        process.stdin.write(body)
        process.stdin.flush()
        (length,) = REPLY.unpack(_read(process, REPLY.size))
        if length > MAX_REPLY_RATIO * self._limits.max_body_bytes + MAX_HEADER_BYTES:
            raise BrokenPipeError("the reply is longer than the process may send")
        return _read(process, length)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            # No variable of this process is passed on: some are secrets.
            environment = {
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "ARROW_DEFAULT_MEMORY_POOL": "system",
                "MALLOC_ARENA_MAX": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONOPTIMIZE": str(sys.flags.optimize or ""),  # else the image's compiled files would not be used
            }
            command = [sys.executable, "-m", "serving.decoder", str(self._max_memory)]
            self._process = subprocess.Popen(command, stdin=-1, stdout=-1, env=environment, start_new_session=True)
            with self._deadline(self._process, MAX_START_SECONDS):
                _read(self._process, len(READY))
        return self._process

    @contextmanager
    def _deadline(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> int | None:
        """End the process, if there is one; return its exit code where it had ended by itself."""
        if self._process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        code = self._process.poll()
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()
        self._process = None
        return code


def _read(process: subprocess.Popen[bytes], length: int) -> bytes:
    assert process.stdout is not None
    content = process.stdout.read(length)
    if len(content) < length:
        raise BrokenPipeError("the process ended")
    return content


def _job(media: str, schema: Schema, limits: Limits) -> Job:
    columns = [
        Wanted(c.name, c.kind.python.__name__, c.required, c.kind.minimum, c.kind.maximum) for c in schema.columns
    ]
    return Job(media, columns, limits.max_rows, limits.max_cells, MAX_REPLY_RATIO * limits.max_body_bytes)


def _moments(values: list[int | None]) -> list[Any]:
    missing = np.iinfo(np.int64).min  # numpy's NaT, which becomes None again
    moments: list[Any] = np.array([missing if v is None else v for v in values], "datetime64[us]").tolist()
    return moments
