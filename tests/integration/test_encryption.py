"""What Prefect and MLflow encrypted before the installation had keys goes on under these, on a real Postgres."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from mlflow.store.model_registry.dbmodels.models import SqlWebhook
from mlflow.store.tracking.dbmodels.models import SqlGatewaySecret
from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE, KEKManager, _decrypt_secret, _encrypt_secret
from mlflow_server.encryption import adopt_gateway_secrets, adopt_webhooks
from mlflow_server.schema import Database
from prefect_server.encryption import adopt_blocks

PREFECT_TABLES = """
DROP TABLE IF EXISTS configuration, block_document;
CREATE TABLE configuration (key varchar UNIQUE, value jsonb);
CREATE TABLE block_document (id uuid PRIMARY KEY, name varchar, block_type_name varchar, data jsonb DEFAULT '{}');
"""


def own_key() -> str:
    return Fernet.generate_key().decode()


def block(key: str, value: str) -> str:
    """Return what Prefect stores for a Secret block."""
    return Fernet(key).encrypt(json.dumps({"value": value}).encode()).decode()


def adopt(
    database: str, key: str, blocks: Mapping[str, str], database_key: str | None = None, former: str = ""
) -> tuple[dict[str, str], int]:
    """Adopt blocks by name; return their data afterwards, and how many keys are left in the database."""

    async def run() -> tuple[dict[str, str], int]:
        connection = await asyncpg.connect(database)
        try:
            await connection.execute(PREFECT_TABLES)
            if database_key:
                value = json.dumps({"fernet_key": database_key})
                await connection.execute("INSERT INTO configuration VALUES ('ENCRYPTION_KEY', $1::jsonb)", value)
            for name, data in blocks.items():
                await connection.execute(
                    "INSERT INTO block_document VALUES ($1, $2, 'secret', to_jsonb($3::text))", uuid4(), name, data
                )
            await adopt_blocks(connection, key, former)
            rows = await connection.fetch("SELECT name, data #>> '{}' AS data FROM block_document")
            keys = await connection.fetchval("SELECT count(*) FROM configuration")
            return {row["name"]: row["data"] for row in rows}, keys
        finally:
            await connection.close()

    return asyncio.run(run())


def test_blocks_under_the_databases_key_are_readable_under_the_installations_alone(database: str) -> None:
    former, key = own_key(), own_key()
    blocks = {"token": block(former, "t"), "results": block(former, "r")}
    adopted, keys_left = adopt(database, key, blocks, database_key=former)

    opened = {name: json.loads(Fernet(key).decrypt(data)) for name, data in adopted.items()}
    assert opened == {"token": {"value": "t"}, "results": {"value": "r"}}
    assert keys_left == 0, "whoever has the database has no key to it"


def test_blocks_under_the_installations_key_stay_as_they_are(database: str) -> None:
    key = own_key()
    blocks = {"token": block(key, "t")}

    assert adopt(database, key, blocks) == (blocks, 0)
    assert adopt(database, key, blocks, database_key=own_key()) == (blocks, 0)


def test_blocks_under_the_key_before_a_rotation_are_readable_under_the_new_one_alone(database: str) -> None:
    former, key = own_key(), own_key()
    adopted, _ = adopt(database, key, {"token": block(former, "t"), "new": block(key, "n")}, former=former)

    opened = {name: json.loads(Fernet(key).decrypt(data)) for name, data in adopted.items()}
    assert opened == {"token": {"value": "t"}, "new": {"value": "n"}}


def test_a_block_whose_key_is_lost_is_named_and_holds_up_no_other(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    former, key = own_key(), own_key()
    blocks = {"lost": block(own_key(), "l"), "token": block(former, "t")}
    adopted, _ = adopt(database, key, blocks, database_key=former)

    assert adopted["lost"] == blocks["lost"]
    assert json.loads(Fernet(key).decrypt(adopted["token"])) == {"value": "t"}
    assert "Save these blocks again, their key is lost: secret/lost." in capsys.readouterr().out


@pytest.fixture
def tracking(database: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """MLflow's tables of encrypted values, and the installation's keys."""
    monkeypatch.setenv("MLFLOW_CRYPTO_KEK_PASSPHRASE", own_key())
    monkeypatch.setenv("MLFLOW_CRYPTO_KEK_VERSION", "2")
    monkeypatch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", own_key())
    url = database.replace("postgresql:", "postgresql+psycopg2:")
    engine = sa.create_engine(url)
    for table in (SqlGatewaySecret.__table__, SqlWebhook.__table__):
        table.drop(engine, checkfirst=True)
        table.create(engine)
    engine.dispose()
    return Database(url, Path(), "alembic_version", "")


def insert_gateway_secret(database: Database, name: str, keys: KEKManager) -> None:
    """Store a secret as MLflow's server does with these keys."""
    secret_id = f"s-{name}"
    encrypted = _encrypt_secret(json.dumps({"api_key": name}), keys, secret_id, name)
    with database.cursor() as cursor:
        cursor.execute(
            "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, masked_value,"
            " created_at, last_updated_at, workspace) VALUES (%s, %s, %s, %s, %s, '{}', 0, 0, 'default')",
            [secret_id, name, encrypted.encrypted_value, encrypted.wrapped_dek, encrypted.kek_version],
        )


def read_gateway_secret(database: Database, name: str) -> object:
    """Return what MLflow's server would read with the environment's keys."""
    with database.cursor() as cursor:
        cursor.execute("SELECT secret_id, encrypted_value, wrapped_dek FROM secrets WHERE secret_name = %s", [name])
        ((secret_id, encrypted_value, wrapped_dek),) = cursor.fetchall()
    return _decrypt_secret(bytes(encrypted_value), bytes(wrapped_dek), KEKManager(), secret_id, name)


def test_gateway_secrets_under_mlflows_default_passphrase_are_read_with_the_installations(
    tracking: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    insert_gateway_secret(tracking, "former", KEKManager(DEFAULT_KEK_PASSPHRASE, 1))
    insert_gateway_secret(tracking, "lost", KEKManager(own_key(), 1))
    insert_gateway_secret(tracking, "present", KEKManager())
    for _ in range(2):
        adopt_gateway_secrets(tracking)

        assert read_gateway_secret(tracking, "former") == {"api_key": "former"}
        assert read_gateway_secret(tracking, "present") == {"api_key": "present"}
    assert "Set these secrets of MLflow's gateway again, their key is lost: lost." in capsys.readouterr().out


def test_gateway_secrets_under_the_passphrase_before_a_rotation_are_read_with_the_new_one(
    tracking: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    former = own_key()
    monkeypatch.setenv("MLFLOW_FORMER_KEK_PASSPHRASE", former)
    insert_gateway_secret(tracking, "rotated", KEKManager(former, 2))
    insert_gateway_secret(tracking, "default", KEKManager(DEFAULT_KEK_PASSPHRASE, 1))
    insert_gateway_secret(tracking, "present", KEKManager())
    for _ in range(2):
        adopt_gateway_secrets(tracking)

        for name in ("rotated", "default", "present"):
            assert read_gateway_secret(tracking, name) == {"api_key": name}
    assert "their key is lost" not in capsys.readouterr().out


def test_a_webhooks_secret_under_the_key_before_a_rotation_is_read_with_the_new_one(
    tracking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = own_key()
    monkeypatch.setenv("MLFLOW_FORMER_WEBHOOK_KEY", former)
    insert_webhooks(tracking, {"rotated": Fernet(former).encrypt(b"signs").decode()})
    adopt_webhooks(tracking)

    ((_, status, secret),) = read_webhooks(tracking)
    assert status == "ACTIVE"
    assert secret
    assert Fernet(os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]).decrypt(secret) == b"signs"


def insert_webhooks(database: Database, secrets: Mapping[str, str | None]) -> None:
    with database.cursor() as cursor:
        for name, secret in secrets.items():
            cursor.execute(
                "INSERT INTO webhooks (webhook_id, name, url, status, secret, workspace)"
                " VALUES (%s, %s, 'https://example.org', 'ACTIVE', %s, 'default')",
                [name, name, secret],
            )


def read_webhooks(database: Database) -> list[tuple[str, str, str | None]]:
    with database.cursor() as cursor:
        cursor.execute("SELECT name, status, secret FROM webhooks")
        return list(cursor.fetchall())


def test_a_webhook_whose_secret_cannot_be_read_is_disabled_and_holds_up_no_other(tracking: Database) -> None:
    present = Fernet(os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]).encrypt(b"signs").decode()
    secrets = {"present": present, "lost": Fernet(own_key()).encrypt(b"signed").decode(), "unsigned": None}
    insert_webhooks(tracking, secrets)
    adopt_webhooks(tracking)

    found = {name: (status, secret) for name, status, secret in read_webhooks(tracking)}
    assert found == {"present": ("ACTIVE", present), "lost": ("DISABLED", None), "unsigned": ("ACTIVE", None)}


@pytest.mark.parametrize(
    ("module", "secret"),
    [
        ("prefect_server.serve", "PREFECT_SERVER_API_AUTH_STRING"),
        ("mlflow_server.serve", "MLFLOW_AUTH_ADMIN_PASSWORD"),
        ("mlflow_server.migrate", "MLFLOW_AUTH_ADMIN_PASSWORD"),
    ],
)
def test_a_program_without_secrets_says_so_and_ends(tmp_path: Path, module: str, secret: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path), secret: ""}
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(tmp_path / "accounts.ini")
    ended = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True, timeout=300)

    assert ended.returncode == 1
    assert " does not start without " in ended.stderr.splitlines()[-1]
    assert secret in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
