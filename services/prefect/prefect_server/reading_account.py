"""A second account for Prefect's API, which may only read runs, deployments and work pools.

Prefect has a single account with all permissions. The middleware accepts a second credential for the requests of
`READ_REQUESTS`, forwards those as the first account, and answers all others with 403. Blocks, variables and logs are not
among them, since they may hold secrets. Requests with any other credential pass unchanged.
"""

import hmac
import re
from base64 import b64encode

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trainyard.contract import LOCKS_PATH

RESOURCES = "flows|flow_runs|task_runs|deployments|work_pools|work_queues"
READ_REQUESTS = {
    "GET": re.compile(rf"/api/(health|ready|version|{LOCKS_PATH[1:]})"),
    "POST": re.compile(
        rf"/api/(({RESOURCES})/(filter|count|paginate|history)|work_pools/[^/]+/(queues|workers)/filter)"
    ),
}


class ReadingAccountMiddleware:
    """Restrict one of two credentials to reading; both are `user:password`."""

    def __init__(self, app: ASGIApp, reader: str, admin: str) -> None:
        self.app = app
        self.reader, self.admin = basic_auth(reader), basic_auth(admin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request or refuse it."""
        if scope["type"] == "http":
            credentials = [value for name, value in scope["headers"] if name == b"authorization"]
            if any(hmac.compare_digest(value, self.reader) for value in credentials):
                if not is_read_request(scope["method"], scope["path"]):
                    refusal = JSONResponse({"detail": "This account may only read runs, deployments and pools."}, 403)
                    await refusal(scope, receive, send)
                    return
                others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
                scope = {**scope, "headers": [*others, (b"authorization", self.admin)]}
        await self.app(scope, receive, send)


def basic_auth(login: str) -> bytes:
    """Return the Authorization header of a login, `user:password`."""
    return b"Basic " + b64encode(login.encode())


def is_read_request(method: str, path: str) -> bool:
    """Return whether the reading account may make a request."""
    return method in READ_REQUESTS and READ_REQUESTS[method].fullmatch(path) is not None
