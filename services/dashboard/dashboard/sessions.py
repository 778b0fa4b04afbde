"""Who is signed in: signed cookies that expire, and a limit on wrong tries."""

import base64
import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import orjson

WRONG_TRIES, TRIES_SECONDS = 5, 60.0
ALL_WRONG_TRIES = 50
KEPT_ADDRESSES = 10_000


@dataclass(frozen=True)
class Session:
    """A person's sign-in."""

    id: str
    user: str
    expires: float
    """Seconds since the epoch."""


class Sessions:
    """Makes and checks the cookies. A changed password or key ends every session."""

    def __init__(
        self, user: str, password: str, key: str, seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._user, self._password = user.encode(), password.encode()
        self._key = hmac.digest(key.encode(), b"session:" + self._user + b":" + self._password, hashlib.sha256)
        self._seconds, self._clock = seconds, clock
        self._ended: dict[str, float] = {}

    def is_right(self, user: str, password: str) -> bool:
        """Tell whether a user and a password are the right ones, in a time that does not say which was wrong."""
        given = hmac.compare_digest(user.encode("utf-8", "replace"), self._user)
        return hmac.compare_digest(password.encode("utf-8", "replace"), self._password) and given

    def begin(self) -> str:
        """Return the cookie of a new session."""
        session = {
            "id": secrets.token_urlsafe(16),
            "user": self._user.decode(),
            "expires": self._clock() + self._seconds,
        }
        body = base64.urlsafe_b64encode(orjson.dumps(session))
        return f"{body.decode()}.{self._sign(body)}"

    def read(self, cookie: str | None) -> Session | None:
        """Return a cookie's session; None where it is none of ours, has expired or was ended."""
        body, _, signature = (cookie or "").encode("utf-8", "replace").rpartition(b".")
        if not body or not hmac.compare_digest(signature, self._sign(body).encode()):
            return None
        session = Session(**orjson.loads(base64.urlsafe_b64decode(body)))
        return session if session.expires > self._clock() and session.id not in self._ended else None

    def end(self, session: Session) -> None:
        """End a session for good, also for those who kept its cookie."""
        now = self._clock()
        self._ended = {id_: expires for id_, expires in self._ended.items() if expires > now}
        self._ended[session.id] = session.expires

    def _sign(self, body: bytes) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, body, hashlib.sha256)).decode()


class Tries:
    """Counts wrong tries to sign in, by address and all together: who guesses has to wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()

    def wait(self, address: str) -> float:
        """Return for how many seconds an address may not try; 0 where it may."""
        return max(
            self._left(self._wrong.get(address, deque()), WRONG_TRIES), self._left(self._all, ALL_WRONG_TRIES), 0.0
        )

    def wrong(self, address: str) -> None:
        """Count a wrong try."""
        if len(self._wrong) >= KEPT_ADDRESSES:
            self._wrong = {one: times for one, times in self._wrong.items() if self._left(times, 1) > 0}
        for times in (self._wrong.setdefault(address, deque(maxlen=WRONG_TRIES)), self._all):
            times.append(self._clock())
        while len(self._all) > ALL_WRONG_TRIES:
            self._all.popleft()

    def right(self, address: str) -> None:
        """Forget an address's wrong tries."""
        self._wrong.pop(address, None)

    def _left(self, times: deque[float], allowed: int) -> float:
        return times[-allowed] + TRIES_SECONDS - self._clock() if len(times) >= allowed else 0.0
