"""Keep what MLflow encrypts under the installation's keys.

Secrets of its AI gateway are under MLFLOW_CRYPTO_KEK_PASSPHRASE, without which MLflow uses one that is in its source, as
version 1. The installation's is version 2 (MLFLOW_CRYPTO_KEK_VERSION). Secrets of webhooks are under
MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, without which each process makes a key and forgets it at its end. After `make rotate`
MLFLOW_FORMER_KEK_PASSPHRASE and MLFLOW_FORMER_WEBHOOK_KEY are the former ones of the two.
"""

import os

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mlflow_server.schema import Database

DEFAULT_VERSION, OWN_VERSION = 1, 2


def adopt_gateway_secrets(database: Database) -> None:
    """Rotate the secrets that are under another passphrase to the installation's, in one transaction.

    It is for a moment in which no server writes secrets. Those that neither MLflow's default passphrase nor the former one
    opens stay as they are and are printed.
    """
    former_passphrase = os.environ.get("MLFLOW_FORMER_KEK_PASSPHRASE")
    versions = [DEFAULT_VERSION, OWN_VERSION] if former_passphrase else [DEFAULT_VERSION]
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT secret_id, secret_name, encrypted_value, wrapped_dek, kek_version FROM secrets"
            " WHERE kek_version = ANY (%s) FOR UPDATE",
            [versions],
        )
        secrets = cursor.fetchall()
        if not secrets:
            return
        from mlflow.exceptions import MlflowException
        from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE, KEKManager, rotate_secret_encryption

        own, former = KEKManager(), {DEFAULT_VERSION: KEKManager(DEFAULT_KEK_PASSPHRASE, DEFAULT_VERSION)}
        if former_passphrase:
            former[OWN_VERSION] = KEKManager(former_passphrase, OWN_VERSION)
        unreadable, adopted = [], 0
        for secret_id, name, encrypted_value, wrapped_dek, version in secrets:
            value, key = bytes(encrypted_value), bytes(wrapped_dek)
            if version == OWN_VERSION and opens_key(key, own.get_kek()):
                continue
            try:
                rotated = rotate_secret_encryption(value, key, former[version], own)
            except MlflowException:
                unreadable.append(name)
                continue
            cursor.execute(
                "UPDATE secrets SET wrapped_dek = %s, kek_version = %s WHERE secret_id = %s",
                [rotated.wrapped_dek, own.kek_version, secret_id],
            )
            adopted += 1
    print(f"Encrypted {adopted} secrets of MLflow's gateway under the installation's passphrase.", flush=True)
    if unreadable:
        print(f"Set these secrets of MLflow's gateway again, their key is lost: {', '.join(unreadable)}.", flush=True)


def opens_key(wrapped: bytes, passphrase_key: bytes) -> bool:
    """Return whether a passphrase's key opens the key of a secret."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.crypto import unwrap_dek

    try:
        unwrap_dek(wrapped, passphrase_key)
    except MlflowException:
        return False
    return True


def adopt_webhooks(database: Database) -> None:
    """Encrypt the webhooks' secrets that are under the installation's former key under its key.

    Webhooks whose secret was encrypted under a key that is lost are disabled, and the secret is deleted: MLflow could read
    no webhook while there is one of them.
    """
    own, former = (
        Fernet(os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]),
        os.environ.get("MLFLOW_FORMER_WEBHOOK_KEY"),
    )
    keys = MultiFernet([own, Fernet(former)] if former else [own])
    unreadable = []
    with database.cursor() as cursor:
        cursor.execute("SELECT webhook_id, name, secret FROM webhooks WHERE secret IS NOT NULL FOR UPDATE")
        for webhook_id, name, secret in cursor.fetchall():
            if opens(own, secret):
                continue
            try:
                rotated = keys.rotate(secret).decode()
                cursor.execute("UPDATE webhooks SET secret = %s WHERE webhook_id = %s", [rotated, webhook_id])
            except InvalidToken:
                unreadable.append(name)
                cursor.execute(
                    "UPDATE webhooks SET secret = NULL, status = 'DISABLED' WHERE webhook_id = %s", [webhook_id]
                )
    if unreadable:
        print(f"Disabled webhooks whose secrets have to be set again: {', '.join(unreadable)}.", flush=True)


def opens(cipher: Fernet, token: str) -> bool:
    """Return whether a token was encrypted under the cipher's key."""
    try:
        cipher.extract_timestamp(token)
    except InvalidToken:
        return False
    return True
