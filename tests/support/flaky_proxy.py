"""A proxy before a real server that fails each request before it lets it through."""

import hashlib
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from threading import Lock, Thread
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FlakyProxy:
    """Answers the first of equal requests with 503; forwards the second and drops the connection instead of answering.

    All later ones pass. Requests of Prefect's own client, which waits seconds before each retry, get the 503 only.

    Args:
        target: The server's address.
        only: How the path of a request ends that is failed.
        times: After how many dropped connections all requests pass.

    Attributes:
        url: Its address.
        failures: How many requests were answered with 503 ("refused"), and how many lost their response ("dropped").
    """

    def __init__(self, target: str, only: str = "", times: float = inf) -> None:
        address = urlsplit(target).netloc
        attempts: Counter[str] = Counter()
        lock, self.failures = Lock(), Counter[str]()
        failures = self.failures

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                sender = self.headers.get("authorization", "")
                key = f"{self.command} {self.path} {sender} {hashlib.sha256(body).hexdigest()}"
                with lock:
                    attempts[key] += 1
                    passes = not self.path.endswith(only) or failures["dropped"] >= times
                    attempt = 3 if passes else attempts[key]
                if attempt == 1:
                    failures["refused"] += 1
                    self.respond(503, [("Retry-After", "0")], b"database is locked")
                    return
                status, headers, content = self.forward(body)
                if attempt == 2 and not self.headers.get("user-agent", "").startswith("prefect"):
                    failures["dropped"] += 1
                    self.close_connection = True
                    return
                self.respond(status, headers, content)

            def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = HTTPConnection(address, timeout=30)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    return response.status, response.getheaders(), response.read()
                finally:
                    connection.close()

            def respond(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
