"""The OpenAPI document: the paths of the models that there are, with the fields of their signatures."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from serving.catalog import State
from serving.forecast import MOST_DAYS
from serving.model import Model
from serving.problems import CODES
from serving.tables import CSV, FILE, JSON, PARQUET, STREAM

# What each kind of page may be refused with, beside the key's absence.
PREDICT = (
    *("malformed", "unknown-model", "too-many-rows", "body-too-large", "content-type", "invalid-rows", "not-finite"),
    *("refused-by-model", "no-champion", "registry-unknown"),
)
FORECAST = (
    *("unknown-place", "unknown-model", "invalid-query", "refused-by-model", "weather-data", "weather-down"),
    *("features-unfit", "no-champion", "registry-unknown"),
)
RECORDS = ("unknown-model", "not-recorded", "invalid-query", "records-down")

ANY = {"type": "object", "additionalProperties": True}
PROBLEM = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["problem"],
                "properties": {
                    "row": {"type": "integer", "minimum": 0},
                    "field": {"type": "string"},
                    "problem": {"type": "string"},
                },
            },
        },
    },
}


def describe(state: State, most_rows: int, require_key: bool) -> dict[str, Any]:
    """Return the document for the models that are served."""
    paths: dict[str, Any] = {
        f"/models/{quote(name, safe='')}/predict": {"post": _predict(model, most_rows)}
        for name, model in sorted(state.models.items())
    }
    for name in sorted(state.models):
        paths[f"/models/{quote(name, safe='')}/predictions"] = {"get": _records(name)}
        paths[f"/models/{quote(name, safe='')}/forecast"] = {"get": _forecast(name)}
    paths |= {
        "/forecast": {"get": _forecast()},
        "/models": {"get": _get("What is served, and what cannot be", ANY, key=True)},
        "/health/live": {"get": _get("Whether the process answers", ANY)},
        "/health/ready": {"get": _get("Whether a model answers", ANY, 503)},
        "/metrics": {"get": _get("Metrics for Prometheus", None)},
    }
    document: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": "Trainyard serving",
            "version": "1",
            "description": "Predictions of the registry's champions. The page changes with them."
            + ("" if state.models else " No model has a champion yet."),
        },
        "paths": paths,
        "components": {"schemas": {"Problem": PROBLEM}},
    }
    if require_key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for item in paths.values():
            for method, operation in item.items():
                if method == "post" or operation.pop("x-key", False):
                    operation["security"] = [{"bearer": []}, {"header": []}]
                    operation["responses"].setdefault("401", _refusal("no-key"))
    return document


def _get(summary: str, schema: dict[str, Any] | None, *others: int, key: bool = False) -> dict[str, Any]:
    content = {JSON: {"schema": schema}} if schema else {"text/plain": {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {str(s): {"description": "The answer", "content": content} for s in (200, *others)},
    }
    return {**operation, "x-key": True} if key else operation


def _predict(model: Model, most_rows: int) -> dict[str, Any]:
    row = model.schema.as_json()
    binary = {"schema": {"type": "string", "format": "binary"}}
    version = {"schema": {"type": "integer"}, "description": "The version that answered"}
    return {
        "summary": f"Ask {model.champion.model}, version {model.champion.version}",
        "operationId": f"predict {model.champion.model}",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"oneOf": [row, {"type": "array", "items": row, "minItems": 1, "maxItems": most_rows}]}
                },
                CSV: {"schema": {"type": "string"}},
                **dict.fromkeys((STREAM, FILE, PARQUET), binary),
            },
        },
        "responses": {
            "200": {
                "description": "A prediction for each row, in the rows' order",
                "headers": {"X-Model-Version": version},
                "content": {JSON: {"schema": _answer(model)}},
            },
            **_refusals(PREDICT),
        },
    }


def _answer(model: Model) -> dict[str, Any]:
    if model.classes is None or model.labels is None:
        said: dict[str, Any] = {"value": {"type": "number"}}
    else:
        kind = {bool: "boolean", int: "integer", float: "number"}.get(type(model.classes[0]), "string")
        share = {"type": "number", "minimum": 0, "maximum": 1}
        said = {
            "class": {"type": kind, "enum": model.classes},
            "probabilities": {"type": "object", "properties": dict.fromkeys(model.labels, share)},
        }
    required = [name for name in said if name != "probabilities"]
    prediction = {"type": "object", "required": required, "properties": said}
    return {
        "type": "object",
        "required": ["model", "version", "predictions"],
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "predictions": {"type": "array", "items": prediction},
        },
    }


def _forecast(model: str | None = None) -> dict[str, Any]:
    day = {"type": "string", "format": "date"}
    number = {"type": "number"}
    place = {"name": {"type": "string"}, "latitude": number, "longitude": number}
    forecast = {
        "day": day,
        "from_day": day,
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
        "wet": {"type": "boolean"},
    }
    answer = {
        "place": _object(place),
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "source": {"type": "string"},
        "observed_until": day,
        "forecasts": {"type": "array", "items": _object(forecast), "minItems": 1, "maxItems": MOST_DAYS},
    }
    name = {"type": "string", "minLength": 2, "maxLength": 100}
    place_of_choice = {**_parameter("place", name, "A name, or latitude,longitude"), "required": True}
    return {
        "summary": f"Whether it will rain in {f'the place of {model}' if model else 'a place'} tomorrow, and on the days after",
        "description": "From the newest observations; for later days, from those that Open-Meteo expects.",
        "x-key": True,
        "parameters": [
            *([] if model else [{**place_of_choice, "example": "Seattle"}]),
            _parameter("days", {"type": "integer", "minimum": 1, "maximum": MOST_DAYS, "default": 1}, "How many days"),
        ],
        "responses": {
            "200": _answered(_object(answer)),
            **_refusals((*FORECAST, "no-forecast") if model else FORECAST),
        },
    }


def _records(name: str) -> dict[str, Any]:
    table = _object({"columns": {"type": "array", "items": {"type": "string"}}, "data": {"type": "array", "items": {}}})
    record = {
        "id": {"type": "integer"},
        "at": {"type": "string", "format": "date-time"},
        "version": {"type": "integer"},
        "inputs": table,
        "outputs": table,
        "about": {"type": "object", "nullable": True},
    }
    answer = {
        "predictions": {"type": "array", "items": _object(record)},
        "next": {"type": "integer", "nullable": True},
    }
    time = {"type": "string", "format": "date-time"}
    return {
        "summary": f"What {name} has answered, a record a request",
        "operationId": f"predictions {name}",
        "x-key": True,
        "parameters": [
            _parameter("since", time, "The first moment"),
            _parameter("until", time, "The moment after the last"),
            _parameter("after", {"type": "integer", "minimum": 0, "default": 0}, "`next` of the page before"),
            _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Most records"),
        ],
        "responses": {"200": _answered(_object(answer)), **_refusals(RECORDS)},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _parameter(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _answered(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "The answer", "content": {JSON: {"schema": schema}}}


def _refusals(codes: Sequence[str]) -> dict[str, Any]:
    statuses = sorted({CODES[code][0] for code in codes})
    return {str(status): _refusal(*(code for code in codes if CODES[code][0] == status)) for status in statuses}


def _refusal(*codes: str) -> dict[str, Any]:
    text = " Or: ".join(f"`{code}`: {CODES[code][1]}" for code in codes)
    return {"description": text, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
