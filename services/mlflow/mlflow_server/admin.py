"""MLflow's admin account, whose name and password are settings.

MLflow creates the admin where no account has its name, and leaves a former one as it was: an admin by its old password.
Which account is the installation's is therefore noted in the database; people may have made further admins.
"""

from psycopg2.extensions import cursor as Cursor
from werkzeug.security import check_password_hash, generate_password_hash

from trainyard.contract import Account

SERVICES = (Account.WORKER, Account.SERVING, Account.DASHBOARD)
ADMIN_TABLE = """
CREATE SCHEMA IF NOT EXISTS trainyard;
CREATE TABLE IF NOT EXISTS trainyard.admin (user_id integer NOT NULL);
"""
# Where none is noted yet it is MLflow's first admin, which the server made before anybody could sign in.
NOTED_ADMIN = """
SELECT id, username FROM users
WHERE id = (SELECT user_id FROM trainyard.admin) OR (is_admin AND NOT EXISTS (SELECT FROM trainyard.admin))
ORDER BY id LIMIT 1
"""


def ensure_admin(cursor: Cursor, name: str, password: str) -> None:
    """Create the admin, or rename it and update its password where they have changed.

    Where the new name is an account already, that one becomes the admin and the former one is an admin no longer. So it
    is where the former name is a service's, which gets an account of its own.
    """
    cursor.execute(ADMIN_TABLE)
    cursor.execute(NOTED_ADMIN)
    former_id, former = cursor.fetchone() or (None, name)
    cursor.execute("SELECT id, password_hash, is_admin FROM users WHERE username = %s", [name])
    account = cursor.fetchone()
    if former != name and (account or former in SERVICES):
        cursor.execute("UPDATE users SET is_admin = false WHERE id = %s", [former_id])
        print(f"MLflow's account {former} is no longer an admin: {name} is.", flush=True)
    elif former != name:
        cursor.execute(
            "UPDATE users SET username = %s WHERE id = %s RETURNING id, password_hash, is_admin", [name, former_id]
        )
        account = cursor.fetchone()
        print(f"Renamed MLflow's admin from {former} to {name}.", flush=True)
    admin_id = write_admin(cursor, name, password, account)
    cursor.execute("DELETE FROM trainyard.admin; INSERT INTO trainyard.admin VALUES (%s)", [admin_id])


def write_admin(cursor: Cursor, name: str, password: str, account: tuple[int, str, bool] | None) -> int:
    """Create the account, or update its password and make it an admin; return its id."""
    if account is None:
        cursor.execute(
            "INSERT INTO users (username, password_hash, is_admin) VALUES (%s, %s, true) RETURNING id",
            [name, generate_password_hash(password)],
        )
        ((admin_id,),) = cursor.fetchall()
        return int(admin_id)
    admin_id, password_hash, is_admin = account
    if not check_password_hash(password_hash, password):
        new_hash = generate_password_hash(password)
        cursor.execute("UPDATE users SET password_hash = %s WHERE id = %s", [new_hash, admin_id])
        print(f"Changed the password of MLflow's account {name}.", flush=True)
    if not is_admin:
        cursor.execute("UPDATE users SET is_admin = true WHERE id = %s", [admin_id])
    return admin_id
