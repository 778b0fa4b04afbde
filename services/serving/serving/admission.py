"""Admission of requests: how many may wait for a model, and which of them are refused in overload.

A queue that is long enough for a burst makes every request slow in sustained overload: each waits for all before it. So
the limit depends on the state, as in Facebook's adaptation of CoDel (Maurer, Fail at Scale, ACM Queue 13(8), 2015): a
full queue declares overload, and until no request had to be refused for `OVERLOAD_SECONDS`, only those are admitted
that are computed next.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.problems import RequestError

OVERLOAD_SECONDS = 1.0
MAX_WAITING_IN_OVERLOAD = 1
"""Requests that may be in flight in overload where none is predicted in a thread: the next one."""
MAX_BATCH_IN_OVERLOAD = 8
"""And for a call in a thread that predicts them together: a batch of this size takes about as long as one request."""
MAX_WAIT_IN_OVERLOAD = 0.25
"""How much of a call's time a request may wait for it to end, in overload."""
OVERLOADED = "More requests wait than can be answered soon. Try again later."


class Limiter:
    """Counts the requests for a model that are in flight, and tells which are refused."""

    def __init__(self, model: str, max_queue: int, max_wait_seconds: float) -> None:
        self.model, self.max_queue, self.max_wait_seconds = model, max_queue, max_wait_seconds
        self.in_flight = 0
        """Requests that have arrived completely and are not answered."""
        self.refused = self.expired = self.abandoned = 0
        """Requests that found the queue full, waited too long, or whose callers left before they were computed."""
        self.waits, self.waited_seconds = 0, 0.0
        """How many requests were taken from a queue, and how long they were in it together."""
        self._running, self._call_ends, self._call_seconds = 0, 0.0, 0.0
        self._overloaded_until = 0.0

    def admits(self, now: float) -> bool:
        """Return whether a request may enter, at a moment of the monotonic clock; count it if not."""
        waiting = self.in_flight - self._running
        if waiting < self.max_queue and (now >= self._overloaded_until or self._is_next(waiting, now)):
            return True
        self._overloaded_until = now + OVERLOAD_SECONDS
        self.refused += 1
        return False

    def _is_next(self, waiting: int, now: float) -> bool:
        if not self._running:
            return waiting < MAX_WAITING_IN_OVERLOAD
        return waiting < MAX_BATCH_IN_OVERLOAD and self._call_ends - now <= MAX_WAIT_IN_OVERLOAD * self._call_seconds

    def start_call(self, requests: int, now: float) -> None:
        """Note that the estimator begins to predict some requests together."""
        self._running, self._call_ends = requests, now + self._call_seconds

    def end_call(self, seconds: float) -> None:
        """Note how long that took."""
        self._running, self._call_ends = 0, 0.0
        self._call_seconds += (seconds - self._call_seconds) / (4 if self._call_seconds else 1)


class Limiters:
    """The limiters of all models, and by the paths of requests, to find one before a request is parsed."""

    MAX_PATHS = 10_000
    MAX_HEADS, MAX_HEAD_BYTES = 1_000, 4_096

    def __init__(self, max_queue: int, max_wait_seconds: float) -> None:
        self._max_queue, self._max_wait_seconds = max_queue, max_wait_seconds
        self.of_models: dict[str, Limiter] = {}
        self.of_paths: dict[bytes, Limiter] = {}
        self.of_heads: dict[bytes, tuple[Limiter, int]] = {}
        """By the head of a refused request, and with the length of its body: the next one need not be parsed."""

    def find(self, model: str, path: bytes | None = None) -> Limiter:
        """Return the limiter of a registered model, and remember that requests for a path are for it."""
        limiter = self.of_models.get(model)
        if limiter is None:
            limiter = self.of_models[model] = Limiter(model, self._max_queue, self._max_wait_seconds)
        if path is not None and path not in self.of_paths and len(self.of_paths) < self.MAX_PATHS:
            self.of_paths[path] = limiter
        return limiter

    def remember_head(self, head: bytes, limiter: Limiter, length: int) -> None:
        """Remember that requests with a head are for a limiter, and have a body of some length."""
        if len(head) > self.MAX_HEAD_BYTES:
            return
        if len(self.of_heads) >= self.MAX_HEADS:
            self.of_heads.clear()
        self.of_heads[head] = limiter, length


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request that waits."""

    limiter: Limiter
    has_left: Callable[[], bool]


class BodyBudget:
    """Bounds the bytes of all bodies in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used = 0

    def take(self, size: int) -> None:
        """Take some bytes.

        Raises:
            RequestError: There are not so many left.
        """
        if self.used + size > self._max_bytes:
            raise overloaded("The bodies of other requests take all memory for them. Try again later.")
        self.used += size

    def give_back(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size


def overloaded(message: str = OVERLOADED) -> RequestError:
    """Return the refusal of a request that may succeed later."""
    return RequestError("overloaded", message)


def now() -> float:
    """Return the time of the clock that limiters use, in seconds."""
    return time.monotonic()
