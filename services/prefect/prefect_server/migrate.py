"""Bring Prefect's database to the schema of this image, and add the table of leases.

An empty database gets the schema that the migrations made when the image was built, in a second instead of twelve.
Without anything to migrate this ends after one query: importing Prefect, which takes seconds, is left to an upgrade.
"""

import asyncio
import os

from prefect_server.schema import LEASES_TABLE, SCHEMA, connect, image_revision, read_revision, refuse_newer


async def prepare_database() -> bool:
    """Create the tables in an empty database.

    Returns:
        Whether the database is of an earlier revision and has to be migrated.

    Raises:
        SystemExit: The database is of a later version; nothing was changed.
    """
    expected = image_revision()
    async with connect() as connection:
        current = await read_revision(connection)
        if current is not None:
            refuse_newer(current)
        await connection.execute(LEASES_TABLE)
        if current is None:
            await connection.execute(SCHEMA.read_text())  # in one transaction
            print(f"Created Prefect's tables at revision {expected}.", flush=True)
            return False
    if current != expected:
        print(f"Migrating Prefect's database from revision {current} to {expected}.", flush=True)
    return current != expected


if __name__ == "__main__" and asyncio.run(prepare_database()):
    os.execvp("prefect", ["prefect", "server", "database", "upgrade", "-y"])  # noqa: S606 - no shell is needed
