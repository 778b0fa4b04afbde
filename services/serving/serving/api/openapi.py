"""The OpenAPI document: FastAPI's, with the paths of each served model in place of those of `{name}`."""

from copy import deepcopy
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI

from serving.model import Model
from serving.payloads import JSON
from serving.service import Service

NAME = "{name}"


class Documents:
    """Keeps the document until another version is served: to make it takes long, and anybody may ask for it."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app, self._service = app, service
        self._versions: object = None
        self._document: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        """Return the document for the models that are served now."""
        versions = {name: model.champion for name, model in self._service.catalog.state.models.items()}
        if self._versions != versions:
            self._document, self._versions = describe_api(self._app, self._service), versions
        return self._document


def describe_api(app: FastAPI, service: Service) -> dict[str, Any]:
    """Return the document for the models that are served now; without any, the paths stay templates."""
    document, models = FastAPI.openapi(app), service.catalog.state.models
    paths: dict[str, Any] = {}
    for path, item in document["paths"].items():
        if NAME not in path or not models:
            paths[path] = item
            continue
        for name, model in sorted(models.items()):
            operations = deepcopy(item)
            for operation in operations.values():
                _describe_operation(operation, model, service.settings.serving_max_rows)
            paths[path.replace(NAME, quote(name, safe=""))] = operations
    if service.settings.serving_require_key:
        return {**document, "paths": paths}
    components = {name: part for name, part in document["components"].items() if name != "securitySchemes"}
    paths = {path: {k: {**v, "security": []} for k, v in item.items()} for path, item in paths.items()}
    return {**document, "paths": paths, "components": components}


def _describe_operation(operation: dict[str, Any], model: Model, max_rows: int) -> None:
    name = model.champion.model
    operation["operationId"] = f"{operation['operationId']} {name}"
    operation["summary"] = operation["summary"].replace(NAME, name)
    operation["parameters"] = [parameter for parameter in operation["parameters"] if parameter["name"] != "name"]
    if "oneOf" in operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema", {}):
        row = model.schema.row_adapter().json_schema()
        batch = {"type": "array", "items": row, "minItems": 1, "maxItems": max_rows}
        operation["requestBody"]["content"][JSON]["schema"] = {"oneOf": [row, batch]}
        classes = f" It predicts one of {', '.join(model.labels)}." if model.labels else ""
        operation["description"] = f"Version {model.champion.version} is served.{classes}"
