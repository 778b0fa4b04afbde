"""Bring MLflow's two databases to the schemas of this image, and the admin to the name and password in /run/secrets.

An empty database gets the schema that the migrations made when the image was built, in a second instead of ten. Without
anything to do this ends after a few queries: importing MLflow, which takes seconds, is left to an upgrade.
"""

import os

from mlflow_server.admin import ensure_admin
from mlflow_server.required import require_secrets
from mlflow_server.schema import Database, accounts_database, tracking_database


def main() -> None:
    """Bring both databases and the admin's account up to date."""
    require_secrets()
    tracking, accounts = tracking_database(), accounts_database()
    # Both are looked at before one is migrated.
    is_former, has_former_accounts = prepare_database(tracking), prepare_database(accounts)
    if is_former:
        from mlflow.db import upgrade

        upgrade.callback(tracking.url)  # type: ignore[misc]
    if has_former_accounts:
        from mlflow.server.auth.db.cli import upgrade as upgrade_accounts

        upgrade_accounts.callback(accounts.url, "head")  # type: ignore[misc]
    with accounts.cursor() as cursor:
        ensure_admin(cursor, os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])


def prepare_database(database: Database) -> bool:
    """Create the tables in an empty database.

    Returns:
        Whether the database is of an earlier revision and has to be migrated.

    Raises:
        SystemExit: The database is of a later version.
    """
    expected = database.image_revision()
    with database.cursor() as cursor:
        current = database.read_revision(cursor)
        if current is None:
            cursor.execute(database.schema_file.read_text())  # in one transaction
            print(f"Created the tables of MLflow's database {database.name} at revision {expected}.", flush=True)
            return False
    database.refuse_newer(current)
    if current != expected:
        print(f"Migrating MLflow's database {database.name} from revision {current} to {expected}.", flush=True)
    return current != expected


if __name__ == "__main__":
    main()
