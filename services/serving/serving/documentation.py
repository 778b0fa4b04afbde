"""The OpenAPI document: the paths of the models that there are, with the fields of their signatures."""

from typing import Any
from urllib.parse import quote

from serving.catalog import State
from serving.model import Model
from serving.problems import CODES
from serving.tables import CSV, FILE, JSON, PARQUET, STREAM

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
    paths |= {
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
                    operation["responses"].setdefault("401", _refusal(401))
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
            **{str(status): _refusal(status) for status in sorted({s for s, _ in CODES.values()} - {401})},
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


def _refusal(status: int) -> dict[str, Any]:
    text = " Or: ".join(f"`{code}`: {text}" for code, (answered, text) in CODES.items() if answered == status)
    return {"description": text, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
