"""The HTTP protocol of the service: uvicorn's, which refuses requests for an overloaded model before it handles them.

At many times the sustainable rate, parsing and routing alone would take all of the processor: a refusal here takes a
small part of that. Clients send the same head again and again, so that most refusals need no parsing at all.
"""

import asyncio
from typing import Any, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.admission import OVERLOADED, Limiter, Limiters, now
from serving.problems import CODES, RETRY_AFTER_SECONDS
from serving.service import HAS_LEFT

MAX_BUFFERED_BYTES = 65536
END_OF_HEAD = b"\r\n\r\n"

_BODY = orjson.dumps(
    # With the keys of all protocols: here it is not known which one the caller speaks.
    {"code": "overloaded", "message": OVERLOADED, "error": OVERLOADED, "error_code": "TEMPORARILY_UNAVAILABLE"}
)
REFUSAL = (
    b"HTTP/1.1 %d Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: %d\r\n"
    b"cache-control: no-store\r\n\r\n%b"
    % (CODES["overloaded"][0], len(_BODY), RETRY_AFTER_SECONDS["overloaded"], _BODY)
)


class JoiningTransport:
    """Sends the head and the body of a response in one system call, where uvicorn writes them apart."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._parts, self._size = transport, list[bytes](), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep some bytes for `flush`."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was written."""
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()
            self._size = 0

    def close(self) -> None:
        """Send what was written, and close the connection."""
        self.flush()
        self._transport.close()


class ServingProtocol(HttpToolsProtocol):
    """A connection."""

    limiters: Limiters
    """Set by `protocol_with`."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._refused_by: Limiter | None = None
        """The limiter that refuses the request that is read."""
        self._limiter: Limiter | None = None
        """The limiter of the request that is read, if it has one."""
        self._entered: Limiter | None = None
        """The limiter of the request that is in flight."""
        self._is_reading = False
        """Whether a request has begun and is not complete."""
        self._data, self._has_begun = b"", False
        """What is parsed, and whether a request has begun in it."""
        self._refused_at: float | None = None
        """When the last request was refused, if nothing has arrived since then."""
        self._idle_check: asyncio.TimerHandle | None = None
        """Closes a connection that is idle after a refusal, as uvicorn's timer would, which costs more to restart."""

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        self._connection = transport
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type] # the part that uvicorn uses

    def data_received(self, data: bytes) -> None:
        """Read requests; refuse one at once whose head is known."""
        if not self._is_reading and not self._is_answering():
            end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
            known = self.limiters.of_heads.get(data[:end])
            if known is not None and len(data) == end + known[1] and not known[0].admits(now()):
                self._unset_keepalive_if_required()
                if not self._connection.is_closing():
                    self._refuse()
                return
        self._data, self._has_begun = data, False
        super().data_received(data)
        self._data = b""

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        self._is_reading, self._has_begun, self._refused_at = True, True, None
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Refuse a request, or begin to handle it."""
        limiter = None if self._is_answering() else self.limiters.of_paths.get(self.url.partition(b"?")[0])
        self._refused_by = limiter if limiter is not None and not limiter.admits(now()) else None
        if self._refused_by is not None:
            if self.expect_100_continue:  # the caller would wait before it sends the body
                self._refuse()
                self.transport.close()
            return
        self._limiter = limiter
        cast(dict[str, Any], self.scope)[HAS_LEFT] = self.transport.is_closing
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if self._refused_by is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Count a request that has arrived completely, or send its refusal."""
        self._is_reading = False
        if self._refused_by is not None:
            if self._connection.is_closing():
                return
            self._refuse()
            if not self.parser.should_keep_alive():
                self.transport.close()
            elif self._has_begun:
                self._remember_head(self._refused_by)
            return
        if self._limiter is not None and not self.cycle.response_complete:
            self._entered, self._limiter = self._limiter, None
            self._entered.in_flight += 1
        super().on_message_complete()

    def _remember_head(self, limiter: Limiter) -> None:
        """Remember the head of the refused request if it is all of the data."""
        head, found, body = self._data.partition(END_OF_HEAD)
        lengths = [value for name, value in self.headers if name in (b"content-length", b"transfer-encoding")]
        if found and head.startswith(b"POST ") and lengths == [str(len(body)).encode()]:
            self.limiters.remember_head(head + found, limiter, len(body))

    def _refuse(self) -> None:
        self._connection.write(REFUSAL)
        self._refused_at = now()
        if self._idle_check is None:
            self._idle_check = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._idle_check = None
        if self._refused_at is None or self._connection.is_closing():
            return
        if (left := self._refused_at + self.timeout_keep_alive - now()) > 0:
            self._idle_check = self.loop.call_later(left, self._close_if_idle)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """End a request."""
        self.transport.flush()  # type: ignore[attr-defined]
        self._leave()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and its request."""
        if self._idle_check is not None:
            self._idle_check.cancel()
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        if self._entered is not None:
            self._entered.in_flight -= 1
            self._entered = None


def protocol_with(limiters: Limiters) -> type[ServingProtocol]:
    """Return the class of connections whose requests pass these limiters."""

    class LimitedProtocol(ServingProtocol):
        pass

    LimitedProtocol.limiters = limiters
    return LimitedProtocol
