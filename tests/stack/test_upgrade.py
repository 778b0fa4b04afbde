"""The volumes of the last release under this version: nothing is lost, and the stack goes on working."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from infra.testing.stack import (
    CHECKOUT,
    LAST_RELEASE,
    LAST_VERSION,
    PORTS,
    Stack,
    copy_checkout,
    copy_last_release,
    has_last_release,
)
from infra.testing.waiting import wait_until
from tests.support.installation import predict, read_installation, recorded_predictions

BLOCK = {"value": "a value of the last release"}
GATEWAY_SECRET = {"api_key": "a key of the last release"}


@dataclass
class Upgrade:
    """A stack after the upgrade, what the last release had recorded before it, and what `make up` printed."""

    stack: Stack
    before: dict[str, Any]
    output: str


def write_encrypted_values(stack: Stack) -> None:
    """Save a block in Prefect and a key of a language model's provider in MLflow."""
    with stack.prefect() as api:
        kind = api.get("/block_types/slug/secret").raise_for_status().json()["id"]
        query = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
        schema = api.post("/block_schemas/filter", json=query).raise_for_status().json()[0]["id"]
        block = {"name": "token", "block_type_id": kind, "block_schema_id": schema, "data": BLOCK}
        api.post("/block_documents/", json=block).raise_for_status()
    secret = {"secret_name": "provider", "secret_value": GATEWAY_SECRET, "provider": "openai"}
    with stack.mlflow() as api:
        address = f"{stack.variables()['MLFLOW_TRACKING_URI']}/api/3.0/mlflow/gateway/secrets/create"
        api.post(address, json=secret).raise_for_status()


def read_encrypted_values(stack: Stack) -> tuple[Any, Any]:
    """Return both values as the servers decrypt them."""
    with stack.prefect() as api:
        path = "/block_types/slug/secret/block_documents/name/token"
        block = api.get(path, params={"include_secrets": True}).raise_for_status().json()["data"]
    program = (
        "import json, os; from mlflow.tracking._tracking_service.utils import _get_store;"
        "store = _get_store(os.environ['MLFLOW_BACKEND_STORE_URI']); (secret,) = store.list_secret_infos();"
        "print(json.dumps(store._get_decrypted_secret(secret.secret_id)))"
    )
    return block, json.loads(stack.python("mlflow", program).stdout.splitlines()[-1])


def query(stack: Stack, text: str) -> str:
    """Return what Postgres answers its superuser."""
    return stack.exec("postgres", "psql", "-U", "postgres", "-Atc", text).stdout.strip()


def read_everything(stack: Stack) -> dict[str, Any]:
    """Return everything of an installation that must survive, with the encrypted values."""
    return {**read_installation(stack), "encrypted": read_encrypted_values(stack)}


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Upgrade]:
    """Train and predict with the last release, stop it, and start this version on its volumes."""
    if not has_last_release():
        missing = f"The commit {LAST_RELEASE} of version {LAST_VERSION} is not in this clone"
        if os.environ.get("TRAINYARD_REQUIRE_DOCKER"):
            pytest.fail(f"{missing}, and TRAINYARD_REQUIRE_DOCKER requires it.")
        pytest.skip(missing)
    old_home, home = tmp_path_factory.mktemp("last-release"), tmp_path_factory.mktemp("checkout")
    copy_last_release(old_home)
    copy_checkout(home)
    stack = Stack(home)
    installation = {name: stack.environment[name] for name in ("COMPOSE_PROJECT_NAME", *PORTS)}
    last = Stack.of_last_release(old_home, **installation)
    try:
        last.up("worker", "serving")  # and what they depend on
        last.wait_for_first_run()
        wait_until(lambda: predict(last), 60, "the champion to be served", every=1)
        wait_until(lambda: recorded_predictions(last), 30, "the recorded prediction", every=0.5)
        write_encrypted_values(last)
        before = read_everything(last)
        # As a kill leaves it between the two steps in which the image makes a volume.
        last.exec("postgres", "sed", "-i", "/^host all all all/d", "/var/lib/postgresql/data/pg_hba.conf")
        last.shell("docker compose down")
        yield Upgrade(stack, before, stack.shell("make up", timeout=1800).stdout)
    finally:
        if request.session.testsfailed:
            print(stack.logs("60"))
        stack.remove()


def test_nothing_is_lost(upgrade: Upgrade) -> None:
    after = read_everything(upgrade.stack)

    assert {**after, "deployments": None} == {**upgrade.before, "deployments": None}
    assert after["deployments"].items() >= upgrade.before["deployments"].items()


def test_encrypted_values_are_under_the_installations_keys(upgrade: Upgrade) -> None:
    assert upgrade.before["encrypted"] == (BLOCK, GATEWAY_SECRET)
    logs = upgrade.stack.shell("docker compose logs --no-log-prefix --no-color prefect mlflow").stdout
    assert "under the installation's key, and deleted the database's key." in logs
    assert "Encrypted 1 secrets of MLflow's gateway under the installation's passphrase." in logs


def test_it_says_what_the_volume_lacks(upgrade: Upgrade) -> None:
    (line,) = [line for line in upgrade.output.splitlines() if "lacks" in line]

    assert "built-in locale" in line
    assert "checksums" in line


def test_the_champion_of_the_last_release_is_served(upgrade: Upgrade) -> None:
    prediction = wait_until(lambda: predict(upgrade.stack), 60, "the champion to be served", every=1)

    assert str(prediction["version"]) == upgrade.before["aliases"]["champion"]
    assert prediction["predictions"]


def test_a_new_run_completes(upgrade: Upgrade) -> None:
    output = upgrade.stack.shell("make run DEPLOYMENT=weather-pipeline").stdout

    assert "Completed" in output.splitlines()[-1]
    assert "on the same holdout" in output, "the champion of the last release is compared"
    assert len(upgrade.stack.flow_runs("weather-pipeline")) == len(upgrade.before["runs"]) + 1


def test_a_dump_and_restore_gives_the_volume_what_it_lacks(upgrade: Upgrade) -> None:
    page = (CHECKOUT / "docs/operations.md").read_text().partition("### A Postgres volume of an earlier version")[2]
    commands = re.findall("^```shell\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    before = read_everything(upgrade.stack)
    output = upgrade.stack.shell(commands).stdout

    assert read_everything(upgrade.stack) == before
    assert "lacks" not in output
    assert query(upgrade.stack, "SELECT DISTINCT datlocprovider FROM pg_database") == "b"
    assert query(upgrade.stack, "SHOW data_checksums") == "on"
    assert not list(upgrade.stack.home.glob("*.dump"))
