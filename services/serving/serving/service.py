"""The parts of the running service, which endpoints find at `app.state.service`."""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Depends, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from serving.admission import BodyBudget, Caller, Limiters, now, overloaded
from serving.batches import Predictions, Threads
from serving.catalog import Catalog
from serving.endpoints import Endpoints
from serving.label_store import LabelStore
from serving.live import LiveFeatures
from serving.loading import Loader
from serving.metrics import Metrics
from serving.model import Model
from serving.payloads import Table
from serving.prediction_id import as_unrecorded, make_id, seconds_of, to_text
from serving.problems import RequestError
from serving.record import Record
from serving.recorder import Recorder
from serving.settings import Settings
from serving.shadow import Shadow
from serving.versions import Versions
from trainyard.contract import PredictionHeader

T = TypeVar("T")
R = TypeVar("R")

HAS_LEFT = "trainyard.has_left"
"""In a request's scope: a function that tells whether its caller has disconnected (`serving.protocol`)."""
MAX_BODIES = 4
"""How many bodies of the largest size may be in memory at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The predictions that answer a request."""

    predictions: Predictions
    prediction_id: str
    """What labels name the request by."""
    is_recorded: bool

    @property
    def headers(self) -> dict[str, str]:
        """The headers that each answer with predictions has."""
        return {
            PredictionHeader.ID: self.prediction_id,
            PredictionHeader.RECORDED: "true" if self.is_recorded else "false",
        }


def never() -> bool:
    """Return False, where a server does not tell whether a caller has left."""
    return False


@dataclass(frozen=True)
class Service:
    """The objects that requests share."""

    settings: Settings
    loader: Loader
    catalog: Catalog
    versions: Versions
    recorder: Recorder
    labels: LabelStore
    shadow: Shadow
    metrics: Metrics
    live: LiveFeatures
    threads: Threads
    """Run estimators that are too slow for the event loop, and read and render what is large."""
    limiters: Limiters
    bodies: BodyBudget
    endpoints: Endpoints
    api_key: bytes | None
    """The key that requests must have; None requires none."""
    reading_key: bytes | None
    """A second key of the endpoints that show neither inputs nor predictions."""

    @classmethod
    def create(cls, settings: Settings) -> "Service":
        """Return the service, not started yet."""
        loader = Loader(settings)
        catalog, recorder = Catalog(settings, loader), Recorder(settings)
        limiters = Limiters(settings.serving_max_queue, settings.serving_max_wait_seconds)
        key = settings.serving_api_key if settings.serving_require_key else None
        api_key = key.get_secret_value().encode() if key else None
        reading_key = settings.serving_reading_key.get_secret_value().encode() if settings.serving_reading_key else None
        shadow, labels = Shadow(settings, loader, recorder), LabelStore(recorder)
        metrics, bodies = (
            Metrics(catalog, recorder, labels, limiters, shadow),
            BodyBudget(MAX_BODIES * settings.serving_max_body_bytes),
        )
        return cls(
            settings,
            loader,
            catalog,
            Versions(settings, loader),
            recorder,
            labels,
            shadow,
            metrics,
            LiveFeatures(),
            Threads.create(),
            limiters,
            bodies,
            Endpoints(),
            api_key,
            reading_key,
        )

    def start(self) -> None:
        """Start the background threads."""
        self.catalog.start()
        self.recorder.start()
        self.shadow.start()

    def stop(self) -> None:
        """Finish what requests still need, and flush the records."""
        self.catalog.stop()
        self.versions.stop()
        self.live.stop()
        self.threads.stop()
        self.shadow.stop()
        self.loader.stop()
        self.labels.stop()
        self.recorder.stop()

    async def model_version(self, name: str, version: int) -> Model:
        """Return a version of a registered model, the champion or another one.

        Raises:
            RequestError: There is no such version, or it cannot be fetched or served.
        """
        state = self.catalog.state
        champion = state.models.get(name)
        if champion is not None and champion.champion.version == version:
            return champion
        if name not in state.registered:
            self.catalog.model(name)  # tells whether the model or the registry is unknown
        return await self.versions.model(name, version)

    async def predict(self, model: Model, table: Table, scope: Scope, about: Mapping[str, Any] | None = None) -> Answer:
        """Return the predictions of some rows of a request; count and record them.

        Raises:
            RequestError: The estimator refuses the rows, or too many requests wait for it.
        """
        limiter = self.limiters.find(model.champion.model)
        predictions = await model.predict(table, self.threads, Caller(limiter, scope.get(HAS_LEFT, never)))
        self.metrics.count_predictions(model, predictions)
        champion, names = model.champion, model.schema.names
        prediction_id = make_id()
        is_recorded = self.recorder.put(
            Record(
                seconds_of(prediction_id),
                champion.model,
                champion.version,
                names,
                table.columns,
                predictions,
                about,
                prediction_id=prediction_id,
                classes=model.classes,
            )
        )
        if not is_recorded:
            prediction_id = as_unrecorded(prediction_id)
        if model is self.catalog.state.models.get(champion.model):
            self.shadow.copy(model, table, about, limiter, prediction_id)
        return Answer(predictions, to_text(prediction_id), is_recorded)

    async def run_large(self, scope: Scope, function: Callable[[T], R], argument: T) -> R:
        """Return a function's result from a thread, as it would hold up other requests.

        Raises:
            ClientDisconnect: The caller left before it began.
            RequestError: It has waited too long for a thread.
        """
        deadline = now() + self.settings.serving_max_wait_seconds

        def run() -> R:
            if now() > deadline:
                raise overloaded("The request has waited too long for a thread. Try again later.")
            if scope.get(HAS_LEFT, never)():
                raise ClientDisconnect
            return function(argument)

        return await asyncio.get_running_loop().run_in_executor(self.threads.large, run)


def get_service(request: Request) -> Service:
    """Return the service that a request reached."""
    service: Service = request.app.state.service
    return service


async def require_api_key(request: Request) -> None:
    """Refuse a request without the API key.

    Raises:
        RequestError: The key is missing or wrong.
    """
    require_one_of(request, get_service(request).api_key)


async def require_reading_key(request: Request) -> None:
    """Refuse a request without the API key or the reading key.

    Raises:
        RequestError: The key is missing or wrong.
    """
    service = get_service(request)
    require_one_of(request, service.api_key, service.reading_key)


def require_one_of(request: Request, api_key: bytes | None, *others: bytes | None) -> None:
    """Refuse a request without one of the keys, unless the service requires no API key."""
    if api_key is None:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    sent = given.encode("utf-8", "surrogateescape")
    if not any(key is not None and hmac.compare_digest(sent, key) for key in (api_key, *others)):
        raise RequestError("no-key", "Send the key as Authorization: Bearer ..., or as X-API-Key.")


DOCUMENTED_KEY = (
    Security(HTTPBearer(scheme_name="bearer", auto_error=False)),
    Security(APIKeyHeader(scheme_name="header", name="X-API-Key", auto_error=False)),
)
API_KEY = (*DOCUMENTED_KEY, Depends(require_api_key))
"""A router's dependencies: the first two document what the third enforces."""
READING_KEY = (*DOCUMENTED_KEY, Depends(require_reading_key))
"""The same for what shows neither inputs nor predictions."""


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response that no proxy may keep."""
    body = orjson.dumps(content)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
