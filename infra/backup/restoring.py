"""Restore a backup, or the installation at a moment: verified first, then loaded beside what is there, which it replaces."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from infra.backup.archive import MANIFEST, SECRETS, Member, read_members, reported_damage
from infra.backup.databases import DATABASES, Load, Postgres
from infra.backup.errors import BackupError
from infra.backup.objects import Restoration
from infra.backup.point_in_time import BASE_FILE, FOLDER, Archive, Plan, show
from infra.backup.receiver import home
from infra.backup.recovery import Scratch
from infra.backup.repository import Repository, Snapshot
from infra.backup.settings import Settings
from infra.backup.versions import client_version, own_versions, refuse_newer


@dataclass(frozen=True)
class Wanted:
    """What somebody asked to be restored."""

    backup: str
    moment: datetime | None


@dataclass(frozen=True)
class Source:
    """A backup, and where a moment after it is restored, what brings it there."""

    snapshot: Snapshot
    plan: Plan | None = None
    scratch: Scratch | None = None
    postgres: Postgres | None = None

    def members(self) -> Iterator[tuple[IO[bytes], int]]:
        """Yield the streams with the objects that came after the backup, and the time of the last that matter."""
        if self.scratch and self.plan:
            for file in self.scratch.objects():
                with file.open("rb") as stream:
                    yield stream, int(self.plan.moment.timestamp())


def choose(repository: Repository, wanted: Wanted) -> tuple[Snapshot, Plan | None]:
    """Return the backup to restore, and the plan for the moment: the one asked for, or the newest that there is.

    Raises:
        BackupError: There is no such backup, or that moment cannot be restored.
    """
    if wanted.backup != "latest":
        if wanted.moment:
            raise BackupError("BACKUP and AT exclude each other: name a backup or a moment.")
        return repository.find(wanted.backup), None
    newest = repository.find("latest")
    archive = Archive.read(repository.inside(FOLDER), newest.project)
    if not wanted.moment and not archive.bases:
        return newest, None
    plan = archive.plan(wanted.moment)
    if not wanted.moment and plan.moment < newest.time:
        return newest, None
    return repository.find(plan.base.backup), plan


@contextmanager
def open_source(repository: Repository, wanted: Wanted) -> Iterator[Source]:
    """Find what is asked for, and bring the databases to the moment, if it is one.

    Raises:
        BackupError: It is not there, damaged, or newer than this checkout.
    """
    snapshot, plan = choose(repository, wanted)
    if plan is None:
        yield Source(snapshot)
        return
    if plan.is_newest:
        say(f"The newest moment that can be restored is {show(plan.moment)}.")
    moments = repository.inside(FOLDER)
    folder = Path(tempfile.mkdtemp(dir=home()))
    # Postgres does not run as root, to whom the folder of the backups may belong.
    scratch = Scratch(folder, user="postgres" if os.geteuid() == 0 else None)
    try:
        with moments.read_path(plan.base.id, f"/{BASE_FILE}", is_all_read=True) as stream:
            scratch.unpack_base(stream)
        for piece in plan.pieces:
            with moments.read_path(piece.id, piece.folder, is_all_read=True) as stream:
                scratch.unpack_piece(stream)
        if versions := scratch.fact("versions", plan.moment):
            refuse_newer(json.loads(versions), {**own_versions(), "postgres": client_version()})
        with scratch.recovered(plan.moment) as postgres:
            yield Source(snapshot, plan, scratch, postgres)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is left of another user goes with the container's volume


def check(_: Settings, repository: Repository, wanted: Wanted) -> None:
    """Say what a backup holds, or the installation at a moment, once all of it has been read.

    Raises:
        BackupError: It is foreign, newer or damaged, or that moment cannot be restored.
    """
    with open_source(repository, wanted) as source:
        snapshot = source.snapshot
        with repository.read(snapshot) as stream:
            members = read_members(stream)
            manifest = read_manifest(members)
            sections: dict[str, int] = {}
            total = 0
            for member in members:
                sections[member.section] = sections.get(member.section, 0) + 1
                total += member.size
        missing = {SECRETS, *(f"databases/{database}" for database in DATABASES)} - sections.keys()
        if missing:
            raise BackupError(f"the backup is damaged: it lacks {', '.join(sorted(missing))}.")
        later = 0
        for stream, last in source.members():
            with reported_damage():
                later += sum(member.modified <= last for member in read_members(stream))
        print(
            f"Backup {snapshot.id} of {snapshot.project}, {snapshot.time:%Y-%m-%d %H:%M} UTC, Trainyard "
            f"{manifest['versions']['trainyard']}: {len(DATABASES)} databases and {sections.get('objects', 0)} objects, "
            f"{megabytes(total)}, all of it readable."
        )
        if source.plan and source.postgres:
            for database in DATABASES:
                source.postgres.query(database, "SELECT 1")
            print(f"Its databases can be brought to {show(source.plan.moment)}, and {later} objects came until then.")


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


def restore(settings: Settings, repository: Repository, wanted: Wanted) -> None:
    """Load a backup, or the installation at a moment, beside what is there, then put it in its place; print the secrets.

    Until everything is loaded, present databases stay as they are, and objects are only added.

    Raises:
        BackupError: The backup is foreign, newer or damaged, that moment cannot be restored, or a server refused it.
    """
    postgres, objects = settings.connect_databases(), Restoration(settings.connect_objects())
    with open_source(repository, wanted) as source:
        secrets = load(source, repository, postgres, objects)
    postgres.replace()
    deleted = objects.delete_others()
    say(f"The databases are in place; deleted {deleted} objects that the backup does not have.")
    print(json.dumps(secrets))


def load(source: Source, repository: Repository, postgres: Postgres, objects: Restoration) -> dict[str, str]:
    """Load databases and objects; return the secrets.

    Raises:
        BackupError: The backup is foreign, newer or damaged, or a server refused it.
    """
    secrets: dict[str, str] = {}
    loads: list[Load] = []
    with repository.read(source.snapshot) as stream:
        members = read_members(stream)
        read_manifest(members)
        for section, group in groupby(members, key=lambda member: member.section):
            if section == "objects":
                objects.add(group)
            elif section == SECRETS:
                (secrets,) = (member.json() for member in group)
            elif (database := section.removeprefix("databases/")) in DATABASES:
                at_moment = source.postgres and (BytesIO(part) for part in source.postgres.dump(database))
                loads.append(postgres.load(database, at_moment or (member.stream for member in group)))
                say(f"Loaded the rows of the database {database}.")
            else:
                raise BackupError(f"the backup has an unknown part, {section}.")
    for stream, last in source.members():
        with reported_damage():
            objects.add(member for member in read_members(stream) if member.modified <= last)
    say(f"Wrote {objects.sent} objects.")
    for each in loads:
        each.finish()
    say("Built the databases' indexes.")
    if source.scratch and source.plan and (vault := source.scratch.fact("vault", source.plan.moment)):
        secrets = json.loads(vault)
    if not secrets:
        raise BackupError("the backup is damaged: it has no secrets.")
    return secrets


def megabytes(count: float) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"


def say(text: str) -> None:
    """Tell people of progress: standard output carries the secrets."""
    print(text, file=sys.stderr, flush=True)
