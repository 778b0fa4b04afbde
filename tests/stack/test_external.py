"""infra/compose/external-postgres.yml and external-s3.yml: an installation without data of its own, moved there by a restore.

The servers are another Compose project's: a Postgres whose administrator is no superuser, and an S3 with a bucket that somebody else
uses too. Both speak TLS alone, with certificates of a private authority.
"""

import io
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from infra.testing.servers import free_port
from infra.testing.stack import ONE_SHOTS, RUNNING, Stack, copy_checkout
from infra.testing.waiting import wait_until
from tests.support.backups import READ_BLOCK, Backup, colleagues_status, hashes
from tests.support.certificates import Authority
from tests.support.installation import assert_survived, predict, read_installation

SERVERS = """
services:
  database:
    image: postgres:17-trixie
    entrypoint:
      - bash
      - -c
      - >-
        install -m 600 -o postgres /outside/key.pem /tmp/key.pem && exec docker-entrypoint.sh postgres -c ssl=on
        -c ssl_cert_file=/outside/certificate.pem -c ssl_key_file=/tmp/key.pem -c hba_file=/outside/pg_hba.conf
    environment: {POSTGRES_PASSWORD: "${OUTSIDE_PASSWORD}"}
    volumes: [".:/outside:ro,z"]
    ports: ["${BRIDGE}:${OUTSIDE_POSTGRES_PORT}:5432"]
    healthcheck: {test: [CMD, pg_isready, --quiet, --host, 127.0.0.1], interval: 1s, retries: 60}
  objects:
    image: pgsty/silo:RELEASE.2026-09-16T00-00-00Z
    command: [server, /data]
    environment: {HOME: /tmp, MINIO_ROOT_USER: outside, MINIO_ROOT_PASSWORD: "${OUTSIDE_PASSWORD}", MINIO_DOMAIN: s3.test}
    ports: ["${BRIDGE}:${OUTSIDE_ADMIN_PORT}:9000"]
  tls:
    image: caddy:2
    command: [caddy, run, --config, /outside/Caddyfile]
    volumes: [".:/outside:ro,z"]
    ports: ["${BRIDGE}:${OUTSIDE_S3_PORT}:443"]
"""
HBA = "local all all peer\nhostssl all all all scram-sha-256\n"
CADDYFILE = """
{
    admin off
    auto_https off
}
https://s3.test, https://*.s3.test {
    tls /outside/certificate.pem /outside/key.pem
    reverse_proxy objects:9000
}
"""
ADMINISTRATOR = """
CREATE ROLE administrator LOGIN CREATEROLE CREATEDB PASSWORD '{password}';
GRANT pg_read_all_data, pg_monitor TO administrator WITH ADMIN OPTION;
"""
ARTIFACT = """
import mlflow
mlflow.set_experiment("moved")
with mlflow.start_run() as run:
    mlflow.log_text("all aboard" * 2_000_000, "large.txt")
print(len(mlflow.artifacts.load_text(run.info.artifact_uri + "/large.txt")))
"""
EVER = datetime.min.replace(tzinfo=UTC)
BUCKET, PREFIX, FOREIGN = "shared", "team/trainyard", "team/of-somebody-else"
CLIENTS = (*RUNNING - {"minio", "mail", "dashboard", "upstream"}, *ONE_SHOTS - {"secrets", "deploy"}, "restore")

Boot = Callable[..., AbstractContextManager[Stack]]


@dataclass
class Servers:
    """The servers outside."""

    stack: Stack
    bridge: str
    authority: Authority
    administrator: str
    """The password of Postgres's administrator."""
    store: Minio
    """A client of the object store's owner."""
    keys: dict[str, str]
    """The secret keys of the two accounts of the object store."""

    def postgres(self, sql: str, database: str = "postgres") -> str:
        """Run SQL as the owner of the server."""
        command = f"docker compose exec -T --user postgres database psql -qAt -v ON_ERROR_STOP=1 {database}"
        return self.stack.shell(f"{command} <<'SQL'\n{sql}\nSQL").stdout.strip()

    def names(self, since: datetime = EVER) -> set[str]:
        """Return the names of the bucket's objects that were written since a moment."""
        entries = self.store.list_objects(bucket_name=BUCKET, recursive=True)
        return {str(entry.object_name) for entry in entries if entry.last_modified and entry.last_modified >= since}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("outside")
    home.chmod(0o755)  # for the users of the containers
    authority, password = Authority("an authority of the tests"), secrets.token_urlsafe()
    authority.issue(home, ["db.test", "s3.test", "*.s3.test"])
    for name, text in (("servers.yml", SERVERS), ("pg_hba.conf", HBA), ("Caddyfile", CADDYFILE)):
        (home / name).write_text(text)
    ports = {f"OUTSIDE_{name}_PORT": str(free_port()) for name in ("POSTGRES", "S3", "ADMIN")}
    stack = Stack(home, COMPOSE_FILE="servers.yml", OUTSIDE_PASSWORD=password, **ports)
    find = "docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}'"
    bridge = stack.environment["BRIDGE"] = stack.shell(find).stdout.strip()
    with boot(stack):
        root = f"{bridge}:{ports['OUTSIDE_ADMIN_PORT']}"
        store = Minio(endpoint=root, access_key="outside", secret_key=password, secure=False)
        accounts = MinioAdmin(endpoint=root, credentials=StaticProvider("outside", password), secure=False)
        wait_until(lambda: is_there(store), 60, "the second object store", every=0.5)
        store.put_object(bucket_name=BUCKET, object_name=FOREIGN, data=io.BytesIO(b"theirs"), length=6)
        keys = {}
        for user, folder in (("platform", PREFIX), ("results", f"{PREFIX}/prefect-results")):
            keys[user] = secrets.token_urlsafe()
            accounts.user_add(user, keys[user])
            accounts.policy_add(user, policy=folder_policy(folder))
            accounts.policy_set(user, user=user)
        servers = Servers(stack, bridge, authority, secrets.token_urlsafe(8), store, keys)
        servers.postgres(ADMINISTRATOR.format(password=servers.administrator))
        yield servers


def is_there(store: Minio) -> bool:
    """Make the bucket, once the store answers."""
    try:
        store.make_bucket(bucket_name=BUCKET)
    except (urllib3.exceptions.HTTPError, ValueError):
        return False
    return True


def folder_policy(folder: str) -> dict[str, object]:
    """Return the policy that docs/scaling.md gives."""
    text = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    policy: dict[str, object] = json.loads(
        text.partition("```json\n")[2].partition("```")[0].replace("BUCKET", BUCKET).replace("FOLDER", folder)
    )
    return policy


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[Stack]:
    """An installation with the settings of the servers outside, which has never been started."""
    home = tmp_path_factory.mktemp("external")
    copy_checkout(home)
    (home / "authority.pem").write_bytes(servers.authority.pem)
    # In place of records in the DNS.
    hosts = [f"{name}:{servers.bridge}" for name in ("db.test", "s3.test", f"{BUCKET}.s3.test")]
    (home / "hosts.yml").write_text(json.dumps({"services": {name: {"extra_hosts": hosts} for name in CLIENTS}}))
    outside = servers.stack.environment
    stack = Stack(
        home,
        COMPOSE_FILE="docker-compose.yml:infra/testing/compose.yml:infra/compose/external-postgres.yml"
        ":infra/compose/external-s3.yml:hosts.yml",
        POSTGRES_HOST="db.test",
        POSTGRES_PORT=outside["OUTSIDE_POSTGRES_PORT"],
        POSTGRES_USER="administrator",
        POSTGRES_PASSWORD=servers.administrator,
        POSTGRES_CA="./authority.pem",
        S3_ENDPOINT=f"https://s3.test:{outside['OUTSIDE_S3_PORT']}",
        S3_REGION="eu-test-1",
        S3_BUCKET=BUCKET,
        S3_PREFIX=PREFIX,
        S3_PATH_STYLE="false",
        S3_ACCESS_KEY="platform",
        S3_SECRET_KEY=servers.keys["platform"],
        S3_RESULTS_ACCESS_KEY="results",
        S3_RESULTS_SECRET_KEY=servers.keys["results"],
        S3_CA="./authority.pem",
    )
    try:
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def moved(unmoved: Stack, backup: Backup, boot: Boot) -> Iterator[Stack]:
    """The installation of the backup, in which everything lay in the stack's own servers."""
    shutil.copy(backup.source.home / "flows/diary.py", unmoved.home / "flows")  # a flow that the backup's source has
    with boot(unmoved, backup.restore) as stack:
        yield stack


def test_a_server_that_is_not_verified_is_refused(unmoved: Stack) -> None:
    public = "POSTGRES_CA= docker compose"
    unmoved.shell(f"{public} run --rm --no-deps secrets")
    refused = unmoved.shell(f"{public} run --rm --no-deps -e MAX_WAIT_SECONDS=2 databases", check=False)

    assert refused.returncode != 0
    assert "certificate verify failed" in refused.stderr


def test_a_missing_setting_starts_nothing(unmoved: Stack) -> None:
    refused = unmoved.shell("S3_RESULTS_SECRET_KEY= docker compose run --rm --no-deps secrets", check=False)

    assert refused.returncode != 0
    assert "S3_ENDPOINT is set, and S3_RESULTS_SECRET_KEY is not" in refused.stderr


def test_the_installation_is_what_it_was(backup: Backup, moved: Stack) -> None:
    after = read_installation(moved)
    found = hashes(moved)

    assert_survived(backup.before, after)
    assert {name: found.get(name) for name in backup.objects} == backup.objects
    assert moved.provisioner(READ_BLOCK).splitlines()[-1] == "open sesame"
    assert colleagues_status(moved) == 200


def test_it_has_no_server_and_no_data_of_its_own(moved: Stack) -> None:
    containers = moved.containers()

    assert "minio" not in containers
    assert "PG_VERSION" not in moved.shell("docker compose exec -T postgres ls /var/lib/postgresql/data").stdout
    assert not moved.shell(f"docker volume ls --quiet --filter name={moved.project}_minio").stdout


def test_the_champion_answers_a_run_completes_and_artifacts_pass(
    backup: Backup, moved: Stack, servers: Servers
) -> None:
    answer = wait_until(lambda: predict(moved), 60, "the champion to be served", every=1)
    assert answer["predictions"] == backup.prediction["predictions"]

    start = datetime.now(UTC).replace(microsecond=0)
    output = moved.shell(
        """make run DEPLOYMENT=weather-pipeline PARAMETERS='{"families": ["logistic-regression"], "refresh": true}'"""
    ).stdout
    assert "Completed" in output.splitlines()[-1]
    assert moved.python("worker", ARTIFACT).stdout.splitlines()[-1] == "20000000"
    folders = {name.removeprefix(f"{PREFIX}/").partition("/")[0] for name in servers.names(start)}
    assert folders == {"mlflow", "prefect-results"}


def test_every_connection_is_verified_tls(moved: Stack, servers: Servers) -> None:
    sql = (
        "SELECT DISTINCT usename, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE client_addr IS NOT NULL"
    )
    connections = set(servers.postgres(sql).splitlines())

    assert connections >= {"prefect|t", "mlflow|t", "serving|t"}
    assert not [line for line in connections if not line.endswith("|t")]
    for service in ("prefect", "mlflow", "serving", "backup"):
        assert moved.exec(service, "printenv", "PGSSLMODE").stdout.strip() == "verify-full"
    verify = (
        "from prefect_aws import S3Bucket; parameters = S3Bucket.load('results').credentials.aws_client_parameters;"
        "print(parameters.get_params_override()['verify'])"
    )
    assert moved.python("worker", verify).stdout.splitlines()[-1] == "/run/secrets/s3-authority.pem"


def test_what_is_somebody_elses_stays(moved: Stack, servers: Servers) -> None:
    moved.shell("make run DEPLOYMENT=reconcile")
    theirs = servers.store.get_object(bucket_name=BUCKET, object_name=FOREIGN).data

    assert theirs == b"theirs"
    assert not [name for name in servers.names() if not name.startswith((f"{PREFIX}/", FOREIGN))]


def test_flows_cannot_write_where_models_are(moved: Stack) -> None:
    put = (
        "from prefect_aws import S3Bucket; block = S3Bucket.load('results');"
        "block.credentials.get_s3_client().put_object(Bucket=block.bucket_name, Key='team/trainyard/mlflow/mine', Body=b'mine')"
    )

    assert "AccessDenied" in moved.python("worker", put, check=False).stderr


def test_an_account_that_may_too_little_or_too_much_is_named(moved: Stack) -> None:
    program = (
        "from infra.provision.settings import Settings; from infra.provision.storage import ObjectStoreError, try_storage\n"
        "for given in ({'minio': 'results'}, {'results': 'minio'}):\n"
        "    settings = Settings()\n"
        "    for account, other in given.items():\n"
        "        for part in ('user', 'password'):\n"
        "            setattr(settings, f'{account}_{part}', getattr(settings, f'{other}_{part}'))\n"
        "    try: try_storage(settings, settings.store)\n"
        "    except ObjectStoreError as error: print(error)\n"
    )
    output = moved.provisioner(program)

    assert "S3_ACCESS_KEY cannot write, list, read and delete in s3://shared/team/trainyard/mlflow/" in output
    assert "S3_RESULTS_ACCESS_KEY may write to s3://shared/team/trainyard/mlflow/ too" in output


def test_the_commands_know_the_servers(moved: Stack) -> None:
    storage = moved.shell("make storage").stdout
    backed_up = moved.shell("make backup").stdout
    found = moved.shell("make doctor", check=False)

    assert "prefect: runs, tasks and their states" in storage
    assert "mlflow: models" in storage
    assert "Backed up" in backed_up
    assert found.stdout.splitlines() == ["Nothing is wrong."]


def test_an_upgrade_can_keep_a_database_and_give_it_back(moved: Stack, servers: Servers) -> None:
    command = "infra/upgrading/databases"
    servers.postgres("CREATE TABLE kept ()", "mlflow_accounts")
    moved.shell(f"{command} check mlflow_accounts && {command} keep mlflow_accounts")
    servers.postgres("DROP TABLE kept", "mlflow_accounts")
    moved.shell(f"{command} give-back mlflow_accounts")

    assert servers.postgres("SELECT to_regclass('kept')", "mlflow_accounts") == "kept"
    assert moved.shell(f"{command} check mlflow_accounts", check=False).returncode == 0
    servers.postgres("DROP TABLE kept", "mlflow_accounts")


@pytest.mark.slow
def test_a_password_of_a_database_is_rotated(moved: Stack) -> None:
    moved.shell('make rotate NAME="PREFECT_DATABASE_PASSWORD BACKUP_DATABASE_PASSWORD"')

    assert moved.flow_runs("weather-pipeline")
    assert "Backed up" in moved.shell("make backup").stdout


def test_another_installation_does_not_take_the_databases(moved: Stack) -> None:
    refused = moved.shell("docker compose run --rm --no-deps -e INSTALLATION=another databases", check=False)

    assert refused.returncode != 0
    assert "roles of the same names that are not of the installation another: backup, metrics, mlflow" in refused.stderr
