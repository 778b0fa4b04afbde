"""A second account for Prefect's API that may read what a dashboard shows, and nothing else.

Prefect itself knows one account, which may do everything. This wrapper stands before it: a request with the second
account's credential goes on, as the first account's, when it is one of `READING`; it is refused otherwise. Blocks,
variables and logs are not among them, since they may hold secrets. All other requests pass as they came.
"""

import hmac
import re
from base64 import b64encode

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

RUNS = "flows|flow_runs|task_runs|deployments|work_pools|work_queues"
READING = {
    "GET": re.compile(r"/api/(health|ready|version)"),
    "POST": re.compile(
        rf"/api/(({RUNS})/(filter|count|paginate|history)|work_pools/[^/]+/(queues|workers)/filter)"  # these only look
    ),
}


def basic(login: str) -> bytes:
    """Return the header that a login, `user:password`, is sent in."""
    return b"Basic " + b64encode(login.encode())


class ReadingAccount:
    """Prefect's application with a reading account beside its own; both logins are `user:password`."""

    def __init__(self, app: ASGIApp, reader: str, admin: str) -> None:
        self.app = app
        self.reader, self.admin = basic(reader), basic(admin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if any(hmac.compare_digest(value, self.reader) for value in given):
                if not is_reading(scope["method"], scope["path"]):
                    refusal = JSONResponse({"detail": "This account may only read runs, deployments and pools."}, 403)
                    await refusal(scope, receive, send)
                    return
                others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
                scope = {**scope, "headers": [*others, (b"authorization", self.admin)]}
        await self.app(scope, receive, send)


def is_reading(method: str, path: str) -> bool:
    """Tell whether the reading account may make a request."""
    return method in READING and READING[method].fullmatch(path) is not None
