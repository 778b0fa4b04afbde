"""The preparation of a Postgres outside the stack by an administrator who is no superuser."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from infra.backup.databases import DATABASES, Postgres
from infra.testing.postgres import FOLDERS, find, postgres_server

SCRIPT = Path(__file__).parents[2] / "infra/postgres/make-databases"
ROLES = ("prefect", "mlflow", "mlflow_accounts", "serving", "backup", "metrics")


@dataclass
class Server:
    """A server, and what the one-shot `databases` has of it."""

    owner: Postgres
    port: int
    folder: Path

    def prepare(self, installation: str = "trainyard", port: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the script as the administrator."""
        service = self.folder / "pg_service.conf"
        service.write_text(
            f"[external]\nhost=127.0.0.1\nport={port or self.port}\ndbname=postgres\nuser=administrator\n"
        )
        variables = {
            "PATH": os.environ["PATH"],
            "PGSERVICEFILE": str(service),
            "PGSERVICE": "external",
            "SECRETS_FOLDER": str(self.folder),
            "INSTALLATION": installation,
            "MAX_WAIT_SECONDS": "1",
        }
        return subprocess.run(["bash", str(SCRIPT)], env=variables, capture_output=True, text=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    find("psql")
    monkeypatch.setenv("PATH", os.pathsep.join(FOLDERS))
    for role in ROLES:
        (tmp_path / role).write_text(f"the password of {role}")
    with postgres_server() as url:
        port = urlsplit(url).port
        assert port
        owner = Postgres("postgres", "", "127.0.0.1", port)
        owner.query("postgres", "CREATE ROLE administrator LOGIN CREATEROLE CREATEDB")
        owner.query("postgres", "GRANT pg_read_all_data, pg_monitor TO administrator WITH ADMIN OPTION")
        yield Server(owner, port, tmp_path)


def test_an_administrator_prepares_it_and_may_do_so_again(server: Server) -> None:
    for _ in range(2):
        prepared = server.prepare()
        assert prepared.returncode == 0, prepared.stderr
        assert not prepared.stdout + prepared.stderr
    owners = "SELECT string_agg(datname || ' ' || rolname, ', ' ORDER BY datname) FROM pg_database JOIN pg_roles r ON r.oid = datdba"

    assert set(
        server.owner.query("postgres", owners + " WHERE datname = rolname AND datname <> 'postgres'").split(", ")
    ) == {f"{name} {name}" for name in DATABASES}
    passwords = "SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256%'"
    assert server.owner.query("postgres", passwords) == str(len(ROLES))


def test_an_owner_writes_and_the_role_of_backups_reads(server: Server) -> None:
    server.prepare()
    mlflow, backup = (Postgres(role, "", "127.0.0.1", server.port) for role in ("mlflow", "backup"))
    mlflow.query("mlflow", "CREATE TABLE runs (id integer); INSERT INTO runs VALUES (7); CREATE EXTENSION pg_trgm")

    assert backup.query("mlflow", "SELECT id FROM runs") == "7"
    assert mlflow.query("mlflow", "SHOW jit") == "off"
    with (
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
        psycopg2.connect(host="127.0.0.1", port=server.port, user="backup", dbname="mlflow") as connection,
    ):
        connection.cursor().execute("DELETE FROM runs")


def test_roles_of_somebody_else_are_left_alone(server: Server) -> None:
    server.owner.query("postgres", "CREATE ROLE mlflow LOGIN PASSWORD 'of somebody else'")
    before = server.owner.query("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'mlflow'")
    refused = server.prepare()

    assert refused.returncode == 1
    assert "has roles of the same names that are not of the installation trainyard: mlflow." in refused.stderr
    assert server.owner.query("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'mlflow'") == before
    assert server.owner.query("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'prefect'") == "0"


def test_a_second_installation_is_refused_by_name(server: Server) -> None:
    server.prepare()

    assert "not of the installation another: backup, metrics, mlflow" in server.prepare("another").stderr


def test_a_right_that_is_missing_is_named(server: Server) -> None:
    server.owner.query("postgres", "ALTER ROLE administrator NOCREATEDB")
    refused = server.prepare()

    assert refused.returncode == 1
    assert "permission denied to create database" in refused.stderr
    assert "password" not in refused.stderr


def test_a_server_that_does_not_answer_is_said_with_the_reason(server: Server) -> None:
    refused = server.prepare(port=1)

    assert refused.returncode == 1
    assert "Postgres did not become ready: " in refused.stderr
    assert "Connection refused" in refused.stderr
