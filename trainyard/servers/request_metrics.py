"""Metrics of a web server for Prometheus: its requests, and whatever else its process has counted.

MLflow's own exporter counts what reaches Flask, not what its FastAPI application answers, and Prefect's counts no requests.
"""

import hmac
import time
from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/metrics"
HEALTH_PATHS = ("/health", "/api/health", "/api/ready")
"""Of health checks, which say nothing of what people get."""
REQUESTS = Counter("trainyard_requests", "Answered requests.", ["kind", "status"])
SECONDS = Histogram(
    "trainyard_request_seconds",
    "Time until a request is answered in full.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
KINDS = ("api", "artifacts", "pages")
SERVER_ERRORS = ("500", "502", "503", "504")
STATUS_OF_ERROR, STATUS_OF_LEAVER = 500, 499


class RequestMetricsMiddleware:
    """Counts and times requests, and answers those for the metrics that have the token."""

    def __init__(self, app: ASGIApp, token: str, refresh: Callable[[], Awaitable[None]] | None = None) -> None:
        self._app, self._refresh = app, refresh
        self._authorization = f"Bearer {token}"
        for kind in KINDS:  # the rise from 0 counts, but not a series that begins with the first errors
            for status in SERVER_ERRORS:
                REQUESTS.labels(kind, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the metrics; forward and count any other."""
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
        elif scope["path"] == PATH:
            await (await self._metrics(Headers(scope=scope)))(scope, receive, send)
        else:
            await self._count(scope, receive, send)

    async def _metrics(self, headers: Headers) -> Response:
        if not hmac.compare_digest(headers.get("authorization", "").encode(), self._authorization.encode()):
            return PlainTextResponse("Metrics need the token of Prometheus.", 401)
        if self._refresh:
            await self._refresh()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, kind, start = STATUS_OF_LEAVER, kind_of(scope["path"]), time.perf_counter()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except Exception:
            status = STATUS_OF_ERROR
            raise
        finally:
            REQUESTS.labels(kind, str(status)).inc()
            SECONDS.labels(kind).observe(time.perf_counter() - start)


def kind_of(path: str) -> str:
    """Return what a request is for: `artifacts`, `api` or `pages`. No path of a caller's makes another time series."""
    if "/mlflow-artifacts/" in path:
        return "artifacts"
    return "api" if path.startswith(("/api/", "/ajax-api/")) else "pages"
