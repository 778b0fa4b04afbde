"""The parts of the running service, which endpoints find at `app.state.service`."""

import hmac
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Depends, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from serving.catalog import Catalog
from serving.live import LiveFeatures
from serving.metrics import Metrics
from serving.model import Model, Predictions
from serving.payloads import Table
from serving.problems import RequestError
from serving.recorder import Record, Recorder
from serving.settings import Settings


@dataclass(frozen=True)
class Service:
    """The objects that requests share."""

    settings: Settings
    catalog: Catalog
    recorder: Recorder
    metrics: Metrics
    live: LiveFeatures
    threads: Executor
    """Runs estimators that are too slow for the event loop."""
    api_key: bytes | None
    """The key that requests must have; None requires none."""

    @classmethod
    def create(cls, settings: Settings) -> "Service":
        """Return the service, not started yet."""
        catalog, recorder = Catalog(settings), Recorder(settings)
        threads = ThreadPoolExecutor(2, thread_name_prefix="predict")
        key = settings.serving_api_key if settings.serving_require_key else None
        api_key = key.get_secret_value().encode() if key else None
        return cls(settings, catalog, recorder, Metrics(catalog, recorder), LiveFeatures(), threads, api_key)

    def start(self) -> None:
        """Start the background threads."""
        self.catalog.start()
        self.recorder.start()

    def stop(self) -> None:
        """Finish what requests still need, and flush the records."""
        self.catalog.stop()
        self.live.stop()
        self.threads.shutdown(wait=True)
        self.recorder.stop()

    async def predict(self, model: Model, table: Table, about: Mapping[str, Any] | None = None) -> Predictions:
        """Return the predictions of some rows; count and record them.

        Raises:
            RequestError: The estimator refuses the rows.
        """
        predictions = await model.predict(table, self.threads)
        self.metrics.count_predictions(model, predictions)
        champion, names = model.champion, model.schema.names
        self.recorder.put(
            Record(time.time(), champion.model, champion.version, names, table.columns, predictions, about)
        )
        return predictions


def get_service(request: Request) -> Service:
    """Return the service that a request reached."""
    service: Service = request.app.state.service
    return service


async def require_api_key(request: Request) -> None:
    """Refuse a request without the API key.

    Raises:
        RequestError: The key is missing or wrong.
    """
    key = get_service(request).api_key
    if key is None:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key):
        raise RequestError("no-key", "Send the key as Authorization: Bearer ..., or as X-API-Key.")


API_KEY = (
    Security(HTTPBearer(scheme_name="bearer", auto_error=False)),
    Security(APIKeyHeader(scheme_name="header", name="X-API-Key", auto_error=False)),
    Depends(require_api_key),
)
"""A router's dependencies: the first two document what the third enforces."""


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response that no proxy may keep."""
    body = orjson.dumps(content)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
