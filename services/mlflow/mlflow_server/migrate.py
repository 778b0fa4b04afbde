"""Bring MLflow's two databases to the schemas of this image, and the admin to the password in /run/secrets.

An empty database gets the schema that the migrations made when the image was built, in a second instead of ten. MLflow
takes the admin's password only when it creates the account; a password changed in .env later is set here. Without
anything to do this ends after a few queries: importing MLflow, which takes seconds, is left to an upgrade.
"""

import configparser
import os
import re
from pathlib import Path

import psycopg2
from sqlalchemy.engine import make_url
from werkzeug.security import check_password_hash, generate_password_hash

TRACKING_SCHEMA, ACCOUNTS_SCHEMA = Path("/opt/tracking.sql"), Path("/opt/accounts.sql")


def main() -> None:
    """Bring both databases and the admin's account up to date."""
    auth_settings = configparser.ConfigParser()
    auth_settings.read(os.environ["MLFLOW_AUTH_CONFIG_PATH"])
    tracking_url, accounts_url = os.environ["MLFLOW_BACKEND_STORE_URI"], auth_settings["mlflow"]["database_uri"]
    if prepare_database(tracking_url, TRACKING_SCHEMA, "alembic_version"):
        from mlflow.db import upgrade

        upgrade.callback(tracking_url)  # type: ignore[misc]
    if prepare_database(accounts_url, ACCOUNTS_SCHEMA, "alembic_version_auth"):
        from mlflow.server.auth.db.cli import upgrade as upgrade_accounts

        upgrade_accounts.callback(accounts_url, "head")  # type: ignore[misc]
    set_password(accounts_url, os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])


def prepare_database(url: str, schema_file: Path, revision_table: str) -> bool:
    """Create the tables in an empty database.

    Returns:
        Whether the database is of another revision and has to be migrated.
    """
    schema, name = schema_file.read_text(), make_url(url).database
    insert = rf"^INSERT INTO public\.{revision_table} VALUES \('(\w+)'\);$"  # noqa: S608 - a pattern, not a query
    (revision,) = re.findall(insert, schema, re.MULTILINE)
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [revision_table])
        if cursor.fetchone() == (None,):
            cursor.execute(schema)  # in one transaction
            print(f"Created the tables of MLflow's database {name} at revision {revision}.", flush=True)
            return False
        cursor.execute(f"SELECT version_num FROM {revision_table}")  # noqa: S608 - a constant of this module
        ((current,),) = cursor.fetchall()
    if current != revision:
        print(f"Migrating MLflow's database {name} from revision {current} to {revision}.", flush=True)
    return bool(current != revision)


def set_password(url: str, admin: str, password: str) -> None:
    """Update the admin's password where it has changed; the server creates a missing account."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT password_hash FROM users WHERE username = %s", [admin])
        row = cursor.fetchone()
        if row and not check_password_hash(row[0], password):
            new_hash = generate_password_hash(password)
            cursor.execute("UPDATE users SET password_hash = %s WHERE username = %s", [new_hash, admin])
            print(f"Changed the password of MLflow's account {admin}.", flush=True)


def connect(url: str) -> psycopg2.extensions.connection:
    """Connect to a database; in a `with` block it commits at the end or rolls back."""
    parts = make_url(url)
    return psycopg2.connect(host=parts.host, user=parts.username, password=parts.password, dbname=parts.database)


if __name__ == "__main__":
    main()
