"""Receive WAL as Postgres writes it, and store it with new objects every STORE_SECONDS: no more than that is ever lost.

    received/SEGMENT            what pg_receivewal writes; a segment goes once it is cut
    stored/wal/SEGMENT/OFFSET   the bytes that came between two rounds
    stored/objects/SECONDS.tar  the objects that came, in the format of a backup
    stored/facts/NAME-SECONDS   the vault and the versions, whenever they change

A round keeps `stored` as one snapshot, which has all that the former ones of its series had. restic reads and sends what is new.
"""

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from infra.backup.archive import Writer
from infra.backup.databases import Postgres
from infra.backup.errors import BackupError
from infra.backup.objects import Listed, write_objects

STORE_SECONDS = 30.0
MAX_RECEIVE_SECONDS = 15.0
MAX_SERIES_BYTES = 256 << 20
"""A series is ended beyond it, so that its files need no more space here."""
MAX_LOCAL_BYTES = 4 << 30
"""Where the repository cannot be written for long: then what is here goes, and a new base is made."""
SEGMENT_BYTES = 16 << 20
SEGMENT = re.compile(r"([0-9A-F]{24})(\.partial)?")
SLOT = "trainyard_backup"
ROLE = "backup_wal"


def home() -> Path:
    """Return the folder of the volume `wal` for this user: another one (`BACKUP_USER`) could not change its files."""
    folder = Path(os.environ.get("PGDATA", "/var/lib/postgresql/data")) / f"user-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of those who make a base; yields whether it was had."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Round:
    """What `stored` holds."""

    system: str
    series: str
    start: int
    stop: int
    until: float
    """The moment, in seconds since 1970, by which every commit is in it."""

    @property
    def tags(self) -> list[str]:
        """The tags of its snapshot."""
        return [
            f"system={self.system}",
            f"series={self.series}",
            f"start={self.start:X}",
            f"stop={self.stop:X}",
            f"until={self.until:.6f}",
        ]


def position(text: str) -> int:
    """Return the number of a position in the WAL in Postgres's form, such as 0/1A2B3C4D."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def start_of(segment: str) -> int:
    """Return the position at which a segment of this name begins."""
    return (int(segment[8:16], 16) << 32) + int(segment[16:], 16) * SEGMENT_BYTES


@dataclass
class Receiver:
    """Receives WAL into a folder, and cuts it into what a round stores."""

    postgres: Postgres
    """As the role that may replicate."""
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    _start: int | None = None
    _stop: int = 0
    _series: str = ""
    _facts: dict[str, bytes] = field(default_factory=dict)
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    """The objects that are in this series or a former one: bucket, name and ETag."""

    @property
    def received(self) -> Path:
        """The folder of pg_receivewal."""
        return self.folder / "received"

    @property
    def stored(self) -> Path:
        """The folder of which a round makes a snapshot."""
        return self.folder / "stored"

    @property
    def start(self) -> int | None:
        """The position at which the series begins; None before its first WAL."""
        return self._start

    def begin(self) -> None:
        """Begin a series with the WAL that is here and in no snapshot yet."""
        shutil.rmtree(self.stored, ignore_errors=True)
        for name in ("wal", "objects", "facts"):
            (self.stored / name).mkdir(parents=True)
        self.received.mkdir(exist_ok=True)
        self._series, self._facts = f"{time.time():.6f}", {}
        self._start = self._stop or None

    def forget(self) -> None:
        """Drop all that is here, and the slot: what comes next begins anew."""
        self.stop()
        shutil.rmtree(self.received, ignore_errors=True)
        self.seen.clear()
        self._start, self._stop = None, 0
        self.begin()
        with suppress(BackupError):
            self.postgres.query("postgres", f"SELECT pg_drop_replication_slot('{SLOT}')")

    def stop(self) -> None:
        """End pg_receivewal."""
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def run(self) -> None:
        """Start pg_receivewal where it does not run; the slot keeps what it has not received.

        Raises:
            BackupError: Postgres does not answer, or refuses.
        """
        if self.process and self.process.poll() is None:
            return
        sql = f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{SLOT}'"  # noqa: S608 - a name of ours
        status = self.postgres.query("postgres", sql)
        if status in ("", "lost"):
            self.forget()
            self.postgres.query("postgres", f"SELECT pg_create_physical_replication_slot('{SLOT}', true)")
        command = ["pg_receivewal", "--no-loop", "--no-password", f"--slot={SLOT}", "--status-interval=1"]
        self.process = subprocess.Popen([*command, "--directory", str(self.received)], env=self.postgres.environment)

    def cut(self) -> Round:
        """Add the WAL that has been received to the series.

        Raises:
            BackupError: WAL does not arrive, or does not follow upon what is there.
        """
        system, moment, target = self._mark()
        stop = self._await(target)
        for file in sorted(self.received.iterdir()):
            if not (match := SEGMENT.fullmatch(file.name)):
                continue
            begin = start_of(match[1])
            if self._start is None:
                self._start = self._stop = begin
            end = min(begin + SEGMENT_BYTES, stop)
            if end > self._stop:
                if begin > self._stop:
                    self.forget()
                    raise BackupError("received WAL does not follow upon what was stored: a new base is needed.")
                self._cut_slice(file, match[1], self._stop - begin, end - begin)
                self._stop = end
            if not match[2] and end == begin + SEGMENT_BYTES:
                file.unlink()
        if self._start is None:
            raise BackupError("pg_receivewal has received nothing yet.")
        return Round(system, self._series, self._start, self._stop, moment)

    def _cut_slice(self, file: Path, segment: str, begin: int, end: int) -> None:
        folder = self.stored / "wal" / segment
        folder.mkdir(exist_ok=True)
        with file.open("rb") as source:
            source.seek(begin)
            data = source.read(end - begin)
        if len(data) != end - begin:
            raise BackupError(f"{file.name} is shorter than what pg_receivewal says that it has written.")
        (folder / f"{begin:08x}").write_bytes(data)

    def _mark(self) -> tuple[str, float, int]:
        """Return the system, the present moment, and a position before which a commit after that moment is.

        A recovery to a moment ends at the first commit after it. An empty transaction with a number is one, and needs no right.
        """
        answer = self.postgres.query(
            "postgres",
            "SELECT system_identifier, extract(epoch FROM now()), pg_current_xact_id() FROM pg_control_system();\n"
            "SELECT pg_current_wal_insert_lsn()",
        )
        first, target = answer.split("\n")
        system, moment, _ = first.split("|")
        return system, float(moment), position(target)

    def _await(self, target: int) -> int:
        """Return up to where WAL has been received, once that is at least the target."""
        deadline = time.monotonic() + MAX_RECEIVE_SECONDS
        while True:
            found = self.postgres.query("postgres", "SELECT public.received_wal()")
            if found and position(found) >= target:
                return position(found)
            if time.monotonic() > deadline:
                raise BackupError(f"WAL was not received within {MAX_RECEIVE_SECONDS:.0f} s.")
            time.sleep(0.5)

    def add_fact(self, name: str, content: bytes, moment: float) -> None:
        """Add the vault, or the versions, where they are not what they were in this series."""
        if self._facts.get(name) != content:
            (self.stored / "facts" / f"{name}-{moment:.6f}").write_bytes(content)
            self._facts[name] = content

    def add_objects(
        self, listed: list[Listed], since: datetime, moment: float, write: Callable[..., None] = write_objects
    ) -> None:
        """Add the objects that came since a backup was begun and are in no snapshot yet.

        Args:
            listed: The objects that are there.
            since: The time of the backup.
            moment: That of the round.
            write: `write_objects` with a client of the store.
        """
        young = [each for each in listed if each.modified >= int(since.timestamp())]
        new = [each for each in young if (each.bucket, each.name, each.etag) not in self.seen]
        if not new:
            return
        file = self.folder / "new.tar"
        with file.open("wb") as output:
            archive = Writer(output)
            write(archive, new)
            archive.end()
        file.rename(self.stored / "objects" / f"{moment:.6f}.tar")
        self.seen = {(each.bucket, each.name, each.etag) for each in young}

    def size(self) -> int:
        """Return the bytes that it uses."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def stored_size(self) -> int:
        """Return the bytes of the series."""
        return sum(file.stat().st_size for file in self.stored.rglob("*") if file.is_file())
