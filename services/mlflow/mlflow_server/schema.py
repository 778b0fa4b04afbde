"""The revisions of MLflow's two schemas: of this image, and of its databases.

Server and migration start together with Postgres, while the roles and databases are still being made, and wait here.
"""

import configparser
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2.extensions import cursor as Cursor
from sqlalchemy.engine import make_url

from trainyard.servers import revisions

POLL_SECONDS = 0.1
MAX_CONNECT_SECONDS = 120.0


@dataclass(frozen=True)
class Database:
    """One of MLflow's databases: its address, the file with its schema, the table with its revision, and its migrations."""

    url: str
    schema_file: Path
    revision_table: str
    migrations: str
    """Their folder in MLflow's package."""

    @property
    def name(self) -> str | None:
        """The database's name."""
        return make_url(self.url).database

    def image_revision(self) -> str:
        """Return the revision that the migrations led to when the image was built."""
        insert = rf"^INSERT INTO public\.{self.revision_table} VALUES \('(\w+)'\);$"  # noqa: S608 - a pattern, not a query
        (revision,) = re.findall(insert, self.schema_file.read_text(), re.MULTILINE)
        return str(revision)

    def known_revisions(self) -> frozenset[str]:
        """Return the revisions that this image has migrations for."""
        return revisions.known_revisions("mlflow", self.migrations)

    def refuse_newer(self, current: str) -> None:
        """Return if the database's revision is one of this image's.

        Raises:
            SystemExit: It is not: a newer version has migrated the database.
        """
        revisions.refuse_newer("MLflow", f"database {self.name}", current, self.known_revisions())

    @contextmanager
    def cursor(self) -> Iterator[Cursor]:
        """Connect, once the database is there; commit at the end of the block, or roll back.

        Raises:
            SystemExit: It did not become ready; the message says why and what to do.
        """
        parts, deadline = make_url(self.url), time.monotonic() + MAX_CONNECT_SECONDS
        while True:
            try:
                connection = psycopg2.connect(
                    host=parts.host,
                    port=parts.port,
                    user=parts.username,
                    password=parts.password,
                    dbname=parts.database,
                )
                break
            except psycopg2.OperationalError as error:  # also: no such role yet, or not yet this password
                if time.monotonic() > deadline:
                    raise SystemExit(
                        f"MLflow's database {self.name} did not become ready: {error}"
                        "See `docker compose logs postgres databases`."
                    ) from error
                time.sleep(POLL_SECONDS)
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def read_revision(self, cursor: Cursor) -> str | None:
        """Return the revision of the database, or None for an empty one."""
        cursor.execute("SELECT to_regclass(%s)", [self.revision_table])
        if cursor.fetchone() == (None,):
            return None
        cursor.execute(f"SELECT version_num FROM {self.revision_table}")  # noqa: S608 - a constant
        ((revision,),) = cursor.fetchall()
        return str(revision)

    def wait_for_schema(self) -> None:
        """Return once the database has the revision of this image, which is for `mlflow-migrate` to see to.

        Raises:
            SystemExit: The database is newer, or did not become ready.
        """
        expected, found = self.image_revision(), None
        while True:
            with self.cursor() as cursor:
                current = self.read_revision(cursor)
            if current == expected:
                return
            if current and current != found:
                found = current
                self.refuse_newer(current)
                print(
                    f"Waiting for mlflow-migrate: the database {self.name} has revision {current}, not {expected}.",
                    flush=True,
                )
            time.sleep(POLL_SECONDS)


def tracking_database() -> Database:
    """Return the database of runs and models."""
    return Database(
        os.environ["MLFLOW_BACKEND_STORE_URI"],
        Path("/opt/tracking.sql"),
        "alembic_version",
        "store/db_migrations/versions",
    )


def accounts_database() -> Database:
    """Return the database of MLflow's accounts."""
    auth_settings = configparser.ConfigParser()
    auth_settings.read(os.environ["MLFLOW_AUTH_CONFIG_PATH"])
    return Database(
        auth_settings["mlflow"]["database_uri"],
        Path("/opt/accounts.sql"),
        "alembic_version_auth",
        "server/auth/db/migrations/versions",
    )
