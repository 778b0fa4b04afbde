"""Requests for predictions past the framework: a path that was routed once goes to its endpoint directly.

FastAPI's middleware and routing take much of the time of a fast model's request.
"""

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serving.endpoints import Endpoints
from serving.handlers import answer_disconnect, answer_internal_error, answer_request_error
from serving.problems import RequestError


class DirectRequests:
    """The application with a shorter way to its known endpoints."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._endpoints: Endpoints = app.state.service.endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        known = self._endpoints.of_paths.get(scope["raw_path"]) if scope.get("method") == "POST" else None
        if known is None:
            await self._app(scope, receive, send)
            return
        handler, scope["path_params"] = known
        scope["app"] = self._app
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except RequestError as error:
            response = await answer_request_error(request, error)
        except ClientDisconnect as error:
            response = await answer_disconnect(request, error)
        except Exception as error:  # noqa: BLE001 - the log has it
            response = await answer_internal_error(request, error)
        await response(scope, receive, send)
