"""Dumps of the databases, and their way back: beside the present ones first, which they then replace at once."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from infra.backup.errors import BackupError

# In the order of dumping: what a database names in a later one is there. Records name versions of models, and flow runs
# name MLflow's runs.
DATABASES = ("serving", "prefect", "mlflow_accounts", "mlflow")
REVISION_TABLES = {"prefect": "alembic_version", "mlflow": "alembic_version", "mlflow_accounts": "alembic_version_auth"}
PART_BYTES = 32 << 20
MAX_LOCK_WAIT = "60s"
LOADING = {"PGOPTIONS": "-c maintenance_work_mem=128MB"}  # indexes are built with less reading and writing


class Postgres:
    """A server, as a user of it."""

    def __init__(self, user: str, password: str, host: str, port: int = 5432) -> None:
        self.environment = {
            **os.environ,
            "PGHOST": host,
            "PGPORT": str(port),
            "PGUSER": user,
            "PGPASSWORD": password,
        }

    def query(self, database: str, sql: str) -> str:
        """Run SQL, in a transaction of its own unless the SQL says otherwise, and return its answer without decoration.

        Raises:
            BackupError: The server refused it or does not answer.
        """
        command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        result = subprocess.run(
            [*command, "--dbname", database], input=sql, env=self.environment, capture_output=True, text=True
        )
        if result.returncode:
            raise BackupError(f"Postgres refused a command on {database}: {last_line(result.stderr)}")
        return result.stdout.strip()

    def dump(self, database: str) -> Iterator[bytes]:
        """Yield a database's dump in parts: one consistent snapshot, uncompressed so that it deduplicates.

        Raises:
            BackupError: pg_dump failed.
        """
        command = ["pg_dump", "--format=custom", "--compress=none", f"--lock-wait-timeout={MAX_LOCK_WAIT}", database]
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while part := process.stdout.read(PART_BYTES):
                yield part
        if process.returncode:
            raise BackupError(f"the database {database} could not be dumped: see above.")

    def load(self, database: str, parts: Iterable[IO[bytes]]) -> "Load":
        """Read a dump into a database beside the present one, under the name of `beside`; it is to be finished.

        Raises:
            BackupError: The server refused it.
        """
        name = beside(database)
        self.query("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.query("postgres", f"CREATE DATABASE {name} OWNER {database}")
        command = ["pg_restore", "--exit-on-error", "--dbname", name]
        process = subprocess.Popen(command, env=self.environment | LOADING, stdin=subprocess.PIPE)
        assert process.stdin is not None
        load = Load(self, database, process)
        try:
            for part in parts:
                while data := part.read(1 << 20):
                    process.stdin.write(data)
            process.stdin.close()
        except BrokenPipeError:  # pg_restore has said why
            load.finish()
        return load

    def replace(self) -> None:
        """Put the loaded databases in the places of the present ones, all in one transaction, and drop those."""
        for database in DATABASES:
            self.query("postgres", f"DROP DATABASE IF EXISTS {database}_former WITH (FORCE)")
        present = self.query("postgres", "SELECT datname FROM pg_database").split()
        renames = [f"ALTER DATABASE {name} RENAME TO {name}_former;" for name in DATABASES if name in present]
        renames += [f"ALTER DATABASE {beside(name)} RENAME TO {name};" for name in DATABASES]
        self.query("postgres", "\n".join(["BEGIN;", *renames, "COMMIT;"]))
        for database in DATABASES:
            self.query("postgres", f"DROP DATABASE IF EXISTS {database}_former WITH (FORCE)")

    def version(self) -> str:
        """Return the server's version."""
        return self.query("postgres", "SHOW server_version").split()[0]

    def revisions(self) -> dict[str, str]:
        """Return the revisions of the databases' schemas."""
        return {
            name: self.query(name, f"SELECT version_num FROM {table}")  # noqa: S608 - names of our own
            for name, table in REVISION_TABLES.items()
        }


def beside(database: str) -> str:
    """Return the name under which a dump is loaded."""
    return f"{database}_restored"


def last_line(text: str) -> str:
    """Return the last line of a program's output."""
    return text.strip().splitlines()[-1] if text.strip() else "it gave no reason"


@dataclass(frozen=True)
class Load:
    """A database whose dump has been read: its indexes are still being built."""

    postgres: Postgres
    database: str
    process: subprocess.Popen[bytes]

    def finish(self) -> None:
        """Wait until the database is complete.

        Raises:
            BackupError: The server refused it.
        """
        with suppress(BrokenPipeError):
            self.process.communicate()
        if self.process.returncode:
            raise BackupError(f"the database {self.database} could not be loaded: see above.")
        self.postgres.query(beside(self.database), "ANALYZE")
