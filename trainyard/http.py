"""GET requests for JSON, bounded in time and size, with errors that say whether a retry may help.

Transient are: no connection, a timeout, a response that is cut off, 429 and 5xx. Permanent are other 4xx, and complete
responses that are not JSON. A task that fetches retries the transient ones with `@task(**trainyard.retries.RETRIES)`.

Retry-After of a 429 or 503 is respected by every task and thread of the process.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from threading import Lock
from time import monotonic, sleep
from typing import Any

import httpx

from trainyard.errors import BadAnswerError, RateLimitedError, RefusedError, SourceUnreachableError, WaitTooLongError

__state__ = ("_pauses",)

MAX_WAIT_SECONDS = 120.0
"""The longest Retry-After that a request waits for; a longer one fails immediately."""

MAX_BYTES = 32 * 1024 * 1024
"""The longest response that is read."""


class HostPauses:
    """The pauses that hosts have asked for, shared by all threads of the process."""

    def __init__(self) -> None:
        self._not_before: dict[str, float] = {}
        self._lock = Lock()

    def postpone(self, host: str, seconds: float) -> None:
        """Delay the next request to the host by at least `seconds`."""
        with self._lock:
            self._not_before[host] = max(self._not_before.get(host, 0.0), monotonic() + seconds)

    def remaining(self, host: str) -> float:
        """Return the seconds until the next request to the host may be sent."""
        with self._lock:
            return max(0.0, self._not_before.get(host, 0.0) - monotonic())

    def wait(self, host: str, max_wait_seconds: float = MAX_WAIT_SECONDS) -> None:
        """Wait until the next request to the host may be sent.

        Raises:
            WaitTooLongError: That is more than `max_wait_seconds` away.
        """
        while seconds := self.remaining(host):  # another thread may extend the pause meanwhile
            check_wait(host, seconds, max_wait_seconds)
            print(f"{host} asked for a pause; the next request to it is in {seconds:.0f} s")
            sleep(seconds)


_pauses = HostPauses()


def get_json(
    url: str,
    query: Mapping[str, str],
    timeout_seconds: float,
    max_bytes: int = MAX_BYTES,
    max_wait_seconds: float = MAX_WAIT_SECONDS,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Send a GET request and return the JSON of the response.

    Args:
        url: The address without a query.
        query: The query's parameters.
        timeout_seconds: The deadline of the whole response; the connection has a fifth of it.
        max_bytes: The maximum length of the decompressed response.
        max_wait_seconds: The longest Retry-After to wait for.
        headers: The request's headers.

    Raises:
        SourceUnreachableError: No complete response, or a status of 5xx. Transient.
        RateLimitedError: Status 429. Transient.
        WaitTooLongError: The host asks for a pause of more than `max_wait_seconds`.
        RefusedError: Another status of 4xx, or a refusal in a response of status 200.
        BadAnswerError: The response is not JSON, or longer than `max_bytes`.
    """
    host = httpx.URL(url).netloc.decode()
    _pauses.wait(host, max_wait_seconds)
    response, body = _fetch(url, query, timeout_seconds, max_bytes, headers or {})
    if response.status_code in {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}:
        _respect_retry_after(host, response, max_wait_seconds)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        reason = _refusal(body)
        said = f": {reason}" if reason else "."
        raise RateLimitedError(f"{url} asks for fewer requests (429){said} Run again in some minutes.", reason)
    if response.is_server_error:
        raise SourceUnreachableError(f"{url} answers with status {response.status_code}.")
    content = _parse(url, response, body)
    # Some services refuse a request with status 200 and `"error": true`.
    if not response.is_success or (isinstance(content, dict) and content.get("error") is True):
        reason = content.get("reason", content) if isinstance(content, dict) else content
        raise RefusedError(
            f"{url} refused the request (status {response.status_code}): {str(reason)[:500]} Check the run's parameters."
        )
    return content


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After (RFC 9110, 10.2.3), or None if it is missing or malformed.

    A date is compared with the response's own Date header, so that a clock that differs from ours does no harm.
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


def check_wait(host: str, seconds: float, max_wait_seconds: float = MAX_WAIT_SECONDS) -> None:
    """Check how long a pause a host asks for.

    Raises:
        WaitTooLongError: It is longer than `max_wait_seconds`.
    """
    if seconds > max_wait_seconds:
        # Rounded up, so that a run at the minute named is not too early.
        until = datetime.now(UTC) + timedelta(seconds=min(seconds, 366 * 86400) + 60)
        raise WaitTooLongError(
            f"{host} asks for a pause of {seconds:.0f} s, longer than the {max_wait_seconds:.0f} s that a run waits. "
            f"Run again after {until:%Y-%m-%d %H:%M} UTC."
        )


def _http_date(value: str) -> datetime:
    moment = parsedate_to_datetime(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _respect_retry_after(host: str, response: httpx.Response, max_wait_seconds: float) -> None:
    seconds = retry_after_seconds(response.headers)
    if seconds is not None:
        _pauses.postpone(host, seconds)
        check_wait(host, seconds, max_wait_seconds)


def _refusal(body: bytearray) -> str:
    """Return the reason that the JSON of a refusal gives, or an empty string."""
    try:
        content = json.loads(body)
    except ValueError:
        return ""
    return str(content.get("reason", ""))[:500] if isinstance(content, dict) else ""


def _fetch(
    url: str, query: Mapping[str, str], timeout_seconds: float, max_bytes: int, headers: Mapping[str, str]
) -> tuple[httpx.Response, bytearray]:
    timeout = httpx.Timeout(timeout_seconds, connect=timeout_seconds / 5)
    deadline, body = monotonic() + timeout_seconds, bytearray()
    try:
        with httpx.stream("GET", url, params=dict(query), headers=headers, timeout=timeout) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > max_bytes:
                    raise BadAnswerError(f"{url} sent more than {max_bytes} bytes. Check the address.")
                # httpx's own timeout is for each chunk: a server that trickles would never exceed it.
                if monotonic() > deadline:
                    raise SourceUnreachableError(
                        f"{url} sent {len(body)} bytes and no complete response in {timeout_seconds:g} s."
                    )
    except httpx.DecodingError as error:
        raise BadAnswerError(f"{url} sent a damaged response ({error}). Run again later.") from error
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise SourceUnreachableError(f"{url} cannot be reached ({reason}).") from error
    return response, body


def _parse(url: str, response: httpx.Response, body: bytearray) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        # Without Content-Length or chunks, a response that was cut off looks complete.
        if response.is_success and not {"content-length", "transfer-encoding"} & response.headers.keys():
            raise SourceUnreachableError(f"{url} cannot be reached (the response is cut off: {error}).") from error
        if not response.is_success:
            text = " ".join(body[:200].decode(errors="replace").split())
            raise RefusedError(
                f"{url} refused the request (status {response.status_code}): {text} Check the run's parameters."
            ) from error
        raise BadAnswerError(
            f"{url} sent no valid JSON ({error}; status {response.status_code}, {len(body)} bytes). "
            "Run again later; if that does not help, check the address."
        ) from error
