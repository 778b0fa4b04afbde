"""Loaded by each member of a Dask cluster with TLS (`preload` in its settings): what a broken connection leaves behind is not read.

OpenSSL keeps errors per thread. When a write to one connection fails because its other side has gone, Python may find that error
at the next read of another one, takes it for that one's, and Tornado closes it: with OpenSSL 3.5 a worker that joined cost all
others their connection. A read of a socket never ends with a broken pipe, so here it means that there is nothing to read yet.

Source: https://github.com/python/cpython/issues/127257. Remove it when a cluster survives a join without it (tests/stack/test_dask.py).
"""

from typing import Any

from tornado.iostream import SSLIOStream

read_from_fd = SSLIOStream.read_from_fd


def read_what_is_there(stream: SSLIOStream, buffer: Any) -> int | None:
    """Return how many bytes were read into the buffer, or None if there are none yet."""
    try:
        return read_from_fd(stream, buffer)
    except BrokenPipeError:
        return None


SSLIOStream.read_from_fd = read_what_is_there  # type: ignore[assignment, method-assign]
