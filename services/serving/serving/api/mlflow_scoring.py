"""Predictions in the formats of MLflow's scoring server.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#inference-server-specification
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from serving.api.predictions import RESPONSES, PredictionRoute, answer
from serving.limits import Limits, check_json
from serving.model import Model
from serving.payloads import CSV, JSON, Table
from serving.problems import RequestError
from serving.schema import Schema
from serving.service import API_KEY, Answer, get_service

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class ScoringResponse(TypedDict):
    """A class or a number for each row."""

    predictions: list[Any]


router = APIRouter(route_class=PredictionRoute, dependencies=API_KEY, tags=["MLflow"])

REQUEST_BODY = {
    "required": True,
    "content": {JSON: {"schema": {"type": "object"}}, CSV: {"schema": {"type": "string"}}},
}


@router.post(
    "/models/{name}/invocations",
    summary="Predict rows in the formats of MLflow's scoring server with the model {name}",
    response_model=ScoringResponse,
    responses=RESPONSES,
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def invocations(name: str, request: Request) -> Response:
    """Answer as MLflow's server: `dataframe_split`, `dataframe_records`, `instances`, `inputs` or a CSV."""
    service = get_service(request)
    exchange = ScoringExchange(
        service.catalog.model(name), request.headers.get("content-type", ""), service.settings.limits
    )
    return await answer(request, exchange)


@dataclass(frozen=True)
class ScoringExchange:
    """Rows and predictions in MLflow's formats."""

    model: Model
    content_type: str
    limits: Limits
    is_binary: bool = False

    def read(self, body: bytes) -> Table:
        """Return the rows of the request's body."""
        if self.content_type.partition(";")[0].strip().lower() == JSON:
            return self.model.reader.read_rows(parse_rows(body, self.model.schema, self.limits))
        return self.model.reader.read(body, self.content_type)

    def render(self, answer: Answer) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body."""
        return orjson.dumps({"predictions": answer.predictions.values}), {}


def parse_rows(body: bytes, schema: Schema, limits: Limits) -> list[dict[str, Any]]:
    """Return the rows of a body in one of `FORMATS`, without the columns that the model does not know, as MLflow does.

    The model of a matrix takes its rows as arrays too.

    Raises:
        RequestError: The body is not JSON, is too large, or has none or several of the formats.
    """
    names = schema.names
    # Around the rows are up to two objects, and an array for each column of `inputs`.
    check_json(body, replace(limits, max_rows=limits.max_rows + 2), max_arrays=limits.max_rows + len(names) + 4)
    document = parse_object(body)
    given = [name for name in FORMATS if name in document]
    if len(given) != 1 or document.keys() - {*FORMATS, "params"}:
        raise RequestError("malformed", f"Send an object with one of {', '.join(FORMATS)}.")
    form = given[0]
    content = document[form]
    if form == "dataframe_split":
        rows = _split_rows(content)
    elif isinstance(content, Mapping) and form == "inputs":
        rows = _column_rows(content)
    elif isinstance(content, list) and all(isinstance(row, dict) for row in content):
        rows = content
    elif schema.matrix is not None and form in ("instances", "inputs") and _is_list_of(content, list):
        if any(len(row) != len(names) for row in content):
            raise RequestError("invalid-rows", f"Each row is to have {len(names)} numbers.")
        rows = [dict(zip(names, row, strict=True)) for row in content]
    else:
        raise RequestError("malformed", f"{form} is to be an array of objects{', or an object' * (form == 'inputs')}.")
    return [{name: row[name] for name in names if name in row} for row in rows]


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a body that is an object of JSON.

    Raises:
        RequestError: It is not.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("malformed", f"The body is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise RequestError("malformed", "The body is not an object of JSON.")
    return document


def _split_rows(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, Mapping) or content.keys() - {"columns", "data", "index"}:
        raise RequestError("malformed", "dataframe_split is to be an object of columns and data.")
    columns: Any = content.get("columns")
    data: Any = content.get("data")
    if (
        not isinstance(columns, list)
        or not all(type(name) in (str, int) for name in columns)
        or not _is_list_of(data, list)
    ):
        raise RequestError("malformed", "dataframe_split has columns, an array of names, and data, an array of arrays.")
    if len(set(columns)) < len(columns) or any(len(row) != len(columns) for row in data):
        raise RequestError("malformed", "Each array of data has a cell for each of the columns, whose names differ.")
    names = [str(name) for name in columns]  # pandas numbers the columns of a frame that was made of a matrix
    return [dict(zip(names, row, strict=True)) for row in data]


def _column_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {name: values if isinstance(values, list) else [values] for name, values in content.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise RequestError("malformed", "The columns of inputs have different lengths.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)
