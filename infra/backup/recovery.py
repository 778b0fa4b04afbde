"""Bring a base to a moment, in a Postgres of its own that nobody else reaches."""

import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from infra.backup.databases import Postgres
from infra.backup.errors import BackupError
from infra.backup.receiver import SEGMENT_BYTES

MAX_STOP_SECONDS = 60.0
REASONS = {
    "recovery ended before configured recovery target was reached": "its WAL is damaged, or ends before that moment",
    "WAL ends before end of online backup": "its WAL is damaged, or ends before the base was complete",
    "requested recovery stop point is before consistent recovery point": "that is before the base was complete",
    "No space left on device": "the disk is full",
}


@dataclass(frozen=True)
class Scratch:
    """A folder with a base and the WAL after it."""

    folder: Path
    user: str | None = None
    """Whom the server runs as; this one by default."""

    @property
    def data(self) -> Path:
        """The databases' files."""
        return self.folder / "base"

    def unpack_base(self, source: IO[bytes]) -> None:
        """Unpack a base.

        Raises:
            BackupError: It is no whole tar.
        """
        self.data.mkdir(mode=0o700, parents=True)
        (self.folder / "wal").mkdir(exist_ok=True)
        with tarfile.open(fileobj=source, mode="r|") as tar:
            tar.extractall(self.data, filter="data")  # without owners, who differ here
        (self.data / "pg_wal/archive_status").mkdir(parents=True, exist_ok=True)

    def unpack_piece(self, source: IO[bytes]) -> None:
        """Unpack WAL, objects and facts: a tar of the folder `stored`."""
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is None:
                    continue
                parent, name = Path(entry.name).parts[-2:]
                if parent in ("objects", "facts"):
                    target = self.folder / parent / name
                    target.parent.mkdir(exist_ok=True)
                    with target.open("wb") as output:
                        shutil.copyfileobj(content, output)
                else:
                    self._add_slice(parent, int(name, 16), content.read())

    def _add_slice(self, segment: str, offset: int, data: bytes) -> None:
        file = self.folder / "wal" / segment
        if not file.exists():
            with file.open("wb") as output:
                output.truncate(SEGMENT_BYTES)
        with file.open("r+b") as output:
            output.seek(offset)
            output.write(data)

    def fact(self, name: str, moment: datetime) -> bytes | None:
        """Return a fact as it was at a moment, or the first one that is known."""
        found = sorted((float(file.name.rpartition("-")[2]), file) for file in self.folder.glob(f"facts/{name}-*"))
        before = [file for seconds, file in found if seconds <= moment.timestamp()]
        chosen = before[-1:] or [file for _, file in found[:1]]
        return chosen[0].read_bytes() if chosen else None

    def objects(self) -> list[Path]:
        """Return the tars of objects, the oldest first."""
        return sorted(self.folder.glob("objects/*.tar"), key=lambda file: float(file.stem))

    @contextmanager
    def recovered(self, moment: datetime) -> Iterator[Postgres]:
        """Run a Postgres of the base, brought to a moment.

        Raises:
            BackupError: It cannot be brought there.
        """
        (self.data / "recovery.signal").touch()
        (self.folder / "hba").write_text("local all all trust\n")
        socket, log = self.folder / "socket", self.folder / "log"
        socket.mkdir()
        if self.user:
            self.folder.chmod(0o711)
            subprocess.run(["chown", "-R", self.user, str(socket), str(self.data)], check=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["postgres", "-D", str(self.data), *self._options(moment)], stdout=output, stderr=output, user=self.user
            )
        try:
            postgres = Postgres("postgres", "", host=str(socket))
            while not is_recovered(postgres):
                if process.poll() is not None:
                    raise BackupError(f"the databases could not be brought to {moment}: {reason_of(log)}.")
                time.sleep(0.2)
            yield postgres
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(MAX_STOP_SECONDS)
            process.kill()
            process.wait()

    def _options(self, moment: datetime) -> list[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder / "socket"),
            "hba_file": str(self.folder / "hba"),
            "ssl": "off",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_min_messages": "warning",
            "lc_messages": "C",
            "archive_mode": "off",
            "hot_standby": "off",
            "restore_command": f"cp '{self.folder}/wal/%f' '%p'",
            "recovery_target_action": "promote",
            "recovery_target_time": moment.astimezone(UTC).isoformat(" "),
        }
        return [word for name, value in options.items() for word in ("-c", f"{name}={value}")]


def is_recovered(postgres: Postgres) -> bool:
    """Return whether a server answers, and has ended its recovery."""
    try:
        return postgres.query("postgres", "SELECT pg_is_in_recovery()") == "f"
    except BackupError:
        return False


def reason_of(log: Path) -> str:
    """Return why a server did not start, in words, or its last complaint."""
    text = log.read_text(errors="replace")
    for phrase, reason in REASONS.items():
        if phrase in text:
            return reason
    fatal = [line for line in text.splitlines() if "FATAL" in line or "PANIC" in line]
    return (fatal or text.strip().splitlines() or ["Postgres gave no reason"])[-1]
