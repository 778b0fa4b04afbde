"""A stand-in for the serving API: models, forecasts and recorded predictions as it answers them, from a list."""

import json
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

KEY = "a key of the tests"


class ServingServer:
    """A server on loopback; `records` are by model, `failures` counts down the answers that are 503."""

    def __init__(self) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.forecasts: dict[str, dict[str, Any]] = {}
        self.failures = 0
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = owner.answer(self.path, self.headers.get("Authorization", ""))
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        """Return status and JSON."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append(parts.path)
        if authorization != f"Bearer {KEY}":
            return 401, {"code": "key", "message": "Send the API key."}
        if self.failures:
            self.failures -= 1
            return 503, {"code": "busy", "message": "Ask again."}
        match parts.path.strip("/").split("/"):
            case ["models"]:
                return 200, {"models": {name: {} for name in self.records}}
            case ["models", name, "forecast"] if name in self.forecasts:
                return 200, self.forecasts[name]
            case ["models", _, "forecast"]:
                return 404, {"code": "no-forecast", "message": "This model is of no place."}
            case ["models", name, "predictions"] if name in self.records:
                return 200, self._page(self.records[name], query)
        return 404, {"code": "unknown", "message": "There is no such page."}

    @staticmethod
    def _page(records: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        since, after, limit = datetime.fromisoformat(query["since"]), int(query["after"]), int(query["limit"])
        new = [one for one in records if one["id"] > after and datetime.fromisoformat(one["at"]) >= since]
        page = new[:limit]
        return {"predictions": page, "next": page[-1]["id"] if len(new) > limit else None}
