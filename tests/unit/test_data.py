"""Reading a CSV from a file and from an S3 store on loopback, and the error for each way in which that fails."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

from infra.testing.servers import free_port
from trainyard.data import read_csv
from trainyard.errors import DataError, SourceUnreachableError

ORDERS = "order,price\n1,9.5\n2,20\n"
KEY_ID = "reader"


class Store(BaseHTTPRequestHandler):
    """A read-only S3 store of one bucket."""

    def do_GET(self) -> None:
        if f"Credential={KEY_ID}/" not in self.headers["Authorization"]:
            return self.refuse(403, "InvalidAccessKeyId")
        match self.path.split("?")[0].split("/", 2)[1:]:
            case ["shop", "2026/orders.csv"]:
                self.answer(200, ORDERS.encode())
            case ["shop", "nothing.csv"]:
                self.answer(200, b"")
            case ["shop", "cut.csv"]:
                self.answer(200, ORDERS.encode(), len(ORDERS) + 100)
            case ["shop", "broken.csv"]:
                self.refuse(500, "InternalError")
            case ["shop", _]:
                self.refuse(404, "NoSuchKey")
            case ["secret", _]:
                self.refuse(403, "AccessDenied")
            case _:
                self.refuse(404, "NoSuchBucket")
        return None

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode())

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def without_the_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store; the environment variables hold its address and valid keys."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the reader")
        yield address
        server.shutdown()
        thread.join()


def is_orders(frame: pd.DataFrame) -> bool:
    return frame.to_dict("list") == {"order": [1, 2], "price": [9.5, 20.0]}


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orders.csv").write_text(ORDERS)
    monkeypatch.chdir(tmp_path)

    assert is_orders(read_csv(str(tmp_path / "orders.csv")))
    assert is_orders(read_csv("orders.csv"))


@pytest.mark.usefixtures("store")
def test_an_object() -> None:
    assert is_orders(read_csv("s3://shop/2026/orders.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CSV with a header: No columns"),
        (b"order,price\n", "has a header and no rows"),
        (b"order,price\n1,2\n1,2,3,4\n", "Expected 2 fields in line 3"),
        (b"PAR1\xff\xfe\x00", "is not a CSV"),
    ],
)
def test_a_file_that_is_not_a_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "orders.csv").write_bytes(content)

    with pytest.raises(DataError, match=message):
        read_csv(str(tmp_path / "orders.csv"))


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=rf"orders.csv cannot be read in {tmp_path}: No such file or directory"):
        read_csv("orders.csv")
    with pytest.raises(DataError, match="Is a directory"):
        read_csv(str(tmp_path))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://shop/2025/orders.csv", "no such object in the bucket"),
        ("s3://shopp/orders.csv", "no such bucket"),
        ("s3://secret/orders.csv", "these keys may not read it"),
        ("s3://shop/nothing.csv", "is not a CSV"),
        ("s3://shop", "not of the form s3://bucket/key"),
        ("s3:///orders.csv", "not of the form s3://bucket/key"),
        ("s3://a b/orders.csv", "Invalid bucket name"),
    ],
)
def test_an_object_that_cannot_be_read(location: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(location)


@pytest.mark.usefixtures("store")
def test_keys_that_the_store_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")

    with pytest.raises(DataError, match="does not know these keys; check AWS_ACCESS_KEY_ID"):
        read_csv("s3://shop/2026/orders.csv")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("missing", [["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], ["AWS_SECRET_ACCESS_KEY"]])
def test_missing_or_incomplete_keys(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    for name in missing:
        monkeypatch.delenv(name)

    with pytest.raises(DataError, match="AWS_SECRET_ACCESS_KEY"):
        read_csv("s3://shop/2026/orders.csv")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("location", "message"),
    [("s3://shop/broken.csv", "answers with status 500"), ("s3://shop/cut.csv", "does not answer")],
)
def test_a_store_that_fails_is_a_transient_error(location: str, message: str) -> None:
    with pytest.raises(SourceUnreachableError, match=message) as raised:
        read_csv(location)

    assert raised.value.transient


@pytest.mark.usefixtures("store")
def test_a_store_that_does_not_listen_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(SourceUnreachableError, match="does not answer"):
        read_csv("s3://shop/2026/orders.csv")


@pytest.mark.usefixtures("store")
def test_an_invalid_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")

    with pytest.raises(DataError, match="Invalid endpoint"):
        read_csv("s3://shop/2026/orders.csv")
