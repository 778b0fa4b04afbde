"""The last release under this version, and this one under a broken one: nothing is lost, and predictions are answered."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.testing.stack import CHECKOUT, LAST_RELEASE, LAST_VERSION, Stack, clone_checkout, has_last_release
from infra.testing.waiting import wait_until
from tests.support.asking import Asking, Failure
from tests.support.installation import predict, read_installation, recorded_predictions

pytestmark = pytest.mark.slow

BLOCK = {"value": "a value of the last release"}
GATEWAY_SECRET = {"api_key": "a key of the last release"}
UPSTREAM = "http://upstream:8080/v1"
MAX_GAP_SECONDS = 10
"""How long connections may be refused while the port moves from one container to the other, on a machine that is busy."""
BROKEN = "v99.0.0"
MIGRATION = "command: [python, -m, mlflow_server.migrate]"
BROKEN_MIGRATION = """command:
      - python
      - -c
      - |
        from mlflow_server.schema import tracking_database
        with tracking_database().cursor() as cursor:
            cursor.execute("DROP TABLE metrics CASCADE; UPDATE runs SET name = 'lost'")
        raise SystemExit("This migration is broken.")"""


@dataclass
class Upgrade:
    """A stack after the upgrade, what the last release had recorded before it, and what `make upgrade` printed."""

    stack: Stack
    version: str
    """The commit of this version."""
    before: dict[str, Any]
    output: str
    failures: list[Failure]
    """Of the predictions that were asked for meanwhile."""


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


def git(home: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout.strip()


def clone_with_both(home: Path) -> str:
    """Clone the checkout, and check out the last release; return the commit of the checkout as it stands.

    A version with a broken migration has the tag BROKEN. The folder has what the tests add to both versions.
    """
    version = clone_checkout(home)
    compose = (home / "docker-compose.yml").read_text()
    assert MIGRATION in compose
    (home / "docker-compose.yml").write_text(compose.replace(MIGRATION, BROKEN_MIGRATION))
    git(home, "commit", "--quiet", "--all", "--message", "Break a migration")
    git(home, "tag", BROKEN)
    override = (home / "infra/testing/compose.yml").read_text().replace("./infra/testing", f"{CHECKOUT}/infra/testing")
    (home / "override.yml").write_text(override)
    git(home, "checkout", "--quiet", "--detach", LAST_RELEASE)
    return version


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Upgrade]:
    """Train and predict with the last release, and upgrade it to this version while predictions are asked for."""
    if not has_last_release():
        missing = f"The commit {LAST_RELEASE} of version {LAST_VERSION} is not in this clone"
        if os.environ.get("TRAINYARD_REQUIRE_DOCKER"):
            pytest.fail(f"{missing}, and TRAINYARD_REQUIRE_DOCKER requires it.")
        pytest.skip(missing)
    home = tmp_path_factory.mktemp("installation") / "trainyard"
    version = clone_with_both(home)
    addresses = {f"WEATHER_{kind.upper()}_URL": f"{UPSTREAM}/{kind}" for kind in ("archive", "forecast")}
    stack = Stack(
        home,
        COMPOSE_FILE=os.pathsep.join(["docker-compose.yml", str(home / "override.yml")]),
        WEATHER_GEOCODING_URL=f"{UPSTREAM}/search",
        **addresses,
    )
    try:
        stack.up("worker", "serving")  # and what they depend on
        stack.wait_for_first_run()
        prediction = wait_until(lambda: predict(stack), 60, "the champion to be served", every=1)
        wait_until(lambda: recorded_predictions(stack), 30, "the recorded prediction", every=0.5)
        write_encrypted_values(stack)
        before = read_everything(stack)
        # As a kill leaves it between the two steps in which the image makes a volume.
        stack.exec("postgres", "sed", "-i", "/^host all all all/d", "/var/lib/postgresql/data/pg_hba.conf")
        asking = Asking(stack, prediction)
        git(home, "checkout", "--quiet", version)
        with asking:
            output = stack.shell("make upgrade", timeout=1800).stdout
        yield Upgrade(stack, version, before, output, asking.failures)
    finally:
        if request.session.testsfailed:
            print(stack.logs("60"))
        stack.remove()


def assert_same(after: dict[str, Any], before: dict[str, Any]) -> None:
    """Assert that an installation has what it had before, and perhaps more deployments and predictions."""
    assert {**after, "deployments": None, "predictions": None} == {**before, "deployments": None, "predictions": None}
    assert after["deployments"].items() >= before["deployments"].items()
    assert all(record in after["predictions"] for record in before["predictions"])


def images(stack: Stack) -> dict[str, str]:
    """Return the image of each service's container."""
    return {service: container["Image"] for service, container in stack.containers().items()}


def test_nothing_is_lost(upgrade: Upgrade) -> None:
    assert_same(read_everything(upgrade.stack), upgrade.before)
    assert re.search(r"Prefect and MLflow were away for \d+ s\.$", upgrade.output)


def test_predictions_are_answered_but_while_the_port_moves(upgrade: Upgrade) -> None:
    if upgrade.failures:
        print(f"No answers for {upgrade.failures[-1].end - upgrade.failures[0].start:.2f} s.")
    assert {failure.reason for failure in upgrade.failures} <= {"ConnectError", "ReadError", "RemoteProtocolError"}
    assert not upgrade.failures or upgrade.failures[-1].end - upgrade.failures[0].start < MAX_GAP_SECONDS


def test_another_start_changes_nothing(upgrade: Upgrade) -> None:
    before = set(upgrade.stack.shell("docker compose ps --quiet").stdout.split())
    upgrade.stack.shell("docker compose up --detach --wait")

    assert set(upgrade.stack.shell("docker compose ps --quiet").stdout.split()) == before
    assert len(upgrade.stack.shell("docker compose ps --all --quiet serving").stdout.split()) == 1


def test_encrypted_values_are_under_the_installations_keys(upgrade: Upgrade) -> None:
    assert upgrade.before["encrypted"] == (BLOCK, GATEWAY_SECRET)
    logs = upgrade.stack.shell("docker compose logs --no-log-prefix --no-color prefect mlflow").stdout
    assert re.search(r"Encrypted [1-9]\d* blocks under the installation's key\.", logs)
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


def test_a_broken_migration_ends_where_it_was(upgrade: Upgrade) -> None:
    stack, champion = upgrade.stack, predict(upgrade.stack)
    assert champion
    before, images_before = read_everything(stack), images(stack)
    with Asking(stack, champion) as asking:
        failed = stack.shell(f"make upgrade TO={BROKEN}", check=False)

    assert failed.returncode != 0
    assert "This migration is broken." in failed.stderr
    assert "again, with its data" in failed.stderr
    assert_same(read_everything(stack), before)
    assert images(stack) == images_before
    assert git(stack.home, "rev-parse", "HEAD") == upgrade.version
    assert not git(stack.home, "status", "--porcelain", "--untracked-files=no")
    assert "before" not in query(stack, "SELECT string_agg(datname, ' ') FROM pg_database")
    assert stack.project in stack.shell("make backups").stdout, "it had been backed up"
    assert asking.answers > 0
    assert not asking.failures


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("v98.0.0", "There is no version v98.0.0."),
        (LAST_RELEASE, f"This checkout has commits that {LAST_RELEASE} has not"),
    ],
)
def test_what_is_no_later_version_is_refused(upgrade: Upgrade, version: str, reason: str) -> None:
    before = images(upgrade.stack)
    refused = upgrade.stack.shell(f"make upgrade TO={version}", check=False)

    assert refused.returncode != 0
    assert reason in refused.stderr
    assert images(upgrade.stack) == before
    assert git(upgrade.stack.home, "rev-parse", "HEAD") == upgrade.version


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
