"""Recorded predictions, a page at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime
from typing_extensions import TypedDict

from serving.errors import RecordsUnavailableError
from serving.problems import RequestError, document_problems
from serving.record_pages import FIRST_MOMENT, Selection, read_page, read_sample
from serving.record_store import LAST_MOMENT
from serving.service import API_KEY, Service, get_service, json_response


class TableBody(TypedDict):
    """A table by rows."""

    columns: list[str]
    data: list[list[Any]]


class RecordBody(TypedDict):
    """A request that was answered: its rows, their predictions and labels, and what they were about."""

    id: int
    at: AwareDatetime
    version: int
    shadow: bool
    inputs: TableBody
    outputs: TableBody
    about: dict[str, Any] | None
    prediction_id: str | None
    classes: list[Any] | None
    labels: list[Any] | None


class RecordsResponse(TypedDict):
    """A page of records in the order of their ids; `next` is the page's last id where more may follow."""

    predictions: list[RecordBody]
    next: int | None


def to_utc(moment: datetime) -> datetime:
    """Return a moment in UTC; one without an offset is taken as UTC.

    Raises:
        ValueError: It is outside of the years that Python knows.
    """
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("the year is out of range") from error


Moment = Annotated[datetime, AfterValidator(to_utc)]


@contextmanager
def records_of(service: Service, name: str) -> Iterator[str]:
    """Yield the address of the database with a model's records.

    Raises:
        RequestError: Nothing is recorded, the model is not registered, or the database does not answer within the block.
    """
    if not service.recorder.enabled:
        raise RequestError("not-recorded", "Set SERVING_DATABASE_URL, and SERVING_KEEP_DAYS to more than 0.")
    state = service.catalog.state
    if state.refreshed_at is not None and name not in state.registered:
        raise RequestError("unknown-model", f"No model {name!r} is registered.")
    try:
        yield service.recorder.url
    except RecordsUnavailableError as error:
        raise RequestError("records-down", f"The database does not answer: {error}") from error


router = APIRouter(dependencies=API_KEY, tags=["records"])


@router.get(
    "/models/{name}/predictions",
    summary="List the recorded predictions of the model {name}",
    response_model=RecordsResponse,
    responses=document_problems("no-key", "unknown-model", "not-recorded", "invalid-query", "records-down"),
)
async def list_records(
    name: str,
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before")] = 0,
    since: Annotated[Moment, Query(description="The first moment")] = FIRST_MOMENT,
    until: Annotated[Moment, Query(description="The first moment after the period")] = LAST_MOMENT,
    limit: Annotated[int, Query(ge=1, le=1000, description="The most records of a page")] = 100,
    version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only records of this version")] = None,
    about: Annotated[bool | None, Query(description="Only forecasts (true), or only other requests (false)")] = None,
    shadow: Annotated[
        bool, Query(description="Predictions that no caller got, instead of those that were sent")
    ] = False,
    labeled: Annotated[bool | None, Query(description="Only records with labels (true), or without (false)")] = None,
    sample: Annotated[bool, Query(description="Spread `limit` records over the period, if it has more")] = False,
) -> Response:
    """Answer with a page of records, a record for each request."""
    service, selection = get_service(request), Selection(name, since, until, version, about, shadow, labeled)
    with records_of(service, name) as url:
        if sample:
            found, following = await asyncio.to_thread(read_sample, url, selection, limit), None
        else:
            found, following = await asyncio.to_thread(read_page, url, selection, after, limit)
    return json_response({"predictions": found, "next": following})
