"""The body of a request that a thread reads while it arrives."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mlflow_server.body import Body


async def arriving(*chunks: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    """Yield chunks as a server does, then perhaps fail."""
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error:
        raise error


def in_thread(*sizes: int, peek: int = 0, **body: Any) -> list[bytes]:
    """Return what a thread reads by these sizes."""

    async def main() -> list[bytes]:
        opened = Body(arriving(*body.pop("chunks"), **body))
        ahead = [await opened.peek(peek)] if peek else []
        return ahead + await asyncio.to_thread(lambda: [opened.read(size) for size in sizes])

    return asyncio.run(main())


@pytest.mark.parametrize("chunks", [[b"abcdefg"], [b"ab", b"", b"cdefg"], [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]])
def test_as_many_bytes_are_read_as_are_asked_for_until_the_end(chunks: list[bytes]) -> None:
    assert in_thread(3, 3, 3, 3, chunks=chunks) == [b"abc", b"def", b"g", b""]
    assert in_thread(2, -1, -1, chunks=chunks) == [b"ab", b"cdefg", b""]


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_what_was_looked_at_is_read_again(size: int) -> None:
    ahead, first, rest = in_thread(size, -1, peek=size, chunks=[b"abcd", b"efg"])

    assert ahead == first == b"abcdefg"[:size]
    assert ahead + rest == b"abcdefg"


def test_a_body_that_ends_early_is_no_end() -> None:
    with pytest.raises(ConnectionError, match="went away"):
        in_thread(3, 3, chunks=[b"abcd"], error=ConnectionError("the client went away"))
