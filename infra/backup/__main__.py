"""Back up an installation, or restore it.

now              back up, remove what is not to be kept, and check the repository
due              print the seconds until the next backup
metrics          answer scrapes of Prometheus
receive          store WAL all the time, where BACKUP_POINT_IN_TIME is true
base             write a copy of the databases' files to standard output, for restic
list             the backups of the repository
status           as JSON, the newest backup's age and whether it can be read, for `make doctor`
stream           write a backup to standard output, for restic
check [ID]       say what a backup holds, and read all of it; touches nothing
restore [ID]     load a backup into databases and buckets, and print its secrets as JSON for the vault

With --at a moment, or without an ID where a moment after the newest backup can be restored, `check` and `restore` bring the
databases to that moment first, in a Postgres of their own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from minio.error import MinioException
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.backup import archiving
from infra.backup.archive import FORMAT, MANIFEST, SECRETS, Writer, read_members
from infra.backup.databases import DATABASES
from infra.backup.errors import BackupError
from infra.backup.objects import write_objects
from infra.backup.point_in_time import FOLDER, Archive, parse_moment, show
from infra.backup.receiver import exclusive, home
from infra.backup.repository import Repository
from infra.backup.restoring import Wanted, check, megabytes, read_manifest, restore
from infra.backup.settings import NEWEST, RECEIVING, VAULT, Settings
from infra.backup.versions import own_versions

MAX_READ_SECONDS = 20.0
STREAM = [sys.executable, "-m", "infra.backup", "stream"]


def back_up(settings: Settings, repository: Repository, _: Wanted) -> None:
    """Make a backup, with a base for point-in-time recovery where that is on, and keep the repository in order."""
    with exclusive(home()) if settings.is_point_in_time else nullcontext():
        make_backup(settings, repository)
        if settings.is_point_in_time:
            archiving.make_base(settings, repository)


def make_backup(settings: Settings, repository: Repository) -> None:
    """Make a backup, and keep the repository in order."""
    start = time.monotonic()
    repository.ensure()
    summary = repository.back_up(settings.project, STREAM)
    took = time.monotonic() - start
    print(
        f"Backed up {megabytes(summary['total_bytes_processed'])} in {took:.0f} s as {summary['snapshot_id'][:8]}; "
        f"{megabytes(summary['data_added_packed'])} of it were new.",
        flush=True,
    )
    repository.forget(settings.keep)
    repository.check(datetime.now(UTC).day)


def print_due(settings: Settings, repository: Repository, _: Wanted) -> None:
    """Print the seconds until the next backup of the schedule."""
    repository.ensure()
    if settings.is_point_in_time:
        repository.inside(FOLDER).ensure()
    own = [snapshot for snapshot in repository.snapshots() if snapshot.project == settings.project]
    if own and NEWEST.exists():
        os.utime(NEWEST, times=(own[-1].time.timestamp(),) * 2)
    age = (datetime.now(UTC) - own[-1].time).total_seconds() if own else settings.every_hours * 3600
    print(max(0, int(settings.every_hours * 3600 - age)))


def serve_metrics(settings: Settings, _: Repository, __: Wanted) -> None:
    """Answer scrapes of Prometheus until the process is stopped."""
    from infra.backup import metrics

    metrics.serve(settings)


def print_list(_: Settings, repository: Repository, __: Wanted) -> None:
    """Print the backups, the oldest first, and the moments that can be restored."""
    snapshots = repository.snapshots()
    for snapshot in snapshots:
        print(f"{snapshot.id}  {snapshot.time:%Y-%m-%d %H:%M} UTC  {snapshot.project}")
    moments = repository.inside(FOLDER)
    for project in sorted({snapshot.project for snapshot in snapshots}) if moments.exists() else ():
        for first, last in Archive.read(moments, project).ranges():
            print(f"Any moment from {show(first)} to {show(last)}  {project}")


def print_status(settings: Settings, repository: Repository, _: Wanted) -> None:
    """Print when the newest backup of this installation was made, and what is wrong with it.

    All of it is read that can be in MAX_READ_SECONDS: the repository's checks read the rest in the course of a month.
    """
    snapshots = repository.snapshots() if repository.exists() else []
    own = [snapshot for snapshot in snapshots if snapshot.project == settings.project]
    problem = ""
    try:
        deadline = time.monotonic() + MAX_READ_SECONDS
        if own:
            with repository.read(own[-1]) as source:
                members = read_members(source)
                read_manifest(members)
                for _member in takewhile(lambda _: time.monotonic() < deadline, members):
                    pass
    except BackupError as error:
        problem = str(error)
    status = {
        "every_hours": settings.every_hours,
        "started": NEWEST.stat().st_mtime,
        "newest": own[-1].time.isoformat() if own else None,
        "problem": problem,
        "wal": wal_status(settings, repository),
    }
    print(json.dumps(status))


def wal_status(settings: Settings, repository: Repository) -> dict[str, Any] | None:
    """Return up to which moment this installation can be restored, and since when WAL is received; None where it is not."""
    if not settings.is_point_in_time:
        return None
    ranges = Archive.read(repository.inside(FOLDER), settings.project).ranges()
    return {"until": ranges[-1][1].isoformat() if ranges else None, "started": RECEIVING.stat().st_mtime}


def stream(settings: Settings, _: Repository, __: Wanted) -> None:
    """Write a backup to standard output: databases before objects, so that every object that a row names is there."""
    postgres, objects = settings.connect_databases(), settings.connect_objects()
    archive = Writer(sys.stdout.buffer)
    manifest = {
        "format": FORMAT,
        "project": settings.project,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {**own_versions(), "postgres": postgres.version()},
        "revisions": postgres.revisions(),
    }
    archive.add(MANIFEST, json.dumps(manifest).encode())
    for database in DATABASES:
        for number, part in enumerate(postgres.dump(database)):
            archive.add(f"databases/{database}/{number:08}", part)
    write_objects(objects, archive, objects.list_all())
    archive.add(SECRETS, VAULT.read_bytes())
    archive.end()


COMMANDS: dict[str, Callable[[Settings, Repository, Wanted], None]] = {
    "now": back_up,
    "due": print_due,
    "metrics": serve_metrics,
    "receive": lambda settings, repository, _: archiving.receive(settings, repository),
    "base": lambda settings, _, __: archiving.write_base(settings),
    "list": print_list,
    "status": print_status,
    "stream": stream,
    "check": check,
    "restore": restore,
}


def main() -> None:
    """Run a command; what goes wrong is one sentence."""
    parser = argparse.ArgumentParser(prog="infra.backup", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("backup", nargs="?", default="latest")
    parser.add_argument("--at", default="", help="a moment such as '2026-11-27 06:00:00+00:00'")
    arguments = parser.parse_args()
    try:
        settings, wanted = Settings.read(), Wanted(arguments.backup, parse_moment(arguments.at))
        repository = Repository(settings.repository, settings.environment, settings.former_password)
        COMMANDS[arguments.command](settings, repository, wanted)
    except (BackupError, ValueError) as error:
        sys.exit(f"{'Restore' if arguments.command in ('check', 'restore') else 'Backup'} refused or failed: {error}")
    except (MinioException, StorageUnreachable, subprocess.SubprocessError, OSError) as error:
        sys.exit(f"Backup or restore failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
