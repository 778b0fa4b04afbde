"""Bring Prefect's database to the schema of this image.

An empty database gets the schema that the migrations made when the image was built, in a second instead of twelve.
Without anything to migrate this ends after one query: importing Prefect, which takes seconds, is left to an upgrade.
"""

import asyncio
import os
import re
from pathlib import Path

import asyncpg

SCHEMA = Path("/opt/schema.sql")


async def prepare_database() -> bool:
    """Create the tables in an empty database.

    Returns:
        Whether the database is of another revision and has to be migrated.
    """
    schema = SCHEMA.read_text()
    (revision,) = re.findall(r"^INSERT INTO public\.alembic_version VALUES \('(\w+)'\);$", schema, re.MULTILINE)
    connection = await asyncpg.connect(
        host=os.environ["PREFECT_SERVER_DATABASE_HOST"],
        user=os.environ["PREFECT_SERVER_DATABASE_USER"],
        password=os.environ["PREFECT_SERVER_DATABASE_PASSWORD"],
        database=os.environ["PREFECT_SERVER_DATABASE_NAME"],
    )
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            await connection.execute(schema)  # in one transaction
            print(f"Created Prefect's tables at revision {revision}.", flush=True)
            return False
        current = await connection.fetchval("SELECT version_num FROM alembic_version")
    finally:
        await connection.close()
    if current != revision:
        print(f"Migrating Prefect's database from revision {current} to {revision}.", flush=True)
    return bool(current != revision)


if __name__ == "__main__" and asyncio.run(prepare_database()):
    os.execvp("prefect", ["prefect", "server", "database", "upgrade", "-y"])  # noqa: S606 - no shell is needed
