"""Store WAL and new objects all the time, and a base with each backup, where BACKUP_POINT_IN_TIME is true."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from minio.error import MinioException
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.backup.archive import FORMAT
from infra.backup.databases import Postgres
from infra.backup.errors import BackupError
from infra.backup.objects import write_objects
from infra.backup.point_in_time import BASE, BASE_FILE, FOLDER, PIECE, Archive, oldest_kept
from infra.backup.receiver import (
    MAX_LOCAL_BYTES,
    MAX_SERIES_BYTES,
    ROLE,
    STORE_SECONDS,
    Receiver,
    exclusive,
    home,
    position,
)
from infra.backup.repository import Repository, Snapshot
from infra.backup.settings import ARCHIVED, VAULT, Settings
from infra.backup.versions import own_versions

BASE_COMMAND = [sys.executable, "-m", "infra.backup", "base"]
ROUNDS_BETWEEN_REMOVALS = 20
PAUSE_SECONDS = 2.0


def replication(settings: Settings) -> Postgres:
    """Return the installation's server as the role that may replicate."""
    return Postgres(ROLE, settings.secrets["replication"], settings.postgres_host, settings.postgres_port)


def newest_backup(repository: Repository, project: str) -> Snapshot | None:
    """Return the newest backup of an installation."""
    own = (
        [snapshot for snapshot in repository.snapshots() if snapshot.project == project] if repository.exists() else []
    )
    return own[-1] if own else None


def changed(folder: Path) -> Path:
    """Return the file whose time is that of the newest base."""
    return folder / "base"


def write_base(settings: Settings) -> None:
    """Become a program that writes a base to standard output."""
    options = ["--pgdata=-", "--format=tar", "--wal-method=none", "--checkpoint=fast", "--no-manifest", "--no-password"]
    os.execvpe("pg_basebackup", ["pg_basebackup", *options], replication(settings).environment)  # noqa: S606 - no shell


def make_base(settings: Settings, repository: Repository) -> None:
    """Make a base of the newest backup, and remove what nobody restores any more; under the lock `exclusive`.

    Raises:
        BackupError: Postgres refused it, or the repository cannot be written.
    """
    backup = newest_backup(repository, settings.project)
    if backup is None:
        return
    start = time.monotonic()
    moments = repository.inside(FOLDER)
    moments.ensure()
    sql = "SELECT system_identifier, pg_current_wal_insert_lsn() FROM pg_control_system()"
    system, lsn = replication(settings).query("postgres", sql).split("|")
    tags = [
        BASE,
        f"system={system}",
        f"start={position(lsn):X}",
        f"backup={backup.id}",
        f"backup-time={backup.time.timestamp():.6f}",
    ]
    moments.keep_output(settings.project, BASE_COMMAND, BASE_FILE, tags)
    changed(home()).touch()
    archive = Archive.read(moments, settings.project)
    backups = [snapshot.id for snapshot in repository.snapshots()]
    moments.remove(archive.unneeded(backups, oldest_kept(datetime.now(UTC), settings.keep["daily"])), prune=True)
    print(f"Made a base for point-in-time recovery in {time.monotonic() - start:.0f} s.", flush=True)


class Archiver:
    """Stores what a receiver receives."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self._settings, self._repository = settings, repository
        self._receiver = Receiver(replication(settings), home())
        self._moments = repository.inside(FOLDER, cache=home() / "cache")
        self._objects = settings.connect_objects()
        self._write: Callable[..., None] = partial(write_objects, self._objects)
        self._backup: Snapshot | None = None
        self._base_time = 0.0
        self._former: list[str] = []
        self._is_base_new = True
        self._versions = b""
        self._stop = 0

    def run(self) -> None:
        """Store WAL every STORE_SECONDS until the process is stopped; what goes wrong is said, and tried again."""
        ARCHIVED.touch()
        self._receiver.begin()
        while True:
            start = time.monotonic()
            try:
                is_stored = self.store()
            except (BackupError, MinioException, StorageUnreachable, subprocess.SubprocessError, OSError) as error:
                is_stored = False
                print(f"WAL was not stored: {error}", file=sys.stderr, flush=True)
            pause = STORE_SECONDS if is_stored else PAUSE_SECONDS
            time.sleep(max(PAUSE_SECONDS, pause - (time.monotonic() - start)))

    def store(self) -> bool:
        """Store what has come; return whether there is a backup to which it belongs.

        Raises:
            BackupError: WAL does not arrive, or the repository cannot be written.
        """
        self._receiver.run()
        if not self._find_backup() or self._backup is None:
            return False
        if self._receiver.size() > MAX_LOCAL_BYTES:
            self._receiver.forget()
            self._is_base_new = True
            raise BackupError("the repository could not be written for long, so that a new base is needed.")
        found = self._receiver.cut()
        self._is_base_new |= found.start > self._stop  # what was received before was lost
        self._stop = found.stop
        self._receiver.add_fact("vault", VAULT.read_bytes(), found.until)
        self._receiver.add_fact("versions", self._read_versions(), found.until)
        # After the WAL was cut, so that every object that a row of it names is listed.
        self._receiver.add_objects(self._objects.list_all(), self._backup.time, found.until, self._write)
        summary = self._moments.keep_folder(self._settings.project, self._receiver.stored, [PIECE, *found.tags])
        ARCHIVED.touch()
        self._tidy(found.system, summary["snapshot_id"])
        return True

    def _read_versions(self) -> bytes:
        if not self._versions:
            versions = {**own_versions(), "postgres": replication(self._settings).version()}
            self._versions = json.dumps({"format": FORMAT, "versions": versions}).encode()
        return self._versions

    def _find_backup(self) -> bool:
        file = changed(home())
        base_time = file.stat().st_mtime if file.exists() else 0.0
        if self._backup is None or base_time != self._base_time:
            if self._backup is None:
                self._moments.ensure()
            self._backup, self._base_time = newest_backup(self._repository, self._settings.project), base_time
            self._is_base_new = True
        return self._backup is not None

    def _tidy(self, system: str, stored: str) -> None:
        """End a series that is large or older than the newest base, and remove what a longer piece replaces."""
        is_base_new, self._is_base_new = self._is_base_new, False
        if is_base_new:
            self._ensure_base(system)
        if is_base_new or self._receiver.stored_size() > MAX_SERIES_BYTES:
            self._receiver.begin()
            self._former = []
            return
        self._former.append(stored)
        if len(self._former) > ROUNDS_BETWEEN_REMOVALS:
            with suppress(BackupError):  # others use the repository
                self._moments.remove(self._former[:-1], prune=False)
                self._former = self._former[-1:]

    def _ensure_base(self, system: str) -> None:
        """Make a base where the newest one cannot be brought to the present."""
        with exclusive(home(), wait=False) as is_had:
            if not is_had:  # who has it makes one
                return
            archive = Archive.read(self._moments, self._settings.project)
            own = [base for base in archive.bases if base.system == system]
            if own and not archive.range_of(own[-1]).is_broken:
                return
            make_base(self._settings, self._repository)


def receive(settings: Settings, repository: Repository) -> None:
    """Receive and store WAL until the process is stopped."""
    Archiver(settings, repository).run()
