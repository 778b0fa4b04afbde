"""The ground truth of earlier predictions, posted by the ids that answers carry."""

from typing import Any

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from serving.api.predictions import BodyReader
from serving.api.records import records_of
from serving.labels import read_labels
from serving.payloads import CSV, JSON
from serving.problems import document_problems
from serving.service import API_KEY, get_service, json_response


class LabelsResponse(TypedDict):
    """How many labels are new or correct another one, were stored before, or are about predictions not recorded."""

    stored: int
    unchanged: int
    not_recorded: int


router = APIRouter(dependencies=API_KEY, tags=["records"])

LABEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "value"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "row": {"type": "integer", "minimum": 0},
        "value": {"type": ["string", "number", "boolean"]},
    },
}
REQUEST_BODY = {
    "required": True,
    "content": {
        JSON: {"schema": {"anyOf": [LABEL, {"type": "array", "items": LABEL, "minItems": 1}]}},
        CSV: {"schema": {"type": "string"}},
    },
}


@router.post(
    "/models/{name}/labels",
    summary="Store the ground truth of earlier predictions of the model {name}",
    response_model=LabelsResponse,
    responses=document_problems(
        *("malformed", "no-key", "unknown-model", "unknown-prediction", "not-recorded", "too-slow", "too-many-rows"),
        *("body-too-large", "content-type", "invalid-labels", "overloaded", "records-down"),
    ),
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def post_labels(name: str, request: Request) -> Response:
    """Store all labels of the request, or none of them; another label for the same row replaces the former one."""
    service = get_service(request)
    with records_of(service, name), BodyReader(service) as reader:
        body = await reader.read(request)
        content_type = request.headers.get("content-type", "")

        def store() -> dict[str, int]:
            return service.labels.add(name, read_labels(body, content_type, service.settings.limits))

        return json_response(await service.labels.run(store))
