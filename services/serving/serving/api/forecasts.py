"""Predictions of rows that a project's hook makes from live data."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from serving.api.predictions import (
    ClassPrediction,
    PredictionRoute,
    ValuePrediction,
    describe_answer,
    format_predictions,
)
from serving.model import Model
from serving.problems import document_problems
from serving.service import API_KEY, get_service, json_response


class ClassForecast(ClassPrediction):
    """A class at a time."""

    time: str


class ValueForecast(ValuePrediction):
    """A value at a time."""

    time: str


class ForecastResponse(TypedDict):
    """A prediction for each time that the hook made a row for."""

    model: str
    version: int
    id: str
    recorded: bool
    subject: str
    details: dict[str, Any]
    predictions: list[ClassForecast | ValueForecast]


router = APIRouter(route_class=PredictionRoute, dependencies=API_KEY, tags=["forecasts"])

QUERY = {
    "name": "query",
    "in": "query",
    "description": "Parameters that the project's hook understands",
    "style": "form",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
PROBLEMS = document_problems(
    *("no-key", "unknown-model", "unknown-subject", "no-forecast", "refused-by-model", "invalid-query", "source-data"),
    *("no-champion", "registry-unknown", "features-unfit", "source-down", "overloaded", "loading"),
)


@router.get(
    "/forecast",
    summary="Predict from live data with the model that a project chooses for the query",
    response_model=ForecastResponse,
    responses=PROBLEMS,
    openapi_extra={"parameters": [QUERY]},
)
async def forecast(request: Request) -> Response:
    """Answer with the forecast of the model that a `choose_model` hook names."""
    service, query = get_service(request), dict(request.query_params)
    name = await service.live.choose_model(query)
    await service.catalog.wait_for(name)
    model = service.catalog.model(name)
    request.scope["measurement"].model = model.champion.model
    return await _forecast(request, model, query)


@router.get(
    "/models/{name}/forecast",
    summary="Predict from live data with the model {name}",
    response_model=ForecastResponse,
    responses=PROBLEMS,
    openapi_extra={"parameters": [QUERY]},
)
async def forecast_of_model(name: str, request: Request) -> Response:
    """Answer with a model's predictions of the rows that its `live_features` hook makes."""
    service = get_service(request)
    return await _forecast(request, service.catalog.model(name), dict(request.query_params))


async def _forecast(request: Request, model: Model, query: Mapping[str, str]) -> Response:
    service = get_service(request)
    request.scope["measurement"].version = model.champion.version
    rows = await service.live.rows(model, query)
    answer = await service.predict(model, rows.table, request.scope, rows.about())
    predictions = format_predictions(model, answer)
    return json_response(
        {
            **describe_answer(model, answer),
            "subject": rows.subject,
            "details": rows.details,
            "predictions": [
                {"time": time, **prediction} for time, prediction in zip(rows.times, predictions, strict=True)
            ],
        },
        headers=answer.headers,
    )
