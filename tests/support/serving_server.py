"""A stand-in for the serving API: served models, forecasts and recorded predictions from memory."""

import json
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

KEY = "a key of the tests"


class ServingServer:
    """A server on loopback.

    records: the recorded predictions by served model.
    forecasts: the answers of `/models/NAME/forecast`.
    failures: how many of the next requests are answered with 503.
    requests: path and query of each request so far.
    """

    def __init__(self) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.forecasts: dict[str, Any] = {}
        self.failures = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = owner.answer(self.path, self.headers.get("Authorization", ""))
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        """Return the status, and the body as JSON or bytes."""
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.requests.append((parts.path, query))
        if authorization != f"Bearer {KEY}":
            return 401, {"code": "key", "message": "Send the API key."}
        if self.failures:
            self.failures -= 1
            return 503, {"code": "busy", "message": "Try again."}
        match parts.path.strip("/").split("/"):
            case ["models"]:
                return 200, {"models": {name: {} for name in self.records}}
            case ["models", name, "forecast"] if name in self.forecasts:
                return 200, self.forecasts[name]
            case ["models", name, "predictions"] if name in self.records:
                return 200, self._page(self.records[name], query)
        return 404, {"code": "unknown", "message": "There is no such page."}

    @staticmethod
    def _page(records: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        since, limit = datetime.fromisoformat(query["since"]), int(query["limit"])
        assert query["sample"] == "true"
        found = [
            record
            for record in records
            if datetime.fromisoformat(record["at"]) >= since
            and query.get("about") in (None, "true" if record["about"] is not None else "false")
            and ("labeled" not in query or record.get("labels") is not None)
            and str(record["version"]) == query.get("version", str(record["version"]))
        ]
        return {"predictions": found[-limit:], "next": None}
