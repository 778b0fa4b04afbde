"""Keep what MLflow encrypts under the installation's keys.

Secrets of its AI gateway are under MLFLOW_CRYPTO_KEK_PASSPHRASE, without which MLflow uses one that is in its source, as
version 1. The installation's is version 2 (MLFLOW_CRYPTO_KEK_VERSION). Secrets of webhooks are under
MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, without which each process makes a key and forgets it at its end.
"""

import os

from cryptography.fernet import Fernet, InvalidToken

from mlflow_server.schema import Database

DEFAULT_VERSION = 1


def adopt_gateway_secrets(database: Database) -> None:
    """Rotate the secrets that are under MLflow's default passphrase to the installation's, in one transaction.

    It is for a moment in which no server writes secrets. Those that the default passphrase does not open stay as they are
    and are printed.
    """
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT secret_id, secret_name, encrypted_value, wrapped_dek FROM secrets WHERE kek_version = %s FOR UPDATE",
            [DEFAULT_VERSION],
        )
        secrets = cursor.fetchall()
        if not secrets:
            return
        from mlflow.exceptions import MlflowException
        from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE, KEKManager, rotate_secret_encryption

        default, own = KEKManager(DEFAULT_KEK_PASSPHRASE, DEFAULT_VERSION), KEKManager()
        unreadable = []
        for secret_id, name, encrypted_value, wrapped_dek in secrets:
            try:
                rotated = rotate_secret_encryption(bytes(encrypted_value), bytes(wrapped_dek), default, own)
            except MlflowException:
                unreadable.append(name)
                continue
            cursor.execute(
                "UPDATE secrets SET wrapped_dek = %s, kek_version = %s WHERE secret_id = %s",
                [rotated.wrapped_dek, own.kek_version, secret_id],
            )
    adopted = len(secrets) - len(unreadable)
    print(f"Encrypted {adopted} secrets of MLflow's gateway under the installation's passphrase.", flush=True)
    if unreadable:
        print(f"Set these secrets of MLflow's gateway again, their key is lost: {', '.join(unreadable)}.", flush=True)


def disable_unreadable_webhooks(database: Database) -> None:
    """Disable the webhooks whose secret was encrypted under a key that is lost, and delete the secret.

    MLflow could read no webhook while there is one of them.
    """
    cipher = Fernet(os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"])
    with database.cursor() as cursor:
        cursor.execute("SELECT webhook_id, name, secret FROM webhooks WHERE secret IS NOT NULL FOR UPDATE")
        unreadable = {webhook_id: name for webhook_id, name, secret in cursor.fetchall() if not opens(cipher, secret)}
        for webhook_id in unreadable:
            cursor.execute("UPDATE webhooks SET secret = NULL, status = 'DISABLED' WHERE webhook_id = %s", [webhook_id])
    if unreadable:
        print(f"Disabled webhooks whose secrets have to be set again: {', '.join(unreadable.values())}.", flush=True)


def opens(cipher: Fernet, token: str) -> bool:
    """Return whether a token was encrypted under the cipher's key."""
    try:
        cipher.extract_timestamp(token)
    except InvalidToken:
        return False
    return True
