"""A stand-in for MLflow's registry: models that lie in folders, over the part of its REST API that serving uses."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from trainyard.contract import Alias

API, PROXY = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"


class RegistryServer:
    """A server on loopback.

    champions: by registered model, the version with the alias and its folder, or None without one.
    failures: how many of the next downloads are answered with 500.
    downloads: the paths of the files that were sent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.champions: dict[str, tuple[int, str] | None] = {}
        self.failures = 0
        self.downloads: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                status, content = owner.answer(unquote(parts.path), query)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self) -> None:
        """Answer requests until `close`."""
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Return the status and the body."""
        if path == f"{API}/registered-models/search":
            return 200, json.dumps({"registered_models": [self._model(name) for name in self.champions]}).encode()
        if path == f"{API}/model-versions/get":
            return 200, json.dumps({"model_version": {"creation_timestamp": 0}}).encode()
        if path == f"{API}/model-versions/get-download-uri":
            champion = self.champions[query["name"]]
            folder = champion[1] if champion else ""
            return 200, json.dumps({"artifact_uri": f"mlflow-artifacts:/{folder}"}).encode()
        if path == PROXY:
            files = [
                {"path": file.name, "is_dir": file.is_dir(), "file_size": file.stat().st_size}
                for file in (self.root / query["path"]).iterdir()
            ]
            return 200, json.dumps({"files": files}).encode()
        return self._file(path.removeprefix(f"{PROXY}/"))

    def _file(self, path: str) -> tuple[int, bytes]:
        self.downloads.append(path)
        if self.failures:
            self.failures -= 1
            return 500, b"{}"
        return 200, (self.root / path).read_bytes()

    def _model(self, name: str) -> dict[str, Any]:
        champion = self.champions[name]
        aliases = [{"alias": Alias.CHAMPION, "version": str(champion[0])}] if champion else []
        return {"name": name, "creation_timestamp": 0, "aliases": aliases}


@contextmanager
def registry_server(root: Path) -> Iterator[RegistryServer]:
    """Run a registry of the models in a folder until the block ends."""
    server = RegistryServer(root)
    server.serve()
    try:
        yield server
    finally:
        server.close()
