"""Ask HTTP services for JSON, within bounds, and tell failures that may pass from those that will not.

Retried are: no connection, no answer in time, an answer cut off midway, 429 and 5xx. Not retried are:
other 4xx and answers that are whole and not JSON. `is_transient` says so to Prefect:

    @task(retries=4, retry_delay_seconds=exponential_backoff(0.3), retry_jitter_factor=0.5, retry_condition_fn=is_transient)

A host that names a time to come back (Retry-After of 429 and 503) is left alone until then by every
task and thread of the process.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from time import monotonic
from typing import Any

import httpx

from trainyard.errors import BadAnswerError, RateLimitedError, RefusedError, SourceUnreachableError, WaitTooLongError

LONGEST_WAIT_SECONDS = 120.0
"""How long a request waits because its host asked for it; a run that is asked for more fails at once."""

MAX_BYTES = 32 * 1024 * 1024
"""Longest answer that is read. Fifty years of daily weather are about one megabyte."""


class HostClock:
    """The moment before which each host wants no request; one for all threads of the process."""

    def __init__(self) -> None:
        self._not_before: dict[str, float] = {}
        self._lock = Lock()

    def postpone(self, host: str, seconds: float) -> None:
        """Let the next request to the host be `seconds` from now or later."""
        with self._lock:
            self._not_before[host] = max(self._not_before.get(host, 0.0), monotonic() + seconds)

    def remaining(self, host: str) -> float:
        """Return the seconds until the host may be asked, 0 if it may be now."""
        with self._lock:
            return max(0.0, self._not_before.get(host, 0.0) - monotonic())

    def wait(self, host: str, longest: float = LONGEST_WAIT_SECONDS) -> None:
        """Wait until the host may be asked; raise WaitTooLongError if that is more than `longest` seconds away."""
        never = Event()
        while seconds := self.remaining(host):  # more than once if another thread is told to wait meanwhile
            refuse_long_wait(host, seconds, longest)
            print(f"{host} asked for a pause; the next request to it is in {seconds:.0f} s")
            never.wait(seconds)


_clock = HostClock()


def get_json(
    url: str,
    query: Mapping[str, str],
    timeout_seconds: float,
    max_bytes: int = MAX_BYTES,
    longest_wait: float = LONGEST_WAIT_SECONDS,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Return the JSON that a GET request answers with.

    The connection must stand after a fifth of `timeout_seconds`, each piece of the answer be there
    after `timeout_seconds` and all of it too, give or take one piece; `max_bytes` bounds its length
    when unpacked. A host that asks for a pause is given `longest_wait` seconds of it.

    Raises SourceUnreachableError and RateLimitedError, which are worth another try, and
    WaitTooLongError, RefusedError and BadAnswerError, which are not.
    """
    host = httpx.URL(url).netloc.decode()
    _clock.wait(host, longest_wait)
    answer, body = _fetch(url, query, timeout_seconds, max_bytes, headers or {})
    if answer.status_code in {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}:
        _heed_retry_after(host, answer, longest_wait)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise RateLimitedError(f"{url} asks for fewer requests (429). Run again in some minutes.")
    if answer.is_server_error:
        raise SourceUnreachableError(f"{url} answers with status {answer.status_code}.")
    content = _parse(url, answer, body)
    # Some services put their refusal into an answer of status 200.
    if not answer.is_success or (isinstance(content, dict) and content.get("error") is True):
        reason = content.get("reason", content) if isinstance(content, dict) else content
        raise RefusedError(
            f"{url} refused the request (status {answer.status_code}): {str(reason)[:500]} Check the run's parameters."
        )
    return content


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for (RFC 9110, 10.2.3), or None if it says nothing usable.

    A date counts from the answer's own Date, so that a clock that differs from ours does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = _http_date(value)
    except ValueError:
        return None
    try:
        now = _http_date(headers.get("date", ""))
    except ValueError:
        now = datetime.now(UTC)
    return max(0.0, (until - now) / timedelta(seconds=1))


def refuse_long_wait(host: str, seconds: float, longest: float = LONGEST_WAIT_SECONDS) -> None:
    """Raise WaitTooLongError if a host asks for more than `longest` seconds."""
    if seconds > longest:
        # Rounded up: whoever comes back at the minute named must not be too early.
        until = datetime.now(UTC) + timedelta(seconds=min(seconds, 366 * 86400) + 60)
        raise WaitTooLongError(
            f"{host} asks to be left alone for {seconds:.0f} s, longer than the {longest:.0f} s that "
            f"may be waited. Run again after {until:%Y-%m-%d %H:%M} UTC."
        )


def _http_date(value: str) -> datetime:
    moment = parsedate_to_datetime(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _heed_retry_after(host: str, answer: httpx.Response, longest: float) -> None:
    seconds = retry_after_seconds(answer.headers)
    if seconds is not None:
        _clock.postpone(host, seconds)
        refuse_long_wait(host, seconds, longest)


def _fetch(
    url: str, query: Mapping[str, str], timeout_seconds: float, max_bytes: int, headers: Mapping[str, str]
) -> tuple[httpx.Response, bytearray]:
    timeout = httpx.Timeout(timeout_seconds, connect=timeout_seconds / 5)
    deadline, body = monotonic() + timeout_seconds, bytearray()
    try:
        with httpx.stream("GET", url, params=dict(query), headers=headers, timeout=timeout) as answer:
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > max_bytes:
                    raise BadAnswerError(f"{url} sent more than {max_bytes} bytes. Check the address.")
                # httpx's own timeout is for each piece: a server that trickles would never run into it.
                if monotonic() > deadline:
                    raise SourceUnreachableError(
                        f"{url} has sent {len(body)} bytes and no whole answer in {timeout_seconds:g} s."
                    )
    except httpx.DecodingError as error:
        raise BadAnswerError(f"{url} sent a damaged answer ({error}). Run again later.") from error
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise SourceUnreachableError(f"{url} cannot be reached ({reason}).") from error
    return answer, body


def _parse(url: str, answer: httpx.Response, body: bytearray) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        # Without a length or chunks, a body that was cut off looks as if it were whole.
        if answer.is_success and not {"content-length", "transfer-encoding"} & answer.headers.keys():
            raise SourceUnreachableError(f"{url} cannot be reached (its answer ends midway: {error}).") from error
        if not answer.is_success:
            text = " ".join(body[:200].decode(errors="replace").split())
            raise RefusedError(
                f"{url} refused the request (status {answer.status_code}): {text} Check the run's parameters."
            ) from error
        raise BadAnswerError(
            f"{url} sent no valid JSON ({error}; status {answer.status_code}, {len(body)} bytes). "
            "Run again later; if it stays so, check the address."
        ) from error
