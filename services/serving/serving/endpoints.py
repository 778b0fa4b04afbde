"""The endpoints of known paths, for `serving.direct`."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response

MAX_PATHS = 10_000

Handler = Callable[[Request], Awaitable[Response]]


class Endpoints:
    """The endpoints of paths that were requested with POST for a registered model."""

    def __init__(self) -> None:
        self.of_paths: dict[bytes, tuple[Handler, dict[str, Any]]] = {}

    def remember(self, request: Request, handler: Handler) -> None:
        """Remember what answers a request's path."""
        path = request.scope.get("raw_path")
        if request.method == "POST" and path and path not in self.of_paths and len(self.of_paths) < MAX_PATHS:
            self.of_paths[path] = handler, request.path_params
