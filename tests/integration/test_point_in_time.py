"""Databases are brought to a moment from a base and received WAL, by a real Postgres; what cannot be is refused in a sentence."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE
from urllib.parse import urlsplit

import pytest

from infra.backup.databases import Postgres
from infra.backup.errors import BackupError
from infra.backup.receiver import SLOT, Receiver, Round
from infra.backup.recovery import Scratch
from infra.testing.postgres import FOLDERS, find, postgres_server

SERVER_SIDE = Path(__file__).parents[2] / "infra/postgres/point-in-time.sql"
USER = "nobody" if os.geteuid() == 0 else None


@dataclass
class Installation:
    """A server whose WAL is received."""

    admin: Postgres
    receiver: Receiver
    base: bytes

    def insert(self, value: int) -> datetime:
        """Add a row, and return a moment after it."""
        self.admin.query("postgres", f"INSERT INTO numbers VALUES ({value})")
        answer = self.admin.query("postgres", "SELECT extract(epoch FROM clock_timestamp())")
        return datetime.fromtimestamp(float(answer), UTC)

    def stored(self) -> io.BytesIO:
        """Return what a round has stored, as restic gives it back."""
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w") as tar:
            tar.add(self.receiver.stored, arcname="stored")
        output.seek(0)
        return output

    def scratch(self) -> Scratch:
        """Unpack base and WAL into a folder of their own."""
        folder = Path(tempfile.mkdtemp(dir=self.receiver.folder.parent))
        scratch = Scratch(folder, user=USER)
        scratch.unpack_base(io.BytesIO(self.base))
        scratch.unpack_piece(self.stored())
        return scratch


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """A server with a table, a role that may replicate and nothing else, a receiver, and a base."""
    find("pg_receivewal")
    monkeypatch.setenv("PATH", os.pathsep.join(FOLDERS))
    with postgres_server() as url, tempfile.TemporaryDirectory(dir="/tmp") as home:
        Path(home).chmod(0o755)
        address = urlsplit(url)
        assert address.hostname
        assert address.port
        admin = Postgres("postgres", "", address.hostname, address.port)
        admin.query("postgres", "CREATE TABLE numbers (value integer);" + SERVER_SIDE.read_text())
        folder = Path(home) / "wal"
        folder.mkdir()
        receiver = Receiver(Postgres("backup_wal", "", address.hostname, address.port), folder)
        receiver.begin()
        receiver.run()
        command = ["pg_basebackup", "--pgdata=-", "--format=tar", "--wal-method=none", "--checkpoint=fast"]
        with subprocess.Popen([*command, "--no-manifest"], env=receiver.postgres.environment, stdout=PIPE) as process:
            assert process.stdout
            first = process.stdout.read(1)
            admin.query("postgres", "SELECT pg_current_xact_id()")  # a commit before the base is complete
            base = first + process.stdout.read()
        assert process.returncode == 0
        made = Installation(admin, receiver, base)
        try:
            yield made
        finally:
            made.receiver.stop()


def numbers(scratch: Scratch, moment: datetime) -> list[str]:
    """Return the rows at a moment."""
    with scratch.recovered(moment) as postgres:
        return postgres.query("postgres", "SELECT value FROM numbers ORDER BY value").split()


def test_a_moment_has_what_was_committed_by_then_and_nothing_that_came_after(installation: Installation) -> None:
    installation.insert(1)
    installation.receiver.cut()
    moment = installation.insert(2)
    installation.receiver.cut()
    installation.insert(3)
    installation.admin.query("postgres", "DELETE FROM numbers WHERE value = 1")
    found = installation.receiver.cut()

    assert numbers(installation.scratch(), moment) == ["1", "2"]
    assert numbers(installation.scratch(), datetime.fromtimestamp(found.until, UTC)) == ["2", "3"]


def test_the_last_moment_of_an_idle_server_can_be_restored(installation: Installation) -> None:
    installation.insert(1)
    installation.receiver.cut()
    found = installation.receiver.cut()

    assert numbers(installation.scratch(), datetime.fromtimestamp(found.until, UTC)) == ["1"]


def test_wal_goes_on_over_segments_series_and_a_restart_of_the_receiver(installation: Installation) -> None:
    rounds: list[Round] = []
    scratch = Scratch(Path(tempfile.mkdtemp(dir=installation.receiver.folder.parent)), user=USER)
    scratch.unpack_base(io.BytesIO(installation.base))
    for value in range(4):
        installation.insert(value)
        if value == 2:
            installation.receiver.stop()
            installation.receiver = Receiver(installation.receiver.postgres, installation.receiver.folder)
        installation.receiver.begin()
        installation.receiver.run()
        rounds.append(installation.receiver.cut())
        scratch.unpack_piece(installation.stored())
        installation.admin.query("postgres", "SELECT pg_switch_wal()")
    moment = datetime.fromtimestamp(rounds[-1].until, UTC)

    assert all(later.start <= earlier.stop < later.stop for earlier, later in pairwise(rounds))
    assert len(list(installation.receiver.received.iterdir())) <= 2
    assert numbers(scratch, moment) == ["0", "1", "2", "3"]


def test_a_damaged_segment_is_refused(installation: Installation) -> None:
    installation.insert(1)
    moment = installation.insert(2)
    installation.receiver.cut()
    scratch = installation.scratch()
    (last, *_) = sorted((scratch.folder / "wal").iterdir(), reverse=True)
    content = bytearray(last.read_bytes())
    content[0x200:] = bytes(len(content) - 0x200)
    last.write_bytes(content)

    with pytest.raises(BackupError, match=r"could not be brought to .*: its WAL is damaged, or ends before"):
        numbers(scratch, moment)


def test_a_moment_after_the_wal_is_refused(installation: Installation) -> None:
    installation.receiver.cut()
    moment = installation.insert(1)

    with pytest.raises(BackupError, match="ends before that moment"):
        numbers(installation.scratch(), moment)


def test_a_moment_before_the_base_was_complete_is_refused(installation: Installation) -> None:
    installation.insert(1)
    installation.receiver.cut()

    with pytest.raises(BackupError, match="before the base was complete"):
        numbers(installation.scratch(), datetime(2026, 1, 1, tzinfo=UTC))


def test_wal_that_postgres_has_not_kept_begins_anew_and_says_so(installation: Installation) -> None:
    installation.insert(1)
    before = installation.receiver.cut()
    installation.receiver.stop()
    shutil.rmtree(installation.receiver.received)
    installation.admin.query("postgres", f"SELECT pg_drop_replication_slot('{SLOT}')")
    installation.admin.query("postgres", "SELECT pg_switch_wal()")
    installation.insert(2)
    installation.admin.query("postgres", "CHECKPOINT")  # a new slot keeps what came after the last one
    installation.receiver.run()
    after = installation.receiver.cut()

    assert after.start > before.stop


def test_the_role_that_receives_wal_reads_no_table(installation: Installation) -> None:
    with pytest.raises(BackupError, match="permission denied"):
        installation.receiver.postgres.query("postgres", "SELECT * FROM numbers")
