"""Where an external Postgres or S3 is, as each client reads it from its secrets."""

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from infra.object_store import ObjectStore
from infra.secrets import external, vault
from tests.unit.test_vault import settings_file
from trainyard.contract import Bucket

POSTGRES = {
    "POSTGRES_HOST": "db.example.com",
    "POSTGRES_PORT": "6432",
    "POSTGRES_USER": "administrator",
    "POSTGRES_SSLMODE": "verify-full",
}
S3 = {
    "S3_ENDPOINT": "https://s3.example.com/",
    "S3_REGION": "eu-1",
    "S3_BUCKET": "shared",
    "S3_PREFIX": "team/trainyard",
    "S3_PATH_STYLE": "false",
    "S3_ACCESS_KEY": "platform",
    "S3_RESULTS_ACCESS_KEY": "results",
}
PASSWORD, KEY, RESULTS_KEY = "short", "a key", "another key"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume of an installation with both servers."""
    for name, value in (POSTGRES | S3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(external, "GIVEN", tmp_path / "given")
    monkeypatch.setattr(external, "PUBLIC_AUTHORITIES", tmp_path / "public.pem")
    (tmp_path / "public.pem").write_text("the public authorities")
    (tmp_path / "given").mkdir()
    given = {"POSTGRES_PASSWORD": PASSWORD, "S3_SECRET_KEY": KEY, "S3_RESULTS_SECRET_KEY": RESULTS_KEY}
    volume = tmp_path / "volume"
    volume.mkdir()
    vault.make(volume, settings_file(tmp_path, **given))
    return volume


def test_every_client_of_postgres_has_its_address_and_verifies_it(made: Path) -> None:
    for file in ("mlflow/MLFLOW_BACKEND_STORE_URI", "serving/SERVING_DATABASE_URL"):
        url = make_url((made / file).read_text())
        assert (url.host, url.port) == ("db.example.com", 6432), file
    assert (made / "prefect/PREFECT_SERVER_DATABASE_HOST").read_text() == "db.example.com"
    assert "@db.example.com:6432/mlflow_accounts" in (made / "mlflow/accounts.ini").read_text()
    for service in ("prefect", "mlflow", "serving", "backup", "restore"):
        assert (made / service / "PGSSLMODE").read_text() == "verify-full"
        assert (made / service / "PGSSLROOTCERT").read_text() == "/run/secrets/postgres-authority.pem"
        assert (made / service / "postgres-authority.pem").read_text() == "the public authorities"
    assert "sslmode=verify-full&sslrootcert=/run/secrets/" in (made / "postgres-exporter/uri").read_text()


def test_the_administrators_password_reaches_those_who_need_it_alone_and_is_not_kept(made: Path) -> None:
    holders = {
        file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file() and PASSWORD in file.read_text()
    }

    assert holders == {"postgres/pg_service.conf", "restore/POSTGRES_PASSWORD"}
    assert (made / "restore/POSTGRES_USER").read_text() == "administrator"


def test_every_client_of_s3_has_its_place(made: Path) -> None:
    assert (made / "mlflow/MLFLOW_ARTIFACTS_DESTINATION").read_text() == f"s3://shared/team/trainyard/{Bucket.MLFLOW}"
    assert (made / "mlflow/MLFLOW_S3_ENDPOINT_URL").read_text() == "https://s3.example.com"
    assert (made / "mlflow/MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE").read_text() == "virtual"
    assert (made / "mlflow/AWS_SECRET_ACCESS_KEY").read_text() == KEY
    for service in ("provision", "backup", "restore"):
        store = ObjectStore.read({file.name: file.read_text() for file in (made / service).iterdir()})
        assert store == ObjectStore("https://s3.example.com", "eu-1", "shared", "team/trainyard", has_paths=False)
    assert not list(made.glob(f"*/{external.S3_AUTHORITY}")), "a block that names a file could not be loaded elsewhere"
    assert not [name for name in ("S3_CA", "SSL_CERT_FILE", "AWS_CA_BUNDLE") if list(made.glob(f"*/{name}"))]
    assert (made / "provision/RESULTS_PASSWORD").read_text() == RESULTS_KEY
    assert json.loads((made / "prometheus/minio-targets.json").read_text()) == []


def test_a_private_authority_of_s3_is_trusted_beside_the_public_ones_and_of_postgres_alone(made: Path) -> None:
    private = "-----BEGIN CERTIFICATE-----"
    for name in (external.POSTGRES_AUTHORITY, external.S3_AUTHORITY):
        (external.GIVEN / name).write_text(private)
    vault.make(made, made.parent / "settings")

    assert (made / "mlflow" / external.S3_AUTHORITY).read_text() == f"{private}\nthe public authorities"
    assert (made / "mlflow" / external.POSTGRES_AUTHORITY).read_text() == private
    assert (made / "provision/S3_CA").read_text() == f"/run/secrets/{external.S3_AUTHORITY}"
    assert (made / "worker" / external.S3_AUTHORITY).read_text().startswith(private)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"POSTGRES_USER": ""}, "POSTGRES_HOST is set, and POSTGRES_USER is not"),
        ({"POSTGRES_PORT": "x"}, "POSTGRES_PORT is x, which is no number"),
        ({"POSTGRES_SSLMODE": "always"}, "POSTGRES_SSLMODE is always; it is one of verify-full"),
        ({"BACKUP_POINT_IN_TIME": "true"}, "which needs the stack's own Postgres"),
        ({"S3_BUCKET": "", "S3_ACCESS_KEY": ""}, "S3_ENDPOINT is set, and S3_BUCKET and S3_ACCESS_KEY are not"),
        ({"S3_ENDPOINT": "s3.example.com"}, "it needs the form https://s3.example.com, without a bucket"),
        (
            {"S3_ENDPOINT": "https://s3.example.com/shared"},
            "it needs the form https://s3.example.com, without a bucket",
        ),
        ({"S3_BUCKET": "Shared_"}, "which is no name of a bucket"),
        ({"S3_PREFIX": "/team/"}, "it needs the form folder/folder"),
        ({"S3_PATH_STYLE": "yes"}, "S3_PATH_STYLE is yes; it is true or false"),
    ],
)
def test_a_setting_that_is_missing_or_means_nothing_is_named(changed: dict[str, str], problem: str) -> None:
    given = {"POSTGRES_PASSWORD": PASSWORD, "S3_SECRET_KEY": KEY, "S3_RESULTS_SECRET_KEY": RESULTS_KEY}
    assert not list(external.find_problems(POSTGRES | S3 | given))

    (found,) = external.find_problems(POSTGRES | S3 | given | changed)
    assert problem in found


def test_buckets_of_the_stacks_own_store_are_buckets_and_else_folders() -> None:
    assert ObjectStore().locate("mlflow") == ("mlflow", "")
    assert ObjectStore(bucket="shared").locate("mlflow") == ("shared", "mlflow/")
    assert ObjectStore(bucket="shared", prefix="team").locate("mlflow") == ("shared", "team/mlflow/")


@pytest.mark.parametrize(
    ("has_paths", "address"), [(True, "https://s3.test/shared/a"), (False, "https://shared.s3.test/a")]
)
def test_addresses_name_the_bucket_where_the_server_wants_it(has_paths: bool, address: str) -> None:
    client = ObjectStore("https://s3.test", "eu-1", "shared", has_paths=has_paths).connect("user", "a password")

    assert client.presigned_get_object(bucket_name="shared", object_name="a").partition("?")[0] == address
