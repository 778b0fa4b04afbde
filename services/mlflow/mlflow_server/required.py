"""The secrets without which neither MLflow's server nor its migration starts."""

import configparser
import os
import sys

REQUIRED = (
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
)


def require_secrets() -> None:
    """Refuse to start without the secrets that protect the server: an empty password would open it to everybody.

    Raises:
        SystemExit: One is missing or empty; the message names it.
    """
    missing = [name for name in REQUIRED if not os.environ.get(name)]
    accounts = configparser.ConfigParser()
    accounts.read(os.environ["MLFLOW_AUTH_CONFIG_PATH"])
    if not accounts.get("mlflow", "database_uri", raw=True, fallback=""):
        missing.append("accounts.ini")
    if missing:
        sys.exit(
            f"MLflow does not start without {' and '.join(missing)}, missing or incomplete in the volume secrets: "
            "`docker compose up -d` completes them."
        )
