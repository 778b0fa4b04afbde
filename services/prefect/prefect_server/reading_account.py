"""A second account for Prefect's API, which may only read runs, deployments and work pools.

Prefect has a single account with all permissions. The middleware accepts a second credential for the requests of
`READ_REQUESTS`, forwards those as the first account, and answers all others with 403. Blocks, logs, and variables but for
the one with the findings of `make doctor` are not among them, since they may hold secrets, and the answers lack the
fields of `WITHHELD` for the same reason. Requests with any other credential pass unchanged.
"""

import hmac
import re
from base64 import b64encode
from typing import Any

import orjson
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard.contract import LOCKS_PATH, Resource

RESOURCES = "flows|flow_runs|task_runs|deployments|work_pools|work_queues"
READ_REQUESTS = {
    "GET": re.compile(rf"/api/(health|ready|version|{LOCKS_PATH[1:]}|variables/name/{Resource.DIAGNOSIS})"),
    "POST": re.compile(
        rf"/api/(({RESOURCES})/(filter|count|paginate|history)|work_pools/[^/]+/(queues|workers)/filter)"
    ),
}
WITHHELD = frozenset(
    {"parameters", "job_variables", "infra_overrides", "base_job_template", "pull_steps", "task_inputs", "context"}
)
"""Fields of runs, deployments and work pools in which people and projects may have put secrets."""


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
                # An answer that is not compressed can be parsed.
                replaced = (b"authorization", b"accept-encoding")
                others = [(name, value) for name, value in scope["headers"] if name not in replaced]
                scope = {**scope, "headers": [*others, (b"authorization", self.admin)]}
                send = WithholdingSend(send)
        await self.app(scope, receive, send)


class WithholdingSend:
    """Collects a response and sends it without the fields of `WITHHELD`, if it is JSON."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Take a message of the response; the last one sends all of it."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        headers, body = MutableHeaders(scope=self._start), self._body
        if headers.get("content-type", "").startswith("application/json"):
            body = orjson.dumps(withhold(orjson.loads(body)))
            headers["content-length"] = str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def withhold(value: Any) -> Any:
    """Return a JSON value without the fields of `WITHHELD`, at any depth."""
    if isinstance(value, dict):
        return {name: withhold(each) for name, each in value.items() if name not in WITHHELD}
    return [withhold(each) for each in value] if isinstance(value, list) else value


def basic_auth(login: str) -> bytes:
    """Return the Authorization header of a login, `user:password`."""
    return b"Basic " + b64encode(login.encode())


def is_read_request(method: str, path: str) -> bool:
    """Return whether the reading account may make a request."""
    return method in READ_REQUESTS and READ_REQUESTS[method].fullmatch(path) is not None
