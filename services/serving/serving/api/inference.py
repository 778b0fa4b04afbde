"""The Open Inference Protocol V2 over REST, which clients of KServe, Triton and MLServer speak."""

from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any, NotRequired

import orjson
from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from serving.api.predictions import RESPONSES, VERSION_RESPONSES, PredictionRoute, answer
from serving.limits import Limits, check_json
from serving.model import Model
from serving.payloads import JSON, Table
from serving.problems import RequestError, document_problems
from serving.service import API_KEY, Answer, get_service, json_response
from serving.tensors import InferRequest, columns_of, describe_tensors, output_tensors, parse_request

JSON_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]


class TensorBody(TypedDict):
    """A tensor; its values are in `data`, or follow the JSON as bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, Any]]


class InferResponse(TypedDict):
    """The outputs of a version."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[TensorBody]


class ServerMetadata(TypedDict):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(TypedDict):
    """Whether the process answers."""

    live: bool


class ServerReady(TypedDict):
    """Whether a model is served."""

    ready: bool


class ModelReady(TypedDict):
    """Whether a model is served."""

    name: str
    ready: bool


class ModelMetadata(TypedDict):
    """The tensors of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorBody]
    outputs: list[TensorBody]


router = APIRouter(route_class=PredictionRoute, dependencies=API_KEY, tags=["Open Inference Protocol V2"])
public = APIRouter(tags=["Open Inference Protocol V2"])

REQUEST_BODY = {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}


@router.post(
    "/v2/models/{name}/infer",
    summary="Predict tensors with the model {name}",
    response_model=InferResponse,
    responses=RESPONSES,
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def infer(name: str, request: Request) -> Response:
    """Answer with the outputs of the served version."""
    return await answer(request, tensor_exchange(request, get_service(request).catalog.model(name)))


def tensor_exchange(request: Request, model: Model) -> "TensorExchange":
    """Return a request of the protocol.

    Raises:
        RequestError: Its header for binary tensors is wrong.
    """
    length = request.headers.get(JSON_LENGTH)
    if length is not None and not length.isdecimal():
        raise RequestError("malformed", f"{JSON_LENGTH} is not a number.")
    return TensorExchange(model, int(length) if length else None, get_service(request).settings.limits)


class TensorExchange:
    """Rows and predictions as tensors."""

    is_binary = False

    def __init__(self, model: Model, json_length: int | None, limits: Limits) -> None:
        self.model, self._json_length, self._limits = model, json_length, limits
        self._request: InferRequest | None = None

    def read(self, body: bytes) -> Table:
        """Return the rows of the request's tensors."""
        # A tensor has up to three objects and arrays of its own, beside an array for each row.
        own = 3 * len(self.model.schema.names) + 8
        json = body if self._json_length is None else body[: self._json_length]
        most = self._limits.max_rows + own
        check_json(json, replace(self._limits, max_rows=most), max_arrays=most)
        self._request = parse_request(body, self._json_length, self.model.has_probabilities)
        return self.model.reader.read_columns(*columns_of(self._request.inputs, self.model.schema))

    def render(self, answer: Answer) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body, and the size of its JSON where tensors follow as bytes."""
        assert self._request is not None
        champion, outputs, identifier = self.model.champion, self._request.outputs, self._request.identifier
        tensors = output_tensors(self.model, answer.predictions, list(outputs))
        parts = [tensor.as_json(outputs[tensor.name]) for tensor in tensors]
        document = orjson.dumps(
            {
                "model_name": champion.model,
                "model_version": str(champion.version),
                **({"id": identifier} if identifier is not None else {}),
                "outputs": [described for described, _ in parts],
            }
        )
        data = b"".join(data for _, data in parts)
        headers = {JSON_LENGTH: str(len(document)), "Content-Type": "application/octet-stream"} if data else {}
        return document + data, headers


@router.post(
    "/v2/models/{name}/versions/{version:int}/infer",
    summary="Predict tensors with a version of the model {name}",
    response_model=InferResponse,
    responses=VERSION_RESPONSES,
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def infer_by_version(name: str, version: int, request: Request) -> Response:
    """Answer with the outputs of a version, which is loaded where it is not yet."""
    model = await get_service(request).model_version(name, version)
    return await answer(request, tensor_exchange(request, model))


@router.get(
    "/v2/models/{name}/versions/{version:int}",
    summary="Describe the tensors of a version of the model {name}",
    response_model=ModelMetadata,
    responses=document_problems(
        *("no-key", "unknown-model", "unknown-version", "registry-unknown", "unservable", "version-down", "overloaded")
    ),
)
async def describe_version(name: str, version: int, request: Request) -> Response:
    """Answer with the metadata of a version, which is loaded where it is not yet."""
    return json_response(model_metadata(await get_service(request).model_version(name, version)))


@public.get(
    "/v2/models/{name}/versions/{version:int}/ready",
    summary="Check that a version of the model {name} is served",
    response_model=ModelReady,
)
async def is_version_ready(name: str, version: int, request: Request) -> Response:
    """Answer 200 where the version is the champion, or was loaded for a request."""
    service = get_service(request)
    model = service.catalog.state.models.get(name)
    is_ready = (model is not None and model.champion.version == version) or service.versions.is_loaded(name, version)
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.get(
    "/v2/models/{name}",
    summary="Describe the tensors of the model {name}",
    response_model=ModelMetadata,
    responses=document_problems("no-key", "unknown-model", "no-champion", "registry-unknown"),
)
async def describe_model(name: str, request: Request) -> Response:
    """Answer with the metadata of the served version."""
    return json_response(model_metadata(get_service(request).catalog.model(name)))


def model_metadata(model: Model) -> dict[str, Any]:
    """Return the metadata of a version."""
    champion = model.champion
    return {
        "name": champion.model,
        "versions": [str(champion.version)],
        "platform": "sklearn",
        **describe_tensors(model),
    }


@public.get("/v2/models/{name}/ready", summary="Check that the model {name} is served", response_model=ModelReady)
async def is_model_ready(name: str, request: Request) -> Response:
    """Answer 200 where the model has a champion that is served."""
    state = get_service(request).catalog.state
    is_ready = name in state.models
    return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@public.get("/v2", summary="Describe the server", response_model=ServerMetadata)
async def describe_server() -> Response:
    """Answer with the server's name, version and extensions of the protocol."""
    return json_response({"name": "trainyard", "version": version_of("trainyard"), "extensions": EXTENSIONS})


@public.get("/v2/health/live", summary="Check that the process answers", response_model=ServerLive)
async def is_live() -> Response:
    """Answer."""
    return json_response({"live": True})


@public.get("/v2/health/ready", summary="Check that a model is served", response_model=ServerReady)
async def is_ready(request: Request) -> Response:
    """Answer 200 where a model is served."""
    state = get_service(request).catalog.state
    is_ready = bool(state.models) and state.is_settled
    return json_response({"ready": is_ready}, 200 if is_ready else 503)
