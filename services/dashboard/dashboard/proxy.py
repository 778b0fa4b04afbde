"""The caller's address behind a proxy."""

import asyncio
import socket

from starlette.requests import Request


async def caller_address(request: Request, proxy: str | None) -> str:
    """Return the address of a request's caller: the one that X-Forwarded-For names last, if the proxy sent the request.

    Args:
        request: The request; anybody may have sent it, with any header.
        proxy: The proxy's host name or address, which is looked up each time: a container's address changes.
    """
    sender = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    if proxy and forwarded and sender in await addresses_of(proxy):
        return forwarded[-1].rpartition(",")[2].strip()
    return sender


async def addresses_of(host: str) -> set[str]:
    """Return a host's addresses; none if it is unknown."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(address[0]) for *_, address in found}
