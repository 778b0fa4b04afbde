"""HTTP requests to a misbehaving server on loopback: which errors are transient, and when the next request is sent."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic
from types import SimpleNamespace

import pytest

from infra.testing.open_meteo_server import OpenMeteoServer
from trainyard import http
from trainyard.errors import (
    BadAnswerError,
    RateLimitedError,
    RefusedError,
    SourceError,
    SourceUnreachableError,
    WaitTooLongError,
)
from trainyard.http import get_json, retry_after_seconds
from trainyard.retries import is_transient


@pytest.fixture(autouse=True)
def own_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget pauses: another test's server may get the port of one that asked for an hour."""
    monkeypatch.setattr(http, "_pauses", http.HostPauses())


@pytest.fixture
def server() -> Iterator[OpenMeteoServer]:
    with OpenMeteoServer() as server:
        yield server


def ask(server: OpenMeteoServer, timeout_seconds: float = 5) -> object:
    return get_json(f"{server.url}/v1/search", {"name": "Oslo"}, timeout_seconds)


def failure(server: OpenMeteoServer, timeout_seconds: float = 5) -> SourceError:
    with pytest.raises(SourceError) as raised:
        ask(server, timeout_seconds)
    return raised.value


def is_retried(error: Exception) -> bool:
    return is_transient(None, None, SimpleNamespace(data=error))


@pytest.mark.parametrize(
    ("status", "error", "message", "retried"),
    [
        (400, RefusedError, r"refused the request (status 400)", False),
        (401, RefusedError, "refused the request", False),
        (404, RefusedError, "refused the request", False),
        (429, RateLimitedError, "fewer requests", True),
        (500, SourceUnreachableError, "status 500", True),
        (503, SourceUnreachableError, "status 503", True),
    ],
)
def test_statuses(server: OpenMeteoServer, status: int, error: type[Exception], message: str, retried: bool) -> None:
    server.fail_first, server.fail_status = 1, status
    raised = failure(server)

    assert type(raised) is error
    assert message in str(raised)
    assert is_retried(raised) == retried
    assert ask(server)


class TestBrokenAnswers:
    def test_complete_but_not_json(self, server: OpenMeteoServer) -> None:
        server.truncate = True
        error = failure(server)

        assert isinstance(error, BadAnswerError)
        assert "no valid JSON" in str(error)
        assert not is_retried(error)

    @pytest.mark.parametrize("lengthless", [False, True])
    def test_cut_off(self, server: OpenMeteoServer, lengthless: bool) -> None:
        server.cut, server.lengthless = True, lengthless
        error = failure(server)

        assert isinstance(error, SourceUnreachableError)
        assert is_retried(error)

    def test_no_answer(self, server: OpenMeteoServer) -> None:
        server.stalled = True
        error = failure(server, 0.2)

        assert "ReadTimeout" in str(error)
        assert is_retried(error)

    def test_trickling(self, server: OpenMeteoServer) -> None:
        server.trickle = 0.02
        start = monotonic()
        error = failure(server, 0.3)

        assert monotonic() - start < 3
        assert "no complete response in 0.3 s" in str(error)
        assert is_retried(error)

    def test_no_server(self) -> None:
        with OpenMeteoServer() as server:
            pass
        error = failure(server)

        assert "ConnectError" in str(error)
        assert is_retried(error)

    def test_too_long(self, server: OpenMeteoServer) -> None:
        with pytest.raises(BadAnswerError, match="more than 100 bytes"):
            get_json(f"{server.url}/v1/search", {"name": "Oslo"}, 5, max_bytes=100)

    def test_a_refusal_in_html(self) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(403)
                self.end_headers()
                self.wfile.write(b"<h1>No  entry</h1>")

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
            Thread(target=page.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            with pytest.raises(RefusedError, match=r"status 403\): <h1>No entry</h1>"):
                get_json(f"http://127.0.0.1:{page.server_address[1]}/", {}, 5)
            page.shutdown()


class TestRetryAfter:
    @pytest.mark.parametrize("status", [429, 503])
    def test_the_next_request_waits(self, server: OpenMeteoServer, status: int) -> None:
        server.fail_first, server.fail_status, server.retry_after = 1, status, "1"

        assert is_retried(failure(server))
        start = monotonic()

        assert ask(server)
        assert 0.8 < monotonic() - start < 5

    def test_other_paths_and_threads_wait_too_and_other_hosts_do_not(self, server: OpenMeteoServer) -> None:
        server.fail_first, server.fail_status, server.retry_after = 1, 429, "1"
        failure(server)
        server.fail_first = 0
        waits: list[float] = []

        def request() -> None:
            start = monotonic()
            get_json(f"{server.url}/fact", {}, 5)
            waits.append(monotonic() - start)

        threads = [Thread(target=request) for _ in range(3)]
        with OpenMeteoServer() as other:
            start = monotonic()
            for thread in threads:
                thread.start()

            assert ask(other)
            assert monotonic() - start < 0.8
            for thread in threads:
                thread.join()

        assert min(waits) > 0.8

    def test_a_date(self, server: OpenMeteoServer) -> None:
        until = datetime.now(UTC) + timedelta(seconds=2)
        server.fail_first, server.fail_status = 1, 429
        server.retry_after = format_datetime(until, usegmt=True)

        assert is_retried(failure(server))
        assert ask(server)
        assert datetime.now(UTC) > until - timedelta(seconds=1.5)  # dates have no fractions

    def test_a_pause_longer_than_a_run_waits(self, server: OpenMeteoServer) -> None:
        server.fail_first, server.fail_status, server.retry_after = 1, 429, "3600"
        until = datetime.now(UTC) + timedelta(hours=1)
        for _ in range(2):  # the second sends no request
            error = failure(server)

            assert isinstance(error, WaitTooLongError)
            assert not is_retried(error)
            assert f"Run again after {until:%Y-%m-%d}" in str(error) or until.hour == 23
        assert server.counts["/v1/search"] == 1

    @pytest.mark.parametrize("status", [400, 500])
    def test_other_statuses_cannot_ask_for_a_pause(self, server: OpenMeteoServer, status: int) -> None:
        server.fail_first, server.fail_status, server.retry_after = 1, status, "3600"
        failure(server)

        assert ask(server)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7),
            ("0", 0),
            ("Mon, 23 Nov 2026 12:00:30 GMT", 30),
            ("Mon, 23 Nov 2026 11:00:00 GMT", 0),
            ("", None),
            ("-5", None),
            ("soon", None),
            ("٣", None),
        ],
    )
    def test_forms(self, value: str, seconds: float | None) -> None:
        """A date is compared with the server's clock, not with ours."""
        headers = {"retry-after": value, "date": "Mon, 23 Nov 2026 12:00:00 GMT"}

        assert retry_after_seconds(headers) == seconds

    def test_a_huge_number(self) -> None:
        seconds = retry_after_seconds({"retry-after": "9" * 400})

        assert seconds is not None
        with pytest.raises(WaitTooLongError):
            http.check_wait("host", seconds)


def test_json_is_returned_unchanged(server: OpenMeteoServer) -> None:
    fact = get_json(f"{server.url}/fact", {}, 5)

    assert json.dumps(fact).startswith('{"fact"')
