"""The revision of Prefect's schema: of this image, and of its database.

Server and migration start together with Postgres, while the roles and databases are still being made, and wait here.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from trainyard.servers import revisions

SCHEMA = Path("/opt/schema.sql")
# Of prefect_server.leases; Prefect's migrations see its own schema only.
LEASES_TABLE = """
CREATE SCHEMA IF NOT EXISTS trainyard;
CREATE TABLE IF NOT EXISTS trainyard.leases (
    id uuid PRIMARY KEY,
    resource_ids uuid[] NOT NULL,
    slots integer,
    holder jsonb,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS leases_expires_at ON trainyard.leases (expires_at);
"""
POLL_SECONDS = 0.1
MAX_CONNECT_SECONDS = 120.0
# What a database answers while it starts, and before `databases` has made the role, its password and its database.
NOT_READY = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


def image_revision() -> str:
    """Return the revision that the migrations led to when the image was built."""
    insert = r"^INSERT INTO public\.alembic_version VALUES \('(\w+)'\);$"
    (revision,) = re.findall(insert, SCHEMA.read_text(), re.MULTILINE)
    return str(revision)


def known_revisions() -> frozenset[str]:
    """Return the revisions that this image has migrations for."""
    return revisions.known_revisions("prefect", "server/database/_migrations/versions/postgresql")


def refuse_newer(current: str) -> None:
    """Return if a database's revision is one of this image's.

    Raises:
        SystemExit: It is not: a newer version has migrated the database.
    """
    revisions.refuse_newer("Prefect", "database", current, known_revisions())


@asynccontextmanager
async def connect() -> AsyncIterator[asyncpg.Connection]:
    """Connect to Prefect's database, once it is there.

    Raises:
        SystemExit: It did not become ready; the message says why and what to do.
    """
    deadline = asyncio.get_running_loop().time() + MAX_CONNECT_SECONDS
    while True:
        try:
            connection = await asyncpg.connect(
                host=os.environ["PREFECT_SERVER_DATABASE_HOST"],
                port=int(os.environ["PREFECT_SERVER_DATABASE_PORT"]),
                user=os.environ["PREFECT_SERVER_DATABASE_USER"],
                password=os.environ["PREFECT_SERVER_DATABASE_PASSWORD"],
                database=os.environ["PREFECT_SERVER_DATABASE_NAME"],
            )
            break
        except NOT_READY as error:
            if asyncio.get_running_loop().time() > deadline:
                raise SystemExit(
                    f"Prefect's database did not become ready: {error}. See `docker compose logs postgres databases`."
                ) from error
            await asyncio.sleep(POLL_SECONDS)
    try:
        yield connection
    finally:
        await connection.close()


async def read_revision(connection: asyncpg.Connection) -> str | None:
    """Return the revision of a database, or None for an empty one."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    return str(await connection.fetchval("SELECT version_num FROM alembic_version"))


async def has_leases(connection: asyncpg.Connection) -> bool:
    """Return whether a database has the table of leases."""
    return await connection.fetchval("SELECT to_regclass('trainyard.leases')") is not None


async def wait_for_schema() -> None:
    """Return once the database has the revision of this image, which is for `prefect-migrate` to see to.

    Raises:
        SystemExit: The database is newer, or did not become ready.
    """
    expected, found = image_revision(), ""
    async with connect() as connection:
        while (current := await read_revision(connection)) != expected or not await has_leases(connection):
            if current and current not in (found, expected):
                found = current
                refuse_newer(current)
                print(f"Waiting for prefect-migrate: the database has revision {current}, not {expected}.", flush=True)
            await asyncio.sleep(POLL_SECONDS)
