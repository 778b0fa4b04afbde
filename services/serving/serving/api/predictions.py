"""Predictions of rows that the caller sends."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, Protocol, Self

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from typing_extensions import TypedDict

from serving.model import Model
from serving.payloads import CSV, JSON, Table
from serving.problems import RequestError, document_problems
from serving.service import API_KEY, Answer, Service, get_service, require_api_key
from serving.wire import FILE, PARQUET, STREAM
from trainyard.contract import PredictionHeader

Probability = Annotated[float, Field(ge=0, le=1)]
ClassPrediction = TypedDict(
    "ClassPrediction", {"class": str | int | float | bool, "probabilities": NotRequired[dict[str, Probability]]}
)


class ValuePrediction(TypedDict):
    """What a regressor predicts."""

    value: float


class PredictResponse(TypedDict):
    """A prediction for each row, in the order of the rows; labels name the request by `id`, and a row by its number."""

    model: str
    version: int
    id: str
    recorded: bool
    predictions: list[ClassPrediction | ValuePrediction]


class PredictionRoute(APIRoute):
    """A route that measures its requests and requires the API key, without FastAPI's dependency resolution.

    That resolution would take some percent of the throughput of a fast model. The route's endpoint takes the request
    and the parameters of the path.
    """

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the function that answers a request."""
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            service = get_service(request)
            with service.metrics.measure() as measurement:
                await require_api_key(request)
                if (name := request.path_params.get("name")) in service.catalog.state.registered:
                    measurement.model = name
                    if request.method == "POST":  # forecasts wait for hooks, not for the model
                        service.limiters.find(name, request.scope.get("raw_path"))
                        service.endpoints.remember(request, handle)
                request.scope["measurement"] = measurement
                if "version" not in request.path_params:
                    await service.catalog.wait_for(name)
                return await endpoint(request=request, **request.path_params)

        return handle


router = APIRouter(route_class=PredictionRoute, dependencies=API_KEY, tags=["predictions"])

ROW = {"type": "object"}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PROBLEMS = (
    *("malformed", "no-key", "unknown-model", "too-slow", "too-many-rows", "body-too-large", "content-type"),
    *("invalid-rows", "not-finite", "refused-by-model", "no-champion", "registry-unknown", "overloaded", "loading"),
)
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "X-Model-Version": {"schema": {"type": "integer"}, "description": "The version that predicts"},
            PredictionHeader.ID: {"schema": {"type": "string"}, "description": "What labels name the request by"},
            PredictionHeader.RECORDED: {
                "schema": {"type": "boolean"},
                "description": "Whether it is recorded, so that labels are stored",
            },
        }
    },
    **document_problems(*PROBLEMS),
}
VERSION_RESPONSES = RESPONSES | document_problems(*PROBLEMS, "unknown-version", "unservable", "version-down")
MAX_BODY_SECONDS = 30.0
"""How long a body may take to arrive: until then it holds a part of the memory for bodies."""
MAX_LOOP_BYTES, MAX_LOOP_ROWS = 65_536, 256
"""Larger bodies are read, and the predictions of more rows rendered, in a thread: others would wait meanwhile."""
REQUEST_BODY = {
    "required": True,
    "content": {
        JSON: {"schema": {"oneOf": [ROW, {"type": "array", "items": ROW}]}},
        CSV: {"schema": {"type": "string"}},
        **dict.fromkeys((STREAM, FILE, PARQUET), BINARY),
    },
}


@router.post(
    "/models/{name}/predict",
    summary="Predict a row or a batch with the model {name}",
    response_model=PredictResponse,
    responses=RESPONSES,
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def predict(name: str, request: Request) -> Response:
    """Answer with the predictions of the rows in the body."""
    model = get_service(request).catalog.model(name)
    return await answer(request, RowsExchange(model, request.headers.get("content-type", "")))


@router.post(
    "/models/{name}/versions/{version:int}/predict",
    summary="Predict a row or a batch with a version of the model {name}",
    response_model=PredictResponse,
    responses=VERSION_RESPONSES,
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def predict_by_version(name: str, version: int, request: Request) -> Response:
    """Answer with the predictions of a version, which is loaded where it is not yet."""
    model = await get_service(request).model_version(name, version)
    return await answer(request, RowsExchange(model, request.headers.get("content-type", "")))


class Exchange(Protocol):
    """One request and its answer in the format of a protocol."""

    @property
    def model(self) -> Model:
        """The version that predicts."""

    @property
    def is_binary(self) -> bool:
        """Whether the body is to be decoded, which takes time at any size."""

    def read(self, body: bytes) -> Table:
        """Return the rows of the request's body.

        Raises:
            RequestError: The body is malformed or does not fit the model.
        """

    def render(self, answer: Answer) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body, and headers that it needs."""


@dataclass(frozen=True)
class RowsExchange:
    """Rows in JSON, CSV, Arrow or Parquet, answered with predictions in this service's own format."""

    model: Model
    content_type: str

    @property
    def is_binary(self) -> bool:
        """Whether the body is Arrow or Parquet."""
        return self.content_type.strip().lower().startswith("application/vnd.apache")

    def read(self, body: bytes) -> Table:
        """Return the rows of the request's body."""
        return self.model.reader.read(body, self.content_type)

    def render(self, answer: Answer) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body."""
        return orjson.dumps(
            {**describe_answer(self.model, answer), "predictions": format_predictions(self.model, answer)}
        ), {}


async def answer(request: Request, exchange: Exchange) -> Response:
    """Read the rows of a request's body, predict them and render the predictions.

    Raises:
        RequestError: The body is too large or compressed, or the format or the estimator refuses it.
    """
    service, model = get_service(request), exchange.model
    request.scope["measurement"].version = model.champion.version
    with BodyReader(service) as reader:
        body = await reader.read(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError("content-type", "Send the body without Content-Encoding.")
        is_large = len(body) > MAX_LOOP_BYTES or exchange.is_binary
        table = await service.run_large(request.scope, exchange.read, body) if is_large else exchange.read(body)
        answered = await service.predict(model, table, request.scope)
        if table.rows > MAX_LOOP_ROWS:
            content, headers = await service.run_large(request.scope, exchange.render, answered)
        else:
            content, headers = exchange.render(answered)
    headers = {
        "X-Model-Name": model.champion.model.encode("ascii", "backslashreplace").decode(),
        "X-Model-Version": str(model.champion.version),
        **answered.headers,
        "Content-Type": JSON,
        **headers,
    }
    return Response(content, headers=headers)


class BodyReader:
    """Reads a request's body within the budget of all bodies, which it takes until the request is answered."""

    def __init__(self, service: Service) -> None:
        self._budget, self._max_bytes = service.bodies, service.settings.serving_max_body_bytes
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._taken)

    async def read(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            RequestError: It is larger than a body may be, or than the memory that is left, or arrives too slowly; the
                rest is not read.
        """
        too_large = RequestError("body-too-large", f"A body may have {self._max_bytes} bytes: send several.")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(MAX_BODY_SECONDS):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self._max_bytes:
                        raise too_large
                    self._budget.take(len(chunk))
                    self._taken += len(chunk)
                    body += chunk
        except TimeoutError as error:
            raise RequestError("too-slow", f"The body did not arrive within {MAX_BODY_SECONDS:.0f} s.") from error
        return bytes(body)


def describe_answer(model: Model, answer: Answer) -> dict[str, Any]:
    """Return what responses say of all predictions together."""
    champion = model.champion
    return {
        "model": champion.model,
        "version": champion.version,
        "id": answer.prediction_id,
        "recorded": answer.is_recorded,
    }


def format_predictions(model: Model, answer: Answer) -> list[dict[str, Any]]:
    """Return predictions as responses show them."""
    predictions = answer.predictions
    if model.labels is None:
        return [{"value": value} for value in predictions.values]
    if predictions.probabilities is None:
        return [{"class": value} for value in predictions.values]
    return [
        {"class": value, "probabilities": dict(zip(model.labels, row, strict=True))}
        for value, row in zip(predictions.values, predictions.probabilities, strict=True)
    ]
