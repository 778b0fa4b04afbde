"""Settings of backup and restore; nothing else in this package reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from infra.backup.databases import Postgres
from infra.backup.objects import Objects
from infra.object_store import ObjectStore

FOLDER = "/backups"
VAULT = Path("/run/secrets/vault.json")
NEWEST = Path("/tmp/newest")  # noqa: S108 - the service's own file, whose time is that of the newest backup
ARCHIVED = Path("/tmp/archived")  # noqa: S108 - as above: of the WAL that was last stored
RECEIVING = Path("/tmp/receiving")  # noqa: S108 - as above: of the start of the service
MAX_KEEP = 10_000


@dataclass(frozen=True)
class Settings:
    """The installation, its accounts for backups, and the repository. Passwords are not part of its repr."""

    project: str
    """The installation's Compose project, which marks its backups in a repository that several share."""
    repository: str
    """In restic's form."""
    every_hours: int
    keep: Mapping[str, int]
    """How many of the newest, daily, weekly and monthly backups are kept."""
    environment: Mapping[str, str]
    """The variables of restic, with its password."""
    former_password: str
    """The repository's before `make rotate`, while it may still have that; else empty."""
    postgres_host: str
    postgres_port: int
    postgres_user: str
    store: ObjectStore
    store_user: str
    secrets: Mapping[str, str]
    """The passwords of Postgres and the object store, by what they open."""
    is_point_in_time: bool
    """Whether WAL is received and stored, so that any moment can be restored."""
    metrics_port: int
    """Where scrapes of Prometheus are answered; 0 for nowhere."""

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            ValueError: A setting has no meaning.
        """
        repository = restic_address(variables.get("BACKUP_S3", ""), variables.get("BACKUP_S3_ENDPOINT", ""))
        restic = {
            "RESTIC_REPOSITORY": repository,
            "RESTIC_PASSWORD": variables["BACKUP_PASSWORD"],
            "AWS_ACCESS_KEY_ID": variables.get("BACKUP_S3_ACCESS_KEY", ""),
            "AWS_SECRET_ACCESS_KEY": variables.get("BACKUP_S3_SECRET_KEY", ""),
        }
        return cls(
            project=variables["BACKUP_PROJECT"],
            repository=repository,
            every_hours=whole_number("BACKUP_EVERY_HOURS", variables),
            keep={
                "last": 3,
                **{
                    unit: whole_number(f"BACKUP_KEEP_{unit.upper()}", variables)
                    for unit in ("daily", "weekly", "monthly")
                },
            },
            environment={**variables, **{name: value for name, value in restic.items() if value}},
            former_password=variables.get("BACKUP_FORMER_PASSWORD", ""),
            postgres_host=variables.get("POSTGRES_HOST", "postgres"),
            postgres_port=int(variables.get("POSTGRES_PORT", 5432)),
            postgres_user=variables["POSTGRES_USER"],
            store=ObjectStore.read(variables),
            store_user=variables["MINIO_USER"],
            secrets={
                "postgres": variables["POSTGRES_PASSWORD"],
                "minio": variables["MINIO_PASSWORD"],
                "replication": variables.get("REPLICATION_PASSWORD", ""),
            },
            is_point_in_time=yes_or_no("BACKUP_POINT_IN_TIME", variables),
            metrics_port=int(variables.get("METRICS_PORT") or 0),
        )

    def __repr__(self) -> str:
        """Return the repository alone: the other fields hold passwords."""
        return f"Settings(repository={self.repository!r})"

    def connect_databases(self) -> Postgres:
        """Return the installation's Postgres."""
        return Postgres(self.postgres_user, self.secrets["postgres"], self.postgres_host, self.postgres_port)

    def connect_objects(self) -> Objects:
        """Return the installation's objects."""
        return Objects(self.store, self.store_user, self.secrets["minio"])


def restic_address(s3: str, endpoint: str) -> str:
    """Return a repository's address in restic's form: the folder, or s3://BUCKET/PATH at an endpoint.

    Raises:
        ValueError: The address is not of that form.
    """
    if not s3:
        return FOLDER
    bucket_and_path = s3.removeprefix("s3://").strip("/")
    if not s3.startswith("s3://") or not bucket_and_path:
        raise ValueError(f"{s3!r} is not of the form s3://bucket/path")
    return f"s3:{(endpoint or 'https://s3.amazonaws.com').rstrip('/')}/{bucket_and_path}"


def whole_number(name: str, variables: Mapping[str, str]) -> int:
    """Return a setting that counts something.

    Raises:
        ValueError: It is no whole number from 0 to MAX_KEEP.
    """
    text = variables[name]
    if not text.isascii() or not text.isdigit() or int(text) > MAX_KEEP:
        raise ValueError(f"{name} is {text!r} and must be a whole number from 0 to {MAX_KEEP}")
    return int(text)


def yes_or_no(name: str, variables: Mapping[str, str]) -> bool:
    """Return a setting that is true or false; false where it is not set.

    Raises:
        ValueError: It is neither.
    """
    text = variables.get(name, "") or "false"
    if text not in ("true", "false"):
        raise ValueError(f"{name} is {text!r} and must be true or false")
    return text == "true"
