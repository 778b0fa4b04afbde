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
"""Of one caller within WINDOW_SECONDS."""
MAX_FAILURES_OF_ALL = 50
WINDOW_SECONDS = 60.0
MAX_CALLERS = 10_000


@dataclass(frozen=True)
class Session:
    """A signed-in person's session."""

    id: str
    user: str
    expires: float
    """Seconds since the epoch."""


class SessionManager:
    """Issues and verifies session cookies, and cookies that tell browsers apart.

    Sessions end with the process, since the list of the revoked ones does: their signing key is derived from a random
    number. A new password or key invalidates all cookies.
    """

    def __init__(
        self, user: str, password: str, key: str, max_age_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.max_age_seconds = max_age_seconds
        self._user, self._password, self._clock = user.encode(), password.encode(), clock
        account = self._user + b":" + self._password
        process = secrets.token_bytes(32)
        self._key = hmac.digest(key.encode(), b"session:" + process + b":" + account, hashlib.sha256)
        self._browser_key = hmac.digest(key.encode(), b"browser:" + account, hashlib.sha256)
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
        return f"{body.decode()}.{sign(self._key, body)}"

    def verify(self, cookie: str | None) -> Session | None:
        """Return a cookie's session; None if the cookie is forged, expired or revoked."""
        body, _, signature = (cookie or "").encode("utf-8", "replace").rpartition(b".")
        if not body or not hmac.compare_digest(signature, sign(self._key, body).encode()):
            return None
        session = Session(**orjson.loads(base64.urlsafe_b64decode(body)))
        return session if session.expires > self._clock() and session.id not in self._revoked else None

    def revoke(self, session: Session) -> None:
        """Invalidate a session before it expires."""
        now = self._clock()
        self._revoked = {id_: expires for id_, expires in self._revoked.items() if expires > now}
        self._revoked[session.id] = session.expires

    def issue_browser(self) -> str:
        """Return the cookie of a browser in which somebody has signed in."""
        id_ = secrets.token_urlsafe(16)
        return f"{id_}.{sign(self._browser_key, id_.encode())}"

    def verify_browser(self, cookie: str | None) -> str | None:
        """Return the id of a browser in which somebody has signed in before; None if the cookie is forged or missing."""
        id_, _, signature = (cookie or "").encode("utf-8", "replace").rpartition(b".")
        is_known = bool(id_) and hmac.compare_digest(signature, sign(self._browser_key, id_).encode())
        return id_.decode() if is_known else None


def sign(key: bytes, body: bytes) -> str:
    """Return a body's signature as text of a cookie."""
    return base64.urlsafe_b64encode(hmac.digest(key, body, hashlib.sha256)).decode()


class SignInLimiter:
    """Limits failed sign-ins by caller and in total.

    A caller is a browser in which somebody has signed in before, or else an address. Addresses may stand for many
    people, as behind NAT, and one of them may use up all attempts: known browsers have attempts of their own, which the
    total does not limit (device cookies, https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}
        self._all: deque[float] = deque(maxlen=MAX_FAILURES_OF_ALL)

    def retry_after(self, address: str, browser: str | None = None) -> float:
        """Return for how many seconds a caller is blocked; 0 if it is not."""
        of_caller = self._remaining(self._failures.get(browser or address, deque()), MAX_FAILURES)
        of_all = 0.0 if browser else self._remaining(self._all, MAX_FAILURES_OF_ALL)
        return max(of_caller, of_all, 0.0)

    def record_failure(self, address: str, browser: str | None = None) -> None:
        """Count a failed sign-in."""
        if len(self._failures) >= MAX_CALLERS:
            self._failures = {one: times for one, times in self._failures.items() if self._remaining(times, 1) > 0}
        self._failures.setdefault(browser or address, deque(maxlen=MAX_FAILURES)).append(self._clock())
        if browser is None:
            self._all.append(self._clock())

    def reset(self, address: str, browser: str | None = None) -> None:
        """Forget the failures of a caller."""
        self._failures.pop(browser or address, None)

    def _remaining(self, times: deque[float], limit: int) -> float:
        return times[-limit] + WINDOW_SECONDS - self._clock() if len(times) >= limit else 0.0
