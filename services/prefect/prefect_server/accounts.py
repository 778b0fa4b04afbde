"""Accounts beside the admin's for Prefect's API, each restricted to a list of requests (`prefect_server.permissions`).

Prefect has a single account with all permissions. The middleware accepts further credentials, forwards what their
permissions list as the first account, and answers everything else with 403 and a sentence that says who may. Requests with
any other credential pass unchanged.
"""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
Filter = Callable[[Any], Any]
"""Takes the JSON of an answer and returns what the account sees of it.

Raises:
    Refused: It sees nothing.
"""


class Refused(Exception):
    """The account may not do or see this."""


@dataclass(frozen=True)
class Permissions:
    """What an account may request; paths begin with /api/."""

    refusal: str
    """The sentence that answers everything else."""
    requests: Mapping[str, re.Pattern[str]]
    """By method, the paths."""
    sockets: re.Pattern[str] = re.compile("(?!)")
    """The paths of web sockets."""
    body_checks: Sequence[tuple[re.Pattern[str], Callable[[Any], bool]]] = ()
    """By path, whether a POST request with this JSON is one of them."""
    filters: Sequence[tuple[re.Pattern[str], Filter]] = field(default=())
    """By path, what the account sees of the answer."""

    def allow(self, method: str, path: str) -> bool:
        """Return whether the account may make a request."""
        return method in self.requests and self.requests[method].fullmatch(path) is not None


class AccountsMiddleware:
    """Restrict credentials, each `user:password`, to the permissions of their accounts."""

    def __init__(self, app: ASGIApp, admin: str, accounts: Mapping[str, Permissions]) -> None:
        self.app = app
        self.admin, self.admin_header = admin, basic_auth(admin)
        self.accounts = [(login, basic_auth(login), permissions) for login, permissions in accounts.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request or refuse it."""
        if scope["type"] == "http" and (permissions := self._find(scope)):
            try:
                forwarded = await self._authorize(permissions, scope, receive, send)
            except Refused:
                await JSONResponse({"detail": permissions.refusal}, 403)(scope, receive, send)
                return
            await self.app(*forwarded)
            return
        if scope["type"] == "websocket":
            receive = self._authenticate(scope["path"], receive)
        await self.app(scope, receive, send)

    def _find(self, scope: Scope) -> Permissions | None:
        """Return the permissions of a request's account, or None for one that is Prefect's own concern."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                for _, header, permissions in self.accounts:
                    if hmac.compare_digest(value, header):
                        return permissions
        return None

    async def _authorize(
        self, permissions: Permissions, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Scope, Receive, Send]:
        """Return an account's request as one of the admin.

        Raises:
            Refused: It is none of the account's.
        """
        method, path = scope["method"], scope["path"]
        if not permissions.allow(method, path):
            raise Refused
        replaced: tuple[bytes, ...] = (b"authorization",)
        if method == "POST" and (check := find(permissions.body_checks, path)):
            body = await read_body(receive)
            if not check(parse(body)):
                raise Refused
            receive = replay(body)
        if filter_ := find(permissions.filters, path):
            replaced = (b"authorization", b"accept-encoding")  # an answer that is not compressed can be parsed
            send = FilteringSend(send, filter_, permissions.refusal)
        others = [(name, value) for name, value in scope["headers"] if name not in replaced]
        return {**scope, "headers": [*others, (b"authorization", self.admin_header)]}, receive, send

    def _authenticate(self, path: str, receive: Receive) -> Receive:
        """Return a web socket's `receive` that replaces the login in its first message by the admin's, where it may.

        Prefect closes a socket whose first message has another login.
        """
        is_first = True

        async def receiving() -> Message:
            nonlocal is_first
            message = await receive()
            if is_first and message["type"] == "websocket.receive":
                is_first = False
                return self._replace_token(path, message)
            return message

        return receiving

    def _replace_token(self, path: str, message: Message) -> Message:
        first = parse(message.get("text") or message.get("bytes") or b"")
        token = first.get("token") if isinstance(first, dict) else None
        if not isinstance(token, str):
            return message
        for login, _, permissions in self.accounts:
            if hmac.compare_digest(token.encode(), login.encode()) and permissions.sockets.fullmatch(path):
                return {"type": message["type"], "text": json.dumps({**first, "token": self.admin})}
        return message


class FilteringSend:
    """Collects a response and sends what an account may see of it, if it is JSON."""

    def __init__(self, send: Send, filter_: Filter, refusal: str) -> None:
        self._send = send
        self._filter, self._refusal = filter_, refusal
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
            try:
                body = orjson.dumps(self._filter(orjson.loads(body)))
            except Refused:
                self._start["status"], body = 403, orjson.dumps({"detail": self._refusal})
            headers["content-length"] = str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def find(pairs: Sequence[tuple[re.Pattern[str], T]], path: str) -> T | None:
    """Return what belongs to a path, or None."""
    return next((value for pattern, value in pairs if pattern.fullmatch(path)), None)


def basic_auth(login: str) -> bytes:
    """Return the Authorization header of a login, `user:password`."""
    return b"Basic " + b64encode(login.encode())


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text, or None where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


async def read_body(receive: Receive) -> bytes:
    """Return a request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return body


def replay(body: bytes) -> Receive:
    """Return a `receive` that gives a body that was read."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
