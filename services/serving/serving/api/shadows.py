"""How the challenger's shadow predictions compare with the champion's."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from typing_extensions import TypedDict

from serving.api.records import Moment, records_of
from serving.comparison import compare_shadow
from serving.problems import document_problems
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
    model = service.catalog.state.models.get(name)
    champion = model.champion.version if model else None
    with records_of(service, name) as url:
        found = await asyncio.to_thread(compare_shadow, url, name, champion, since)
    return json_response(found)
