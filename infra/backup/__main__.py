"""Back up an installation, or restore it.

now              back up, remove what is not to be kept, and check the repository
due              print the seconds until the next backup
metrics          answer scrapes of Prometheus
list             the backups of the repository
status           as JSON, the newest backup's age and whether it can be read, for `make doctor`
stream           write a backup to standard output, for restic
check [ID]       say what a backup holds, and read all of it; touches nothing
restore [ID]     load a backup into databases and buckets, and print its secrets as JSON for the vault
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from minio.error import MinioException
from urllib3.exceptions import HTTPError as StorageUnreachable

from infra.backup.archive import FORMAT, MANIFEST, SECRETS, Member, Writer, read_members
from infra.backup.databases import DATABASES, Postgres
from infra.backup.errors import BackupError
from infra.backup.objects import Restoration, connect, write_objects
from infra.backup.repository import Repository, Snapshot
from infra.backup.settings import NEWEST, Settings
from infra.backup.versions import client_version, own_versions, refuse_newer

VAULT = Path("/run/secrets/vault.json")
MAX_READ_SECONDS = 20.0
STREAM = [sys.executable, "-m", "infra.backup", "stream"]


def back_up(settings: Settings, repository: Repository, _: str) -> None:
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


def print_due(settings: Settings, repository: Repository, _: str) -> None:
    """Print the seconds until the next backup of the schedule."""
    repository.ensure()
    own = [snapshot for snapshot in repository.snapshots() if snapshot.project == settings.project]
    if own and NEWEST.exists():
        os.utime(NEWEST, times=(own[-1].time.timestamp(),) * 2)
    age = (datetime.now(UTC) - own[-1].time).total_seconds() if own else settings.every_hours * 3600
    print(max(0, int(settings.every_hours * 3600 - age)))


def serve_metrics(settings: Settings, _: Repository, __: str) -> None:
    """Answer scrapes of Prometheus until the process is stopped."""
    from infra.backup import metrics

    metrics.serve(settings)


def print_list(_: Settings, repository: Repository, __: str) -> None:
    """Print the backups, the oldest first."""
    for snapshot in repository.snapshots():
        print(f"{snapshot.id}  {snapshot.time:%Y-%m-%d %H:%M} UTC  {snapshot.project}")


def print_status(settings: Settings, repository: Repository, _: str) -> None:
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
    }
    print(json.dumps(status))


def stream(settings: Settings, _: Repository, __: str) -> None:
    """Write a backup to standard output: databases before objects, so that every object that a row names is there."""
    postgres = Postgres(settings.postgres_user, settings.secrets["postgres"])
    store = connect(settings.minio_user, settings.secrets["minio"])
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
    write_objects(store, archive)
    archive.add(SECRETS, VAULT.read_bytes())
    archive.end()


def check(_: Settings, repository: Repository, name: str) -> None:
    """Say what a backup holds, once all of it has been read.

    Raises:
        BackupError: It is foreign, newer or damaged.
    """
    snapshot = repository.find(name)
    with repository.read(snapshot) as source:
        members = read_members(source)
        manifest = read_manifest(members)
        sections: dict[str, int] = {}
        total = 0
        for member in members:
            sections[member.section] = sections.get(member.section, 0) + 1
            total += member.size
    missing = {SECRETS, *(f"databases/{database}" for database in DATABASES)} - sections.keys()
    if missing:
        raise BackupError(f"the backup is damaged: it lacks {', '.join(sorted(missing))}.")
    print(
        f"Backup {snapshot.id} of {snapshot.project}, {snapshot.time:%Y-%m-%d %H:%M} UTC, Trainyard "
        f"{manifest['versions']['trainyard']}: {len(DATABASES)} databases and {sections.get('objects', 0)} objects, "
        f"{megabytes(total)}, all of it readable."
    )


def read_manifest(members: Any) -> dict[str, Any]:
    """Return a backup's manifest.

    Raises:
        BackupError: It is not one of Trainyard's, or a newer one.
    """
    first: Member = next(members)
    if first.name != MANIFEST:
        raise BackupError("the backup is not one of Trainyard's.")
    manifest: dict[str, Any] = first.json()
    refuse_newer(manifest, {**own_versions(), "postgres": client_version()})
    return manifest


def restore(settings: Settings, repository: Repository, name: str) -> None:
    """Load a backup beside what is there, then put it in its place; print the secrets.

    Until everything is loaded, present databases stay as they are, and objects are only added.

    Raises:
        BackupError: The backup is foreign, newer or damaged, or a server refused it.
    """
    postgres = Postgres(settings.postgres_user, settings.secrets["postgres"])
    snapshot: Snapshot = repository.find(name)
    objects = Restoration(connect(settings.minio_user, settings.secrets["minio"]))
    secrets: dict[str, str] = {}
    with repository.read(snapshot) as source:
        members = read_members(source)
        read_manifest(members)
        for section, group in groupby(members, key=lambda member: member.section):
            if section == "objects":
                objects.add(group)
                say(f"Wrote {objects.sent} objects.")
            elif section == SECRETS:
                (secrets,) = (member.json() for member in group)
            elif (database := section.removeprefix("databases/")) in DATABASES:
                postgres.load(database, (member.stream for member in group))
                say(f"Loaded the database {database}.")
            else:
                raise BackupError(f"the backup has an unknown part, {section}.")
    if not secrets:
        raise BackupError("the backup is damaged: it has no secrets.")
    postgres.replace()
    deleted = objects.delete_others()
    say(f"The databases are in place; deleted {deleted} objects that the backup does not have.")
    print(json.dumps(secrets))


def megabytes(count: float) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"


def say(text: str) -> None:
    """Tell people of progress: standard output carries the secrets."""
    print(text, file=sys.stderr, flush=True)


COMMANDS: dict[str, Callable[[Settings, Repository, str], None]] = {
    "now": back_up,
    "due": print_due,
    "metrics": serve_metrics,
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
    arguments = parser.parse_args()
    try:
        settings = Settings.read()
        COMMANDS[arguments.command](
            settings, Repository(settings.repository, settings.environment, settings.former_password), arguments.backup
        )
    except (BackupError, ValueError) as error:
        sys.exit(f"{'Restore' if arguments.command in ('check', 'restore') else 'Backup'} refused or failed: {error}")
    except (MinioException, StorageUnreachable, subprocess.SubprocessError, OSError) as error:
        sys.exit(f"Backup or restore failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
