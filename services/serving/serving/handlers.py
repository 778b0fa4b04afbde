"""Responses to requests that fail."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.live import invalid_query
from serving.problems import RETRY_AFTER_SECONDS, RequestError
from serving.service import json_response
from trainyard.errors import QueryError

log = logging.getLogger("serving")


MLFLOW_ERRORS = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    404: "RESOURCE_DOES_NOT_EXIST",
    503: "TEMPORARILY_UNAVAILABLE",
}


async def answer_request_error(request: Request, error: RequestError) -> Response:
    """Answer with what is wrong with the request, also in the words of the protocol that its path belongs to."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if (seconds := RETRY_AFTER_SECONDS.get(error.code)) is not None:
        headers["Retry-After"] = str(seconds)
    body, path = error.as_json(), request.url.path
    if path.startswith("/v2/"):
        body["error"] = error.message
    elif path.endswith("/invocations"):
        body["error_code"] = MLFLOW_ERRORS.get(error.status, "INVALID_PARAMETER_VALUE")
    return json_response(body, error.status, headers)


async def answer_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    """Answer with the first parameter that breaks its type's rules."""
    first = error.errors()[0]
    query_error = QueryError(str(first["loc"][-1]), f"is wrong: {first['msg']}")
    return await answer_request_error(request, invalid_query(query_error))


async def answer_http_error(_: Request, error: HTTPException) -> Response:
    """Answer a request for a path or method that does not exist."""
    body = {"code": "no-such-page", "message": f"{error.detail}. All paths are listed at /docs."}
    return json_response(body, error.status_code, dict(error.headers or {}))


async def answer_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """Answer a caller that is no longer there."""
    return Response(status_code=499)


async def answer_internal_error(_: Request, error: Exception) -> Response:
    """Log an unexpected error and answer without its details."""
    log.error("A request failed", exc_info=error)
    return json_response({"code": "internal", "message": "The service failed; see its log."}, 500)


def add_handlers(app: FastAPI) -> None:
    """Let the application answer errors in one form."""
    app.exception_handler(RequestError)(answer_request_error)
    app.exception_handler(RequestValidationError)(answer_invalid_parameter)
    app.exception_handler(HTTPException)(answer_http_error)
    app.exception_handler(ClientDisconnect)(answer_disconnect)
    app.exception_handler(Exception)(answer_internal_error)
