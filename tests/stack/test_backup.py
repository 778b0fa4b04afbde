"""A backup while a run goes on, and a restore into a new installation: the same data, byte for byte."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from infra.testing.stack import Stack, copy_checkout
from infra.testing.waiting import wait_until
from tests.support.backups import LARGE_OBJECT, READ_BLOCK, Backup, colleagues_status, hashes, pages
from tests.support.installation import MODEL, assert_survived, predict, read_installation
from trainyard.contract import Record, ServingPath

WRITE_NOTE = """
import mlflow
mlflow.set_experiment("notes")
with mlflow.start_run(run_name={name!r}):
    mlflow.log_text({name!r}, "note.txt")
"""
READ_NOTES = """
import mlflow
runs = mlflow.search_runs(experiment_names=["notes"], output_format="list")
print({run.info.run_name: mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt") for run in runs})
"""
DELETE_MODEL = "import mlflow; mlflow.MlflowClient().delete_registered_model({name!r})"


def notes(stack: Stack) -> dict[str, str]:
    """Return the notes in MLflow, each an artifact of a run of its name."""
    found: dict[str, str] = ast.literal_eval(stack.python("worker", READ_NOTES).stdout.splitlines()[-1])
    return found


def predict_until(client: httpx.Client, end: float) -> dict[str, datetime]:
    """Ask for a prediction every two seconds until a moment of `time.monotonic`; return when each id was answered."""
    example = client.get(ServingPath.MODELS).raise_for_status().json()["models"][MODEL]["example"]
    answered = {}
    while time.monotonic() < end:
        answer = client.post(ServingPath.of_model(MODEL, "predict"), json=example).raise_for_status().json()
        answered[answer["id"]] = datetime.now(UTC)
        time.sleep(2)
    return answered


def recorded_ids(client: httpx.Client) -> set[str]:
    """Return the ids of the recorded predictions."""
    answer = client.get(ServingPath.of_model(MODEL, "predictions"), params={"limit": 1000}).raise_for_status()
    return {record[Record.PREDICTION_ID] for record in answer.json()["predictions"]}


def last_moment(stack: Stack) -> datetime | None:
    """Return the last moment that `make backups` names, or None."""
    found = re.findall(
        r"^Any moment from .* to (\S+ \S+) ", stack.shell("make backups", check=False).stdout, re.MULTILINE
    )
    return datetime.fromisoformat(found[-1]) if found else None


def passwords(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not value.startswith("http")}


def backup_container(stack: Stack, folder: Path, command: str, *options: str) -> None:
    """Run a command in a container of `backup` with a repository in a folder."""
    owner = f"{os.getuid()}:{os.getgid()}"
    run = f"BACKUP_FOLDER={folder} BACKUP_USER={owner} docker compose run --rm --no-deps -T"
    stack.shell(" ".join([run, *options, "backup", command]))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, backup: Backup) -> Iterator[Stack]:
    """A new installation, which has never been started."""
    home = tmp_path_factory.mktemp("checkout")
    copy_checkout(home)
    stack = Stack(home)
    try:
        yield stack
    finally:
        stack.remove()


def damage(repository: Path) -> None:
    """Change bytes in the middle of every file with data."""
    for pack in (repository / "data").rglob("*"):
        if pack.is_file():
            content = bytearray(pack.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 4] = bytes(byte ^ 0xFF for byte in content[middle : middle + 4])
            pack.chmod(0o600)
            pack.write_bytes(content)


def assert_untouched(target: Stack) -> None:
    """Assert that a refusal started nothing and wrote no data: Compose itself makes the volumes."""
    volumes = " ".join(f"--volume {target.project}_{name}:/data/{name}:ro" for name in ("postgres", "minio"))
    files = target.shell(f"docker run --rm {volumes} python:3.13-slim-trixie find /data -type f").stdout

    assert not target.shell("docker compose ps --all --quiet").stdout
    assert not files


class TestRefusals:
    def test_a_damaged_backup(self, backup: Backup, target: Stack, tmp_path: Path) -> None:
        shutil.copytree(backup.folder, tmp_path / "damaged")
        damage(tmp_path / "damaged")

        refused = backup.restore(target, tmp_path / "damaged", check=False)

        assert refused.returncode != 0
        assert "damaged" in refused.stderr
        assert_untouched(target)

    def test_a_repository_with_another_password(self, backup: Backup, target: Stack) -> None:
        refused = target.shell(f"BACKUP_PASSWORD=of-another-repository make restore FROM={backup.folder}", check=False)

        assert refused.returncode != 0
        assert "has another password" in refused.stderr
        assert_untouched(target)

    def test_a_folder_without_a_repository(self, backup: Backup, target: Stack, tmp_path: Path) -> None:
        refused = backup.restore(target, tmp_path, check=False)

        assert refused.returncode != 0
        assert "there is no repository of backups" in refused.stderr
        assert_untouched(target)

    def test_a_repository_of_something_else(self, backup: Backup, target: Stack, tmp_path: Path) -> None:
        restic = "export RESTIC_PASSWORD=$BACKUP_PASSWORD; restic -r /backups init && restic -r /backups backup /etc/hostname"
        backup_container(backup.source, tmp_path, f"bash -c '{restic}'")

        refused = backup.restore(target, tmp_path, check=False)

        assert refused.returncode != 0
        assert "holds no backup of Trainyard" in refused.stderr
        assert_untouched(target)

    def test_a_backup_of_a_newer_version(self, backup: Backup, target: Stack, tmp_path: Path) -> None:
        newer, folder = tmp_path / "pyproject.toml", tmp_path / "repository"
        newer.write_text('[project]\nversion = "99.0.0"\n')
        folder.mkdir()
        mount = f"--volume {newer}:/opt/trainyard/pyproject.toml:ro"
        backup_container(backup.source, folder, "python -m infra.backup now", mount)

        refused = backup.restore(target, folder, check=False)

        assert refused.returncode != 0
        assert "the backup is of trainyard 99.0.0" in refused.stderr
        assert_untouched(target)


@pytest.fixture(scope="module")
def restored(backup: Backup, target: Stack) -> Stack:
    """The new installation after a restore that was killed and run again."""
    command = f"BACKUP_PASSWORD={backup.password} make restore FROM={backup.folder}"
    label = f"label=com.docker.compose.project={target.project}"
    find = f"docker ps --quiet --filter {label} --filter label=com.docker.compose.service=restore"

    def is_loading() -> str | None:
        container = target.shell(find).stdout.strip()
        log = target.shell(f"docker logs {container} 2>&1", check=False).stdout if container else ""
        return container if "Loaded the rows of the database prefect" in log else None

    with subprocess.Popen(
        ["bash", "-c", command], cwd=target.home, env=target.environment, stderr=subprocess.PIPE
    ) as first:
        container = wait_until(is_loading, 120, "the first databases to be loaded", every=0.05)
        target.shell(f"docker kill {container}")
        _, errors = first.communicate()
    assert first.returncode != 0
    assert b"run it again" in errors
    target.shell("docker compose up -d --wait minio")
    target.provisioner(
        LARGE_OBJECT.format(megabytes=1, name="of-the-present").replace(
            "data = ", 'store.bucket_exists(bucket_name="mlflow") or store.make_bucket(bucket_name="mlflow"); data = '
        )
    )
    backup.restore(target)
    return target


def test_the_backup_says_what_it_did(backup: Backup) -> None:
    assert re.search(
        r"^Backed up [\d,.]+ MB in \d+ s as \w{8}; [\d,.]+ MB of it were new\.$", backup.output, re.MULTILINE
    )


def test_the_restored_installation_has_what_was_backed_up(backup: Backup, restored: Stack) -> None:
    after = read_installation(restored)

    assert_survived(backup.before, after)
    assert passwords(after["accounts"]) == passwords(backup.before["accounts"])


def test_objects_are_the_same_byte_for_byte_and_later_ones_are_gone(backup: Backup, restored: Stack) -> None:
    found = hashes(restored)

    assert {name: found.get(name) for name in backup.objects} == backup.objects
    assert "mlflow/large-object" in found
    assert "mlflow/of-the-present" not in found


def test_every_object_that_the_running_flow_had_recorded_is_there(restored: Stack) -> None:
    _, last_page = wait_until(lambda: pages(restored), 10, "the diary")
    names = hashes(restored)

    assert last_page >= 1
    assert all(any(name.endswith(f"/pages/{page}.txt") for name in names) for page in range(1, last_page + 1))


def test_secrets_in_blocks_can_be_read(restored: Stack) -> None:
    assert restored.provisioner(READ_BLOCK).splitlines()[-1] == "open sesame"


def test_accounts_of_people_sign_in(backup: Backup, restored: Stack) -> None:
    assert colleagues_status(backup.source) == 200
    assert colleagues_status(restored) == 200


def test_the_champion_answers_the_same(backup: Backup, restored: Stack) -> None:
    answer = wait_until(lambda: predict(restored), 60, "the champion to be served", every=1)

    assert answer["version"] == backup.prediction["version"]
    assert answer["predictions"] == backup.prediction["predictions"]


def test_a_run_completes_in_the_restored_installation(restored: Stack) -> None:
    output = restored.shell("make run DEPLOYMENT=weather-pipeline").stdout

    assert "Completed" in output.splitlines()[-1]


@pytest.mark.slow
def test_every_secret_is_rotated_and_nothing_is_lost(backup: Backup, restored: Stack) -> None:
    restored.shell("make backup")  # a repository under the password that is rotated
    before = read_installation(restored)
    old = before["accounts"]
    output = restored.shell("make rotate").stdout
    restored.forget_credentials()
    after = read_installation(restored)

    assert "Changed, and restarted: " in output.splitlines()[-1]
    assert {**after, "accounts": None} == {**before, "accounts": None}
    new = passwords(after["accounts"])
    assert not {value for name, value in new.items() if not name.endswith("USERNAME")} & set(old.values())
    login = tuple(old["PREFECT_API_AUTH_STRING"].split(":", 1))
    assert httpx.get(f"{old['PREFECT_API_URL']}/flows/", auth=login).status_code in (401, 403)
    assert restored.provisioner(READ_BLOCK).splitlines()[-1] == "open sesame"
    assert colleagues_status(restored) == 200
    assert "UTC" in restored.shell("make backups").stdout
    answer = wait_until(lambda: predict(restored), 60, "the champion to be served", every=1)
    assert answer["predictions"] == backup.prediction["predictions"]
    assert "Completed" in restored.shell("make run DEPLOYMENT=weather-pipeline").stdout.splitlines()[-1]


def test_the_schedule_backs_up_into_the_volume_where_few_backups_are_kept(backup: Backup) -> None:
    stack = backup.source

    def listed() -> list[str]:
        return [line for line in stack.shell("make backups", check=False).stdout.splitlines() if "UTC" in line]

    name = f"{stack.project}-schedule"
    stack.shell(f"docker compose run --rm --no-deps -d --name {name} backup schedule 1")
    try:
        logs = f"docker logs {name}"
        wait_until(lambda: "Backed up" in stack.shell(logs).stdout, 600, "a backup by schedule", every=1)
        (first,) = listed()
        stack.shell(f"docker exec {name} is-fresh")
        # Again and again: the schedule sets the time itself when the process that made the backup has ended.
        age = shlex.quote("touch -d '50 hours ago' /tmp/newest && is-fresh")
        stale = f"docker exec {name} bash -c {age}"
        wait_until(lambda: stack.shell(stale, check=False).returncode == 1, 60, "the backup to be too old", every=1)
        stack.shell(f"docker exec {name} with-secrets python -m infra.backup due")
        stack.shell(f"docker exec {name} is-fresh")  # the age is that of the newest in the repository
    finally:
        stack.shell(f"docker rm --force {name}")
    for _ in range(4):
        stack.shell("make backup")
    kept = listed()

    assert len(kept) == 4, "the last three, and the oldest, which becomes the first one of its day, week and month"
    assert kept[0] == first


def test_the_accounts_of_backups_can_change_nothing(stack: Stack) -> None:
    delete = (
        "PGPASSWORD=$POSTGRES_PASSWORD psql --host postgres --username backup prefect --command 'DELETE FROM flow_run'"
    )
    put = (
        "import io; from infra.backup.settings import Settings;"
        "objects = Settings.read().connect_objects().client;"
        "objects.put_object(bucket_name='mlflow', object_name='mine', data=io.BytesIO(), length=0)"
    )

    assert "permission denied for table flow_run" in stack.exec("backup", "bash", "-c", delete, check=False).stderr
    assert "AccessDenied" in stack.python("backup", put, check=False).stderr


def test_backups_go_to_s3(backup: Backup) -> None:
    stack = backup.source
    key = stack.shell("docker compose exec -T minio cat /run/secrets/secret_key").stdout
    account = f"BACKUP_S3_ENDPOINT=http://minio:9000 BACKUP_S3_ACCESS_KEY=trainyard BACKUP_S3_SECRET_KEY={key}"
    stack.shell(f"{account} make backup TO=s3://copies/of/this")
    listed = stack.shell(f"{account} make backups FROM=s3://copies/of/this").stdout
    check = f"{account} BACKUP_S3=s3://copies/of/this docker compose run --rm --no-deps -T restore check"

    assert stack.project in listed
    assert "all of it readable" in stack.shell(check).stdout


@pytest.mark.slow
def test_any_moment_can_be_restored_and_a_lost_host_loses_a_minute_at_most(restored: Stack, tmp_path: Path) -> None:
    restored.environment |= {
        "BACKUP_POINT_IN_TIME": "true",
        "BACKUP_FOLDER": str(tmp_path),
        "BACKUP_USER": f"{os.getuid()}:{os.getgid()}",
    }
    restored.shell("make up")
    wait_until(lambda: last_moment(restored), 180, "the first moment that can be restored", every=3)

    restored.python("worker", WRITE_NOTE.format(name="before"))
    with restored.serving() as client:
        wait_until(lambda: MODEL in client.get(ServingPath.MODELS).json()["models"], 60, "the champion", every=1)
        before = predict_until(client, time.monotonic() + 3)
        wait_until(lambda: before.keys() <= recorded_ids(client), 30, "the records", every=0.5)
        moment = datetime.now(UTC)
        after = predict_until(client, time.monotonic() + 3)
    versions = restored.model_versions()
    restored.python("worker", DELETE_MODEL.format(name=MODEL))
    restored.python("worker", WRITE_NOTE.format(name="after"))
    wait_until(lambda: (last_moment(restored) or moment) > moment + timedelta(seconds=5), 90, "WAL after it", every=3)

    output = restored.shell(f"make restore AT='{moment.isoformat(' ')}'").stdout

    assert "Its databases can be brought to" in output
    assert [version["version"] for version in restored.model_versions()] == [version["version"] for version in versions]
    assert notes(restored) == {"before": "before"}
    with restored.serving() as client:
        ids = recorded_ids(client)
    assert before.keys() <= ids
    assert not after.keys() & ids

    wait_until(
        lambda: (last_moment(restored) or moment) > datetime.now(UTC) - timedelta(seconds=40), 120, "WAL", every=3
    )
    with restored.serving() as client:
        wait_until(lambda: MODEL in client.get(ServingPath.MODELS).json()["models"], 60, "the champion", every=1)
        answered = predict_until(client, time.monotonic() + 75)
    killed = datetime.now(UTC)
    password = restored.exec("backup", "printenv", "BACKUP_PASSWORD").stdout.strip()
    restored.shell("docker compose kill && docker compose down --volumes")
    start = time.monotonic()
    output = restored.shell(f"BACKUP_PASSWORD={password} make restore").stderr
    took = time.monotonic() - start
    restored.forget_credentials()

    assert "The newest moment that can be restored is " in output
    assert notes(restored) == {"before": "before"}
    with restored.serving() as client:
        ids = recorded_ids(client)
    newest = max(when for id_, when in answered.items() if id_ in ids)
    print(f"Lost {(killed - newest).total_seconds():.0f} s of work; the restore took {took:.0f} s.")
    assert (killed - newest).total_seconds() <= 60
