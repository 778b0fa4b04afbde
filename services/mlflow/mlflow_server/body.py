"""The body of a request for code that reads files."""

import asyncio
from collections.abc import AsyncIterable


class Body:
    """The body of a request as a file that a thread beside the event loop reads. It ends early with the request's error."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._loop = asyncio.get_running_loop()
        self._ahead = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes: fewer than asked for at the end alone, all of them without a size."""
        return asyncio.run_coroutine_threadsafe(self._receive(size), self._loop).result()

    async def peek(self, size: int) -> bytes:
        """Return what the next `read` of this size returns."""
        self._ahead = await self._receive(size) + self._ahead
        return self._ahead[:size]

    async def _receive(self, size: int) -> bytes:
        parts, number = [self._ahead], len(self._ahead)
        while size < 0 or number < size:
            try:
                parts.append(await anext(self._chunks))
            except StopAsyncIteration:
                break
            number += len(parts[-1])
        received = b"".join(parts)
        end = len(received) if size < 0 else size
        self._ahead = received[end:]
        return received[:end]
