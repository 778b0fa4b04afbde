"""Backups: their format, what is refused before anything is touched, and where they are kept."""

import io
import json
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from infra.backup.archive import END, MANIFEST, Member, Writer, read_members, reported_damage
from infra.backup.errors import BackupError
from infra.backup.objects import map_ahead
from infra.backup.repository import parse_time
from infra.backup.settings import Settings, restic_address
from infra.backup.versions import own_versions, refuse_newer

OWN = {"trainyard": "0.2.0", "prefect": "3.9.1", "mlflow": "3.17.2", "postgres": "17.6"}
VARIABLES = {
    "BACKUP_PROJECT": "trainyard",
    "BACKUP_PASSWORD": "a password of the repository",
    "BACKUP_EVERY_HOURS": "24",
    "BACKUP_KEEP_DAILY": "7",
    "BACKUP_KEEP_WEEKLY": "4",
    "BACKUP_KEEP_MONTHLY": "6",
    "POSTGRES_USER": "backup",
    "POSTGRES_PASSWORD": "a password of Postgres",
    "MINIO_USER": "backup",
    "MINIO_PASSWORD": "a key of the object store",
}


def archive(add: Callable[[Writer], object], *, end: bool = True) -> bytes:
    """Return a backup's stream."""
    output = io.BytesIO()
    writer = Writer(output)
    add(writer)
    if end:
        writer.end()
    else:
        writer._tar.close()
    return output.getvalue()


def read(stream: bytes) -> list[tuple[str, bytes]]:
    with reported_damage():
        return [(member.name, member.read()) for member in read_members(io.BytesIO(stream))]


def add_two(writer: Writer) -> None:
    writer.add(MANIFEST, b"{}")
    writer.add("objects/mlflow/a", b"x" * 100_000)


class TestArchive:
    def test_members_are_read_as_they_were_written(self) -> None:
        name = "objects/mlflow/" + "ä/" * 120 + "model card.html"
        headers = {"TRAINYARD.etag": "0123", "TRAINYARD.content-type": "text/html"}

        def add(writer: Writer) -> None:
            writer.add_stream(name, io.BytesIO(b"<p>"), 3, modified=1_700_000_000, headers=headers)

        (member,) = read_members(io.BytesIO(archive(add)))

        assert (member.name, member.size, member.section) == (name, 3, "objects")
        assert headers.items() <= member.headers.items()

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
    def test_a_shortened_stream_is_damaged(self, share: float) -> None:
        stream = archive(add_two)

        with pytest.raises(BackupError, match="damaged"):
            read(stream[: int(len(stream) * share)])

    def test_a_stream_without_its_end_is_damaged(self) -> None:
        with pytest.raises(BackupError, match="ends early"):
            read(archive(add_two, end=False))

    def test_a_stream_that_lacks_members_is_damaged(self) -> None:
        def add(writer: Writer) -> None:
            writer.add(MANIFEST, b"{}")
            writer.add(END, json.dumps({"members": 2}).encode())

        with pytest.raises(BackupError, match="members are missing"):
            read(archive(add))

    def test_a_link_is_no_member(self) -> None:
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w") as tar:
            link = tarfile.TarInfo("objects/mlflow/a")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)

        with pytest.raises(BackupError, match="damaged"):
            read(output.getvalue())

    def test_an_object_that_ends_before_its_size_fails_the_backup(self) -> None:
        def add(writer: Writer) -> None:
            writer.add_stream("objects/mlflow/a", io.BytesIO(b"short"), 10)

        with pytest.raises(OSError, match="unexpected end of data"):
            archive(add)

    def test_databases_are_sections_of_their_own(self) -> None:
        names = ["databases/prefect/00000000", "databases/prefect/00000001", "secrets.json"]
        sections = [Member(name, 0, {}, io.BytesIO()).section for name in names]

        assert sections == ["databases/prefect", "databases/prefect", "secrets.json"]


class TestVersions:
    def test_the_same_and_older_versions_are_restored(self) -> None:
        refuse_newer({"format": 1, "versions": OWN}, OWN)
        refuse_newer({"format": 1, "versions": {**OWN, "prefect": "3.8.20", "mlflow": "2.99.0"}}, OWN)

    def test_a_newer_minor_version_of_postgres_is_no_newer_format_of_dumps(self) -> None:
        refuse_newer({"format": 1, "versions": {**OWN, "postgres": "17.10"}}, OWN)

    @pytest.mark.parametrize(
        ("name", "version"),
        [("trainyard", "0.10.0"), ("prefect", "3.10.0"), ("mlflow", "4.0.0"), ("postgres", "18.0")],
    )
    def test_a_newer_version_is_refused_by_its_name(self, name: str, version: str) -> None:
        with pytest.raises(BackupError, match=f"of {name} {version}"):
            refuse_newer({"format": 1, "versions": {**OWN, name: version}}, OWN)

    def test_a_newer_format_is_refused_before_its_versions_are_looked_at(self) -> None:
        with pytest.raises(BackupError, match="format 2"):
            refuse_newer({"format": 2}, OWN)

    def test_the_checkouts_versions_are_those_of_its_locks(self) -> None:
        versions = own_versions()

        assert versions.keys() == {"trainyard", "prefect", "mlflow"}
        assert all(version[0].isdigit() for version in versions.values())


class TestSettings:
    def test_the_repository_is_the_folder_by_default(self) -> None:
        assert Settings.read(VARIABLES).repository == "/backups"

    def test_s3_is_addressed_by_endpoint_bucket_and_path(self) -> None:
        assert restic_address("s3://backups/ml/", "http://minio:9000/") == "s3:http://minio:9000/backups/ml"
        assert restic_address("s3://backups", "") == "s3:https://s3.amazonaws.com/backups"

    @pytest.mark.parametrize("address", ["s3://", "s3:bucket", "https://s3.example.com/bucket", "/backups"])
    def test_another_form_of_address_is_refused(self, address: str) -> None:
        with pytest.raises(ValueError, match="s3://bucket/path"):
            restic_address(address, "")

    @pytest.mark.parametrize("value", ["", "-1", "1.5", "a week", "٣", "10001"])
    def test_a_number_that_means_nothing_is_refused_by_its_name(self, value: str) -> None:
        with pytest.raises(ValueError, match="BACKUP_KEEP_DAILY"):
            Settings.read({**VARIABLES, "BACKUP_KEEP_DAILY": value})

    def test_point_in_time_recovery_is_off_unless_it_is_true(self) -> None:
        assert not Settings.read(VARIABLES).is_point_in_time
        assert not Settings.read({**VARIABLES, "BACKUP_POINT_IN_TIME": "false"}).is_point_in_time
        assert Settings.read({**VARIABLES, "BACKUP_POINT_IN_TIME": "true"}).is_point_in_time

    def test_another_word_than_true_and_false_is_refused(self) -> None:
        with pytest.raises(ValueError, match="BACKUP_POINT_IN_TIME is 'on' and must be true or false"):
            Settings.read({**VARIABLES, "BACKUP_POINT_IN_TIME": "on"})

    def test_passwords_are_not_shown(self) -> None:
        shown = repr(Settings.read(VARIABLES))

        assert not any(VARIABLES[name] in shown for name in VARIABLES if name.endswith("PASSWORD"))


def test_results_come_in_the_order_of_the_items_and_few_are_ahead() -> None:
    asked: list[int] = []

    def items() -> object:
        for number in range(100):
            asked.append(number)
            yield number

    results = map_ahead(lambda number: number * 2, items())  # type: ignore[arg-type]

    assert next(results) == 0
    assert len(asked) < 20
    assert list(results) == list(range(2, 200, 2))


def test_restics_times_are_read() -> None:
    assert parse_time("2026-11-26T22:30:01.123456789+01:00") == datetime(2026, 11, 26, 21, 30, 1, tzinfo=UTC)
    assert parse_time("2026-11-26T22:30:01Z") == datetime(2026, 11, 26, 22, 30, 1, tzinfo=UTC)
