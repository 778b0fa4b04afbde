"""Predictions of rows that the caller sends."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NotRequired

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from typing_extensions import TypedDict

from serving.model import Model, Predictions
from serving.payloads import CSV, FILE, JSON, PARQUET, STREAM
from serving.problems import RequestError, document_problems
from serving.service import API_KEY, get_service, require_api_key

Probability = Annotated[float, Field(ge=0, le=1)]
ClassPrediction = TypedDict(
    "ClassPrediction", {"class": str | int | float | bool, "probabilities": NotRequired[dict[str, Probability]]}
)


class ValuePrediction(TypedDict):
    """What a regressor predicts."""

    value: float


class PredictResponse(TypedDict):
    """A prediction for each row, in the order of the rows."""

    model: str
    version: int
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
                request.scope["measurement"] = measurement
                return await endpoint(request=request, **request.path_params)

        return handle


router = APIRouter(route_class=PredictionRoute, dependencies=API_KEY, tags=["predictions"])

ROW = {"type": "object"}
BINARY = {"schema": {"type": "string", "format": "binary"}}
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
    responses={
        200: {"headers": {"X-Model-Version": {"schema": {"type": "integer"}, "description": "The served version"}}},
        **document_problems(
            *("malformed", "no-key", "unknown-model", "too-many-rows", "body-too-large", "content-type"),
            *("invalid-rows", "not-finite", "refused-by-model", "no-champion", "registry-unknown"),
        ),
    },
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def predict(name: str, request: Request) -> Response:
    """Answer with the predictions of the rows in the body."""
    service = get_service(request)
    model = service.catalog.model(name)
    body = await read_body(request, service.settings.serving_max_body_bytes)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("content-type", "Send the body without Content-Encoding.")
    table = model.reader.read(body, request.headers.get("content-type", ""))
    predictions = await service.predict(model, table)
    champion = model.champion
    content = {"model": name, "version": champion.version, "predictions": format_predictions(model, predictions)}
    headers = {
        "X-Model-Name": name.encode("ascii", "backslashreplace").decode(),
        "X-Model-Version": str(champion.version),
    }
    return Response(orjson.dumps(content), headers=headers, media_type=JSON)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: It is larger than `max_bytes`; the rest of it is not read.
    """
    too_large = RequestError("body-too-large", f"A body may have {max_bytes} bytes: send several.")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def format_predictions(model: Model, predictions: Predictions) -> list[dict[str, Any]]:
    """Return predictions as responses show them."""
    if model.labels is None:
        return [{"value": value} for value in predictions.values]
    if predictions.probabilities is None:
        return [{"class": value} for value in predictions.values]
    return [
        {"class": value, "probabilities": dict(zip(model.labels, row, strict=True))}
        for value, row in zip(predictions.values, predictions.probabilities, strict=True)
    ]
