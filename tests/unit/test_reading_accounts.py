"""MLflow's accounts of services that only read, in front of an application that answers every request."""

import httpx
import pytest
from flask import Flask
from mlflow_server.reading_accounts import READERS, refuse_writes

from trainyard.contract import Account

API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def app() -> Flask:
    """An application with the check."""
    app = Flask("mlflow")
    app.before_request(refuse_writes)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app.add_url_rule("/<path:path>", view_func=lambda path: path, methods=methods)
    return app


def status(app: Flask, account: str, method: str, path: str) -> int:
    """Return the status of a request of an account."""
    header = httpx.BasicAuth(account, "password")._auth_header
    return app.test_client().open(path, method=method, headers={"Authorization": header}).status_code


@pytest.mark.parametrize("account", sorted(READERS))
def test_a_reading_account_reads_and_changes_nothing(app: Flask, account: str) -> None:
    reads = [("GET", f"{API}/registered-models/search"), ("POST", f"{API}/runs/search"), ("GET", "/get-artifact")]
    writes = [
        ("POST", f"{API}/experiments/create"),
        ("POST", f"{API}/registered-models/create"),
        ("POST", f"{API}/registered-models/alias"),
        ("POST", f"{API}/model-versions/create"),
        ("POST", f"{API}/runs/search/../create"),
        ("POST", "/graphql"),
        ("PATCH", f"{API}/runs/search"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/model.skops"),
        ("DELETE", f"{API}/runs/search"),
    ]

    assert [status(app, account, *each) for each in reads] == [200] * len(reads)
    assert [status(app, account, *each) for each in writes] == [403] * len(writes)


@pytest.mark.parametrize("account", [Account.WORKER, "admin"])
def test_other_accounts_are_mlflows_own_concern(app: Flask, account: str) -> None:
    assert status(app, account, "POST", f"{API}/experiments/create") == 200
    assert app.test_client().post(f"{API}/experiments/create").status_code == 200, "MLflow asks for an account itself"
