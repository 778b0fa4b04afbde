"""The served models, health and metrics."""

from typing import Any, NotRequired

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import TypedDict

from serving.model import Model
from serving.problems import document_problems
from serving.service import API_KEY, READING_KEY, get_service, json_response
from trainyard.contract import Alias, ServingPath


class ServedModel(TypedDict):
    """The champion of a registered model."""

    version: int
    registered_at: float
    fields: list[str]
    classes: list[Any] | None
    example: dict[str, Any] | None
    memory: int
    warning: NotRequired[str]


class ModelsResponse(TypedDict):
    """The loaded models, those that are loaded at their next request, why others are not served, and the rest."""

    models: dict[str, ServedModel]
    unloaded: list[str]
    unservable: dict[str, str]
    without_champion: list[str]


class LatencyBody(TypedDict):
    """Quantiles of the seconds that requests took."""

    p50: float
    p95: float
    p99: float


class MinuteBody(TypedDict):
    """The requests of a minute, which begins at `minute`, in seconds since the epoch.

    Errors are answers with a status of 500 and more, refusals those from 400.
    """

    minute: int
    requests: int
    errors: int
    refusals: int
    seconds: LatencyBody


class HourBody(TypedDict):
    """The requests of the last hour together."""

    requests: int
    errors: int
    refusals: int
    seconds: LatencyBody


class TrafficOfVersion(TypedDict):
    """The requests for a version; null where a request failed before it was known."""

    model: str
    version: int | None
    hour: HourBody
    minutes: list[MinuteBody]


class TrafficResponse(TypedDict):
    """The last hour's requests."""

    traffic: list[TrafficOfVersion]


class Health(TypedDict):
    """Whether the service answers; `versions` are the served ones by model."""

    status: str
    versions: NotRequired[dict[str, int]]
    registry_answers: NotRequired[bool]
    reason: NotRequired[str]


router = APIRouter(tags=["status"])


@router.get(
    ServingPath.MODELS,
    summary="List the served models, and those that are not served",
    response_model=ModelsResponse,
    responses=document_problems("no-key"),
    dependencies=API_KEY,
)
async def list_models(request: Request) -> Response:
    """Answer with what is known of each model."""
    state = get_service(request).catalog.state
    without_champion = state.registered - state.models.keys() - state.unservable.keys() - state.unloaded
    return json_response(
        {
            "models": {name: describe(model) for name, model in sorted(state.models.items())},
            "unloaded": sorted(state.unloaded),
            "unservable": dict(sorted(state.unservable.items())),
            "without_champion": sorted(without_champion),
        }
    )


def describe(model: Model) -> ServedModel:
    """Return what is known of a served model."""
    served: ServedModel = {
        "version": model.champion.version,
        "registered_at": model.created,
        "fields": list(model.schema.names),
        "classes": model.classes,
        "example": model.example,
        "memory": model.memory,
    }
    return {**served, "warning": model.warning} if model.warning else served


@router.get("/health/live", summary="Check that the process answers", response_model=Health)
async def live() -> Response:
    """Answer."""
    return json_response({"status": "alive"})


@router.get(
    "/health/ready",
    summary="Check that the champions of the start are served",
    response_model=Health,
    responses={503: {"model": Health, "description": "No model is served yet"}},
)
async def ready(request: Request) -> Response:
    """Answer with the served versions, or why there are none."""
    state = get_service(request).catalog.state
    if state.models and state.is_settled:
        versions = {name: model.champion.version for name, model in sorted(state.models.items())}
        return json_response({"status": "ready", "versions": versions, "registry_answers": state.error is None})
    if state.refreshed_at is None:
        reason = state.error or "MLflow has not answered yet."
    elif state.models or not state.is_settled:
        reason = f"{len(state.models)} models are loaded, and others are being loaded."
    else:
        reason = "; ".join(state.unservable.values()) or f"No registered model has the alias `{Alias.CHAMPION}` yet."
    return json_response({"status": "not ready", "reason": reason}, 503)


@router.get(
    ServingPath.TRAFFIC,
    summary="Read the last hour's requests, errors and latency by model and version",
    response_model=TrafficResponse,
    responses=document_problems("no-key"),
    dependencies=READING_KEY,
)
async def traffic(request: Request) -> Response:
    """Answer with each minute in which there were requests."""
    return json_response({"traffic": get_service(request).metrics.traffic.summary()})


@router.get("/metrics", summary="Read the metrics for Prometheus", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Answer in Prometheus's text format."""
    return Response(generate_latest(get_service(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
