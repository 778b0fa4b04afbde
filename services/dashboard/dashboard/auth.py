"""Sign-in: signed session cookies, and a limit on failed attempts."""

import base64
import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import orjson

MAX_FAILURES = 5
"""Of one address within WINDOW_SECONDS."""
MAX_FAILURES_OF_ALL = 50
WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000


@dataclass(frozen=True)
class Session:
    """A signed-in person's session."""

    id: str
    user: str
    expires: float
    """Seconds since the epoch."""


class SessionManager:
    """Issues and verifies session cookies. A new password or signing key invalidates all of them."""

    def __init__(
        self, user: str, password: str, key: str, max_age_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.max_age_seconds = max_age_seconds
        self._user, self._password, self._clock = user.encode(), password.encode(), clock
        self._key = hmac.digest(key.encode(), b"session:" + self._user + b":" + self._password, hashlib.sha256)
        self._revoked: dict[str, float] = {}

    def check_credentials(self, user: str, password: str) -> bool:
        """Tell whether user and password are right, in constant time."""
        is_user = hmac.compare_digest(user.encode("utf-8", "replace"), self._user)
        return hmac.compare_digest(password.encode("utf-8", "replace"), self._password) and is_user

    def issue(self) -> str:
        """Return the cookie of a new session."""
        expires = self._clock() + self.max_age_seconds
        session = {"id": secrets.token_urlsafe(16), "user": self._user.decode(), "expires": expires}
        body = base64.urlsafe_b64encode(orjson.dumps(session))
        return f"{body.decode()}.{self._sign(body)}"

    def verify(self, cookie: str | None) -> Session | None:
        """Return a cookie's session; None if the cookie is forged, expired or revoked."""
        body, _, signature = (cookie or "").encode("utf-8", "replace").rpartition(b".")
        if not body or not hmac.compare_digest(signature, self._sign(body).encode()):
            return None
        session = Session(**orjson.loads(base64.urlsafe_b64decode(body)))
        return session if session.expires > self._clock() and session.id not in self._revoked else None

    def revoke(self, session: Session) -> None:
        """Invalidate a session before it expires."""
        now = self._clock()
        self._revoked = {id_: expires for id_, expires in self._revoked.items() if expires > now}
        self._revoked[session.id] = session.expires

    def _sign(self, body: bytes) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, body, hashlib.sha256)).decode()


class SignInLimiter:
    """Limits failed sign-ins by address and in total."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}
        self._all: deque[float] = deque(maxlen=MAX_FAILURES_OF_ALL)

    def retry_after(self, address: str) -> float:
        """Return for how many seconds an address is blocked; 0 if it is not."""
        of_address = self._remaining(self._failures.get(address, deque()), MAX_FAILURES)
        return max(of_address, self._remaining(self._all, MAX_FAILURES_OF_ALL), 0.0)

    def record_failure(self, address: str) -> None:
        """Count a failed sign-in."""
        if len(self._failures) >= MAX_ADDRESSES:
            self._failures = {one: times for one, times in self._failures.items() if self._remaining(times, 1) > 0}
        for times in (self._failures.setdefault(address, deque(maxlen=MAX_FAILURES)), self._all):
            times.append(self._clock())

    def reset(self, address: str) -> None:
        """Forget the failures of an address."""
        self._failures.pop(address, None)

    def _remaining(self, times: deque[float], limit: int) -> float:
        return times[-limit] + WINDOW_SECONDS - self._clock() if len(times) >= limit else 0.0
