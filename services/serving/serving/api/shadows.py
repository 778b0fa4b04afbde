"""How the challenger's shadow predictions compare with the champion's."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from typing_extensions import TypedDict

from serving.api.records import Moment
from serving.comparison import compare_shadow
from serving.errors import RecordsUnavailableError
from serving.problems import RequestError, document_problems
from serving.record_pages import FIRST_MOMENT
from serving.service import READING_KEY, get_service, json_response


class ShadowResponse(TypedDict):
    """Figures of the newest rows that both versions predicted; null where they are not known."""

    challenger: int | None
    champion: int | None
    rows: int
    compared: int
    agreement: float | None
    mean_champion: float | None
    mean_challenger: float | None
    mean_absolute_difference: float | None


router = APIRouter(dependencies=READING_KEY, tags=["records"])


@router.get(
    "/models/{name}/shadow",
    summary="Compare the challenger's shadow predictions of the model {name} with the champion's of the same rows",
    response_model=ShadowResponse,
    responses=document_problems("no-key", "unknown-model", "not-recorded", "invalid-query", "records-down"),
)
async def compare(
    name: str, request: Request, since: Annotated[Moment, Query(description="The first moment")] = FIRST_MOMENT
) -> Response:
    """Answer with figures alone."""
    service = get_service(request)
    if not service.recorder.enabled:
        raise RequestError("not-recorded", "Set SERVING_DATABASE_URL, and SERVING_KEEP_DAYS to more than 0.")
    state = service.catalog.state
    if state.refreshed_at is not None and name not in state.registered:
        raise RequestError("unknown-model", f"No model {name!r} is registered.")
    model = state.models.get(name)
    champion = model.champion.version if model else None
    try:
        found = await asyncio.to_thread(compare_shadow, service.recorder.url, name, champion, since)
    except RecordsUnavailableError as error:
        raise RequestError("records-down", f"The database does not answer: {error}") from error
    return json_response(found)
