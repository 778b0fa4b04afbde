"""Who may change what in MLflow: each account its own experiments and models, an admin all, and readers nothing."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.testing.stack import Stack
from tests.stack.test_safety import secrets_of
from trainyard.contract import Account

OWNERS, READERS = (Account.WORKER, "ada"), (Account.SERVING, Account.DASHBOARD)
API, ARTIFACTS = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"


class Things:
    """An experiment, run, registered model and version of one account, and what changes them."""

    def __init__(self, clients: dict[str, httpx.Client], owner: str) -> None:
        self.clients, self.name = clients, f"of-{owner}-{uuid4().hex[:6]}"

        def create(path: str, **body: object) -> Any:
            return clients[owner].post(API + path, json=body).raise_for_status().json()

        self.experiment = str(create("/experiments/create", name=self.name)["experiment_id"])
        self.run = str(create("/runs/create", experiment_id=self.experiment)["run"]["info"]["run_id"])
        create("/registered-models/create", name=self.name)
        self.source = f"mlflow-artifacts:/{self.experiment}/{self.run}/artifacts/model"
        create("/model-versions/create", name=self.name, source=self.source, run_id=self.run)

    def changes(self) -> dict[str, tuple[str, str, dict[str, Any]]]:
        """Return requests by what they change: method, path and body."""
        experiment: dict[str, Any] = {"experiment_id": self.experiment}
        run: dict[str, Any] = {"run_id": self.run}
        model: dict[str, Any] = {"name": self.name}
        version: dict[str, Any] = model | {"version": "1"}
        tag = {"key": "gate.decision", "value": "promoted"}
        return {
            "an experiment's name": ("POST", f"{API}/experiments/update", experiment | {"new_name": f"{self.name}-x"}),
            "an experiment's tags": ("POST", f"{API}/experiments/set-experiment-tag", experiment | tag),
            "a run": ("POST", f"{API}/runs/update", run | {"status": "FAILED"}),
            "a run's tags": ("POST", f"{API}/runs/set-tag", run | tag),
            "a run's metrics": ("POST", f"{API}/runs/log-metric", run | {"key": "m", "value": 1.0, "timestamp": 1}),
            "a run's figures": ("POST", f"{API}/runs/log-batch", run | {"tags": [tag]}),
            "the runs of an experiment": ("POST", f"{API}/runs/create", experiment),
            "the logged models of an experiment": ("POST", f"{API}/logged-models", experiment | {"name": "x"}),
            "a file of a run": ("PUT", f"{ARTIFACTS}/{self.experiment}/{self.run}/artifacts/model/model.skops", {}),
            "a model's description": ("PATCH", f"{API}/registered-models/update", model | {"description": "x"}),
            "a model's tags": ("POST", f"{API}/registered-models/set-tag", model | tag),
            "a model's versions": (
                "POST",
                f"{API}/model-versions/create",
                model | {"source": self.source, "run_id": self.run},
            ),
            "a version's tags": ("POST", f"{API}/model-versions/set-tag", version | tag),
            "the champion": (
                "POST",
                f"{API}/registered-models/alias",
                version | {"alias": "champion"},
            ),
            "that there is a champion": (
                "DELETE",
                f"{API}/registered-models/alias",
                model | {"alias": "champion"},
            ),
            "that there is a file": (
                "DELETE",
                f"{ARTIFACTS}/{self.experiment}/{self.run}/artifacts/model/model.skops",
                {},
            ),
            "that there is a version": ("DELETE", f"{API}/model-versions/delete", version),
            "that there is a model": ("DELETE", f"{API}/registered-models/delete", model),
            "that there is a run": ("POST", f"{API}/runs/delete", run),
            "that there is an experiment": ("POST", f"{API}/experiments/delete", experiment),
        }

    def statuses(self, account: str) -> dict[str, int]:
        """Make the changes as an account; return the status of each."""
        return {
            what: self.clients[account].request(method, path, json=body).status_code
            for what, (method, path, body) in self.changes().items()
        }


@pytest.fixture(scope="module")
def clients(stack: Stack) -> Iterator[dict[str, httpx.Client]]:
    """Clients of MLflow's server by account: the services' own, and a person's whom the admin gave an account."""
    secrets, password = secrets_of(stack), uuid4().hex
    with stack.mlflow() as admin:
        admin.post("/users/create", json={"username": "ada", "password": password}).raise_for_status()
        address = str(admin.base_url).split("/api/")[0]
    passwords = {name: secrets[f"MLFLOW_{name.upper()}_PASSWORD"] for name in (Account.WORKER, *READERS)}
    with ExitStack() as opened:
        yield {
            name: opened.enter_context(httpx.Client(base_url=address, auth=(name, each), timeout=30))
            for name, each in (passwords | {"ada": password}).items()
        }


def test_an_account_may_change_what_it_made(clients: dict[str, httpx.Client]) -> None:
    changed = Things(clients, "ada").statuses("ada")

    assert set(changed.values()) <= {200, 204}, changed


@pytest.mark.parametrize(("owner", "other"), [OWNERS, OWNERS[::-1], *((Account.WORKER, reader) for reader in READERS)])
def test_an_account_may_not_change_what_another_one_made(
    clients: dict[str, httpx.Client], owner: str, other: str
) -> None:
    refused = Things(clients, owner).statuses(other)

    assert set(refused.values()) == {403}, refused


def test_an_account_may_not_write_files_beside_its_experiments(clients: dict[str, httpx.Client]) -> None:
    things, own = Things(clients, Account.WORKER), Things(clients, "ada")
    address = f"{clients['ada'].base_url}".rstrip("/")
    paths = [
        "model.skops",
        "models/model.skops",
        "0/model.skops",
        f"{own.experiment}/../{things.experiment}/{things.run}/artifacts/model.skops",
        f"{own.experiment}%2F..%2F{things.experiment}/model.skops",
        f"./{things.experiment}/model.skops",
    ]
    statuses = {
        path: clients["ada"].put(httpx.URL(address, raw_path=f"{ARTIFACTS}/{path}".encode()), content=b"x").status_code
        for path in paths
    }

    assert set(statuses.values()) <= {400, 403, 404}, statuses


@pytest.mark.parametrize("reader", READERS)
def test_a_reading_account_sees_no_secret_of_mlflow(
    stack: Stack, clients: dict[str, httpx.Client], reader: str
) -> None:
    secret = f"secret-{uuid4().hex}"
    body = {"secret_name": secret[:20], "secret_value": {"api_key": secret}, "provider": "openai"}
    gateway = "/api/3.0/mlflow/gateway/secrets"
    with stack.mlflow() as admin:
        address = f"{admin.base_url}".split("/api/")[0]
        admin.post(f"{address}{gateway}/create", json=body).raise_for_status()

    secrets, webhooks, users = (
        clients[reader].get(path) for path in (f"{gateway}/list", f"{API}/webhooks", f"{API}/users/list")
    )

    assert secret not in secrets.text
    assert webhooks.status_code == 403
    assert {name for user in users.json()["users"] for name in user} == {"id", "username", "is_admin", "roles"}
